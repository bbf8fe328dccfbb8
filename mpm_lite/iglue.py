"""Toy-IGLUE: the tasks of IGLUE (2201.11732) on the toy world, in ten languages, for every system that can do them.

* `retrieval`, as xFlickr: among a hundred pictures and their captions, by the system's own measure; recall, both directions.
* `true`, as XVNLI: is a statement true of a picture? False ones are wrong in one attribute.
* `either`, as MaRVL: is it true of one of two pictures?
* `answers`, as xGQA: a question in L, the answer in English; for systems that answer questions.
* captions, as XM3600, are what `asking` scores.

For `true` and `either` a system's measure needs a line between yes and no: drawn where English val statements are told apart
best, and used in every language. Nothing is fine-tuned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mpm_lite.choosing import Choosing
from mpm_lite.data import grammar, toyworld
from mpm_lite.data.instructions import questions_asked
from mpm_lite.data.scenes import Scene, one_off

RANKS = (1, 5, 10)
GALLERY = 100


def retrieval(
    bench: Choosing, recipe: Any, language: str, split: str, count: int = GALLERY, look: str = "real"
) -> np.ndarray:
    """Recall, mean over RANKS and both directions, of each picture and its caption among `count`: float64 (N,). Pictures
    that show the same count as one."""
    many = toyworld.split_scenes(split)[:count]
    told = bench.told(recipe, [[scene] for scene in many], language)
    captions = [few[0] for few in told]
    with torch.no_grad():
        seen = bench.looked(split, count, look)
        once = 1 if look == "blind" else len(many)  # blind, every row is the same
        fits = bench.fits(recipe, seen[:once], [captions] * once, language).repeat(len(many) // once, axis=0)  # (N, N)
    same = np.array([[a == b for b in captions] for a in captions])
    return (recalled(fits, same) + recalled(fits.T, same.T)) / 2


def recalled(fits: np.ndarray, same: np.ndarray) -> np.ndarray:
    """For each row of fits (N, M), the share of RANKS within which a right one (bool (N, M)) lies; ties count against."""
    best = np.where(same, fits, -np.inf).max(axis=1, keepdims=True)
    rank = 1 + ((fits >= best) & ~same).sum(axis=1)
    return np.mean([rank <= k for k in RANKS], axis=0)


def statements(many: Sequence[Scene], seed: int = 0) -> tuple[list[Scene], np.ndarray]:
    """One statement a picture, as the scene that it tells, and which are true: half, drawn evenly."""
    said, true = [], np.zeros(len(many), bool)
    for i, scene in enumerate(many):
        rng, near = np.random.default_rng([seed, 24, int(scene.id, 16)]), one_off(scene)
        true[i] = rng.random() < 0.5
        said.append(scene if true[i] else near[rng.integers(len(near))])
    return said, true


def _stated(bench: Choosing, recipe: Any, seen: Tensor, said: Sequence[Scene], language: str) -> np.ndarray:
    """How well each picture fits its statement, (N,)."""
    with torch.no_grad():
        return bench.fits(recipe, seen, bench.told(recipe, [[one] for one in said], language), language)[:, 0]


def line(fits: np.ndarray, true: np.ndarray) -> float:
    """Where to draw it: between two neighbouring values, so that most fall on their own side."""
    order = np.sort(np.unique(fits))
    between = np.concatenate([[order[0] - 1], (order[1:] + order[:-1]) / 2, [order[-1] + 1]])
    right = [np.mean((fits > at) == true) for at in between]
    return float(between[int(np.argmax(right))])


def measured(
    bench: Choosing, recipe: Any, language: str, split: str, count: int, look: str = "real"
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For `true` and `either`: how well each picture, or the better of two, fits its statement, and which are true."""
    many, seen = toyworld.split_scenes(split)[:count], bench.looked(split, count, look)
    said, true = statements(many)
    own = _stated(bench, recipe, seen, said, language)
    # Of two pictures the other shows something else: what is false of this one is false of that one too.
    facts = [grammar.shown(scene) for scene in many]
    other = np.array([next(k for k in range(i + 1, i + len(many)) if not _same(facts, said[i], k, len(many))) % len(many)
                      for i in range(len(many))])  # fmt: skip
    beside = _stated(bench, recipe, seen[torch.from_numpy(other)], said, language)
    return {"true": (own, true), "either": (np.maximum(own, beside), true)}


def _same(facts: Sequence[Any], said: Scene, k: int, count: int) -> bool:
    return facts[k % count] == grammar.shown(said)


def answered_in_english(
    bench: Any, recipe: Any, language: str, split: str, count: int, look: str = "real"
) -> np.ndarray:
    """The share of closed questions in a language whose right *English* answer is the likeliest, (N,). The bench answers
    questions: MPM chat's, or mBLIP's."""
    many = toyworld.split_scenes(split)[:count]
    soft = bench.soft(recipe, split, count, look)
    there, here = (questions_asked(many, [code], seed=5, each=2) for code in (language, "en"))
    of = np.array([e.picture for e in there])
    prompts = [f"\n{bench.closed_prompt(e.question, 'en')}\n" for e in there]
    picks = recipe.lm.choose(prompts, [e.options for e in here], soft[torch.from_numpy(of)])
    right = [e.options[pick] == e.reply for e, pick in zip(here, picks, strict=True)]
    return np.bincount(of, right, len(many)) / np.maximum(np.bincount(of, minlength=len(many)), 1)


def scores(
    bench: Any, recipe: Any, seed: int, split: str = "test", languages: Sequence[str] = grammar.LANGUAGES,
    looks: Sequence[str] = ("real", "blind"), count: int = GALLERY,
) -> pd.DataFrame:  # fmt: skip
    """One row a look, language and picture, with a column a task; NaN where the system cannot do it."""
    many, frames = toyworld.split_scenes(split)[:count], []
    lines = {task: line(*of) for task, of in measured(bench, recipe, "en", "val", count).items()}
    for look in looks:
        for language in languages:
            found = {"retrieval": retrieval(bench, recipe, language, split, count, look)}
            for task, (fits, true) in measured(bench, recipe, language, split, count, look).items():
                found[task] = ((fits > lines[task]) == true).astype(float)
            asks = hasattr(bench, "closed_prompt")
            found["english"] = (
                answered_in_english(bench, recipe, language, split, count, look) if asks else np.full(len(many), np.nan)
            )
            known = {"look": look, "language": language, "seed": seed, **bench.known(recipe, seed)}
            items = {"item": [s.id for s in many], "concept": [" ".join(s.things[0].pair) for s in many]}
            frames.append(pd.DataFrame(found).assign(**known, **items))
    return pd.concat(frames, ignore_index=True)
