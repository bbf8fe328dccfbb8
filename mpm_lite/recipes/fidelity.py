"""Fidelity tables: what a paper did, what its recipe does here, why they differ, and what the difference is known to do.

The texts lie in assets/fidelity.toml, a table for each system. They are templates: what was done here is read off the
recipe, never typed. Figures of the papers carry their tag: [R] read in the authors' release, [S] from a secondary source.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache

import pandas as pd
from jinja2 import Environment, StrictUndefined

from mpm_lite.core import runtime
from mpm_lite.core.runtime import UserError
from mpm_lite.recipes.base import Recipe, Stage

UNKNOWN = "not known"


@dataclass(frozen=True)
class FidelityRow:
    """One line of a table: a component, a loss, a stage, a set of data or a metric."""

    part: str
    paper: str
    here: str
    why: str
    effect: str = UNKNOWN


def build_fidelity_table(recipe: Recipe) -> list[FidelityRow]:
    """The fidelity table of a recipe. Raises UserError for a recipe that reproduces no paper."""
    phrases, tables = _texts()
    if recipe.name not in tables:
        raise UserError(f"Recipe {recipe.name!r} has no fidelity table: it follows no one paper.")
    environment = Environment(undefined=StrictUndefined)
    environment.globals = {
        **phrases, "recipe": recipe, "options": recipe.options, "rival": score_of_rival,
        "stages": {stage.name: describe_stage(stage) for stage in recipe.stages()},
        "millions": lambda part: count_parameters(recipe, part),
    }  # fmt: skip
    return [
        FidelityRow(**{column: environment.from_string(text).render() for column, text in row.items()})
        for row in tables[recipe.name]
    ]


@cache
def _texts() -> tuple[dict[str, str], dict[str, list[dict[str, str]]]]:
    """The phrases that several rows use, and for each system its rows, as templates."""
    tables = tomllib.loads(runtime.asset("fidelity.toml").read_text(encoding="utf-8"))
    return tables.pop("phrases"), tables


def count_parameters(recipe: Recipe, part: str) -> str:
    """How many parameters of a recipe have names that begin with `part`, in millions."""
    return f"{sum(p.numel() for n, p in recipe.named_parameters() if n.startswith(part)) / 1e6:.2f} M parameters"


def describe_stage(stage: Stage) -> str:
    """A stage in a few words."""
    return f"{stage.steps:,} steps of {stage.batch}, lr {stage.lr:g}; frozen: {', '.join(stage.frozen) or 'nothing'}"


def score_of_rival(arm: str) -> str:
    """What another way to paint scores, beside MPM's own, by the committed table of painters."""
    rows = pd.read_csv(runtime.asset("results/paint.csv")).query("metric == 'attributes'")
    english = rows["language"] == "en"
    said = []
    for name in (arm, "MPM"):
        scores = rows[rows["arm"] == name]["value"]
        said.append(f"{scores[english].mean():.2f} in English and {scores[~english].mean():.2f} in others")
    return f"{arm}: attributes {said[0]}; as here {said[1]}"
