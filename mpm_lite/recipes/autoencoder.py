"""The toy world's autoencoder: what a latent diffusion model paints in.

Method (2112.10752, section 3.1). An encoder makes each square of 8 x 8 pixels one small vector, drawn from a Gaussian; a
decoder makes pixels of it. Objective: the error of the pixels, and a faint pull of the Gaussian towards the standard one.
The paper's adversarial and perceptual terms are left out: these pictures are flat drawings. They are mostly background,
so what stands before it counts more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpm_lite.paint import decoded, encoded, small_vae
from mpm_lite.recipes.base import Recipe, Stage, at_least

FIGURE = 0.1  # difference from the background, of the half range of a pixel, from which on a pixel is figure


@dataclass(frozen=True)
class AutoencoderOptions:
    """Every dial of the recipe."""

    channels: int = 8  # of a latent
    widths: str = "64,64"
    fold: int = 4  # pixels along the side of the square that is read as one position
    figure: float = 4.0  # how much more a pixel counts that differs from its picture's median colour
    pull: float = 1e-5  # weight of the Gaussian's divergence from the standard one, per latent number
    steps: int = at_least(1, 6000)
    batch: int = 32
    lr: float = 2e-3


class Autoencoder(Recipe):
    """An AutoencoderKL over {"pictures": (N, 3, H, H)}, from -1 to 1."""

    name = "autoencoder"
    Options = AutoencoderOptions

    def __init__(self, options: AutoencoderOptions = AutoencoderOptions()) -> None:
        super().__init__()
        self.options = options
        self.vae = small_vae(options.channels, tuple(int(w) for w in options.widths.split(",")), options.fold)

    def stages(self) -> list[Stage]:
        o = self.options
        return [
            Stage(
                name="autoencoding",
                learns=("vae",),
                frozen=(),
                objective="squared and absolute error of pixels, figures above background, and a faint divergence",
                steps=o.steps,
                batch=o.batch,
                lr=o.lr,
                clip=1.0,
            )
        ]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = batch["pictures"]
        gauss = encoded(self.vae, x)
        error = decoded(self.vae, gauss.sample()) - x
        ground = x.flatten(2).median(dim=2).values[..., None, None]  # (N, 3, 1, 1)
        weight = 1 + self.options.figure * ((x - ground).abs().amax(dim=1, keepdim=True) > FIGURE)
        divergence = 0.5 * (gauss.mean**2 + gauss.var - 1 - gauss.logvar).mean()
        return (weight * (error**2 + 0.5 * error.abs())).mean() + self.options.pull * divergence


class Drawings:
    """Pictures uint8 (M, H, H, 3) as training data, with whatever else is known of each (name -> (M, ...))."""

    def __init__(self, pictures: Tensor, digest: str, **known: Tensor) -> None:
        self.pictures, self.digest, self.known = pictures, digest, known

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """`pictures` (N, 3, H, H), from -1 to 1, and what is known of them."""
        x = self.pictures[indices].permute(0, 3, 1, 2).float() / 127.5 - 1
        return {
            "pictures": x.contiguous(memory_format=torch.contiguous_format),
            **{k: v[indices] for k, v in self.known.items()},
        }
