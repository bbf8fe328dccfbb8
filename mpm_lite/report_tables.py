"""What the blocks of README are made of: committed tables of assets/results/, their cards, tables in Markdown."""

from __future__ import annotations

import json

import pandas as pd

from mpm_lite import runtime


def has(name: str) -> bool:
    """Whether a table has been committed: a study that has not run yet has none."""
    return (runtime.asset("results") / f"{name}.csv").exists()


def read(name: str) -> pd.DataFrame:
    """A committed table of assets/results/."""
    return pd.read_csv(runtime.asset(f"results/{name}.csv"), keep_default_na=False, na_values=[""])


def card(name: str) -> dict:
    """The card of a study: commit, seeds, options, command."""
    return json.loads(runtime.asset(f"results/{name}.json").read_text())


def percent(value: float) -> str:
    """A share, in percent."""
    return f"{100 * value:.1f}"


def span(value: float, low: float, high: float) -> str:
    """A figure and its interval."""
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])
