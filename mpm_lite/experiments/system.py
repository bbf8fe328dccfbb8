"""What a system is: its dials as data, and how it is trained and tested. One file a system; every study is a list of trials.

A `System` is a frozen dataclass. Its fields say what is trained on what (`Chat(pairs=6_000)`), and its `bench` trains and
tests it on one world. A `Trial` is a system with one seed and the questions it is asked; `run_trials` is the one loop that
runs what is missing of a list of them, in as many processes as asked for, and keeps the rows of each as soon as they are
there, so that a run that was stopped goes on. A `World` says once what there is to see and to read: patches of pictures, the
encoders of its texts, captions to learn from and captions to choose among.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import pandas as pd
from torch import Tensor, nn

from mpm_lite.core import runtime
from mpm_lite.core.keys import Key, code_of, digest
from mpm_lite.core.runtime import UserError, unknown, whole_number
from mpm_lite.core.store import Shelf, find_weights, keep_weights, name_of
from mpm_lite.data import SPLITS, toyworld
from mpm_lite.recipes.base import Recipe, build_options
from mpm_lite.recipes.dual import Captioned
from mpm_lite.towers import catalogue
from mpm_lite.towers.folders import loaded_once
from mpm_lite.towers.load import load_image_tower, load_text_tower
from mpm_lite.training import cost, loop


@loaded_once(4)
def text_tower(name: str, device: str | None = None) -> Any:
    """A text tower, loaded once for all experiments of a process."""
    return load_text_tower(name, device)


@loaded_once(4)
def image_tower(name: str, device: str | None = None) -> Any:
    """An image tower, loaded once for all experiments of a process."""
    return load_image_tower(name, device)


class Bench(Protocol):
    """What trains a system and asks it about pictures; features are computed once and shared by all that it trains."""

    def train(self, system: Any, seed: int) -> Recipe:
        """The trained recipe: computed, or read back from what is kept."""

    def test(self, recipe: Any, seed: int, split: str = "test", **asked: Any) -> pd.DataFrame:
        """One row a look, language and picture, with a column a score."""


class System(ABC):
    """Base of all systems: a frozen dataclass whose fields are the dials, the last of them `options`, those of its recipe.

    Raises UserError for a dial or an option that nobody knows, and for values that cannot be meant.
    """

    name: ClassVar[str]  # as the command line and `Experiment` call it
    Options: ClassVar[type]  # the options of its recipe
    nested: ClassVar[Mapping[str, type]] = {}  # fields that hold the settings of another dataclass
    chance: ClassVar[str] = "blind"  # the look whose score is chance
    split: ClassVar[str] = "val"  # that an Experiment asks about, if nothing else is said
    looks: ClassVar[tuple[str, ...]] = ("real", "blind")  # that an Experiment asks for
    asks: ClassVar[tuple[str, ...]] = ("split", "count", "first", "looks", "languages")  # what its test may be asked
    world: str = "toyworld"
    options: dict[str, Any]

    @abstractmethod
    def bench(self, progress: bool = True) -> Any:
        """What trains and tests it, on its own world; see `Bench`."""

    @property
    def recipe_options(self) -> Any:
        """The recipe's options, checked; in bfloat16 where this machine is faster in it, if nothing else is asked."""
        return self.options_of(self.Options, self.options)

    @staticmethod
    def options_of(kind: type, given: Mapping[str, Any]) -> Any:
        """Options of some kind from a dictionary, checked; in bfloat16 where that is faster, if they know that dial."""
        fast = {"bf16": runtime.fast_bf16()} if any(f.name == "bf16" for f in fields(kind)) else {}
        return build_options(kind, fast | dict(given))

    def questions(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What an Experiment asks: what is `asked`, the look whose score is chance, and besides what is usual."""
        looks = tuple(dict.fromkeys([*asked.get("looks", self.looks), self.chance]))
        return {"split": self.split} | dict(asked) | {"looks": looks}

    def check_questions(self, asked: Mapping[str, Any]) -> None:
        """Raises UserError for a question that it is not asked, and for a split or a number of pictures that is not there."""
        for name in asked:
            if name not in self.asks:
                raise unknown("question", name, self.asks)
        if (split := asked.get("split", self.split)) not in SPLITS:
            raise unknown("split", split, SPLITS)
        if "count" in asked:
            last = whole_number("count", asked["count"]) + whole_number("first", asked.get("first", 0), 0)
            if self.world != "real" and last > (most := toyworld.COUNTS[split]):
                raise UserError(
                    f"toyworld has {most} pictures of {split}: no {asked['count']} from number {asked.get('first', 0)} on."
                )
        if "first" in asked and self.world == "real":
            raise UserError("first=...: of real pictures all held-out ones are asked about. Leave it out.")

    def towers_key(self) -> dict[str, str]:
        """What decides the towers that it looks and reads with: the toy world's, and any other that looks at its pictures."""
        image = getattr(self, "image", "toy")
        other = {} if image == "toy" else {"image weights": image_tower(image).fingerprint}
        return {"toy towers": catalogue.towers_digest("towers")} | other

    def data_key(self, split: str) -> dict[str, str]:
        """What decides the pictures and captions that it learns from and is asked about: the toy world's."""
        return {f"toy world, {of}": toyworld.digest_split(of) for of in ("train", split)}

    def models(self, seed: int) -> dict[str, tuple[str, int]]:
        """The language models that it stands on with a seed, by what they are to it: name and seed of each."""
        return catalogue.models_of(self, seed)

    @property
    def shown(self) -> tuple[str, ...]:
        """What decides its bench beside the towers: systems of one kind that agree in it share a bench."""
        return (self.world, getattr(self, "image", ""))

    def save(self, recipe: Any, seed: int, folder: Path) -> list[str]:
        """Write what a trained recipe gives beside its weights, if anything; returns the names of the files."""
        return []

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """The names that `build` takes: fields, options of the recipe, and the settings inside of other fields."""
        plain = {f.name: (f.name, f) for f in fields(cls) if f.name != "options"}
        own = {f.name: ("options", f) for f in fields(cls.Options)}
        inside = {f.name: (name, f) for name, kind in cls.nested.items() for f in fields(kind)}
        return inside | own | plain

    @classmethod
    def build(cls, given: Mapping[str, Any]) -> Any:
        """A system from one flat dictionary of settings. A field that holds several names takes them with commas between, too.
        Raises UserError, with the nearest name, for a setting of none."""
        known, built = cls.settings(), {"options": {}}
        for name, value in given.items():
            if name not in known:
                raise unknown("setting", name, known)
            place, one = known[name]
            if place == name:
                built[name] = _as_field(one, value)
                continue
            if place in given and place != "options":
                raise UserError(f"{name} is a setting inside of {place}: give one of the two.")
            built[place] = built.get(place, {}) | {name: _as_field(one, value)}
        return cls(**built)


def _as_field(one: Field, value: Any) -> Any:
    """The value, in the way that the field holds it. UserError for one of another kind."""
    usual = one.default
    if isinstance(usual, tuple):
        return tuple(value) if isinstance(value, (tuple, list)) else tuple(filter(None, re.split("[,+]", str(value))))
    if isinstance(usual, int) and not isinstance(usual, bool):
        return whole_number(one.name, value, least=0)
    kinds = {bool: (bool,), float: (int, float), str: (str,)}.get(type(usual))
    if kinds and (not isinstance(value, kinds) or isinstance(value, bool) != isinstance(usual, bool)):
        raise UserError(f"{one.name} takes a {type(usual).__name__} such as {usual!r}; got {value!r}.")
    return value


# What systems learn from and are asked about.

# Text encoders: the one for English, and the one for all languages.
ENGLISH, MULTILINGUAL = "toy-en", "toy"
GRID = 3  # a side of the cells that regions are
Encode = Callable[[Sequence[str]], list[list[int]]]  # texts as token ids


class Sentences(NamedTuple):
    """Texts, the language of each, and the number of the picture or of the English sentence that it tells."""

    texts: list[str]
    languages: list[str]
    of: list[int]


Parallel = tuple[list[str], Sentences]  # English sentences, and what each says in other languages


class World(ABC):
    """What there is to see and to read."""

    name: str
    classes: int  # of regions, 0 for nothing
    # Whether an encoder that stays frozen reads each caption once, before training and before a test.
    reads_once = False

    def __init__(self, image: str, progress: bool = True, device: str | None = None) -> None:
        self.tower, self.progress = image_tower(image, device), progress
        self._seen: dict[tuple[Any, ...], Tensor] = {}

    @abstractmethod
    def seen(self, split: str, count: int | None = None, first: int = 0) -> Tensor:
        """Patches of `count` pictures of a split from the number `first` on, float16 (M, P, D_in)."""

    @abstractmethod
    def regions(self, split: str, count: int | None = None, first: int = 0) -> Tensor:
        """Regions of `count` pictures of a split from the number `first` on, float16 (M, R, D_in)."""

    @abstractmethod
    def region_classes(self, count: int) -> Tensor:
        """What the regions of the first training pictures hold, by number, int64 (M, R)."""

    @abstractmethod
    def text(self, name: str = MULTILINGUAL, seed: int = 0) -> Any:
        """A text encoder: its `model`, and the `tokenizer` that cuts texts for it. Where there are several, a seed takes its own."""

    @abstractmethod
    def mark(self, told: Any, seed: int = 0) -> list[Any]:
        """What decides weights that were learned here: tower, pictures and captions, and what else is `told`."""

    @abstractmethod
    def captioned(self, count: int, seed: int, encode: Encode) -> Captioned:
        """The first training pictures with their English captions, and with wrong ones where this world makes some."""

    @abstractmethod
    def paired(self, codes: Sequence[str], count: int, noise: float, seed: int, encode: Encode) -> Captioned:
        """The first training pictures, each with a caption in one of the languages, spoilt by noise if it is not English."""

    @abstractmethod
    def captions(self, languages: Sequence[str], count: int, noise: float, seed: int) -> Sentences:
        """Captions of the first training pictures in each of the languages, spoilt by noise."""

    @abstractmethod
    def translations(self, languages: Sequence[str], count: int, noise: float, seed: int) -> Parallel:
        """Parallel sentences: English ones, and what each says in the languages, spoilt by noise."""

    @abstractmethod
    def sentences(self, count: int, alpha: float, seed: int) -> list[str]:
        """Text without pictures, each sentence in one language; the rarer ones the more often the smaller `alpha` is."""

    @abstractmethod
    def tellers(self, languages: Sequence[str], count: int, wrong: int) -> tuple[list[str], Any]:
        """For matching the first training pictures: what decides their captions, and a function (i, rng) that draws a caption of
        picture i in one of the languages and `wrong` captions that are not its own."""

    @abstractmethod
    def choose(self, bench: Any, recipe: Any, seed: int, split: str, languages: Sequence[str], looks: Sequence[str],
               count: int | None, first: int = 0) -> pd.DataFrame:  # fmt: skip
        """The common task: which caption belongs to the picture? One row a look, language and picture."""


# Trials.


@dataclass(frozen=True)
class Trial:
    """A system, trained with one seed and asked about the pictures of a split. `told` is what the key of its rows says of the
    questions, where that is not `asked` itself."""

    system: System
    seed: int
    asked: Mapping[str, Any] = field(default_factory=lambda: {"split": "val"})
    told: Mapping[str, Any] | None = None

    def key(self) -> Key:
        """What decides the rows: the system, the seed, what it is asked, the language models that it stands on, and the pictures
        and captions that it learns from and is asked about."""
        split = str(self.asked.get("split", "test"))
        told = {"asked": dict(self.asked), "split": split} if self.told is None else self.told
        kind, arm = type(self.system), json.dumps(deciding_dials(self.system), sort_keys=True)
        decides = {"kind": kind.__name__, "arm": arm, "seed": str(self.seed)}
        decides |= {name: json.dumps(value, sort_keys=True, default=dict) for name, value in told.items()}
        if not kind.__module__.startswith("mpm_lite."):
            decides["code"] = code_of(kind)
        decides |= self.system.towers_key()
        models = self.system.models(self.seed)
        decides |= {f"weights of {of}": catalogue.weights_digest(*model) for of, model in models.items()}
        return Key("rows of an arm", decides | self.system.data_key(split))

    def run(self, bench: Bench | None = None) -> pd.DataFrame:
        """Train, test, and return the rows."""
        bench = bench or shared_bench(self.system)
        return bench.test(bench.train(self.system, self.seed), self.seed, **self.asked)


_BENCH: dict[tuple[Any, ...], Bench] = {}  # the one made last


def shared_bench(system: System) -> Bench:
    """The bench of a system, made once in a process for all systems of its kind that look at the same pictures."""
    own = not type(system).bench.__module__.startswith("mpm_lite.")  # whatever its dials do to its bench
    which = type(system), *((repr(system),) if own else system.shown), json.dumps(system.towers_key())
    if which not in _BENCH:
        _BENCH.clear()
        _BENCH[which] = system.bench()
    return _BENCH[which]


def run_trials(
    trials: Mapping[str, Trial], shelf: Shelf, workers: int = 1, say: Callable[[str], None] = lambda line: None,
    bench: Bench | None = None, costs: Shelf | None = None,
) -> None:  # fmt: skip
    """Run those of the named trials whose rows are not kept on the shelf, in so many processes; `say` is told their names.
    Trials that are the same are run once. What training cost is kept on the shelf `costs`, where there is one."""
    own = [type(t.system).__name__ for t in trials.values() if type(t.system).__module__.startswith("_own_")]
    if own and workers > 1:
        raise UserError(f"{own[0]} comes from a file of one's own, which other processes do not know: take one worker.")
    keys = {label: name_of(trial.key()) for label, trial in trials.items()}
    missing, jobs = set(shelf.missing(keys.values())), {}
    order = list(dict.fromkeys(repr(trial.system) for trial in trials.values()))
    # Among several processes, seeds begin side by side: systems of one seed would wait for what they share.
    labels = sorted(trials, key=lambda label: order.index(repr(trials[label].system))) if workers > 1 else trials
    for label in labels:
        if keys[label] in missing:
            missing.remove(keys[label])
            jobs[label] = (run_trial, (trials[label], shelf, bench, costs))
    runtime.run_jobs(jobs, workers, say)


def run_trial(trial: Trial, shelf: Shelf, bench: Bench | None = None, costs: Shelf | None = None) -> None:
    """Run one trial, and keep its rows, and what its training cost."""
    if costs is None:
        return shelf.put(trial.key(), trial.run(bench))
    with cost.open_book() as book:
        rows = trial.run(bench)
    costs.put(trial.key(), cost.build_cost_table(book))
    shelf.put(trial.key(), rows)


def read_trials(trials: Mapping[str, Trial], shelf: Shelf) -> dict[str, pd.DataFrame]:
    """The rows of named trials. Raises UserError where those of one are missing or torn."""
    keys = {label: name_of(trial.key()) for label, trial in trials.items()}
    rows = shelf.read({key: label for label, key in keys.items()})
    return {label: rows[key] for label, key in keys.items()}


def join_trials(trials: Mapping[str, Trial], arms: Sequence[str], shelf: Shelf) -> pd.DataFrame:
    """The rows of named trials as one table, whose column `arm` says which of `arms` (one a trial) each row is of. Raises
    UserError where those of one are missing or torn."""
    rows = zip(arms, read_trials(trials, shelf).values(), strict=True)
    return pd.concat([of.assign(arm=arm) for arm, of in rows], ignore_index=True)


def check_models(who: str, trials: Sequence[Trial], shelf: Shelf) -> None:
    """UserError for language models that trials stand on and that are not here, unless their rows are kept already; `who` asks."""
    if gone := missing_models(trials, shelf):
        raise UserError(
            f"{who} stands on language models that are not here: `mpm-lite pretrain {' '.join(gone)}` makes them (an hour "
            "each on a CPU)."
        )


def missing_models(trials: Sequence[Trial], shelf: Shelf) -> list[str]:
    """The language models, as NAME:SEED, that trials stand on and that are not here, unless their rows are kept already."""
    todo = {name_of(trial.key()): trial for trial in trials}
    left = [todo[key] for key in shelf.missing(todo)]
    stood_on = {model for trial in left for model in trial.system.models(trial.seed).values()}
    return sorted(f"{name}:{seed}" for name, seed in stood_on if not catalogue.is_present(name, seed))


# Weights that are learned once.

R = TypeVar("R", bound=Recipe)


def train_once(
    recipe: R, data: Callable[[], Any], seed: int, place: str, label: str, told: Sequence[Any], progress: bool = True,
    before: Callable[[], Any] | None = None,
) -> R:  # fmt: skip
    """The recipe, trained on what `data` gives, or with the weights that it learned before. A run that was stopped goes on.

    `told` holds whatever else decides the weights, beside the seed, the options and the weights that do not learn: JSON-able
    values. Only what learns is kept, in MPM_LITE_HOME/place. If the recipe has to be trained, `before` is called first, to set
    the weights that it starts from.
    """
    settings = json.dumps([list(told), deciding_dials(recipe.options)], sort_keys=True)
    decides = {"place": place, "recipe": recipe.name, "label": label, "seed": str(seed), "data and options": settings}
    key = Key(f"weights of {recipe.name}", decides)
    path = find_weights(key, place)
    begin, data = cache(before or (lambda: None)), cache(data)  # data are made once, for training and for the account
    if cost.open_now():
        begin()  # what comes before is to be written down too, down to the first stage

    def learn(work: Path) -> dict[str, Tensor]:
        begin()
        plan = loop.Plan(seed, work, 250, progress=progress, label=f"{recipe.name}: {label}, seed {seed}")
        loop.fit(recipe, data(), plan)
        return {name: value for name, value in sorted(recipe.state_dict().items()) if recipe.trains(name)}

    recipe.load_state_dict(keep_weights(path, learn, key), strict=False)
    cost.note_cost(recipe, data)
    return recipe.eval()


def deciding_dials(options: Any) -> dict[str, Any]:
    """The options of a recipe that decide its weights, by name. bf16 does not; nor does a dial marked as `added` at its
    default, since it is younger than weights that are kept, and those were trained as its default does."""
    said = asdict(options)
    added = {one.name for one in fields(options) if "added" in one.metadata and said[one.name] == one.default}
    return {name: dial for name, dial in said.items() if name not in added | {"bf16"}}


def digest_weights(recipe: nn.Module) -> str:
    """A digest of weights."""
    return digest(v.cpu().numpy().tobytes() for v in recipe.state_dict().values())
