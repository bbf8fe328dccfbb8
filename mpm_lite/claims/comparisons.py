"""The four systems and their rivals under one budget: on the toy world, on real pictures, and as painters.

*On the toy world*, by the task that all can do: which caption belongs to the picture?

    mpm-lite run head_to_head --seeds 3 --out assets/results

Three tables: equal image-caption pairs, English ones and translated ones together, each system with updates and parameters
of its own; as many updates besides; as many parameters that learn besides. Beside the scores stands what each system cost
and what it read. A system is a `System`: whatever has a bench (`choice.Pictured`), and an arm for each table, joins in.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mpm_lite.claims.mpm import OTHERS
from mpm_lite.core import runtime
from mpm_lite.core.keys import Key
from mpm_lite.core.provenance import commit
from mpm_lite.core.runtime import run as share_out
from mpm_lite.core.store import Shelf, learned, name_of, write_table, written
from mpm_lite.data.toyworld import grammar
from mpm_lite.evaluation import choice
from mpm_lite.evaluation.stats import Drawn, Sample, mean
from mpm_lite.experiments import m3p, mblip, mla, mpm_chat, rivals
from mpm_lite.experiments.experiment import FIRST_SEED, rows_key
from mpm_lite.experiments.m3p import Matching
from mpm_lite.experiments.mblip import Realigning
from mpm_lite.experiments.mla import Acquiring
from mpm_lite.experiments.mpm_chat import Chat
from mpm_lite.experiments.mpm_paint import Paint, PaintBench, encoder_of, kept_file
from mpm_lite.experiments.rivals import Pairing
from mpm_lite.experiments.worlds import (
    DUAL,
    LANGUAGES,
    MOST,
    REAL,
    REAL_M3P,
    AcquiringReal,
    MatchingReal,
    PairingReal,
    captions,
    data_key,
)
from mpm_lite.recipes.baselines import Glue, Glued, GlueOptions, Translated
from mpm_lite.recipes.modules import diffusion
from mpm_lite.recipes.mpm_paint import MpmPaint
from mpm_lite.training import cost, loop

COUNT = 100  # pictures of test
PAIRS = 12_000  # image-caption pairs in all, whatever their languages
UPDATES = 1_500  # in the second table
NOISE = 0.05  # of the translator that made what is not English, for whoever reads it (M3P reads a dictionary)
TABLES = ("pairs", "updates", "parameters")
SCORES = ("choice", "hard")
IGLUE = ("retrieval", "true", "either", "english")
OTHER_LANGUAGES = len(OTHERS)


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
        mpm_chat.ChatBench,
        _arms(Chat, {"pairs": PAIRS}, {"options": {"steps": UPDATES}}, {"options": {"layers": 6}}),
        stands_on=("toy-multilingual",),
    ),
    "M3P": System(
        m3p.M3pBench,
        _arms(Matching, {"pairs": PAIRS, "switch": {"words": 0.5}}, {"options": {"steps": UPDATES}}, {"layers": 4}),
    ),
    "MLA": System(
        mla.MlaBench,
        _arms(
            Acquiring,
            # 500 captions in each of nine languages, and English ones for the rest.
            {"english": PAIRS - 500 * OTHER_LANGUAGES, "pairs": 500, "parallel": 500, "noise": NOISE},
            {"english_options": {"steps": 600}, "options": {"transfer_steps": 750, "exposure_steps": 150}},
            {"english_options": _LARGE, "options": {"bottleneck": 64}},
        ),
        abroad=500 * OTHER_LANGUAGES,
        translated=500,
        stands_on=("toy-text-en",),
    ),
    "mBLIP": System(
        mblip.MblipBench,
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
        abroad=PAIRS // 2 * OTHER_LANGUAGES // (1 + OTHER_LANGUAGES),
        stands_on=("toy-english", "toy-multilingual"),
    ),
    "pivot": System(
        rivals.RivalBench,
        _paired("pivot"),
        stands_on=("toy-text",),
    ),
    "translate-train": System(
        rivals.RivalBench,
        _paired("translate-train"),
        abroad=PAIRS * OTHER_LANGUAGES // (1 + OTHER_LANGUAGES),
        stands_on=("toy-text",),
    ),
    "translate-test": System(
        rivals.RivalBench,
        _paired("translate-test"),
        stands_on=("toy-text-en",),
    ),
    "teacher": System(
        rivals.RivalBench,
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
        with cost.kept() as book:
            recipe = bench.train(arm, seed)
        rows = bench.choose(recipe, seed, split, count=count)
        if _first(system, table):
            more = choice.scores(bench, recipe, seed, split, bench.languages(recipe), count=count)
            rows = rows.merge(more[["look", "language", "item", *IGLUE]], on=["look", "language", "item"])
        costs.put(which, cost.table(book))
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
    own = 0 if system.stands_on else m3p.SENTENCES  # M3P reads its text itself
    return {
        "sentences": own + sum(one["sentences"] for one in pretrained),
        "translations": OTHER_LANGUAGES * system.translated + sum(one["translations"] for one in pretrained),
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


# On real pictures.

TABLE = "real"
TEXT_ALONE = {"bottleneck": 96, "order": "transfer", "transfer_steps": 600}  # at equal pairs no picture is left for it


def _rival(kind: str, **given: object) -> System:
    shared = {"world": "real", "pairs": MOST, "parallel": MOST, "noise": 0.0, "options": DUAL}
    return System(PairingReal, {TABLE: Pairing(kind, LANGUAGES, **(shared | given))}, data=data_key)


REAL_SYSTEMS = {
    "M3P": System(MatchingReal, {TABLE: Matching(**REAL_M3P)}, data=data_key),
    "MLA": System(AcquiringReal, {TABLE: Acquiring(**REAL | {"pairs": 0, "options": TEXT_ALONE})}, data=data_key),
    "pivot": _rival("pivot"),
    "teacher": _rival("teacher", english_options=DUAL, options={"steps": 500, "lr": 1e-4}),
    "translate-train": _rival("translate-train"),
    "translate-test": _rival("translate-test"),
    "untranslated": _rival("untranslated"),
}


def run_real(
    out: Path, seeds: int = 3, split: str = "test", say: Callable[[str], None] = lambda line: None,
    systems: Sequence[str] = tuple(REAL_SYSTEMS), workers: int = 1,
) -> list[Path]:  # fmt: skip
    """Train and test what is missing, in so many processes, and write OUT/head-to-head-real.csv and its card."""
    version, many, kept = commit(), range(FIRST_SEED, FIRST_SEED + seeds), shelves(out, "head_to_head_real")
    found = gathered(REAL_SYSTEMS, systems, TABLE, many, split, None, kept, say, workers)
    table = scored(found.rows, metrics=("recall", "choice"))
    spent = pd.DataFrame([
        {"system": name, "updates": cost["updates"].sum(), "trainable": cost["trainable"].max(), "flops": cost["flops"].sum()}
        for name, cost in found.costs.items()
    ])  # fmt: skip
    card = {"split": split, "pictures": len(captions("train"))}
    return written(out, "head_to_head_real", {"head-to-head-real": table.merge(spent, on="system")}, card,
                   "head-to-head-real", version, many)  # fmt: skip


# Painters.

PAINTED_SCENES = 100  # pictures of test
METRICS = ("attributes", "bound", "one", "pair", "r_precision", "fid", "kid")
TENTH, HALF = 2_400, 12_000  # of the 24,000 training pictures


@dataclass(frozen=True)
class Rival:
    """An arm, how many pictures it paints to keep one, and whether it is re-mapped by text alone instead of re-aligned."""

    arm: Paint
    best_of: int = 1
    glued: bool = False


RIVALS = {
    "MPM": Rival(Paint()),
    "MPM, best of four": Rival(Paint(), best_of=4),
    "MPM, a tenth of the pairs": Rival(Paint(pairs=TENTH)),
    "Chinese pairs": Rival(Paint(languages=("zh",))),
    "Chinese pairs, a tenth": Rival(Paint(languages=("zh",), pairs=TENTH)),
    "MPM, half the pairs": Rival(Paint(pairs=HALF)),
    "nine languages' pairs on top of that": Rival(Paint(pairs=HALF, also=OTHERS, also_pairs=HALF)),
    "MPM, states behind layer 1": Rival(Paint(layer=1)),
    "from scratch": Rival(Paint(start="", options={"learns": "all"})),
    "e5-small": Rival(Paint("e5-small")),
    "minilm-en, the floor": Rival(Paint("minilm-en")),
    "re-mapped by text": Rival(Paint(), glued=True),
}


def glued(bench: PaintBench, arm: Paint, seed: int, options: GlueOptions = GlueOptions()) -> MpmPaint:
    """The painter as it was pretrained, reading an arm's text model through states re-mapped into its own encoder's; the
    re-mapping learned from the arm's prompts alone, computed or read back from MPM_LITE_HOME/painted."""
    pipe, new = (
        diffusion.load_painter(runtime.asset() / diffusion.TOY),
        encoder_of(arm.encoder, arm.encoder_seed, seed, arm.layer),
    )
    prompts, old = bench.pairs(arm, seed), pipe.prompt_encoder
    wanted = old.cached(prompts, bench.progress)
    torch.manual_seed(seed)
    glue = Glue(new.width, wanted, options)
    key = glue_key(new, old, options, seed, prompts)

    def learn(work: Path) -> dict[str, torch.Tensor]:
        plan = loop.Plan(seed, work, 250, progress=bench.progress, label=f"re-mapping, seed {seed}")
        loop.fit(glue, Translated(new.cached(prompts, bench.progress), wanted), plan)
        return glue.state_dict()

    glue.load_state_dict(learned(kept_file(key), learn, key))
    recipe = MpmPaint(pipe.unet.float(), old.width)
    recipe.painter.load_state_dict({f"unet.{k}": v for k, v in pipe.unet.state_dict().items()}
                                   | {f"bridge.{k}": v for k, v in pipe.bridge.float().state_dict().items()})  # fmt: skip
    recipe.encoder = Glued(new, glue.eval())
    return recipe.eval()


def glue_key(new: Any, old: Any, options: GlueOptions, seed: int, prompts: Sequence[str]) -> Key:
    """Everything that a re-mapping of a prompt encoder's states into another's depends on."""
    decides = {
        "prompt encoder": new.fingerprint,
        "painter's prompt encoder": old.fingerprint,
        "options": json.dumps(asdict(options), sort_keys=True),
        "seed": str(seed),
        "prompts": list(prompts),
    }
    return Key("weights of a re-mapping", decides)


def painter_items(rival: Rival, bench: PaintBench, seed: int, split: str, count: int) -> pd.DataFrame:
    """The rows of a rival and a seed: computed, or read back."""
    told = {"rival": json.dumps(asdict(rival), sort_keys=True), "split": split, "count": str(count), "seed": str(seed)}
    key = Key("rows of painted pictures", told | {"weights": bench.key(rival.arm, seed).digest})
    path = runtime.home() / "painted" / f"items-{key.digest[:16]}.parquet"
    if not path.exists():
        recipe = (glued if rival.glued else PaintBench.train)(bench, rival.arm, seed)
        rows = bench.test(
            recipe, seed, split, looks=("real", "wrong"), count=count, best_of=rival.best_of, as_sets=True
        )
        write_table(path, rows, key, index=False)
    return pd.read_parquet(path)


def table(rows: pd.DataFrame, draws: int = 2_000) -> pd.DataFrame:
    """A line a rival, language and metric: value with its interval; chance, which is what another scene's prompt scores."""
    sample, found = Sample(rows, draws), []
    for arm in dict.fromkeys(rows["arm"]):
        for language in grammar.LANGUAGES:
            for metric in METRICS:
                of, chance = (sample.score(arm, language, metric, look).interval for look in ("real", "wrong"))
                line = {"arm": arm, "language": language, "metric": metric, "value": of.value, "low": of.low}
                found.append(line | {"high": of.high, "chance": chance.value, "n": sample.n})
    return pd.DataFrame(found)


def run_painters(
    out: Path, seeds: int = 3, split: str = "test", count: int = PAINTED_SCENES, say: Callable[[str], None] = lambda line: None,
    rivals: Sequence[str] = tuple(RIVALS),
) -> list[Path]:  # fmt: skip
    """Train and test what is missing and write OUT/paint.csv and its card. Seeds come first: after one round of all rivals
    there is one seed of everything."""
    bench, version, frames = PaintBench(), commit(), []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for name in rivals:
            say(f"{name}, seed {seed}")
            frames.append(painter_items(RIVALS[name], bench, seed, split, count).assign(arm=name))
    card = {"split": split, "options": asdict(Paint().recipe_options)}
    rows, many = table(pd.concat(frames, ignore_index=True)), range(FIRST_SEED, FIRST_SEED + seeds)
    return written(out, "mpm_paint_rivals", {"paint": rows}, card, "paint", version, many)
