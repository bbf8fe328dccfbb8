"""Intervals: the bootstrap, scores with all their draws, and arithmetic on them.

A figure here is a value with its draws; differences, ratios and means of figures keep the draws paired, so that an
interval of a retention knows that its English and its German come from the same models and the same pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtr, stdtrit

from mpm_lite.core.runtime import UserError

DRAWS = 2000
SEEN = 0.2  # the pivot language must gain this much before a ratio over its gain says anything
READ = 0.05  # the other languages must surely gain this much from the caption before e is given, a ratio over that gain


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval and a one-sided p for being above zero."""

    value: float
    low: float
    high: float
    p: float = float("nan")

    def columns(self, name: str = "value") -> dict[str, float]:
        """The figure and its interval as columns of a table: `name`, low and high."""
        return {name: self.value, "low": self.low, "high": self.high}


def draw_weights(concepts: list[str], seeds: int, draws: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """How often each item and each seed is drawn: float64 (B, N) and (B, S).

    Hierarchical: concepts with replacement, then as many items as a drawn concept has, with replacement; seeds apart.
    """
    rng = np.random.default_rng(seed)
    names, place = np.unique(np.asarray(concepts), return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)  # (B, C)
    weights = np.zeros((draws, len(concepts)))
    for c in range(len(names)):
        members = np.flatnonzero(place == c)
        if len(members) == 1:
            weights[:, members[0]] = drawn[:, c]
        else:
            weights[:, members] = rng.multinomial(drawn[:, c] * len(members), np.full(len(members), 1 / len(members)))
    return weights, rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws).astype(float)


def average_draws(hits: np.ndarray, weights: np.ndarray, seed_weights: np.ndarray) -> np.ndarray:
    """The mean of hits (S, Q) under every draw: weights (B, Q), seed_weights (B, S) -> (B,)."""
    total = weights.sum(axis=1)
    by_seed = weights @ hits.T / np.maximum(total, 1e-12)[:, None]  # (B, S)
    mean = (by_seed * seed_weights).sum(axis=1) / seed_weights.sum(axis=1)
    return np.where(total > 0, mean, np.nan)


def summarise(value: float, draws: np.ndarray) -> Interval:
    """Percentile interval of the draws around `value`; p = share of draws at or below zero (never under 1/(B+1))."""
    fine = draws[np.isfinite(draws)]
    if not len(fine):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(fine, [2.5, 97.5])
    return Interval(value, float(low), float(high), float((1 + (fine <= 0).sum()) / (1 + len(fine))))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values, (K,) -> (K,)."""
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty_like(adjusted)
    out[order] = np.minimum(adjusted, 1.0)
    return out


@dataclass(frozen=True)
class Drawn:
    """A value and its bootstrap draws (B,). Draw b is the same draw of seeds and pictures in every figure of a sample."""

    value: float
    draws: np.ndarray

    def __sub__(self, other: Drawn) -> Drawn:
        return Drawn(self.value - other.value, self.draws - other.draws)

    def __truediv__(self, other: Drawn) -> Drawn:
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = np.where(other.draws > 1e-9, self.draws / other.draws, np.nan)
        return Drawn(self.value / other.value if other.value > 1e-9 else float("nan"), draws)

    @property
    def interval(self) -> Interval:
        """95 %, by percentiles of the draws."""
        return summarise(self.value, self.draws)


def widen(figure: Drawn, models: int) -> Drawn:
    """The draws of a figure of G models further from its value. Draws of few with replacement vary too little, by the square root
    of (G - 1)/G, and their tails are those of a normal distribution, where few have Student's; the 95 % interval makes up for
    both. One model cannot say how models differ: nothing is changed."""
    if models < 2:
        return figure
    wider = np.sqrt(models / (models - 1)) * stdtrit(models - 1, 0.975) / ndtri(0.975)
    return Drawn(figure.value, figure.value + (figure.draws - figure.value) * wider)


def outside(figure: Drawn, low: float, high: float, models: int) -> float:
    """The chance that a figure lies outside (low, high), by Student's t around its value, with the spread of its draws from
    `widen`. Draws themselves would say too little far out, where a p value that counts for one of many claims lies. A draw
    without a value counts as one outside."""
    missing = float(1 - np.isfinite(figure.draws).mean())
    if missing == 1 or models < 2:
        return 1.0
    df = models - 1
    error = max(float(np.nanstd(figure.draws)) * ndtri(0.975) / stdtrit(df, 0.975), 1e-12)
    tails = stdtr(df, (low - figure.value) / error) + stdtr(df, (figure.value - high) / error)
    return min(1.0, float(tails) + missing)


def average_figures(figures: Iterable[Drawn]) -> Drawn:
    """The mean of several figures, paired. UserError for none."""
    many = list(figures)
    if not many:
        raise UserError("A mean of no figures: no language or arm was left to average.")
    return Drawn(float(np.mean([f.value for f in many])), np.mean([f.draws for f in many], axis=0))


@dataclass(frozen=True)
class Identity:
    """Retention as the product of what a language model brings and what sight adds: retention = t * e.

    Four gains over the blind look: of other languages (their mean) and of the pivot language, from the picture and from
    the gold pivot caption as text in the picture's place. *Text transfer* t is how much of what the pivot gains from that
    caption the others gain; it is about the language model, and pictures are in it by their mean only, which is the chance
    that is taken off. *Pivot efficiency* e is how much of what the others gain from the caption they gain from the picture,
    over the same for the pivot; it is about the pivot.
    """

    picture: Drawn
    text: Drawn
    pivot_picture: Drawn
    pivot_text: Drawn

    @property
    def transfer(self) -> Drawn:
        """t = text / pivot_text."""
        return self.text / self.pivot_text

    @property
    def efficiency(self) -> Drawn:
        """e = (picture / text) / (pivot_picture / pivot_text)."""
        return (self.picture / self.text) / (self.pivot_picture / self.pivot_text)

    @property
    def retention(self) -> Drawn:
        """picture / pivot_picture, which is t * e."""
        return self.picture / self.pivot_picture

    @property
    def said(self) -> bool:
        """Whether the pivot language gains enough, from the picture and from text, for the ratios to mean anything."""
        return min(self.pivot_picture.value, self.pivot_text.value) >= SEEN

    @property
    def read(self) -> bool:
        """Whether the others surely gain at least READ from the caption: else e divides by what may be nothing."""
        return self.text.interval.low >= READ

    def table(self) -> dict[str, Interval]:
        """The figures to print: the three ratios with intervals of joint draws, without e where `read` is False; where `said`
        is False, the four gains instead."""
        if self.said:
            named = {"retention": self.retention, "t": self.transfer} | ({"e": self.efficiency} if self.read else {})
        else:
            named = {
                "gain, picture": self.picture,
                "gain, English caption": self.text,
                "gain in English, picture": self.pivot_picture,
                "gain in English, English caption": self.pivot_text,
            }
        return {name: figure.interval for name, figure in named.items()}


class Sample:
    """All that was measured for a claim: the `items` of every arm, with a column `arm`. Every arm has the same seeds and
    pictures. Figures are means over both, by arm, language, metric and look. A bootstrap draw takes language models and
    then the seeds that share one; and concepts, and then their pictures.

    With `widened`, draws make up for there being few models; see `widen`. `models` says how many there are: seeds that share
    their language models are one."""

    def __init__(self, items: pd.DataFrame, draws: int = DRAWS, widened: bool = False) -> None:
        self.items, self.widened = items, widened
        known = items.drop_duplicates("item")[["item", "concept"]]
        self.seeds = sorted(items["seed"].unique())
        self.names = {item: i for i, item in enumerate(known["item"])}
        self.weights, _ = draw_weights(known["concept"].tolist(), len(self.seeds), draws)
        groups = _models(items, self.seeds)
        self.models = len(groups)
        self.seed_weights = _seed_weights(groups, len(self.seeds), draws)
        self.seed_shares = np.zeros(len(self.seeds))  # (S,)
        for members in groups:
            self.seed_shares[members] = 1 / len(groups) / len(members)
        self._rows = items.groupby(["arm", "language", "look"], sort=False).indices
        number = {seed: i for i, seed in enumerate(self.seeds)}
        self._place = items["seed"].map(number).to_numpy() * len(known) + items["item"].map(self.names).to_numpy()
        self._scores: dict[tuple[str, str, str, str], Drawn] = {}

    @property
    def n(self) -> int:
        """Pictures asked about."""
        return len(self.names)

    def score(self, arm: str, language: str, metric: str, look: str = "real") -> Drawn:
        """The mean of a metric over the pictures where it has a value. UserError where it was not measured."""
        asked = (arm, language, metric, look)
        if asked not in self._scores:
            self._scores[asked] = self._score(*asked)
        return self._scores[asked]

    def _score(self, arm: str, language: str, metric: str, look: str) -> Drawn:
        if (arm, language, look) not in self._rows:
            raise UserError(f"No rows of arm {arm!r} in {language!r}, {look}: run that arm first.")
        rows = self._rows[arm, language, look]
        if metric not in self.items or not self.items[metric].iloc[rows].notna().any():
            where = f"{metric!r} of arm {arm!r} in {language!r}, {look}"
            raise UserError(f"{where}, was not asked for: ask for it in the claim.")
        if len(np.unique(self._place[rows])) < len(rows):
            where = f"Arm {arm!r} has a picture twice in {language!r}, {look}"
            raise UserError(f"{where}, of one seed: run that arm again.")
        values = self.items[metric].to_numpy()[rows]
        hits = np.full((len(self.seeds), len(self.names)), np.nan, np.result_type(values, np.float32))  # (S, N)
        hits.flat[self._place[rows]] = values
        there = np.isfinite(hits).astype(float)
        over, share = (average_draws(x, self.weights, self.seed_weights) for x in (np.nan_to_num(hits), there))
        equal = self.seed_shares[:, None]  # every model counts as much in the value as it does in the draws
        value = float((equal * np.nan_to_num(hits)).sum() / (equal * there).sum())
        with np.errstate(divide="ignore", invalid="ignore"):  # a draw may hold no picture that has a value
            draws = over / share
        found = Drawn(value, draws)
        return widen(found, self.models) if self.widened else found

    def gain(self, arm: str, language: str, metric: str, look: str = "real", chance: str = "blind") -> Drawn:
        """The score minus what the same models score in that language by chance: under the blind look, unless told otherwise."""
        return self.score(arm, language, metric, look) - self.score(arm, language, metric, chance)

    def rho(
        self, arm: str, language: str, metric: str, pivot: str = "en", look: str = "real", chance: str = "blind"
    ) -> Drawn:
        """Retention: the gain in a language, divided by the gain in the pivot language under the real look."""
        return self.gain(arm, language, metric, look, chance) / self.gain(arm, pivot, metric, chance=chance)

    def identity(
        self, arm: str, languages: Sequence[str], metric: str, pivot: str = "en", chance: str = "blind"
    ) -> Identity:
        """Retention of a metric, mean over `languages`, and its two factors; see `Identity`.

        Needs the looks "real", "english" and `chance`, of the languages and of the pivot.
        """
        picture, text = (
            {code: self.gain(arm, code, metric, look, chance) for code in (pivot, *languages)}
            for look in ("real", "english")
        )
        others = [average_figures(of[code] for code in languages) for of in (picture, text)]
        return Identity(others[0], others[1], picture[pivot], text[pivot])


def _models(items: pd.DataFrame, seeds: Sequence[int]) -> list[np.ndarray]:
    """The places of the seeds that share their language models, a group each."""
    models = items.groupby("seed").apply(lambda of: tuple(of.groupby("arm")["lm_seed"].first()), include_groups=False)
    return [np.flatnonzero([models[seed] == model for seed in seeds]) for model in dict.fromkeys(models)]


def _seed_weights(groups: Sequence[np.ndarray], seeds: int, draws: int) -> np.ndarray:
    """How often each seed is drawn, (B, S): language models first, with replacement, then the seeds that share one.

    Five connectors on three language models are three witnesses of what language models do, not five. Of three, a
    bootstrap says too little rather than too much: its intervals are short.
    """
    rng = np.random.default_rng(1)
    drawn = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=draws)  # (B, models)
    weights = np.zeros((draws, seeds))
    for g, members in enumerate(groups):
        within_one = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
        weights[:, members] = drawn[:, [g]] * within_one / len(members)
    return weights
