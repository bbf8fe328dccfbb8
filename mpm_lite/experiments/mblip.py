"""mBLIP on the toy world as an experiment: an English Q-Former, re-aligned to a multilingual language model.

bench = MblipBench()
bench.test(bench.train(Realigning(), seed=0), seed=0, split="val")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import exchanges, grammar
from mpm_lite.data.toyworld.exchanges import Exchange, ask_captions
from mpm_lite.data.toyworld.noise import Noise
from mpm_lite.evaluation.choice import pair_captions
from mpm_lite.experiments import mpm_chat
from mpm_lite.experiments.mpm_chat import language_model, lm_key
from mpm_lite.experiments.system import System, train_once
from mpm_lite.recipes.mblip import Blip2, Blip2Options, Mblip, MblipOptions
from mpm_lite.recipes.modules.connectors import QFormer
from mpm_lite.recipes.mpm_chat import Exchanges
from mpm_lite.towers.lm import LM

STARTS = ("english", "random")
GENERATION = {"warm_steps": 0, "rank": 0, "steps": 600}  # BLIP-2's second stage, in mBLIP's terms


@dataclass(frozen=True)
class Realigning(System):
    """One arm. `start`: the Q-Former of BLIP-2, which learned from `english` captioned pictures, by itself and then before
    the English language model `first`; or a "random" one. Re-alignment to `lm` takes `pairs` new examples, on pictures of
    which BLIP-2 saw none: a mix of `tasks` in `languages`, shared out by `rule`; what is not English was translated with
    `noise`. Raises UserError for anything nobody knows."""

    name = "mblip"
    Options = MblipOptions
    asks = mpm_chat.Chat.asks

    lm: str = "toy-multilingual"
    lm_seed: int | None = None
    start: str = "english"
    first: str = "toy-english"
    english: int = 12_000
    languages: tuple[str, ...] = grammar.LANGUAGES
    rule: str = "proportional"
    pairs: int = 8_000
    tasks: tuple[str, ...] = exchanges.TASKS
    noise: float = 0.05
    options: dict[str, Any] = field(default_factory=dict)
    english_options: dict[str, Any] = field(default_factory=dict)
    generation_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise unknown("Q-Former to start from", self.start, STARTS)
        exchanges.share_languages(self.languages, self.rule)
        most = toyworld.COUNTS["train"]
        if not 2 <= self.english + self.pairs <= most:
            raise UserError(f"{self.english} + {self.pairs} pictures: toyworld has {most} training pictures.")
        self.recipe_options, self.blip2_options, self.generated_options  # noqa: B018  what is wrong is to be told now

    @property
    def generated_options(self) -> MblipOptions:
        """The options of BLIP-2's second stage, checked."""
        return self.options_of(MblipOptions, GENERATION | self.generation_options)

    @property
    def blip2_options(self) -> Blip2Options:
        """The options of the Q-Former and of BLIP-2's first stage, checked."""
        return self.options_of(Blip2Options, self.english_options)

    def towers_key(self) -> dict[str, str]:
        """Its language models too, where they are none of the toy world's, which have parts of their own in the key."""
        return super().towers_key() | lm_key(self.lm, self.first)

    def bench(self, progress: bool = True) -> MblipBench:
        """Pictures of the toy world through its image tower."""
        return MblipBench(progress=progress)

    def start_told(self, first: LM) -> list[Any]:
        """What decides the English Q-Former beside the seed."""
        return [self.english, self.english_options, self.generation_options, first.fingerprint]

    @property
    def total(self) -> int:
        """Image-text pairs in all, those of the English Q-Former included."""
        return self.pairs + (self.english if self.start == "english" else 0)


class MblipBench(mpm_chat.ChatBench):
    """Trains Q-Formers in English, once a seed, and re-aligns them; asks in mBLIP's words. Everything that was trained is
    kept in MPM_LITE_HOME/realigned."""

    def open_prompt(self, language: str) -> str:
        """mBLIP's."""
        return exchanges.caption_prompt(language)

    def closed_prompt(self, question: str, language: str) -> str:
        """mBLIP's."""
        return exchanges.answer_prompt(question, language)

    # the English Q-Former

    def blip2(self, arm: Realigning, seed: int) -> Blip2:
        """BLIP-2's first stage."""
        lm = language_model(arm.first, None, seed)
        recipe = self._blip2(arm, seed)

        def data() -> Any:
            seen = self.seen("train", arm.english)
            return pair_captions(seen, arm.english, seed, lambda texts: lm.encode(list(texts)))

        return self._kept(recipe, data, seed, "Q-Former", [arm.english])

    def _blip2(self, arm: Realigning, seed: int) -> Blip2:
        words = language_model(arm.first, None, seed).vocabulary
        torch.manual_seed(seed)
        return Blip2(self.tower.width, self.seen("val").shape[1], words, arm.blip2_options)

    def english(self, arm: Realigning, seed: int) -> QFormer:
        """The Q-Former that an arm starts from: a random one as it begins, else after BLIP-2's two stages."""
        random = arm.start == "random"
        return self._blip2(arm, seed).qformer if random else self.generation(arm, seed).visual.qformer

    def generation(self, arm: Realigning, seed: int) -> Mblip:
        """BLIP-2's second stage, before the English language model; the first is made, or read back, only where this one has to
        be trained."""
        lm, qformer = language_model(arm.first, None, seed), self._blip2(arm, seed).qformer
        torch.manual_seed(seed)
        recipe = Mblip(lm, qformer, self.tower.width, arm.generated_options).to(lm.device)

        def data() -> Exchanges:
            asked = self._described(toyworld.split_scenes("train")[: arm.english], ["en"], None, seed)
            return self._exchanges(lm, asked, 0, arm.english)

        before = lambda: qformer.load_state_dict(self.blip2(arm, seed).qformer.state_dict())  # noqa: E731
        return self._kept(recipe, data, seed, "generation", arm.start_told(lm), before)

    # re-alignment

    def train(self, arm: Realigning, seed: int) -> Mblip:  # type: ignore[override]
        """The re-aligned recipe; the Q-Former that it starts from is made, or read back, only where it has to be trained."""
        lm, options = language_model(arm.lm, arm.lm_seed, seed), arm.recipe_options
        qformer = self._blip2(arm, seed).qformer
        torch.manual_seed(seed)
        recipe = Mblip(lm, qformer, self.tower.width, options).to(lm.device)

        before = lambda: qformer.load_state_dict(self.english(arm, seed).state_dict())  # noqa: E731

        def data() -> list[Exchanges]:
            many = toyworld.split_scenes("train")[arm.english : arm.english + arm.pairs]
            noise = Noise.alike(arm.noise)
            mixed = exchanges.mix_tasks(many, arm.languages, arm.rule, noise, arm.tasks, seed)
            each = [mixed]
            if options.warm_steps:  # on captions of the same pictures, in the same languages
                codes = [e.language for e in mixed]
                each = [self._described(many, codes, noise, seed, one_each=True), mixed]
            return [self._exchanges(lm, asked, arm.english, arm.pairs) for asked in each]

        if options.learns != "qformer":  # then its weights are not among those that are kept
            before()
        told = {k: v for k, v in asdict(arm).items() if not k.endswith("options")}
        first = arm.start_told(language_model(arm.first, None, seed)) if arm.start == "english" else []
        return self._kept(recipe, data, seed, arm.lm, [told, lm.fingerprint, *first], before)

    def _described(
        self, scenes: Sequence[Any], languages: Sequence[str], noise: Noise | None, seed: int, one_each: bool = False
    ) -> list[Exchange]:
        """Captions, asked for in mBLIP's words."""
        if one_each:
            pairs = enumerate(zip(scenes, languages, strict=True))
            found = [
                (i, ask_captions([s], [c], seed * 1_000_003 + i, noise if c != "en" else None)[0])
                for i, (s, c) in pairs
            ]
        else:
            found = list(enumerate(ask_captions(scenes, languages, seed, noise)))
        return [Exchange(i, e.language, exchanges.caption_prompt(e.language), e.reply) for i, e in found]

    def _exchanges(self, lm: LM, asked: Sequence[Exchange], first: int, count: int) -> Exchanges:
        """Exchanges on training pictures from the number `first` on, as a recipe reads them."""
        seen = self.world.seen("train", count, first)
        return Exchanges(lm, seen, [e.picture for e in asked], [e.prompt for e in asked], [e.reply for e in asked])

    def _kept(
        self, recipe: Any, data: Callable[[], Any], seed: int, what: str, told: Sequence[Any],
        before: Callable[[], Any] | None = None,
    ) -> Any:  # fmt: skip
        told = [self.tower.fingerprint, toyworld.RENDER, *told]
        return train_once(recipe, data, seed, "realigned", what, told, self.progress, before)


SHARED = Realigning(rule="uniform")
