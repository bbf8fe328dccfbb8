"""Towers from a checkpoint's folder: transformers, sentence-transformers, timm and open_clip, each as its library saves it.

`folders` says where a checkpoint lies and how its files are read; here each kind of checkpoint becomes a tower. The
folder of a sentence-transformers model says by its modules how token states become a sentence's vector, and by its
prompts what goes before a text. These few modules are written out below instead of taken from sentence-transformers,
which only the tests need: it is slow to import, its modules have moved between versions, and it would fall back to
pickled weights.

Shapes: N texts, T tokens of the longest one, W the model's width, D the width of a sentence vector.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpm_lite.core import runtime
from mpm_lite.core.runtime import UserError
from mpm_lite.towers import folders, inference, openclip
from mpm_lite.towers.image import Preprocessing, TorchImageTower, timm_tower, vision_tower
from mpm_lite.towers.lm import LM, EncoderDecoder
from mpm_lite.towers.text import TransformerTower, mean

MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
POOLED = ("mean", "cls", "max", "mean_sqrt_len_tokens", "lasttoken")
# Older files have a flag for each way of pooling; these are the flags whose names differ.
OLDER = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
ACTIVATIONS = ("Tanh", "Identity", "GELU", "ReLU", "Sigmoid", "SiLU")  # of a Dense module, by their names in torch.nn


def pooled(out: Any, mask: Tensor, mode: str) -> Tensor:
    """One vector (N, W) from the last states (N, T, W), by one of the modes in POOLED. Padding stands at the end."""
    states = out.last_hidden_state
    if mode == "cls":
        return states[:, 0]
    if mode == "max":
        return states.masked_fill(~mask[..., None], -1e9).amax(1)
    if mode == "lasttoken":
        return states[torch.arange(len(states), device=states.device), mask.sum(1).clamp(min=1) - 1]
    if mode == "mean_sqrt_len_tokens":
        return mean(out, mask) * mask.sum(1, keepdim=True).clamp(min=1).sqrt()
    return mean(out, mask)


def _dense(place: Path) -> nn.Module:
    """The Dense module of a folder: a linear map and an activation on sentence vectors, (N, W) -> (N, D).

    Raises UserError for an activation nobody knows, and for weights that are pickled, torn or of another shape.
    """
    said = folders.read_json(place / "config.json")
    kind = str(said.get("activation_function") or "Identity").rsplit(".", 1)[-1]
    if kind not in ACTIVATIONS:
        raise runtime.unknown("activation of a Dense module", kind, ACTIVATIONS)
    if said.get("use_residual") or said.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise UserError(f"{place} is a Dense module of a kind that is not read: it skips or reads token states.")
    weights = folders.tensors(place / "model.safetensors")
    with folders.reading(place):
        linear = nn.Linear(int(said["in_features"]), int(said["out_features"]), bias=said.get("bias", True))
        module = nn.Sequential(OrderedDict(linear=linear, activation=getattr(nn, kind)()))
        module.load_state_dict(weights)
    return module


class Unit(nn.Module):
    """Vectors scaled to length one."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


class Modules(nn.Module):
    """Pooling by `mode`, one of POOLED, then the modules `after` it. The tower itself scales to unit norm, last of all."""

    def __init__(self, mode: str, after: list[nn.Module]) -> None:
        super().__init__()
        self.mode, self.after = mode, nn.Sequential(*after)

    def forward(self, out: Any, mask: Tensor) -> Tensor:
        return self.after(pooled(out, mask, self.mode))


@dataclass
class Said:
    """What a folder says about sentences: how states become a vector (None: by their mean), the text that is put before
    each, whether texts are lowered, and which of these things the fingerprint must contain."""

    pool: Modules | None
    prefix: str
    lower: bool
    marks: list[str | Path]


def sentence_settings(root: Path, prompt: str | None = None) -> Said:
    """What the folder of a sentence-transformers model says of itself. Any other folder means the plain mean, no text before.

    `prompt` is the name of one of the folder's prompts, or, where it ends in a colon or a space, the text itself. None
    takes the folder's default prompt where it names one, else nothing. Raises UserError for an unknown name, and for a
    module or a way of pooling that is not supported.
    """
    mode, places, after = "mean", list[Path](), list[nn.Module]()
    for one in folders.read_json(root / "modules.json") or []:
        kind, place = str(one.get("type", "")).rsplit(".", 1)[-1], root / one.get("path", "")
        if kind not in MODULES:
            raise UserError(f"{root} has a module {kind!r} that is not read here: it may have {', '.join(MODULES)}.")
        if kind == "Pooling":
            mode = _mode(place)
        elif kind == "Dense":
            after.append(_dense(place))
            places += [place / "config.json", place / "model.safetensors"]
        elif kind == "Normalize":
            after.append(Unit())
    prefix = _prefix(root, prompt)
    lower = bool(folders.read_json(root / "sentence_bert_config.json").get("do_lower_case"))
    plain = mode == "mean" and not places  # every tower ends in a unit norm anyway
    marks: list[str | Path] = [*([] if plain else [f"pooling {mode}"]), *([f"prefix {prefix}"] if prefix else [])]
    return Said(None if plain else Modules(mode, after), prefix, lower, [*marks, *places])


def _mode(place: Path) -> str:
    """The one way of pooling that a Pooling module's file names: newer files by a word, older ones by a flag for each."""
    told = folders.read_json(place / "config.json")
    flags = [key.removeprefix("pooling_mode_") for key, on in told.items() if key.startswith("pooling_mode_") and on]
    modes = told.get("pooling_mode") or [OLDER.get(flag, flag) for flag in flags]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLED:
        raise UserError(f"{place} pools by {' and '.join(modes) or 'nothing'}; one of {', '.join(POOLED)} is read.")
    if told.get("include_prompt", True) is False:
        raise UserError(f"{place} leaves the prompt out of its pooling, which is not read here.")
    return modes[0]


def _prefix(root: Path, prompt: str | None) -> str:
    told = folders.read_json(root / "config_sentence_transformers.json")
    known = told.get("prompts") or {}
    name = prompt if prompt is not None else told.get("default_prompt_name")
    if not name or name in known:
        return known[name] if name else ""
    if name[-1] in ": ":
        return name
    raise runtime.unknown("prompt", name, [*known, "or a text that ends in a colon or a space"])


def lm_from_folder(root: Path, name: str, device: torch.device, bits: int | None = None) -> LM:
    """A transformers causal or encoder-decoder language model from a folder; a card.json there names its languages.

    With `bits`, 4 or 8, it is quantised as it is loaded (see `inference`). Raises UserError for a folder without
    safetensors, tokenizer or a usable config, and where model and tokenizer do not fit.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    sided = bool(folders.read_json(root / "config.json").get("is_encoder_decoder"))
    options = inference.options(bits, device)
    model, _ = folders.load_model(AutoModelForSeq2SeqLM if sided else AutoModelForCausalLM, root, **options)
    mark = folders.fingerprint_folder(root, *([f"{bits} bits"] if bits else []))
    kind = EncoderDecoder if sided else LM
    return kind(name, model, folders.tokenizer(root), mark, device, folders.languages(root))


def text_from_folder(
    root: Path, name: str, device: torch.device, languages: frozenset[str] = frozenset(), prompt: str | None = None
) -> TransformerTower:
    """A text tower from a folder: a transformers encoder (of an encoder-decoder, its encoder), or open_clip's reading half.

    A sentence-transformers folder's own modules pool its states; any other's are averaged. `prompt` is as in
    `sentence_settings`. Texts are cut where sentence-transformers' file says, else at the model's limit.
    Raises UserError for a folder without safetensors, tokenizer or a usable config.
    """
    from transformers import AutoModel

    if (root / openclip.CONFIG).exists():
        if prompt is not None:
            raise UserError(f"{name} is open_clip's and has no prompts: put the words into your texts.")
        return openclip.text_half(name, root, device)
    config = folders.read_json(root / "config.json")
    if "text_config" in config and "vision_config" in config:
        raise UserError(
            f"{root} is a model of pictures and texts as transformers writes it; of those, load_image_tower takes the seeing "
            "half. For the reading half give the same model as open_clip writes it, or a text encoder."
        )
    said = sentence_settings(root, prompt)
    model, _ = folders.load_model(AutoModel, root)
    tokenizer = folders.tokenizer(root)
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    tokenizer.padding_side = "right"
    positions = _positions(model)
    length = folders.read_json(root / "sentence_bert_config.json").get("max_seq_length")
    limit = min(int(length or positions), positions, tokenizer.model_max_length)
    mark, clean = folders.fingerprint_folder(root, *said.marks), str.lower if said.lower else None
    languages = languages or folders.languages(root)
    return TransformerTower(name, model, tokenizer, mark, limit, device, languages, said.prefix, said.pool, clean)


def _positions(model: torch.nn.Module) -> int:
    """The longest row of tokens that a text encoder has positions for; 512 where it names no limit."""
    positions = getattr(model.config, "max_position_embeddings", None) or 0
    for name, module in model.named_modules():
        skipped = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and skipped is not None:
            return positions - skipped - 1  # as in RoBERTa, positions start behind the one that padding has
    return positions if positions > 0 else 512


def image_from_folder(root: Path, name: str, device: torch.device) -> TorchImageTower:
    """An image tower from a folder, whose own files say which library wrote it: open_clip, timm or transformers.

    Raises UserError for a folder of none of them.
    """
    if (root / openclip.CONFIG).exists():
        return openclip.image_half(name, root, device)
    config = folders.read_json(root / "config.json")
    if "architecture" in config:
        return _timm(name, root, device)
    if "model_type" in config:
        return vision_tower(name, root, device)
    raise UserError(
        f"{root} has no config of transformers (with a model_type), timm or open_clip: use save_pretrained."
    )


def _timm(name: str, root: Path, device: torch.device) -> TorchImageTower:
    import timm

    folders.check_whole(root)
    with folders.reading(root):
        model = timm.create_model(f"local-dir:{root}", pretrained=True)
    said: dict[str, Any] = timm.data.resolve_model_data_config(model)
    high, wide = said["input_size"][-2:]
    look = Preprocessing((high, wide), said["mean"], said["std"], bilinear=said.get("interpolation") == "bilinear")
    mark = folders.fingerprint_folder(root, *look.marks, *[f"{high} x {wide}"] * (high != wide))
    return timm_tower(name, model, look, mark, device)
