"""Which of ten captions belongs to the picture: how every system is asked, and scored, picture by picture.

A bench says how well captions fit a picture, in whatever measure its system has (log-likelihood, matching logit, cosine);
the rest is the same for all. The captions are those of `exchanges.choices`, in ten languages.

*Toy-IGLUE* stands below: the tasks of IGLUE (2201.11732) on the toy world, in ten languages, for every system that can do
them.

* `retrieval`, as xFlickr: among a hundred pictures and their captions, by the system's own measure; recall, both directions.
* `true`, as XVNLI: is a statement true of a picture? False ones are wrong in one attribute.
* `english`, as xGQA: a question in L, the answer in English; for systems that answer questions.
* captions, as XM3600, are what `evaluation.chat` scores.

For `true` a system's measure needs a line between yes and no: drawn where English val statements are told apart best, and used
in every language. Nothing is fine-tuned. MaRVL's pairs of pictures have no counterpart here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mpm_lite import ops
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import exchanges, grammar
from mpm_lite.data.toyworld.scenes import Scene, draw_neighbours, one_off
from mpm_lite.evaluation import retrieval
from mpm_lite.recipes.dual import Captioned

LOOKS = ("real", "blind", "shuffled")  # the picture; one mean picture for all; another's
ENGLISH = "english"  # no picture, but its English caption as text
SCORES = ("choice", "hard")
WRONG = 2  # captions wrong in one attribute, beside each picture that a system learns to match


class Choosing(ABC):
    """What a bench needs for the common task: pictures, and how well captions fit them."""

    @abstractmethod
    def seen(self, split: str, count: int | None = None, first: int = 0) -> Tensor:
        """`count` pictures of a split from the number `first` on, as a recipe takes them, (M, P, D_in)."""

    @abstractmethod
    def fits(self, recipe: Any, seen: Tensor, captions: Sequence[Sequence[str]], language: str) -> np.ndarray:
        """How well each picture (N, P, D_in) fits each of its K captions in a language, float64 (N, K)."""

    def fits_text(
        self, recipe: Any, given: Sequence[str], captions: Sequence[Sequence[str]], language: str
    ) -> np.ndarray:
        """How well an English caption, which stands in the picture's place, fits each of K captions in a language, float64
        (N, K). UserError for a system that cannot read text there."""
        raise UserError(
            f"{recipe.name} has no way to read a caption in the picture's place: leave the look 'english' out."
        )

    def languages(self, recipe: Any) -> Sequence[str]:
        """Those that a recipe may be asked in."""
        return grammar.LANGUAGES

    def known(self, recipe: Any, seed: int) -> dict[str, Any]:
        """What else a row says of the run: `lm`, the model that was pretrained apart, and `lm_seed`, which of those."""
        return {"lm": recipe.name, "lm_seed": seed}

    def choose(
        self, recipe: Any, seed: int, split: str = "test", languages: Sequence[str] = (),
        looks: Sequence[str] = ("real", "blind"), count: int = 200, first: int = 0,
    ) -> pd.DataFrame:  # fmt: skip
        """One row a look, language (of all that the recipe reads, if none is named) and picture.

        choice: its own caption of ten comes first; hard: of its own and the five that are wrong in one attribute. A tie
        counts by equal shares.
        """
        many, frames = toyworld.split_scenes(split)[first : first + count], []
        asked = exchanges.draw_candidates(many, seed=0)
        recipe.eval()
        gold = exchanges.write_english(many) if ENGLISH in looks else []
        for look in looks:
            seen = None if look == ENGLISH else self.looked(split, count, look, first)
            for language in languages or self.languages(recipe):
                told = self.told(recipe, asked, language)
                with torch.no_grad():
                    if seen is None:
                        fits = self.fits_text(recipe, gold, told, language)
                    else:
                        fits = self.fits(recipe, seen, told, language)
                right = [exchanges.score_choices(fits[:, :k]) for k in (None, 1 + exchanges.HARD)]
                known = {"look": look, "language": language, "seed": seed, **self.known(recipe, seed)}
                scores = pd.DataFrame(dict(zip(SCORES, right, strict=True)))
                frames.append(scores.assign(**known, **toyworld.name_items(many)))
        return pd.concat(frames, ignore_index=True)

    def test(self, recipe: Any, seed: int, *asked: Any, **more: Any) -> pd.DataFrame:
        """See `choose`, which is the test of a bench that has no other."""
        return self.choose(recipe, seed, *asked, **more)

    def told(self, recipe: Any, asked: Sequence[Sequence[Scene]], language: str) -> list[list[str]]:
        """The candidates' captions as a system reads them, the picture's own first."""
        return exchanges.write_candidates(asked, language)

    def looked(self, split: str, count: int, look: str, first: int = 0) -> Tensor:
        """Pictures as one of LOOKS shows them, (N, P, D_in)."""
        if look not in LOOKS:
            raise unknown("way to look", look, LOOKS)
        seen = self.seen(split, count, first=first).float()
        if look == "blind":
            return seen.mean(dim=0, keepdim=True).expand_as(seen)
        return seen.roll(1, dims=0) if look == "shuffled" else seen


def pair_captions(seen: Tensor, count: int, seed: int, encode: Callable[[Sequence[str]], list[list[int]]]) -> Captioned:
    """The first training pictures, each with an English caption and WRONG that are wrong in one attribute and tell of
    training scenes too: else a caption would be known for wrong by what a split holds out."""
    many, rng = toyworld.split_scenes("train")[:count], np.random.default_rng([seed, 16])
    wrong = [[exchanges.caption(other, "en") for other in draw_neighbours(scene, rng, WRONG)] for scene in many]
    return Captioned.encoded(seen, [exchanges.caption(scene, "en") for scene in many], wrong, encode)


# Toy-IGLUE.

RANKS = (1, 5, 10)
GALLERY = 100


def score_recall(
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
    return (recall_of_ranks(fits, same) + recall_of_ranks(fits.T, same.T)) / 2


def recall_of_ranks(fits: np.ndarray, same: np.ndarray) -> np.ndarray:
    """For each row of fits (N, M), the share of RANKS within which a right one (bool (N, M)) lies; ties in random order."""
    best = np.where(same, fits, -np.inf).max(axis=1, keepdims=True)
    counts = (fits > best) & ~same, (fits == best) & ~same, (fits == best) & same
    ranks = ops.Ranks(*(torch.from_numpy(of.sum(axis=1)) for of in counts))
    return np.mean([retrieval.expected_hits(ranks, k) for k in RANKS], axis=0)


def draw_statements(many: Sequence[Scene], seed: int = 0) -> tuple[list[Scene], np.ndarray]:
    """One statement a picture, as the scene that it tells, and which are true: half, drawn evenly."""
    said, true = [], np.zeros(len(many), bool)
    for i, scene in enumerate(many):
        rng, near = np.random.default_rng([seed, 24, int(scene.id, 16)]), one_off(scene)
        true[i] = rng.random() < 0.5
        said.append(scene if true[i] else near[rng.integers(len(near))])
    return said, true


def draw_line(fits: np.ndarray, true: np.ndarray) -> float:
    """Where to draw it: between two neighbouring values, so that most fall on their own side."""
    order = np.sort(np.unique(fits))
    between = np.concatenate([[order[0] - 1], (order[1:] + order[:-1]) / 2, [order[-1] + 1]])
    right = [np.mean((fits > at) == true) for at in between]
    return float(between[int(np.argmax(right))])


def measure_statements(
    bench: Choosing, recipe: Any, language: str, split: str, count: int, look: str = "real"
) -> tuple[np.ndarray, np.ndarray]:
    """How well each picture fits its statement, and which statements are true: (N,) each."""
    seen = bench.looked(split, count, look)
    said, true = draw_statements(toyworld.split_scenes(split)[:count])
    with torch.no_grad():
        fits = bench.fits(recipe, seen, bench.told(recipe, [[one] for one in said], language), language)  # (N, 1)
    return fits[:, 0], true


def answer_in_english(bench: Any, recipe: Any, language: str, split: str, count: int, look: str = "real") -> np.ndarray:
    """The share of closed questions in a language whose right *English* answer is the likeliest, (N,). The bench answers
    questions: MPM chat's, or mBLIP's."""
    soft = bench.soft(recipe, split, count, look)
    return bench.answered(recipe, soft, toyworld.split_scenes(split)[:count], language, reply="en")


def score_iglue(
    bench: Any, recipe: Any, seed: int, split: str = "test", languages: Sequence[str] = grammar.LANGUAGES,
    looks: Sequence[str] = ("real", "blind"), count: int = GALLERY,
) -> pd.DataFrame:  # fmt: skip
    """One row a look, language and picture, with a column a task; NaN where the system cannot do it."""
    many, frames = toyworld.split_scenes(split)[:count], []
    line = draw_line(*measure_statements(bench, recipe, "en", "val", count))
    for look in looks:
        for language in languages:
            fits, true = measure_statements(bench, recipe, language, split, count, look)
            found = {
                "retrieval": score_recall(bench, recipe, language, split, count, look),
                "true": ((fits > line) == true).astype(float),
            }
            asks = hasattr(bench, "closed_prompt")
            found["english"] = (
                answer_in_english(bench, recipe, language, split, count, look) if asks else np.full(len(many), np.nan)
            )
            known = {"look": look, "language": language, "seed": seed, **bench.known(recipe, seed)}
            frames.append(pd.DataFrame(found).assign(**known, **toyworld.name_items(many)))
    return pd.concat(frames, ignore_index=True)
