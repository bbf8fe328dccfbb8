"""All studies by name: what `mpm-lite run NAME` runs where NAME is no recipe, or is given no settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from mpm_lite.claims.comparisons import PAINTERS, compare_real, compare_systems
from mpm_lite.claims.ladder import run_connectors, run_ladder
from mpm_lite.claims.retention import ALIGNMENTS, run_alignments
from mpm_lite.claims.study import Say, Study, silent
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data import load_captions
from mpm_lite.experiments.painted_emoji import AUTOENCODER, ENCODERS, PRETRAINED, SIDE, PaintedEmoji, emoji_table
from mpm_lite.experiments.picture_names import Naming, name_table, present


def _name_tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Scores, and what was said of emoji with the first seed; stamps' names are not ours to pass on."""
    said = rows[rows["seed"] == rows["seed"].min()].query("set == 'emoji' and look in ('real', 'nearest')")
    said = said.pivot(index=["item", "language", "gold"], columns="look", values="said").reset_index()
    return {"names": name_table(rows), "names-said": said}


def _name_card(arms: Mapping[str, Any]) -> dict[str, Any]:
    arm = arms["mpm"]
    options = {"reading_options": asdict(arm.reading_options), "options": asdict(arm.recipe_options)}
    return {"arm": asdict(arm), **options, "pairs": len(load_captions(present(arm.sets), "train"))}


def _emoji_card(arms: Mapping[str, Any]) -> dict[str, Any]:
    learning = {"autoencoder": AUTOENCODER, "from scratch": PRETRAINED, "re-aligned": PaintedEmoji().recipe_options}
    options = {"pixels": SIDE} | {name: asdict(of) for name, of in learning.items()}
    return {"options": options, "pairs": len(load_captions("emoji", "train"))}


NAMES = Study("mpm_names", "names", {"mpm": Naming()}, _name_tables, card=_name_card, first=0)
EMOJI = Study(
    "mpm_paint_emoji", "emoji", {encoder: PaintedEmoji(encoder) for encoder in ENCODERS},
    lambda rows: {"emoji": emoji_table(rows)}, card=_emoji_card, first=0,
)  # fmt: skip
STUDIES: dict[str, Callable[..., list[Path]]] = {
    **{name: partial(run_alignments, name) for name in ALIGNMENTS},
    "head_to_head": compare_systems,
    "head_to_head_real": compare_real,
    "ladder": run_ladder,
    "connectors": run_connectors,
    **{study.name: study.run for study in (NAMES, PAINTERS, EMOJI)},
}
ONE_SEED = ("ladder", "connectors")  # the language models are their seeds


def run_study(name: str, out: Path, seeds: int | None = None, say: Say = silent, workers: int = 1) -> list[Path]:
    """Run what is missing of a study, in so many processes, and write its tables and its card under OUT; returns the files.
    Raises UserError for a study that nobody knows, and for `seeds` where language models stand in their place."""
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    if name in ONE_SEED:
        if seeds:
            raise UserError(f"{name!r} is a committed configuration and takes neither --set nor --seeds.")
        return STUDIES[name](out, say=say, workers=workers)
    if name in ALIGNMENTS:
        return STUDIES[name](out, seeds)
    return STUDIES[name](out, seeds, say=say, workers=workers)
