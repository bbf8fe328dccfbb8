"""The exercises of the course by name: what an answer is compared with, and the mistakes that are worth naming.

A name is the notebook's number and the exercise's ("08.2"). The function below a decorator computes the reference: a value, of
the notebook's objects that `check` was handed by keyword; or, where there are `cases`, what the learner's function is to return.
`example` makes such objects up, so that tests can run a reference and its mistakes without the notebook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from mpm_lite.core.runtime import unknown
from mpm_lite.evaluation.retrieval import expected_hits
from mpm_lite.experiments.correlations import average_ranks, partial_spearman, spearman
from mpm_lite.ops import Ranks, clip_loss, siglip_loss


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


def _draw(*shapes: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape) for shape in shapes)


@exercise(
    "00.1", "recall at k", cases=lambda: [(*_draw((9, 9), seed=2), 3), (*_draw((7, 7), seed=3), 2), (np.eye(4), 1)],
    mistakes={
        "each query ranks the pictures in its row, and here each picture ranks the queries": lambda s, k: _recall_at(s.T, k),
        "that is a count: the share of the queries is asked for": lambda s, k: len(s) * _recall_at(s, k),
        "one place too many: the first k are places 0 to k - 1": lambda s, k: _recall_at(s, k + 1),
        "one place too few: place k counts as well": lambda s, k: _recall_at(s, k - 1),
        "that is recall at 1": lambda s, k: _recall_at(s, 1),
    },
)  # fmt: skip
def _recall_at(scores: np.ndarray, k: int) -> float:
    return float(((scores > np.diag(scores)[:, None]).sum(axis=1) < k).mean())


@exercise(
    "00.2", "the nearest pictures by cosine", cases=lambda: [(*_draw((4, 6), (9, 6)), 3), (*_draw((2, 5), (7, 5), seed=1), 7)],
    mistakes={
        "a cosine is asked for: divide the pictures' vectors by their lengths": lambda t, p, k: _find_nearest(t, p, k, unit=False),
        "the worst pictures come first: sort downwards": lambda t, p, k: _find_nearest(-t, p, k),
        "these are the right pictures, but the worst of them comes first": lambda t, p, k: _find_nearest(t, p, k)[:, ::-1],
    },
)  # fmt: skip
def _find_nearest(texts: np.ndarray, pictures: np.ndarray, k: int, unit: bool = True) -> np.ndarray:
    size = np.linalg.norm(pictures, axis=1) if unit else 1.0
    return np.argsort(-(texts @ pictures.T) / size, axis=1)[:, :k]


@exercise(
    "00.3", "the linear map", 1e-4, cases=lambda: [(*_draw((12, 4), (12, 3)), 2.0), (*_draw((9, 5), (9, 5), seed=1), 0.5)],
    mistakes={
        "lambda is not in it": lambda x, y, ridge: _fit_map(x, y, 0.0),
        "lambda was added off the diagonal too": lambda x, y, ridge: np.linalg.solve(x.T @ x + ridge, x.T @ y),
        "x and y changed places: this maps captions to pictures": lambda x, y, ridge: _fit_map(y, x, ridge),
        "it is transposed: it has to map x to y by x @ W": lambda x, y, ridge: _fit_map(x, y, ridge).T,
        "that is the mapped x: the map itself is asked for": lambda x, y, ridge: x @ _fit_map(x, y, ridge),
    },
)  # fmt: skip
def _fit_map(x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    return np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y)


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


@exercise(
    "02.1", "the scores of a blind model", 1e-6, cases=lambda: [_draw((3, 5), (4, 5)), _draw((2, 6), (6, 6), seed=1)],
    mistakes={
        "the model still sees: these are the scores of the pictures as they are": lambda t, p: t @ p.T,
        "the mean of each query's scores is right; it has to stand in a column for each picture": lambda t, p: _blind(t, p)[:, :1],
        "every picture became the first picture: take the mean of all": lambda t, p: _blind(t, p[[0] * len(p)]),
        "the pictures changed places, which is another control": lambda t, p: t @ np.roll(p, 1, axis=0).T,
        "the mean is over dimensions, so pictures still differ": lambda t, p: t @ (0 * p + p.mean(axis=1, keepdims=True)).T,
    },
)  # fmt: skip
def _blind(texts: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    return np.repeat((texts @ pictures.T).mean(axis=1, keepdims=True), len(pictures), axis=1)


@exercise(
    "02.2", "hits where scores are tied", 1e-6,
    cases=lambda: [(0, 1, 1), (0, 10, 1), (3, 4, 5), (5, 2, 5), (7, 2, 5), (9, 30, 10), (0, 3, 8)],
    mistakes={
        "a tie counts as a hit: that is the careless rule": lambda better, level, k: float(better < k),
        "a tie counts as a miss": lambda better, level, k: float(better + level <= k),
        "the chance is above 1 where all tied pictures fit": lambda better, level, k: max(k - better, 0) / level,
        "the chance is below 0 where k or more pictures are better": lambda better, level, k: min(k - better, level) / level,
        "`level` counts the right picture already": lambda better, level, k: _hit(better, level + 1, k),
    },
)  # fmt: skip
def _hit(better: int, level: int, k: int) -> float:
    return float(expected_hits(Ranks(*(torch.tensor([n]) for n in (better, level - 1, 1))), k)[0])


def _asked(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Hits and chance by query; German was not asked the last third, on which English is weak."""
    rng, easy = np.random.default_rng(seed), np.arange(30) < 20
    rates = (("en", 0.9), ("de", 0.7), ("zh", 0.6))
    hits = pd.DataFrame({c: 1.0 * (rng.random(30) < p * (0.4 + 0.6 * easy)) for c, p in rates})
    return hits.where(easy[:, None] | (hits.columns != "de")), 0 * hits + 0.1 + 0.1 * easy[:, None]


@exercise(
    "02.3", "retention", cases=lambda: [_asked(0), _asked(1)],
    mistakes={
        "chance was not taken off": lambda h, c: _retain(h, 0 * c),
        "chance was taken off the language, and not off English": lambda h, c: _retain(h, c, off_pivot=0),
        "English was asked other queries: use those in which the language has a score": lambda h, c: _retain(h, c, same=False),
        "the ratio is the wrong way round: English stands below the line": lambda h, c: 1 / _retain(h, c),
        "it is 100 times too large: a percentage, where a fraction is asked for": lambda h, c: 100 * _retain(h, c),
        "that is a difference, and a ratio is asked for": lambda h, c: h.mean() - h["en"].mean(),
    },
)  # fmt: skip
def _retain(hits: pd.DataFrame, chance: pd.DataFrame, off_pivot: float = 1.0, same: bool = True) -> pd.Series:
    kept = {}
    for code in hits:
        there = hits[code].notna()
        pivot = (hits["en"] - off_pivot * chance["en"])[there | (not same)].mean()
        kept[code] = (hits[code] - chance[code])[there].mean() / pivot
    return pd.Series(kept)


def _pairs(seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    u, v = np.random.default_rng(seed).random((2, 60))
    return (u < 0.4) * 1.0, np.where(v < 0.9, u < 0.5, v < 0.95) * 1.0, 0.05


@exercise(
    "02.4", "an interval from paired draws", 0.03, cases=lambda: [_pairs(0), _pairs(4)],
    mistakes={
        "the draws are not paired: draw a query for both languages at once": lambda *on: _interval(*on, paired=False),
        "it has no width: draw with replacement": lambda a, b, chance: np.repeat((a.mean() - chance) / (b.mean() - chance), 2),
        "that is the interval of 90 %: cut off 2.5 % at each end": lambda *on: _interval(*on, cut=5),
        "chance was not taken off": lambda a, b, chance: _interval(a, b, 0.0),
        "that is the interval of the score, and the ratio's is asked for": lambda a, b, chance: _interval(a, b * 0 + 1, 0.0),
        "the larger end comes first": lambda *on: _interval(*on)[::-1],
    },
)  # fmt: skip
def _interval(a: np.ndarray, b: np.ndarray, chance: float, paired: bool = True, cut: float = 2.5) -> np.ndarray:
    i, j = np.random.default_rng(5).integers(len(a), size=(2, 20_000, len(a)))
    draws = (a[i].mean(axis=1) - chance) / (b[i if paired else j].mean(axis=1) - chance)
    return np.percentile(draws, [cut, 100 - cut])


# Notebook 03


def _translations(seed: int) -> tuple[np.ndarray, np.ndarray]:
    a, b, size = _draw((20, 5), (20, 5), (20, 1), seed=seed)
    return a + 1.5 * b, b * np.exp(size)


@exercise(
    "03.1", "alignment", 1e-3, cases=lambda: [_translations(1), _translations(2)],
    mistakes={
        "a cosine is asked for: divide the vectors by their lengths": lambda a, b: _align(a, b, unit=False),
        "each translation looks for its English sentence; here it is the other way round": lambda a, b: _align(b, a),
        "that is the mean cosine of the pairs": lambda a, b: F.cosine_similarity(*map(torch.tensor, (a, b))).mean().item(),
        "that is a count: the share is asked for": lambda a, b: len(a) * _align(a, b),
    },
)  # fmt: skip
def _align(other: np.ndarray, english: np.ndarray, unit: bool = True) -> float:
    near = other @ (english / np.linalg.norm(english, axis=1, keepdims=True) if unit else english).T
    return float((near.argmax(axis=1) == np.arange(len(near))).mean())


@exercise(
    "03.2", "difference in differences", 1e-4,
    cases=lambda: [(*map(pd.Series, _draw((9,), (9,), seed=i)), np.arange(9) < 5, np.arange(9) >= 6) for i in (0, 1)],
    mistakes={
        "the sign: second less first encoder, and languages that one read less those that both read":
            lambda a, b, only, both: _contrast(b, a, only, both),
        "that is one difference: take the other group's off": lambda a, b, only, both: (b - a)[only].mean(),
        "the differences are added": lambda a, b, only, both: (b - a)[only].mean() + (b - a)[both].mean(),
        "all languages are in the first group": lambda a, b, only, both: _contrast(a, b, only | True, both),
    },
)  # fmt: skip
def _contrast(first: pd.Series, second: pd.Series, only: np.ndarray, both: np.ndarray) -> float:
    return float((second - first)[only].mean() - (second - first)[both].mean())


def _related(seed: int) -> tuple[np.ndarray, ...]:
    a, b, c = _draw((25,), (25,), (25,), seed=seed)
    return np.exp(a + c), b + c + 0.3 * a, np.round(c, 1) ** 3


def _rest(v: np.ndarray, z: np.ndarray) -> np.ndarray:
    return v - np.polyval(np.polyfit(z, v, 1), z)


@exercise(
    "03.3", "partial rank correlation", 1e-3, cases=lambda: [_related(0), _related(1)],
    mistakes={
        "z is not in it: that is the plain rank correlation": lambda x, y, z: spearman(x, y),
        "no ranks were taken": lambda x, y, z: np.corrcoef(_rest(x, z), _rest(y, z))[0, 1],
        "z was taken out of x only": lambda x, y, z: np.corrcoef(_rest(*map(average_ranks, (x, z))), average_ranks(y))[0, 1],
        "the line was fitted before ranks were taken: rank first": lambda x, y, z: spearman(_rest(x, z), _rest(y, z)),
    },
)  # fmt: skip
def _partial(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    return partial_spearman(x, y, z)


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
