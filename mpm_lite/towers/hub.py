"""Towers from the model hub and from local folders: transformers, sentence-transformers, timm and open_clip checkpoints.

`snapshots` says where a name's folder is, `reading` how its files are read; here is what becomes a tower of which kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mpm_lite import runtime
from mpm_lite.towers import lm, openclip, quantised, reading, sentences, snapshots
from mpm_lite.towers.encoder_decoder import EncoderDecoder
from mpm_lite.towers.image import TorchImageTower, timm_tower
from mpm_lite.towers.snapshots import folder, reachable, toy_folder
from mpm_lite.towers.text import TransformerTower
from mpm_lite.towers.vision import vision_tower

__all__ = ["folder", "image_tower", "lm_from_folder", "reachable", "text_from_folder", "text_tower", "toy_folder"]


def lm_from_folder(root: Path, name: str, device: torch.device, bits: int | None = None) -> lm.LM:
    """A transformers causal or encoder-decoder language model from a folder; a card.json there names its languages.

    `bits`: 4 or 8, quantised as it is loaded (see `quantised`).
    Raises UserError for a folder without safetensors, tokenizer or a usable config, and where the two do not fit.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    sided = bool(reading.read(root / "config.json").get("is_encoder_decoder"))
    options = quantised.options(bits, device)
    model, _ = reading.load(AutoModelForSeq2SeqLM if sided else AutoModelForCausalLM, root, **options)
    kind = EncoderDecoder if sided else lm.LM
    languages = frozenset(reading.read(root / "card.json").get("languages", ()))
    mark = reading.mark(root, *([f"{bits} bits"] if bits else []))
    return kind(name, model, reading.tokenizer(root), mark, device, languages)


def text_from_folder(
    root: Path, name: str, device: torch.device, languages: frozenset[str] = frozenset(), prompt: str | None = None
) -> TransformerTower:
    """A transformers text encoder (of an encoder-decoder, its encoder) from a folder, unit norm.

    A sentence-transformers folder's own modules pool its states; any other's are averaged. `prompt` is as in
    `sentences.said`. Texts are cut where sentence-transformers' file says, else at the model's limit.
    Raises UserError for a folder without safetensors, tokenizer or a usable config.
    """
    from transformers import AutoModel

    config = reading.read(root / "config.json")
    if "text_config" in config and "vision_config" in config:
        raise runtime.UserError(
            f"{root} is a model of pictures and texts as transformers writes it; of those, load_image_tower takes the seeing "
            "half. For the reading half give the same model as open_clip writes it, or a text encoder."
        )
    said = sentences.said(root, prompt)
    model, _ = reading.load(AutoModel, root)
    tokenizer = reading.tokenizer(root)
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    tokenizer.padding_side = "right"
    positions = _positions(model)
    length = reading.read(root / "sentence_bert_config.json").get("max_seq_length")
    limit = min(int(length or positions), positions, tokenizer.model_max_length)
    languages = languages or frozenset(reading.read(root / "card.json").get("languages", ()))
    return TransformerTower(
        name, model, tokenizer, reading.mark(root, *said.marks), limit, device, languages, said.prefix, said.pool,
        str.lower if said.lower else None,
    )  # fmt: skip


def _positions(model: torch.nn.Module) -> int:
    """The longest row of tokens that a text encoder has positions for; 512 where it names no limit."""
    positions = getattr(model.config, "max_position_embeddings", None) or 0
    for name, module in model.named_modules():
        skipped = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and skipped is not None:
            return positions - skipped - 1  # as in RoBERTa, positions start behind the one that padding has
    return positions if positions > 0 else 512


def text_tower(
    name: str, device: torch.device, revision: str | None = None, prompt: str | None = None
) -> TransformerTower:
    """A text tower from a folder, a hub id, or `open_clip:MODEL/TAG`."""
    bare, revision = snapshots.named(name, revision)
    called = snapshots.shown(bare, revision)
    if bare.startswith(openclip.PREFIX):
        root = openclip.snapshot("text", bare, revision)
    else:
        root = folder("text", bare, revision)
    if (root / openclip.CONFIG).exists():
        if prompt is not None:
            raise runtime.UserError(f"{called} is open_clip's and has no prompts: put the words into your texts.")
        return openclip.text_half(called, root, device)
    return text_from_folder(root, called, device, prompt=prompt)


def _timm(name: str, root: Path, device: torch.device) -> TorchImageTower:
    import timm

    reading.whole(root)
    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(f"local-dir:{root}", pretrained=True)
    except reading.BROKEN as error:
        raise reading.broken(root, error) from error
    said: dict[str, Any] = timm.data.resolve_model_data_config(model)
    high, wide = said["input_size"][-2:]
    # What is not how every tower was read before has its mark.
    bilinear = said.get("interpolation") == "bilinear"
    marks = ["bilinear"] * bilinear + [f"{high} x {wide}"] * (high != wide)
    how, mark = "bilinear" if bilinear else "bicubic", reading.mark(root, *marks)
    return timm_tower(name, model, (high, wide), said["mean"], said["std"], mark, device, how)


def image_tower(
    name: str, device: torch.device, shown: str | None = None, revision: str | None = None
) -> TorchImageTower:
    """An image tower from `open_clip:MODEL/TAG`, a folder, or a hub id; its own files say which library wrote it.

    `shown` is what the tower calls itself, where that is not `name`.
    """
    bare, revision = snapshots.named(name, revision)
    called = shown or snapshots.shown(bare, revision)
    if bare.startswith(openclip.PREFIX):
        root = openclip.snapshot("image", bare, revision)
    else:
        root = folder("image", bare, revision)
    if (root / openclip.CONFIG).exists():
        return openclip.image_half(called, root, device)
    config = reading.read(root / "config.json")
    if "architecture" in config:
        return _timm(called, root, device)
    if "model_type" in config:
        return vision_tower(called, root, device)
    raise runtime.UserError(
        f"{root} has no config of transformers (with a model_type), timm or open_clip: use save_pretrained."
    )
