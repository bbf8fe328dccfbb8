"""Train a recipe once: its weights are kept in MPM_LITE_HOME, under a name made of all that decides them, and read back.

A few ship among the assets, in KEPT, so that a notebook can begin where training ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from mpm_lite.core import runtime
from mpm_lite.core.keys import Key, digest
from mpm_lite.core.store import learned
from mpm_lite.recipes.base import Recipe
from mpm_lite.training import cost, loop

R = TypeVar("R", bound=Recipe)
KEPT = "kept"  # among the assets
_OPENED: ContextVar[list[Path] | None] = ContextVar("opened", default=None)


@contextmanager
def opened() -> Iterator[list[Path]]:
    """Collect the files that `trained` reads weights from during the block, in order."""
    token = _OPENED.set([])
    try:
        yield _OPENED.get()
    finally:
        _OPENED.reset(token)


def trained(
    recipe: R, data: Callable[[], Any], seed: int, place: str, label: str, told: Sequence[Any], progress: bool = True,
    before: Callable[[], Any] | None = None,
) -> R:  # fmt: skip
    """The recipe, trained on what `data` gives, or with the weights that it learned before. A run that was stopped goes on.

    `told` holds whatever else decides the weights, beside the seed, the options and the weights that do not learn: JSON-able
    values. Only what learns is kept, in MPM_LITE_HOME/place. If the recipe has to be trained, `before` is called first, to set
    the weights that it starts from.
    """
    settings = json.dumps([list(told), dials(recipe.options)], sort_keys=True)
    decides = {"place": place, "recipe": recipe.name, "label": label, "seed": str(seed), "data and options": settings}
    key = Key(f"weights of {recipe.name}", decides)
    name = f"{key.digest}.safetensors"
    path, shipped = runtime.home() / place / name, runtime.asset() / KEPT / name
    begin, data = cache(before or (lambda: None)), cache(data)  # data are made once, for training and for the account
    if cost.open_now():
        begin()  # what comes before is to be written down too, down to the first stage

    def learn(work: Path) -> dict[str, Tensor]:
        begin()
        plan = loop.Plan(seed, work, 250, progress=progress, label=f"{recipe.name}: {label}, seed {seed}")
        loop.fit(recipe, data(), plan)
        return {name: value for name, value in sorted(recipe.state_dict().items()) if recipe.trains(name)}

    path = shipped if shipped.exists() and not path.exists() else path
    recipe.load_state_dict(learned(path, learn, key), strict=False)
    if (files := _OPENED.get()) is not None:
        files.append(path)
    cost.note(recipe, data)
    return recipe.eval()


def dials(options: Any) -> dict[str, Any]:
    """The options of a recipe that decide its weights, by name. bf16 does not; nor does a dial marked as `added` at its
    default, since it is younger than weights that are kept, and those were trained as its default does."""
    said = asdict(options)
    added = {one.name for one in fields(options) if "added" in one.metadata and said[one.name] == one.default}
    return {name: dial for name, dial in said.items() if name not in added | {"bf16"}}


def mark(recipe: nn.Module) -> str:
    """A digest of weights."""
    return digest(v.cpu().numpy().tobytes() for v in recipe.state_dict().values())
