"""How a language model's writing is bounded: where it begins, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Begin:
    """A logits processor of transformers: the first token that is written must be one of `ids`; then anything goes."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = torch.tensor(sorted(set(ids)))
        self.before: int | None = None

    def __call__(self, written: Tensor, scores: Tensor) -> Tensor:
        """`written` int64 (N, T) so far; `scores` (N, V) of the next token, those of others at minus infinity."""
        # An encoder-decoder's writing starts with a token that says so; a causal model's, behind embeddings, with none.
        self.before = written.shape[1] if self.before is None else self.before
        if written.shape[1] > self.before:
            return scores
        ids = self.ids.to(scores.device)
        return torch.full_like(scores, -torch.inf).index_copy(1, ids, scores[:, ids])


def settings(
    lm: Any, new_tokens: int, cache: bool, ends: Sequence[int], how: str, beams: int, temperature: float, top_p: float
) -> Any:
    """What transformers is told of one way to write: `greedy`, `beam` or `sample`."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=new_tokens, use_cache=cache, do_sample=how == "sample",
        num_beams=beams if how == "beam" else 1, eos_token_id=list(ends), pad_token_id=lm.tokenizer.pad_token_id,
        decoder_start_token_id=getattr(lm.model.config, "decoder_start_token_id", None),
        **({"temperature": temperature, "top_p": top_p} if how == "sample" else {}),
    )  # fmt: skip


def beginning(encode: Any, texts: Sequence[str]) -> list[int]:
    """The tokens with which texts begin, each once."""
    return sorted({row[0] for row in encode(list(texts), special=False) if row})


def until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids before the first end."""
    return ids[: next((i for i, one in enumerate(ids) if one in ends), len(ids))]


def context_of(config: Any) -> int:
    """The most tokens a model was made for; models without a table of positions say none, and get 2,048."""
    for name in ("max_position_embeddings", "n_positions", "seq_length", "n_ctx"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return 2048
