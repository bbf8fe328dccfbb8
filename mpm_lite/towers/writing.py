"""How a language model's writing is bounded: where it begins, and where it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mpm_lite import runtime
from mpm_lite.towers.padding import padding_id


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
    """What transformers is told of one way to write: `greedy`, `beam` or `sample`. Raises UserError for impossible numbers."""
    from transformers import GenerationConfig

    for wrong, said in (
        (new_tokens < 1, f"new_tokens={new_tokens}: ask for one new token or more"),
        (how == "beam" and beams < 1, f"beams={beams}: take one beam or more"),
        (how == "sample" and not temperature > 0, f"temperature={temperature}: take one above 0, or how='greedy'"),
        (
            how == "sample" and not 0 < top_p <= 1,
            f"top_p={top_p}: it is a share of the probability, above 0 and up to 1",
        ),
    ):
        if wrong:
            raise runtime.UserError(f"{said}.")
    return GenerationConfig(
        max_new_tokens=new_tokens, use_cache=cache, do_sample=how == "sample",
        num_beams=beams if how == "beam" else 1, eos_token_id=list(ends) or None, pad_token_id=padding_id(lm.tokenizer),
        decoder_start_token_id=getattr(lm.model.config, "decoder_start_token_id", None),
        # transformers would draw from the 50 likeliest tokens only.
        **({"temperature": temperature, "top_p": top_p, "top_k": 0} if how == "sample" else {}),
    )  # fmt: skip


@contextmanager
def unsettled(model: Any) -> Iterator[None]:
    """Without the settings that a checkpoint brings for its own writing.

    transformers puts them wherever `settings` says nothing: a penalty on repetition, or an end-of-text token that the
    tokenizer does not know, would change what is written without a word.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def beginning(encode: Any, texts: Sequence[str]) -> list[int]:
    """The tokens with which texts begin, each once."""
    return sorted({row[0] for row in encode(list(texts), special=False) if row})


def ends_of(lm: Any, stop: str | None) -> list[int]:
    """The token ids at which writing ends: the tokenizer's end-of-text token, if it has one, and `stop`, if it is given.

    Raises UserError for a stop of more than one token.
    """
    last = lm.tokenizer.eos_token_id
    ids = [] if stop is None else lm.encode([stop], special=False)[0]
    if stop is not None and len(ids) != 1:
        raise runtime.UserError(f"{lm.name} writes {stop!r} as {len(ids)} tokens: stop takes a text of one.")
    return ids if last is None else [last, *ids]


def until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids before the first end."""
    return ids[: next((i for i, one in enumerate(ids) if one in ends), len(ids))]


def context_of(config: Any) -> int:
    """The most tokens a model was made for; models without a table of positions say none, and get 2,048."""
    for name in ("max_position_embeddings", "n_positions", "seq_length", "n_ctx"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return 2048
