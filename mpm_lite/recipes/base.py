"""What a recipe is: which parts are frozen and which learn, in which stages, on what, with which objective."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from mpm_lite.core.runtime import UserError, unknown, whole_number


@dataclass(frozen=True)
class Stage:
    """One stage of training, as a method section would state it."""

    name: str
    learns: tuple[str, ...]  # names of submodules or parameters of the recipe
    frozen: tuple[str, ...]  # what stays as it came (towers are named here though they live outside)
    objective: str
    steps: int
    batch: int
    lr: float
    weight_decay: float = 0.0
    warmup: float = 0.1  # share of the steps in which the rate climbs
    final: float = 0.0  # share of the rate that a cosine leads it down to at the last step
    beta2: float = 0.999  # of AdamW
    clip: float = 0.0  # largest norm of a step's gradient; 0 = any
    faster: tuple[tuple[str, float], ...] = ()  # submodules or parameters, and how many times lr they learn at

    @classmethod
    def of(
        cls, options: Any, name: str, learns: tuple[str, ...], frozen: tuple[str, ...], objective: str, **other: Any
    ) -> Stage:
        """A stage with the steps, batch, lr and weight_decay that a recipe's options have, unless `other` says otherwise."""
        dials = {
            dial: getattr(options, dial) for dial in ("steps", "batch", "lr", "weight_decay") if hasattr(options, dial)
        }
        return cls(name, learns, frozen, objective, **(dials | other))


def within(name: str, part: str) -> bool:
    """Whether a parameter is the part of a recipe that is named so, or belongs to it."""
    return name == part or name.startswith(part + ".")


class TrainData(Protocol):
    """Training examples by number."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> dict[str, Tensor]: ...


class Recipe(nn.Module):
    """Base of all recipes. A recipe never knows devices, files or which world its data came from."""

    name: str = "recipe"
    compares: bool = False  # whether the objective compares the examples of a batch with each other
    idle: bool = True  # whether a batch may leave some of what learns without a gradient: that of another language, say

    def stages(self) -> list[Stage]:
        """What is frozen and what learns, in order."""
        raise UserError(f"Recipe {self.name!r} declares no stages; define stages().")

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The objective () of one batch."""
        raise UserError(f"Recipe {self.name!r} declares no objective; define loss(batch).")

    def features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a recipe that compares: what it compares by, rows (N, ...) by example, and () where it is one for all. With
        `compared`, a batch can be computed in parts; see `training/gradcache.py`."""
        raise UserError(f"Recipe {self.name!r} has no features that could be compared; define features(batch).")

    def compared(self, features: dict[str, Tensor]) -> Tensor:
        """The objective () of features of this process's examples, compared with those of every process."""
        raise UserError(f"Recipe {self.name!r} compares nothing; define compared(features).")

    def weight(self, batch: dict[str, Tensor]) -> float:
        """How many things `loss` is the mean over: examples, unless a recipe says what else."""
        return float(len(next(iter(batch.values()))))

    def stepped(self) -> None:
        """What else happens after each step of training, such as averaging weights: nothing, unless a recipe says."""

    def trains(self, name: str) -> bool:
        """Whether a parameter, by its name, learns in any stage."""
        return any(within(name, part) for part in {part for stage in self.stages() for part in stage.learns})

    @property
    def trainable(self) -> int:
        """How many parameters learn in any stage."""
        return sum(p.numel() for name, p in self.named_parameters() if self.trains(name))

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the trained recipe says of its inputs."""
        raise UserError(f"Recipe {self.name!r} predicts nothing; define predict(inputs).")


def at_least(least: int, default: int) -> Any:
    """A field of options: a whole number of at least `least`. Of other whole numbers, `batch` is at least 1, the rest at least 0."""
    return field(default=default, metadata={"least": least})


def build_options(kind: type, given: dict[str, Any]) -> Any:
    """A dataclass of options from a dict; an unknown key raises UserError with the nearest one, a wrong type or a number that
    is too small says so."""
    known = {f.name: f for f in fields(kind)}
    values = {}
    for key, value in given.items():
        if key not in known:
            raise unknown("option", key, known)
        default = known[key].default
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, type(default)) or isinstance(value, bool) != isinstance(default, bool):
            raise UserError(f"Option {key!r} takes a {type(default).__name__} such as {default!r}; got {value!r}.")
        if isinstance(default, int) and not isinstance(default, bool):
            whole_number(key, value, known[key].metadata.get("least", int(key == "batch")))
        if isinstance(default, float):
            _check_float(key, value, default)
        values[key] = value
    return kind(**values)


def _check_float(key: str, value: float, default: float) -> None:
    """Raises UserError for a number with which nothing could be learned: rates and temperatures are above 0, the share that
    dropout leaves out is below 1, nothing is infinite, and what is not negative by default is not negative."""
    above = key in ("lr", "temperature") or key.endswith("_lr")
    wanted = "a number above 0" if above else "a number of at least 0" if default >= 0 else "a finite number"
    if key == "dropout":
        wanted = "a number from 0 to less than 1"
    if not math.isfinite(value) or (value < 0 <= default) or (above and not value) or (key == "dropout" and value >= 1):
        raise UserError(f"{key}={value!r} is not {wanted}.")
