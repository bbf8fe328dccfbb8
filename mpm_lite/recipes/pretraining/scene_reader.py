"""A small network that reads what a picture of the toy world shows: the judge of painted pictures.

It learned from drawings alone, of scenes and of crowds, under noise. It never met a caption or a painted picture. What it
reads is compared with the scene that the prompt described, as far as a caption describes a scene.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from mpm_lite.core import runtime
from mpm_lite.data.toyworld import grammar
from mpm_lite.data.toyworld.scenes import ATTRIBUTES, Scene, Thing
from mpm_lite.recipes.base import Recipe, Stage
from mpm_lite.towers.lm import IGNORE

# How many classes each slot of a cell has; a cell is filled or empty.
CLASSES = {"filled": 2, **{slot: len(values) for slot, values in ATTRIBUTES.items()}}
CELLS = 3  # along each side
SLOTS = ("shape", "colour", "size", "place", "bound", "exact")


@dataclass(frozen=True)
class SceneReaderOptions:
    """Every dial of its training."""

    width: int = 32
    steps: int = 1500
    batch: int = 64
    lr: float = 2e-3
    noise: float = 0.25  # the most noise that is added to a training picture, whose pixels go from -1 to 1


class SceneReader(Recipe):
    """A convolutional network over pictures (N, 3, H, H), from -1 to 1, that classifies each of the nine cells."""

    name = "scene-reader"
    Options = SceneReaderOptions

    def __init__(self, options: SceneReaderOptions = SceneReaderOptions()) -> None:
        super().__init__()
        self.options, w = options, options.width
        layers: list[nn.Module] = []
        for before, after, stride in ((3, w, 1), (w, w, 2), (w, 2 * w, 1), (2 * w, 2 * w, 2), (2 * w, 4 * w, 1)):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.GELU()]
        self.look = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4 * CELLS))
        # Each cell is judged by its own square alone.
        self.judge = nn.Conv2d(4 * w, sum(CLASSES.values()), 4, stride=4)

    def stages(self) -> list[Stage]:
        objective = "cross-entropy of what each cell shows"
        return [Stage.of(self.options, "reading", ("look", "judge"), (), objective, weight_decay=0.01)]

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, H) -> for each slot, logits (N, classes, 3, 3)."""
        logits = self.judge(self.look(pictures))
        return dict(zip(CLASSES, logits.split(list(CLASSES.values()), dim=1), strict=True))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = batch["pictures"]
        level = self.options.noise * torch.rand(len(x), 1, 1, 1, device=x.device)
        said = self(x + level * torch.randn_like(x))
        return sum(F.cross_entropy(said[slot], batch[slot], ignore_index=IGNORE) for slot in CLASSES)

    @torch.no_grad()
    def read(self, pictures: np.ndarray, batch: int = 256) -> list[tuple[Thing, ...]]:
        """The things that pictures uint8 (N, H, H, 3) show, row by row."""
        self.eval()
        found = []
        for start in range(0, len(pictures), batch):
            x = torch.from_numpy(np.ascontiguousarray(pictures[start : start + batch])).permute(0, 3, 1, 2)
            said = {slot: logits.argmax(1).numpy() for slot, logits in self(x.float() / 127.5 - 1).items()}
            found += [_things({slot: of[i] for slot, of in said.items()}) for i in range(len(x))]
        return found


def _things(cells: dict[str, np.ndarray]) -> tuple[Thing, ...]:
    """For each slot, the class of each cell (3, 3) -> the things that stand there."""
    return tuple(
        Thing(*(values[cells[slot][row, column]] for slot, values in ATTRIBUTES.items()), int(column), int(row))
        for row, column in zip(*np.nonzero(cells["filled"]), strict=True)
    )


def classes(scene: Scene) -> dict[str, np.ndarray]:
    """For each slot, the class of each cell, int64 (3, 3); IGNORE for an empty cell."""
    found = {slot: np.full((CELLS, CELLS), IGNORE if slot != "filled" else 0) for slot in CLASSES}
    for thing in scene.things:
        found["filled"][thing.row, thing.column] = 1
        for slot, values in ATTRIBUTES.items():
            found[slot][thing.row, thing.column] = values.index(getattr(thing, slot))
    return found


def score_scene(read: Sequence[Thing], scene: Scene) -> dict[str, float]:
    """How much of a scene a picture shows, by the things that were `read` from it; all scores are from 0 to 1.

    shape, colour, size: the share of the things' values that are there, whichever thing has them. place: whether the things
    stand where the caption says (NaN for equal things, of which it says nothing). bound: the share of things that are there
    with their own shape, colour and size; surplus things count as wrong. exact: whether everything that a caption of the scene
    states holds, and nothing else is there.
    """
    found = {}
    for slot in ATTRIBUTES:
        wanted, there = (Counter(getattr(t, slot) for t in of) for of in (scene.things, read))
        found[slot] = (wanted & there).total() / len(scene.things)
    wanted, there = (Counter((t.shape, t.colour, t.size) for t in of) for of in (scene.things, read))
    found["bound"] = (wanted & there).total() / max(len(scene.things), len(read))
    same = bool(read) and _shown(read) == grammar.shown(scene)
    found["exact"] = float(same)
    found["place"] = float("nan") if scene.kind == "group" else float(_stands(read, scene))
    return found


def _shown(read: Sequence[Thing]) -> Any:
    """What a caption could state of things; None if they make no scene of this world."""
    try:
        return grammar.shown(Scene(tuple(read)))
    except (KeyError, StopIteration):  # four or more things that differ, or a single thing in a place without a name
        return None


def _stands(read: Sequence[Thing], scene: Scene) -> bool:
    """Whether the right number of things stands in the right places, whatever they are: in one line like the scene's, or, for a
    single thing, in the same cell."""
    own, other = (sorted((t.row, t.column) for t in of) for of in (scene.things, read))
    if len(own) != len(other):
        return False
    if len(own) == 1:
        return own == other
    rows, columns = ([{place[axis] for place in things} for things in (own, other)] for axis in (0, 1))
    return any(len(these) == len(those) == 1 for these, those in (rows, columns))


@lru_cache(maxsize=1)
def load_scene_reader() -> SceneReader:
    """The reader that ships among the assets."""
    reader, weights = SceneReader(), load_file(runtime.asset("paint") / "scene-reader.safetensors")
    reader.load_state_dict({name: value.float() for name, value in weights.items()})
    return reader.eval()
