"""The three doors: load_text_tower, load_image_tower and load_lm, by a name, a folder or a hub id."""

from __future__ import annotations

from pathlib import Path

import torch

from mpm_lite.core import runtime
from mpm_lite.core.packages import SMOLLM2
from mpm_lite.towers import catalogue, folders, inference, openclip, packaged, pretrained
from mpm_lite.towers.catalogue import IMAGE_TOWERS, TEXT_TOWERS, TOY_TOWERS
from mpm_lite.towers.image import ImageTower, JoinedTower
from mpm_lite.towers.lm import LM
from mpm_lite.towers.text import TextTower


def _is_folder(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def _is_checkpoint(name: str) -> bool:
    """Whether a tower's name is a folder, a hub id or a name of open_clip's."""
    return name.startswith(openclip.PREFIX) or "/" in name or _is_folder(name)


def _find(kind: str, name: str, revision: str | None) -> tuple[Path, str]:
    """The folder of a tower's checkpoint, and what it is called."""
    if not name.startswith(openclip.PREFIX):
        return folders.find(kind, name, revision)
    bare, revision = folders.named(name, revision)
    return openclip.snapshot(kind, bare, revision), folders.shown(bare, revision)


def load_image_tower(name: str, device: str | torch.device | None = None, *, revision: str | None = None) -> ImageTower:
    """The image tower of that name, frozen, in float32.

    `name` is a packaged tower (`efficientnet-lite0`, `-lite1`, `-lite2`, `toy`), several of them joined by '+' (their
    vectors side by side), `open_clip:MODEL/TAG`, a folder written by transformers, timm or open_clip, or a hub id of a
    transformers vision model. `NAME@REVISION`, or `revision`, takes a hub repository at a branch, a tag or a commit.
    Raises UserError for a name nobody knows, a package that is missing, or a hub that cannot be reached.
    """
    name = str(name)
    if name in IMAGE_TOWERS:
        folders.unpinned("image", name, revision)
        if name == "toy":
            return pretrained.image_from_folder(folders.toy_folder("toy-image"), name, runtime.device(device))
        return packaged.efficientnet_lite(name, runtime.device(device))
    if "+" in name and not _is_folder(name):
        if revision:
            raise runtime.UserError(f"{name!r} names several towers: give each its own NAME@REVISION.")
        return JoinedTower(name, [load_image_tower(one.strip(), device) for one in name.split("+")])
    if _is_checkpoint(name):
        on = runtime.device(device)  # before anything is fetched
        return pretrained.image_from_folder(*_find("image", name, revision), on)
    raise runtime.unknown("image tower", name, [*IMAGE_TOWERS, "open_clip:MODEL/TAG"])


def load_text_tower(
    name: str, device: str | torch.device | None = None, *, revision: str | None = None, prompt: str | None = None
) -> TextTower:
    """The text tower of that name, frozen, in float32.

    `name` is a packaged tower (`use-m`, `e5-small`, `minilm-en`: the weights that pip brought, network or not), one of
    the toy world's (`toy`, `toy-en`), a folder written by transformers, sentence-transformers or open_clip, a hub id
    such as `intfloat/multilingual-e5-base`, or `open_clip:MODEL/TAG` for the text half. `use-m` ignores `device`: it is
    numpy. `NAME@REVISION`, or `revision`, takes a hub repository at a branch, a tag or a commit. `prompt` goes before
    every text of a folder or hub id: the name of one of its own prompts (`query`), or the text itself (`"query: "`, as
    E5 was trained). Without it only a prompt that the folder names as its default is used. Raises UserError for a name
    nobody knows, a package that is missing, or a hub that cannot be reached.
    """
    name = str(name)
    if name in TEXT_TOWERS or name in TOY_TOWERS:
        folders.unpinned("text", name, revision)
        if prompt is not None:
            raise runtime.UserError(f"{name} puts what it was trained with before a text: leave prompt out.")
        if name in TEXT_TOWERS:
            return getattr(packaged, TEXT_TOWERS[name])(runtime.device(device))
        return pretrained.text_from_folder(folders.toy_folder(TOY_TOWERS[name]), name, runtime.device(device))
    if _is_checkpoint(name):
        on = runtime.device(device)  # before anything is fetched
        return pretrained.text_from_folder(*_find("text", name, revision), on, prompt=prompt)
    raise runtime.unknown("text tower", name, [*TEXT_TOWERS, *TOY_TOWERS, "open_clip:MODEL/TAG"])


def load_lm(
    name: str, seed: int = 0, device: str | torch.device | None = None, *, bits: int | None = None, revision: str | None = None
) -> LM:  # fmt: skip
    """The language model of that name, frozen, in float32.

    `name` is one of the toy world's (`toy-multilingual`, `toy-noparallel`, `toy-english`, `toy-unseen`, and those that
    `mpm-lite pretrain` makes, such as `toy-mixed` and `toy-parallel-70`; `seed` picks one of those pretrained apart),
    `smollm2` (135 million parameters, mostly English; `mpm-lite data get smollm2` fetches it, no hub needed), a folder
    written by transformers, or a hub id such as `bigscience/mt0-small`; `NAME@REVISION`, or `revision`, takes a hub
    repository at a branch, a tag or a commit. `bits`: 4 or 8 quantises it on a GPU. Raises UserError for a name
    nobody knows, a seed nobody trained, a checkpoint that is torn or does not fit its tokenizer, a hub that cannot be
    reached, or bits without a GPU or bitsandbytes.
    """
    name, on = str(name), runtime.device(device)
    inference.options(bits, on)  # before anything is fetched
    if name in catalogue.NAMES:
        folders.unpinned("lm", name, revision)
        return pretrained.lm_from_folder(catalogue.folder(name, seed), f"{name}:{seed}" if seed else name, on, bits)
    if name == SMOLLM2.set:
        folders.unpinned("lm", name, revision)
        return pretrained.lm_from_folder(packaged.smollm2(), name, on, bits)
    if "/" in name or _is_folder(name):
        return pretrained.lm_from_folder(*folders.find("lm", name, revision), on, bits)
    raise runtime.unknown("language model", name, folders.LMS)
