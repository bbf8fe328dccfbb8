"""Dual: an English dual encoder, with image and text in one space. MLA leaves it frozen and adds languages to it.

Method (CLIP, 2103.00020, section 2). A pooler over the patches of a frozen image tower and a text encoder meet in a shared
space, by InfoNCE on English pairs alone. Each picture also meets captions that are wrong in one attribute (2210.01936,
section 4); without them, a dual encoder reads a caption as a bag of words. A caption's vector is the mean of its token
states, sent through a linear head.

Shapes: N pictures, P patches, K wrong captions a picture, T tokens, D_in the image tower's width, W the text encoder's,
D the shared space's.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mpm_lite import ops
from mpm_lite.core.runtime import UserError, in_full_precision, unknown
from mpm_lite.ops import distributed
from mpm_lite.recipes.base import Recipe, Stage, at_least, sample_bytes
from mpm_lite.recipes.modules.connectors import Look
from mpm_lite.towers.inference import chosen

TEXTS = ("frozen", "trained")


@dataclass(frozen=True)
class DualOptions:
    """Every dial of the recipe. The defaults were chosen on English validation captions only."""

    text: str = "trained"  # or "frozen": the text encoder stays as it came, and only its head learns
    width: int = 128  # D, and of the pooler
    layers: int = 2  # of the pooler
    heads: int = 4
    temperature: float = 0.07  # at the start
    steps: int = at_least(1, 1500)
    batch: int = at_least(2, 64)
    lr: float = 1e-3
    slower: float = 0.2  # how much slower the text encoder learns than what is new
    weight_decay: float = 0.01
    bf16: bool = False


class Captioned:
    """Pictures with captions as training data: `seen` (M, P, D_in), and for each picture the token ids of its own caption and
    of `wrong` ones, the same number for each."""

    def __init__(self, seen: Tensor, rows: Sequence[Sequence[int]], wrong: Sequence[Sequence[Sequence[int]]]) -> None:
        if not len(seen) == len(rows) == len(wrong):
            raise UserError(f"{len(seen)} pictures, {len(rows)} captions and {len(wrong)} sets of wrong ones differ.")
        self.seen, self.each = seen, len(wrong[0])
        self.rows = [[torch.tensor(r) for r in (own, *others)] for own, others in zip(rows, wrong, strict=True)]
        self.told = "ids"
        said = b"".join(r.numpy().tobytes() for few in self.rows for r in few)
        self.digest = hashlib.sha256(said + sample_bytes(seen)).hexdigest()

    @classmethod
    def encoded(
        cls, seen: Tensor, own: Sequence[str], wrong: Sequence[Sequence[str]],
        encode: Callable[[Sequence[str]], list[list[int]]],
    ) -> Captioned:  # fmt: skip
        """The same from captions as texts: each picture's own, and its wrong ones."""
        each = len(wrong[0])
        rows = encode([*own, *(one for few in wrong for one in few)])
        return cls(seen, rows[: len(own)], [rows[k : k + each] for k in range(len(own), len(rows), each)])

    @torch.no_grad()
    def read_by(self, dual: Dual) -> Captioned:
        """The same pictures with their captions already read by the dual encoder. While its text encoder is frozen, every
        update would read them alike."""
        found = copy.copy(self)
        rows = [row for few in self.rows for row in few]
        parts = (pad_sequence(rows[k : k + 256], batch_first=True) for k in range(0, len(rows), 256))
        read = torch.cat([dual.read(ids) for ids in parts]).view(len(self.rows), -1, dual.encoder.config.hidden_size)
        found.rows, found.told = [list(few) for few in read], "read"
        return found

    def __len__(self) -> int:
        return len(self.seen)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """`seen` (N, P, D_in); `ids` int64 (N (1 + K), T), 0 for padding: the pictures' own captions, then the wrong ones. If
        they were read already, `read` (N (1 + K), W) in place of `ids`."""
        few = [self.rows[i] for i in indices.tolist()]
        rows = [of[0] for of in few] + [row for of in few for row in of[1:]]
        return {"seen": self.seen[indices].float(), self.told: pad_sequence(rows, batch_first=True)}


class Pooler(nn.Module):
    """One learned query looks at the patches, layer by layer: (N, P, D_in) -> (N, D)."""

    def __init__(self, d_in: int, patches: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(d_in), nn.Linear(d_in, width))
        self.places = nn.Parameter(torch.randn(patches, width))
        # Patches look at each other first, since no single patch shows what stands beside what.
        self.among = nn.ModuleList(Look(width, heads) for _ in range(layers - 1))
        self.asks = nn.Parameter(torch.randn(1, width))
        self.last = Look(width, heads)
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, patches: Tensor) -> Tensor:
        """One vector for each picture."""
        x = self.enter(patches) + self.places
        for layer in self.among:
            x = layer(x, x[:, :0])
        return self.leave(self.last(self.asks.expand(len(x), -1, -1), x)[:, 0])


class Dual(Recipe):
    """A pooler, a text encoder (a transformers encoder, taken over as it is) and its head."""

    name = "dual"
    compares = True
    idle = False
    Options = DualOptions

    def __init__(self, d_in: int, patches: int, encoder: Any, options: DualOptions = DualOptions()) -> None:
        super().__init__()
        if options.text not in TEXTS:
            raise unknown("way to treat the text encoder", options.text, TEXTS)
        o = self.options = options
        self.pooler = Pooler(d_in, patches, o.width, o.layers, o.heads)
        self.encoder, self.text_head = encoder, nn.Linear(encoder.config.hidden_size, o.width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / o.temperature)))

    def stages(self) -> list[Stage]:
        learns, frozen, faster = ("pooler", "text_head", "log_scale"), ("image tower",), ()
        if self.options.text == "trained":
            learns, faster = (*learns, "encoder"), (("encoder", self.options.slower),)
        else:
            frozen = (*frozen, "text encoder")
        objective = "symmetric InfoNCE on image-caption pairs, with captions wrong in one attribute"
        how = {"clip": 1.0, "beta2": 0.98, "faster": faster}
        return [Stage.of(self.options, "contrast", learns, frozen, objective, **how)]

    def image(self, seen: Tensor) -> Tensor:
        """Patches (N, P, D_in) -> (N, D) unit norm."""
        return F.normalize(in_full_precision(self.pooler(seen)), dim=-1)

    def text(self, ids: Tensor, language: str = "") -> Tensor:
        """Token ids int64 (N, T), 0 for padding -> (N, D), of any length. Every language is read alike."""
        return self.text_head(self.read(ids))

    def read(self, ids: Tensor) -> Tensor:
        """What the text encoder makes of captions, before the head: int64 (N, T), 0 for padding -> (N, W)."""
        return mean_state(self.encoder, ids)

    def features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """image and text (N, D), wrong (N K, D), scale ()."""
        scale = self.log_scale.clamp(max=math.log(100)).exp()  # CLIP's cap
        with torch.autocast(batch["seen"].device.type, torch.bfloat16, enabled=self.options.bf16):
            read = batch["read"] if "read" in batch else self.read(batch["ids"])
            image, text = self.image(batch["seen"]), F.normalize(in_full_precision(self.text_head(read)), dim=-1)
        return {"image": image, "text": text[: len(image)], "wrong": text[len(image) :], "scale": scale}

    def compared(self, features: dict[str, Tensor]) -> Tensor:
        image, text, wrong, scale = (features[k] for k in ("image", "text", "wrong", "scale"))
        own = torch.arange(len(image), device=image.device) + distributed.first_row(len(image))
        # Each picture is compared with all captions, wrong ones too, and each caption with all pictures.
        every = torch.cat([distributed.gather(text), distributed.gather(wrong)])
        to_text = ops.linear_cross_entropy(scale * image, every, own, check=False)
        to_image = ops.linear_cross_entropy(scale * text, distributed.gather(image), own, check=False)
        return (to_text + to_image) / 2

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.compared(self.features(batch))

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"seen": (N, P, D_in)} and / or {"ids": (N, T)} -> {"image": (N, D)}, {"text": (N, D)}, unit norm."""
        found = {}
        if "seen" in inputs:
            found["image"] = self.image(inputs["seen"].float())
        if "ids" in inputs:
            found["text"] = F.normalize(self.text(inputs["ids"]), dim=-1)
        return found


def pool_states(states: Tensor, there: Tensor) -> Tensor:
    """The mean of the states (N, T, W) of the tokens that are `there`, bool (N, T) -> (N, W)."""
    weight = there[..., None].to(states.dtype)
    return (states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def mean_state(encoder: Any, ids: Tensor) -> Tensor:
    """The mean state that a transformers encoder has of texts: token ids int64 (N, T), 0 for padding -> (N, W)."""
    there = ids != 0
    with chosen(encoder.config, ids.device):
        states = encoder(input_ids=ids, attention_mask=there.long()).last_hidden_state
    return pool_states(states, there)
