"""Which of ten captions belongs to the picture: how every system is asked, and scored, picture by picture.

A bench says how well captions fit a picture, in whatever measure its system has (log-likelihood, matching logit, cosine);
the rest is the same for all. The captions are those of `data.choices`, in ten languages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mpm_lite.data import choices, grammar, load_captions, toyworld
from mpm_lite.data.scenes import Scene, neighbours
from mpm_lite.recipes.dual import Captioned
from mpm_lite.runtime import UserError, unknown
from mpm_lite.towers.features import patch_features
from mpm_lite.towers.image import load_image_tower

LOOKS = ("real", "blind", "shuffled")  # the picture; one mean picture for all; another's
ENGLISH = "english"  # no picture, but its English caption as text
SCORES = ("choice", "hard")
WRONG = 2  # captions wrong in one attribute, beside each picture that a system learns to match


class Choosing(ABC):
    """What a bench needs for the common task: pictures, and how well captions fit them. `world` is whose pictures they are."""

    world = "toyworld"

    def check_world(self, arm: Any) -> None:
        """UserError for an arm of another world than this bench's: it would be trained on pictures that are not its own."""
        if arm.world != self.world:
            raise UserError(f"An arm of world={arm.world!r} cannot be trained on the pictures of {self.world!r}.")

    @abstractmethod
    def seen(self, split: str, count: int | None = None) -> Tensor:
        """The first `count` pictures of a split as a recipe takes them, (M, P, D_in)."""

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
        looks: Sequence[str] = ("real", "blind"), count: int = 200,
    ) -> pd.DataFrame:  # fmt: skip
        """One row a look, language (of all that the recipe reads, if none is named) and picture.

        choice: its own caption of ten comes first; hard: of its own and the five that are wrong in one attribute. A tie
        counts by equal shares.
        """
        many, frames = toyworld.split_scenes(split)[:count], []
        asked = choices.choices(many, seed=0)
        recipe.eval()
        gold = choices.english(many) if ENGLISH in looks else []
        for look in looks:
            seen = None if look == ENGLISH else self.looked(split, count, look)
            for language in languages or self.languages(recipe):
                told = self.told(recipe, asked, language)
                with torch.no_grad():
                    if seen is None:
                        fits = self.fits_text(recipe, gold, told, language)
                    else:
                        fits = self.fits(recipe, seen, told, language)
                scores = {"choice": choices.right(fits), "hard": choices.right(fits[:, : 1 + choices.HARD])}
                known = {"look": look, "language": language, "seed": seed, **self.known(recipe, seed)}
                items = {"item": [s.id for s in many], "concept": [" ".join(s.things[0].pair) for s in many]}
                frames.append(pd.DataFrame(scores).assign(**known, **items))
        return pd.concat(frames, ignore_index=True)

    def told(self, recipe: Any, asked: Sequence[Sequence[Scene]], language: str) -> list[list[str]]:
        """The candidates' captions as a system reads them, the picture's own first."""
        return choices.told(asked, language)

    def looked(self, split: str, count: int, look: str) -> Tensor:
        """Pictures as one of LOOKS shows them, (N, P, D_in)."""
        if look not in LOOKS:
            raise unknown("way to look", look, LOOKS)
        seen = self.seen(split, count).float()
        if look == "blind":
            return seen.mean(dim=0, keepdim=True).expand_as(seen)
        return seen.roll(1, dims=0) if look == "shuffled" else seen


class Pictured(Choosing):
    """A bench whose pictures are one image tower's patches, cached, and whose test is the common task."""

    def __init__(self, image: str = "toy", progress: bool = True) -> None:
        self.tower, self.progress = load_image_tower(image), progress
        self._seen: dict[tuple[str, int], Tensor] = {}

    def seen(self, split: str, count: int | None = None) -> Tensor:
        """Patches of the first `count` pictures of a split, float16 (M, P, D_in)."""
        count = count or toyworld.COUNTS[split]
        if (split, count) not in self._seen:
            few = load_captions("toyworld", split).take(np.arange(count))
            self._seen[split, count] = torch.from_numpy(patch_features(few, self.tower, self.progress))
        return self._seen[split, count]

    def test(self, recipe: Any, seed: int, *asked: Any, **more: Any) -> pd.DataFrame:
        """See `choose`."""
        return self.choose(recipe, seed, *asked, **more)


def captioned(seen: Tensor, count: int, seed: int, encode: Callable[[Sequence[str]], list[list[int]]]) -> Captioned:
    """The first training pictures, each with an English caption and WRONG that are wrong in one attribute and tell of
    training scenes too: else a caption would be known for wrong by what a split holds out."""
    many, rng = toyworld.split_scenes("train")[:count], np.random.default_rng([seed, 16])
    wrong = [[choices.caption(other, "en") for other in neighbours(scene, rng, WRONG)] for scene in many]
    return Captioned.encoded(seen, [choices.caption(scene, "en") for scene in many], wrong, encode)
