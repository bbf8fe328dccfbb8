"""Towers from the model hub and from local folders: transformers, sentence-transformers, timm and open_clip checkpoints.

`folders` says where a checkpoint lies and how its files are read; here is what becomes a tower of which kind. A
sentence-transformers folder says itself how token states become a sentence's vector: by its modules and its prompts.

Shapes: N texts, T tokens of the longest one, W the model's width, D the sentence vector's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpm_lite.core import runtime
from mpm_lite.core.runtime import reachable
from mpm_lite.towers import folders, inference, lm, openclip
from mpm_lite.towers.folders import folder, toy_folder
from mpm_lite.towers.image import TorchImageTower, timm_tower, vision_tower
from mpm_lite.towers.lm import EncoderDecoder
from mpm_lite.towers.text import TransformerTower, mean

__all__ = ["folder", "image_tower", "lm_from_folder", "reachable", "text_from_folder", "text_tower", "toy_folder"]

MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
POOLED = ("mean", "cls", "max", "mean_sqrt_len_tokens", "lasttoken")
# How older files say the same, one flag each.
OLDER = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
# The activations of a Dense by the last word of their name in its file; None: none.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "Tanh": nn.Tanh, "Identity": nn.Identity, "GELU": nn.GELU, "ReLU": nn.ReLU, "Sigmoid": nn.Sigmoid, "SiLU": nn.SiLU,
}  # fmt: skip


def pooled(out: Any, mask: Tensor, mode: str) -> Tensor:
    """One vector of the last states (N, T, W), a mode of POOLED: (N, W). Padding stands behind."""
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


class Dense(nn.Module):
    """A linear map and an activation on sentence vectors, (N, W) -> (N, D), from its folder.

    Raises UserError for an activation nobody knows, and for weights that are pickled, torn or of another shape.
    """

    def __init__(self, place: Path) -> None:
        super().__init__()
        said = folders.read(place / "config.json")
        kind = str(said.get("activation_function") or "Identity").rsplit(".", 1)[-1]
        if kind not in ACTIVATIONS:
            raise runtime.unknown("activation of a Dense module", kind, ACTIVATIONS)
        if said.get("use_residual") or said.get("module_input_name", "sentence_embedding") != "sentence_embedding":
            raise runtime.UserError(
                f"{place} is a Dense module of a kind that is not read: it skips or reads token states."
            )
        weights = folders.tensors(place / "model.safetensors")
        try:
            with torch.random.fork_rng(devices=[]):
                self.linear = nn.Linear(
                    int(said["in_features"]), int(said["out_features"]), bias=said.get("bias", True)
                )
            self.load_state_dict(weights)
        except folders.BROKEN as error:
            raise folders.broken(place, error) from error
        self.activation = ACTIVATIONS[kind]()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x))


class Modules(nn.Module):
    """Pooling and what follows it: `mode` of POOLED, then `after` in order. Unit norm comes last of all, in the tower."""

    def __init__(self, mode: str, after: list[nn.Module]) -> None:
        super().__init__()
        self.mode, self.after = mode, nn.ModuleList(after)

    def forward(self, out: Any, mask: Tensor) -> Tensor:
        x = pooled(out, mask, self.mode)
        for module in self.after:
            x = module(x)
        return x


class Unit(nn.Module):
    """Vectors scaled to length one."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


@dataclass
class Said:
    """What a folder says of its sentences: how states become a vector (None: their mean), the text put before each, whether
    texts are lowered, and what of that must be in the fingerprint."""

    pool: Modules | None
    prefix: str
    lower: bool
    marks: list[str | Path]


def sentence_settings(root: Path, prompt: str | None = None) -> Said:
    """What a sentence-transformers folder says of itself; of any other folder: the plain mean, no text before.

    `prompt` is the name of one of the folder's prompts, or, where it ends in a colon or a space, the text itself. None: the
    folder's default prompt where it names one, else nothing. Raises UserError for an unknown name, and for a module or a
    way of pooling that is not read.
    """
    mode, places, after = "mean", list[Path](), list[nn.Module]()
    for one in folders.read(root / "modules.json") or []:
        kind, place = str(one.get("type", "")).rsplit(".", 1)[-1], root / one.get("path", "")
        if kind not in MODULES:
            raise runtime.UserError(
                f"{root} has a module {kind!r} that is not read here: it may have {', '.join(MODULES)}."
            )
        if kind == "Pooling":
            mode = _mode(place)
        elif kind == "Dense":
            after.append(Dense(place))
            places += [place / "config.json", place / "model.safetensors"]
        elif kind == "Normalize":
            after.append(Unit())
    prefix = _prefix(root, prompt)
    lower = bool(folders.read(root / "sentence_bert_config.json").get("do_lower_case"))
    plain = mode == "mean" and not places  # a unit norm at the end is every tower's
    marks: list[str | Path] = [*([] if plain else [f"pooling {mode}"]), *([f"prefix {prefix}"] if prefix else [])]
    return Said(None if plain else Modules(mode, after), prefix, lower, [*marks, *places])


def _mode(place: Path) -> str:
    """The one way of pooling that a Pooling module's file names: newer files by word, older ones by a flag each."""
    told = folders.read(place / "config.json")
    modes = told.get("pooling_mode") or [
        OLDER.get(k, k) for k, on in told.items() if k.startswith("pooling_mode_") and on
    ]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLED:
        raise runtime.UserError(
            f"{place} pools by {' and '.join(modes) or 'nothing'}; one of {', '.join(POOLED)} is read."
        )
    if told.get("include_prompt", True) is False:
        raise runtime.UserError(f"{place} leaves the prompt out of its pooling, which is not read here.")
    return modes[0]


def _prefix(root: Path, prompt: str | None) -> str:
    told = folders.read(root / "config_sentence_transformers.json")
    known = told.get("prompts") or {}
    name = prompt if prompt is not None else told.get("default_prompt_name")
    if not name:
        return ""
    if name in known:
        return known[name]
    if name[-1] in ": ":
        return name
    choices = [*known, "or a text that ends in a colon or a space"]
    raise runtime.unknown("prompt", name, choices)


def lm_from_folder(root: Path, name: str, device: torch.device, bits: int | None = None) -> lm.LM:
    """A transformers causal or encoder-decoder language model from a folder; a card.json there names its languages.

    `bits`: 4 or 8, quantised as it is loaded (see `inference`).
    Raises UserError for a folder without safetensors, tokenizer or a usable config, and where the two do not fit.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    sided = bool(folders.read(root / "config.json").get("is_encoder_decoder"))
    options = inference.options(bits, device)
    model, _ = folders.load(AutoModelForSeq2SeqLM if sided else AutoModelForCausalLM, root, **options)
    kind = EncoderDecoder if sided else lm.LM
    languages = frozenset(folders.read(root / "card.json").get("languages", ()))
    mark = folders.mark(root, *([f"{bits} bits"] if bits else []))
    return kind(name, model, folders.tokenizer(root), mark, device, languages)


def text_from_folder(
    root: Path, name: str, device: torch.device, languages: frozenset[str] = frozenset(), prompt: str | None = None
) -> TransformerTower:
    """A transformers text encoder (of an encoder-decoder, its encoder) from a folder, unit norm.

    A sentence-transformers folder's own modules pool its states; any other's are averaged. `prompt` is as in
    `sentence_settings`. Texts are cut where sentence-transformers' file says, else at the model's limit.
    Raises UserError for a folder without safetensors, tokenizer or a usable config.
    """
    from transformers import AutoModel

    config = folders.read(root / "config.json")
    if "text_config" in config and "vision_config" in config:
        raise runtime.UserError(
            f"{root} is a model of pictures and texts as transformers writes it; of those, load_image_tower takes the seeing "
            "half. For the reading half give the same model as open_clip writes it, or a text encoder."
        )
    said = sentence_settings(root, prompt)
    model, _ = folders.load(AutoModel, root)
    tokenizer = folders.tokenizer(root)
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    tokenizer.padding_side = "right"
    positions = _positions(model)
    length = folders.read(root / "sentence_bert_config.json").get("max_seq_length")
    limit = min(int(length or positions), positions, tokenizer.model_max_length)
    languages = languages or frozenset(folders.read(root / "card.json").get("languages", ()))
    return TransformerTower(
        name, model, tokenizer, folders.mark(root, *said.marks), limit, device, languages, said.prefix, said.pool,
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
    bare, revision = folders.named(name, revision)
    called = folders.shown(bare, revision)
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

    folders.whole(root)
    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(f"local-dir:{root}", pretrained=True)
    except folders.BROKEN as error:
        raise folders.broken(root, error) from error
    said: dict[str, Any] = timm.data.resolve_model_data_config(model)
    high, wide = said["input_size"][-2:]
    # What is not how every tower was read before has its mark.
    bilinear = said.get("interpolation") == "bilinear"
    marks = ["bilinear"] * bilinear + [f"{high} x {wide}"] * (high != wide)
    how, mark = "bilinear" if bilinear else "bicubic", folders.mark(root, *marks)
    return timm_tower(name, model, (high, wide), said["mean"], said["std"], mark, device, how)


def image_tower(
    name: str, device: torch.device, shown: str | None = None, revision: str | None = None
) -> TorchImageTower:
    """An image tower from `open_clip:MODEL/TAG`, a folder, or a hub id; its own files say which library wrote it.

    `shown` is what the tower calls itself, where that is not `name`.
    """
    bare, revision = folders.named(name, revision)
    called = shown or folders.shown(bare, revision)
    if bare.startswith(openclip.PREFIX):
        root = openclip.snapshot("image", bare, revision)
    else:
        root = folder("image", bare, revision)
    if (root / openclip.CONFIG).exists():
        return openclip.image_half(called, root, device)
    config = folders.read(root / "config.json")
    if "architecture" in config:
        return _timm(called, root, device)
    if "model_type" in config:
        return vision_tower(called, root, device)
    raise runtime.UserError(
        f"{root} has no config of transformers (with a model_type), timm or open_clip: use save_pretrained."
    )
