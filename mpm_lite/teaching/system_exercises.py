"""The exercises of notebooks 07 to 09: M3P, MLA and mBLIP. See `exercises` for the form of an entry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpm_lite.data.toyworld.switching import Switching
from mpm_lite.experiments.m3p import RATE
from mpm_lite.experiments.mblip import SHARED
from mpm_lite.experiments.mla import Acquiring
from mpm_lite.teaching.exercises import exercise

# Notebook 07

SENTENCE = "A small Red star above it".split()
GERMAN = {"small": "kleiner", "red": "roter", "star": "Stern", "above": "über"}
TURKISH = {"small": "küçük", "star": "yıldız"}
Key = Callable[[Sequence[Any]], Mapping[Any, float]]


def count_words(words: Sequence[Any]) -> Mapping[Any, float]:
    """The share of each word at its place in the sentence, which may be repeated."""
    many = Counter((i % len(SENTENCE), word) for i, word in enumerate(words))
    return {key: n / max(1, len(words) // len(SENTENCE)) for key, n in many.items()}


def count_variants(words: Sequence[Any]) -> Mapping[Any, float]:
    """How many words there are for each place."""
    return dict(Counter(place for place, _ in set(count_words(words))))


def find_halves(words: Sequence[Any]) -> Mapping[Any, float]:
    """Whether a place has an English word at some times and not at others."""
    shares = count_words(words)
    return {"both": float(any(0.02 < shares.get(one, 0.0) < 0.98 for one in enumerate(SENTENCE)))}


class DrawnWords(list[Any]):
    """Words that were drawn at random: equal to others that are as many, and alike by `key` up to chance."""

    def __init__(self, words: Sequence[Any], key: Key = count_words) -> None:
        super().__init__(words)
        self.key = key

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (list, tuple)) or len(other) != len(self):
            return False
        key = getattr(other, "key", self.key)  # that of the answer compared with, which stands on the right
        a, b = key(self), key(other)
        return all(abs(a.get(one, 0.0) - b.get(one, 0.0)) < 0.05 for one in {*a, *b})

    __hash__ = None  # type: ignore[assignment]


class KeptWords(list[str]):
    """Words that may not be changed in place."""

    def __setitem__(self, *_: Any) -> None:
        raise TypeError("words is changed in place, and the caller still needs it: build a new list")


def make_switch_cases() -> list[tuple[Any, ...]]:
    """(words, dictionaries, rate, random generator): all, none, and a share of the words of a sentence that is repeated."""
    rng, one, long = np.random.default_rng(7), KeptWords(SENTENCE), KeptWords(SENTENCE * 4_000)
    return [(one, [GERMAN], 1.0, rng), (one, [GERMAN], 0.0, rng), (long, [GERMAN, TURKISH], 0.3, rng)]


def switch_wrongly(
    words: Sequence[str], dictionaries: Sequence[Mapping[str, str]], rate: float, rng: np.random.Generator,
    way: str = "", key: Key = count_words,
) -> DrawnWords:  # fmt: skip
    """Switched words, with one thing done otherwise; compared with a learner's by `key`."""
    chance = {"all": 1.0, "kept": 1 - rate, "sentence": float(rng.random() < rate)}.get(way, rate)
    found = []
    for word in words:
        there = [one for one in dictionaries if (word if way == "case" else word.lower()) in one]
        if way == "dropped" and not there:
            continue
        if way == "first":
            there = there[:1]
        if way == "lacking" and not any(one is dictionaries[rng.integers(len(dictionaries))] for one in there):
            there = []
        switched = bool(there) and rng.random() < chance
        found.append(there[rng.integers(len(there))][word.lower()] if switched else word)
    return DrawnWords(found, key)


@exercise(
    "07.1", "a code-switcher", cases=make_switch_cases,
    mistakes={
        "every known word is replaced, whatever the rate: draw a random number for each": partial(switch_wrongly, way="all"),
        "the rate is the share of words that are replaced, not of those that stay": partial(switch_wrongly, way="kept"),
        "words with a capital letter are not found: dictionaries list words in lower case": partial(
            switch_wrongly, way="case"
        ),
        "words that no dictionary has are gone: they stay as they are": partial(switch_wrongly, way="dropped"),
        "only one language is used: draw the language anew for each word": partial(
            switch_wrongly, way="first", key=count_variants
        ),
        "the whole sentence is switched or none of it: draw a random number for each word": partial(
            switch_wrongly, way="sentence", key=find_halves
        ),
        "a word stays English where the language drawn lacks it: draw among the dictionaries that have the word": partial(
            switch_wrongly, way="lacking"
        ),
    },
)  # fmt: skip
def switch_rightly(
    words: Sequence[str], dictionaries: Sequence[Mapping[str, str]], rate: float, rng: np.random.Generator
) -> DrawnWords:
    """Code-switching of 2006.02635, section 3.2, on the words of one sentence."""
    return switch_wrongly(words, dictionaries, rate, rng)


def make_match_cases() -> list[tuple[Tensor, ...]]:
    """Scores (B, K), each picture's own caption first."""
    draw = torch.Generator().manual_seed(7)
    return [(2 * torch.randn(shape, generator=draw),) for shape in ((4, 6), (3, 2))]


@exercise(
    "07.2", "the matching loss", tolerance=1e-4, cases=make_match_cases, gradient=True,
    mistakes={
        "the own caption is the first of the K, not the last": lambda scores: -scores.log_softmax(1)[:, -1].mean(),
        "the softmax runs over the pictures; it runs over the captions of one picture, dim=1": lambda scores: (
            -scores.log_softmax(0)[:, 0].mean()
        ),
        "the sign is wrong: the loss is minus the logarithm": lambda scores: scores.log_softmax(1)[:, 0].mean(),
        "the logarithm is missing": lambda scores: -scores.softmax(1)[:, 0].mean(),
        "the pictures are summed, and their mean is asked for": lambda scores: -scores.log_softmax(1)[:, 0].sum(),
        "normalised twice: cross_entropy takes the scores as they are": lambda scores: (
            -scores.softmax(1).log_softmax(1)[:, 0].mean()
        ),
        "each caption is judged by itself (binary); here they compete": lambda scores: (
            F.binary_cross_entropy_with_logits(scores, torch.eye(scores.shape[1])[:1].expand_as(scores))
        ),
    },
)  # fmt: skip
def lose_matching(scores: Tensor) -> Tensor:
    """Cross-entropy of the first caption among K."""
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))


def make_region_cases() -> list[tuple[Any, ...]]:
    """(features (B, R, D_in), logits (B, R, C), what is there: features and classes int64 (B, R), hidden bool (B, R))."""
    draw = torch.Generator().manual_seed(17)
    found = []
    for b, r, d, c in ((3, 9, 5, 4), (2, 4, 3, 6)):
        a, there, logits = (torch.randn(b, r, n, generator=draw) for n in (d, d, c))
        classes, hidden = torch.randint(c, (b, r), generator=draw), torch.rand(b, r, generator=draw) < 0.4
        found.append((a, logits, (there, classes), hidden))
    return found


def lose_region_parts(
    features: Tensor,
    logits: Tensor,
    there: tuple[Tensor, Tensor],
    which: Tensor,
    regress: bool = True,
    name: bool = True,
) -> Tensor:
    """The regression, the classification or both, of some regions."""
    loss = F.mse_loss(features[which], there[0][which]) if regress else 0.0
    return loss + F.cross_entropy(logits[which], there[1][which]) if name else loss


@exercise(
    "07.3", "the masked-region loss", tolerance=1e-4, cases=make_region_cases, gradient=True,
    mistakes={
        "all regions are in it; only the hidden ones are asked about": lambda f, z, t, h: (
            lose_region_parts(f, z, t, torch.ones_like(h))
        ),
        "these are the visible regions; the hidden ones are asked about": lambda f, z, t, h: lose_region_parts(f, z, t, ~h),
        "the classes are missing: add their cross-entropy": partial(lose_region_parts, name=False),
        "the features are missing: add their squared error": partial(lose_region_parts, regress=False),
        "the squares are summed over D_in; their mean is asked for": lambda f, z, t, h: (
            lose_region_parts(f, z, t, h) + (f.shape[-1] - 1) * F.mse_loss(f[h], t[0][h])
        ),
        "the sums are divided by all regions, hidden or not: take the mean over the hidden ones": lambda f, z, t, h: (
            lose_region_parts(f, z, t, h) * h.float().mean()
        ),
    },
)  # fmt: skip
def lose_regions(features: Tensor, logits: Tensor, there: tuple[Tensor, Tensor], hidden: Tensor) -> Tensor:
    """MC-MRM of the hidden regions: squared error of features plus cross-entropy of classes."""
    return lose_region_parts(features, logits, there, hidden)


@exercise(
    "07.4", "the share of captions that stay English", tolerance=0.005,
    mistakes={
        "this leaves out captions that are switched, and in which no word is replaced by luck": lambda: 1 - Switching().sentences,
        "this leaves out the captions that are not switched at all": lambda: Switching().sentences * (1 - RATE) ** 4,
        "this is the chance that one word stays English; a caption has four": lambda: 1 - Switching().sentences * RATE,
        "this is the share of captions with a foreign word": lambda: Switching().sentences * (1 - (1 - RATE) ** 4),
    },
)  # fmt: skip
def share_english() -> float:
    """Of captions with four words that a dictionary has, with the rate that controls share."""
    return 1 - Switching().sentences + Switching().sentences * (1 - RATE) ** 4


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


def make_cross_cases() -> list[tuple[Any, ...]]:
    """(queries' states (N, Q, W), patches (N, P, W), the maps by name, heads)."""
    cases = []
    for n, q, p, width, heads in ((2, 3, 5, 8, 2), (1, 4, 6, 12, 3)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(n)
            parts = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value", "merge")})
            parts["norm"] = nn.LayerNorm(width)
            cases.append((torch.randn(n, q, width), 2 * torch.randn(n, p, width), parts, heads))
    return cases


def cross_wrongly(x: Tensor, patches: Tensor, parts: Any, heads: int, way: str = "") -> Tensor:
    """Cross-attention of queries to patches, (N, Q, W), with one thing done otherwise."""
    told = {"self": x, "both": torch.cat([patches, x], dim=1)}.get(way, patches)
    given = parts["query"](x), parts["key"](told), parts["value"](told)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in given)
    by = {"unscaled": 1, "width": x.shape[-1]}.get(way, q.shape[-1]) ** 0.5
    seen = (q @ k.transpose(-1, -2) / by).softmax(dim=-2 if way == "over" else -1) @ v
    new, norm = parts["merge"](seen.transpose(1, 2).flatten(2)), parts["norm"]
    return {"first": x + norm(new), "bare": new + x, "alone": norm(new)}.get(way, norm(new + x))


@exercise(
    "09.1", "a step of the Q-Former", 1e-4, cases=make_cross_cases, gradient=True,
    mistakes={
        reason: partial(cross_wrongly, way=way)
        for way, reason in {
            "self": "keys and values come from the queries: that is self-attention",
            "both": "keys and values come from queries and patches; here the queries look at the patches only",
            "unscaled": "the scores are not divided by the root of the width of a head",
            "width": "the scores are divided by the root of the whole width; each head has only W / H of it",
            "over": "the softmax runs over the queries; each query shares out its attention over the patches, dim=-1",
            "alone": "the residual connection is missing: x is added",
            "bare": "the LayerNorm is missing; it comes last",
            "first": "x is added behind the LayerNorm; here it is added before",
        }.items()
    },
)  # fmt: skip
def cross_attend(x: Tensor, patches: Tensor, parts: Any, heads: int) -> Tensor:
    """Attention, residual, LayerNorm: a layer of 2301.12597."""
    return cross_wrongly(x, patches, parts, heads)


def make_warm_cases() -> list[tuple[Any, ...]]:
    """(model with a `loss` of a batch, its projection's name, batches (N, 4), learning rate)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        sizes = (6, 0.05), (3, 0.2)
        return [(WarmModel(), "projection", [torch.randn(8, 4) for _ in range(n)], lr) for n, lr in sizes]


class WarmModel(nn.ModuleDict):
    """Three maps in a row; the mean squared distance from 1 is the loss."""

    def __init__(self) -> None:
        super().__init__({name: nn.Linear(4, 4) for name in ("qformer", "projection", "lm")})

    def loss(self, batch: Tensor) -> Tensor:
        """Of a batch (N, 4)."""
        return (self["lm"](self["projection"](self["qformer"](batch).tanh()).tanh()) - 1).square().mean()


def warm_wrongly(model: Any, name: str, batches: Sequence[Any], lr: float, way: str = "") -> list[float]:
    """The losses of a warm-up with one thing done otherwise."""
    whole, part = set(model.parameters()), set(model.get_submodule(name).parameters())
    optimizer, losses = torch.optim.AdamW(list({"all": whole, "rest": whole - part}.get(way, part)), lr=lr), []
    for batch in batches:
        loss = model.loss(batch)
        if way != "kept":
            optimizer.zero_grad()
        loss.backward()
        if way != "still":
            optimizer.step()
        losses.append(loss.item())
    return losses


@exercise(
    "09.2", "the warm-up", 1e-4, cases=make_warm_cases,
    mistakes={
        "everything is trained; in the warm-up only the projection learns": partial(warm_wrongly, way="all"),
        "everything but the projection is trained": partial(warm_wrongly, way="rest"),
        "gradients of earlier batches are left: call zero_grad before backward": partial(warm_wrongly, way="kept"),
        "nothing is trained: the optimizer makes no step": partial(warm_wrongly, way="still"),
    },
)  # fmt: skip
def warm_up(model: Any, name: str, batches: Sequence[Any], lr: float) -> list[float]:
    """A step of AdamW for each batch, of that part alone: the losses before the steps."""
    return warm_wrongly(model, name, batches, lr)


def share_wrongly(sizes: np.ndarray, power: float, whole: bool = True) -> np.ndarray:
    """Powers of the sizes, as shares or as they are."""
    return sizes**power / ((sizes**power).sum() if whole else 1)


@exercise(
    "09.3", "the sampling rule", 1e-5,
    cases=lambda: [(np.array([40.0, 9.0, 1.0, 0.25]), power) for power in (1.0, 0.5, 0.0)],
    mistakes={
        "the shares do not add up to 1: divide the powers by their sum": partial(share_wrongly, whole=False),
        "the sizes were divided by their sum before the power, and not after it": lambda n, p: (n / n.sum()) ** p,
        "the power is left out": lambda n, p: share_wrongly(n, 1.0),
        "this is a softmax: raise the sizes to the power, and not e": lambda n, p: share_wrongly(np.exp(n), p),
        "the power is turned round: a small one has to make the shares more even": lambda n, p: share_wrongly(n, 1 / max(p, 0.01)),
    },
)  # fmt: skip
def share_out(sizes: np.ndarray, power: float) -> np.ndarray:
    """Shares (n,) proportional to sizes (n,) to a power."""
    return share_wrongly(sizes, power)


@exercise(
    "09.4", "pairs in all", 0.5,
    mistakes={"these are new pairs only": lambda: SHARED.pairs, "these came before, in English": lambda: SHARED.english},
)  # fmt: skip
def count_pairs() -> int:
    """Of the setting that C14 to C16 share, those of its English Q-Former included."""
    return SHARED.total
