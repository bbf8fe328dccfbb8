"""Scenes of the toy world: a few coloured shapes on a three by three grid, drawn by a seed, split by what they combine.

A scene is one thing, a counted group of two to four equal things, a pair, or three things in a row or column.
Things of one scene differ in (colour, shape), so that "the red circle" names exactly one of them.

What is held out are *combinations*: (colour, shape) pairs, relations between two such pairs, and counts of one. Each
belongs to train, val or test by a hash of its name alone, so no later scene, seed or list can move it. A scene belongs
to test when it holds a combination of test and none of val, and the other way round; one that holds both belongs
nowhere. Size and place are in no combination: they vary freely everywhere.

Text is wider than pictures: a language model may have read of blue stars though no training picture shows one. Half of
the relations and counts that hold a held-out pair (by the same hash) are therefore for text alone: no picture of any
split shows them, and text says nothing of the other half. What a test scene shows is thus in no text, pair by pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations

import numpy as np

from mpm_lite.data.captionset import place_of, split_of_place

SHAPES = ("circle", "square", "triangle", "star", "heart", "flower", "book")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "purple", "brown")
SIZES = ("small", "large")
ATTRIBUTES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}
RELATIONS = ("left", "right", "above", "below")
PLACES = ("left", "right", "top", "bottom", "middle")
CONVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}

SALT = "mpm-lite toyworld v1:"
HELD_PAIRS = (0.14, 0.10)  # of the (colour, shape) pairs: test, val
HELD_MEETINGS = (0.08, 0.05)  # of the relations of two pairs, and of the counts of one
FEW = 0.5  # of the drawn scenes of one thing, and of equal things, come into text: there are only some hundreds of them
TEXT_SHARE = 0.5  # of the relations and counts with a held-out pair: for text alone
_CELLS = {"left": (0, 1), "right": (2, 1), "top": (1, 0), "bottom": (1, 2), "middle": (1, 1)}
# Where the members of a group stand, by how many they are.
_GROUPS = {2: ((0, 1), (2, 1)), 3: ((0, 0), (2, 0), (1, 2)), 4: ((0, 0), (2, 0), (0, 2), (2, 2))}


@dataclass(frozen=True)
class Thing:
    """One drawn shape; (column, row) is its cell, (0, 0) at the top left."""

    shape: str
    colour: str
    size: str
    column: int
    row: int

    @property
    def pair(self) -> tuple[str, str]:
        """Its (colour, shape)."""
        return (self.colour, self.shape)


@dataclass(frozen=True)
class Scene:
    """Things on the grid. `kind` is "one", "group", "pair" or "three"; pairs and threes stand in one row or column."""

    things: tuple[Thing, ...]

    @property
    def kind(self) -> str:
        if len(self.things) > 1 and len({thing.pair for thing in self.things}) == 1:
            return "group"
        return {1: "one", 2: "pair", 3: "three"}[len(self.things)]

    @property
    def place(self) -> str | None:
        """Where the only thing is; None for scenes of several."""
        if self.kind != "one":
            return None
        cell = (self.things[0].column, self.things[0].row)
        return next(name for name, at in _CELLS.items() if at == cell)

    @property
    def id(self) -> str:
        """A short name of its content, the same in every process."""
        return hashlib.sha256(repr(self.things).encode()).hexdigest()[:12]


def relation(a: Thing, b: Thing) -> str | None:
    """How a stands to b: "left", "right", "above" or "below"; None where they share neither row nor column."""
    if a.row == b.row and a.column != b.column:
        return "left" if a.column < b.column else "right"
    if a.column == b.column and a.row != b.row:
        return "above" if a.row < b.row else "below"
    return None


def combinations(scene: Scene) -> frozenset[str]:
    """The names of everything in the scene that a split may hold out."""
    names = {pair_name(thing.pair) for thing in scene.things}
    if scene.kind == "group":
        names.add(count_name(len(scene.things), scene.things[0].pair))
    else:
        for a, b in permutations(scene.things, 2):
            if how := relation(a, b):
                names.add(meeting_name(a.pair, how, b.pair))
    return frozenset(names)


def pair_name(pair: tuple[str, str]) -> str:
    """ "red circle" """
    return " ".join(pair)


def count_name(count: int, pair: tuple[str, str]) -> str:
    """ "3 red circle" """
    return f"{count} {pair_name(pair)}"


def meeting_name(a: tuple[str, str], how: str, b: tuple[str, str]) -> str:
    """ "red circle left blue square"; the same name whichever of the two is named first."""
    if how in ("right", "below"):
        a, how, b = b, CONVERSE[how], a
    return f"{pair_name(a)} {how} {pair_name(b)}"


@cache
def split_of_combination(name: str) -> str:
    """The split of one combination, by hashes of its name and nothing else: "train", "val", "test", or "text"."""
    words = name.split()
    if len(words) > 2:
        pairs = [words[-2:]] + ([words[:2]] if len(words) == 5 else [])
        held = [split_of_combination(" ".join(pair)) for pair in pairs]
        held = [split for split in held if split != "train"]
        if held:
            return "text" if place_of(f"{SALT}text {name}".encode()) < TEXT_SHARE else held[0]
    return split_of_place(place_of(f"{SALT}{name}".encode()), *(HELD_PAIRS if len(words) == 2 else HELD_MEETINGS))


def split_of(scene: Scene) -> str | None:
    """ "train", "val", "test", "text" for a scene that only text may tell of; None for one that belongs nowhere."""
    names = combinations(scene)
    splits = {split_of_combination(name) for name in names} - {"train"}
    if "text" in splits:
        # Of text alone are scenes whose held-out pairs meet everything in relations or counts that are of text alone.
        told = {split_of_combination(name) for name in names if len(name.split()) > 2} - {"train"}
        return "text" if told == {"text"} else None
    if not splits:
        return "train"
    return splits.pop() if len(splits) == 1 else None


def draw_scene(rng: np.random.Generator) -> Scene:
    """One scene of any split."""
    kind = ("one", "group", "pair", "pair", "three")[rng.integers(5)]
    if kind == "one":
        return Scene((_thing(rng, *_CELLS[PLACES[rng.integers(len(PLACES))]]),))
    if kind == "group":
        first, *rest = _GROUPS[int(rng.integers(2, 5))]
        thing = _thing(rng, *first)
        others = [Thing(thing.shape, thing.colour, thing.size, column, row) for column, row in rest]
        return Scene((thing, *others))
    line, cells = int(rng.integers(3)), sorted(rng.permutation(3)[: 2 if kind == "pair" else 3].tolist())
    across = bool(rng.integers(2))
    while True:
        things = tuple(_thing(rng, *((at, line) if across else (line, at))) for at in cells)
        if len({thing.pair for thing in things}) == len(things):
            # The order of naming must not give the order of standing away.
            return Scene(tuple(things[i] for i in rng.permutation(len(things))))


def _thing(rng: np.random.Generator, column: int, row: int) -> Thing:
    shape, colour, size = (names[rng.integers(len(names))] for names in (SHAPES, COLOURS, SIZES))
    return Thing(shape, colour, size, int(column), int(row))


def scenes(split: str, seed: int = 0) -> Iterator[Scene]:
    """An endless stream of different scenes of one split; the stream of a seed never changes.

    Scenes of one thing and of equal things run out after some hundreds; what follows are pairs and threes.
    """
    seen = set()
    for scene in _stream([seed, ("train", "val", "test").index(split)], (split,)):
        if scene.id not in seen:
            seen.add(scene.id)
            yield scene


def pictured_scenes(seed: int = 0) -> Iterator[Scene]:
    """An endless stream of scenes of train to learn from; a scene may come again, then it is drawn anew."""
    return _stream([seed, 6], ("train",))


def text_scenes(seed: int = 0) -> Iterator[Scene]:
    """The scenes that a text for a language model may describe: those of train, and those of text alone.

    A scene may come again, as things do that people write about.
    """
    rng = np.random.default_rng([seed, 5])
    for scene in _stream([seed, 3], ("train", "text")):
        if scene.kind in ("pair", "three") or rng.random() < FEW:
            yield scene


def _stream(seed: list[int], splits: tuple[str, ...]) -> Iterator[Scene]:
    rng = np.random.default_rng(seed)
    while True:
        scene = draw_scene(rng)
        if split_of(scene) in splits:
            yield scene


def one_off(scene: Scene) -> list[Scene]:
    """Every scene that differs in one attribute of one thing (of all, in a group), whatever split shows it."""
    found = []
    numbers = range(len(scene.things))
    for which in [set(numbers)] if scene.kind == "group" else [{i} for i in numbers]:
        for slot, values in ATTRIBUTES.items():
            for value in values:
                things = tuple(replace(t, **{slot: value}) if i in which else t for i, t in enumerate(scene.things))
                apart = scene.kind == "group" or len({thing.pair for thing in things}) == len(things)
                if apart and things != scene.things:
                    found.append(Scene(things))
    return found


def neighbours(scene: Scene, rng: np.random.Generator, count: int, held_out: bool = False) -> list[Scene]:
    """At most `count` of those, drawn: of those that are scenes of train, or with `held_out` of all."""
    found = [other for other in one_off(scene) if held_out or split_of(other) == "train"]
    return [found[i] for i in rng.permutation(len(found))[:count]]
