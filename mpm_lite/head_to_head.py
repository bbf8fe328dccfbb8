"""The four systems and their rivals under one budget, by the task that all can do: which caption belongs to the picture?

    mpm-lite run head_to_head --seeds 3 --out assets/results

Three tables: equal image-caption pairs, English ones and translated ones together, each system with updates and parameters
of its own; as many updates besides; as many parameters that learn besides. Beside the scores stands what each system cost
and what it read. A system is a `System`: whatever has a bench (`choosing.Pictured`) and an arm a table joins in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mpm_lite import accounts, acquiring, chat, iglue, matching, pairing, realigning, runtime
from mpm_lite.acquiring import Acquiring
from mpm_lite.chat import Chat
from mpm_lite.claims import FIRST_SEED
from mpm_lite.claims_chat import OTHERS
from mpm_lite.judging import Drawn, Sample, mean
from mpm_lite.keys import Key
from mpm_lite.matching import Matching
from mpm_lite.packing import Shelf, name_of, rows_key
from mpm_lite.pairing import Pairing
from mpm_lite.realigning import Realigning
from mpm_lite.studies import commit, written
from mpm_lite.workers import run as share_out

COUNT = 100  # pictures of test
PAIRS = 12_000  # image-caption pairs in all, whatever their languages
UPDATES = 1_500  # in the second table
NOISE = 0.05  # of the translator that made what is not English, for whoever reads it (M3P reads a dictionary)
TABLES = ("pairs", "updates", "parameters")
SCORES = ("choice", "hard")
IGLUE = ("retrieval", "true", "either", "english")
LANGUAGES = len(OTHERS)


@dataclass(frozen=True)
class System:
    """One that is compared: its bench, its arm in each table, how many of its pairs are not English, how many
    translated sentences a language it learns from beside them, what it stands on (models of `pretrain` that have
    read text), and, where its world is not the toy world, what decides the data of a split."""

    bench: Callable[[], Any]
    arms: Mapping[str, Any]
    abroad: int = 0
    translated: int = 0
    stands_on: tuple[str, ...] = ()
    data: Callable[[str], Mapping[str, str]] | None = None


def _arms(kind: type, given: Mapping[str, Any], updates: Mapping[str, Any], few: Mapping[str, Any]) -> dict[str, Any]:
    """The arms of the three tables: as `given`; with other `updates` ({}: as many already); with other numbers of parameters."""
    return {name: kind(**_joined(given, more)) for name, more in zip(TABLES, ({}, updates, few), strict=True)}


def _joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two sets of settings, whose dictionaries are joined too."""
    both = dict(one) | dict(other)
    return both | {
        k: dict(one[k]) | dict(other[k]) for k in both if k in one and k in other and isinstance(other[k], Mapping)
    }


# The third table's number is that of an M3P of four layers, about 840,000 that learn at a time. Of a dual
# encoder whose text side stays frozen only pooler and head learn; four layers more make it as large.
_LARGE = {"text": "frozen", "layers": 6}


def _paired(kind: str) -> dict[str, Any]:
    """The arms of a rival that is one dual encoder."""
    return _arms(Pairing, {"kind": kind, "pairs": PAIRS, "noise": NOISE}, {}, {"options": _LARGE})


SYSTEMS = {
    "MPM": System(
        chat.Bench,
        _arms(Chat, {"pairs": PAIRS}, {"options": {"steps": UPDATES}}, {"options": {"layers": 6}}),
        stands_on=("toy-multilingual",),
    ),
    "M3P": System(
        matching.Bench,
        _arms(Matching, {"pairs": PAIRS, "switch": {"words": 0.5}}, {"options": {"steps": UPDATES}}, {"layers": 4}),
    ),
    "MLA": System(
        acquiring.Bench,
        _arms(
            Acquiring,
            # 500 captions in each of nine languages, and English ones for the rest.
            {"english": PAIRS - 500 * LANGUAGES, "pairs": 500, "parallel": 500, "noise": NOISE},
            {"english_options": {"steps": 600}, "options": {"transfer_steps": 750, "exposure_steps": 150}},
            {"english_options": _LARGE, "options": {"bottleneck": 64}},
        ),
        abroad=500 * LANGUAGES,
        translated=500,
        stands_on=("toy-text-en",),
    ),
    "mBLIP": System(
        realigning.Bench,
        _arms(
            Realigning,
            {"english": PAIRS // 2, "pairs": PAIRS // 2, "rule": "uniform", "noise": NOISE},
            {
                "english_options": {"steps": 450},
                "generation_options": {"steps": 450},
                "options": {"warm_steps": 100, "steps": 500},
            },
            {"english_options": {"width": 104}},
        ),
        abroad=PAIRS // 2 * LANGUAGES // (1 + LANGUAGES),
        stands_on=("toy-english", "toy-multilingual"),
    ),
    "pivot": System(
        pairing.Bench,
        _paired("pivot"),
        stands_on=("toy-text",),
    ),
    "translate-train": System(
        pairing.Bench,
        _paired("translate-train"),
        abroad=PAIRS * LANGUAGES // (1 + LANGUAGES),
        stands_on=("toy-text",),
    ),
    "translate-test": System(
        pairing.Bench,
        _paired("translate-test"),
        stands_on=("toy-text-en",),
    ),
    "teacher": System(
        pairing.Bench,
        _arms(
            Pairing,
            {"kind": "teacher", "pairs": PAIRS, "parallel": 500, "noise": NOISE},
            {"english_options": {"steps": UPDATES // 2}, "options": {"steps": UPDATES // 2}},
            {"english_options": _LARGE},
        ),
        translated=500,
        stands_on=("toy-text-en", "toy-text"),
    ),
}  # fmt: skip


def shelves(out: Path, study: str = "head_to_head") -> tuple[Shelf, Shelf]:
    """Where the rows of a comparison lie, and what its training cost."""
    name, command = study.replace("_", "-"), f"mpm-lite run {study}"
    return Shelf(out, f"{name}-rows", command), Shelf(out, f"{name}-costs", command, rounded=False)


def key(system: System, table: str, seed: int, split: str, count: int | None) -> Key:
    """What decides a run's rows; tables whose arms are the same have the same rows."""
    told = {"split": split, "count": count, "toy-IGLUE": _first(system, table)}
    return rows_key(system.arms[table], seed, told, system.data(split) if system.data else None)


def _first(system: System, table: str) -> bool:
    """Whether a run belongs to the first table, where toy-IGLUE is asked too."""
    return system.arms[table] == system.arms.get(TABLES[0])


def items(
    system: System, table: str, seed: int, split: str, count: int | None, kept: tuple[Shelf, Shelf]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of a system in a table with a seed, in the first table with those of toy-IGLUE, and what its training cost:
    computed, or read back from where they are `kept`, which no session's end empties."""
    arm, which, (scores, costs) = system.arms[table], key(system, table, seed, split, count), kept
    name = name_of(which)
    if scores.missing([name]):
        bench = system.bench()
        with accounts.kept() as book:
            recipe = bench.train(arm, seed)
        rows = bench.choose(recipe, seed, split, count=count)
        if _first(system, table):
            more = iglue.scores(bench, recipe, seed, split, bench.languages(recipe), count=count)
            rows = rows.merge(more[["look", "language", "item", *IGLUE]], on=["look", "language", "item"])
        costs.put(which, accounts.table(book))
        scores.put(which, rows)
    what = {name: f"{type(arm).__name__}, equal {table}, seed {seed}"}
    return scores.read(what)[name], costs.read(what)[name]


def scored(rows: pd.DataFrame, draws: int = 2_000, metrics: Sequence[str] = (*SCORES, *IGLUE)) -> pd.DataFrame:
    """A line a system, metric and language, and one of all others' mean: value, interval, chance (blind), n."""
    found = []
    for name, of in rows.groupby("arm", sort=False):
        sample = Sample(of, draws)
        for metric in (m for m in metrics if m in of and of[m].notna().any()):
            figures: dict[str, tuple[Drawn, Drawn]] = {
                code: (sample.score(name, code, metric), sample.score(name, code, metric, "blind"))
                for code in dict.fromkeys(of["language"])
            }
            figures["others"] = tuple(mean(pair[k] for code, pair in figures.items() if code != "en") for k in (0, 1))
            for language, (value, chance) in figures.items():
                of_value = value.interval
                line = {"system": name, "metric": metric, "language": language, "value": of_value.value}
                found.append(line | {"low": of_value.low, "high": of_value.high, "chance": chance.value, "n": sample.n})
    return pd.DataFrame(found)


def budget(name: str, costs: pd.DataFrame) -> dict[str, Any]:
    """A line: pairs, and how many of them are not English; updates in all, most parameters that learn at a time, FLOPs of
    training; texts and translations that it, and what it stands on, has read."""
    system = SYSTEMS[name]
    return {
        "system": name, "pairs": PAIRS, "abroad": system.abroad, "updates": int(costs["updates"].sum()),
        "trainable": int(costs["trainable"].max()), "flops": float(costs["flops"].sum()), **texts(system),
    }  # fmt: skip


def texts(system: System) -> dict[str, int]:
    """What a system, and what it stands on, has read: texts in one language, and translations."""
    pretrained = [read(model) for model in system.stands_on]
    own = 0 if system.stands_on else matching.SENTENCES  # M3P reads its text itself
    return {
        "sentences": own + sum(one["sentences"] for one in pretrained),
        "translations": LANGUAGES * system.translated + sum(one["translations"] for one in pretrained),
    }


def read(model: str) -> dict[str, int]:
    """What a text model of `pretrain` has read, by its card: texts in one language, and pairs of translations."""
    asset = runtime.asset()
    if model.startswith("toy-text"):
        told = json.loads((asset / "towers" / model / "card.json").read_text())
        groups, scenes = (int(word) for word in told["data"].split() if word.isdigit())
        pairs = round(groups * scenes * told["translated"])
        return {"sentences": 2 * (groups * scenes - pairs), "translations": pairs}
    told = json.loads((asset / "results" / "lm" / f"{model}-0.json").read_text())
    kinds = [told["documents_by_kind"], told["looking_up"]["documents_by_kind"]]
    pairs = sum(one.get("parallel", 0) for one in kinds)
    return {"sentences": sum(sum(one.values()) for one in kinds) - pairs, "translations": pairs}


def run(
    out: Path, seeds: int = 3, split: str = "test", count: int = COUNT, say: Callable[[str], None] = lambda line: None,
    systems: Sequence[str] = tuple(SYSTEMS), tables: Sequence[str] = TABLES, workers: int = 1,
) -> list[Path]:  # fmt: skip
    """Train and test what is missing, in so many processes, table by table, and after each write OUT/head-to-head.csv,
    OUT/head-to-head-budgets.csv and a card of those that are whole; rows are kept under OUT, so that it goes on there."""
    version, many = commit(), range(FIRST_SEED, FIRST_SEED + seeds)
    scores: list[pd.DataFrame] = []
    budgets: list[dict[str, Any]] = []
    files: list[Path] = []
    for table in tables:
        found = gathered(SYSTEMS, systems, table, many, split, count, shelves(out), say, workers)
        metrics = (*SCORES, *IGLUE) if table == TABLES[0] else SCORES
        scores.append(scored(found.rows, metrics=metrics).assign(table=table))
        budgets += [{"table": table, **budget(name, cost)} for name, cost in found.costs.items()]
        every = {"head-to-head": pd.concat(scores, ignore_index=True), "head-to-head-budgets": pd.DataFrame(budgets)}
        card = {"split": split, "pairs": PAIRS, "updates": UPDATES, "tables": list(tables[: len(scores)])}
        files = written(out, "head_to_head", every, card, "head-to-head", version, many)
    return files


@dataclass(frozen=True)
class Gathered:
    """The rows of all systems and seeds, with a column `arm`, and what the first seed's training cost, by system."""

    rows: pd.DataFrame
    costs: dict[str, pd.DataFrame]


def gathered(
    every: Mapping[str, System], names: Sequence[str], table: str, seeds: Sequence[int], split: str, count: int | None,
    kept: tuple[Shelf, Shelf], say: Callable[[str], None], workers: int = 1,
) -> Gathered:  # fmt: skip
    """A table's runs, those that are missing first made. Seeds come first; among several workers systems do: what one seed of
    two systems shares is then not waited for."""
    pairs = [(name, seed) for seed in seeds for name in names]
    pairs = sorted(pairs, key=lambda pair: names.index(pair[0])) if workers > 1 else pairs
    told = {pair: (every[pair[0]], table, pair[1], split, count, kept) for pair in pairs}
    keys = {pair: name_of(key(*told[pair][:-1])) for pair in pairs}
    missing = set(kept[0].missing(keys.values()))
    jobs = {f"{n}, equal {table}, seed {s}": (items, told[n, s]) for n, s in pairs if keys[n, s] in missing}
    share_out(jobs, workers, say)
    found = {pair: items(*told[pair]) for pair in pairs}
    rows = [rows.assign(arm=name) for (name, _), (rows, _) in found.items()]
    return Gathered(pd.concat(rows, ignore_index=True), {name: found[name, seeds[0]][1] for name in names})
