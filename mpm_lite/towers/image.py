"""Frozen image towers behind one face: one vector a picture, and one a patch where the tower has them.

Some are checkpoints of transformers: ViT, DINOv2, CLIP, SigLIP and their kin, or the seeing half of a two-sided model.
Of such a checkpoint's preprocessor_config.json the mean, the standard deviation and the interpolation (bilinear or
bicubic) are followed, the crop is not: a tower sees the whole picture, at the size for which the model learned its
positions or, if it reads any size, at the size to which the file crops or resizes. For square pictures this is what the
file says wherever it resizes to the size that it crops; DINOv2 and others that first resize to more lose a border there.

Shapes: N pictures, B of them in a batch, H W a picture's height and width, S the tower's own size, P patches, D the
tower's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mpm_lite.core import runtime
from mpm_lite.core.keys import digest
from mpm_lite.core.runtime import UserError
from mpm_lite.towers import folders
from mpm_lite.towers.feature_cache import Fingerprinted
from mpm_lite.towers.inference import frozen, in_batches

# How many pictures a CPU computes at once: with 8, the wide early layers already leave the processor's cache, which
# takes a sixth longer. The packaged towers give the same bits with any number.
CPU_STEP = 4

# A batch of pictures float32 (B, 3, S, S) -> vectors (B, D) and patches (B, P, D'), or None where there are no patches.
Forward = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class ImageTower(Protocol):
    """What a recipe may ask of an image tower; anything with these members will do.

    `images` is uint8 (N, H, W, 3): an array, or anything with a length whose slices are such arrays.
    """

    name: str
    width: int  # D
    size: int  # S, the longer side where the two differ
    fingerprint: str  # SHA-256 of the weights and of the code that reads them
    has_patches: bool

    def encode(self, images: Any, progress: bool = False) -> np.ndarray:
        """One vector a picture, float32 (N, D), not normalised."""

    def patches(self, images: Any, progress: bool = False) -> np.ndarray:
        """One vector a patch, row by row from the top left, float32 (N, P, D)."""


def check_pictures(part: Any, expected: int) -> np.ndarray:
    """A slice of pictures as uint8 (B, H, W, 3). Raises UserError that says what came instead and how to mend it."""
    try:
        array = np.asarray(part)
    except ValueError:
        raise UserError("The pictures differ in size: resize them to one size first.") from None
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3 and array.size:
        if len(array) != expected:
            raise UserError(f"A slice of {expected} pictures gave {len(array)}: the image source miscounts.")
        return array
    if array.dtype != np.uint8:
        mend = "bring them to 0-255 and call .astype('uint8')"
    elif array.ndim == 4 and array.shape[-1] == 4:
        mend = "paint RGBA pictures on a background and keep images[..., :3]"
    elif array.ndim == 4 and array.shape[1] == 3:
        mend = "move the colours last with images.transpose(0, 2, 3, 1)"
    elif array.ndim == 3 and array.shape[-1] != 3 or array.ndim == 4 and array.shape[-1] == 1:
        mend = "give grey pictures three equal channels with np.repeat"
    else:
        mend = "stack them into one array"
    shape = tuple(array.shape)
    raise UserError(f"Pictures must be uint8 of shape (N, H, W, 3), not {array.dtype} of {shape}: {mend}.")


class Preprocessing(NamedTuple):
    """How a picture is prepared: the `size` that it is resized to, S for S x S or else (height, width), and the mean
    and the standard deviation of each colour; resized by bicubic interpolation, or `bilinear`."""

    size: int | tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bilinear: bool = False

    @property
    def marks(self) -> list[str]:
        """What a fingerprint must say of the interpolation: nothing of the bicubic one, which was once the only one."""
        return ["bilinear"] if self.bilinear else []


class TorchImageTower(Fingerprinted):
    """An image tower from a function on batches.

    The whole picture is resized as `look` says, antialiased and never cropped: where a checkpoint's own preprocessing
    cuts the middle out of a resized picture, its borders are seen here too. Where a GPU's memory runs out, a batch is
    computed in halves.
    """

    decisive = ("sides", "interpolation")

    def __init__(
        self, name: str, model: nn.Module, forward: Forward, look: Preprocessing, fingerprint: str, device: torch.device
    ) -> None:
        size = look.size
        self.sides = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.name, self.size, self.device = name, max(self.sides), device
        self.interpolation = "bilinear" if look.bilinear else "bicubic"
        self.model = frozen(model, device, name)
        self.loaded_as(fingerprint)
        self._forward = forward
        self._mean, self._std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (look.mean, look.std))
        self.batch = runtime.preset(device).image_batch
        self._step = self.batch if device.type == "cuda" else CPU_STEP
        with torch.inference_mode():  # a black picture shows the width, and whether there are patches
            pooled, patches = forward(self.prepare(np.zeros((1, *self.sides, 3), np.uint8)))
        self.width, self.has_patches = int(pooled.shape[-1]), patches is not None

    def prepare(self, part: np.ndarray) -> Tensor:
        """Pictures uint8 (B, H, W, 3) as the model reads them, float32 (B, 3, S, S)."""
        x = torch.from_numpy(np.require(part, requirements=("C", "W"))).to(self.device)
        x = x.permute(0, 3, 1, 2)  # (B, 3, H, W)
        if x.shape[-2:] != self.sides:
            # CUDA resizes only floats. The CPU resizes bytes, as Pillow does, which is five times faster.
            x = x if x.device.type == "cpu" else x.float()
            x = torch.nn.functional.interpolate(x, size=self.sides, mode=self.interpolation, antialias=True)
            x = x if x.dtype == torch.uint8 else x.round().clamp(0, 255)
        x = (x.float() / 255 - self._mean) / self._std
        return x.contiguous(memory_format=torch.channels_last)

    def _batches(self, images: Any, progress: bool) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """For each batch: its place, its vectors (B, D) and its patches (B, P, D)."""
        if isinstance(images, np.ndarray) and (images.ndim != 4 or images.dtype != np.uint8):
            check_pictures(images, len(images) if images.ndim else 0)

        def compute(place: slice) -> tuple[slice, Tensor, Tensor | None]:
            x = self.prepare(check_pictures(images[place], place.stop - place.start))
            with torch.inference_mode():
                pooled, patches = zip(*(self._forward(few) for few in x.split(self._step)), strict=True)
            return place, torch.cat(pooled), None if patches[0] is None else torch.cat(patches)

        yield from in_batches(compute, len(images), self.batch, "pictures", self.name, progress)

    def encode(self, images: Any, progress: bool = False) -> np.ndarray:
        """One vector a picture, float32 (N, D), not normalised. Raises UserError for anything but uint8 RGB."""
        vectors = np.zeros((len(images), self.width), dtype=np.float32)
        for place, pooled, _ in self._batches(images, progress):
            vectors[place] = pooled.float().cpu().numpy()
        return vectors

    def patches(self, images: Any, progress: bool = False) -> np.ndarray:
        """One vector a patch, row by row from the top left, float32 (N, P, D); open_clip's come before its projection.

        Raises UserError for a tower without patches, and for anything but uint8 RGB.
        """
        if not self.has_patches:
            raise UserError(f"{self.name} gives one vector a picture and no patches; take efficientnet-lite0.")
        parts = [found.float().cpu().numpy() for _, _, found in self._batches(images, progress) if found is not None]
        return np.concatenate(parts) if parts else np.zeros((0, 0, self.width), np.float32)


class JoinedTower:
    """Several towers side by side: their vectors one after the other, float32 (N, D1 + D2 + ...). No patches."""

    has_patches = False

    def __init__(self, name: str, towers: list[ImageTower]) -> None:
        self.name, self.towers = name, towers
        self.width, self.size = sum(t.width for t in towers), max(t.size for t in towers)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the towers' own."""
        return digest(tower.fingerprint for tower in self.towers)

    def encode(self, images: Any, progress: bool = False) -> np.ndarray:
        """One vector a picture, float32 (N, D)."""
        return np.concatenate([tower.encode(images, progress) for tower in self.towers], axis=1)

    def patches(self, images: Any, progress: bool = False) -> np.ndarray:
        """Always raises UserError, since the towers' patches do not cover the same places."""
        raise UserError(f"{self.name} has no patches; take one of {', '.join(t.name for t in self.towers)}.")


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """Fold each timm BatchNormAct2d into the convolution before it: the same function, twice as fast on a CPU."""
    for module in model.modules():
        children = list(module.named_children())
        for (_, conv), (name, norm) in zip(children, children[1:], strict=False):
            if isinstance(conv, torch.nn.Conv2d) and hasattr(norm, "running_mean") and hasattr(norm, "act"):
                conv.weight, conv.bias = torch.nn.utils.fusion.fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
                setattr(module, name, norm.act)
    return model


def timm_tower(
    name: str, model: nn.Module, look: Preprocessing, fingerprint: str, device: torch.device
) -> TorchImageTower:
    """A timm model as a tower: the pooled features before its classifier, and its last feature map as patches."""
    model = fold_batchnorm(model.eval()).to(memory_format=torch.channels_last)

    def forward(x: Tensor) -> tuple[Tensor, Tensor | None]:
        found = model.forward_features(x)  # (B, D, h, w), or (B, P, D) behind some prefix tokens
        pooled = model.forward_head(found, pre_logits=True)
        if found.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NCHW":
            return pooled, found.flatten(2).transpose(1, 2)
        if found.ndim == 3:
            return pooled, found[:, getattr(model, "num_prefix_tokens", 0) :]
        return pooled, None

    return TorchImageTower(name, model, forward, look, fingerprint, device)


ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit")  # models that read pictures of any size
PROJECTED = ("CLIPVisionModelWithProjection",)  # models with a projection of their own, which AutoModel would leave out


def _two(value: Any) -> tuple[int, int]:
    """The (height, width) of a size as files write it: a number, a pair, or a dict of sides."""
    if isinstance(value, dict):
        value = value.get("shortest_edge") or (value.get("height"), value.get("width"))
    if isinstance(value, (list, tuple)):
        return int(value[0]), int(value[-1])
    return int(value), int(value)


def preprocessing(root: Path) -> dict[str, Any]:
    """What a folder says about preprocessing: in preprocessor_config.json, or in its part of processor_config.json."""
    said = folders.read_json(root / "preprocessor_config.json")
    return said or folders.read_json(root / "processor_config.json").get("image_processor") or {}


_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
# How kinds of models read pictures where their folder does not say it, as save_pretrained of a model alone leaves it.
USUAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model", "vit", "deit", "beit"), {}),
    **dict.fromkeys(("clip", "clip_vision_model"), _CLIP),
}


def _sides(config: Any, said: dict[str, Any]) -> tuple[int, int]:
    """The (H, W) that pictures are resized to."""
    if config.model_type == "siglip2_vision_model":  # its positions are learned for a square of patches
        side = round(config.num_patches**0.5) * config.patch_size
        return side, side
    asked = (said.get("crop_size") if said.get("do_center_crop", True) else None) or said.get("size")
    if config.model_type in ANY_SIZE and asked:
        cell = _two(config.patch_size)
        return tuple(max(1, side // one) * one for side, one in zip(_two(asked), cell, strict=True))  # type: ignore[return-value]
    return _two(config.image_size)


def patchwise(x: Tensor, side: int) -> Tensor:
    """The patches of side x side pixels of pictures (B, 3, H, W), row by row, colours last: (B, P, side * side * 3)."""
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
            # Models name the mask in different ways, so that it is passed by its place, which is the same in all.
            out = model(flat, there, shapes)
        else:
            out = model(pixel_values=x)
        states = out.last_hidden_state  # (B, prefix + P, D), or a map (B, D, h, w)
        pooled = getattr(out, "pooler_output", None)
        if pooled is None or not pooler:  # a pooler that the checkpoint lacks would be noise
            if states.ndim == 4:
                pooled = states.mean((2, 3))
            else:  # the class token or, where there is none, the mean of all patches
                pooled = states[:, 0] if states.shape[1] != count else states.mean(1)
        pooled = pooled.flatten(1)
        if states.ndim == 4:
            return pooled, states.flatten(2).transpose(1, 2)
        patches = states[:, -count:] if 0 < count <= states.shape[1] else None
        return project(pooled) if project is not None else pooled, patches

    return forward


def vision_tower(name: str, root: Path, device: torch.device) -> TorchImageTower:
    """A transformers vision model as a tower. Its vectors are the pooled output, which for CLIP is projected into the space of
    its texts and for SigLIP comes from its attention head; without a pooler, the class token or the mean of the patches.

    Raises UserError for a folder that is torn, pickled or no vision model.
    """
    import transformers

    kinds = folders.read_json(root / "config.json").get("architectures") or [""]
    loader = getattr(transformers, kinds[0]) if kinds[0] in PROJECTED else transformers.AutoModel
    full, missing = folders.load_model(loader, root)
    inner = getattr(full, "vision_model", None)
    model = inner if inner is not None and (hasattr(full, "text_model") or hasattr(full, "visual_projection")) else full
    if not hasattr(model.config, "image_size") and not hasattr(model.config, "num_patches"):
        raise UserError(f"{root} is no vision model (its model_type is {model.config.model_type!r}).")
    said = preprocessing(root) or USUAL.get(model.config.model_type)
    if said is None:
        raise UserError(
            f"{root} has no preprocessor_config.json, so that nobody knows how its pictures are scaled: save its image processor there too."
        )
    if said.get("do_rescale") is False or abs(255 * said.get("rescale_factor", 1 / 255) - 1) > 1e-6:
        raise UserError(f"{root} scales pixels by {said.get('rescale_factor', 1)}: only 1/255 is known here.")
    mean, std = (tuple(said.get(key) or [0.5] * 3) for key in ("image_mean", "image_std"))
    if said.get("do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    sides, projects = _sides(model.config, said), hasattr(full, "visual_projection")
    look = Preprocessing(sides, mean, std, bilinear=said.get("resample") == 2)
    # A fingerprint names only what differs from how every tower was once read.
    usual = _two(getattr(model.config, "image_size", sides)) == sides and sides[0] == sides[1]
    marks = [*look.marks, *["projected"] * projects, *([] if usual else [f"{sides[0]} x {sides[1]}"])]
    forward = _forward(full, model, model.config, sides, not missing)
    module = full if projects else model  # with a projection, the whole model has to move to the device
    if hasattr(module, "text_model"):
        module.text_model = nn.Identity()  # no text is read here, and its weights would only take room
    return TorchImageTower(name, module, forward, look, folders.fingerprint_folder(root, *marks), device)
