"""Claims: the papers' claims as data, the ledger of verdicts, comparisons of systems, committed studies. Their words lie in
assets/claims.toml; what claims and studies are made of is here.

A claim is judged by conditions: figures, each with the side of a bar on which it must lie. Those of the *claim* say whether it
is reproduced, and can come out either way. Those of its *controls* say whether the effect is what it is taken for. Those of
*English* say whether the pivot language was learned at all: a ratio over what was never learned says nothing. What has to be
*settled* says whether training was long enough. Those of the *premise* say whether the language models are strong, as the
papers' are: only then can a result contradict a paper.

A study is a committed configuration that `mpm-lite run NAME` runs, and whose tables lie in assets/results: a list of systems, what each is asked, and a function from the rows of all of them to tables. Arms, splits and
dials were committed before the runs. Rows are kept under OUT as soon as a system has been tested with a seed, so that a
study that was stopped goes on, and nothing is run twice.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mpm_lite.core import runtime
from mpm_lite.core.provenance import commit
from mpm_lite.core.store import Shelf, write_study
from mpm_lite.evaluation.stats import Drawn, Interval, Sample, outside
from mpm_lite.experiments.experiment import FIRST_SEED
from mpm_lite.experiments.system import System, Trial, join_trials, run_trials

REPRODUCED, NOT_HERE, CONTRADICTED = "reproduced", "not reproduced at this size", "contradicted"
NO_POWER, CONTROL_FAILED, PENDING = "no power", "control failed", "pending"
VERDICTS = (REPRODUCED, NOT_HERE, CONTRADICTED, NO_POWER, CONTROL_FAILED, PENDING)
LEVEL = 0.025  # of a one-sided test, which is half of what a 95 % interval leaves out
LEARNED = 0.95  # what English must reach


@dataclass(frozen=True)
class Condition:
    """A figure that must lie above `low` and below `high`; `said` names it in words."""

    said: str
    figure: Drawn
    low: float = -math.inf
    high: float = math.inf

    def p_values(self, models: int) -> tuple[float, float]:
        """One-sided p values, from so many models: of the figure lying where it must, and of its lying elsewhere. A draw
        without a value counts against both."""
        elsewhere, missing = outside(self.figure, self.low, self.high, models), np.isnan(self.figure.draws).mean()
        return elsewhere, min(1.0, 1 - elsewhere + 2 * float(missing))

    def row(self, part: str) -> dict[str, Any]:
        """The condition as data for the ledger; `met` looks at the value, `holds` at the whole interval."""
        of = self.figure.interval
        bars = {name: bar for name, bar in (("above", self.low), ("below", self.high)) if math.isfinite(bar)}
        met, holds = (self.low < a and b < self.high for a, b in ((of.value, of.value), (of.low, of.high)))
        holds = holds and np.isnan(self.figure.draws).mean() <= LEVEL
        return {"part": part, "said": self.said, **_rounded(of), **bars, "met": bool(met), "holds": bool(holds)}


def _rounded(of: Interval, value: str = "value", prefix: str = "") -> dict[str, float]:
    return {value: round(of.value, 4), f"{prefix}low": round(of.low, 4), f"{prefix}high": round(of.high, 4)}


@dataclass(frozen=True)
class Found:
    """What the runs of a claim say. The first condition of `claim` is its effect, the first of `controls` the control's;
    `details` are further figures worth a row of their own."""

    claim: Sequence[Condition]
    controls: Sequence[Condition]
    english: Sequence[Condition]
    premise: Sequence[Condition] = ()
    settled: Sequence[Condition] = ()
    details: Mapping[str, Drawn] = field(default_factory=dict)

    def p_values(self, models: int) -> dict[str, float]:
        """Of every part of the claim holding, and of some part being wrong (which is asked as often as there are parts)."""
        each = [one.p_values(models) for one in self.claim]
        return {"for": max(p for p, _ in each), "against": min(1.0, len(each) * min(p for _, p in each))}

    def row(self, models: int) -> dict[str, Any]:
        """All of it, from so many models, as data for the ledger, without a verdict."""
        effect, control = self.claim[0].figure.interval, self.controls[0].figure.interval
        parts = {"english": self.english, "settled": self.settled, "control": self.controls, "premise": self.premise}
        parts["claim"] = self.claim
        return {
            **_rounded(effect, "effect", ""),
            **_rounded(control, "control_effect", "control_"),
            "p": self.p_values(models),
            "conditions": [one.row(part) for part, many in parts.items() for one in many],
            "details": {name: list(_rounded(of.interval).values()) for name, of in self.details.items()},
        }


def describe_condition(one: Mapping[str, Any]) -> str:
    """A condition of the ledger in words."""
    bars = [f"{side} {one[side]:g}" for side in ("above", "below") if side in one]
    return f"{one['said']}: {one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}], must lie {' and '.join(bars)}"


def judge(row: Mapping[str, Any], p: Mapping[str, float]) -> tuple[str, str]:
    """Verdict and reason of a claim's row in the ledger; `p` are its p values, adjusted over all claims.

    English is looked at first, then whether training was long enough, then the controls. A claim that holds in every part is
    reproduced. One that is surely wrong in some part is contradicted where the premise is met, and else not reproduced at this
    size. What is left is undecided, which is called no power. English, premise and what has to be settled are judged by values,
    controls by whole intervals, and the claim by p values.
    """
    parts = ("english", "settled", "control", "premise", "claim")
    of = {part: [c for c in row["conditions"] if c["part"] == part] for part in parts}
    told = lambda many: "; ".join(map(describe_condition, many)) + "."  # noqa: E731
    if unlearned := [c for c in of["english"] if not c["met"]]:
        return NO_POWER, f"English is not where it has to be before other languages are judged by it. {told(unlearned)}"
    if moving := [c for c in of["settled"] if not c["met"]]:
        return NO_POWER, f"Training was not long enough. {told(moving)}"
    if broken := [c for c in of["control"] if not c["met"]]:
        return CONTROL_FAILED, f"The control did not hold. {told(broken)}"
    if unsure := [c for c in of["control"] if not c["holds"]]:
        return NO_POWER, f"The control is undecided. {told(unsure)}"
    if p["for"] <= LEVEL:
        return REPRODUCED, told(of["claim"])
    if p["against"] <= LEVEL:
        wrong = told([c for c in of["claim"] if not c["met"]])
        if of["premise"] and all(c["met"] for c in of["premise"]):
            return CONTRADICTED, f"{wrong} The language models are not to blame: {told(of['premise'])}"
        weak = f"That may be the language models' doing: {told(of['premise'])}" if of["premise"] else ""
        return NOT_HERE, f"{wrong} {weak}".strip()
    if all(c["holds"] for c in of["claim"]):
        return NO_POWER, f"It holds by itself, but not surely enough for one of many claims (Holm). {told(of['claim'])}"
    if beyond := [
        c for c in of["claim"] if c["high"] < c.get("above", -math.inf) or c["low"] > c.get("below", math.inf)
    ]:
        return NO_POWER, f"It fails by itself, but not surely enough for one of many claims (Holm). {told(beyond)}"
    unsure = [c for c in of["claim"] if not c["holds"]]
    return NO_POWER, f"The runs cannot tell on which side of the bar it lies. {told(unsure)}"


@dataclass(frozen=True)
class Claim:
    """A claim of a paper as data. Rule and arms are committed before the runs that judge it.

    `theirs` is the paper's own figure with its tag, "" where none is verified; `size` is what the paper ran, `here` what is
    run here, `change` what could change the verdict, `why` why the rule is another than in the first ledger ("" where it is
    the same). `judge` reads a Sample of all arms.
    """

    id: str
    source: str
    statement: str
    theirs: str
    size: str
    here: str
    effect: str  # what the effect is, in a few words
    control: str
    rule: str
    change: str
    why: str
    arms: Mapping[str, System]
    judge: Callable[[Sample], Found]
    asked: Mapping[str, Any]  # what they are asked
    study: str = ""  # a claim without arms is judged by the committed tables of a study


@lru_cache(maxsize=1)
def claim_texts() -> dict[str, dict[str, Any]]:
    """What each claim says, by its name: the words of `Claim`, and its disputes."""
    return tomllib.loads(runtime.asset("claims.toml").read_text(encoding="utf-8"))


def load_claim(
    name: str, arms: Mapping[str, System], judge: Callable[[Sample], Found], asked: Mapping[str, Any], study: str = ""
) -> Claim:
    """A claim: its words, its arms, what they are asked, and the rule as a function."""
    told = {key: text for key, text in claim_texts()[name].items() if key != "disputes"}
    return Claim(id=name, arms=arms, judge=judge, asked=asked, study=study, **told)


Say = Callable[[str], None]


def silent(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Study:
    """`arms`: systems by name; `asked`: what each is asked beside its split; `tables`: of the rows of all seeds, which have a
    column `arm`, the tables by the names of their files; `card`: what else the card says, beside commit, seeds and command."""

    name: str
    title: str  # of the card, and of the folder of rows
    arms: Mapping[str, System]
    tables: Callable[[pd.DataFrame], dict[str, pd.DataFrame]]
    asked: Mapping[str, Any] = field(default_factory=dict)
    asked_of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what some arms are asked besides
    card: Callable[[Mapping[str, System]], Mapping[str, Any]] = lambda arms: {}
    seeds: int = 3

    def trials(self, seeds: Sequence[int], split: str) -> dict[str, Trial]:
        """Every arm with every seed, by a label. Seeds come first: after one round of all arms there is one seed of everything."""
        return {
            f"{arm}, seed {seed}": Trial(system, seed, {**self.asked, **self.asked_of.get(arm, {}), "split": split})
            for seed in seeds
            for arm, system in self.arms.items()
        }

    def shelf(self, out: Path) -> Shelf:
        """Where its rows lie."""
        return Shelf(out, f"{self.title}-rows", f"mpm-lite run {self.name}")

    def run(
        self, out: Path, seeds: int | None = None, split: str = "test", say: Say = silent, workers: int = 1
    ) -> list[Path]:
        """Run what is missing, in so many processes, and write the tables and the card under OUT; returns the files."""
        version, many = commit(), range(FIRST_SEED, FIRST_SEED + (seeds or self.seeds))
        trials, shelf = self.trials(many, split), self.shelf(out)
        run_trials(trials, shelf, workers, say)
        rows = join_trials(trials, [arm for _ in many for arm in self.arms], shelf)
        card = {"split": split, **self.card(self.arms)}
        return write_study(out, self.name, self.tables(rows), card, self.title, version, many)
