"""The exercises of the course by name: what an answer is compared with, and the mistakes that are worth naming.

A name is the notebook's number and the exercise's ("08.2"). The function below a decorator computes the reference: a value, of
the notebook's objects that `check` was handed by keyword; or, where there are `cases`, what the learner's function is to return.
`example` makes such objects up, so that tests can run a reference and its mistakes without the notebook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mpm_lite.core.runtime import unknown


@dataclass(frozen=True)
class Exercise:
    """One exercise: its reference, how near an answer has to come, and wrong answers with their reasons."""

    name: str
    title: str
    reference: Callable[..., Any]
    tolerance: float = 0.005
    mistakes: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    cases: Callable[..., list[tuple[Any, ...]]] | None = None
    gradient: bool = False
    example: Callable[[], dict[str, Any]] | None = None


EXERCISES: dict[str, Exercise] = {}


def exercise(
    name: str, title: str, tolerance: float = 0.005, mistakes: Mapping[str, Callable[..., Any]] | None = None,
    cases: Callable[..., list[tuple[Any, ...]]] | None = None, gradient: bool = False,
    example: Callable[[], dict[str, Any]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # fmt: skip
    """Register a reference under `name`. `mistakes` maps a reason to what computes that wrong answer, from the same arguments;
    `cases` lists arguments on which a function is compared; `gradient` compares gradients of its floating tensors too.
    """

    def register(reference: Callable[..., Any]) -> Callable[..., Any]:
        if name in EXERCISES:
            raise ValueError(f"exercise {name} is registered twice")
        EXERCISES[name] = Exercise(name, title, reference, tolerance, dict(mistakes or {}), cases, gradient, example)
        return reference

    return register


def find_exercise(name: str) -> Exercise:
    """The exercise of that name. Raises UserError where there is none."""
    if name not in EXERCISES:
        raise unknown("exercise", name, list(EXERCISES))
    return EXERCISES[name]


# Notebook 00


# Notebook 01


# Notebook 02


# Notebook 03


# Notebook 04


# Notebook 05


# Notebook 06


# Notebook 07


# Notebook 08


# Notebook 09


# Notebook 10


# Notebook 11


# Notebook 12


# Notebook 13


# Notebook 14


# Notebook 15
