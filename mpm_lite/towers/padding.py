"""Rows of tokens of different lengths in one batch: what fills the shorter ones, and whether a model takes notice of it.

Shapes: T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch

# How far states may move when padding is put behind them, as a share of the largest: rounding moves them by less.
ROUNDING = 1e-4


def padding_id(tokenizer: Any) -> int:
    """The token id that fills shorter rows; 0 for a tokenizer without a pad token: the mask hides what it is."""
    pad = tokenizer.pad_token_id
    return 0 if pad is None else int(pad)


@torch.inference_mode()
def hides_padding(model: Any, ids: Sequence[int], pad: int, device: torch.device) -> bool:
    """Whether the states of a row of token ids (T) are the same with padding behind it.

    Models that mix neighbouring tokens by convolution, or all of them by a Fourier transform, do not look at the mask.
    """
    row = torch.tensor([list(ids)], device=device)
    padded = torch.nn.functional.pad(row, (0, 3), value=pad)
    mask = torch.nn.functional.pad(torch.ones_like(row), (0, 3))
    alone = model(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state
    behind = model(input_ids=padded, attention_mask=mask).last_hidden_state[:, : row.shape[1]]
    return bool((alone - behind).abs().max() <= ROUNDING * alone.abs().max())


def batches(lengths: Sequence[int], size: int, mixed: bool) -> list[list[int]]:
    """The rows of each batch, at most `size`, shorter rows first; rows of equal length keep their order.

    Without `mixed` every batch holds rows of one length, so that none is padded.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])  # stable, so deterministic
    groups = [order] if mixed else [list(rows) for _, rows in groupby(order, key=lambda i: lengths[i])]
    return [rows[start : start + size] for rows in groups for start in range(0, len(rows), size)]
