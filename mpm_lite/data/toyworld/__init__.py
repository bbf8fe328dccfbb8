"""Toy world: scenes that `toyworld.scenes` makes up and draws, captioned in ten languages by `toyworld.grammar`.

Nothing is stored: scenes, pictures and captions all follow from seeds. The caption of a scene is one of those that describe the
picture in full and in the order of reading. A hash of scene and language chooses it, so that languages choose independently.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mpm_lite.core.keys import digest
from mpm_lite.data.captionset import SPLITS, Item, Part
from mpm_lite.data.toyworld import grammar
from mpm_lite.data.toyworld.scenes import PIXELS, RENDER, RGB, Scene, pair_name, pictured_scenes, render, scenes

__all__ = ["COUNTS", "LANGUAGES", "PIXELS", "RENDER", "RGB", "caption", "parts", "render", "split_scenes"]

LANGUAGES = grammar.LANGUAGES
COUNTS = {"train": 24_000, "val": 400, "test": 600}


def caption(scene: Scene, language: str) -> str:
    """The caption that the scene has in this set and language."""
    pick = hashlib.sha256(f"{scene.id} {language}".encode()).digest()
    every = grammar.in_order_plans(scene, language)
    return grammar.say(every[int.from_bytes(pick[:4], "big") % len(every)], language)[0]


def _captions(many: Sequence[Scene], language: str) -> list[str]:
    return [caption(scene, language) for scene in many]


class _ByLanguage(Mapping[str, Any]):
    """The captions `make(language)` by language, made when somebody first asks for them: the captions of thousands of scenes in
    ten languages take seconds."""

    def __init__(self, make: Callable[[str], Any]):
        self.make, self.made = make, {}

    def __getitem__(self, language: str) -> Any:
        if language not in LANGUAGES:
            raise KeyError(language)
        if language not in self.made:
            self.made[language] = self.make(language)
        return self.made[language]

    def __iter__(self) -> Iterator[str]:
        return iter(LANGUAGES)

    def __len__(self) -> int:
        return len(LANGUAGES)


@lru_cache(maxsize=3)
def split_scenes(split: str) -> tuple[Scene, ...]:
    """The scenes of one split of the set, in order. In val and test all scenes differ; in train a scene may come again, so that
    single things and groups, of which there are only some hundreds, stay a fifth of the scenes each."""
    return tuple(islice(pictured_scenes() if split == "train" else scenes(split), COUNTS[split]))


def name_items(many: Sequence[Scene]) -> dict[str, list[str]]:
    """The columns "item" and "concept" of a table with a row for each scene."""
    return {"item": [scene.id for scene in many], "concept": [pair_name(scene.things[0].pair) for scene in many]}


@lru_cache(maxsize=3)
def _named(split: str) -> tuple[tuple[str, Scene, int], ...]:
    """For each item of a split its id, its scene, and the number of the picture; the id of a second picture ends in -1."""
    found, times = [], Counter()
    for scene in split_scenes(split):
        again = times[scene.id]
        found.append((f"toyworld/{scene.id}" + (f"-{again}" if again else ""), scene, again))
        times[scene.id] += 1
    return tuple(found)


def items() -> list[Item]:
    """All scenes of the set as items; their file is this module."""
    return [
        Item(name, _ByLanguage(partial(caption, scene)), Path(__file__))
        for split in SPLITS
        for name, scene, _ in _named(split)
    ]


@lru_cache(maxsize=4)
def digest_split(split: str, count: int = 100) -> str:
    """SHA-256 of all that the pictures and captions of a split depend on: the way of drawing, the scenes, and the captions of
    the first `count` scenes in every language, which show any change of a grammar."""
    many = split_scenes(split)
    said = [caption(scene, code) for scene in many[:count] for code in grammar.LANGUAGES]
    return digest([RENDER, *(scene.id for scene in many), *said])


@lru_cache(maxsize=1)
def parts() -> dict[str, Part]:
    """The three parts. This set makes its own splits, since it holds out combinations and not head nouns."""
    return {split: _part(split) for split in SPLITS}


def _render(split: str, i: int) -> np.ndarray:
    """Picture i of a split, uint8 (PIXELS, PIXELS, 3)."""
    _, scene, again = _named(split)[i]
    return render(scene, seed=again)


def _part(split: str) -> Part:
    many = _named(split)
    ids, concepts = [name for name, _, _ in many], [pair_name(scene.things[0].pair) for _, scene, _ in many]
    captions, shown = _ByLanguage(partial(_captions, split_scenes(split))), partial(_render, split)
    return Part(f"toyworld/{split}", ids, captions, concepts, shown, open_licence=True, size=PIXELS, made_by=RENDER)
