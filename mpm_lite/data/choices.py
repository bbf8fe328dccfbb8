"""The task that every system can do: which of ten captions belongs to the picture?

Beside its own caption stand five that are wrong in one attribute of one thing, and four of other pictures. The same ten
scenes are told in every language, so that a system's score in two languages differs by the language alone. What a caption
alone betrays is measured, by asking without the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mpm_lite.data import grammar
from mpm_lite.data.scenes import Scene, some_off
from mpm_lite.runtime import UserError

CANDIDATES, HARD = 10, 5


def choices(many: Sequence[Scene], seed: int = 0, candidates: int = CANDIDATES, hard: int = HARD) -> list[list[Scene]]:
    """For each scene its candidates: itself, `hard` that are one attribute off, then others of `many`.

    Raises UserError where there are too few other scenes.
    """
    found, facts = [], [grammar.shown(scene) for scene in many]
    for i, scene in enumerate(many):
        rng = np.random.default_rng([seed, 15, int(scene.id, 16)])
        few = some_off(scene, rng, hard)
        apart = [k for k in rng.permutation(len(many)) if facts[k] != facts[i] and many[k] not in few]
        rest = list({facts[k]: many[k] for k in apart[: 4 * candidates]}.values())[: candidates - 1 - len(few)]
        if 1 + len(few) + len(rest) < candidates:
            raise UserError(f"{len(many)} scenes are too few to choose among {candidates}: take more.")
        found.append([scene, *few, *rest])
    return found


@lru_cache(maxsize=100_000)
def caption(scene: Scene, language: str) -> str:
    """The first of the captions that tell a picture in full: of one form for all candidates of a kind."""
    return grammar.first_in_order(scene, language)


def english(many: Sequence[Scene]) -> list[str]:
    """An English caption of each scene in full: another one, where there is another, than the one among the candidates."""
    return [grammar.in_order(scene, "en")[-1] for scene in many]


def told(asked: Sequence[Sequence[Scene]], language: str) -> list[list[str]]:
    """The candidates' captions in a language, the picture's own first."""
    return [[caption(scene, language) for scene in few] for few in asked]


def right(scores: np.ndarray) -> np.ndarray:
    """Of scores (N, K), the picture's own caption first: 1.0 where it is above all others, a tie by equal shares, (N,)."""
    best = scores == scores.max(axis=1, keepdims=True)  # (N, K)
    return best[:, 0] / best.sum(axis=1)
