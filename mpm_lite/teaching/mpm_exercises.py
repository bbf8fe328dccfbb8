"""The exercises of notebooks 04 to 06, on MPM: chat, the reply language, painting. See `exercises` for the form of an entry."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import grammar
from mpm_lite.evaluation import reply_scores
from mpm_lite.recipes.modules.connectors import Look
from mpm_lite.recipes.modules.diffusion import Bridge
from mpm_lite.teaching.exercises import exercise

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


def make_text_only() -> dict[str, Any]:
    """Scores after tuning with text alone, and before it, for tests."""
    tables = make_tuned()
    return {"text_only": tables["toy-multilingual"].assign(reply_language=[1.0, 0.85]), "before": tables}


@exercise(
    "05.4", "gained from text alone", tolerance=0.02, example=make_text_only,
    mistakes={
        "this is the rate after tuning; its change is asked for": lambda text_only, before: rate_others(text_only),
    },
)  # fmt: skip
def gain_from_text(text_only: pd.DataFrame, before: Mapping[str, pd.DataFrame]) -> float:
    """The change of the reply-language rate of the other languages, tuned with their text alone."""
    return rate_others(text_only) - rate_others(before["toy-multilingual"])


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
