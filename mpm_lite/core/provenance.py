"""Where weights and results come from (commit, machine, command), and the committed tables: read back, and written for
readers."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mpm_lite.core import runtime
from mpm_lite.core.store import write_json


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


@dataclass(frozen=True)
class Artifact:
    """Weights that the project trains itself, and the card that says how they were made.

    name      as `mpm-lite pretrain` calls it
    weights   the file, or the folder of a checkpoint, under a folder such as assets
    card      the JSON file that describes it
    make      trains, writes the weights whole or not at all, and returns what the card says of them; it may return
              "seconds" where not all the time that it took was training
    """

    name: str
    weights: Path
    card: Path
    make: Callable[[], dict[str, Any]]

    def sha256(self) -> str:
        """SHA-256 of the weights. Raises OSError where there are none."""
        found = [self.weights] if self.weights.suffix else sorted(self.weights.glob("*.safetensors"))
        if not found:
            raise FileNotFoundError(f"There are no weights in {self.weights}.")
        return hashlib.sha256(found[0].read_bytes()).hexdigest()

    def is_intact(self) -> bool:
        """Whether the weights are there, and are those that the card describes."""
        try:
            return self.sha256() == json.loads(self.card.read_text(encoding="utf-8"))["sha256"]
        except (OSError, ValueError, KeyError):
            return False

    def build(self) -> Path:
        """Make the weights and their card, unless both are there and belong together; returns the path of the card."""
        if not self.is_intact():
            began = time.perf_counter()
            told = self.make()
            seconds = told.pop("seconds", time.perf_counter() - began)
            write_json(self.card, {"name": self.name, **told, **provenance(self.sha256(), seconds, self.name)})
        return self.card


def has_table(name: str) -> bool:
    """Whether a table of that name has been committed; a study that has not run yet has none."""
    return (runtime.asset("results") / f"{name}.csv").exists()


def read_table(name: str) -> pd.DataFrame:
    """A committed table from assets/results/."""
    return pd.read_csv(runtime.asset(f"results/{name}.csv"), keep_default_na=False, na_values=[""])


def read_card(name: str, folder: str = "results") -> dict:
    """The card of a study, or of what else lies in a folder of assets: commit, seeds, options, command."""
    return json.loads(runtime.asset(f"{folder}/{name}.json").read_text())


def format_percent(value: float) -> str:
    """A share as a percentage, without its sign."""
    return f"{100 * value:.1f}"


def format_interval(value: float, low: float, high: float) -> str:
    """A value and its interval, as in 0.50 [0.40, 0.60]."""
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])
