"""The worlds that systems learn from and are asked about: the toy world here, real pictures in `real_pictures`.

A `World` (`system.py`) says what there is to see and to read. A bench asks its world, and does the rest the same way on all.

*The toy world*: rendered scenes, ten languages, towers that were pretrained here. Captions come from grammars.

*The toy world with one text for all*: the same, but text encoders are the lower half of the language models that MPM and mBLIP
use: of `toy-mixed` for many languages, and of `toy-english`, which read English as often as the other did, for English. They end
where sentences lie near their translations. M3P, which reads to both sides, takes over the table of words alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data import CaptionSet, emoji, load_captions, toyworld
from mpm_lite.data.toyworld import exchanges, grammar
from mpm_lite.data.toyworld.noise import Noise, noisy_caption
from mpm_lite.data.toyworld.scenes import COLOURS, SHAPES, Scene, draw_neighbours, text_scenes
from mpm_lite.evaluation import choice
from mpm_lite.evaluation.choice import WRONG, Choosing
from mpm_lite.experiments.real_pictures import RealWorld, data_key
from mpm_lite.experiments.system import (
    ENGLISH,
    GRID,
    MULTILINGUAL,
    Encode,
    Parallel,
    Sentences,
    System,
    World,
    text_tower,
)
from mpm_lite.recipes.dual import Captioned
from mpm_lite.towers import catalogue
from mpm_lite.towers.feature_cache import patch_features, pooled
from mpm_lite.towers.folders import loaded_once
from mpm_lite.towers.load import load_lm

ONE_TEXT = "one text"
LANGUAGES_OF = {"toyworld": grammar.LANGUAGES, ONE_TEXT: grammar.LANGUAGES, "real": emoji.LANGUAGES}
LM_OF = {ENGLISH: "toy-english", MULTILINGUAL: "toy-mixed"}  # for ONE_TEXT, in the place of text encoders
DEPTH = 2  # layers of these


def check_languages(languages: Sequence[str], world: str) -> None:
    """UserError for a world that nobody knows, and for languages that it has not."""
    if world not in LANGUAGES_OF:
        raise unknown("world", world, LANGUAGES_OF)
    for language in languages:
        if language not in LANGUAGES_OF[world]:
            raise unknown(f"{world} language", language, LANGUAGES_OF[world])


class WorldBench(Choosing):
    """A bench on one world; what it asks for is what the world has."""

    def __init__(self, progress: bool = True, world: World | None = None) -> None:
        self.world = world or ToyWorld(progress)
        self.tower, self.progress = self.world.tower, progress

    def check_world(self, system: Any) -> None:
        """UserError for a system of another world than this bench's: it would be trained on pictures that are not its own."""
        if system.world != self.world.name:
            raise UserError(
                f"An arm of world={system.world!r} cannot be trained on the pictures of {self.world.name!r}."
            )

    def seen(self, split: str, count: int | None = None, first: int = 0) -> Tensor:
        """Patches of `count` pictures of a split from the number `first` on, float16 (M, P, D_in)."""
        return self.world.seen(split, count, first)

    def choose(
        self, recipe: Any, seed: int, split: str = "test", languages: Sequence[str] = (),
        looks: Sequence[str] = ("real", "blind"), count: int | None = None, first: int = 0,
    ) -> pd.DataFrame:  # fmt: skip
        """One row a look, language and picture; see `World.choose`."""
        return self.world.choose(self, recipe, seed, split, languages, looks, count, first)

    def asked(self, recipe: Any, split: str, language: str) -> list[str]:
        """The captions of real pictures that a system is asked with, '' where a picture has none."""
        return self.world.asked(split, language)  # type: ignore[attr-defined]

    def recalled(self, recipe: Any, seen: Tensor, said: Sequence[str], there: np.ndarray, language: str) -> np.ndarray:
        """By its caption, is a picture among the ten nearest of all? NaN throughout for a system without vectors, (N,)."""
        return np.full(len(said), np.nan)


# The toy world.


def region_classes(scene: Scene) -> np.ndarray:
    """What stands in each cell of a scene, by number, int64 (R,): 0 for nothing."""
    found = np.zeros((GRID, GRID), np.int64)
    for thing in scene.things:
        found[thing.row, thing.column] = 1 + SHAPES.index(thing.shape) * len(COLOURS) + COLOURS.index(thing.colour)
    return found.reshape(-1)


class ToyWorld(World):
    """Rendered scenes, captions of ten grammars."""

    name = "toyworld"
    classes = 1 + len(SHAPES) * len(COLOURS)

    def __init__(self, progress: bool = True, image: str = "toy") -> None:
        super().__init__(image, progress)

    def seen(self, split: str, count: int | None = None, first: int = 0) -> Tensor:
        """Patches of so many pictures of a split from the number `first` on; no others have to be encoded."""
        count = count or toyworld.COUNTS[split]
        encode = lambda few: torch.from_numpy(patch_features(few, self.tower, self.progress))  # noqa: E731
        return self._once((split, count, first), encode)

    def pixels(self, split: str, count: int | None = None, first: int = 0) -> Tensor:
        """Pictures of a split from the number `first` on as the tower's model takes them, float16 (M, 3, S, S)."""

        def prepared(few: CaptionSet) -> Tensor:
            parts = [self.tower.prepare(few.images[s : min(s + 512, len(few))]).half() for s in range(0, len(few), 512)]
            return torch.cat(parts).contiguous()

        return self._once((split, count or toyworld.COUNTS[split], first, "pixels"), prepared)

    def _once(self, key: tuple[Any, ...], make: Callable[[CaptionSet], Tensor]) -> Tensor:
        """What is made of pictures of a split, kept in memory."""
        if key not in self._seen:
            split, count, first = key[:3]
            self._seen[key] = make(load_captions("toyworld", split).take(np.arange(first, first + count)))
        return self._seen[key]

    def regions(self, split: str, count: int | None = None, first: int = 0) -> Tensor:
        key = (f"{split} regions", count or toyworld.COUNTS[split], first)
        if key not in self._seen:
            parts = self.seen(split, count, first).split(2_000)
            self._seen[key] = torch.cat([torch.from_numpy(pooled(p.float().numpy(), GRID)).half() for p in parts])
        return self._seen[key]

    def region_classes(self, count: int) -> Tensor:
        return torch.from_numpy(np.stack([region_classes(s) for s in toyworld.split_scenes("train")[:count]]))

    def text(self, name: str = MULTILINGUAL, seed: int = 0) -> Any:
        return text_tower(name, "cpu")

    def mark(self, told: Any, seed: int = 0) -> list[Any]:
        return [self.tower.fingerprint, toyworld.RENDER, told]

    def captioned(self, count: int, seed: int, encode: Encode) -> Captioned:
        return choice.pair_captions(self.seen("train", count), count, seed, encode)

    def paired(self, codes: Sequence[str], count: int, noise: float, seed: int, encode: Encode) -> Captioned:
        """Each picture has some captions that are wrong in one attribute, too."""
        many, rng = toyworld.split_scenes("train")[:count], np.random.default_rng([seed, 22])
        spoilt, told = Noise.alike(noise), []
        for scene in many:
            code = codes[rng.integers(len(codes))]
            few = [scene, *draw_neighbours(scene, rng, WRONG)]
            how = spoilt if code != "en" else Noise()
            told.append([noisy_caption(one, code, how, rng, in_order=True) for one in few])
        return Captioned.encoded(
            self.seen("train", count), [own for own, *_ in told], [wrong for _, *wrong in told], encode
        )

    def captions(self, languages: Sequence[str], count: int, noise: float, seed: int) -> Sentences:
        return self._told(toyworld.split_scenes("train")[:count], languages, noise, seed)

    def translations(self, languages: Sequence[str], count: int, noise: float, seed: int) -> Parallel:
        """They tell the last pictures of train, and show none."""
        scenes = toyworld.split_scenes("train")[-count:]
        return [exchanges.caption(scene, "en") for scene in scenes], self._told(scenes, languages, noise, seed)

    @staticmethod
    def _told(scenes: Sequence[Scene], languages: Sequence[str], noise: float, seed: int) -> Sentences:
        """Each scene told in full in every language, perhaps spoilt; which caption, is drawn anew with each seed."""
        rng = lambda scene, code: np.random.default_rng([seed, 17, int(scene.id, 16), *code.encode()])  # noqa: E731
        how = Noise.alike(noise)
        texts = [noisy_caption(s, code, how, rng(s, code), in_order=True) for code in languages for s in scenes]
        return Sentences(texts, [code for code in languages for _ in scenes], list(range(len(scenes))) * len(languages))

    def sentences(self, count: int, alpha: float, seed: int) -> list[str]:
        """Captions of scenes that no picture shows: in a language of rank r with chance ~ r^-alpha."""
        rng = np.random.default_rng([seed, 18])
        chance = np.arange(1.0, len(grammar.LANGUAGES) + 1) ** -alpha
        codes = rng.choice(grammar.LANGUAGES, count, p=chance / chance.sum())
        picks = rng.integers(2**31, size=count)
        scenes = islice(text_scenes(seed + 3_000), count)
        return [grammar.one_caption(s, str(c), int(k)) for s, c, k in zip(scenes, codes, picks, strict=True)]

    def tellers(self, languages: Sequence[str], count: int, wrong: int) -> tuple[list[str], Any]:
        """Half of the wrong captions are other pictures', the rest are wrong in one attribute."""
        scenes = toyworld.split_scenes("train")[:count]

        def told(i: int, rng: np.random.Generator) -> list[str]:
            language = languages[rng.integers(len(languages))]
            others = [scenes[k] for k in rng.integers(len(scenes), size=(wrong + 1) // 2)]
            hard = draw_neighbours(scenes[i], rng, wrong - len(others))
            return [exchanges.caption(one, language) for one in (scenes[i], *others, *hard)]

        return [*languages, *(s.id for s in scenes)], told

    def choose(self, bench: Any, recipe: Any, seed: int, split: str, languages: Sequence[str], looks: Sequence[str],
               count: int | None, first: int = 0) -> pd.DataFrame:  # fmt: skip
        return Choosing.choose(bench, recipe, seed, split, languages, looks, count or 200, first)


class OneText(ToyWorld):
    """The toy world, whose text encoders are the lower layers of language models."""

    name = ONE_TEXT

    def text(self, name: str = MULTILINGUAL, seed: int = 0) -> Any:
        return lower_layers(LM_OF[name], catalogue.seed_in_turn(LM_OF[name], seed))

    def mark(self, told: Any, seed: int = 0) -> list[Any]:
        seeds = {name: catalogue.seed_in_turn(name, seed) for name in LM_OF.values()}
        return [*super().mark(told), DEPTH, *(catalogue.weights_digest(name, of) for name, of in seeds.items())]


@loaded_once(4)
def lower_layers(name: str, seed: int) -> Any:
    """The first DEPTH layers of a language model as a text encoder: its `model`, whose last state is read, and its `tokenizer`."""
    lm = load_lm(name, seed, "cpu")
    model = copy.deepcopy(lm.model.base_model)
    model.layers, model.config.num_hidden_layers, model.config.use_cache = model.layers[:DEPTH], DEPTH, False
    return SimpleNamespace(model=model, tokenizer=lm.tokenizer)


def load_world(name: str, progress: bool = True) -> World:
    """The world of that name. Raises UserError for one that nobody knows."""
    check_languages((), name)
    return {"real": RealWorld, ONE_TEXT: OneText}.get(name, ToyWorld)(progress)


class WorldSystem(System):
    """Base of systems that are trained on any world, which their field `world` names."""

    def models(self, seed: int) -> dict[str, tuple[str, int]]:
        """Where there is one text for all, the language models that text encoders are made of, too."""
        own = self.reads if self.world == ONE_TEXT else ()
        return super().models(seed) | {to: (LM_OF[to], catalogue.seed_in_turn(LM_OF[to], seed)) for to in own}

    @property
    def reads(self) -> tuple[str, ...]:
        """The text encoders that it begins with."""
        return (MULTILINGUAL,)

    def towers_key(self) -> dict[str, str]:
        """What decides the toy world's towers; those of real pictures are in `data_key`."""
        depth = {"layers of language models": str(DEPTH)} if self.world == ONE_TEXT else {}
        return {} if self.world == "real" else super().towers_key() | depth

    def data_key(self, split: str) -> dict[str, str]:
        """What decides pictures, captions and, of real pictures, the towers that read them."""
        return data_key(split) if self.world == "real" else super().data_key(split)
