"""The rivals of MLA: dual encoders that learn from captions in other languages, or hide behind a translator. And of MPM paint:
a painter whose text model is exchanged by a map that reads text alone.

bench = RivalBench()
bench.test(bench.train(Pairing("translate-train"), seed=0), seed=0, split="val")
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpm_lite.core import runtime
from mpm_lite.core.keys import Key
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.core.store import find_weights, keep_weights
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld.noise import Noise, noisy_caption
from mpm_lite.data.toyworld.scenes import Scene
from mpm_lite.experiments import mla
from mpm_lite.experiments.mla import OTHERS, Acquiring
from mpm_lite.experiments.mpm_paint import Paint, PaintBench, encoder_of
from mpm_lite.experiments.system import digest_weights
from mpm_lite.experiments.worlds import ENGLISH, MULTILINGUAL, WorldSystem, check_languages, load_world
from mpm_lite.recipes.baselines import Glue, Glued, GlueOptions, Taught, TeacherOptions, Translated
from mpm_lite.recipes.dual import Captioned, Dual, DualOptions
from mpm_lite.recipes.mla import Spoken
from mpm_lite.recipes.modules import diffusion
from mpm_lite.recipes.mpm_paint import MpmPaint
from mpm_lite.training import loop

KINDS = ("pivot", "translate-train", "in-language", "translate-test", "untranslated", "teacher")
IN_ENGLISH = ("translate-test", "untranslated")  # an English dual encoder, behind a translator or not


@dataclass(frozen=True)
class Pairing(WorldSystem):
    """One rival. "pivot": a multilingual text encoder, English captions only. "translate-train": captions of `languages`,
    English among them, evenly drawn and spoilt by `noise` where they are not English. "in-language": clean ones, of the one
    of `languages`. "translate-test": an English dual encoder reads captions that were translated to English with `noise`;
    "untranslated": it reads them as they are, which is the floor.
    "teacher": teacher learning on `parallel` sentences a language. All learn from `pairs` pictures. Raises UserError for
    anything nobody knows."""

    name = "rival"
    Options = DualOptions

    kind: str = "pivot"
    languages: tuple[str, ...] = OTHERS
    pairs: int = 12_000
    parallel: int = 4_000
    noise: float = 0.05
    world: str = "toyworld"  # or "real"
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
        self.recipe_options, self.options_of(DualOptions, self.english_options)

    @property
    def recipe_options(self) -> DualOptions | TeacherOptions:
        """The options of what learns, checked."""
        return self.options_of(TeacherOptions if self.kind == "teacher" else DualOptions, self.options)

    @property
    def reads(self) -> tuple[str, ...]:
        """The text encoders that it begins with: a teacher's pupil is another than its teacher."""
        own = (ENGLISH,) if self.kind in IN_ENGLISH else (MULTILINGUAL,)
        return (ENGLISH, MULTILINGUAL) if self.kind == "teacher" else own

    def bench(self, progress: bool = True) -> RivalBench:
        """What trains and tests it, on its world."""
        return RivalBench(progress, load_world(self.world, progress))


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
        encoder = copy.deepcopy(self.world.text(seed=seed).model)
        recipe = Dual(self.tower.width, self.seen("val").shape[1], encoder, arm.recipe_options)
        return self._fitted(recipe, lambda: self._captions(arm, seed), seed, arm.kind, asdict(arm))

    def _captions(self, arm: Pairing, seed: int) -> Captioned:
        """Pictures with captions in the languages of the arm's kind."""
        codes = {"pivot": ("en",), "translate-train": ("en", *arm.languages)}.get(arm.kind, arm.languages)
        noise = arm.noise if arm.kind == "translate-train" else 0.0
        return self.world.paired(codes, arm.pairs, noise, seed, self.ids)

    def _taught(self, arm: Pairing, seed: int) -> Taught:
        """A multilingual encoder that learned from the English dual encoder."""
        english = self.dual(Acquiring(english=arm.pairs, english_options=arm.english_options), seed)
        torch.manual_seed(seed)
        recipe = Taught(english, copy.deepcopy(self.world.text(seed=seed).model), arm.recipe_options)

        def data() -> Spoken:
            said, near = self.translated(english, arm.languages, arm.parallel, arm.noise, seed)
            return self.spoken(said, near, sorted(arm.languages), arm.recipe_options.batch)

        return self._fitted(recipe, data, seed, "teacher", [asdict(arm), digest_weights(english)])

    def told(self, recipe: Any, asked: Sequence[Sequence[Scene]], language: str) -> list[list[str]]:
        """Candidates' captions; before translate-test, what a translator makes of them in English."""
        if recipe.arm.kind != "translate-test" or language == "en":
            return super().told(recipe, asked, language)
        noise = Noise.alike(recipe.arm.noise)
        rng = lambda scene: np.random.default_rng([23, int(scene.id, 16), *language.encode()])  # noqa: E731
        return [[noisy_caption(scene, "en", noise, rng(scene), in_order=True) for scene in few] for few in asked]

    def asked(self, recipe: Any, split: str, language: str) -> list[str]:
        """The captions of real pictures asked with; behind a perfect translator, the English ones of the same pictures."""
        there = super().asked(recipe, split, language)
        if recipe.arm.kind != "translate-test":
            return there
        return [ours if theirs else "" for ours, theirs in zip(super().asked(recipe, split, "en"), there, strict=True)]

    def ids_for(self, recipe: Any, captions: Sequence[str], language: str) -> list[list[int]]:
        """Token ids, for whichever encoder reads them."""
        return self.ids(captions, ENGLISH if recipe.arm.kind in IN_ENGLISH else MULTILINGUAL)


# A rival of MPM paint.


@dataclass(frozen=True)
class Remapped(Paint):
    """The painter as it was pretrained, reading another text model's states through a map into its own encoder's, which learned
    from the prompts alone (GlueGen, 2303.10056)."""

    name = "mpm_paint_remapped"

    def bench(self, progress: bool = True) -> RemapBench:
        """The toy world as latents of its autoencoder."""
        return RemapBench(progress, self.painter or None)


class RemapBench(PaintBench):
    """Trains maps between text models; what they learned is kept in MPM_LITE_HOME/painted."""

    def train(self, arm: Remapped, seed: int, options: GlueOptions = GlueOptions()) -> MpmPaint:  # type: ignore[override]
        """The painter behind the map: computed, or read back."""
        pipe = diffusion.load_painter(runtime.asset() / diffusion.TOY)
        new, old = encoder_of(arm.encoder, arm.encoder_seed, seed, arm.layer), pipe.prompt_encoder
        prompts = self.pairs(arm, seed)
        wanted = old.cached(prompts, self.progress)
        torch.manual_seed(seed)
        glue = Glue(new.width, wanted, options)
        decides = {"prompt encoder": new.fingerprint, "painter's prompt encoder": old.fingerprint}
        learns = {"options": json.dumps(asdict(options), sort_keys=True), "seed": str(seed), "prompts": list(prompts)}
        key = Key("weights of a re-mapping", decides | learns)

        def learn(work: Path) -> dict[str, torch.Tensor]:
            plan = loop.Plan(seed, work, 250, progress=self.progress, label=f"re-mapping, seed {seed}")
            loop.fit(glue, Translated(new.cached(prompts, self.progress), wanted), plan)
            return glue.state_dict()

        glue.load_state_dict(keep_weights(find_weights(key, "painted"), learn, key))
        recipe = MpmPaint(pipe.unet.float(), old.width)
        recipe.painter.load_state_dict({f"unet.{k}": v for k, v in pipe.unet.state_dict().items()}
                                       | {f"bridge.{k}": v for k, v in pipe.bridge.float().state_dict().items()})  # fmt: skip
        recipe.encoder = Glued(new, glue.eval())
        return recipe.eval()
