"""Claims: the papers' claims as data, the ledger of verdicts, comparisons of systems, committed studies. Their words lie in
assets/claims.toml; what claims and studies are made of is here.

A study is a committed configuration that `mpm-lite run NAME` runs, and whose tables lie in assets/results: a list of systems, what each is asked, and a function from the rows of all of them to tables. Arms, splits and
dials were committed before the runs. Rows are kept under OUT as soon as a system has been tested with a seed, so that a
study that was stopped goes on, and nothing is run twice.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from mpm_lite.core import runtime
from mpm_lite.core.provenance import commit
from mpm_lite.core.store import Shelf, write_study
from mpm_lite.evaluation.stats import Claim, Found, Sample
from mpm_lite.experiments.experiment import FIRST_SEED
from mpm_lite.experiments.system import System, Trial, join_trials, run_trials


@lru_cache(maxsize=1)
def claim_texts() -> dict[str, dict[str, Any]]:
    """What each claim says, by its name: the words of `Claim`, and its disputes."""
    return tomllib.loads(runtime.asset("claims.toml").read_text(encoding="utf-8"))


def load_claim(
    name: str, arms: Mapping[str, System], judge: Callable[[Sample], Found], asked: Mapping[str, Any]
) -> Claim:
    """A claim: its words, its arms, what they are asked, and the rule as a function."""
    told = {key: text for key, text in claim_texts()[name].items() if key != "disputes"}
    return Claim(id=name, arms=arms, judge=judge, asked=asked, **told)


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
        return write_study(
            out, self.name, self.tables(rows), {"split": split, **self.card(self.arms)}, self.title, version, many
        )
