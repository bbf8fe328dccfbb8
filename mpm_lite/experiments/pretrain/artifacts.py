"""Trained parts of the four systems whose weights ship, so that a notebook can begin where training ended.

    mpm-lite pretrain connector-toy-mixed m3p-switched --out assets

Each is a system, trained with one seed: assets/weights/NAME.safetensors, and beside it a card that says how it was made
and to which keys the weights answer (`core/store.find_weights`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from mpm_lite.core import runtime
from mpm_lite.core.keys import Key
from mpm_lite.core.provenance import Artifact
from mpm_lite.core.store import WEIGHTS, collect_weights, metadata, write_atomic
from mpm_lite.experiments.experiment import FIRST_SEED
from mpm_lite.experiments.m3p import PLAIN, RATE, Matching
from mpm_lite.experiments.mblip import SHARED
from mpm_lite.experiments.mla import SHORT_ENGLISH, Acquiring
from mpm_lite.experiments.mpm_chat import Chat
from mpm_lite.experiments.mpm_paint import SCORES, Paint
from mpm_lite.experiments.system import System


def measure_captions(bench: Any, recipe: Any, seed: int) -> dict[str, float]:
    """English captions of val pictures: shares that are exactly right, and of attributes named."""
    rows = bench.test(recipe, seed, "val", ("en",), ("real",), closed=0)
    return {name: round(float(rows[name].mean()), 4) for name in ("exact", "slots")}


def measure_choice(bench: Any, recipe: Any, seed: int) -> dict[str, float]:
    """The share of val pictures whose own English caption is chosen of ten, with the picture and without it."""
    scores = bench.choose(recipe, seed, "val", ("en",)).groupby("look")["choice"].mean()
    return {f"choice, {look}": round(float(value), 4) for look, value in scores.items()}


def measure_painting(bench: Any, recipe: Any, seed: int) -> dict[str, dict[str, float]]:
    """What pictures painted for English val prompts show of them, and of another picture's prompt."""
    rows = bench.test(recipe, seed, "val", ("en",), ("real", "wrong"))
    return rows.groupby("look")[list(SCORES)].mean().round(4).to_dict("index")


@dataclass(frozen=True)
class TrainedPart:
    """A system with its dials, a seed, the step of its training whose weights ship, and how they are measured."""

    system: System
    seed: int
    train: Callable[[Any, Any, int], Any]
    measure: Callable[[Any, Any, int], dict[str, Any]]


def train_whole(bench: Any, system: System, seed: int) -> Any:
    """All that the system does."""
    return bench.train(system, seed)


# Stage 1 of MPM chat on English captions: the same pictures, steps and seed before three language models.
CONNECTORS = {name: Chat(lm=name) for name in ("toy-multilingual", "toy-noparallel", "toy-mixed")}
# A UNet that learned with an English text encoder, whose cross-attention learned anew with another one.
PAINTERS = {
    "toy-multilingual": Paint(),
    "toy-noparallel": Paint("toy-noparallel"),
    "toy-multilingual-layer-1": Paint(layer=1),
}
PARTS = {
    **{
        f"connector-{name}": TrainedPart(chat, 0, lambda bench, system, seed: bench.align(system, seed), measure_captions)
        for name, chat in CONNECTORS.items()
    },
    **{f"painter-{name}": TrainedPart(paint, 0, train_whole, measure_painting) for name, paint in PAINTERS.items()},
    # The ledger's own, of its first seed.
    "m3p-plain": TrainedPart(PLAIN, FIRST_SEED, train_whole, measure_choice),
    "m3p-switched": TrainedPart(Matching(switch={"words": RATE}), FIRST_SEED, train_whole, measure_choice),
    "mla-english": TrainedPart(
        Acquiring(english_options=SHORT_ENGLISH), 0,
        lambda bench, system, seed: bench.dual(system, seed), measure_choice,
    ),
    # Of the ledger's second seed, whose English language model ships.
    "mblip-english": TrainedPart(
        SHARED, FIRST_SEED + 1, lambda bench, system, seed: bench.generation(system, seed), measure_choice
    ),
}  # fmt: skip


def build(name: str, out: Path) -> Path:
    """Train one of PARTS, or read back what is kept of it, and write its weights and card under OUT/weights, unless those
    there are its own; returns the path of the card. Raises UserError for a name that is none of PARTS."""
    if name not in PARTS:
        raise runtime.unknown("part to pretrain", name, PARTS)
    part, weights = PARTS[name], out / WEIGHTS / f"{name}.safetensors"
    bench = part.system.bench()
    with collect_weights() as opened:
        recipe = part.train(bench, part.system, part.seed)
    path, key = opened[-1]  # of the last stage
    artifact = Artifact(
        name, weights, weights.with_suffix(".json"), partial(_make, part, bench, recipe, path, key, weights)
    )
    if artifact.is_intact() and key.digest not in json.loads(artifact.card.read_text(encoding="utf-8"))["keys"]:
        artifact.card.unlink()  # it describes what another configuration made
    return artifact.build()


def _make(part: TrainedPart, bench: Any, recipe: Any, path: Path, key: Key, weights: Path) -> dict[str, Any]:
    """Write the weights in float16; what their card says."""
    halves = {name: value.half().contiguous() for name, value in load_file(path).items()}
    write_atomic(weights, to_safetensors(halves, metadata=metadata(key)))
    return {
        "keys": [key.digest],
        "system": part.system.name,
        "arm": asdict(part.system),
        "options": asdict(recipe.options),
        "seed": part.seed,
        "english_on_val": part.measure(bench, recipe, part.seed),
    }
