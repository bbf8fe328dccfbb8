"""A hypothesis of one's own: written down before it is run, run once, judged by the rule that was written down.

    h = mpm.Hypothesis("a bent head reads worse abroad", experiment, arms={"straight": {}, "bent": {"text_hidden": 512}},
                       effect=("bent", "straight"), predicts="below", bar=0.0, control=("straight again", "straight"), ...)
    h.register("runs/bent")
    h.run("runs/bent")

Whoever looks at results first and words the hypothesis afterwards can support anything: `run` asks for the file that
`register` wrote, and `register` never writes another over it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mpm_lite.core.keys import KEY, Key, differences, digest
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.core.store import write_atomic
from mpm_lite.evaluation.stats import Drawn, Interval
from mpm_lite.experiments.experiment import Experiment, plain
from mpm_lite.experiments.results import Results
from mpm_lite.experiments.sweep import change_experiment, run_kept

FILE = "hypothesis.json"
MEASURES = ("retention", "score")
FOR, AGAINST, OPEN, BROKEN = "for", "against", "undecided", "control failed"
SEEDS = 3  # fewer say nothing of how much chance there is in a difference


def above(figure: Interval, bar: float) -> str:
    """FOR where the whole interval lies at or above the bar, AGAINST where it lies below, else OPEN."""
    if figure.low >= bar:
        return FOR
    return AGAINST if figure.high < bar else OPEN


def below(figure: Interval, bar: float) -> str:
    """FOR where the whole interval lies below the bar, AGAINST where it lies at or above, else OPEN."""
    return {FOR: AGAINST, AGAINST: FOR, OPEN: OPEN}[above(figure, bar)]


def within(figure: Interval, margin: float) -> str:
    """FOR where the whole interval lies within -margin and +margin, AGAINST where it lies outside, else OPEN."""
    if -margin <= figure.low and figure.high <= margin:
        return FOR
    return AGAINST if figure.low > margin or figure.high < -margin else OPEN


PREDICTS = {rule.__name__: rule for rule in (above, below, within)}


@dataclass(frozen=True)
class Verdict:
    """What came out: verdict ("for", "against", "undecided", "control failed"), effect and control as intervals, the figure of
    each arm (name, value, low, high), and the results themselves."""

    verdict: str
    effect: Any
    control: Any
    arms: pd.DataFrame
    results: Results

    def plot(self, xlabel: str = "") -> Any:
        """A point with its interval for each arm; returns the matplotlib figure."""
        from mpm_lite.core import figures

        return figures.draw_intervals(self.arms, xlabel)


@dataclass(frozen=True)
class Hypothesis:
    """Everything that decides the verdict.

    `arms`: what each changes in `base`, fields or options. `effect`: one arm over another, by `measure` ("retention", or
    "score"), mean of `languages`; it is predicted to lie "above" or "below" `bar`, or "within" it of 0, with its whole 95 %
    interval. `control`: the same difference of two arms where the cause is missing; its interval must lie on the near side
    of `control_bar` (above for "below", below for "above", within for "within"), or the verdict is "control failed".
    Raises UserError for an arm, measure or prediction nobody knows, and for fewer than three seeds.
    """

    statement: str
    base: Experiment
    arms: dict[str, dict[str, Any]]
    effect: tuple[str, str]
    control: tuple[str, str]
    languages: tuple[str, ...]
    measure: str = "retention"
    predicts: str = "above"
    bar: float = 0.0
    control_bar: float = 0.05
    metric: str = "t2i_r@10"
    # Whatever else is to be held fast: why, what is expected, limits.
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, pair in (("effect", self.effect), ("control", self.control)):
            if isinstance(pair, str) or len(pair) != 2:
                raise UserError(f"{what}={pair!r}: it is the difference of two arms, such as ('with', 'without').")
        for what, bar in (("bar", self.bar), ("control_bar", self.control_bar)):
            if isinstance(bar, bool) or not isinstance(bar, (int, float)) or not math.isfinite(bar):
                raise UserError(f"{what}={bar!r} is not a number.")
        for arm in (*self.effect, *self.control):
            if arm not in self.arms:
                raise unknown("arm", arm, self.arms)
        if self.measure not in MEASURES:
            raise unknown("measure", self.measure, MEASURES)
        if self.predicts not in PREDICTS:
            raise unknown("prediction", self.predicts, PREDICTS)
        if self.base.seeds < SEEDS:
            raise UserError(f"seeds={self.base.seeds}: a hypothesis wants {SEEDS} at least.")
        if isinstance(self.base.test, list):
            raise UserError("A hypothesis is tested on one set: give base one `test`.")
        self.experiments  # noqa: B018  an unknown dial is a mistake to be told of now, not after the first arm

    @property
    def experiments(self) -> dict[str, Experiment]:
        """Each arm as the experiment that it is."""
        return {name: change_experiment(self.base, change) for name, change in self.arms.items()}

    def text(self) -> str:
        """All that is registered, as JSON."""
        told = {f: getattr(self, f) for f in self.__dataclass_fields__} | {"base": self.base.describe()}
        return json.dumps(json.loads(json.dumps(told, default=plain)), indent=1, sort_keys=True)

    def key(self) -> Key:
        """Everything that decides the verdict: what is registered, and for each arm its weights and data."""
        arms = {f"arm {name}": one.key().digest for name, one in self.experiments.items()}
        return Key("a registered hypothesis", {"hypothesis": self.text(), **arms})

    def register(self, out: str | Path) -> Path:
        """Write OUT/hypothesis.json, with the day, a digest, and the key of each arm's weights and data. Raises UserError where
        another one, or the same one on other weights or data, is registered there."""
        path, key = Path(out) / FILE, self.key()
        known = _registered(path)
        if known:
            self._check(path, known, key)
        else:
            told = {"registered": datetime.now(UTC).isoformat(timespec="seconds"), "digest": digest([self.text()])}
            told |= {KEY: key.describe(), "hypothesis": json.loads(self.text())}
            write_atomic(path, json.dumps(told, indent=1).encode())
        return path

    def run(self, out: str | Path) -> Verdict:
        """Run whatever arm is missing, and judge. Raises UserError where this hypothesis was not registered there before, or on
        other weights or data than there are now."""
        known = _registered(Path(out) / FILE)
        if not known or known["digest"] != digest([self.text()]):
            raise UserError(f"This hypothesis is not registered in {out}: call register() first, then run().")
        self._check(Path(out) / FILE, known, self.key())
        found = {
            name: run_kept(one, Path(out) / "arms" / digest([name])[:12]) for name, one in self.experiments.items()
        }
        return self.judge(found)

    def _check(self, path: Path, known: Mapping[str, Any], key: Key) -> None:
        """Raises UserError where something else than this, as it is now, was registered."""
        if known["digest"] != digest([self.text()]):
            raise UserError(
                f"{path} holds another hypothesis, registered {known['registered']}: register this one in another folder."
            )
        if known.get(KEY, {}).get("digest") != key.digest:
            arms = ", ".join(differences(known.get(KEY, {}), key.describe()))
            raise UserError(
                f"{path} was registered on other weights or data ({arms}), {known['registered']}: register this one in another "
                "folder, for a verdict holds for what it was registered on."
            )

    def judge(self, found: dict[str, Results]) -> Verdict:
        """The verdict on results of all arms, by name."""
        drawn = {name: self._figure(results) for name, results in found.items()}
        effect, control = ((drawn[a] - drawn[b]).interval for a, b in (self.effect, self.control))
        verdict = PREDICTS[self.predicts](effect, self.bar)
        # A control that does what the cause was to do says that something else did it.
        near = {"above": control.high < self.control_bar, "below": control.low > -self.control_bar}
        holds = near.get(self.predicts, within(control, self.control_bar) == FOR)
        if not np.isfinite([effect.low, effect.high, control.low, control.high]).all():
            verdict, holds = OPEN, True  # English is not above chance somewhere: there is nothing to divide by
        spans = {name: of.interval for name, of in drawn.items()}
        rows = [{"name": name, **span.columns()} for name, span in spans.items()]
        joined = Results.join([results.mark(arm=name) for name, results in found.items()])
        return Verdict(verdict if holds else BROKEN, effect, control, pd.DataFrame(rows), joined)

    def _figure(self, results: Results) -> Drawn:
        if results.items["condition"].nunique() > 1:  # of a system, whose other looks are there for chance
            results = results.where(condition="real")
        of = results.mean_retention_draws if self.measure == "retention" else results.mean_score_draws
        return Drawn(*of(list(self.languages), self.metric))


def _registered(path: Path) -> dict[str, Any]:
    """What was registered in a file; {} where there is none. UserError for one that is damaged."""
    if not path.exists():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return {k: told[k] for k in ("registered", "digest", KEY)}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): what was registered can no longer be told.") from error
