"""Stable Diffusion from a diffusers folder or the hub, part by part, so that MPM's painter can re-align it to another
text model.

The recipe `MpmPaint(parts.unet, width, options, parts.scheduler)` uses its UNet and schedule; `to_latents` and
`PaintPipeline` of `recipes.modules.diffusion` use its autoencoder; the states of a text tower (`prompts.PromptEncoder`)
take the place of those of its own encoder.

Shapes: N prompts, T tokens of the longest the text encoder reads, W its width, which is that of the UNet's cross-attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpm_lite.core import runtime
from mpm_lite.core.runtime import UserError
from mpm_lite.towers import folders
from mpm_lite.towers.inference import frozen
from mpm_lite.towers.text import check_texts

# What is fetched: the parts, in safetensors, without the weights that some repositories hold once more at the top.
PARTS = ("unet", "vae", "scheduler", "tokenizer", "text_encoder")
PATTERNS = (
    "model_index.json",
    *(f"{part}/*{end}" for part in PARTS for end in (".json", ".safetensors", ".txt", ".model")),
)
LONGEST = 77


@dataclass
class Diffusion:
    """The parts of a Stable Diffusion, in float32 and all frozen but the UNet: diffusers' `unet`, `vae` and `scheduler`
    (the noise schedule for training), transformers' `tokenizer` and `text_encoder`; its name, its folder, and a
    fingerprint of its files."""

    name: str
    folder: Path
    unet: Any
    vae: Any
    scheduler: Any
    tokenizer: Any
    text_encoder: Any
    fingerprint: str

    @property
    def width(self) -> int:
        """The width of what the UNet attends to."""
        return int(self.unet.config.cross_attention_dim)

    @property
    def side(self) -> int:
        """The side, in pixels, of the pictures for which it was made."""
        return int(self.unet.config.sample_size) * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Its own encoder's states for prompts, float32 (N, T, W), and a mask bool (N, T) of ones, since it learned to
        read padding too. Raises UserError for an empty prompt."""
        longest = min(int(self.tokenizer.model_max_length), LONGEST, self.text_encoder.config.max_position_embeddings)
        told = self.tokenizer(
            check_texts(prompts), padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        )
        found = self.text_encoder(told["input_ids"].to(self.text_encoder.device)).last_hidden_state
        return found, torch.ones(found.shape[:2], dtype=torch.bool, device=found.device)


def load_diffusion(
    name: str | Path, device: str | torch.device | None = None, *, revision: str | None = None
) -> Diffusion:
    """Stable Diffusion's parts from a diffusers folder or a hub id (`NAME@REVISION`, or `revision`), safetensors only.

    Raises UserError where a part is missing, torn, pickled or of another kind (SDXL asks for more than a prompt's
    states, SD3 and later have no UNet), and for a hub that cannot be reached.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    on = runtime.device(device)
    root, called = folders.find("paint", str(name), revision, PATTERNS)
    for part in PARTS:
        if not (root / part).is_dir():
            raise UserError(f"{root} has no {part}/: give a diffusers folder such as Stable Diffusion 1 or 2's.")
    for part, wanted in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
        found = folders.read_json(root / part / "config.json").get("_class_name")
        if found != wanted:
            raise UserError(f"{root / part} holds a {found}, not a {wanted}: give a Stable Diffusion 1 or 2.")
    unet = frozen(_part(UNet2DConditionModel, root / "unet"), on, called).requires_grad_(True)
    if unet.config.addition_embed_type or not isinstance(unet.config.cross_attention_dim, int):
        raise UserError(f"{root}'s UNet asks for more than a prompt's states: give a Stable Diffusion 1 or 2.")
    vae = frozen(_part(AutoencoderKL, root / "vae"), on, called)
    text, _ = folders.load_model(CLIPTextModel, root / "text_encoder")
    with folders.reading(root / "scheduler"):
        scheduler = DDPMScheduler.from_pretrained(root / "scheduler", local_files_only=True)
    tokenizer, text = folders.tokenizer(root / "tokenizer"), frozen(text, on, called)
    mark = folders.fingerprint_folder(root, *sorted(root.glob("*/*.safetensors")), *sorted(root.glob("*/*.json")))
    return Diffusion(called, root, unet, vae, scheduler, tokenizer, text, mark)


def _part(kind: Any, place: Path) -> Any:
    """A diffusers model from its folder, safetensors only, in float32."""
    folders.check_whole(place)
    with folders.reading(place):
        return kind.from_pretrained(place, local_files_only=True, use_safetensors=True).float()
