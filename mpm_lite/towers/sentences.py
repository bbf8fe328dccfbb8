"""From token states to a sentence's vector, as the folder of a sentence-transformers model says: its modules and prompts.

Shapes: N texts, T tokens of the longest one, W the model's width, D the sentence vector's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpm_lite import runtime
from mpm_lite.towers import reading
from mpm_lite.towers.text import mean

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
        said = reading.read(place / "config.json")
        kind = str(said.get("activation_function") or "Identity").rsplit(".", 1)[-1]
        if kind not in ACTIVATIONS:
            raise runtime.unknown("activation of a Dense module", kind, ACTIVATIONS)
        if said.get("use_residual") or said.get("module_input_name", "sentence_embedding") != "sentence_embedding":
            raise runtime.UserError(
                f"{place} is a Dense module of a kind that is not read: it skips or reads token states."
            )
        weights = reading.tensors(place / "model.safetensors")
        try:
            with torch.random.fork_rng(devices=[]):
                self.linear = nn.Linear(
                    int(said["in_features"]), int(said["out_features"]), bias=said.get("bias", True)
                )
            self.load_state_dict(weights)
        except reading.BROKEN as error:
            raise reading.broken(place, error) from error
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


def said(root: Path, prompt: str | None = None) -> Said:
    """What a sentence-transformers folder says of itself; of any other folder: the plain mean, no text before.

    `prompt` is the name of one of the folder's prompts, or, where it ends in a colon or a space, the text itself. None: the
    folder's default prompt where it names one, else nothing. Raises UserError for an unknown name, and for a module or a
    way of pooling that is not read.
    """
    mode, places, after = "mean", list[Path](), list[nn.Module]()
    for one in reading.read(root / "modules.json") or []:
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
    lower = bool(reading.read(root / "sentence_bert_config.json").get("do_lower_case"))
    plain = mode == "mean" and not places  # a unit norm at the end is every tower's
    marks: list[str | Path] = [*([] if plain else [f"pooling {mode}"]), *([f"prefix {prefix}"] if prefix else [])]
    return Said(None if plain else Modules(mode, after), prefix, lower, [*marks, *places])


def _mode(place: Path) -> str:
    """The one way of pooling that a Pooling module's file names: newer files by word, older ones by a flag each."""
    told = reading.read(place / "config.json")
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
    told = reading.read(root / "config_sentence_transformers.json")
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
