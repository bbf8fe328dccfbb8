"""Experiment: one hypothesis as data, for every system. It trains a recipe, tests it in many languages, returns `Results`.

mpm.Experiment(text="e5-small").run()                                      two towers, aligned
mpm.Experiment("mpm_chat", lm="toy-mixed", pairs=6_000, seeds=1).run()     a system of the papers, on the toy world
mpm.Experiment(MySystem, options={"width": 64}).run()                      one's own, a file of a `System`
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mpm_lite.core import runtime
from mpm_lite.core.keys import KEY, Key, UnreadableCode
from mpm_lite.core.runtime import UserError, unknown, whole_number
from mpm_lite.core.store import check_writable
from mpm_lite.experiments.alignment import CONDITIONS, AlignBench, Alignment, Where, image_tower, plain, text_tower
from mpm_lite.experiments.results import Results
from mpm_lite.experiments.system import System, Trial, shared_bench
from mpm_lite.ops import distributed
from mpm_lite.recipes import RECIPES, Recipe, recipe_class
from mpm_lite.training import loop

__all__ = ["SYSTEMS", "Experiment", "image_tower", "plain", "system_class", "text_tower"]
FIRST_SEED, SEEDS = 20, 5  # of studies and comparisons; the ledger has its own: no dial was chosen with these seeds
SYSTEMS = ("mpm_chat", "mpm_paint", "m3p", "mla", "mblip", "rival")


class Usual(str):
    """The default of a field, so that it can be told from the same word when that is given."""


class UsualPlace(tuple):
    """The same for a field that holds several things."""


def system_class(recipe: str | type) -> type[System]:
    """The class of the system that a recipe's name, its class, or a Python file with one in it belongs to. Raises UserError with
    the nearest name for one that nobody knows."""
    if in_file(recipe):
        recipe = load_class(recipe)
    if isinstance(recipe, type):
        if issubclass(recipe, System):
            return recipe
        if issubclass(recipe, Recipe):
            return Alignment
    if recipe in RECIPES:
        return Alignment
    if recipe not in SYSTEMS:
        raise unknown("recipe", recipe, [*RECIPES, *SYSTEMS])
    # Each is loaded when it is asked for: painters bring diffusers with them, which takes seconds.
    match recipe:
        case "mpm_chat":
            from mpm_lite.experiments.mpm_chat import Chat as Found
        case "mpm_paint":
            from mpm_lite.experiments.mpm_paint import Paint as Found
        case "m3p":
            from mpm_lite.experiments.m3p import Matching as Found
        case "mla":
            from mpm_lite.experiments.mla import Acquiring as Found
        case "mblip":
            from mpm_lite.experiments.mblip import Realigning as Found
        case _:
            from mpm_lite.experiments.rivals import Pairing as Found
    return Found


def in_file(recipe: Any) -> bool:
    """Whether a recipe is given as the Python file that has it, FILE.py or FILE.py:NAME."""
    return isinstance(recipe, str) and recipe.partition(":")[0].endswith(".py")


def option_names(recipe: str | type) -> set[str]:
    """What an experiment's `options` may hold: the options of a recipe of two towers, or the settings of a system."""
    kind = system_class(recipe)
    return set(recipe_class(recipe).Options.__dataclass_fields__ if kind is Alignment else kind.settings())


def load_class(path: str) -> type:
    """The one recipe or system of a Python file of one's own, or that which FILE.py:NAME names. Raises UserError where the file
    is not there, does not run, or has none of that name, or several."""
    file, _, name = path.partition(":")
    if not Path(file).is_file():
        raise UserError(f"{file} is not there: give the path of a Python file with a recipe or a system in it.")
    # No module of that name is displaced.
    spec = importlib.util.spec_from_file_location(f"_own_{Path(file).stem}", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{file} does not run: {type(error).__name__}: {error}") from error
    here = [of for of in vars(module).values() if isinstance(of, type) and of.__module__ == spec.name]
    found = {of.__name__: of for of in here if issubclass(of, System)}
    found = found or {of.__name__: of for of in here if issubclass(of, Recipe)}
    if name and name not in found:
        raise unknown(f"class of {file}", name, found)
    if not name and len(found) != 1:
        raise UserError(f"{file} has {len(found)} recipes or systems: name one, as {file}:NAME.")
    kind = found[name or next(iter(found))]
    if issubclass(kind, System) and ("__dataclass_fields__" not in vars(kind) or inspect.isabstract(kind)):
        raise UserError(
            f"{file}: a System such as {kind.__name__} needs @dataclass(frozen=True) above it, and a bench()."
        )
    if not hasattr(kind, "Options"):
        raise UserError(f"{file}: {kind.__name__} needs Options, the dataclass of its recipe's options.")
    return kind


@dataclass(frozen=True)
class Experiment:
    """What is trained on what and tested on what. Every field has a default; `run()` returns `Results`.

    recipe: "align", a system of the papers ("mpm_chat", "mpm_paint", "m3p", "mla", "mblip", ...), or one's own: a `Recipe`
    of two towers or a `System`, as a class or as the Python file that has it.

    For two towers: val is where the best step is chosen; None chooses nothing, takes the last step, and trains on train + val
    together (the last fit, after every choice was made). pairs: how many training pairs a language (None = all), one number
    or {"en": None, "zh": 300} for some of the training languages; smaller numbers are subsets of larger ones for the same
    seed. require: train only on pictures that have a caption in these languages too (so that two languages can be compared
    on the same pictures). translator: "apertium" or "gloss" turns captions that are asked with into English first
    (`data.translators`). condition: real | shuffled (training pairs permuted) | blind (one picture for all) | random-image
    (noise instead of features). load_options: what `load_captions` is told of sets of one's own (columns, revision,
    skip_bad); packaged sets beside them need none.

    For a system: `options` holds its settings, the fields of its class and the options of its recipe in one dictionary; what
    has the name of a field here (lm, image, pairs, steps, ...) may be given by itself. `asked`: what it is asked, {"split": "val", "count": 100}; of val
    unless it says otherwise.

    Raises UserError on any unknown name, with the nearest known one, and on a number that is none of its kind (steps, seeds
    and pairs are whole numbers of at least 1).
    """

    recipe: str | type[Recipe] | type[System] = "align"
    text: Any = Usual("use-m")
    image: Any = Usual("efficientnet-lite1")
    lm: str | None = None
    train: Where = UsualPlace(("emoji+stamps+clipart", ["en"]))
    val: Where | None = UsualPlace(("emoji+stamps", None))  # None in place of the languages: those of training
    test: Where | list[Where] = UsualPlace(("stamps", "all"))
    pairs: int | dict[str, int | None] | None = None
    steps: int | None = None
    seed: int = 0
    seeds: int = 3
    device: str | None = None
    condition: str = Usual("real")
    require: tuple[str, ...] = UsualPlace()
    translator: str | None = None
    pivot: str = Usual("en")
    options: dict[str, Any] = field(default_factory=dict)
    load_options: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("seeds", "seed", "steps", "pairs"):  # numbers from numpy are whole numbers too
            if (value := getattr(self, name)) is not None and not isinstance(value, Mapping):
                object.__setattr__(self, name, whole_number(name, value, int(name != "seed")))
        if in_file(self.recipe):
            object.__setattr__(self, "recipe", load_class(self.recipe))
        if not isinstance(self.recipe, (str, type)):
            kind = type(self.recipe).__name__
            raise UserError(
                f"recipe takes a name or a class, and its settings go into options: give {kind}, not one of it."
            )
        if not isinstance(self.asked, Mapping):
            raise UserError("asked takes a dictionary, such as {'split': 'val', 'count': 100}.")
        if not isinstance(self.options, Mapping):
            raise UserError("options and load_options take a dictionary, such as {'lr': 0.001}.")
        object.__setattr__(self, "asked", {name: _several(name, value) for name, value in self.asked.items()})
        self.system  # noqa: B018  what is wrong with it is to be told now

    @cached_property
    def system(self) -> System:
        """The system with its dials as this experiment sets them."""
        kind = system_class(self.recipe)
        if kind is Alignment:
            self._refuse(("lm", "asked"))
            return Alignment(**{f.name: getattr(self, f.name) for f in fields(Alignment)})
        own = kind.settings()
        passed = {name: getattr(self, name) for name in self.given if name in own and name not in _OF_EVERY}
        self._refuse([name for name in _DEFAULTS if name not in own and name not in _OF_EVERY])
        if twice := sorted(passed.keys() & self.options.keys()):
            raise UserError(f"{twice[0]} is given twice, by itself and in options: give it once.")
        system = kind.build(dict(self.options) | passed)
        system.check_questions(self.asked)
        return system

    @property
    def given(self) -> list[str]:
        """The fields that were given."""
        values = {name: getattr(self, name) for name in _DEFAULTS}
        return [name for name, v in values.items() if not (isinstance(v, (Usual, UsualPlace)) or v is None or v == {})]

    def _refuse(self, names: Any) -> None:
        """UserError where one of these fields was given: this recipe does not read it."""
        kind = system_class(self.recipe)
        if self.lm is not None and "lm" in names:
            raise UserError(f"Recipe {kind.name!r} uses no language model; leave lm out.")
        if given := [name for name in self.given if name in names]:
            instead = f"its settings are {', '.join(kind.settings())}" if kind is not Alignment else "leave it out"
            raise UserError(f"Recipe {kind.name!r} has no {given[0]}: {instead}.")

    @property
    def questions(self) -> dict[str, Any]:
        """What a system is asked: `asked`, about val and with the looks that its chance needs where it says no more."""
        return self.system.questions(self.asked)

    def key(self) -> Key:
        """Everything that decides the results: fields and options, the recipe's code where it is not the library's own, the
        towers' weights, and pictures and captions of train, val and test. Loads towers and captions, and encodes nothing."""
        if isinstance(self.system, Alignment):
            return self.system.bench(progress=False).key(self.decides())
        trials = {f"seed {seed}": Trial(self.system, seed, self.questions).key().digest for seed in self.each_seed}
        options = {name: value for name, value in asdict(self.system.recipe_options).items() if name != "bf16"}
        return Key("results of an experiment", {"options": json.dumps(options, sort_keys=True)} | trials)

    @property
    def each_seed(self) -> range:
        """The seeds, one run each."""
        return range(self.seed, self.seed + self.seeds)

    def run(
        self, out: str | Path | None = None, progress: bool = True, track: str = "", parts: int = 1, precision: str = "",
        shard: bool = False,
    ) -> Results:  # fmt: skip
        """Train and test once per seed. With `out`, checkpoints go there and a stopped run continues (a system keeps its own in
        MPM_LITE_HOME).

        `track`, `parts`, `precision` and `shard` are those of `loop.Plan`, for two towers. Started by `accelerate launch`, the
        processes share every batch, all of them return the results, and the first writes.
        """
        how = {"track": track, "parts": parts, "precision": precision, "shard": shard}
        if isinstance(self.system, Alignment):
            return self._run_towers(self.system, Path(out) if out else None, progress, how)
        if given := [name for name, usual in _HOW.items() if how[name] != usual]:
            raise UserError(f"Recipe {self.system.name!r} takes no {given[0]}: leave it out.")
        if runtime.device(self.device).type != runtime.device().type:
            raise UserError(f"Recipe {self.system.name!r} computes where this machine is fastest: leave device out.")
        return self._run_system(self.system, progress)

    def _run_towers(self, system: Alignment, out: Path | None, progress: bool, how: dict[str, Any]) -> Results:
        if self.condition not in CONDITIONS:
            raise unknown("condition", self.condition, CONDITIONS)
        options = system.recipe_options
        distributed.join_processes(self.device)
        whole_number("parts", how["parts"])
        loop.check_plan_words(how["precision"], how["track"])
        runtime.device(self.device)
        if out:
            check_writable(out)
        bench: AlignBench = system.bench(progress, how)
        bench.check()
        tables, items, models = [], [], {}
        for seed in self.each_seed:
            models[seed], history = bench.train(seed, options, out / f"seed-{seed}" if out else None)
            table, hits = bench.test(models[seed], seed)
            tables.append(table.assign(kept_step=history.kept_step))
            items.append(hits)
        meta = self._meta(options) | {"pairs": bench.n_pairs}
        with suppress(UnreadableCode):  # then nothing says what made these results, and none are taken for them
            meta[KEY] = bench.key(self.decides()).describe()
        tables, items = (pd.concat(many, ignore_index=True) for many in (tables, items))
        return Results(tables, items, models, meta, bench.galleries)

    def _run_system(self, system: System, progress: bool) -> Results:
        bench, rows, models = shared_bench(system), [], {}
        bench.progress = getattr(bench, "world", bench).progress = progress
        for seed in self.each_seed:
            models[seed] = bench.train(system, seed)
            rows.append(bench.test(models[seed], seed, **self.questions))
        meta = self._meta(system.recipe_options) | {"system": asdict(system), "asked": self.questions}
        with suppress(UnreadableCode):
            meta[KEY] = self.key().describe()
        named = {
            "recipe": system.name, "text": getattr(system, "encoder", getattr(system, "text", "")),
            "image": getattr(system, "image", ""), "lm": getattr(system, "lm", ""), "train": system.world, "test": f"{system.world}, {self.questions['split']}",
        }  # fmt: skip
        return Results.of_looks(pd.concat(rows, ignore_index=True), named, system.chance, models, meta)

    def _meta(self, options: Any) -> dict[str, Any]:
        return {"experiment": self.describe(), "options": asdict(options)}

    def describe(self) -> dict[str, Any]:
        """The fields as plain JSON-able values."""
        towers = isinstance(self.system, Alignment)  # a system has no use for what it does not read
        said = _DEFAULTS if towers else {*_OF_EVERY, *self.given}
        values = {f: getattr(self, f) for f in _DEFAULTS if f in said}
        named = {f: value for f, value in values.items() if f not in ("asked", "translator") or value}
        return {k: plain(v) if k in ("recipe", "text", "image") else v for k, v in named.items()}

    def decides(self) -> str:
        """What of the fields and options decides the results, as JSON; towers and data have parts of their own in the key."""
        options = asdict(self.system.recipe_options)
        return json.dumps(self.describe() | {"options": options}, sort_keys=True, default=str)


def _several(name: str, value: Any) -> Any:
    """A question that takes several words, given as a word with commas or as several."""
    if name not in ("looks", "languages", "tested", "sorts"):
        return value
    return tuple(filter(None, re.split("[, ]+", value))) if isinstance(value, str) else tuple(value)


_DEFAULTS = [f.name for f in fields(Experiment)]
_OF_EVERY = ("recipe", "seed", "seeds", "device", "options", "asked")  # fields that every recipe reads
_HOW = {"track": "", "parts": 1, "precision": "", "shard": False}
