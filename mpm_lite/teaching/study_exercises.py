"""The exercises of notebooks 10 to 12: a comparison, real checkpoints, a hypothesis of one's own. See `exercises` for the form
of an entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpm_lite.teaching.exercises import exercise

# Notebook 10


def _find_front(score: np.ndarray, size: np.ndarray, strict: bool = False) -> np.ndarray:
    """Whom no other beats, (K,) bools: none is at least as good in both and better in one (`strict`: better in both)."""
    more, less = score[:, None] > score, size[:, None] < size  # row by row, who is better than whom
    no_worse = (score[:, None] >= score) & (size[:, None] <= size)
    return ~((more & less) if strict else no_worse & (more | less)).any(axis=0)


POINTS = [
    ([0.36, 0.27, 0.98, 0.26, 0.93], [3.0, 6.0, 11.0, 12.0, 11.0]),
    ([0.5, 0.7, 0.7, 0.7, 0.9, 0.4], [2.0, 5.0, 5.0, 4.0, 9.0, 2.0]),
    ([0.6, 0.6, 0.2], [7.0, 7.0, 8.0]),
]
exercise(
    "10.1", "the Pareto front", cases=lambda: [tuple(map(np.array, pair)) for pair in POINTS],
    mistakes={
        "these are the systems that are beaten; the front is all the others": lambda s, size: ~_find_front(s, size),
        "a system is also beaten by one that is equal in one of the two and better in the other":
            lambda s, size: _find_front(s, size, strict=True),
        "two systems that are equal in both do not beat each other":
            lambda s, size: ((s[:, None] >= s) & (size[:, None] <= size)).sum(axis=0) == 1,
        "fewer parameters are better, and here more of them are": lambda s, size: _find_front(s, -size),
        "this is the best score alone": lambda s, size: s == s.max(),
    },
)(_find_front)  # fmt: skip


def _make_pairs() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Scores of two systems on the same pictures, (N,) each, and pictures drawn with replacement, (R, N)."""
    rng, found = np.random.default_rng(10), []
    for n in (40, 90):
        hard = rng.random(n)  # what is hard for one is hard for the other
        first, second = ((hard + 0.2 * rng.random(n) < bar).astype(float) for bar in (0.9, 0.75))
        found.append((first, second, rng.integers(n, size=(400, n))))
    return found


def _spread(values: np.ndarray, draws: np.ndarray, low: float = 2.5, high: float = 97.5) -> tuple[float, float, float]:
    """The mean, and two percentiles of the means of all draws."""
    return float(values.mean()), *map(float, np.percentile(values[draws].mean(axis=1), [low, high]))


def _subtract_ends(a: np.ndarray, b: np.ndarray, draws: np.ndarray) -> tuple[float, float, float]:
    """The mistake of one who gives each system its own interval."""
    (mean, low, high), (other, below, above) = _spread(a, draws), _spread(b, draws)
    return mean - other, low - above, high - below


@exercise(
    "10.2", "a paired difference and its interval", 1e-6, cases=_make_pairs,
    mistakes={
        "the ends of two separate intervals were subtracted: take the difference within each draw": _subtract_ends,
        "the first system minus the second is asked for": lambda a, b, draws: _spread(b - a, draws),
        "these are the percentiles 5 and 95, an interval of 90 %": lambda a, b, draws: _spread(a - b, draws, 5, 95),
        "these are the lowest and the highest draw": lambda a, b, draws: _spread(a - b, draws, 0, 100),
    },
)  # fmt: skip
def _measure_difference(a: np.ndarray, b: np.ndarray, draws: np.ndarray) -> tuple[float, float, float]:
    return _spread(a - b, draws)


def _make_fits() -> list[tuple[np.ndarray, np.ndarray]]:
    """How well K captions fit N pictures by two measures of very different sizes, (N, K) each."""
    rng = np.random.default_rng(11)
    return [(rng.normal(-40, 9, (n, k)), rng.uniform(-1, 1, (n, k))) for n, k in ((6, 10), (3, 4))]


def _rank(fits: np.ndarray, axis: int = 1) -> np.ndarray:
    return fits.argsort(axis=axis).argsort(axis=axis) + 1


@exercise(
    "10.3", "the sum of ranks", 1e-6, cases=_make_fits,
    mistakes={
        "the measures themselves were added, and the one with the larger numbers decides": lambda a, b: a + b,
        "ranks run along the captions of one picture (axis 1), not along the pictures":
            lambda a, b: _rank(a, 0) + _rank(b, 0),
        "the best caption has the highest rank, and here it has the lowest": lambda a, b: _rank(-a) + _rank(-b),
        "ranks begin at 1, and these begin at 0": lambda a, b: _rank(a) + _rank(b) - 2,
    },
)  # fmt: skip
def _add_ranks(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return _rank(first) + _rank(second)


# Notebook 11

ROWS = [
    {"photo": "a.png", "english": " a red ball", "german": "ein roter Ball"},
    {"photo": "b.png", "english": "two dogs ", "german": None},
    {"photo": "c.png", "english": "a harbour", "german": ""},
]


def _map_columns(rows: Any, columns: Any, clean: Any = lambda text: (text or "").strip()) -> dict[str, list[str]]:
    return {code: [clean(row.get(column)) for row in rows] for code, column in columns.items()}


exercise(
    "11.1", "a table of captions",
    cases=lambda: [(ROWS, {"en": "english", "de": "german"}), ([{"text": "\tein Hund\n"}, {}], {"de": "text"})],
    mistakes={
        "captions keep the blanks and line ends around them":
            lambda rows, columns: _map_columns(rows, columns, lambda text: text or ""),
        "a missing caption became the word None: it has to be an empty text":
            lambda rows, columns: _map_columns(rows, columns, lambda text: str(text).strip()),
        "the keys are language codes, not the names of the columns":
            lambda rows, columns: {columns[code]: found for code, found in _map_columns(rows, columns).items()},
        "rows without a caption were left out, so captions and pictures no longer match":
            lambda rows, columns: {code: [t for t in of if t] for code, of in _map_columns(rows, columns).items()},
    },
)(_map_columns)  # fmt: skip


def _name_duplicate(ids: Sequence[str]) -> str:
    return next((f"The picture {one!r} occurs twice." for i, one in enumerate(ids) if one in ids[:i]), "")


def _name_code(codes: Sequence[str], known: Sequence[str]) -> str:
    return next((f"{code!r} is not a language code." for code in codes if code not in known), "")


CODES = ("en", "de", "zh", "pt-BR")
ASKED = [("abc", ["en", "de"]), ("abca", ["en", "de"]), ("abc", ["en", "german"]), ("ab", ["EN"]), ("abb", ["xx"])]


@exercise(
    "11.2", "one sentence that says what is wrong", cases=lambda: [(list(ids), codes, CODES) for ids, codes in ASKED],
    mistakes={
        "only neighbouring pictures are compared": lambda ids, codes, known:
            next((_name_duplicate(two) for two in zip(ids, ids[1:], strict=False) if two[0] == two[1]), "")
            or _name_code(codes, known),
        "where both are wrong, the duplicate is named first":
            lambda ids, codes, known: _name_code(codes, known) or _name_duplicate(ids),
        "duplicates are not looked for": lambda ids, codes, known: _name_code(codes, known),
        "language codes are not looked at": lambda ids, codes, known: _name_duplicate(ids),
        "a code counts as it stands, and 'EN' is not 'en'":
            lambda ids, codes, known: _name_duplicate(ids) or _name_code([code.lower() for code in codes], known),
    },
)  # fmt: skip
def _find_fault(ids: Sequence[str], codes: Sequence[str], known: Sequence[str]) -> str:
    return _name_duplicate(ids) or _name_code(codes, known)


@exercise(
    "11.3", "the memory of a batch in parts", 0.5,
    cases=lambda: [(4_000, 300, 50.0, 8.0, 64, 4), (4_000, 300, 50.0, 8.0, 64, 1), (9_000, 9_000, 20.0, 3.0, 48, 6)],
    mistakes={
        "the optimizer's two moments are missing": lambda w, g, *of: _estimate_memory(w, g / 3, *of),
        "activations of the whole batch are counted, and only one part has them at a time":
            lambda w, g, each, wait, n, k: w + 3 * g + each * n + wait * (n - n / k),
        "the inputs of the parts that wait are missing": lambda w, g, each, wait, n, k: w + 3 * g + each * n / k,
        "the inputs of the part at hand are among its activations: do not count them as waiting, too":
            lambda w, g, each, wait, n, k: w + 3 * g + each * n / k + wait * n,
        "gradients are as large whatever the number of parts":
            lambda w, g, each, wait, n, k: _estimate_memory(w, g / k, each, wait, n, k),
    },
)  # fmt: skip
def _estimate_memory(weights: float, gradients: float, each: float, waiting: float, batch: int, parts: int) -> float:
    """Bytes; AdamW keeps two moments, each as large as the gradients."""
    return weights + 3 * gradients + each * batch / parts + waiting * (batch - batch / parts)


# Notebook 12

Span = tuple[float, float]


def _judge(effect: Span, bar: float) -> str:
    return "for" if effect[0] > bar else "against" if effect[1] < bar else "undecided"


NEAR, FAR = (-0.02, 0.03), (0.06, 0.2)  # intervals of a control that holds, and of one that does not
EFFECTS = [
    ((0.12, 0.3), NEAR),
    ((-0.03, 0.04), NEAR),
    ((0.02, 0.3), NEAR),
    ((0.12, 0.3), (-0.02, 0.2)),
    ((0.0, 0.04), FAR),
]


@exercise(
    "12.1", "the rule of a verdict", cases=lambda: [(effect, control, 0.1, 0.05) for effect, control in EFFECTS],
    mistakes={
        "the control is not looked at": lambda effect, control, bar, near: _judge(effect, bar),
        "the middle of the interval was compared: the whole interval has to lie on one side":
            lambda effect, control, bar, near: _decide((sum(effect) / 2,) * 2, control, bar, near),
        "an interval that reaches over the bar is undecided, not against": lambda effect, control, bar, near:
            _decide(effect, control, bar, near).replace("undecided", "against"),
        "the control is compared with control_bar, not with 0":
            lambda effect, control, bar, near: _decide(effect, control, bar, 0.0),
        "the control fails as soon as its interval reaches control_bar: all of it need not lie above":
            lambda effect, control, bar, near: _decide(effect, control[::-1], bar, near),
        "a failed control comes first, also where the effect came out against":
            lambda effect, control, bar, near: _decide(effect, control if effect[0] > bar else NEAR, bar, near),
    },
)  # fmt: skip
def _decide(effect: Span, control: Span, bar: float, control_bar: float) -> str:
    return "control failed" if control[1] >= control_bar else _judge(effect, bar)


@exercise(
    "12.2", "how many pictures it takes", 0.01,
    cases=lambda: [(500, 0.08, 0.02), (241, 0.17, 0.05), (100, 0.05, 0.1)],
    mistakes={
        "half the width takes four times as many pictures, not twice": lambda n, h, w: int(np.ceil(n * h / w)),
        "pictures are whole, and one too few does not reach the width: round up": lambda n, h, w: n * (h / w) ** 2,
        "the ratio is the wrong way round": lambda n, h, w: int(np.ceil(n * (w / h) ** 2)),
    },
)  # fmt: skip
def _count_pictures(n: int, half_width: float, wanted: float) -> int:
    return int(np.ceil(n * (half_width / wanted) ** 2 - 1e-9))


def make_outcomes() -> list[tuple[dict[str, np.ndarray]]]:
    """Scores by picture of four arms, (N,) each: an ideal effect, chance alone, a control that moves as much, few pictures."""

    def draw(rights: int, n: int = 400) -> np.ndarray:
        return np.random.default_rng(rights).permutation(np.arange(n) < rights).astype(float)

    high, low, same, few = draw(340), draw(100), draw(900, 3000), np.array([1.0, 1, 1, 0, 0, 1, 0, 1])
    outcomes = [(high, low, low, low), (same, np.roll(same, 1), same, same), (high, low, draw(341), draw(101))]
    outcomes.append((few, np.array([1.0, 0, 0, 1, 0, 1, 1, 0]), few, few))
    names = "with", "without", "control with", "control without"
    return [(dict(zip(names, arms, strict=True)),) for arms in outcomes]


def _differ(rows: Mapping[str, np.ndarray], of: str = "", draws: int = 500) -> Span:
    """The ends of the 95 % interval of a paired difference, of the control where `of` is "control "."""
    d = rows[f"{of}with"] - rows[f"{of}without"]
    return _spread(d, np.random.default_rng(0).integers(len(d), size=(draws, len(d))))[1:]


@exercise(
    "12.3", "a rule of your own that can go either way", cases=make_outcomes,
    mistakes={
        "the control is not looked at: where it moves as much as the effect, the verdict is 'control failed'":
            lambda rows: _judge(_differ(rows), 0.1),
        "chance alone is not 'against' by this rule: with a bar of 0 it can hardly ever come out against you":
            lambda rows: _decide(_differ(rows), _differ(rows, "control "), 0.0, 0.05),
        "a handful of pictures is enough for it to decide: compare the whole interval with the bar, not the mean":
            lambda rows: _decide((np.mean(rows["with"] - rows["without"]),) * 2, _differ(rows, "control "), 0.1, 0.05),
        "an undecided outcome is missing": lambda rows: _judge_rows(rows).replace("undecided", "against"),
    },
)  # fmt: skip
def _judge_rows(rows: Mapping[str, np.ndarray]) -> str:
    """A bar of 0.1 for the effect and of 0.05 for the control; other bars near these come to the same."""
    return _decide(_differ(rows), _differ(rows, "control "), 0.1, 0.05)
