"""What training costs: updates, parameters that learn, and floating-point operations, stage by stage.

    with accounts.kept() as book:
        bench.train(arm, seed)
    accounts.table(book)

Whatever is trained while it lasts is written down, and what was trained before and is read back, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from mpm_lite import train
from mpm_lite.recipes.base import Recipe, Stage, TrainData


@dataclass(frozen=True)
class Entry:
    """A stage of training: updates, parameters that learn, FLOPs in all (matrix products, forward and backward)."""

    recipe: str
    stage: str
    updates: int
    trainable: int
    flops: float


_BOOK: ContextVar[list[Entry] | None] = ContextVar("book", default=None)


@contextmanager
def kept() -> Iterator[list[Entry]]:
    """A book in which `note` writes while it lasts."""
    book: list[Entry] = []
    token = _BOOK.set(book)
    try:
        yield book
    finally:
        _BOOK.reset(token)


def open_now() -> bool:
    """Whether a book is kept."""
    return _BOOK.get() is not None


def note(recipe: Recipe, data: Any) -> None:
    """Write down what each stage of a recipe costs, where a book is kept; `data()` is what it learns from, as `train.fit`
    takes it. Weights stay as they are."""
    book = _BOOK.get()
    if book is None:
        return
    for stage, examples in zip(recipe.stages(), train.by_stage(recipe, data()), strict=True):
        learns = sum(p.numel() for p in train.freeze_all_but(recipe, stage.learns))
        book.append(Entry(recipe.name, stage.name, stage.steps, learns, stage.steps * flops(recipe, stage, examples)))


def flops(recipe: Recipe, stage: Stage, data: TrainData) -> float:
    """Floating-point operations of one update, measured on the stage's first batch; what learns must be set before."""
    batch = data.batch(train.batch_indices(len(data), stage.batch, 0, 0, 0))
    with torch.random.fork_rng(), FlopCounterMode(display=False) as counter:
        recipe.train()
        recipe.loss(batch).backward()
    recipe.zero_grad(set_to_none=True)
    recipe.eval()
    return float(counter.get_total_flops())


def table(book: Sequence[Entry]) -> pd.DataFrame:
    """The book as a table, a line a stage."""
    return pd.DataFrame([asdict(entry) for entry in book])
