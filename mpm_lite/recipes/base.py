"""What a recipe is: which parts are frozen and which learn, in which stages, on what data, with which objective."""

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
    frozen: tuple[str, ...]  # what stays as it came; towers are named here too, though they live outside the recipe
    objective: str
    steps: int
    batch: int
    lr: float
    weight_decay: float = 0.0
    warmup: float = 0.1  # share of the steps during which the rate climbs
    final: float = 0.0  # share of the rate that is left at the last step, at the end of a cosine
    beta2: float = 0.999  # of AdamW
    clip: float = 0.0  # largest norm of a step's gradient; 0 = no limit
    faster: tuple[tuple[str, float], ...] = ()  # submodules or parameters with a rate of their own: how many times lr

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
    """Whether a parameter is the named part of a recipe, or belongs to it."""
    return name == part or name.startswith(part + ".")


class TrainData(Protocol):
    """Training examples, asked for by their numbers."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> dict[str, Tensor]: ...


def sample_bytes(x: Tensor, rows: int = 64) -> bytes:
    """The bytes, in float32, of about so many rows of x. They tell one set of features from another and take no time."""
    return x[:: max(1, len(x) // rows)].float().numpy().tobytes()


class Recipe(nn.Module):
    """Base of all recipes. A recipe never knows devices or files, nor which world its data came from."""

    name: str = "recipe"
    compares: bool = False  # whether the objective compares the examples of a batch with each other
    # Whether a batch may leave some of what learns without a gradient, such as another language's part.
    idle: bool = True

    def stages(self) -> list[Stage]:
        """What is frozen and what learns, in order."""
        raise UserError(f"Recipe {self.name!r} declares no stages; define stages().")

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The objective of one batch, of shape ()."""
        raise UserError(f"Recipe {self.name!r} declares no objective; define loss(batch).")

    def features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a recipe that compares examples compares: a row (N, ...) for each example, and () for what all share. Together
        with `compared` it lets a batch be computed in parts; see `training/gradcache.py`."""
        raise UserError(f"Recipe {self.name!r} has no features that could be compared; define features(batch).")

    def compared(self, features: dict[str, Tensor]) -> Tensor:
        """The objective, of shape (), of this process's features, compared with those of every process."""
        raise UserError(f"Recipe {self.name!r} compares nothing; define compared(features).")

    def weight(self, batch: dict[str, Tensor]) -> float:
        """How many things `loss` is the mean over: the examples, unless a recipe says otherwise."""
        return float(len(next(iter(batch.values()))))

    def stepped(self) -> None:
        """What else happens after each step of training, such as averaging weights. Nothing, unless a recipe says so."""

    def trains(self, name: str) -> bool:
        """Whether a parameter, by its name, learns in any stage."""
        return any(within(name, part) for stage in self.stages() for part in stage.learns)

    @property
    def trainable(self) -> int:
        """How many parameters learn in any stage."""
        return sum(p.numel() for name, p in self.named_parameters() if self.trains(name))

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the trained recipe answers to its inputs."""
        raise UserError(f"Recipe {self.name!r} predicts nothing; define predict(inputs).")


def at_least(least: int, default: int) -> Any:
    """An option that is a whole number of at least `least`. Without this, `batch` must be at least 1, the others at least 0."""
    return field(default=default, metadata={"least": least})


def build_options(kind: type, given: dict[str, Any]) -> Any:
    """Make a dataclass of options from a dict. Raises UserError for an unknown key, naming the nearest one, for a value of
    the wrong type, and for a number that is too small."""
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
    """Raises UserError for a number with which nothing could be learned. Rates and temperatures are above 0, dropout is below
    1, nothing is infinite, and what is not negative by default is never negative."""
    above = key in ("lr", "temperature") or key.endswith("_lr")
    wanted = "a number above 0" if above else "a number of at least 0" if default >= 0 else "a finite number"
    if key == "dropout":
        wanted = "a number from 0 to less than 1"
    if not math.isfinite(value) or (value < 0 <= default) or (above and not value) or (key == "dropout" and value >= 1):
        raise UserError(f"{key}={value!r} is not {wanted}.")
