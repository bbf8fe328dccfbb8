"""MLA on the toy world as an experiment: the English dual encoder, what each language learns from, and the common task.

bench = MlaBench()
bench.test(bench.train(Acquiring(), seed=0), seed=0, split="val")
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import grammar
from mpm_lite.evaluation import retrieval
from mpm_lite.experiments.m3p import M3pBench, Matching
from mpm_lite.experiments.system import deciding_dials, digest_weights, train_once
from mpm_lite.experiments.worlds import (
    ENGLISH,
    MULTILINGUAL,
    Sentences,
    WorldBench,
    WorldSystem,
    check_languages,
    load_world,
)
from mpm_lite.recipes.dual import Captioned, Dual, DualOptions
from mpm_lite.recipes.mla import EXPOSURE, Mla, MlaOptions, Spoken
from mpm_lite.towers.text import padded

SHORT_ENGLISH = {"steps": 800}


OTHERS = tuple(code for code in grammar.LANGUAGES if code != "en")
TABLES = ("tower", "masked text")


@dataclass(frozen=True)
class Acquiring(WorldSystem):
    """One arm. The English dual encoder learns from `english` captioned pictures. Languages then learn together, from
    `parallel` sentences a language that translate English captions (none of whose pictures is shown), and from `pairs`
    captioned pictures a language; `noise` spoils what is not English, `shuffled` gives each sentence another's translation,
    and each caption another's picture. `then` are languages that come later, one by one, when the embedding has stopped
    learning. For `afterwards` steps the English encoder is trained on, with all pictures of train, and the acquirers stay
    as they are. The embedding starts from `table`: that of the multilingual "tower", which read translations (on real pictures
    e5's), or one that M3P's encoder learned from "masked text" in ten languages, without any. Raises UserError for anything
    nobody knows."""

    name = "mla"
    Options = MlaOptions

    languages: tuple[str, ...] = OTHERS
    then: tuple[str, ...] = ()
    english: int = 12_000
    parallel: int = 4_000
    pairs: int = 4_000
    noise: float = 0.0
    shuffled: bool = False
    afterwards: int = 0
    world: str = "toyworld"  # or "real": emoji, stamps and clip art
    table: str = field(default="tower", metadata={"added": True})
    options: dict[str, Any] = field(default_factory=dict)
    english_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_languages((*self.languages, *self.then), self.world)
        if "en" in (*self.languages, *self.then):
            raise UserError("English is what the dual encoder was trained on: name other languages.")
        if self.table not in TABLES:
            raise unknown("table to start from", self.table, TABLES)
        if self.table != "tower" and self.world != "toyworld":
            raise UserError(
                f"In the world {self.world!r} the embedding starts from its text encoder: leave table='tower'."
            )
        most = toyworld.COUNTS["train"]
        if max(self.english, self.parallel, self.pairs) > most:
            raise UserError(f"toyworld has {most} training pictures: take no more captions of them.")
        self.recipe_options, self.dual_options  # noqa: B018  what is wrong with them is to be told now

    @property
    def dual_options(self) -> DualOptions:
        """The English dual encoder's options, checked."""
        return self.options_of(DualOptions, self.english_options)

    @property
    def reads(self) -> tuple[str, ...]:
        """The English encoder, and the one whose table of words the non-native embedding begins with."""
        return (ENGLISH, MULTILINGUAL)

    def bench(self, progress: bool = True) -> MlaBench:
        """What trains and tests it, on its world."""
        return MlaBench(progress, load_world(self.world, progress))


class MlaBench(WorldBench):
    """Trains English dual encoders and their acquirers; whatever was trained is kept in MPM_LITE_HOME/acquired."""

    _read: dict[str, dict[str, Tensor]] | None = None  # by language and caption, while a recipe is asked

    def ids(self, captions: Sequence[str], name: str = MULTILINGUAL) -> list[list[int]]:
        """Token ids of captions, as that tower's model reads them."""
        return self.world.text(name).tokenizer(list(captions))["input_ids"]

    def ids_for(self, recipe: Any, captions: Sequence[str], language: str) -> list[list[int]]:
        """Token ids, for whichever encoder reads them: the English one, or what stands beside it."""
        return self.ids(captions, ENGLISH if language == "en" else MULTILINGUAL)

    # the English model

    def dual(self, arm: Acquiring, seed: int) -> Dual:
        """The English dual encoder of an arm: computed, or read back."""
        torch.manual_seed(seed)
        encoder = copy.deepcopy(self.world.text(ENGLISH, seed).model)
        recipe = Dual(self.tower.width, self.seen("val").shape[1], encoder, arm.dual_options)
        return self._fitted(recipe, lambda: self.captioned(arm.english, seed), seed, "English", arm.english)

    def captioned(self, count: int, seed: int) -> Captioned:
        """What the English dual encoder learns from."""
        return self.world.captioned(count, seed, lambda texts: self.ids(texts, ENGLISH))

    # the other languages

    def train(self, arm: Acquiring, seed: int) -> Mla:
        """The English dual encoder with its acquirers. Arms that differ in what comes later share what came first."""
        self.check_world(arm)
        english = self.dual(arm, seed)
        start, before = digest_weights(english), copy.deepcopy(english)
        first = json.dumps(deciding_dials(replace(arm, then=(), afterwards=0)), sort_keys=True)

        def acquired(recipe: Mla, languages: Sequence[str], told: str) -> Mla:
            data = lambda: self.stages(arm, before, recipe.names, languages, seed)  # noqa: E731
            return self._fitted(recipe, data, seed, " ".join(languages), [first, told])

        recipe = acquired(self._mla(english, arm.languages, arm, seed), arm.languages, start)
        for language in arm.then:
            wider = self._mla(english, (*recipe.names, language), arm, seed)
            wider.load_state_dict(recipe.state_dict(), strict=False)
            wider.adding = language
            recipe = acquired(wider, (language,), digest_weights(recipe))
        recipe.adding = ""
        if arm.afterwards:
            later = copy.copy(english)  # of the same weights
            later.options = replace(arm.dual_options, steps=arm.afterwards, text="trained")
            many = toyworld.COUNTS["train"]
            self._fitted(later, lambda: self.captioned(many, seed + 1), seed, "English, afterwards", start)
        return recipe.eval()

    def _mla(self, english: Dual, languages: Sequence[str], arm: Acquiring, seed: int) -> Mla:
        encoder = self.world.text(seed=seed).model
        if arm.table != "tower":
            encoder = (
                M3pBench(self.progress, self.world).train(Matching(switch=None, options={"steps": 0}), seed).encoder
            )
        torch.manual_seed(seed)
        return Mla(english, languages, encoder.get_input_embeddings().weight, arm.recipe_options)

    def stages(
        self, arm: Acquiring, english: Dual, names: Sequence[str], languages: Sequence[str], seed: int
    ) -> list[Spoken]:
        """What each stage learns from, in `languages` of the recipe's `names`."""
        o, found = arm.recipe_options, []
        for stage in o.order.split():
            if stage == EXPOSURE:
                said = self.world.captions(languages, arm.pairs, arm.noise, seed)
                near = self.seen("train", arm.pairs)
            else:
                said, near = self.translated(english, languages, arm.parallel, arm.noise, seed)
            found.append(self.spoken(said, near, names, o.batch, seed if arm.shuffled else None))
        return found

    def spoken(
        self, said: Sentences, near: Tensor, names: Sequence[str], batch: int, shuffled: int | None = None
    ) -> Spoken:
        """Texts beside what each should come `near`; with a seed in `shuffled`, beside another's."""
        of = said.of
        if shuffled is not None:
            of = np.random.default_rng([shuffled, 25]).permutation(len(near))[of].tolist()
        return Spoken(self.ids(said.texts), said.languages, near, of, batch, names)

    def translated(
        self, english: Dual, languages: Sequence[str], count: int, noise: float, seed: int
    ) -> tuple[Sentences, Tensor]:
        """Parallel sentences of other languages, and where the English dual encoder puts the English ones, (M, D)."""
        ours, theirs = self.world.translations(languages, count, noise, seed)
        return theirs, self.vectors(english, ours)

    @torch.no_grad()
    def vectors(self, english: Dual, captions: Sequence[str]) -> Tensor:
        """Where the English dual encoder puts English captions, (M, D)."""
        rows = self.ids(captions, ENGLISH)
        english.eval()
        return torch.cat([english.text(padded(rows[k : k + 256])) for k in range(0, len(rows), 256)])

    # asking

    def languages(self, recipe: Any) -> Sequence[str]:
        """English, and those that were acquired."""
        return [code for code in grammar.LANGUAGES if code == "en" or code in getattr(recipe, "names", OTHERS)]

    @torch.no_grad()
    def fits(self, recipe: Any, seen: Tensor, captions: Sequence[Sequence[str]], language: str) -> np.ndarray:
        """Cosines of pictures and captions."""
        image = torch.cat([recipe.predict({"seen": part})["image"] for part in seen.split(256)])
        return self.cosines(recipe, image, captions, language)

    @torch.no_grad()
    def fits_text(
        self, recipe: Any, given: Sequence[str], captions: Sequence[Sequence[str]], language: str
    ) -> np.ndarray:
        """Cosines of English captions and captions."""
        return self.cosines(recipe, self.texts(recipe, given, "en"), captions, language)

    def cosines(self, recipe: Any, of: Tensor, captions: Sequence[Sequence[str]], language: str) -> np.ndarray:
        """Cosines of N vectors (N, D) and K captions each, float64 (N, K)."""
        flat = [caption for few in captions for caption in few]
        text = self.texts(recipe, flat, language).view(len(captions), -1, of.shape[-1])  # (N, K, D)
        return (of[:, None] * text).sum(dim=-1).double().numpy()

    def texts(self, recipe: Any, captions: Sequence[str], language: str) -> Tensor:
        """Where captions lie, (M, D) unit norm."""
        if self._read is None:
            return self._texts(recipe, captions, language)
        known = self._read.setdefault(language, {})
        if new := [caption for caption in dict.fromkeys(captions) if caption not in known]:
            known.update(zip(new, self._texts(recipe, new, language), strict=True))
        return torch.stack([known[caption] for caption in captions])

    @torch.no_grad()
    def recalled(self, recipe: Any, seen: Tensor, said: Sequence[str], there: np.ndarray, language: str) -> np.ndarray:
        """R@10 of each picture by its caption among all."""
        image = torch.cat([recipe.predict({"seen": part})["image"] for part in seen.split(256)])
        text, found = torch.zeros_like(image), np.full(len(said), np.nan)
        text[torch.from_numpy(there)] = self.texts(recipe, [said[i] for i in there], language)
        found[there] = retrieval.score_retrieval(image, text, there, retrieval.group_captions(list(said)))["t2i_r@10"]
        return found

    @torch.no_grad()
    def _texts(self, recipe: Any, captions: Sequence[str], language: str) -> Tensor:
        """The same; equal ones are computed once."""
        once = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        rows = self.ids_for(recipe, list(once), language)
        parts = (padded(rows[k : k + 256]) for k in range(0, len(rows), 256))
        found = torch.cat([F.normalize(recipe.text(ids, language), dim=-1) for ids in parts])
        return found[[once[caption] for caption in captions]]

    def choose(self, *asked: Any, **more: Any) -> pd.DataFrame:
        """See `World.choose`; where both looks ask with the same captions, those are read once."""
        self._read = {} if self.world.reads_once else None
        try:
            return super().choose(*asked, **more)
        finally:
            self._read = None

    def _fitted(self, recipe: Any, data: Callable[[], Any], seed: int, what: str, told: Any) -> Any:
        frozen = isinstance(recipe, Dual) and recipe.options.text == "frozen"
        once = (lambda: data().read_by(recipe)) if frozen and self.world.reads_once else data
        return train_once(recipe, once, seed, "acquired", what, self.world.mark(told, seed), self.progress)
