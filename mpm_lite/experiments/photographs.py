"""MPM chat on photographs: a language model and an image tower of real size, English captions, questions in other languages.

    card = presets.find_real("auto")  # None on a machine without a GPU, or where the hub cannot be reached
    reader = PhotoChat.of(card).train()
    reader.reply("th")

This is stage 1 of the recipe of `recipes/mpm_chat.py` (2308.12038, section 3.2): the language model is frozen, and the
connector learns from English captions. There is no score here, because no language has reference captions for these
photographs. What there is to compare is the reply for the mean photograph (blind), and the reply where the photograph's
English caption stands as text in its place. Nothing of this was measured where it was written.

Shapes: N photographs, P patches, D_in the image tower's width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpm_lite.core import runtime
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data import CaptionSet, load_captions
from mpm_lite.evaluation.chat import soft_tokens
from mpm_lite.recipes.mpm_chat import Exchanges, MpmChat, MpmChatOptions
from mpm_lite.towers.load import load_image_tower, load_lm
from mpm_lite.training import loop, presets

# What is asked about a photograph. Stage 1 trains with the English question alone.
QUESTIONS = {
    "en": "What does this photograph show?",
    "ar": "ماذا تُظهر هذه الصورة؟",
    "de": "Was zeigt dieses Foto?",
    "es": "¿Qué muestra esta foto?",
    "hi": "यह तस्वीर क्या दिखाती है?",
    "sw": "Picha hii inaonyesha nini?",
    "th": "ภาพถ่ายนี้แสดงอะไร",
    "zh": "这张照片里有什么？",
}
LOOKS = ("real", "blind", "shuffled", "text")
AT_ONCE = 256  # photographs whose features are computed together, so that float32 features of all are never in memory


@dataclass(frozen=True)
class PhotoChat:
    """What to train with: names of a language model, an image tower and a caption set (a folder or a hub id each), and how long.

    `pairs` photographs are learned from, with one English caption each; `held_out` ones of the test split are asked about.
    `columns` as in `load_captions`.
    """

    lm: str
    image: str
    pictures: str = "flickr8k"
    columns: Mapping[str, Any] | None = None
    pairs: int = 5_000
    held_out: int = 8
    steps: int = 300
    batch: int = 128
    parts: int = 1
    precision: str = "no"  # of matrix products: "no", "bf16" or "fp16"

    @classmethod
    def of(cls, preset: presets.TrainingPreset, minutes: float = 8.0, **other: Any) -> PhotoChat:
        """The models of a preset, trained for as many steps as its estimate has room for in `minutes`."""
        steps = max(1, int(preset.steps * min(1.0, minutes / presets.minutes_of_chat(preset))))
        sizes = {"steps": steps, "batch": preset.batch, "parts": preset.parts}
        precision = "no" if preset.precision == "fp32" else preset.precision
        return cls(preset.language.hub, preset.image.hub, **(sizes | {"precision": precision} | other))

    def photographs(self, split: str, count: int) -> CaptionSet:
        """The first `count` photographs of a split with their English captions; of a hub's set only those are read."""
        streaming = not self.pictures.startswith(("parquet:", "webdataset:", "imagefolder:"))
        return load_captions(self.pictures, split, ["en"], limit=count, columns=self.columns, streaming=streaming)

    def train(self, seed: int = 0, progress: bool = True) -> PhotoReader:
        """Train the connector on English captions, and return it with the held-out photographs.

        Raises UserError for an image tower without patches, and for a set with fewer than two photographs.
        """
        lm, tower = load_lm(self.lm), load_image_tower(self.image)
        known, new = self.photographs("train", self.pairs), self.photographs("test", self.held_out)
        if len(known) < 2 or not len(new):
            raise UserError(
                f"{self.pictures} has {len(known)} photographs to learn from and {len(new)} to ask about: "
                "2 and 1 are the least."
            )
        seen = read_patches(tower, known.images, progress)  # (N, P, D_in)
        captions = known.captions["en"]
        data = Exchanges(lm, seen, range(len(known)), [f"\n{QUESTIONS['en']}\n"] * len(known), captions)
        torch.manual_seed(seed)
        recipe = MpmChat(lm, seen.shape[2], seen.shape[1], MpmChatOptions(steps=self.steps, batch=self.batch))
        plan = loop.Plan(seed, progress=progress, parts=self.parts, precision=self.precision, label="photographs")
        history = loop.fit(recipe, data, plan)
        return PhotoReader(recipe.to(lm.device), new, read_patches(tower, new.images, False), history.losses)


def read_patches(tower: Any, images: Any, progress: bool) -> Tensor:
    """Patch features of photographs, float16 (N, P, D_in)."""
    starts = runtime.bar(range(0, len(images), AT_ONCE), "reading photographs", progress)
    parts = [tower.patches(images[i : min(i + AT_ONCE, len(images))]).astype(np.float16) for i in starts]
    return torch.from_numpy(np.concatenate(parts))


@dataclass
class PhotoReader:
    """A trained recipe with the held-out photographs, their features (N, P, D_in) and the losses of training."""

    recipe: MpmChat
    photographs: CaptionSet
    seen: Tensor
    losses: list[float]

    def reply(self, language: str, look: str = "real", new_tokens: int = 40) -> list[str]:
        """What the model replies to the question in that language, a text for each held-out photograph.

        `look` is "real", "blind" (everybody gets the mean photograph), "shuffled" (each gets another's) or "text" (the English
        caption stands in the photograph's place). Raises UserError for a language without a question, and for another look.
        """
        if language not in QUESTIONS:
            raise unknown("language with a question", language, QUESTIONS)
        if look not in LOOKS:
            raise unknown("look", look, LOOKS)
        count = len(self.photographs)
        told: Sequence[str] = self.photographs.captions["en"] if look == "text" else [""] * count
        prompts = [f"{one}\n{QUESTIONS[language]}\n" for one in told]
        soft = None
        if look != "text":
            with torch.no_grad():
                soft = soft_tokens(self.recipe, self.seen, look)  # (N, Q, D)
        said = self.recipe.lm.generate(prompts, soft, new_tokens=new_tokens)
        return [text.strip().split("\n")[0] for text in said]
