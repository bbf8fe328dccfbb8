"""Image towers that transformers wrote: ViT, DINOv2, CLIP, SigLIP and their kin, or the seeing half of a two-sided model.

What a checkpoint's preprocessor_config.json says is followed in its mean, its standard deviation and its interpolation
(bilinear or bicubic). Its crop is not: a tower sees the whole picture, at the size that the model's positions were learned
at, or, for models that read any size, at the one that the file crops or resizes to. On square pictures that is what the
file says wherever it resizes to the size it crops; DINOv2 and those that resize wider first lose a border there, not here.

Shapes: B pictures, P patches, D the tower's width, H W the sides it resizes to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpm_lite import runtime
from mpm_lite.towers import reading
from mpm_lite.towers.image import Forward, TorchImageTower

# Their positions are made for whatever size comes.
ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit")
# One with a projection of its own, which AutoModel would leave out.
PROJECTED = ("CLIPVisionModelWithProjection",)


def _two(value: Any) -> tuple[int, int]:
    """(height, width) of a size as the files write it: a number, a pair, or a dict of sides."""
    if isinstance(value, dict):
        value = value.get("shortest_edge") or (value.get("height"), value.get("width"))
    if isinstance(value, (list, tuple)):
        return int(value[0]), int(value[-1])
    return int(value), int(value)


def preprocessing(root: Path) -> dict[str, Any]:
    """What a folder says of preprocessing: of preprocessor_config.json, or the picture's part of processor_config.json."""
    said = reading.read(root / "preprocessor_config.json")
    return said or reading.read(root / "processor_config.json").get("image_processor") or {}


def _sides(config: Any, said: dict[str, Any]) -> tuple[int, int]:
    """(H, W) to resize to."""
    if config.model_type == "siglip2_vision_model":  # positions are a square of patches, resized to any other
        side = round(config.num_patches**0.5) * config.patch_size
        return side, side
    asked = (said.get("crop_size") if said.get("do_center_crop", True) else None) or said.get("size")
    if config.model_type in ANY_SIZE and asked:
        cell = _two(config.patch_size)
        return tuple(max(1, side // one) * one for side, one in zip(_two(asked), cell, strict=True))  # type: ignore[return-value]
    return _two(config.image_size)


def patchwise(x: Tensor, side: int) -> Tensor:
    """Pictures (B, 3, H, W) -> their patches of side x side pixels, row by row, colours last: (B, P, side * side * 3)."""
    cells = x.unfold(2, side, side).unfold(3, side, side)  # (B, 3, h, w, side, side)
    return cells.permute(0, 2, 3, 4, 5, 1).flatten(1, 2).flatten(2)


def _forward(full: Any, model: nn.Module, config: Any, sides: tuple[int, int], pooler: bool) -> Forward:
    """The function on a batch: vectors (B, D), and patches (B, P, D') where the model has them."""
    cell = getattr(config, "patch_size", None)
    count = 0
    if cell is not None:
        high, wide = (side // one for side, one in zip(sides, _two(cell), strict=True))
        count = high * wide
    project = getattr(full, "visual_projection", None)
    by_patches = config.model_type == "siglip2_vision_model"

    def forward(x: Tensor) -> tuple[Tensor, Tensor | None]:
        if by_patches:
            flat = patchwise(x, config.patch_size)
            shapes = torch.tensor([[high, wide]], device=x.device).expand(len(x), 2)
            there = flat.new_ones(flat.shape[:2], dtype=torch.long)
            # The two-sided model calls the mask otherwise than the image processor: by place it is the same in both.
            out = model(flat, there, shapes)
        else:
            out = model(pixel_values=x)
        states = out.last_hidden_state  # (B, prefix + P, D), or a map (B, D, h, w)
        pooled = getattr(out, "pooler_output", None)
        if pooled is None or not pooler:  # a pooler that the checkpoint lacks would be noise
            if states.ndim == 4:
                pooled = states.mean((2, 3))
            else:  # the class token, or, without one, all of them
                pooled = states[:, 0] if states.shape[1] != count else states.mean(1)
        pooled = pooled.flatten(1)
        if states.ndim == 4:
            return pooled, states.flatten(2).transpose(1, 2)
        patches = states[:, -count:] if 0 < count <= states.shape[1] else None
        return project(pooled) if project is not None else pooled, patches

    return forward


def vision_tower(name: str, root: Path, device: torch.device) -> TorchImageTower:
    """A transformers vision model as a tower: its pooled output, CLIP's projected to where its texts lie; without a pooler
    the class token, or the mean of the patches. SigLIP's pooled output is that of its attention head.

    Raises UserError for a folder that is torn, pickled or no vision model.
    """
    import transformers

    kinds = reading.read(root / "config.json").get("architectures") or [""]
    loader = getattr(transformers, kinds[0]) if kinds[0] in PROJECTED else transformers.AutoModel
    full, missing = reading.load(loader, root)
    inner = getattr(full, "vision_model", None)
    model = inner if inner is not None and (hasattr(full, "text_model") or hasattr(full, "visual_projection")) else full
    if not hasattr(model.config, "image_size") and not hasattr(model.config, "num_patches"):
        raise runtime.UserError(f"{root} is no vision model (its model_type is {model.config.model_type!r}).")
    said = preprocessing(root)
    mean, std = (tuple(said.get(key) or [0.5] * 3) for key in ("image_mean", "image_std"))
    if said.get("do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    bilinear = said.get("resample") == 2
    sides = _sides(model.config, said)
    # What is not how every tower was read before has its mark.
    usual = _two(getattr(model.config, "image_size", sides)) == sides and sides[0] == sides[1]
    marks = ["bilinear"] * bilinear + ["projected"] * hasattr(full, "visual_projection")
    marks += [] if usual else [f"{sides[0]} x {sides[1]}"]
    forward = _forward(full, model, model.config, sides, not missing)
    # The whole model moves to the device, so that a projection beside the seeing half does.
    module = full if hasattr(full, "visual_projection") else model
    if hasattr(module, "text_model"):
        module.text_model = nn.Identity()  # reads no text here: its weights would only take room
    how = "bilinear" if bilinear else "bicubic"
    return TorchImageTower(name, module, forward, sides, mean, std, reading.mark(root, *marks), device, how)
