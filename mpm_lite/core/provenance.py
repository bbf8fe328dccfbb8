"""Where results come from (commit, machine, command), and the committed tables: read back, and written for readers."""

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

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", str(here))
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance(sha: str, seconds: float, name: str) -> dict[str, Any]:
    """What every card ends with: the digest of what was made, how long that took, on which machine, from which commit
    and by which command."""
    return {
        "sha256": sha,
        "seconds": round(seconds),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "commit": commit(),
        "command": f"mpm-lite pretrain {name} --out assets",
    }


def has_table(name: str) -> bool:
    """Whether a table of that name has been committed; a study that has not run yet has none."""
    return (runtime.asset("results") / f"{name}.csv").exists()


def read_table(name: str) -> pd.DataFrame:
    """A committed table from assets/results/."""
    return pd.read_csv(runtime.asset(f"results/{name}.csv"), keep_default_na=False, na_values=[""])


def read_card(name: str) -> dict:
    """The card of a study: commit, seeds, options, command."""
    return json.loads(runtime.asset(f"results/{name}.json").read_text())


def format_percent(value: float) -> str:
    """A share as a percentage, without its sign."""
    return f"{100 * value:.1f}"


def format_interval(value: float, low: float, high: float) -> str:
    """A value and its interval, as in 0.50 [0.40, 0.60]."""
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])
