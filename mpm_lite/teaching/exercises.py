"""The exercises of the course by name: what an answer is compared with, and the mistakes that are worth naming.

A name is the notebook's number and the exercise's ("08.2"). The function below a decorator computes the reference: a value, of
the notebook's objects that `check` was handed by keyword; or, where there are `cases`, what the learner's function is to return.
`example` makes such objects up, so that tests can run a reference and its mistakes without the notebook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpm_lite.core.runtime import unknown
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import grammar
from mpm_lite.evaluation import reply_scores
from mpm_lite.experiments.mla import Acquiring
from mpm_lite.experiments.mpm_chat import Chat
from mpm_lite.ops import clip_loss, siglip_loss
from mpm_lite.recipes.modules.connectors import Look
from mpm_lite.recipes.modules.diffusion import Bridge


@dataclass(frozen=True)
class Exercise:
    """One exercise: its reference, how near an answer has to come, and wrong answers with their reasons."""

    name: str
    title: str
    reference: Callable[..., Any]
    tolerance: float = 0.005
    mistakes: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    cases: Callable[..., list[tuple[Any, ...]]] | None = None
    gradient: bool = False
    example: Callable[[], dict[str, Any]] | None = None


EXERCISES: dict[str, Exercise] = {}


def exercise(
    name: str, title: str, tolerance: float = 0.005, mistakes: Mapping[str, Callable[..., Any]] | None = None,
    cases: Callable[..., list[tuple[Any, ...]]] | None = None, gradient: bool = False,
    example: Callable[[], dict[str, Any]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # fmt: skip
    """Register a reference under `name`. `mistakes` maps a reason to what computes that wrong answer, from the same arguments;
    `cases` lists arguments on which a function is compared; `gradient` compares gradients of its floating tensors too.
    """

    def register(reference: Callable[..., Any]) -> Callable[..., Any]:
        if name in EXERCISES:
            raise ValueError(f"exercise {name} is registered twice")
        EXERCISES[name] = Exercise(name, title, reference, tolerance, dict(mistakes or {}), cases, gradient, example)
        return reference

    return register


def find_exercise(name: str) -> Exercise:
    """The exercise of that name. Raises UserError where there is none."""
    if name not in EXERCISES:
        raise unknown("exercise", name, list(EXERCISES))
    return EXERCISES[name]


# Notebook 00


# Notebook 01


def _square() -> dict[str, Any]:
    return {"S": np.array([[0.6, 0.1, 0.2], [0.0, 0.3, 0.5], [0.1, -0.2, 0.7]])}


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _row_loss(matrix: np.ndarray, s: float) -> float:
    return float(-np.log(np.diag(_softmax(s * matrix))).mean())


@exercise(
    "01.1", "symmetric InfoNCE", 1e-4, cases=lambda S: [(S, 1.0), (S.T.copy(), 14.3), (S[:2, :2], 20.0)], example=_square,
    mistakes={
        "only the rows are in it, each picture among captions: the loss is symmetric": _row_loss,
        "only the columns are in it, each caption among pictures: the loss is symmetric": lambda m, s: _row_loss(m.T, s),
        "it is the sum of both directions, and their mean is asked for": lambda m, s: _row_loss(m, s) + _row_loss(m.T, s),
        "the scale is not in it": lambda m, s: (_row_loss(m, 1.0) + _row_loss(m.T, 1.0)) / 2,
    },
)  # fmt: skip
def _info_nce(matrix: np.ndarray, s: float) -> float:
    square = torch.tensor(matrix)
    return float(clip_loss(square, torch.eye(len(square), dtype=square.dtype), s))


@exercise(
    "01.2", "derivative by the scale", 0.0005, example=_square,
    mistakes={
        "the softmax alone is in it: take the one-hot off": lambda S: (_softmax(14.3 * S) * S).sum() / len(S),
        "it is the sum over the rows, and the loss is their mean": lambda S: len(S) * _slope_by_scale(S),
        "the factor S of the chain rule is missing": lambda S: (_softmax(14.3 * S) - np.eye(len(S))).sum() / len(S),
    },
)  # fmt: skip
def _slope_by_scale(S: np.ndarray) -> float:
    s = torch.tensor(14.3, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(s * torch.tensor(S, dtype=torch.float64), torch.arange(len(S))).backward()
    return float(s.grad)


def _siglip_start(bias: float, noes: int = 1023) -> float:
    return float(np.log1p(np.exp(-bias)) + noes * np.log1p(np.exp(bias)))


@exercise(
    "01.3", "a bias for 1,024 pairs, and the loss it starts with",
    mistakes={
        "the sign of b: nearly all pairs are wrong, so b has to make a no likely":
            lambda: (float(np.log(1023)), _siglip_start(float(np.log(1023)))),
        "the loss counts one no, and a picture has 1,023 of them": lambda: (-np.log(1023), _siglip_start(-np.log(1023), 1)),
    },
)  # fmt: skip
def _bias_for_batch() -> tuple[float, float]:
    zeros, bias = torch.zeros(1024, 2, dtype=torch.float64), -float(np.log(1023))
    return bias, float(siglip_loss(zeros, zeros, 10.0, bias))


@exercise(
    "01.4", "lowest loss with a twin",
    mistakes={
        "that is the loss of a single right caption: here two equal ones share the probability": lambda: 0.0,
        "the third caption need not get anything: a large scale pushes it away": lambda: float(np.log(3)),
        "that is the probability, and the loss is minus its logarithm": lambda: 0.5,
        "the logarithm is the natural one": lambda: 1.0,
    },
)  # fmt: skip
def _loss_with_twin() -> float:
    return float(F.cross_entropy(1e4 * torch.tensor([[1.0, 1.0, -1.0]], dtype=torch.float64), torch.tensor([0])))


# Notebook 02


# Notebook 03


# Notebook 04


def make_look_cases() -> list[tuple[Any, ...]]:
    """Layers of the resampler with weights that nobody trained, and inputs: (layer, x (N, Q, W), patches (N, P, W))."""
    cases = []
    for seed, (n, q, p, width, heads) in enumerate([(2, 3, 5, 8, 2), (1, 4, 6, 12, 3)]):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            cases.append((Look(width, heads), torch.randn(n, q, width), 1 + 3 * torch.randn(n, p, width)))
    return cases


def look_wrongly(
    layer: Look, x: Tensor, patches: Tensor, scaled: str = "head", over: int = -1, asked: bool = True, normed: bool = True,
    residual: bool = True,
) -> Tensor:  # fmt: skip
    """One layer of the resampler with one thing done otherwise, for the reasons that a learner gets. (N, Q, W)."""
    own = layer.norms[0](x)
    told = layer.norms[1](patches) if normed else patches
    k, v = layer.tell(torch.cat([told, own], dim=1) if asked else told).chunk(2, dim=-1)
    q, k, v = (t.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for t in (layer.ask(own), k, v))
    by = {"head": q.shape[-1] ** 0.5, "width": x.shape[-1] ** 0.5, "none": 1.0}[scaled]
    seen = (q @ k.transpose(-1, -2) / by).softmax(dim=over) @ v
    x = layer.merge(seen.transpose(1, 2).flatten(2)) + (x if residual else 0)
    return x + layer.think(layer.norms[2](x))


@exercise(
    "04.1", "one layer of the resampler", tolerance=1e-4, cases=make_look_cases,
    mistakes={
        "the scores are not divided by the root of the width of a head": partial(look_wrongly, scaled="none"),
        "the scores are divided by the root of the whole width; each head has only W / H of it": partial(
            look_wrongly, scaled="width"
        ),
        "the softmax runs over the queries; each query shares out its attention over the keys, dim=-1": partial(
            look_wrongly, over=-2
        ),
        "the queries attend to the patches only; keys and values come from the queries too": partial(look_wrongly, asked=False),
        "the patches did not pass through their LayerNorm": partial(look_wrongly, normed=False),
        "the residual connection is missing: what was attended to is added to x": partial(look_wrongly, residual=False),
    },
)  # fmt: skip
def look_at_patches(layer: Look, x: Tensor, patches: Tensor) -> Tensor:
    """The library's layer: (N, Q, W)."""
    return layer(x, patches)


def make_scale_cases() -> list[tuple[Tensor, ...]]:
    """(x (N, Q, D), middle (D,), spread (), gain ())."""
    rng = torch.Generator().manual_seed(4)
    draw = partial(torch.randn, generator=rng)
    one, half = torch.tensor(1.0), torch.tensor(0.4)
    return [(5 * draw(2, 3, 8) + 1, draw(8), half, one), (draw(1, 4, 6) - 2, draw(6), one, torch.tensor(1.7))]


@exercise(
    "04.2", "the scale of soft tokens", tolerance=1e-4, cases=make_scale_cases,
    mistakes={
        "x was divided by its length; by the root of the *mean* square it is sqrt(D) times as long": (
            lambda x, middle, spread, gain: middle + gain * spread * F.normalize(x, dim=-1)
        ),
        "the mean was taken off x first, which is LayerNorm; nothing is subtracted here": (
            lambda x, middle, spread, gain: middle + gain * spread * F.layer_norm(x, x.shape[-1:])
        ),
        "the mean embedding `middle` is not added": lambda x, middle, spread, gain: gain * spread * F.rms_norm(x, x.shape[-1:]),
        "the gain is left out": lambda x, middle, spread, gain: middle + spread * F.rms_norm(x, x.shape[-1:]),
        "normalised twice: x / rms is not divided again": (
            lambda x, middle, spread, gain: middle + gain * spread * x / x.square().mean(dim=-1, keepdim=True)
        ),
    },
)  # fmt: skip
def scale_tokens(x: Tensor, middle: Tensor, spread: Tensor, gain: Tensor) -> Tensor:
    """Soft tokens at the scale of word embeddings: (N, Q, D)."""
    return middle + gain * spread * F.rms_norm(x, x.shape[-1:])


def make_scores() -> pd.DataFrame:
    """Scores of two languages, for tests."""
    rows = [("toy-mixed", "en", 0.9, 0.2), ("toy-mixed", "de", 0.7, 0.1)]
    return pd.DataFrame(rows, columns=["lm", "language", "value", "chance"])


def retain_german(real: pd.DataFrame, chance: bool = True) -> float:
    """German over English in `toy-mixed`, columns value and chance."""
    rows = real.set_index(["lm", "language"]).loc["toy-mixed"]
    over = rows["value"] - (rows["chance"] if chance else 0)
    return float(over["de"] / over["en"])


@exercise(
    "04.3", "retention of German", tolerance=0.005, example=lambda: {"real": make_scores()},
    mistakes={
        "chance was not taken off": partial(retain_german, chance=False),
        "the ratio is the wrong way round": lambda real: 1 / retain_german(real),
    },
)  # fmt: skip
def measure_retention(real: pd.DataFrame) -> float:
    """Score above chance, as a share of the same in English."""
    return retain_german(real)


def make_sayings() -> dict[str, Any]:
    """A bench whose replies are right for the picture that was seen, for tests: a third of the scenes are alike."""
    scenes = [*toyworld.split_scenes("val")[:4], *[toyworld.split_scenes("val")[4]] * 2]

    def say(recipe: Any, soft: Tensor, many: list[Any], language: str) -> list[str]:
        return [grammar.in_order(many[int(i)], language)[0] for i in soft]

    return {"bench": SimpleNamespace(say=say), "recipe": None, "soft": torch.arange(6), "scenes": scenes}


def count_exact(bench: Any, recipe: Any, soft: Tensor, scenes: list[Any], by: int = 1) -> int:
    """Captions exactly right for scenes, with soft tokens (N, Q, D) rolled by `by`."""
    said = bench.say(recipe, soft.roll(by, 0), scenes, "en")
    return sum(reply_scores.is_exact(s, scene, "en") for s, scene in zip(said, scenes, strict=True))


@exercise(
    "04.4", "exactly right with the wrong picture", tolerance=0, example=make_sayings,
    mistakes={
        "these are right for the picture that was seen; count those right for the picture asked about": partial(
            count_exact, by=0
        ),
    },
)  # fmt: skip
def count_wrong_pictures(bench: Any, recipe: Any, soft: Tensor, scenes: list[Any]) -> int:
    """Captions exactly right for another picture than the one seen."""
    return count_exact(bench, recipe, soft, scenes)


# Notebook 05


def make_reply_cases() -> list[tuple[Any, ...]]:
    """(logits (B, before + T, V), reply (B, T) padded with -100, before)."""
    rng = torch.Generator().manual_seed(5)
    replies = [[3, 1, 2, -100], [4, 0, -100, -100]], [[2, 2, 5]]
    return [
        (2 * torch.randn(len(r), before + len(r[0]), 6, generator=rng), torch.tensor(r), before)
        for r, before in zip(replies, (3, 5), strict=True)
    ]


def lose_wrongly(
    logits: Tensor, reply: Tensor, before: int, shift: int = 1, how: str = "mean", padding: int = -100
) -> Tensor:
    """The loss of a reply, (), or with one thing done otherwise: predicted `shift` positions before it stands."""
    states = logits[:, before - shift : logits.shape[1] - shift]
    target = reply if padding == -100 else reply.clamp(min=0)
    return F.cross_entropy(states.flatten(0, 1), target.flatten(), reduction=how)


def lose_by_rows(logits: Tensor, reply: Tensor, before: int) -> Tensor:
    """The mean over replies of each one's mean, ()."""
    rows = zip(logits, reply, strict=True)
    return torch.stack([lose_wrongly(one[None], said[None], before) for one, said in rows]).mean()


@exercise(
    "05.1", "the loss of the reply", tolerance=1e-4, cases=make_reply_cases, gradient=True,
    mistakes={
        "off by one: a token is predicted at the position before it, and here at its own": partial(lose_wrongly, shift=0),
        "off by one: two positions too early": partial(lose_wrongly, shift=2),
        "the losses are added up; the mean is asked for": partial(lose_wrongly, how="sum"),
        "padding counts: leave out the targets that are -100": partial(lose_wrongly, padding=0),
        "each reply weighs the same; here each token does: one mean over all tokens of the batch": lose_by_rows,
        "the sign is wrong: a loss is minus the log-probability": lambda *case: -lose_wrongly(*case),
    },
)  # fmt: skip
def lose_reply(logits: Tensor, reply: Tensor, before: int) -> Tensor:
    """Mean cross-entropy of the tokens of the replies, ()."""
    return lose_wrongly(logits, reply, before)


def make_order_cases() -> list[tuple[Any, ...]]:
    """(order (M,), share)."""
    rng = np.random.default_rng(5)
    return [
        (rng.permutation(40), 0.05),
        (rng.permutation(30), 0.1),
        (rng.permutation(39), 0.25),
        (rng.permutation(8), 0.0),
    ]


def choose_wrongly(
    order: np.ndarray, share: float, first: bool = False, ranks: bool = False, by: float = 1.0
) -> np.ndarray:
    """The exchanges chosen, bool (M,), or with one thing done otherwise."""
    count = round(by * share * len(order))
    chosen = np.zeros(len(order), bool)
    chosen[np.arange(count) if first else order[:count]] = True
    return order < count if ranks else chosen


@exercise(
    "05.2", "choose the exchanges", tolerance=0, cases=make_order_cases,
    mistakes={
        "these are the first exchanges; take the first numbers of `order`": partial(choose_wrongly, first=True),
        "compared `order` with a count: true stands where a small number is, and not at the numbers that come first": partial(
            choose_wrongly, ranks=True
        ),
        "the others were chosen: true marks another language": lambda order, share: ~choose_wrongly(order, share),
        "the share is a fraction, no percentage": partial(choose_wrongly, by=0.01),
    },
)  # fmt: skip
def choose_exchanges(order: np.ndarray, share: float) -> np.ndarray:
    """Which exchanges are in another language, bool (M,)."""
    return choose_wrongly(order, share)


def make_tuned() -> dict[str, pd.DataFrame]:
    """Scores by language, for tests."""
    columns = ["language", "look", "slots", "content", "reply_language"]
    return {
        "toy-multilingual": pd.DataFrame(
            [["en", "real", 0.9, 0.95, 0.99], ["de", "real", 0.6, 0.7, 0.8]], columns=columns
        )
    }


@exercise(
    "05.3", "English questions answered in English", example=lambda: {"fixed": make_tuned()},
    mistakes={
        "this is the content; the reply language is asked for": lambda fixed: fixed["toy-multilingual"]["content"][0],
        "this is the mean over the other languages": lambda fixed: fixed["toy-multilingual"]["reply_language"][1:].mean(),
    },
)  # fmt: skip
def find_spared(fixed: dict[str, pd.DataFrame]) -> float:
    """The reply-language rate of English."""
    return float(fixed["toy-multilingual"].set_index("language").loc["en", "reply_language"])


def rate_others(table: pd.DataFrame) -> float:
    """The mean reply-language rate of the languages that are not English."""
    return float(table.loc[table["language"] != "en", "reply_language"].mean())


def make_text_stub() -> dict[str, Any]:
    """A bench whose tuned model is its table of scores, for tests."""
    tables = make_tuned()
    after = tables["toy-multilingual"].assign(reply_language=[1.0, 0.85])
    return {
        "bench": SimpleNamespace(train=lambda arm, seed: after),
        "asked": lambda model: model,
        "few": Chat(),
        "before": tables,
    }


@exercise(
    "05.4", "gained from text alone", tolerance=0.02, example=make_text_stub,
    mistakes={
        "this is the rate after tuning; its change is asked for": lambda bench, asked, few, before: (
            rate_others(asked(bench.train(replace(few, added="text"), seed=0)))
        ),
    },
)  # fmt: skip
def gain_from_text(bench: Any, asked: Callable[..., Any], few: Any, before: Mapping[str, pd.DataFrame]) -> float:
    """The change of the reply-language rate of the other languages, tuned with their text alone."""
    after = asked(bench.train(replace(few, added="text"), seed=0))
    return rate_others(after) - rate_others(before["toy-multilingual"])


# Notebook 06


def make_noise_cases() -> list[tuple[Tensor, ...]]:
    """(z0 (N, C, S, S), noise (N, C, S, S), alpha-bars (N,))."""
    rng = torch.Generator().manual_seed(6)
    sizes = (3, 2, 4, 4), (3, 8, 2, 2)
    return [(*(torch.randn(size, generator=rng) for _ in "zn"), torch.tensor([0.9, 0.5, 0.1])) for size in sizes]


def noise_wrongly(
    z0: Tensor, noise: Tensor, alpha_bar: Tensor, root: bool = True, sign: int = 1, swap: bool = False
) -> Tensor:
    """A noisy latent and its velocity, (2, N, C, S, S), with one thing done otherwise."""
    a, b = (x[:, None, None, None] ** (0.5 if root else 1) for x in (alpha_bar, 1 - alpha_bar))
    velocity = b * noise - a * z0 if swap else a * noise - b * z0
    return torch.stack([a * z0 + b * noise, sign * velocity])


@exercise(
    "06.1", "the v-prediction target", tolerance=1e-4, cases=make_noise_cases,
    mistakes={
        "the sign of the velocity is the wrong way round: noise comes in with plus, the picture with minus": partial(
            noise_wrongly, sign=-1
        ),
        "the square roots are missing: both weights are roots, so that their squares add up to 1": partial(
            noise_wrongly, root=False
        ),
        "the weights of the velocity are swapped: root of alpha-bar goes with the noise": partial(noise_wrongly, swap=True),
        "the second part is the noise; that is epsilon-prediction, and not the velocity": lambda z0, noise, alpha_bar: (
            torch.stack([noise_wrongly(z0, noise, alpha_bar)[0], noise])
        ),
    },
)  # fmt: skip
def noise_latents(z0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_t and v_t of 2202.00512, (2, N, C, S, S)."""
    return noise_wrongly(z0, noise, alpha_bar)


def make_step_cases() -> list[tuple[Any, ...]]:
    """(z, with the prompt, without it: (N, C, S, S) each; guidance, alpha-bar now and later)."""
    rng = torch.Generator().manual_seed(7)
    dials = (4.0, 0.3, 0.6), (1.0, 0.01, 0.2), (2.5, 0.7, 1.0)
    return [
        (*(torch.randn(2, 3, 4, 4, generator=rng) for _ in "zvw"), g, torch.tensor(a), torch.tensor(b))
        for g, a, b in dials
    ]


def step_wrongly(
    z: Tensor, shown: Tensor, without: Tensor, guidance: float, now: Tensor, later: Tensor, base: str = "without",
    of_v: int = 1, back: bool = True,
) -> Tensor:  # fmt: skip
    """One guided DDIM step, (N, C, S, S), with one thing done otherwise."""
    v = (without if base == "without" else shown) + guidance * (shown - without)
    picture, noise = now.sqrt() * z - of_v * (1 - now).sqrt() * v, (1 - now).sqrt() * z + of_v * now.sqrt() * v
    return later.sqrt() * picture + (1 - later).sqrt() * noise if back else picture


@exercise(
    "06.2", "a guided sampling step", tolerance=1e-4, cases=make_step_cases,
    mistakes={
        "guidance starts from the velocity with the prompt; with guidance 1 nothing may be added": partial(
            step_wrongly, base="shown"
        ),
        "prompt and no prompt are swapped": lambda z, shown, without, *rest: step_wrongly(z, without, shown, *rest),
        "guidance is left out": lambda z, shown, without, guidance, *rest: step_wrongly(z, shown, without, 1.0, *rest),
        "the sign of the velocity is wrong (the picture takes it off, the noise adds it), or now and later are swapped": partial(step_wrongly, of_v=-1),
        "the estimate of the picture is no sample yet: mix in the noise for the later time": partial(step_wrongly, back=False),
    },
)  # fmt: skip
def take_step(z: Tensor, shown: Tensor, without: Tensor, guidance: float, now: Tensor, later: Tensor) -> Tensor:
    """z at the later time: DDIM (2010.02502) on a velocity under classifier-free guidance (2207.12598)."""
    return step_wrongly(z, shown, without, guidance, now, later)


@exercise(
    "06.3", "parameters of the bridge", tolerance=0, example=lambda: {"recipe": make_painter_stub()},
    mistakes={
        "64 are missing: a LayerNorm has a weight and a bias for each feature, and there is the vector for no prompt": lambda recipe: count_bridge(recipe) - 64,
        "the linear map has no bias": lambda recipe: recipe.encoder.width * 64 + 4 * 64,
    },
)  # fmt: skip
def count_bridge(recipe: Any) -> int:
    """Parameters of the recipe's bridge."""
    return sum(p.numel() for p in recipe.now["bridge"].parameters())


def make_painter_stub() -> Any:
    """What of a painter the bridge's exercise needs, for tests."""
    return SimpleNamespace(now={"bridge": Bridge(128, 64)}, encoder=SimpleNamespace(width=128))


@exercise(
    "06.4", "the same noise", example=lambda: {"bench": SimpleNamespace(paint=paint_stub), "recipe": None, "prompt": ""},
    mistakes={
        "the order is (3 and 3, 3 and 4)": lambda bench, recipe, prompt: compare_noise(bench, recipe, prompt)[::-1],
        "compare all numbers of two pictures, and not two objects: np.array_equal": lambda bench, recipe, prompt: (False, False),
    },
)  # fmt: skip
def compare_noise(bench: Any, recipe: Any, prompt: str) -> tuple[bool, bool]:
    """Whether one prompt gives equal pictures from equal seeds, and from different ones."""
    a, b, c = (bench.paint(recipe, [prompt], [seed])[0] for seed in (3, 3, 4))
    return bool(np.array_equal(a, b)), bool(np.array_equal(a, c))


def paint_stub(recipe: Any, prompts: list[str], seeds: list[int]) -> np.ndarray:
    """Pictures that depend on the seed alone, for tests."""
    return np.stack([np.full((2, 2, 3), seed) for seed in seeds])


# Notebook 07


# Notebook 08


def _make_acquirer_cases() -> list[tuple[Any, ...]]:
    """States (B, T, D), the map down (D to K) and the map up (K to D), with weights that are not zero."""
    draw = torch.Generator().manual_seed(8)
    found = []
    for shape, narrow in (((2, 3, 8), 4), ((1, 5, 6), 2)):
        maps = nn.Linear(shape[-1], narrow), nn.Linear(narrow, shape[-1])
        for one in (p for of in maps for p in of.parameters()):
            one.data = torch.randn(one.shape, generator=draw)
        found.append((torch.randn(shape, generator=draw), *maps))
    return found


@exercise(
    "08.1",
    "the acquirer",
    tolerance=1e-4,
    cases=_make_acquirer_cases,
    gradient=True,
    mistakes={
        "the residual is missing: add the state x itself": lambda x, down, up: up(torch.relu(down(x))),
        "the ReLU between the two maps is missing": lambda x, down, up: x + up(down(x)),
        "the ReLU stands behind the second map, not between the two": lambda x, down, up: x + torch.relu(up(down(x))),
        "x is added before the ReLU of the result": lambda x, down, up: torch.relu(x + up(torch.relu(down(x)))),
        "the ReLU is applied to x, not to down(x)": lambda x, down, up: x + up(down(torch.relu(x))),
    },
)
def _apply_acquirer(x: Tensor, down: nn.Linear, up: nn.Linear) -> Tensor:
    return x + up(torch.relu(down(x)))


def _make_transfer_cases() -> list[tuple[Any, ...]]:
    """Sentences' vectors in L and in English, (B, D) each."""
    draw = torch.Generator().manual_seed(9)
    return [tuple(torch.randn(shape, generator=draw) for _ in range(2)) for shape in ((4, 8), (3, 5))]


@exercise(
    "08.2",
    "the loss of Native Language Transfer",
    tolerance=1e-4,
    cases=_make_transfer_cases,
    gradient=True,
    mistakes={
        "a stop-gradient is missing: English must not move, so detach it": F.mse_loss,
        "the stop-gradient stands on the wrong side: detach English, not the new language": (
            lambda said, english: F.mse_loss(said.detach(), english)
        ),
        "the squares are summed, and the mean over B and D is asked for": (
            lambda said, english: (said - english.detach()).square().sum()
        ),
        "the squares are summed over D, and averaged over B only": (
            lambda said, english: (said - english.detach()).square().sum(-1).mean()
        ),
        "a root was taken: the squared distance is asked for": (
            lambda said, english: F.mse_loss(said, english.detach()).sqrt()
        ),
        "the vectors were normalised first: this loss takes them as they are": (
            lambda said, english: F.mse_loss(F.normalize(said, dim=-1), F.normalize(english.detach(), dim=-1))
        ),
        "these are absolute differences, and squared ones are asked for": (
            lambda said, english: F.l1_loss(said, english.detach())
        ),
    },
)
def _lose_transfer(said: Tensor, english: Tensor) -> Tensor:
    return F.mse_loss(said, english.detach())


def _sum_acquirers(recipe: Any, per_layer: Callable[[int, int], int], layers: int | None = None) -> int:
    """Layers times what one acquirer has, by hidden size and bottleneck."""
    config = recipe.english.encoder.config
    return (layers or config.num_hidden_layers) * per_layer(config.hidden_size, recipe.options.bottleneck)


def make_acquirers() -> dict[str, Any]:
    """What stands for a recipe whose acquirers, two of width 8 with bottlenecks of 4, have 152 parameters."""
    encoder = SimpleNamespace(config=SimpleNamespace(hidden_size=8, num_hidden_layers=2))
    dials = SimpleNamespace(bottleneck=4)
    return {"recipe": SimpleNamespace(english=SimpleNamespace(encoder=encoder), options=dials, weights={"de": 152})}


@exercise(
    "08.3",
    "parameters of one language",
    tolerance=0.5,
    example=make_acquirers,
    mistakes={
        "the biases are missing": lambda recipe: _sum_acquirers(recipe, lambda d, k: 2 * d * k),
        "this is one layer only": lambda recipe: _sum_acquirers(recipe, lambda d, k: 2 * d * k + d + k, 1),
        "this is one of the two maps only": lambda recipe: _sum_acquirers(recipe, lambda d, k: d * k + k),
    },
)
def _count_acquirers(recipe: Any) -> int:
    return recipe.weights["de"]


SLOW = {"exposure_lr": 2e-4}


def make_rates() -> dict[str, Any]:
    """What stands for training: scores that depend on the learning rate."""

    def test(system: Acquiring) -> pd.DataFrame:
        real = [0.36, 0.95] if system.options["exposure_lr"] < 1e-3 else [0.8, 0.96]
        return pd.DataFrame({"real": real, "blind": [0.05, 0.06]}, index=["German", "English"])

    return {"test": test, "german": Acquiring(languages=("de",)), "seen": {"exposure_lr": 2e-3}}


def _score_exposure(
    test: Callable[[Any], Any], german: Any, seen: Mapping[str, Any], slow: Mapping[str, Any] = SLOW
) -> Any:
    """Scores by language and look after pictures alone, at the lower learning rate."""
    return test(replace(german, options={**seen, **slow}))


@exercise(
    "08.4",
    "pictures alone at a tenth of the learning rate",
    example=make_rates,
    mistakes={
        "this is the score without the picture": lambda **given: _score_exposure(**given).loc["German", "blind"],
        "this is the score in English": lambda **given: _score_exposure(**given).loc["English", "real"],
        "this is still the higher learning rate": lambda **given: _score_exposure(**given, slow={}).loc[
            "German", "real"
        ],
    },
)
def _expose_slowly(test: Callable[[Any], Any], german: Any, seen: Mapping[str, Any]) -> float:
    """`test` trains a system and returns its scores by language and look."""
    return _score_exposure(test, german, seen).loc["German", "real"]


# Notebook 09


# Notebook 10


# Notebook 11


# Notebook 12


# Notebook 13


def _logits_and_slope(matrices: int = 3, each: int = 2, giga: float = 1e9) -> tuple[float, float]:
    return matrices * 16_384 * 248_320 * each / giga, 248_320 * 2048 * each / giga


@exercise(
    "13.1", "will it fit: three matrices, and the gradient of W",
    mistakes={
        "that is one matrix of logits' size, and the naive form has three": lambda: _logits_and_slope(1),
        "bf16 takes 2 bytes a number, and 4 were counted": lambda: _logits_and_slope(each=4),
        "a gigabyte here is 10^9 bytes, and 2^30 were counted": lambda: _logits_and_slope(giga=2**30),
    },
)  # fmt: skip
def _will_it_fit() -> tuple[float, float]:
    return _logits_and_slope()


@exercise(
    "13.2", "rows in a budget",
    cases=lambda: [(64 << 20, 248_320, 4), (1 << 30, 250_112, 2), (1 << 18, 248_320, 4), (64 << 20, 32_000, 4)],
    mistakes={
        "a budget below one row gives 0: at least one row is needed": lambda budget, v, each: budget // (v * each),
        "the bytes of a number are not in it": lambda budget, v, each: max(1, budget // v),
        "the rows have to be rounded down": lambda budget, v, each: max(1, -(-budget // (v * each))),
        "that is a fraction of a row": lambda budget, v, each: max(1, budget / (v * each)),
    },
)  # fmt: skip
def _rows_in_budget(budget: int, v: int, bytes_each: int) -> int:
    return max(1, int(budget / bytes_each / v))


def _gradient_that_overflows(z: np.ndarray, right: int) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.exp(z) / np.exp(z).sum() - np.eye(len(z))[right]


@exercise(
    "13.3", "gradient of one row", 1e-4,
    cases=lambda: [(np.array([1.0, 2.0, 0.5]), 1), (np.array([1000.0, 999.0, -5.0]), 0)],
    mistakes={
        "that is the softmax: take 1 off at the right piece": lambda z, right: _softmax(z[None])[0],
        "large logits overflow: subtract the maximum first": _gradient_that_overflows,
        "the sign: it is softmax minus one-hot": lambda z, right: np.eye(len(z))[right] - _softmax(z[None])[0],
    },
)  # fmt: skip
def _row_gradient(z: np.ndarray, right: int) -> np.ndarray:
    leaf = torch.tensor(z, requires_grad=True)
    F.cross_entropy(leaf[None], torch.tensor([right])).backward()
    return leaf.grad.numpy()


@exercise(
    "13.4", "tokens from which the matrices take more", 0.5,
    mistakes={
        "the table's gradient takes as much as the table: 8 V D bytes together": lambda: (4 * 384 / 12, 4 * 4096 / 12),
        "three matrices take 12 N V bytes, and one was counted": lambda: (8 * 384 / 4, 8 * 4096 / 4),
        "the ratio is the wrong way round": lambda: (12 * 384 / 8, 12 * 4096 / 8),
    },
)  # fmt: skip
def _tokens_of_balance() -> tuple[float, float]:
    return 8 * 384 / 12, 8 * 4096 / 12


# Notebook 14


@exercise(
    "14.1", "how many programs", cases=lambda: [(100, 32), (96, 32), (1, 64), (3600, 128), (261_375, 256)],
    mistakes={
        "rounded down, the last rows belong to no program": lambda n, block: n // block,
        "where the rows divide evenly, that is one program too many": lambda n, block: n // block + 1,
        "programs are whole: round up": lambda n, block: n / block,
    },
)  # fmt: skip
def _programs(n: int, block: int) -> int:
    return int(np.ceil(n / block))


@exercise(
    "14.2", "the rank without the mask",
    mistakes={
        "that is the rank with the mask: without it, zeros beat -0.2": lambda: 0,
        "every candidate was counted, and only the surplus columns read zeros": lambda: 128,
        "a rank here counts those above, so the best has rank 0": lambda: 29,
        "100 candidates take two blocks of 64, and only one was counted": lambda: 36,
    },
)  # fmt: skip
def _rank_without_mask() -> int:
    padded = torch.zeros(128)
    padded[:100] = -0.5
    padded[7] = -0.2
    return int((padded > padded[7]).sum())


@exercise(
    "14.3", "the largest gallery, with the matrix and with the kernel", 1,
    mistakes={
        "scores are float32, 4 bytes each, and 2 were counted": lambda: (16e9 / (2 * 1024 + 2 * 3600), 16e9 / 2048),
        "features in half precision take 2 bytes a number": lambda: (16e9 / (4 * 1024 + 4 * 3600), 16e9 / 4096),
        "the features themselves are not in the first number": lambda: (16e9 / (4 * 3600), 16e9 / 2048),
    },
)  # fmt: skip
def _largest_gallery() -> tuple[float, float]:
    return 16e9 / (2 * 1024 + 4 * 3600), 16e9 / (2 * 1024)


@exercise(
    "14.4", "expected hit with ties", 0.0005, cases=lambda: [(0, 0), (0, 9), (1, 0), (3, 4)],
    mistakes={
        "every tie counts as a hit: a blind model would score 1": lambda better, tied: float(better == 0),
        "every tie counts as a miss": lambda better, tied: float(better == 0 and tied == 0),
        "candidates above are not looked at": lambda better, tied: 1 / (tied + 1),
        "candidates above leave no chance: it is 0 then": lambda better, tied: 1 / (better + tied + 1),
    },
)  # fmt: skip
def _hit_at_first(better: int, tied: int) -> float:
    return 0.0 if better else 1 / (1 + tied)


# Notebook 15


@exercise(
    "15.1", "gain of the whole step", 0.01,
    mistakes={
        "the share of the loss and the share of the rest are swapped": lambda: 1 / (0.3 + 0.7 / 4),
        "that is the gain of the loss alone": lambda: 4.0,
        "that is the time left; the gain is its inverse": lambda: 0.7 + 0.3 / 4,
    },
)  # fmt: skip
def _gain_of_step() -> float:
    return 1 / (1 - 0.3 + 0.3 / 4)


@exercise(
    "15.2", "what limits",
    cases=lambda: [(4e6, 4e6, 790, 4.3), (1e12, 1e9, 790, 4.3), (1e12, 6e9, 790, 4.3), (1e12, 6e9, 24, 0.3)],
    mistakes={
        "the two are swapped: the larger time sets the floor":
            lambda ops, moved, tflops, tbs: "bytes" if ops / moved >= tflops / tbs else "operations",
        "operations and bytes are compared as they are: divide each by what the machine does in a second":
            lambda ops, moved, tflops, tbs: "operations" if ops > moved else "bytes",
    },
)  # fmt: skip
def _limit(operations: float, moved: float, tflops: float, tbs: float) -> str:
    return "operations" if operations / moved >= tflops / tbs else "bytes"


@exercise(
    "15.3", "moving pays below so many heads",
    mistakes={
        "the scores with keys, Q T d, are not in it": lambda: 1024 / 64,
        "the ratio is the wrong way round": lambda: 64 / (1024 + 64),
    },
)  # fmt: skip
def _most_heads() -> float:
    return 1 + 1024 / 64


@exercise(
    "15.4", "share of the speed",
    mistakes={
        "that is how much longer it takes; speed is its inverse": lambda: 8 / 6,
        "that is the share of the work that is extra, 2 of 8": lambda: 0.25,
    },
)  # fmt: skip
def _share_of_speed() -> float:
    return 6 / 8
