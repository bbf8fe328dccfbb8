"""The ladder: one recipe of MPM chat on language models from weak to strong, and what of its retention is whose.

    mpm-lite pretrain --ladder        the language models; stopped and called again, it goes on
    mpm-lite run ladder --out OUT     on each that is here the same connector, then questions about test pictures
    mpm-lite run connectors --out OUT on the strongest ones other connectors too, all of them from English pairs only

The premise of the papers is a strong multilingual language model; the hypothesis is that pictures with English captions
teach it as much as English captions themselves do. Every model of the ladder gets three figures for each score: text
transfer t, pivot efficiency e, and retention, which is their product (`stats.Identity`). The premise is about t, the
hypothesis about e. What is left to explain where e is below 1 is the connector, and the second study varies that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mpm_lite.claims import Say, silent
from mpm_lite.claims.mpm import OTHERS
from mpm_lite.core import runtime
from mpm_lite.core.provenance import commit
from mpm_lite.core.runtime import UserError
from mpm_lite.core.store import Shelf, name_of, write_study
from mpm_lite.evaluation import stats
from mpm_lite.evaluation.stats import DRAWS, Sample, average_figures
from mpm_lite.experiments.correlations import spearman
from mpm_lite.experiments.mpm_chat import Chat
from mpm_lite.experiments.pretrain import language_models
from mpm_lite.experiments.system import Trial, join_trials, run_trials
from mpm_lite.towers import catalogue

METRICS = {
    "answers": "closed questions",
    "choice": "one of ten captions",
    "slots": "words of captions",
    "exact": "captions exactly right",  # added after the first run on test, whose rows held it: it decides nothing
}
ASKED = {"looks": ("real", "blind", "english"), "count": 200, "choice": True}
RECIPE = Chat()
SEED = 0  # of the connector: models are the unit, each with one
PAPER = "as in the paper"
# What a connector might lose, one change each. All of them read English captions only; self-distillation is ours. Mixtures
# of word embeddings learn slowly, so they are to be held against the recipe with as many steps.
CONNECTORS = {
    PAPER: {},
    "three times the steps": {"steps": 5_700},
    "four queries": {"queries": 4},
    "mixtures of embeddings": {"soft": "mixture", "steps": 5_700},
    "self-distillation": {"distil": 1.0},
}
STRONGEST = "toy-mixed"  # whose models get every connector


@dataclass(frozen=True)
class Rung:
    """One language model of the ladder, and the connector that is put before it."""

    name: str
    seed: int
    connector: str = PAPER

    def __str__(self) -> str:
        return f"{self.name}:{self.seed}" + ("" if self.connector == PAPER else f", {self.connector}")

    @property
    def system(self) -> Chat:
        """The recipe on that model, with that connector."""
        options = RECIPE.options | CONNECTORS[self.connector]
        return replace(RECIPE, lm=self.name, lm_seed=self.seed, options=options)


def all_rungs() -> list[Rung]:
    """The models of the ladder, weights here or not."""
    return [Rung(variant.name, seed) for variant, seed in language_models.ladder()]


def present_rungs() -> list[Rung]:
    """Those whose weights are on this machine."""
    return [rung for rung in all_rungs() if catalogue.is_present(rung.name, rung.seed)]


def known_rungs(out: Path, split: str) -> list[Rung]:
    """Those of which something can be said: their weights are here, or their rows lie under `out` already."""
    every, here = all_rungs(), present_rungs()
    carded = [rung for rung in every if rung not in here and rung.seed in catalogue.seeds(rung.name)]
    keys = {rung: name_of(rung_trial(rung, split).key()) for rung in carded}
    missing = set(shelf(out).missing(keys.values()))
    return [rung for rung in every if rung in here or rung in keys and keys[rung] not in missing]


def connector_rungs() -> list[Rung]:
    """Every connector on each of the strongest models that are here."""
    strong = [rung for rung in present_rungs() if rung.name == STRONGEST]
    return [replace(rung, connector=name) for rung in strong for name in CONNECTORS]


def shelf(out: Path) -> Shelf:
    """Where the rows of both studies are kept."""
    return Shelf(out, "ladder", "mpm-lite run ladder")


def rung_trial(rung: Rung, split: str) -> Trial:
    """One model with its connector, and what it is asked."""
    options = {k: v for k, v in asdict(rung.system.recipe_options).items() if k != "bf16"}
    told = {"asked": ASKED, "split": split, "options": options}
    return Trial(rung.system, SEED, {**ASKED, "split": split}, told)


def run_ladder(
    out: Path, seeds: int | None = None, split: str = "test", say: Say = silent, workers: int = 1
) -> list[Path]:
    """Train and test what is missing of the models that are here, and write OUT/ladder.csv, OUT/ladder-models.csv and a
    card. Rows are kept under OUT, so that a stopped run goes on, and a model whose weights are gone still counts. UserError
    where no model of the ladder is here."""
    many = known_rungs(out, split)
    if not many:
        raise UserError("No language model of the ladder is here: `mpm-lite pretrain --ladder` makes them.")
    if gone := [str(rung) for rung in all_rungs() if rung not in many]:
        say(f"Left out, because they are not on this machine: {', '.join(gone)}")

    def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
        scores = ladder_table(rows)
        return {"ladder": scores, "ladder-models": across_models(scores)}

    return _run("ladder", many, tables, out, seeds, split, say, workers)


def run_connectors(
    out: Path, seeds: int | None = None, split: str = "test", say: Say = silent, workers: int = 1
) -> list[Path]:
    """The same for every connector on each of the strongest models that are here: OUT/connectors.csv and a card. UserError
    where none of these models is here."""
    many = connector_rungs()
    if not many:
        raise UserError(f"No {STRONGEST} is here: `mpm-lite pretrain {STRONGEST}` makes it.")
    tables = lambda rows: {"connectors": connectors_table(rows)}  # noqa: E731
    return _run("connectors", many, tables, out, seeds, split, say, workers)


def _run(
    study: str, many: Sequence[Rung], tables: Callable[[pd.DataFrame], dict[str, pd.DataFrame]], out: Path,
    seeds: int | None, split: str, say: Say, workers: int,
) -> list[Path]:  # fmt: skip
    """UserError for a number of seeds: the language models stand in their place."""
    if seeds:
        raise UserError(f"{study!r} is a committed configuration and takes neither --set nor --seeds.")
    version = commit()
    run_trials({str(rung): rung_trial(rung, split) for rung in many}, shelf(out), workers, say)
    models = list(dict.fromkeys(f"{rung.name}:{rung.seed}" for rung in many))
    card = {"split": split, "models": models, "asked": ASKED, "command": f"mpm-lite run {study} --out assets/results"}
    return write_study(out, study, tables(read_items(many, out, split)), card, study, version, [SEED])


def read_items(many: Sequence[Rung], out: Path, split: str = "test") -> pd.DataFrame:
    """The rows of these models, with columns `arm` and `connector`. UserError where some are missing."""
    trials = {f"the ladder's {rung}": rung_trial(rung, split) for rung in many}
    rows = join_trials(trials, [str(rung) for rung in many], shelf(out))
    return rows.assign(connector=rows["arm"].map({str(rung): rung.connector for rung in many}))


def ladder_table(rows: pd.DataFrame, languages: Sequence[str] = OTHERS, draws: int = DRAWS) -> pd.DataFrame:
    """One row a model, metric and figure: "retention", "t" and "e" of the mean of the languages, as far as `Identity.table`
    says them, or four gains; value, low, high, n pictures. Intervals are of pictures: each model has one connector."""
    sample, found = Sample(rows, draws), []
    for arm in dict.fromkeys(rows["arm"]):
        name, _, seed = arm.partition(":")
        for metric in METRICS:
            figures = sample.identity(arm, languages, metric).table()
            for figure, of in figures.items():
                told = {"lm": name, "lm_seed": int(seed), "metric": metric, "figure": figure}
                found.append(told | of.columns() | {"n": sample.n})
    return pd.DataFrame(found)


def connectors_table(rows: pd.DataFrame, languages: Sequence[str] = OTHERS, draws: int = DRAWS) -> pd.DataFrame:
    """One row a connector, metric and figure, over all models: the scores in English and in the mean of the languages, the
    figures of `Identity.table`, and "others, over the paper's": the score in the languages less that of the paper's connector
    on the same models and pictures. Intervals are of models and pictures: a model stands for a seed here."""
    sample, found = Sample(rows.assign(arm=rows["connector"], seed=rows["lm_seed"]), draws), []
    models = rows["lm_seed"].nunique()
    for metric in METRICS:
        others = {name: average_figures(sample.score(name, code, metric) for code in languages) for name in CONNECTORS}
        for name in CONNECTORS:
            figures = {"English": sample.score(name, "en", metric).interval, "others": others[name].interval}
            if name != PAPER:
                figures["others, over the paper's"] = (others[name] - others[PAPER]).interval
            figures |= sample.identity(name, languages, metric).table()
            for figure, of in figures.items():
                told = {"connector": name, "metric": metric, "figure": figure, "models": models}
                found.append(told | of.columns() | {"n": sample.n})
    return pd.DataFrame(found)


def tower_points() -> pd.DataFrame:
    """The two packaged multilingual towers on the axes of the ladder: text, t (the towers' own alignment: does a caption find
    its English translation?), retention on held-out stamps with its interval; means of the languages that each tower reads."""
    by_language = pd.read_csv(runtime.asset("results/retention.csv")).query("test == 'stamps' and cell == 'read'")
    by_language = by_language[by_language["counts"] & (by_language["language"] != "en")]
    strength = by_language.groupby("text")["alignment"].mean().rename("t")
    cells = pd.read_csv(runtime.asset("results/retention-cells.csv")).query("test == 'stamps' and cell == 'read'")
    return cells.set_index("text")[["rho", "low", "high"]].join(strength, how="inner").reset_index()


def across_models(scores: pd.DataFrame, draws: int = DRAWS) -> pd.DataFrame:
    """What the models say together, by metric: the mean of e, and Spearman's correlation of retention with t, with the number
    of models that have these figures. The bootstrap draws models: a model is one witness, however many languages and
    pictures it is asked about. (e is a quotient by t: noise alone would make the two of them run against each other, so that
    no correlation of these is taken.)"""
    wide = scores.pivot_table(index=["metric", "lm", "lm_seed"], columns="figure", values="value")
    wide = wide.reindex(columns=["t", "e", "retention"]).reset_index()
    said = {
        "mean e": (["e"], lambda few: few["e"].mean()),
        "retention against t": (["t", "retention"], lambda few: spearman(*few[["t", "retention"]].to_numpy().T)),
    }
    rng, found = np.random.default_rng(3), []
    for metric, every in wide.groupby("metric", sort=False):
        for figure, (needs, statistic) in said.items():
            of = every.dropna(subset=needs)
            if len(of) < 3:
                continue
            picks = rng.integers(len(of), size=(draws, len(of)))
            drawn = np.array([statistic(of.iloc[pick]) for pick in picks])
            one = stats.summarise(float(statistic(of)), drawn)
            found.append({"metric": metric, "figure": figure, **one.columns(), "models": len(of)})
    return pd.DataFrame(found, columns=["metric", "figure", "value", "low", "high", "models"])
