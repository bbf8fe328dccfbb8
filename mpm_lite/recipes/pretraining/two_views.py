"""Two views: the toy world's towers, each trained on one kind of data alone.

Method. An encoder sees two views of every scene and learns which views belong together, by symmetric InfoNCE (SimCLR,
2002.05709, section 2.1). For the image tower, a view is a drawing. That tower also learns classes by number, as towers
trained on ImageNet do, and never meets a word. For the text towers, a view is a caption: a paraphrase or, for the multilingual
tower, the same in another language. Scenes come with neighbours that differ in one attribute of one thing, so that a single
glance is not enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpm_lite.core.runtime import UserError
from mpm_lite.ops import distributed
from mpm_lite.recipes.base import Recipe, Stage, at_least
from mpm_lite.recipes.dual import mean_state
from mpm_lite.towers.lm import IGNORE


@dataclass(frozen=True)
class TwoViewsOptions:
    """Every dial of the recipe."""

    width: int = 128  # D
    layers: int = 4
    heads: int = 4
    hidden: int = 256
    temperature: float = 0.07
    places: float = 1.0  # weight of telling what stands where, for pictures
    steps: int = at_least(1, 800)
    batch: int = 32  # groups, each of a scene and its neighbours
    lr: float = 1e-3
    weight_decay: float = 0.01
    bf16: bool = False  # matrix products in bfloat16: faster on a processor that has units for them, else slower


class TwoViews(Recipe):
    """An encoder over batches of groups: {"first": (N, G, ...), "second": (N, G, ...)}, G scenes a group."""

    name = "two-views"
    compares = True
    Options = TwoViewsOptions

    def __init__(self, encoder: nn.Module, options: TwoViewsOptions = TwoViewsOptions()) -> None:
        super().__init__()
        self.options, self.encoder, d = options, encoder, options.width
        self.head = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, d))

    def stages(self) -> list[Stage]:
        objective = "symmetric InfoNCE between two views of a scene"
        return [Stage.of(self.options, "two views", ("encoder", "head"), (), objective)]

    def vectors(self, view: Tensor) -> Tensor:
        """One view of B scenes -> (B, D). Subclasses define how a view is encoded."""
        raise UserError(f"Recipe {self.name!r} encodes no views; define vectors(view).")

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.contrast([self.vectors(batch[k].flatten(0, 1)) for k in ("first", "second")])

    def contrast(self, views: Sequence[Tensor]) -> Tensor:
        """Symmetric InfoNCE of the vectors of two views, (B, D) each, which first pass through the head."""
        first, second = (F.normalize(self.head(x), dim=-1) for x in views)
        return distributed.clip_loss(first, second, first.new_tensor(1 / self.options.temperature), check=False)


class PictureViews(TwoViews):
    """Views are drawings uint8 (B, S, S, 3); the vector is the class token of a vision transformer, without a head.

    Beside telling whole pictures apart, each patch learns the class of what stands in its cell. Classes are numbers, as for
    towers trained on ImageNet's labels, so no word is met. `classes` says how many there are in each slot.
    """

    name = "picture-views"

    def __init__(
        self, size: int, patch: int, classes: Mapping[str, int], options: TwoViewsOptions = TwoViewsOptions()
    ) -> None:
        from transformers import ViTConfig, ViTModel

        o = options
        # In bfloat16 on a CPU, the gradient of the fused attention kernel costs more than everything else together.
        how = "eager" if o.bf16 else "sdpa"
        config = ViTConfig(image_size=size, patch_size=patch, attn_implementation=how, **_shape(o))
        super().__init__(ViTModel(config, add_pooling_layer=False), o)
        self.slots = nn.ModuleDict({slot: nn.Linear(o.width, count) for slot, count in classes.items()})

    def stages(self) -> list[Stage]:
        return [replace(stage, learns=("encoder", "head", "slots")) for stage in super().stages()]

    def states(self, view: Tensor) -> Tensor:
        """(B, S, S, 3) -> the states of the class token and of the patches, (B, 1 + P, D)"""
        x = view.permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, S, S)
        with torch.autocast(view.device.type, torch.bfloat16, enabled=self.options.bf16):
            return self.encoder(pixel_values=x).last_hidden_state.float()

    def vectors(self, view: Tensor) -> Tensor:
        return self.states(view)[:, 0]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """`batch` also holds, for each slot, the class of every patch, int64 (N, G, P); IGNORE where there is nothing to know."""
        states = [self.states(batch[k].flatten(0, 1)) for k in ("first", "second")]  # (B, 1 + P, D)
        lost = []
        for slot, head in self.slots.items():
            asked = batch[slot].flatten()
            known = asked != IGNORE
            lost += [F.cross_entropy(head(x[:, 1:].flatten(0, 1)[known]), asked[known]) for x in states]
        return self.contrast([x[:, 0] for x in states]) + self.options.places * torch.stack(lost).mean()


class CaptionViews(TwoViews):
    """Views are token ids int64 (B, T), 0 for padding; the vector is the mean state of the real tokens."""

    name = "caption-views"

    def __init__(self, vocabulary: int, options: TwoViewsOptions = TwoViewsOptions()) -> None:
        from transformers import BertConfig, BertModel

        o = options
        config = BertConfig(vocab_size=vocabulary, max_position_embeddings=128, pad_token_id=0, **_shape(o))
        super().__init__(BertModel(config, add_pooling_layer=False), o)

    def vectors(self, view: Tensor) -> Tensor:
        longest = int((view != 0).sum(dim=1).max())
        return mean_state(self.encoder, view[:, :longest])


def _shape(o: TwoViewsOptions) -> dict[str, Any]:
    sizes = {"hidden_size": o.width, "num_hidden_layers": o.layers, "num_attention_heads": o.heads}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return sizes | no_dropout | {"intermediate_size": o.hidden}
