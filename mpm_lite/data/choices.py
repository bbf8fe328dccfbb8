"""The task that every system can do: which of ten captions belongs to the picture?

Beside its own caption stand five that are wrong in one attribute of one thing, and four of other pictures. The same ten
scenes are told in every language, so that a system's score in two languages differs by the language alone. What a caption
alone betrays is measured, by asking without the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from mpm_lite.data import grammar
from mpm_lite.data.scenes import ATTRIBUTES, Scene
from mpm_lite.runtime import UserError

CANDIDATES, HARD = 10, 5


def one_off(scene: Scene) -> list[Scene]:
    """Every scene that differs in one attribute of one thing (of all, in a group), whatever split shows it."""
    found = []
    each = [set(range(len(scene.things)))] if scene.kind == "group" else [{i} for i in range(len(scene.things))]
    for which in each:
        for slot, values in ATTRIBUTES.items():
            for value in values:
                things = tuple(replace(t, **{slot: value}) if i in which else t for i, t in enumerate(scene.things))
                other = Scene(things)
                apart = scene.kind == "group" or len({thing.pair for thing in things}) == len(things)
                if other != scene and apart:
                    found.append(other)
    return found


def choices(many: Sequence[Scene], seed: int = 0, candidates: int = CANDIDATES, hard: int = HARD) -> list[list[Scene]]:
    """For each scene its candidates: itself, `hard` that are one attribute off, then others of `many`.

    Raises UserError where there are too few other scenes.
    """
    found, facts = [], [grammar.shown(scene) for scene in many]
    for i, scene in enumerate(many):
        rng = np.random.default_rng([seed, 15, int(scene.id, 16)])
        near = one_off(scene)
        few = [near[k] for k in rng.permutation(len(near))[:hard]]
        apart = [k for k in rng.permutation(len(many)) if facts[k] != facts[i] and many[k] not in few]
        rest = list({facts[k]: many[k] for k in apart[: 4 * candidates]}.values())[: candidates - 1 - len(few)]
        if 1 + len(few) + len(rest) < candidates:
            raise UserError(f"{len(many)} scenes are too few to choose among {candidates}: take more.")
        found.append([scene, *few, *rest])
    return found


@lru_cache(maxsize=100_000)
def caption(scene: Scene, language: str) -> str:
    """The first of the captions that tell a picture in full: of one form for all candidates of a kind."""
    return grammar.in_order(scene, language)[0]


def told(asked: Sequence[Sequence[Scene]], language: str) -> list[list[str]]:
    """The candidates' captions in a language, the picture's own first."""
    return [[caption(scene, language) for scene in few] for few in asked]


def right(scores: np.ndarray) -> np.ndarray:
    """Of scores (N, K), the picture's own caption first: 1.0 where it is above all others, a tie by equal shares, (N,)."""
    best = scores == scores.max(axis=1, keepdims=True)  # (N, K)
    return best[:, 0] / best.sum(axis=1)
