"""The states of a frozen text model for every token of a prompt, for a painter to attend to.

Text towers that have token states, and causal language models (whose states know only what stands before them), share
one face here.

Shapes: N prompts, T tokens of the longest one, W the model's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mpm_lite.core import store
from mpm_lite.core.keys import Key, digest
from mpm_lite.core.runtime import UserError, bar
from mpm_lite.towers import catalogue, folders
from mpm_lite.towers.lm import LM
from mpm_lite.towers.load import load_lm, load_text_tower
from mpm_lite.towers.text import check_texts, mask_of

LAST = -1
UNREADABLE = 0.5  # share of unknown pieces from which on a prompt counts as not read


class States:
    """Token states of many prompts, without padding: those of prompt i are rows starts[i] to starts[i + 1] of `flat` (S, W)."""

    def __init__(self, flat: Tensor, lengths: Sequence[int]) -> None:
        self.flat, self.starts = flat, np.concatenate([[0], np.cumsum(lengths)])

    def __len__(self) -> int:
        return len(self.starts) - 1

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """States float32 (N, T, W), zero where there is no token, and the mask bool (N, T)."""
        rows = [self.flat[self.starts[i] : self.starts[i + 1]].float() for i in indices]
        return pad_sequence(rows, batch_first=True), mask_of(rows)


class PromptEncoder:
    """Token states of a frozen text model: those of its last layer or, for a language model, those of `layer` (0: the
    embeddings). Members: name, width (W), languages, fingerprint, longest (the most tokens a prompt may have).

    Raises UserError for a tower without token states, and for a layer that the model does not have or does not show.
    """

    def __init__(self, model: Any, layer: int = LAST) -> None:
        self.model, self.causal, self.layer = model, isinstance(model, LM), layer
        if layer != LAST and not self.causal:
            raise UserError(f"{model.name} shows its last layer only: leave layer at {LAST}.")
        if self.causal and not LAST <= layer <= model.model.config.num_hidden_layers:
            raise UserError(f"{model.name} has layers 0 to {model.model.config.num_hidden_layers}, not {layer}.")
        if not self.causal and not model.has_tokens:
            model.tokens([])  # says which towers have them
        # A state may be of another width than a sentence.
        self.width = int(getattr(model, "token_width", model.width))
        self.name, self.languages = model.name, model.languages
        self.longest = model.context if self.causal else model.max_tokens

    @property
    def fingerprint(self) -> str:
        """The model's, and the layer where it is not the last."""
        return self.model.fingerprint + ("" if self.layer == LAST else f" layer {self.layer}")

    def states(self, prompts: Sequence[str], progress: bool = False) -> States:
        """The states of each prompt. Raises UserError for a prompt that is empty or longer than the model reads."""
        ids = self._ids(check_texts(prompts))
        flat = np.concatenate([np.zeros((0, self.width), np.float16), *self._rows(list(prompts), progress)])
        return States(torch.from_numpy(flat), [len(row) for row in ids])

    def cached(self, prompts: Sequence[str], progress: bool = False) -> States:
        """The same, kept on disk, for prompts that many runs read."""
        ids = self._ids(check_texts(prompts))
        decides = {"kind": "prompt states", "weights": self.fingerprint, "prompts": digest(prompts)}
        key = Key("states of prompts", decides)
        flat = store.keep_features(key, lambda: self.states(prompts, progress).flat.numpy())
        return States(torch.from_numpy(flat), [len(row) for row in ids])

    def unread(self, prompt: str) -> bool:
        """Whether the tokenizer knows too little of a prompt's script for the model to read it."""
        if not self.causal:
            return self.model.unknown_rate([prompt]) >= UNREADABLE
        tokenizer = self.model.tokenizer
        ids = self.model.encode([prompt], special=False)[0]
        return bool(ids) and sum(i == tokenizer.unk_token_id for i in ids) / len(ids) >= UNREADABLE

    def _ids(self, prompts: list[str]) -> list[list[int]]:
        if self.causal:
            begins, rows = self.model.rows(prompts)
            ids = [[0] * begins + row for row in rows]
        else:
            whole = self.model.whole(prompts)
            ids = self.model.tokenizer(whole, verbose=False)["input_ids"] if prompts else []
        for prompt, row in zip(prompts, ids, strict=True):
            if len(row) > self.longest:
                raise UserError(
                    f"The prompt {prompt[:40]!r}... has {len(row)} tokens and {self.name} reads {self.longest}: shorten it."
                )
        return ids

    def _rows(self, prompts: list[str], progress: bool) -> list[np.ndarray]:
        """Float16 (T, W) of each prompt."""
        found, batch = [], self.model.batch
        for start in bar(range(0, len(prompts), batch), f"{self.name}: prompts / {batch}", progress):
            part = prompts[start : start + batch]
            if self.causal:
                with torch.inference_mode():
                    context = self.model.read(part)
                    states, mask = self.model.all_layers(context)[self.layer].cpu().numpy(), context.mask.cpu().numpy()
            else:
                states, mask = self.model.tokens(part)
            found += [row[there].astype(np.float16) for row, there in zip(states, mask, strict=True)]
        return found


def load_prompt_encoder(name: str, seed: int = 0, layer: int = LAST) -> PromptEncoder:
    """The prompt encoder of that name: a text tower (`e5-small`, `minilm-en`, `toy`), a toy language model
    (`toy-multilingual`; `seed` picks one), or a folder or hub id of either kind. `layer` is as in PromptEncoder.

    Raises UserError for a tower that has sentence vectors only, and whatever its loader raises.
    """
    kinds = folders.read_json(Path(name).expanduser() / "config.json").get("architectures") or []
    if name in catalogue.NAMES or any(kind.endswith("ForCausalLM") for kind in kinds):
        return PromptEncoder(load_lm(name, seed), layer)
    return PromptEncoder(load_text_tower(name), layer)
