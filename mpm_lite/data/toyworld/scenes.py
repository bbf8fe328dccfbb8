"""Scenes of the toy world, and their pictures: a few coloured shapes on a three by three grid.

A seed draws scenes at random, and what they combine decides which split they belong to. `render` draws the picture of a scene.

A scene is one thing, a group of two to four equal things, a pair, or three things in a row or column. The things of a pair or
three differ in (colour, shape), so that "the red circle" means exactly one of them.

What is held out are *combinations*: pairs of (colour, shape), relations between two such pairs, and counts of one. A hash of its
name alone puts each combination into train, val or test, so that no later scene, seed or list can move it. A scene is in test if
it has a combination of test and none of val, and the other way round; a scene with both is in no split. Size and place belong
to no combination: they vary freely everywhere.

Text is wider than pictures: a language model may have read about blue stars although no training picture shows one. Therefore
half of the relations and counts with a held-out pair (chosen by the same hash) are for text only. No picture of any split shows
them, and no text mentions the other half. So no text mentions what a test scene shows, pair by pair.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

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
FEW = 0.5  # the share of drawn ones and groups that comes into text: there are only some hundreds of them
TEXT_SHARE = 0.5  # of the relations and counts with a held-out pair: for text only
_CELLS = {"left": (0, 1), "right": (2, 1), "top": (1, 0), "bottom": (1, 2), "middle": (1, 1)}
# The cells of the members of a group, by their number.
_GROUPS = {2: ((0, 1), (2, 1)), 3: ((0, 0), (2, 0), (1, 2)), 4: ((0, 0), (2, 0), (0, 2), (2, 2))}


@dataclass(frozen=True)
class Thing:
    """One drawn shape in the cell (column, row); (0, 0) is at the top left."""

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
    """Things on the grid. `kind` is "one", "group", "pair" or "three"; a pair or three is in one row or column."""

    things: tuple[Thing, ...]

    @property
    def kind(self) -> str:
        if len(self.things) > 1 and len({thing.pair for thing in self.things}) == 1:
            return "group"
        return {1: "one", 2: "pair", 3: "three"}[len(self.things)]

    @property
    def place(self) -> str | None:
        """The place of a single thing; None for scenes of several things."""
        if self.kind != "one":
            return None
        cell = (self.things[0].column, self.things[0].row)
        return next(name for name, at in _CELLS.items() if at == cell)

    @property
    def id(self) -> str:
        """A short hash of the content, the same in every process."""
        return hashlib.sha256(repr(self.things).encode()).hexdigest()[:12]


def relation(a: Thing, b: Thing) -> str | None:
    """Where a is, seen from b: "left", "right", "above" or "below"; None if they share neither row nor column."""
    if a.row == b.row and a.column != b.column:
        return "left" if a.column < b.column else "right"
    if a.column == b.column and a.row != b.row:
        return "above" if a.row < b.row else "below"
    return None


def combinations(scene: Scene) -> frozenset[str]:
    """The names of all combinations in the scene, which are what a split may hold out."""
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
    """ "red circle left blue square": the same name in whichever order the two are given."""
    if how in ("right", "below"):
        a, how, b = b, CONVERSE[how], a
    return f"{pair_name(a)} {how} {pair_name(b)}"


@cache
def split_of_combination(name: str) -> str:
    """The split of one combination, which only hashes of its name decide: "train", "val", "test", or "text"."""
    words = name.split()
    if len(words) > 2:
        pairs = [words[-2:]] + ([words[:2]] if len(words) == 5 else [])
        held = [split_of_combination(" ".join(pair)) for pair in pairs]
        held = [split for split in held if split != "train"]
        if held:
            return "text" if place_of(f"{SALT}text {name}".encode()) < TEXT_SHARE else held[0]
    return split_of_place(place_of(f"{SALT}{name}".encode()), *(HELD_PAIRS if len(words) == 2 else HELD_MEETINGS))


def split_of(scene: Scene) -> str | None:
    """ "train", "val", "test", or "text" for a scene that only text may describe; None for one that is in no split."""
    names = combinations(scene)
    splits = {split_of_combination(name) for name in names} - {"train"}
    if "text" in splits:
        # A scene is for text only if all its relations and counts with held-out pairs are for text only.
        told = {split_of_combination(name) for name in names if len(name.split()) > 2} - {"train"}
        return "text" if told == {"text"} else None
    if not splits:
        return "train"
    return splits.pop() if len(splits) == 1 else None


def draw_scene(rng: np.random.Generator) -> Scene:
    """One scene of any split."""
    kind = one_of(("one", "group", "pair", "pair", "three"), rng)
    if kind == "one":
        return Scene((_thing(rng, *_CELLS[one_of(PLACES, rng)]),))
    if kind == "group":
        first, *rest = _GROUPS[int(rng.integers(2, 5))]
        thing = _thing(rng, *first)
        return Scene((thing, *(replace(thing, column=column, row=row) for column, row in rest)))
    line, cells = int(rng.integers(3)), sorted(rng.permutation(3)[: 2 if kind == "pair" else 3].tolist())
    across = bool(rng.integers(2))
    while True:
        things = tuple(_thing(rng, *((at, line) if across else (line, at))) for at in cells)
        if len({thing.pair for thing in things}) == len(things):
            # The order of the list must not give away the order in the picture.
            return Scene(tuple(things[i] for i in rng.permutation(len(things))))


def _thing(rng: np.random.Generator, column: int, row: int) -> Thing:
    shape, colour, size = (one_of(names, rng) for names in (SHAPES, COLOURS, SIZES))
    return Thing(shape, colour, size, int(column), int(row))


def one_of(values: Sequence[Any], rng: np.random.Generator) -> Any:
    """One of the values, drawn evenly by one whole number (`rng.choice` would draw other ones)."""
    return values[rng.integers(len(values))]


def scenes(split: str, seed: int = 0) -> Iterator[Scene]:
    """An endless stream of different scenes of one split; the stream of a seed never changes.

    Single things and groups run out after some hundreds; after that there are only pairs and threes.
    """
    seen = set()
    for scene in _stream([seed, ("train", "val", "test").index(split)], (split,)):
        if scene.id not in seen:
            seen.add(scene.id)
            yield scene


def pictured_scenes(seed: int = 0) -> Iterator[Scene]:
    """An endless stream of training scenes. A scene may come again, and is then drawn as another picture."""
    return _stream([seed, 6], ("train",))


def text_scenes(seed: int = 0) -> Iterator[Scene]:
    """The scenes that text for a language model may describe: those of train and those for text only.

    A scene may come again, as people also write about the same thing more than once.
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
    """All scenes, of any split, that differ in one attribute of one thing (in a group: of all things)."""
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


def draw_neighbours(scene: Scene, rng: np.random.Generator, count: int, held_out: bool = False) -> list[Scene]:
    """At most `count` of the scenes of `one_off`, drawn from those of train or, with `held_out`, from all."""
    found = [other for other in one_off(scene) if held_out or split_of(other) == "train"]
    return [found[i] for i in rng.permutation(len(found))[:count]]


# How a scene is drawn.

PIXELS = 64
# Part of the key of cached features: raise the number whenever a change here changes a pixel.
RENDER = "toyworld-render-1"

RGB = {
    "red": (214, 40, 40), "blue": (40, 90, 214), "green": (40, 150, 70), "yellow": (240, 205, 40),
    "black": (25, 25, 28), "white": (252, 252, 252), "purple": (140, 60, 180), "brown": (125, 78, 42),
}  # fmt: skip
_GROUND = (158, 170, 180)  # far from all eight colours, white and black among them
_RADIUS = {"small": 0.27, "large": 0.42}  # of a cell; even with jitter, the two differ and a shape stays in its cell
_FINE = 4  # pictures are drawn this many times larger and then averaged, for soft edges

assert set(RGB) == set(COLOURS)


def render(scene: Scene, size: int = PIXELS, seed: int = 0, jitter: float = 1.0) -> np.ndarray:
    """The scene as uint8 (size, size, 3): equal arguments give equal pixels in every process.

    `seed` draws one of many pictures of a scene: place, size and hue of each thing vary by `jitter` (0: not at all), but so
    little that every caption stays true. Meant for sizes of 16 to 64 pixels.
    """
    rng = np.random.default_rng([int(scene.id, 16), seed])
    wide = size * _FINE
    shade = 1 + 0.04 * jitter * rng.uniform(-1, 1)
    picture = Image.new("RGB", (wide, wide), tuple(round(c * shade) for c in _GROUND))
    brush = ImageDraw.Draw(picture)
    cell = wide / 3
    for thing in scene.things:
        x, y, grow, turn, light = jitter * rng.uniform(-1, 1, 5)
        centre = ((thing.column + 0.5 + 0.05 * x) * cell, (thing.row + 0.5 + 0.05 * y) * cell)
        colour = _shifted(RGB[thing.colour], 0.015 * turn, 1 + 0.05 * light)
        _draw(brush, thing, centre, _RADIUS[thing.size] * cell * (1 + 0.08 * grow), colour)
    return np.asarray(picture.reduce(_FINE))


def _shifted(rgb: tuple[int, int, int], hue: float, light: float) -> tuple[int, ...]:
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in rgb))
    red, green, blue = colorsys.hsv_to_rgb((h + hue) % 1, s, min(1.0, v * light))
    return (round(255 * red), round(255 * green), round(255 * blue))


def _draw(
    brush: ImageDraw.ImageDraw, thing: Thing, centre: tuple[float, float], radius: float, colour: tuple[int, ...]
) -> None:
    """Draw one thing. Details of flower and book have a darker tone of its colour; on black, a lighter one."""
    x, y = centre
    dark = thing.colour == "black"
    tone = tuple(min(255, c + 110) if dark else round(c * 0.6) for c in colour)

    def disc(dx: float, dy: float, r: float, fill: tuple[int, ...]) -> None:
        at = (x + dx * radius, y + dy * radius)
        brush.ellipse([at[0] - r * radius, at[1] - r * radius, at[0] + r * radius, at[1] + r * radius], fill=fill)

    def filled(points: Sequence[tuple[float, float]], fill: tuple[int, ...]) -> None:
        brush.polygon([(x + a * radius, y + b * radius) for a, b in points], fill=fill)

    if thing.shape == "circle":
        disc(0, 0, 1, colour)
    elif thing.shape == "flower":
        for k in range(5):
            disc(0.56 * math.sin(k * math.tau / 5), -0.56 * math.cos(k * math.tau / 5), 0.44, colour)
        disc(0, 0, 0.34, tone)
    elif thing.shape == "book":
        filled([(-0.75, -1), (0.75, -1), (0.75, 1), (-0.75, 1)], colour)
        filled([(-0.75, -1), (-0.45, -1), (-0.45, 1), (-0.75, 1)], tone)
        for line in (-0.5, -0.1):
            filled([(-0.2, line), (0.5, line), (0.5, line + 0.2), (-0.2, line + 0.2)], tone)
    else:
        filled(_OUTLINES[thing.shape], colour)


def _heart() -> list[tuple[float, float]]:
    turns = [k * math.tau / 60 for k in range(60)]
    across = [16 * math.sin(t) ** 3 for t in turns]
    down = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [(a / 16.5, -(b + 2.5) / 16.5) for a, b in zip(across, down, strict=True)]


def _star() -> list[tuple[float, float]]:
    reach = [(1.0 if k % 2 == 0 else 0.42, k * math.pi / 5) for k in range(10)]
    return [(r * math.sin(t), -r * math.cos(t)) for r, t in reach]


_OUTLINES = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0, -0.95), (0.98, 0.8), (-0.98, 0.8)],
    "star": _star(),
    "heart": _heart(),
}
assert set(SHAPES) == {"circle", "flower", "book", *_OUTLINES}
