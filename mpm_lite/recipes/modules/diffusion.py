"""Text-conditioned diffusion on diffusers' UNet, autoencoder and schedulers: the parts, their folder, and sampling.

The toy world's own autoencoder is a recipe here (2112.10752, section 3.1). An encoder turns each square of 8 x 8 pixels into
one small vector, drawn from a Gaussian, and a decoder turns it into pixels again. Objective: the error of the pixels, and a
faint pull of the Gaussian towards the standard one. The paper's adversarial and perceptual terms are left out, because these
pictures are flat drawings. They are mostly background, so the figures before it count more.

Shapes: N pictures, C latent channels, S latent side, T tokens of the longest prompt, W the prompt encoder's width, D the
UNet's cross-attention width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    ModelMixin,
    UNet2DConditionModel,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from mpm_lite.core import runtime
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.recipes.base import Recipe, Stage, at_least

SAMPLERS = {"dpm": DPMSolverMultistepScheduler, "ddim": DDIMScheduler}
GUIDANCE = (0.0, 20.0)
TOY = "paint/toy-painter"  # among the assets: the toy world's autoencoder, and the UNet that was trained with it


class Bridge(ModelMixin, ConfigMixin):
    """From a prompt encoder's token states to what the UNet attends to: a linear map without bias, then LayerNorm, as
    VisCPM-Paint has it (2308.12038, section 3.3); and one learned vector that stands for no prompt."""

    @register_to_config
    def __init__(self, width: int, cross: int) -> None:
        super().__init__()
        self.turn = nn.Linear(width, cross, bias=False)
        self.norm = nn.LayerNorm(cross)
        self.nothing = nn.Parameter(torch.randn(cross) / math.sqrt(cross))

    def forward(self, states: Tensor, mask: Tensor, told: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """States (N, T, W) and mask bool (N, T) -> (N, T, D) and its mask. `told` bool (N,): whose prompt is read; the
        others get the one vector for no prompt."""
        x = self.norm(self.turn(states))
        if told is None:
            return x, mask
        alone = torch.arange(mask.shape[1], device=mask.device)[None] == 0  # (1, T)
        return torch.where(told[:, None, None], x, self.nothing.to(x)), torch.where(told[:, None], mask, alone)


def small_unet(channels: int, side: int, cross: int, widths: tuple[int, ...] = (128, 192), layers: int = 1) -> Any:
    """A UNet2DConditionModel for latents (N, C, S, S) that attends to the prompt at every resolution."""
    heads = [width // 32 for width in widths]  # what diffusers calls attention_head_dim is the number of heads
    return UNet2DConditionModel(
        sample_size=side, in_channels=channels, out_channels=channels, block_out_channels=widths, layers_per_block=layers,
        down_block_types=("CrossAttnDownBlock2D",) * len(widths), up_block_types=("CrossAttnUpBlock2D",) * len(widths),
        cross_attention_dim=cross, attention_head_dim=heads, norm_num_groups=16, use_linear_projection=True,
    )  # fmt: skip


def small_vae(channels: int = 8, widths: tuple[int, ...] = (64, 64), fold: int = 4) -> AutoencoderKL:
    """An AutoencoderKL that turns each square of fold * 2^(levels - 1) pixels a side into one latent vector of C numbers.

    It reads and writes pictures folded: each square of `fold` x `fold` pixels is one position with 3 * fold^2 channels. On a
    CPU that costs a third of what convolutions over single pixels would.
    """
    return AutoencoderKL(
        in_channels=3 * fold**2, out_channels=3 * fold**2, latent_channels=channels, block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths),
        norm_num_groups=8, mid_block_add_attention=False, scaling_factor=1.0,
    )  # fmt: skip


def encoded(vae: AutoencoderKL, pictures: Tensor) -> Any:
    """Encode pictures (N, 3, H, H), from -1 to 1: the Gaussian over their latents (N, C, S, S)."""
    return vae.encode(F.pixel_unshuffle(pictures, _fold(vae))).latent_dist


def decoded(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode latents (N, C, S, S) to pictures (N, 3, H, H)."""
    return F.pixel_shuffle(vae.decode(latents).sample, _fold(vae))


def _fold(vae: AutoencoderKL) -> int:
    """The side of the square of pixels that an autoencoder reads as one position: 1, unless it comes from `small_vae`."""
    return math.isqrt(vae.config.in_channels // 3)


def noise_schedule() -> DDPMScheduler:
    """A cosine schedule of 1,000 steps whose UNet predicts velocity (v-prediction, 2202.00512)."""
    return DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)


@torch.no_grad()
def to_latents(vae: AutoencoderKL | None, pictures: np.ndarray, batch: int = 256) -> Tensor:
    """Pictures uint8 (N, H, H, 3) -> latents float32 (N, C, S, S), at the scale that diffusion works at. Without an
    autoencoder, the pictures themselves from -1 to 1."""
    found = []
    for start in range(0, len(pictures), batch):
        x = torch.from_numpy(pictures[start : start + batch]).permute(0, 3, 1, 2).float() / 127.5 - 1
        if vae is not None:
            x = (encoded(vae, x.to(vae.device)).mean * vae.config.scaling_factor).cpu()
        found.append(x)
    return torch.cat(found)


@torch.no_grad()
def to_pictures(vae: AutoencoderKL | None, latents: Tensor, batch: int = 256) -> np.ndarray:
    """Latents (N, C, S, S) -> pictures uint8 (N, H, H, 3); undoes `to_latents`."""
    found = []
    for part in latents.split(batch):
        x = part if vae is None else decoded(vae, part.to(vae.device) / vae.config.scaling_factor)
        found.append(((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(found)


def first_noise(shape: tuple[int, ...], seeds: Sequence[int]) -> Tensor:
    """The noise that each picture begins as, (N, C, S, S). It depends on the picture's seed alone, not on the batch."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])


@torch.no_grad()
def sample_latents(
    unet: Any, bridge: Bridge, scheduler: Any, states: Tensor, mask: Tensor, seeds: Sequence[int], guidance: float = 4.0,
    steps: int = 20, sampler: str = "dpm", told: bool = True,
) -> Tensor:  # fmt: skip
    """Paint latents (N, C, S, S) after the states (N, T, W), mask (N, T), of prompts.

    `guidance` is classifier-free (2207.12598): 1 leaves it out, and 0 paints without a prompt, as `told=False` does. Raises
    UserError for guidance out of range, an unknown sampler, and states or latents that are not finite.
    """
    if not GUIDANCE[0] <= guidance <= GUIDANCE[1]:
        raise UserError(f"guidance={guidance} is out of range: choose one from {GUIDANCE[0]:g} to {GUIDANCE[1]:g}.")
    if sampler not in SAMPLERS:
        raise unknown("sampler", sampler, SAMPLERS)
    if steps < 1:
        raise UserError(f"steps={steps}: a picture takes at least one step.")
    if not torch.isfinite(states).all():
        raise UserError("The prompt's states hold NaN or infinity: check the prompt encoder's weights.")
    side, on = unet.config.sample_size, unet.device
    x = first_noise((unet.config.in_channels, side, side), seeds).to(on)
    # These two are set here, because where one scheduler leaves them out, the next would use defaults of its own.
    stepper = SAMPLERS[sampler].from_config(scheduler.config, timestep_spacing="trailing", steps_offset=0)
    stepper.set_timesteps(steps)
    x = x * stepper.init_noise_sigma
    guided = told and guidance not in (0.0, 1.0)
    of = torch.tensor([told and guidance > 0] * len(x) + [False] * len(x) * guided, device=on)
    twice = (lambda t: torch.cat([t, t])) if guided else (lambda t: t)
    context, there = bridge(twice(states.to(on)), twice(mask.to(on)), of)
    for t in stepper.timesteps:
        said = unet(twice(x), t, context, encoder_attention_mask=there).sample
        if guided:
            with_prompt, without = said.chunk(2)
            said = without + guidance * (with_prompt - without)
        x = stepper.step(said, t, x).prev_sample
    if not torch.isfinite(x).all():
        raise UserError("Painting ended in NaN or infinity: lower guidance, or check the UNet's weights.")
    return x


def paint_pictures(
    parts: tuple[Any, Bridge, Any], vae: AutoencoderKL | None, states: Any, seeds: Sequence[int], batch: int = 64, **dials: Any
) -> np.ndarray:  # fmt: skip
    """Paint pictures uint8 (N, H, H, 3) after the States of N prompts, each from the noise of its seed, `batch` at a time.
    `parts` are UNet, bridge and schedule; `dials` go to `sample_latents`."""
    found = []
    for start in range(0, len(states), batch):
        part = range(start, min(start + batch, len(states)))
        x = sample_latents(*parts, *states.batch(part), [seeds[i] for i in part], **dials)
        found.append(to_pictures(vae, x))
    return np.concatenate(found)


class PaintPipeline(DiffusionPipeline):
    """UNet, bridge, autoencoder (or None: pixels) and noise schedule as a diffusers folder. `encoder` is the name of the prompt
    encoder that the bridge belongs to, `encoder_seed` says which of several that were pretrained apart, and `layer` where its
    states are taken."""

    _optional_components = ["vae"]

    def __init__(
        self, unet: Any, bridge: Bridge, scheduler: Any, vae: Any = None, encoder: str = "", encoder_seed: int = 0,
        layer: int = -1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_modules(unet=unet, bridge=bridge, scheduler=scheduler, vae=vae)
        self.register_to_config(encoder=encoder, encoder_seed=encoder_seed, layer=layer)
        self._reads: Any = None

    @property
    def prompt_encoder(self) -> Any:
        """The prompt encoder, loaded when it is first needed."""
        if self._reads is None:
            from mpm_lite.towers.prompts import load_prompt_encoder

            self._reads = load_prompt_encoder(self.config.encoder, self.config.encoder_seed, self.config.layer)
        return self._reads

    @torch.no_grad()
    def __call__(
        self, prompts: str | Sequence[str], seeds: int | Sequence[int] = 0, guidance: float = 4.0, steps: int = 20,
        sampler: str = "dpm", batch: int = 64,
    ) -> np.ndarray:  # fmt: skip
        """Pictures uint8 (N, H, H, 3), one for each prompt. The same prompt, seed and dials give the same picture. If `seeds` is
        an int, it is the seed of the first prompt, and the others count on from it.

        Raises UserError for a prompt that is empty or too long, and where `sample_latents` does. Warns of a prompt in a script that
        the encoder's tokenizer lacks.
        """
        many = [prompts] if isinstance(prompts, str) else list(prompts)
        seeds = [seeds + i for i in range(len(many))] if isinstance(seeds, int) else list(seeds)
        if len(seeds) != len(many):
            raise UserError(f"{len(many)} prompts and {len(seeds)} seeds differ: give one seed for each.")
        encoder = self.prompt_encoder
        states = encoder.states(many)
        for prompt in many:
            if encoder.unread(prompt):
                warnings.warn(f"{encoder.name} knows too few characters of {prompt!r} to read it.", stacklevel=2)
        parts = self.unet, self.bridge, self.scheduler
        return paint_pictures(parts, self.vae, states, seeds, batch, guidance=guidance, steps=steps, sampler=sampler)


def load_vae(folder: Path | None = None) -> AutoencoderKL:
    """The autoencoder of a diffusers folder (by default the toy world's), frozen, in float32. Raises UserError if it is
    missing."""
    place = (folder or runtime.asset() / TOY) / "vae"
    if place.is_dir():
        return _part(AutoencoderKL, place).eval().requires_grad_(False)
    if folder:
        raise UserError(f"{folder} has no autoencoder (vae/): give a diffusers folder such as Stable Diffusion's.")
    raise UserError("The autoencoder is not among the assets: `mpm-lite pretrain toy-vae --out assets` makes it.")


def load_unet(folder: Path) -> tuple[Any, Any]:
    """The UNet of a diffusers folder, in float32, and the noise schedule that it was trained with. Raises UserError if one of
    them is missing or broken."""
    if not (folder / "unet").is_dir() or not (folder / "scheduler").is_dir():
        raise UserError(f"{folder} has no unet/ and scheduler/: give a diffusers folder such as Stable Diffusion's.")
    return _part(UNet2DConditionModel, folder / "unet"), DDPMScheduler.from_pretrained(folder / "scheduler")


def _part(kind: Any, place: Path) -> Any:
    """A diffusers model from its folder, safetensors only, in float32."""
    try:
        return kind.from_pretrained(place, local_files_only=True, use_safetensors=True).float()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{place} cannot be read ({error}): fetch or make it again.") from error


def pixels(vae: AutoencoderKL, side: int) -> int:
    """The side of pictures whose latents have the given side."""
    return side * _fold(vae) * 2 ** (len(vae.config.block_out_channels) - 1)


def load_painter(folder: str | Path) -> PaintPipeline:
    """A painter from its folder. Raises UserError if there is none, or if it is damaged."""
    path = Path(folder).expanduser()
    if not (path / "model_index.json").is_file():
        raise UserError(f"{path} holds no painter (no model_index.json): `mpm-lite run mpm_paint` makes one.")
    try:
        return PaintPipeline.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"The painter at {path} cannot be read ({error}): delete it and make it again.") from error


# The toy world's autoencoder as a recipe.

FIGURE = 0.1  # a pixel is part of a figure if it differs from the background by more than this; pixels go from -1 to 1


@dataclass(frozen=True)
class AutoencoderOptions:
    """Every dial of the recipe."""

    channels: int = 8  # of a latent
    widths: str = "64,64"
    fold: int = 4  # side, in pixels, of the square that is read as one position
    figure: float = 4.0  # how much more a pixel counts if it differs from the median colour of its picture
    pull: float = 1e-5  # weight of the Gaussian's divergence from the standard one, for each number of a latent
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
        objective = "squared and absolute error of pixels, figures above background, and a faint divergence"
        return [Stage.of(self.options, "autoencoding", ("vae",), (), objective, clip=1.0)]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = batch["pictures"]
        gauss = encoded(self.vae, x)
        error = decoded(self.vae, gauss.sample()) - x
        ground = x.flatten(2).median(dim=2).values[..., None, None]  # (N, 3, 1, 1)
        weight = 1 + self.options.figure * ((x - ground).abs().amax(dim=1, keepdim=True) > FIGURE)
        divergence = 0.5 * (gauss.mean**2 + gauss.var - 1 - gauss.logvar).mean()
        return (weight * (error**2 + 0.5 * error.abs())).mean() + self.options.pull * divergence


class Drawings:
    """Pictures uint8 (M, H, H, 3) as training data, with whatever else is known of them (name -> (M, ...))."""

    def __init__(self, pictures: Tensor, digest: str, **known: Tensor) -> None:
        self.pictures, self.digest, self.known = pictures, digest, known

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """`pictures` (N, 3, H, H), from -1 to 1, and what is known of them."""
        x = self.pictures[indices].permute(0, 3, 1, 2).float() / 127.5 - 1
        x = x.contiguous(memory_format=torch.contiguous_format)
        return {"pictures": x, **{k: v[indices] for k, v in self.known.items()}}
