"""Where something came from: the version, the commit, the machine and the command; and what was committed, read back and written as tables."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mpm_lite.core import runtime


def commit() -> str:
    """The commit this was run from ('+' where the package has uncommitted changes), or 'unknown' outside a checkout."""
    here = Path(__file__).resolve().parents[1]
    try:
        sha = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--", str(here)], cwd=here, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return sha + ("+" if dirty.strip() else "")


def provenance(sha: str, seconds: float, name: str) -> dict[str, Any]:
    """What every card ends with: what was made, how long it took, where, from which commit, by which command."""
    return {
        "sha256": sha,
        "seconds": round(seconds),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "commit": commit(),
        "command": f"mpm-lite pretrain {name} --out assets",
    }


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
