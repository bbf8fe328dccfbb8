"""Align: a dual encoder over two frozen towers, the smallest system in which the pivot can be seen.

Method. An image tower and a text tower stay frozen. A small head on each maps its features to a shared space. Both heads
and a temperature learn from image-text pairs by symmetric InfoNCE (CLIP, 2103.00020, section 2.3). Every language that the
text tower placed near English then finds the pictures too, though the heads saw only English: the premise of MPM
(2308.12038, section 3.1) in its plainest form. A caption that stands below two pictures of a batch counts as wrong for each
other's picture, as in CLIP: about one row of twenty-five among the real pictures here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpm_lite.ops import distributed
from mpm_lite.recipes.base import Recipe, Stage, at_least


@dataclass(frozen=True)
class AlignOptions:
    """Every dial of the recipe. The defaults were chosen on English validation pairs only, for score and time."""

    width: int = 512  # D of the shared space
    hidden: int = 0  # width of the image head's hidden layer; 0 = linear
    text_hidden: int = 0  # the same of the text head
    dropout: float = 0.3  # on the features, before the heads
    temperature: float = 0.07  # at the start
    steps: int = 200  # 0: the heads stay as they are initialised
    batch: int = at_least(2, 256)
    lr: float = 1e-3
    weight_decay: float = 0.05


class FeatureDropout(nn.Module):
    """nn.Dropout by a uniform draw: on a CPU, the Bernoulli draw of nn.Dropout takes a third of a training step."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, D)"""
        return x * (torch.rand_like(x) >= self.p) / (1 - self.p) if self.training and self.p else x


def head(d_in: int, d_out: int, hidden: int, dropout: float) -> nn.Module:
    """Linear, or linear-GELU-linear where `hidden` > 0; (N, d_in) -> (N, d_out)."""
    if not hidden:
        return nn.Sequential(FeatureDropout(dropout), nn.Linear(d_in, d_out))
    return nn.Sequential(
        FeatureDropout(dropout), nn.Linear(d_in, hidden), nn.GELU(), FeatureDropout(dropout), nn.Linear(hidden, d_out)
    )


class Align(Recipe):
    """Two heads and a temperature. Image features (N, D_image), text features (N, D_text)."""

    name = "align"
    compares = True
    idle = False
    Options = AlignOptions

    def __init__(self, d_image: int, d_text: int, options: AlignOptions = AlignOptions()) -> None:
        super().__init__()
        self.options = options
        self.image_head = head(d_image, options.width, options.hidden, options.dropout)
        self.text_head = head(d_text, options.width, options.text_hidden, options.dropout)
        if not options.text_hidden:
            # The text head begins as the identity, so that it keeps what the tower knows of concepts that no pair shows.
            nn.init.eye_(self.text_head[-1].weight)
            nn.init.zeros_(self.text_head[-1].bias)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / options.temperature)))
        # Features are standardised by the mean and spread of the training pictures and captions; see `prepare`.
        for side, d in (("image", d_image), ("text", d_text)):
            self.register_buffer(f"{side}_mean", torch.zeros(d))
            self.register_buffer(f"{side}_std", torch.ones(d))

    def stages(self) -> list[Stage]:
        learns, frozen = ("image_head", "text_head", "log_scale"), ("image tower", "text tower")
        return [Stage.of(self.options, "alignment", learns, frozen, "symmetric InfoNCE on image-caption pairs")]

    def prepare(self, images: Tensor, texts: Tensor) -> None:
        """Take mean and spread of the training features: images (N, D_image), texts (N, D_text)."""
        for side, x in (("image", images), ("text", texts)):
            getattr(self, f"{side}_mean").copy_(x.mean(dim=0))
            # One spread for all directions: one for each would amplify the directions that say least.
            getattr(self, f"{side}_std").fill_(x.std(dim=0, correction=0).square().mean().sqrt().clamp_min(1e-6).item())

    def embed_images(self, x: Tensor) -> Tensor:
        """(N, D_image) -> (N, D) unit norm."""
        return F.normalize(self.image_head((x - self.image_mean) / self.image_std), dim=-1)

    def embed_texts(self, x: Tensor) -> Tensor:
        """(N, D_text) -> (N, D) unit norm."""
        return F.normalize(self.text_head((x - self.text_mean) / self.text_std), dim=-1)

    def features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """image and text (N, D), scale ()."""
        scale = self.log_scale.clamp(max=math.log(100)).exp()  # CLIP's cap
        return {"image": self.embed_images(batch["image"]), "text": self.embed_texts(batch["text"]), "scale": scale}

    def compared(self, features: dict[str, Tensor]) -> Tensor:
        # The training loop looks at every loss and says at which step one is not finite.
        return distributed.clip_loss(features["image"], features["text"], features["scale"], check=False)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.compared(self.features(batch))

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"image": (N, D_image)} and / or {"text": (N, D_text)} -> the same keys, (N, D) unit norm."""
        embed = {"image": self.embed_images, "text": self.embed_texts}
        return {key: embed[key](x) for key, x in inputs.items()}
