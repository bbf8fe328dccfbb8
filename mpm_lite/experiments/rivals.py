"""The rivals of MLA on the toy world: dual encoders that learn from captions in other languages, or hide behind a translator.

bench = RivalBench()
bench.test(bench.train(Pairing("translate-train"), seed=0), seed=0, split="val")
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from mpm_lite.core import runtime
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld.noise import Noise, noisy_caption
from mpm_lite.data.toyworld.scenes import Scene, neighbours
from mpm_lite.evaluation.choice import WRONG
from mpm_lite.experiments import mla
from mpm_lite.experiments.mla import ENGLISH, MULTILINGUAL, OTHERS, Acquiring, check_languages
from mpm_lite.recipes.base import build_options
from mpm_lite.recipes.baselines import Taught, TeacherOptions
from mpm_lite.recipes.dual import Captioned, Dual, DualOptions
from mpm_lite.recipes.mla import Spoken
from mpm_lite.training.trained import mark

KINDS = ("pivot", "translate-train", "in-language", "translate-test", "untranslated", "teacher")
IN_ENGLISH = ("translate-test", "untranslated")  # an English dual encoder, behind a translator or not


@dataclass(frozen=True)
class Pairing:
    """One rival. "pivot": a multilingual text encoder, English captions only. "translate-train": captions of `languages`,
    English among them, evenly drawn and spoilt by `noise` where they are not English. "in-language": clean ones, of the one
    of `languages`. "translate-test": an English dual encoder reads captions that were translated to English with `noise`;
    "untranslated": it reads them as they are, which is the floor.
    "teacher": teacher learning on `parallel` sentences a language. All learn from `pairs` pictures. Raises UserError for
    anything nobody knows."""

    kind: str = "pivot"
    languages: tuple[str, ...] = OTHERS
    pairs: int = 12_000
    parallel: int = 4_000
    noise: float = 0.05
    world: str = "toyworld"  # or "real", as `worlds.PairingReal` has it
    options: dict[str, Any] = field(default_factory=dict)
    english_options: dict[str, Any] = field(default_factory=dict)  # of the dual encoder that a teacher is

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("rival", self.kind, KINDS)
        check_languages(self.languages, self.world)
        if self.kind == "in-language" and len(self.languages) != 1:
            raise UserError("In-language training is of one language: name one.")
        if max(self.pairs, self.parallel) > toyworld.COUNTS["train"]:
            raise UserError(
                f"toyworld has {toyworld.COUNTS['train']} training pictures: take no more captions of them."
            )

    @property
    def recipe_options(self) -> DualOptions | TeacherOptions:
        """The options of what learns, checked."""
        if self.kind == "teacher":
            return build_options(TeacherOptions, self.options)
        return build_options(DualOptions, {"bf16": runtime.fast_bf16()} | self.options)


class RivalBench(mla.MlaBench):
    """Trains rivals; what was trained is kept in MPM_LITE_HOME/acquired, the English dual encoder shared with MLA's bench."""

    def train(self, arm: Pairing, seed: int) -> Any:  # type: ignore[override]
        """The trained rival, which knows its `arm`."""
        self.check_world(arm)
        if arm.kind in IN_ENGLISH:
            found: Any = self.dual(Acquiring(english=arm.pairs, english_options=arm.options), seed)
        else:
            found = self._taught(arm, seed) if arm.kind == "teacher" else self._paired(arm, seed)
        found.arm = arm
        return found

    def _paired(self, arm: Pairing, seed: int) -> Dual:
        """A dual encoder whose text encoder reads all languages."""
        torch.manual_seed(seed)
        encoder = copy.deepcopy(self.text().model)
        recipe = Dual(self.tower.width, self.seen("val").shape[1], encoder, arm.recipe_options)
        return self._fitted(recipe, lambda: self._captions(arm, seed), seed, arm.kind, asdict(arm))

    def _captions(self, arm: Pairing, seed: int) -> Captioned:
        """Pictures, each with a caption in a language of the arm's and some that are wrong in one attribute."""
        many, rng = toyworld.split_scenes("train")[: arm.pairs], np.random.default_rng([seed, 22])
        codes = {"pivot": ("en",), "translate-train": ("en", *arm.languages)}.get(arm.kind, arm.languages)
        noise = Noise.alike(arm.noise if arm.kind == "translate-train" else 0.0)
        told = []
        for scene in many:
            code = codes[rng.integers(len(codes))]
            few = [scene, *neighbours(scene, rng, WRONG)]
            told.append([self._said(one, code, noise if code != "en" else Noise(), rng) for one in few])
        return Captioned.encoded(
            self.seen("train", arm.pairs), [own for own, *_ in told], [wrong for _, *wrong in told], self.ids
        )

    @staticmethod
    def _said(scene: Scene, language: str, noise: Noise, rng: np.random.Generator) -> str:
        return noisy_caption(scene, language, noise, rng, in_order=True)

    def _taught(self, arm: Pairing, seed: int) -> Taught:
        """A multilingual encoder that learned from the English dual encoder."""
        english = self.dual(Acquiring(english=arm.pairs, english_options=arm.english_options), seed)
        torch.manual_seed(seed)
        recipe = Taught(english, copy.deepcopy(self.text().model), arm.recipe_options)

        def data() -> Spoken:
            said, near = self.translated(english, arm.languages, arm.parallel, arm.noise, seed)
            return self.spoken(said, near, sorted(arm.languages), arm.recipe_options.batch)

        return self._fitted(recipe, data, seed, "teacher", [asdict(arm), mark(english)])

    def told(self, recipe: Any, asked: Sequence[Sequence[Scene]], language: str) -> list[list[str]]:
        """Candidates' captions; before translate-test, what a translator makes of them in English."""
        if recipe.arm.kind != "translate-test" or language == "en":
            return super().told(recipe, asked, language)
        noise = Noise.alike(recipe.arm.noise)
        rng = lambda scene: np.random.default_rng([23, int(scene.id, 16), *language.encode()])  # noqa: E731
        return [[self._said(scene, "en", noise, rng(scene)) for scene in few] for few in asked]

    def ids_for(self, recipe: Any, captions: Sequence[str], language: str) -> list[list[int]]:
        """Token ids, for whichever encoder reads them."""
        return self.ids(captions, ENGLISH if recipe.arm.kind in IN_ENGLISH else MULTILINGUAL)
