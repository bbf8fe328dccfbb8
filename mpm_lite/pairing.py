"""The rivals of MLA on the toy world: dual encoders that learn from captions in other languages, or hide behind a translator.

bench = Bench()
bench.test(bench.train(Pairing("translate-train"), seed=0), seed=0, split="val")
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from mpm_lite import acquiring, runtime
from mpm_lite.acquiring import ENGLISH, MULTILINGUAL, OTHERS, Acquiring, tower
from mpm_lite.choosing import WRONG
from mpm_lite.data import choices, grammar, toyworld
from mpm_lite.data.noise import Noise, noisy_caption
from mpm_lite.data.scenes import Scene
from mpm_lite.keeping import mark
from mpm_lite.recipes.base import build_options
from mpm_lite.recipes.dual import Captioned, Dual, DualOptions
from mpm_lite.recipes.mla import Spoken
from mpm_lite.recipes.rivals import Taught, TeacherOptions
from mpm_lite.runtime import UserError, unknown

KINDS = ("pivot", "translate-train", "in-language", "translate-test", "teacher")


@dataclass(frozen=True)
class Pairing:
    """One rival. "pivot": a multilingual text encoder, English captions only. "translate-train": captions of `languages`,
    English among them, evenly drawn and spoilt by `noise` where they are not English. "in-language": clean ones, of the one
    of `languages`. "translate-test": an English dual encoder reads captions that were translated to English with `noise`.
    "teacher": teacher learning on `parallel` sentences a language. All learn from `pairs` pictures. Raises UserError for
    anything nobody knows."""

    kind: str = "pivot"
    languages: tuple[str, ...] = OTHERS
    pairs: int = 12_000
    parallel: int = 4_000
    noise: float = 0.05
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("rival", self.kind, KINDS)
        for language in self.languages:
            grammar.grammar(language)
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


class Bench(acquiring.Bench):
    """Trains rivals; what was trained is kept in MPM_LITE_HOME/acquired, the English dual encoder shared with MLA's bench."""

    def train(self, arm: Pairing, seed: int) -> Any:  # type: ignore[override]
        """The trained rival."""
        if arm.kind == "translate-test":
            found: Any = _English(self.dual(Acquiring(english=arm.pairs, english_options=arm.options), seed))
        elif arm.kind == "teacher":
            found = self._taught(arm, seed)
        else:
            found = _Multilingual(self._paired(arm, seed))
        found.arm = arm
        return found

    def _paired(self, arm: Pairing, seed: int) -> Dual:
        """A dual encoder whose text encoder reads all languages."""
        torch.manual_seed(seed)
        encoder = copy.deepcopy(tower(MULTILINGUAL).model)
        recipe = Dual(self.tower.width, self.seen("val").shape[1], encoder, arm.recipe_options)
        return self._fitted(recipe, lambda: self._captions(arm, seed), seed, arm.kind, asdict(arm))

    def _captions(self, arm: Pairing, seed: int) -> Captioned:
        """Pictures, each with a caption in a language of the arm's and some that are wrong in one attribute."""
        many, rng = toyworld.split_scenes("train")[: arm.pairs], np.random.default_rng([seed, 22])
        codes = {"pivot": ("en",), "translate-train": ("en", *arm.languages)}.get(arm.kind, arm.languages)
        noise = Noise(*(arm.noise,) * 3) if arm.kind == "translate-train" else Noise()
        own, wrong = [], []
        for scene in many:
            near, code = choices.one_off(scene), codes[rng.integers(len(codes))]
            few = [scene, *(near[k] for k in rng.permutation(len(near))[:WRONG])]
            said = [self._said(one, code, noise if code != "en" else Noise(), rng) for one in few]
            own.append(said[0])
            wrong += said[1:]
        rows = self.ids([*own, *wrong])
        grouped = [rows[k : k + WRONG] for k in range(len(own), len(rows), WRONG)]
        return Captioned(self.seen("train", arm.pairs), rows[: len(own)], grouped)

    @staticmethod
    def _said(scene: Scene, language: str, noise: Noise, rng: np.random.Generator) -> str:
        return noisy_caption(scene, language, noise, rng, in_order=True)

    def _taught(self, arm: Pairing, seed: int) -> Taught:
        """A multilingual encoder that learned from the English dual encoder."""
        english = self.dual(Acquiring(english=arm.pairs), seed)
        torch.manual_seed(seed)
        recipe = Taught(english, copy.deepcopy(tower(MULTILINGUAL).model), arm.recipe_options)

        def data() -> Spoken:
            many = toyworld.split_scenes("train")[-arm.parallel :]
            noise = Noise(*(arm.noise,) * 3)
            said = [self._told(scene, code, noise, seed) for code in arm.languages for scene in many]
            codes = [code for code in arm.languages for _ in many]
            of = list(range(len(many))) * len(arm.languages)
            near = self.vectors(english, many)
            return Spoken(self.ids(said), codes, near, of, arm.recipe_options.batch, sorted(arm.languages))

        return self._fitted(recipe, data, seed, "teacher", [asdict(arm), mark(english)])

    def told(self, recipe: Any, asked: Sequence[Sequence[Scene]], language: str) -> list[list[str]]:
        """Candidates' captions; before translate-test, what a translator makes of them in English."""
        if recipe.arm.kind != "translate-test" or language == "en":
            return super().told(recipe, asked, language)
        noise = Noise(*(recipe.arm.noise,) * 3)
        rng = lambda scene: np.random.default_rng([23, int(scene.id, 16), *language.encode()])  # noqa: E731
        return [[self._said(scene, "en", noise, rng(scene)) for scene in few] for few in asked]

    def ids_for(self, recipe: Any, captions: Sequence[str], language: str) -> list[list[int]]:
        """Token ids, for whichever encoder reads them."""
        return self.ids(captions, ENGLISH if type(recipe) is _English else MULTILINGUAL)


class _English:
    """A dual encoder that reads English, whatever it is asked in."""

    def __init__(self, dual: Dual) -> None:
        self.dual, self.name, self.arm = dual, dual.name, None

    def eval(self) -> _English:
        self.dual.eval()
        return self

    def predict(self, inputs: Any) -> Any:
        return self.dual.predict(inputs)

    def text(self, ids: Any, language: str) -> Any:
        return self.dual.text(ids)


class _Multilingual(_English):
    """A dual encoder whose text encoder reads every language."""
