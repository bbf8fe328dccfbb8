"""The four systems and their rivals under one budget: on the toy world, on real pictures, and as painters.

*On the toy world*, by the task that all can do: which caption belongs to the picture?

    mpm-lite run head_to_head --seeds 3 --out assets/results

Four tables: equal image-caption pairs, English ones and translated ones together, each system with updates and parameters
of its own; as many updates besides; as many parameters that learn besides; and, at equal pairs, one text for all. In that last
one text encoders are made of the language models that MPM and mBLIP use (`worlds.py`), nothing was withheld from their
translations, and systems that had not learned English get more updates. Systems that write are asked through their captions
there, too: the choice is the scene whose attributes agree best with those that were named. It is not run by default yet:
whether all have learned English after so many steps is to be looked at on val before. Beside the scores stands what each
system cost and what it read. A system is a `System`: whatever has a bench (`worlds.WorldBench`), and an arm for each table, joins in.

*On real pictures*, M3P, MLA and rivals at equal pairs: emoji, stamps and clip art learned from, held-out stamps asked about.

    mpm-lite run head_to_head_real --seeds 3 --out assets/results

Every system learns from the same training pictures, each with one caption; MLA and the teacher read the captions of other
languages as text alone, M3P switches words by the names of training emoji. *Pivot* is MPM's way with two towers: English
captions through a multilingual encoder that stays as it is. *Translate-test* is English retrieval itself, on the queries
that the language has: a perfect translator. *Untranslated* asks the English model in L as it is: what shared spelling gives.
MPM chat and mBLIP need a language model of many languages, of which no package brings one. A text encoder that stays frozen
reads each caption once, before the updates, as the image tower reads each picture; FLOPs count neither.

*Painters*: what else could paint from prompts in L, beside the arms of claim C6, each with the same steps unless it says
otherwise. Scores are of test pictures, in all ten languages.

    mpm-lite run mpm_paint_rivals --seeds 3 --out assets/results

What was tested with a seed is not run again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mpm_lite.claims import Say, Study, mblip, silent
from mpm_lite.claims import m3p as m3p_claims
from mpm_lite.claims.mpm import OTHERS, STRONG
from mpm_lite.core import runtime
from mpm_lite.core.provenance import commit
from mpm_lite.core.store import Shelf, write_study
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import exchanges, grammar
from mpm_lite.evaluation import choice
from mpm_lite.evaluation.chat import Asking
from mpm_lite.evaluation.stats import Drawn, Sample, average_figures
from mpm_lite.experiments import m3p
from mpm_lite.experiments.experiment import FIRST_SEED
from mpm_lite.experiments.m3p import REAL_M3P, Matching
from mpm_lite.experiments.mblip import Realigning
from mpm_lite.experiments.mla import Acquiring
from mpm_lite.experiments.mpm_chat import Chat
from mpm_lite.experiments.mpm_paint import Paint
from mpm_lite.experiments.real_pictures import DUAL, LANGUAGES, MOST, REAL, real_captions
from mpm_lite.experiments.rivals import Pairing, Remapped
from mpm_lite.experiments.system import System, Trial, check_models, join_trials, read_trials, run_trials, shared_bench
from mpm_lite.experiments.worlds import ONE_TEXT
from mpm_lite.towers import catalogue

COUNT = 100  # pictures of test
PAIRS = 12_000  # image-caption pairs in all, whatever their languages
UPDATES = 1_500  # in the second table
NOISE = 0.05  # of the translator that made what is not English, for whoever reads it (M3P reads a dictionary)
BUDGETS, SAME_TEXT = ("pairs", "updates", "parameters"), "text"
TABLES = (*BUDGETS, SAME_TEXT)
SEEDS = 3
SCORES = ("choice", "hard", "captioned")
IGLUE = ("retrieval", "true", "english")
OTHER_LANGUAGES = len(OTHERS)


@dataclass(frozen=True)
class Competitor:
    """One that is compared: its system in each table, how many of its pairs are not English, how many translated sentences a
    language it learns from beside them, and what it stands on (models of `pretrain` that have read text)."""

    arms: Mapping[str, System]
    abroad: int = 0
    translated: int = 0
    stands_on: tuple[str, ...] = ()


def _arms(kind: type, given: Mapping[str, Any], updates: Mapping[str, Any], few: Mapping[str, Any]) -> dict[str, Any]:
    """The arms of the three budgets: as `given`; with other `updates` ({}: as many already); with other numbers of parameters."""
    return {name: kind(**_joined(given, more)) for name, more in zip(BUDGETS, ({}, updates, few), strict=True)}


def _joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two sets of settings, whose dictionaries are joined too."""
    both = dict(one) | dict(other)
    return both | {
        k: dict(one[k]) | dict(other[k]) for k in both if k in one and k in other and isinstance(other[k], Mapping)
    }


# The third table's number is that of an M3P of four layers, about 840,000 that are trainable at once. Of a dual
# encoder whose text side stays frozen only pooler and head learn; four layers more make it as large.
_LARGE = {"text": "frozen", "layers": 6}


def _paired(kind: str) -> dict[str, Any]:
    """The arms of a rival that is one dual encoder."""
    return _arms(Pairing, {"kind": kind, "pairs": PAIRS, "noise": NOISE}, {}, {"options": _LARGE})


COMPETITORS = {
    "MPM": Competitor(
        _arms(Chat, {"pairs": PAIRS}, {"options": {"steps": UPDATES}}, {"options": {"layers": 6}}),
        stands_on=("toy-multilingual",),
    ),
    "M3P": Competitor(
        _arms(Matching, {"pairs": PAIRS, "switch": {"words": 0.5}}, {"options": {"steps": UPDATES}}, {"layers": 4}),
    ),
    "MLA": Competitor(
        _arms(
            Acquiring,
            # 500 captions in each of nine languages, and English ones for the rest.
            {"english": PAIRS - 500 * OTHER_LANGUAGES, "pairs": 500, "parallel": 500, "noise": NOISE},
            {"english_options": {"steps": 600}, "options": {"transfer_steps": 750, "exposure_steps": 150}},
            {"english_options": _LARGE, "options": {"bottleneck": 64}},
        ),
        abroad=500 * OTHER_LANGUAGES, translated=500, stands_on=("toy-text-en",),
    ),
    "mBLIP": Competitor(
        _arms(
            Realigning,
            {"english": PAIRS // 2, "pairs": PAIRS // 2, "rule": "uniform", "noise": NOISE},
            {"english_options": {"steps": 450}, "generation_options": {"steps": 450},
             "options": {"warm_steps": 100, "steps": 500}},
            {"english_options": {"width": 104}},
        ),
        abroad=PAIRS // 2 * OTHER_LANGUAGES // (1 + OTHER_LANGUAGES),
        stands_on=("toy-english", "toy-multilingual"),
    ),
    "pivot": Competitor(_paired("pivot"), stands_on=("toy-text",)),
    "translate-train": Competitor(
        _paired("translate-train"), abroad=PAIRS * OTHER_LANGUAGES // (1 + OTHER_LANGUAGES), stands_on=("toy-text",)
    ),
    "translate-test": Competitor(_paired("translate-test"), stands_on=("toy-text-en",)),
    "teacher": Competitor(
        _arms(
            Pairing,
            {"kind": "teacher", "pairs": PAIRS, "parallel": 500, "noise": NOISE},
            {"english_options": {"steps": UPDATES // 2}, "options": {"steps": UPDATES // 2}},
            {"english_options": _LARGE},
        ),
        translated=500, stands_on=("toy-text-en", "toy-text"),
    ),
}  # fmt: skip


# One text for all. Steps beyond the first table's, so that English is learned: to be looked at on val before anything is tested.
_OF_ONE = {
    "MPM": {"lm": STRONG},
    "M3P": {"world": ONE_TEXT, "options": m3p_claims.LONG},
    "mBLIP": {"lm": STRONG, **mblip.LONG, "options": mblip.STEPS},
}
COMPETITORS = {
    name: replace(one, arms={**one.arms, SAME_TEXT: replace(one.arms["pairs"], **_OF_ONE.get(name, {"world": ONE_TEXT}))})
    for name, one in COMPETITORS.items()
}  # fmt: skip


def shelves(out: Path, study: str = "head_to_head") -> tuple[Shelf, Shelf]:
    """Where the rows of a comparison lie, and what its training cost."""
    name, command = study.replace("_", "-"), f"mpm-lite run {study}"
    return Shelf(out, f"{name}-rows", command), Shelf(out, f"{name}-costs", command, rounded=False)


@dataclass(frozen=True)
class Comparison(Trial):
    """A trial by the common task; in the first table by toy-IGLUE too, and in the last through captions."""

    iglue: bool = False
    captioned: bool = False

    def run(self, bench: Any = None) -> pd.DataFrame:
        """Train, let it choose captions, and return the rows."""
        bench, asked = bench or shared_bench(self.system), self.asked
        recipe = bench.train(self.system, self.seed)
        rows = bench.choose(recipe, self.seed, asked["split"], count=asked["count"])
        if self.captioned and isinstance(bench, Asking):
            rows = rows.merge(choose_by_caption(bench, recipe, rows, asked), on=["look", "language", "item"])
        if not self.iglue:
            return rows
        languages = bench.languages(recipe)
        more = choice.score_iglue(bench, recipe, self.seed, asked["split"], languages, count=asked["count"])
        return rows.merge(more[["look", "language", "item", *IGLUE]], on=["look", "language", "item"])


def choose_by_caption(bench: Any, recipe: Any, rows: pd.DataFrame, asked: Mapping[str, Any]) -> pd.DataFrame:
    """For a system that writes: does its own caption of a picture agree best with the picture, of the ten scenes? A line a look,
    language and picture of `rows`, with the column captioned; a tie counts by equal shares."""
    many, found = toyworld.split_scenes(asked["split"])[: asked["count"]], []
    candidates, items = exchanges.draw_candidates(many, seed=0), [scene.id for scene in many]
    for look in rows["look"].unique():
        soft = bench.soft(recipe, asked["split"], asked["count"], look)
        for language in rows["language"].unique():
            right = exchanges.score_choices(bench.agreements(recipe, soft, candidates, language))
            found.append(pd.DataFrame({"look": look, "language": language, "item": items, "captioned": right}))
    return pd.concat(found, ignore_index=True)


def comparison(competitor: Competitor, table: str, seed: int, split: str, count: int | None) -> Comparison:
    """A competitor's run in a table. Tables whose arms are the same have the same rows; toy-IGLUE is asked for the first table."""
    system = competitor.arms[table]
    iglue = system == competitor.arms.get(TABLES[0])
    asked, captioned = {"split": split, "count": count}, table == SAME_TEXT
    told = {"toy-IGLUE": iglue} | ({"through captions": True} if captioned else {})
    return Comparison(system, seed, asked, asked | told, iglue, captioned)


def score_table(rows: pd.DataFrame, draws: int = 2_000, metrics: Sequence[str] = (*SCORES, *IGLUE)) -> pd.DataFrame:
    """A line a system, metric and language, and one of all others' mean: value, interval, chance (blind), n."""
    found = []
    for name, of in rows.groupby("arm", sort=False):
        sample = Sample(of, draws)
        for metric in (m for m in metrics if m in of and of[m].notna().any()):
            figures: dict[str, tuple[Drawn, Drawn]] = {
                code: (sample.score(name, code, metric), sample.score(name, code, metric, "blind"))
                for code in dict.fromkeys(of["language"])
            }
            figures["others"] = tuple(
                average_figures(pair[k] for code, pair in figures.items() if code != "en") for k in (0, 1)
            )
            for language, (value, chance) in figures.items():
                line = {"system": name, "metric": metric, "language": language}
                found.append(line | value.interval.columns() | {"chance": chance.value, "n": sample.n})
    return pd.DataFrame(found)


def budget_row(name: str, table: str, costs: pd.DataFrame) -> dict[str, Any]:
    """A line: pairs, and how many of them are not English; updates in all, most parameters that are trainable at once, FLOPs of
    training; texts and translations that it, and what it stands on, has read."""
    competitor = COMPETITORS[name]
    return {
        "table": table, "system": name, "pairs": PAIRS, "abroad": competitor.abroad, "updates": int(costs["updates"].sum()),
        "trainable": int(costs["trainable"].max()), "flops": float(costs["flops"].sum()), **texts_read(competitor, table),
    }  # fmt: skip


def texts_read(competitor: Competitor, table: str = "pairs") -> dict[str, int]:
    """What a system, and what it stands on, has read: texts in one language, and translations."""
    ours = [name for name, _ in competitor.arms[table].models(0).values()] if table == SAME_TEXT else []
    pretrained = [texts_of(model) for model in ours or competitor.stands_on]
    own = 0 if competitor.stands_on else m3p.SENTENCES  # M3P reads its text itself
    return {
        "sentences": own + sum(one["sentences"] for one in pretrained),
        "translations": OTHER_LANGUAGES * competitor.translated + sum(one["translations"] for one in pretrained),
    }


def texts_of(model: str) -> dict[str, int]:
    """What a text model of `pretrain` has read, by its card: texts in one language, and pairs of translations."""
    asset = runtime.asset()
    if model.startswith("toy-text"):
        told = json.loads((asset / "towers" / model / "card.json").read_text())
        groups, scenes = (int(word) for word in told["data"].split() if word.isdigit())
        pairs = round(groups * scenes * told["translated"])
        return {"sentences": 2 * (groups * scenes - pairs), "translations": pairs}
    cards = [asset / "results" / "lm" / f"{model}-{seed}.json" for seed in catalogue.seeds(model)]
    every = [json.loads(card.read_text()) for card in cards]
    again = "captions_in_two_languages"  # pairs, and conversations that say a caption again; older cards know of pairs alone
    told = next((one for one in every if again in one), every[0])
    stages = [told, told["looking_up"]]
    pairs = sum(one.get(again, one["documents_by_kind"].get("parallel", 0)) for one in stages)
    whole = sum(sum(one["documents_by_kind"].values()) for one in stages)
    return {"sentences": whole - pairs, "translations": pairs}


def compare_systems(
    out: Path, seeds: int | None = None, split: str = "test", say: Say = silent, workers: int = 1, count: int = COUNT,
    tables: Sequence[str] = BUDGETS,
) -> list[Path]:  # fmt: skip
    """Train and test what is missing, in so many processes, table by table, and after each write OUT/head-to-head.csv,
    OUT/head-to-head-budgets.csv and a card of those that are whole; rows are kept under OUT, so that it goes on there."""
    version, many = commit(), range(FIRST_SEED, FIRST_SEED + (seeds or SEEDS))
    trials = [comparison(one, t, seed, split, count) for t in tables for one in COMPETITORS.values() for seed in many]
    check_models("head_to_head", trials, shelves(out)[0])  # said before hours of training
    scores: list[pd.DataFrame] = []
    budgets: list[dict[str, Any]] = []
    files: list[Path] = []
    for table in tables:
        rows, costs = run_comparison(COMPETITORS, table, many, split, count, shelves(out), say, workers)
        metrics = (*SCORES, *IGLUE) if table == TABLES[0] else SCORES
        scores.append(score_table(rows, metrics=metrics).assign(table=table))
        budgets += [budget_row(name, table, cost) for name, cost in costs.items()]
        every = {"head-to-head": pd.concat(scores, ignore_index=True), "head-to-head-budgets": pd.DataFrame(budgets)}
        card = {"split": split, "pairs": PAIRS, "updates": UPDATES, "tables": list(tables[: len(scores)])}
        files = write_study(out, "head_to_head", every, card, "head-to-head", version, many)
    return files


def run_comparison(
    competitors: Mapping[str, Competitor], table: str, seeds: Sequence[int], split: str, count: int | None,
    kept: tuple[Shelf, Shelf], say: Say = silent, workers: int = 1,
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:  # fmt: skip
    """A table's rows of all competitors and seeds, with a column `arm`, those that are missing first made; and what the first seed's
    training cost, by competitor."""
    shelf, costs = kept
    trials = {
        f"{name}, equal {table}, seed {seed}": comparison(competitor, table, seed, split, count)
        for seed in seeds
        for name, competitor in competitors.items()
    }
    run_trials(trials, shelf, workers, say, costs=costs)
    rows = join_trials(trials, [name for _ in seeds for name in competitors], shelf)
    first = dict(list(trials.items())[: len(competitors)])
    return rows, dict(zip(competitors, read_trials(first, costs).values(), strict=True))


# On real pictures.

TABLE = "real"
TEXT_ALONE = {"bottleneck": 96, "order": "transfer", "transfer_steps": 600}  # at equal pairs no picture is left for it


def _rival(kind: str, **given: Any) -> Competitor:
    shared = {"world": "real", "pairs": MOST, "parallel": MOST, "noise": 0.0, "options": DUAL}
    return Competitor({TABLE: Pairing(kind, LANGUAGES, **(shared | given))})


REAL_COMPETITORS = {
    "M3P": Competitor({TABLE: Matching(**REAL_M3P)}),
    "MLA": Competitor({TABLE: Acquiring(**REAL | {"pairs": 0, "options": TEXT_ALONE})}),
    "pivot": _rival("pivot"),
    "teacher": _rival("teacher", english_options=DUAL, options={"steps": 500, "lr": 1e-4}),
    "translate-train": _rival("translate-train"),
    "translate-test": _rival("translate-test"),
    "untranslated": _rival("untranslated"),
}


def compare_real(
    out: Path, seeds: int | None = None, split: str = "test", say: Say = silent, workers: int = 1
) -> list[Path]:
    """Train and test what is missing, in so many processes, and write OUT/head-to-head-real.csv and its card."""
    version, many, kept = commit(), range(FIRST_SEED, FIRST_SEED + (seeds or SEEDS)), shelves(out, "head_to_head_real")
    rows, costs = run_comparison(REAL_COMPETITORS, TABLE, many, split, None, kept, say, workers)
    spent = pd.DataFrame([
        {"system": name, "updates": cost["updates"].sum(), "trainable": cost["trainable"].max(), "flops": cost["flops"].sum()}
        for name, cost in costs.items()
    ])  # fmt: skip
    table = score_table(rows, metrics=("recall", "choice")).merge(spent, on="system")
    card = {"split": split, "pictures": len(real_captions("train"))}
    return write_study(out, "head_to_head_real", {"head-to-head-real": table}, card, "head-to-head-real", version, many)


# Painters.

PAINTED = ("attributes", "bound", "one", "pair", "r_precision", "fid", "kid")
TENTH, HALF = 2_400, 12_000  # of the 24,000 training pictures


def painter_table(rows: pd.DataFrame, draws: int = 2_000) -> pd.DataFrame:
    """A line a rival, language and metric: value with its interval; chance, which is what another scene's prompt scores."""
    sample, found = Sample(rows, draws), []
    for arm in dict.fromkeys(rows["arm"]):
        for language in grammar.LANGUAGES:
            for metric in PAINTED:
                of, chance = (sample.score(arm, language, metric, look).interval for look in ("real", "wrong"))
                line = {"arm": arm, "language": language, "metric": metric}
                found.append(line | of.columns() | {"chance": chance.value, "n": sample.n})
    return pd.DataFrame(found)


PAINTERS = Study(
    "mpm_paint_rivals",
    "paint",
    {
        "MPM": Paint(),
        "MPM, best of four": Paint(),
        "MPM, a tenth of the pairs": Paint(pairs=TENTH),
        "Chinese pairs": Paint(languages=("zh",)),
        "Chinese pairs, a tenth": Paint(languages=("zh",), pairs=TENTH),
        "MPM, half the pairs": Paint(pairs=HALF),
        "nine languages' pairs on top of that": Paint(pairs=HALF, also=OTHERS, also_pairs=HALF),
        "MPM, states behind layer 1": Paint(layer=1),
        "from scratch": Paint(start="", options={"learns": "all"}),
        "e5-small": Paint("e5-small"),
        "minilm-en, the floor": Paint("minilm-en"),
        "re-mapped by text": Remapped(),
    },
    lambda rows: {"paint": painter_table(rows)},
    asked={"looks": ("real", "wrong"), "count": COUNT, "as_sets": True},
    asked_of={"MPM, best of four": {"best_of": 4}},
    card=lambda arms: {"options": asdict(Paint().recipe_options)},
)
