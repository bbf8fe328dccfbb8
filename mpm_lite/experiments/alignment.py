"""Alignment as an experiment: a recipe learns from captioned pictures on top of two frozen towers, and ranks held-out ones.

Any recipe of two towers fits here, one's own too: it is given an image's and a caption's features. Every caption set that
`load_captions` knows can be learned from, chosen on and asked about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mpm_lite.core.keys import Key, code_of
from mpm_lite.core.runtime import UserError, unknown, whole_number
from mpm_lite.data import SETS, CaptionSet, load_captions
from mpm_lite.data.languages import bcp47
from mpm_lite.data.translators import Translator, load_translator
from mpm_lite.evaluation import retrieval
from mpm_lite.experiments.system import System, image_tower, text_tower
from mpm_lite.ops import distributed
from mpm_lite.recipes import Align, Recipe, build_options, recipe_class
from mpm_lite.towers.feature_cache import image_features, text_features, vectors_of
from mpm_lite.training import loop

LOAD_OPTIONS = ("columns", "limit", "revision", "skip_bad", "streaming")
SCORES = "2: with captions in the picture's place"  # change this when results gain or change columns
CONDITIONS = ("real", "shuffled", "blind", "random-image")
Where = tuple[str, Any]  # ("emoji+stamps", ["en"]) or ("stamps", "all")


class Pairs:
    """Frozen features by number: images (N, D_image), texts (N, D_text), row i of one belongs to row i of the other."""

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        self.images, self.texts = images, texts
        self.digest = hashlib.sha256(images.numpy().tobytes() + texts.numpy().tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {"image": self.images[indices], "text": self.texts[indices]}


@dataclass(frozen=True)
class Alignment(System):
    """What is trained on what and tested on what; see `Experiment`, whose fields of these names mean the same."""

    name = "align"
    Options = Align.Options

    recipe: str | type[Recipe] = "align"
    text: Any = "use-m"
    image: Any = "efficientnet-lite1"
    train: Where = ("emoji+stamps+clipart", ["en"])
    val: Where | None = ("emoji+stamps", None)  # None in place of the languages: those of training
    test: Where | list[Where] = ("stamps", "all")
    pairs: int | dict[str, int | None] | None = None
    steps: int | None = None
    device: str | None = None
    condition: str = "real"
    require: tuple[str, ...] = ()
    translator: str | None = None
    pivot: str = "en"
    options: dict[str, Any] = field(default_factory=dict)
    load_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._whole_number("steps")
        _check_where("train", self.train)
        if self.translator and (self.pivot != "en" or _languages(self.train[1]) != ["en"]):
            raise UserError("A translator leads to English: train on captions in 'en' alone, with pivot='en'.")
        if self.val is not None:
            _check_where("val", self.val, none="the languages of training")
        if isinstance(self.test, list) and not self.test:
            raise UserError("test=[] names no set to test on: give at least one, such as ('stamps', 'all').")
        tests = self.test if isinstance(self.test, list) else [self.test]
        for one in tests:
            _check_where("test", one)
        named = [name for name, _ in tests]
        if twice := next((name for i, name in enumerate(named) if name in named[:i]), None):
            raise UserError(
                f"test names {twice!r} twice: give all its languages in one place, such as ('{twice}', 'all')."
            )
        if not isinstance(self.options, Mapping) or not isinstance(self.load_options, Mapping):
            raise UserError("options and load_options take a dictionary, such as {'lr': 0.001}.")
        for key in self.load_options:
            if key not in LOAD_OPTIONS:
                raise unknown("load option", key, LOAD_OPTIONS)
        if not isinstance(self.pairs, Mapping):
            return self._whole_number("pairs")
        for code, number in self.pairs.items():
            if number is not None:
                whole_number(f"pairs of {code}", number)
        if len({bcp47(code) for code in self.pairs}) < len(self.pairs):
            raise UserError(f"pairs={dict(self.pairs)} names one language twice.")
        if self.train[1] != "all":
            self.check_pairs(_languages(self.train[1]))

    def _whole_number(self, name: str) -> None:
        """Check a field, and hold it as an int: numbers from numpy are whole numbers too."""
        if getattr(self, name) is not None:
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))

    def check_pairs(self, learned: Sequence[str]) -> None:
        """Raises UserError where `pairs` names a language that is not learned."""
        for code in self.pairs if isinstance(self.pairs, Mapping) else ():
            if bcp47(code) not in learned:
                raise unknown("training language of pairs", code, learned)

    @property
    def all_options(self) -> dict[str, Any]:
        """The recipe's options that are given, `steps` among them."""
        return self.options | ({} if self.steps is None else {"steps": self.steps})

    @property
    def pairs_of(self) -> Callable[[str], int | None]:
        """How many pairs a training language is given at most, by its code; None: all."""
        if not isinstance(self.pairs, Mapping):
            return lambda language: self.pairs  # type: ignore[return-value]
        return {bcp47(code): number for code, number in self.pairs.items()}.get

    @property
    def recipe_options(self) -> Any:
        """The recipe's options, checked."""
        return build_options(recipe_class(self.recipe).Options, self.all_options)

    def bench(self, progress: bool = True, how: Mapping[str, Any] = MappingProxyType({})) -> AlignBench:
        """What trains and tests it; `how` are settings of `loop.Plan`."""
        return AlignBench(self, progress, how)


def plain(thing: Any) -> Any:
    """What a table may show of a value."""
    if isinstance(thing, np.generic):
        thing = thing.item()
    if isinstance(thing, (str, int, float, bool)) or thing is None:
        return thing
    return str(getattr(thing, "name", None) or thing)


def _check_where(name: str, where: Any, none: str = "") -> None:
    """Raises UserError for anything but a set's name and its languages. none: what None in place of the languages stands for;
    "" where it stands for nothing."""
    pair = isinstance(where, (tuple, list)) and len(where) == 2 and isinstance(where[0], str)
    languages = where[1] if pair else []
    codes = [languages] if isinstance(languages, str) else languages
    fits = isinstance(codes, (tuple, list)) and codes and all(isinstance(code, str) and code.strip() for code in codes)
    if not (pair and (fits or (none and languages is None))):
        also = f" or (set, None) for {none}" if none else ""
        raise UserError(
            f"{name}={where!r} is no pair of a set and its languages: write it as ('emoji', ['en']) or ('emoji', 'all'){also}."
        )


def _languages(asked: Any) -> Any:
    """The codes that are asked for, each once; "all" stays as it is."""
    if asked == "all":
        return asked
    return list(dict.fromkeys(bcp47(code) for code in ([asked] if isinstance(asked, str) else asked)))


def translated(captions: Sequence[str], translator: Translator, language: str) -> list[str]:
    """Captions in English; '' where there is none."""
    said = iter(translator.translate([text for text in captions if text], language)[0])
    return [next(said) if text else "" for text in captions]


class AlignBench:
    """The features of one experiment, loaded once and used by all seeds."""

    def __init__(self, system: Alignment, progress: bool, how: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.e, self.progress, self.how = system, progress, how
        self.text = text_tower(system.text, system.device) if isinstance(system.text, str) else system.text
        self.image = image_tower(system.image, system.device) if isinstance(system.image, str) else system.image
        self.translator = load_translator(system.translator) if system.translator else None
        name, languages = system.train
        learned = _languages(languages)
        wanted = learned if learned == "all" else list(dict.fromkeys([*learned, *_languages(system.require)]))
        self.train_set = self._captions(name, "train" if system.val else "train+val", wanted)
        self.train_languages = self.train_set.languages if learned == "all" else learned
        system.check_pairs(self.train_languages)
        tests = system.test if isinstance(system.test, list) else [system.test]
        self.tests = [(n, *self._test_set(n, _languages(langs))) for n, langs in tests]
        self.galleries: dict[str, CaptionSet] = {n: captions for n, captions, _ in self.tests}
        self.val_set, self.val_languages = None, []
        if system.val:
            name, languages = system.val
            self.val_languages = self.train_languages if languages is None else _languages(languages)
            self.val_set = self._captions(name, "val", self.val_languages)
            self.val_languages = self.val_set.languages if self.val_languages == "all" else self.val_languages
        self.n_pairs: dict[str, int] = {}
        self._seen: dict[tuple[int, str], Tensor] = {}

    def _captions(self, name: str, split: str, languages: Any) -> CaptionSet:
        """A set; what is told of sets of one's own is told where there is one."""
        packaged = all(one.strip() in SETS for one in name.split("+"))
        return load_captions(name, split, languages, **({} if packaged else self.e.load_options))

    def _test_set(self, name: str, languages: Any) -> tuple[CaptionSet, list[str]]:
        """A test set and the languages that it is asked in. Its captions in the pivot are there too, where it has some:
        retention compares with the pivot on the same queries."""
        pivot = bcp47(self.e.pivot)
        if languages == "all" or pivot in languages:
            captions = self._captions(name, "test", languages)
            return captions, captions.languages
        has_pivot = pivot in self._captions(name, "test", "all").languages
        return self._captions(name, "test", [*languages, pivot] if has_pivot else languages), languages

    def check(self) -> None:
        """UserError, before anything is encoded, for a set without what is to be learned, chosen or tested on."""
        if not len(self.train_set):
            raise UserError(f"{self.e.train[0]} has no pictures to train on.")
        for name, captions, languages in self.tests:
            if not any(len(captions.with_caption(code)) for code in languages):
                raise UserError(f"{name} has no captioned pictures to test on.")
        if self.val_set is not None and not any(len(self.val_set.with_caption(code)) for code in self.val_languages):
            raise UserError(
                f"{self.e.val[0]} has no captioned pictures for validation, so no step can be chosen on them: give another "
                "set as val, or val=None, which takes the last step and trains on all that is there."
            )
        tests = self.e.test if isinstance(self.e.test, list) else [self.e.test]
        needed = np.ones(len(self.train_set), bool)
        for code in _languages(self.e.require):
            needed &= np.array([bool(c) for c in self.train_set.captions[code]])
        said = [(self.e.train, "training", self.train_set, self.train_languages, needed)]
        said += [
            (of, "test", captions, languages, True)
            for of, (_, captions, languages) in zip(tests, self.tests, strict=True)
        ]
        for (name, named), what, captions, languages, there in said:
            for code in [] if named == "all" else languages:
                if not np.any(there & np.array([bool(c) for c in captions.captions[code]])):
                    raise UserError(
                        f"{name} has no {what} picture with a caption in {code!r}: leave that language out."
                    )
        self.check_apart()
        for name, _, languages in self.tests if self.translator else ():
            if foreign := sorted(set(languages) - {"en"} - self.translator.languages):
                raise UserError(
                    f"{self.translator.name} does not translate {', '.join(foreign)}: test {name} in other languages."
                )
        for side, tower in (("text", self.text), ("image", self.image)):
            if not isinstance(getattr(tower, "fingerprint", None), str):
                raise UserError(
                    f"The {side} tower {plain(tower)!r} has no fingerprint: give it one, a text that changes whenever its "
                    "weights do, so that nothing kept of other weights is taken for its own."
                )

    def check_apart(self) -> None:
        """UserError where a picture is learned from and asked about, or chosen on and asked about: sets of one's own keep their
        splits apart, but two of them may share pictures."""
        asked = [(f"the test set {name}", captions) for name, captions, _ in self.tests]
        few = [] if self.val_set is None else [(f"the validation set {self.e.val[0]}", self.val_set)]
        for number, (first, one) in enumerate([(f"the training set {self.e.train[0]}", self.train_set), *few]):
            for second, other in [*few[number:], *asked]:
                if both := sorted(one.contents.keys() & other.contents.keys()):
                    raise UserError(
                        f"{len(both)} pictures of {second} are in {first} too, such as {other.contents[both[0]]!r} and "
                        f"{one.contents[both[0]]!r}: take them out of one of the two."
                    )

    def key(self, experiment: str) -> Key:
        """Everything that decides the results; `experiment` says what was asked for. Encodes nothing."""
        decides = {
            "experiment": experiment,
            "scores": SCORES,
            "code": code_of(recipe_class(self.e.recipe)),
            "weights of text": self.text.fingerprint,
            "weights of image": self.image.fingerprint,
            "pictures and captions of train": self.train_set.digest,
        }
        if (precision := loop.precision_of(self.how.get("precision", ""))) != "no":
            decides["precision"] = precision
        if self.val_set is not None:
            decides["pictures and captions of val"] = self.val_set.digest
        if self.translator:
            decides["translator"] = f"{self.translator.name} {self.translator.version}"
        for number, (name, captions, _) in enumerate(self.tests, 1):
            decides[f"pictures and captions of test {number}: {name}"] = captions.digest
        return Key("results of an experiment", decides)

    def images(self, captions: CaptionSet) -> Tensor:
        """(N, D_image), as the condition wants them."""
        key = (id(captions), "image")
        if key not in self._seen:
            with distributed.run_first():
                x = torch.from_numpy(image_features(captions, self.image, self.progress).copy())
            if self.e.condition == "blind":
                x = x.mean(dim=0, keepdim=True).expand_as(x).clone()
            elif self.e.condition == "random-image":
                seeds = [int(hashlib.sha256(i.encode()).hexdigest()[:12], 16) for i in captions.ids]
                x = torch.stack([torch.randn(x.shape[1], generator=torch.Generator().manual_seed(s)) for s in seeds])
            self._seen[key] = x
        return self._seen[key]

    def texts(self, captions: CaptionSet, language: str) -> Tensor:
        """(N, D_text); NaN where there is no caption. Behind a translator, of what it makes of the captions in English."""
        key = (id(captions), language)
        if key not in self._seen:
            with distributed.run_first():
                if self.translator and language != "en":
                    said = translated(captions.captions[language], self.translator, language)
                    found = vectors_of(said, self.text, self.progress)
                else:
                    found = text_features(captions, language, self.text, self.progress)
                self._seen[key] = torch.from_numpy(found.copy())
        return self._seen[key]

    def pairs(self, seed: int) -> Pairs:
        """The training pairs of one seed: all languages, limited and permuted as the experiment says."""
        chosen, images = self.train_set, self.images(self.train_set)
        fit = np.ones(len(chosen), dtype=bool)
        for language in _languages(self.e.require):
            fit &= np.array([bool(c) for c in chosen.captions[language]])
        rows, said = [], []
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(9_000 + seed)).numpy()
        for language in self.train_languages:
            there = fit & np.array([bool(c) for c in chosen.captions[language]])
            take = order[there[order]][: self.e.pairs_of(language)]
            self.n_pairs[language] = len(take)
            rows.append(torch.from_numpy(take))
            said.append(self.texts(chosen, language)[torch.from_numpy(take)])
        where = torch.cat(rows)
        if self.e.condition == "shuffled":
            where = where[torch.randperm(len(where), generator=torch.Generator().manual_seed(8_000 + seed))]
        return Pairs(images[where], torch.cat(said))

    def train(self, seed: int, options: Any, out: Path | None = None) -> tuple[Recipe, loop.History]:
        """The recipe, trained with one seed, and how its training went; with a folder, a stopped run goes on."""
        kind, data = recipe_class(self.e.recipe), self.pairs(seed)
        torch.manual_seed(seed)
        recipe = kind(data.images.shape[1], data.texts.shape[1], options)
        recipe.prepare(data.images, data.texts)
        label = f"{plain(self.e.text)} {self.e.condition} seed {seed}"
        also = {}
        if out:  # then a stopped run is continued, if nothing of this has changed
            chosen_on = self.val_set.digest if self.val_set is not None else "nothing"
            also = {"code": code_of(kind), "pictures and captions of val": chosen_on}
        plan = loop.Plan(seed=seed, out=out, progress=self.progress, label=label, also=also, **self.how)
        score = None if self.val_set is None else self.val_score
        return recipe, loop.fit(recipe, data, plan, score, self.e.device)

    def val_score(self, recipe: Recipe) -> float:
        """Text-to-image R@10 on the validation gallery, mean over the training languages."""
        found = self._hits(recipe, self.val_set, self.val_languages, text_too=False)
        return float(np.mean([hits["t2i_r@10"].mean() for _, _, hits, _ in found]))

    def _hits(
        self, recipe: Recipe, captions: CaptionSet, languages: list[str], text_too: bool = True
    ) -> Iterator[tuple[str, np.ndarray, dict, dict]]:
        """For each language: its code, the items asked about, its hits, and the pivot's on the same queries. With `text_too`, where
        every picture has a caption in the pivot language, also hits with that caption in the picture's place."""
        pivot = bcp47(self.e.pivot)
        with torch.inference_mode():
            on = next(recipe.parameters()).device
            images = recipe.predict({"image": self.images(captions).to(on)})["image"].cpu()
            everywhere = text_too and all(captions.captions.get(pivot, [""]))
            told = self.texts(captions, pivot) if everywhere else None  # (N, D)
            for language in languages:
                said = captions.captions[language]
                asked = np.flatnonzero([bool(text) for text in said])
                if not len(asked):
                    continue
                both = {language, pivot} & set(captions.languages)
                # What shows the same picture, or is described alike, is right for each other's queries.
                alike = [captions.captions[code] for code in sorted(both)]
                groups = retrieval.group_captions(*alike, captions.same_pictures)
                scored = {}
                for code in both:
                    texts = recipe.predict({"text": self.texts(captions, code).to(on)})["text"].cpu()
                    scored[code] = retrieval.score_retrieval(images, texts, asked, groups)
                    if told is not None:
                        scored[code] |= retrieval.score_text_alone(told, self.texts(captions, code), asked, groups)
                yield language, asked, scored[language], scored.get(pivot, {})

    def test(self, recipe: Recipe, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Scores of one seed on every test set: a tidy table, and the same by item."""
        rows, items = [], []
        set_name, languages = self.e.train
        named = {
            "recipe": recipe.name,
            "text": plain(self.e.text) if isinstance(self.e.text, str) else self.text.name,
            "image": plain(self.e.image) if isinstance(self.e.image, str) else self.image.name,
            "lm": "",
            "train": f"{set_name}[{','.join(self.train_languages)}]",
        }
        for test_name, captions, languages in self.tests:
            same = {**named, "test": test_name, "condition": self.e.condition, "seed": seed}
            for language, asked, hits, pivot in self._hits(recipe, captions, languages):
                for metric in retrieval.METRICS:
                    row = {"language": language, "metric": metric, "value": hits[metric].mean()}
                    rows.append({**same, **row, "n": len(asked), "chance": hits[f"chance {metric}"].mean()})
                by_item = {"item": [captions.ids[i] for i in asked], "concept": [captions.concepts[i] for i in asked]}
                by_item |= hits | {f"pivot {m}": v for m, v in pivot.items() if not m.startswith("chance ")}
                items.append(pd.DataFrame({**same, "language": language, **by_item}))
        return pd.DataFrame(rows), pd.concat(items, ignore_index=True)
