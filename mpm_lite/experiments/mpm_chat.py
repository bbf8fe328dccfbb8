"""MPM chat on the toy world as an experiment: what it is trained on, what it is asked, and the scores, item by item.

mpm.Experiment("mpm_chat", lm="toy-multilingual", seeds=1).run()
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpm_lite.core import runtime
from mpm_lite.core.keys import Key, code_of
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.core.store import find_weights, keep_weights
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import grammar, text_mix
from mpm_lite.data.toyworld.exchanges import Exchange, ask_captions, ask_questions
from mpm_lite.data.toyworld.noise import Noise
from mpm_lite.evaluation.chat import Asking, seed_of, soft_tokens
from mpm_lite.experiments.system import System
from mpm_lite.experiments.worlds import ToyWorld, WorldBench
from mpm_lite.recipes.mpm_chat import Echo, Exchanges, MpmChat, MpmChatOptions
from mpm_lite.towers import catalogue
from mpm_lite.towers.folders import loaded_once
from mpm_lite.towers.lm import LM
from mpm_lite.towers.load import load_lm
from mpm_lite.training import cost, loop

ADDED = ("pictures", "text")
STAGE_1 = ("languages", "pairs", "noise", "also", "also_pairs", "shuffled")  # what an arm says of its data
STAGE_2 = ("tuned", "tune_steps", "tune_lr", "rank")  # dials that a stage 1 with a frozen language model does not read


@dataclass(frozen=True)
class Chat(System):
    """One arm. Stage 1: captions of `pairs` pictures in `languages` (one each, drawn evenly), spoilt by `noise` where
    they are not English, and `also` of as many more pictures in other languages. Stage 2: `instructions` exchanges,
    captions and closed questions by halves, in English but for `share` of them, which are in `targets` ("pictures":
    about a picture; "text": about a caption in its place). `shuffled` gives every training picture another's caption.

    lm_seed None takes, for seed s, the s-th of the language models pretrained apart, round and round.
    Raises UserError for anything nobody knows.
    """

    name = "mpm_chat"
    Options = MpmChatOptions
    Recipe = MpmChat
    asks = (*System.asks, "captions", "closed", "nats", "choice")

    lm: str = "toy-multilingual"
    lm_seed: int | None = None
    image: str = "toy"
    languages: tuple[str, ...] = ("en",)
    pairs: int = 24_000
    noise: float = 0.0
    also: tuple[str, ...] = ()
    also_pairs: int = 0
    shuffled: bool = False
    instructions: int = 0
    targets: tuple[str, ...] = ()
    share: float = 0.0
    added: str = "pictures"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for language in (*self.languages, *self.also, *self.targets):
            grammar.grammar(language)
        if self.added not in ADDED:
            raise unknown("kind of target-language data", self.added, ADDED)
        if not 0 <= self.share <= 1 or (self.share > 0) != bool(self.targets):
            raise UserError(f"share={self.share} is a share between 0 and 1, and needs targets where it is not 0.")
        most = toyworld.COUNTS["train"]
        if not 2 <= self.pairs + self.also_pairs <= most:
            raise UserError(f"{self.pairs} + {self.also_pairs} pairs: toyworld has 2 to {most} training pictures.")
        if bool(self.instructions) != (self.recipe_options.tuned != "none"):
            raise UserError("Stage 2 needs both: instructions > 0, and tuned='lora' or 'all' among the options.")

    def towers_key(self) -> dict[str, str]:
        """Its language model too, where it is none of the toy world's, which have a part of their own in the key."""
        return super().towers_key() | lm_key(self.lm)

    def bench(self, progress: bool = True) -> ChatBench:
        """Pictures of the toy world through its image tower."""
        return ChatBench(self.image, progress)


@loaded_once(8)
def language_model(name: str, seed: int | None = None, turn: int = 0) -> LM:
    """A language model, loaded once a process; with seed None the `turn`-th of those there are, round and round. A toy one
    stands on the CPU, as the recipes beside it do; any other where there is most to compute with."""
    on = "cpu" if name in catalogue.NAMES else None
    return load_lm(name, catalogue.seed_in_turn(name, turn) if seed is None else seed, on)


def lm_key(*names: str) -> dict[str, str]:
    """What decides language models that are none of the toy world's: their weights."""
    return {f"weights of {n}": language_model(n).fingerprint for n in names if n not in catalogue.NAMES}


class ChatBench(Asking, WorldBench):
    """Pictures of the toy world through one image tower; trains arms on them and asks them about val or test."""

    def __init__(self, image: str = "toy", progress: bool = True) -> None:
        super().__init__(progress, ToyWorld(progress, image))

    def seen(self, split: str, count: int | None = None, pixels: bool = False) -> Tensor:
        """Patches of the first `count` pictures of a split, float16 (M, P, D_in); or their prepared pixels."""
        return self.world.pixels(split, count) if pixels else self.world.seen(split, count)

    def fits(self, recipe: MpmChat, seen: Tensor, captions: Sequence[Sequence[str]], language: str) -> np.ndarray:
        """Log-likelihood of captions as replies to the question that asks for one; see `likelihoods`."""
        return self.likelihoods(recipe, soft_tokens(recipe, seen), captions, language)

    def fits_text(
        self, recipe: MpmChat, given: Sequence[str], captions: Sequence[Sequence[str]], language: str
    ) -> np.ndarray:
        """The same, where an English caption as text stands in the place of the soft tokens."""
        return self.likelihoods(recipe, None, captions, language, given)

    def known(self, recipe: MpmChat, seed: int) -> dict[str, Any]:
        """The language model, and which of those pretrained apart."""
        return {"lm": recipe.lm.name.split(":")[0], "lm_seed": seed_of(recipe.lm)}

    # training

    def train(self, arm: Chat, seed: int) -> MpmChat:
        """The trained recipe. Stage 1 is kept on disk: arms that differ in stage 2 alone share it."""
        options, lm = arm.recipe_options, language_model(arm.lm, arm.lm_seed, seed)
        if options.tuned == "none":
            return self.align(arm, seed)
        torch.manual_seed(seed)
        recipe = self.recipe(lm, replace(options, steps=0, thawed="none"), arm.Recipe)
        if options.steps:
            aligned = self.align(arm, seed)
            recipe.visual.load_state_dict(aligned.visual.state_dict())
            if options.thawed != "none":
                recipe.decoder.load_state_dict(aligned.decoder.state_dict())
        data = self.data(lm, self.instructions(arm, seed), arm.instructions, replace(options, distil=0.0))
        told = {"arm": json.dumps(asdict(arm), sort_keys=True), "stage 1": self.key(arm, seed).digest}
        key = Key("weights of mpm_chat, stage 2", told | {"exchanges": data.digest})
        work = runtime.home() / "aligned" / f"{key.digest}.run"  # a run that was killed goes on where it was
        loop.fit(recipe, data, loop.Plan(seed, work, progress=self.progress, label=f"{arm.lm} tuning, seed {seed}"))
        shutil.rmtree(work, ignore_errors=True)
        cost.note_cost(recipe, lambda: data)
        return recipe

    def align(self, arm: Chat, seed: int) -> MpmChat:
        """Stage 1 alone: computed, or read back from MPM_LITE_HOME/aligned, or from the few that ship."""
        lm, options = language_model(arm.lm, arm.lm_seed, seed), replace(arm.recipe_options, tuned="none")
        torch.manual_seed(seed)
        recipe = self.recipe(lm, options, arm.Recipe)
        part, key = recipe.visual if options.thawed == "none" else recipe, self.key(arm, seed)
        data = lambda: self.data(lm, self.captions(arm, seed), arm.pairs + arm.also_pairs, options)  # noqa: E731

        def learn(work: Path) -> dict[str, Tensor]:
            label = f"{arm.lm} alignment, seed {seed}"
            loop.fit(recipe, data(), loop.Plan(seed, work, progress=self.progress, label=label))
            return part.state_dict()

        part.load_state_dict(keep_weights(find_weights(key, "aligned"), learn, key, half=False))
        cost.note_cost(recipe, data)
        return recipe.eval()

    def key(self, arm: Chat, seed: int) -> Key:
        """What decides the weights that stage 1 gives: frozen weights, data, dials and seed. In which precision a machine computes it is no
        part of what it is. Of the captions a sample is looked at: whoever changes a grammar changes some of those."""
        options = arm.recipe_options
        left_out = {"bf16", *(() if options.thawed != "none" else STAGE_2)}
        # Dials that are younger than the weights that ship, as long as they are where everything was before them.
        left_out |= {name for name, was in (("soft", "free"), ("distil", 0.0)) if getattr(options, name) == was}
        dials = {k: v for k, v in asdict(options).items() if k not in left_out} | {k: getattr(arm, k) for k in STAGE_1}
        few = replace(arm, pairs=min(arm.pairs, 300), also_pairs=min(arm.also_pairs, 300), shuffled=False)
        sample = [e.prompt + e.reply for e in self.captions(few, seed)]
        lm = language_model(arm.lm, arm.lm_seed, seed)
        decides = {
            "language model": lm.fingerprint,
            "image tower": self.tower.fingerprint,
            "options and data": json.dumps(dials, sort_keys=True),
            "seed": str(seed),
            "pictures": toyworld.RENDER,
            "captions": sample,
        }
        if arm.Recipe is not MpmChat:
            decides["code"] = code_of(arm.Recipe)
        if options.distil:
            decides["questions of self-distillation"] = [grammar.describe(code) for code in grammar.LANGUAGES]
        return Key("weights of mpm_chat, stage 1", decides)

    def recipe(self, lm: LM, options: MpmChatOptions, kind: type[MpmChat] = MpmChat) -> MpmChat:
        """An untrained recipe on this bench's tower; torch's seed decides its weights."""
        inside = self.tower.model if options.connector == "queries" else None
        return kind(lm, self.tower.width, self.seen("val").shape[1], options, inside).to(lm.device)

    def data(self, lm: LM, exchanges: Sequence[Exchange], pictures: int, options: MpmChatOptions) -> Exchanges:
        """Exchanges on the first so many training pictures, as the recipe reads them."""
        seen = self.seen("train", pictures, options.connector == "queries")
        of = [(e.picture, e.prompt, e.reply, bool(e.told)) for e in exchanges]
        return Exchanges(lm, seen, *zip(*of, strict=True), self.echoes(lm, exchanges) if options.distil else ())

    def echoes(self, lm: LM, exchanges: Sequence[Exchange]) -> list[Echo]:
        """For each English caption a question for a description, in the languages that the model read by turns, and its
        reply to it."""
        if any(e.language != text_mix.PIVOT for e in exchanges):
            raise UserError("Self-distillation reads the English captions as text: set distil=0 or languages=('en',).")
        known = [code for code in grammar.LANGUAGES if code in lm.languages] or list(grammar.LANGUAGES)
        asked = [grammar.describe(known[i % len(known)]) for i in range(len(exchanges))]
        prompts = [f"{e.reply}\n{question}\n" for e, question in zip(exchanges, asked, strict=True)]
        replies = lm.generate(prompts, stop="\n", new_tokens=64, progress=self.progress)
        return [Echo(e.reply, q, r) for e, q, r in zip(exchanges, asked, replies, strict=True)]

    def captions(self, arm: Chat, seed: int) -> list[Exchange]:
        """The captions of stage 1, in the order of the training pictures."""
        many = toyworld.split_scenes("train")
        first, more = many[: arm.pairs], many[arm.pairs : arm.pairs + arm.also_pairs]
        noise = Noise.alike(arm.noise) if arm.noise else None
        english = arm.languages == ("en",)
        found = ask_captions(first, arm.languages, seed, None if english else noise)
        found += _later(ask_captions(more, arm.also or ("en",), seed + 1, noise if arm.also else None), len(first))
        if arm.shuffled:
            order = np.random.default_rng([seed, 13]).permutation(len(found))
            found = [replace(found[k], picture=i) for i, k in enumerate(order)]
        return found

    def instructions(self, arm: Chat, seed: int) -> list[Exchange]:
        """The exchanges of stage 2: a caption and a closed question by turns, on the first training pictures.

        Which of them are in a target language depends on the seed alone; a larger share keeps those of a smaller one.
        """
        many, rng = toyworld.split_scenes("train")[: arm.instructions], np.random.default_rng([seed, 14])
        order = rng.permutation(len(many))
        target = np.zeros(len(many), bool)
        target[order[: round(arm.share * len(many))]] = True
        found = []
        for i, scene in enumerate(many):
            languages = arm.targets if target[i] else ("en",)
            text_only = bool(target[i]) and arm.added == "text"
            one = {"seed": seed * 1_000_003 + i, "text_only": text_only}
            ask = ask_questions if i % 2 and grammar.asked(scene) else ask_captions
            found += _later(ask([scene], languages, **one), i)
        return found


def _later(exchanges: Sequence[Exchange], by: int) -> list[Exchange]:
    """The same exchanges about pictures whose numbers are higher by so many."""
    return [replace(e, picture=e.picture + by) for e in exchanges]
