"""Teacher learning, the plainest rival of language acquirers: a multilingual encoder learns where English captions lie.

Method (M-CLIP, 2022.lrec-1.739, section 3). The English dual encoder is the teacher and stays as it is. A multilingual
encoder, mean-pooled, with a linear head, learns to put a machine-translated caption where the teacher puts the English one,
by squared error. No picture is seen, and no English either. The other rivals need no recipe of their own: translate-train
and in-language training are `Dual` on other captions, translate-test is `Dual` behind a translator.

Shapes: N texts, T tokens, D the shared space's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mpm_lite.recipes.base import Recipe, Stage, at_least
from mpm_lite.recipes.dual import Dual, pooled


@dataclass(frozen=True)
class TeacherOptions:
    """Every dial of the recipe."""

    steps: int = at_least(1, 1800)
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.01


class Taught(Recipe):
    """A multilingual encoder (a transformers encoder, taken over as it is) beside an English dual encoder. Data: `mla.Spoken`."""

    name = "teacher learning"
    Options = TeacherOptions

    def __init__(self, english: Dual, encoder: Any, options: TeacherOptions = TeacherOptions()) -> None:
        super().__init__()
        self.options, self.english, self.encoder = options, english, encoder
        self.head = nn.Linear(encoder.config.hidden_size, english.options.width)

    def stages(self) -> list[Stage]:
        o = self.options
        return [
            Stage(
                name="teacher learning",
                learns=("encoder", "head"),
                frozen=("image tower", "English dual encoder"),
                objective="squared error to the English translation's vector",
                steps=o.steps,
                batch=1,  # an example is a batch of one language
                lr=o.lr,
                weight_decay=o.weight_decay,
                clip=1.0,
                beta2=0.98,
            )
        ]

    def text(self, ids: Tensor, language: str) -> Tensor:
        """Token ids int64 (N, T), 0 for padding -> (N, D), of no particular length; English too goes the pupil's way."""
        there = ids != 0
        return self.head(pooled(self.encoder(input_ids=ids, attention_mask=there.long()).last_hidden_state, there))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(self.text(batch["ids"], ""), batch["near"])

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"seen": (N, P, D_in)} -> {"image": (N, D)} unit norm; texts take `text`."""
        return self.english.predict({"seen": inputs["seen"]})
