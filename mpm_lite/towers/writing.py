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


def beginning(encode: Any, texts: Sequence[str]) -> list[int]:
    """The tokens with which texts begin, each once."""
    return sorted({row[0] for row in encode(list(texts), special=False) if row})


def until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids before the first end."""
    return ids[: next((i for i, one in enumerate(ids) if one in ends), len(ids))]
