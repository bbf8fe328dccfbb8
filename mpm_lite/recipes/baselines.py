"""Baselines that are recipes of their own: teacher learning, and the re-mapping of one text encoder into another's space.

The other rivals need no recipe: translate-train and in-language training are `Dual` on other captions, and translate-test is
`Dual` behind a translator.

*Teacher learning* is the plainest rival of language acquirers: a multilingual encoder learns where English captions lie.
Method (M-CLIP, 2022.lrec-1.739, section 3). The English dual encoder is the teacher and stays as it is. A multilingual
encoder, mean-pooled and with a linear head, learns to put a machine-translated caption where the teacher puts the English
one, by squared error. It sees no pictures and no English.

*Re-mapping* brings a second text encoder into the first one's space, so that what was trained on the first can read the
second. Method (GlueGen, 2303.10056). The painter and its own text encoder stay as they are, and only texts are learned from.
A small network turns the token states that the new encoder has of a text into those that the old encoder has of the same
text. Objective: the squared error of those states, in units of their spread. The paper's network mixes a fixed number of
tokens, is trained on text in every language wanted, and has a reconstruction and an adversarial term too. Here learned
queries read however many tokens there are and say where a text ends, and by default the text is English only.

Shapes: N texts, T tokens. Of a teacher and its pupil, D is the shared space's width. Of a re-mapping, W is the new encoder's
width, U and V are tokens and width of the old one, and D is the network's width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpm_lite.core.runtime import UserError
from mpm_lite.recipes.base import Recipe, Stage, at_least, sample_bytes
from mpm_lite.recipes.dual import Dual, mean_state
from mpm_lite.towers.prompts import States


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
        learns, frozen = ("encoder", "head"), ("image tower", "English dual encoder")
        objective = "squared error to the English translation's vector"
        how = {"batch": 1, "clip": 1.0, "beta2": 0.98}  # an example is a batch of one language
        return [Stage.of(self.options, "teacher learning", learns, frozen, objective, **how)]

    def text(self, ids: Tensor, language: str) -> Tensor:
        """Token ids int64 (N, T), 0 for padding -> (N, D), of any length. The pupil reads every language, English too."""
        return self.head(mean_state(self.encoder, ids))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(self.text(batch["ids"], ""), batch["near"])

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"seen": (N, P, D_in)} -> {"image": (N, D)} unit norm; texts take `text`."""
        return self.english.predict({"seen": inputs["seen"]})


# Re-mapping.


@dataclass(frozen=True)
class GlueOptions:
    """Every dial of the recipe."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    steps: int = at_least(1, 2000)
    batch: int = 64
    lr: float = 1e-3


class Translated:
    """The token states that two encoders have of the same texts, as training data."""

    def __init__(self, new: States, old: States) -> None:
        if len(new) != len(old):
            raise UserError(f"{len(new)} and {len(old)} texts differ: both encoders must have read the same ones.")
        self.new, self.old = new, old
        told = sample_bytes(new.flat, 512) + sample_bytes(old.flat, 512) + new.starts.tobytes() + old.starts.tobytes()
        self.digest = hashlib.sha256(told).hexdigest()

    def __len__(self) -> int:
        return len(self.new)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The new encoder's `states` (N, T, W) with `there` bool (N, T), the old one's `wanted` (N, U, V) with `stands` (N, U)."""
        states, there = self.new.batch(indices.tolist())
        wanted, stands = self.old.batch(indices.tolist())
        return {"states": states, "there": there, "wanted": wanted, "stands": stands}


class Glue(Recipe):
    """A transformer whose learned queries read the new encoder's states; `read` returns the old encoder's."""

    name = "glue"
    Options = GlueOptions

    def __init__(self, new_width: int, old: States, options: GlueOptions = GlueOptions()) -> None:
        """`old` are states of the old encoder: they give the spread, and the length of the longest text."""
        super().__init__()
        self.options, d = options, options.width
        longest = int((old.starts[1:] - old.starts[:-1]).max())
        self.register_buffer("centre", old.flat.float().mean(dim=0))
        self.register_buffer("spread", old.flat.float().std(dim=0).clamp(min=1e-4))
        self.enter = nn.Linear(new_width, d)
        self.norm = nn.LayerNorm(d)
        self.queries = nn.Parameter(0.02 * torch.randn(longest, d))
        layer = nn.TransformerDecoderLayer(d, options.heads, 4 * d, 0.0, "gelu", batch_first=True, norm_first=True)
        self.reads = nn.TransformerDecoder(layer, options.layers)
        self.leave = nn.Linear(d, old.flat.shape[1] + 1)  # a state, and whether the text still goes on

    def stages(self) -> list[Stage]:
        learns, frozen = ("enter", "norm", "queries", "reads", "leave"), ("both text encoders", "the painter")
        objective = "squared error of the old encoder's token states, in units of their spread, and where a text ends"
        return [Stage.of(self.options, "re-mapping", learns, frozen, objective, clip=1.0)]

    def forward(self, states: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """States (N, T, W), mask (N, T) -> states (N, U, V) for as many tokens as the longest text has, and logits (N, U) of
        whether there is a token."""
        memory = self.norm(self.enter(states))
        x = self.reads(self.queries.expand(len(states), -1, -1), memory, memory_key_padding_mask=~there)
        said = self.leave(x)
        return said[..., :-1] * self.spread + self.centre, said[..., -1]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        said, goes_on = self(batch["states"], batch["there"])
        u = batch["wanted"].shape[1]
        error = ((said[:, :u] - batch["wanted"]) / self.spread) ** 2  # (N, U, V)
        stands = F.pad(batch["stands"], (0, goes_on.shape[1] - u))
        return error.mean(dim=-1)[batch["stands"]].mean() + F.binary_cross_entropy_with_logits(goes_on, stands.float())

    @torch.no_grad()
    def read(self, states: States, batch: int = 256) -> States:
        """The new encoder's states of many texts -> the states that the old encoder would have of them."""
        self.eval()
        rows: list[Tensor] = []
        for start in range(0, len(states), batch):
            said, goes_on = self(*states.batch(range(start, min(start + batch, len(states)))))
            for one, on in zip(said, goes_on > 0, strict=True):
                ends = int(on.int().cumprod(dim=0).sum().clamp(min=1))  # a text ends at the first missing token
                rows.append(one[:ends].half())
        return States(torch.cat(rows), [len(row) for row in rows])


class Glued:
    """A prompt encoder whose states are re-mapped into another's, so that a painter trained on the other can read them."""

    def __init__(self, encoder: Any, glue: Glue) -> None:
        self.encoder, self.glue = encoder, glue
        self.name, self.languages, self.longest = f"re-mapped {encoder.name}", encoder.languages, encoder.longest

    def states(self, prompts: Sequence[str], progress: bool = False) -> States:
        """The states of each prompt, as the old encoder would have them."""
        return self.glue.read(self.encoder.states(prompts, progress))

    def unread(self, prompt: str) -> bool:
        """Whether the new encoder cannot read a prompt."""
        return self.encoder.unread(prompt)
