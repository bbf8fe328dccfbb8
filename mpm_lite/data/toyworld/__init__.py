"""Toy world: the scenes of `toyworld.scenes`, drawn here and captioned in ten languages by `toyworld.grammar`.

Nothing is stored: scenes, pictures and captions all follow from seeds. The caption of a scene is one of those that describe the
picture in full and in the order of reading. A hash of scene and language chooses it, so that languages choose independently.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mpm_lite.core.keys import digest
from mpm_lite.data.captionset import SPLITS, Item, Part
from mpm_lite.data.toyworld import grammar
from mpm_lite.data.toyworld.scenes import COLOURS, SHAPES, Scene, Thing, pair_name, pictured_scenes, scenes

LANGUAGES = grammar.LANGUAGES
COUNTS = {"train": 24_000, "val": 400, "test": 600}
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
    return Part(
        name=f"toyworld/{split}",
        ids=[name for name, _, _ in many],
        captions=_ByLanguage(partial(_captions, split_scenes(split))),
        concepts=[pair_name(scene.things[0].pair) for _, scene, _ in many],
        render=partial(_render, split),
        open_licence=True,
        size=PIXELS,
        made_by=RENDER,
    )
