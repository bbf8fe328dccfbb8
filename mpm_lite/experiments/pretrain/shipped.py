"""The few weights of connectors and systems that ship, so that a notebook can begin where training ended.

`python -m mpm_lite.experiments.pretrain.shipped` trains what is missing, and writes it with cards under assets/aligned and
assets/kept. Each connector is stage 1 of MPM chat on English captions, with the same pictures, steps and seed; only the
language model differs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors

from mpm_lite.core import runtime
from mpm_lite.core.provenance import commit
from mpm_lite.core.store import write_atomic
from mpm_lite.experiments.experiment import FIRST_SEED
from mpm_lite.experiments.m3p import PLAIN, RATE, Matching
from mpm_lite.experiments.mblip import SHARED
from mpm_lite.experiments.mla import SHORT_ENGLISH, Acquiring
from mpm_lite.experiments.mpm_chat import Chat, ChatBench
from mpm_lite.experiments.system import KEPT, System, collect_files

CONNECTOR_SEED = 0
CONNECTORS = {name: Chat(lm=name) for name in ("toy-multilingual", "toy-noparallel", "toy-mixed")}
CONNECTOR_CARD = "card.json"


def build_connectors(out: Path) -> list[Path]:
    """Train what is missing under OUT/aligned, and write the card. Returns the files of the weights."""
    bench, folder = ChatBench(), out / "aligned"
    cards = json.loads((folder / CONNECTOR_CARD).read_text()) if (folder / CONNECTOR_CARD).exists() else {}
    found = []
    for name, arm in CONNECTORS.items():
        key = bench.key(arm, CONNECTOR_SEED).digest
        path = folder / f"{key}.safetensors"
        if not path.exists():
            for old in [p for p in folder.glob("*.safetensors") if p.stem == cards.get(name, {}).get("key")]:
                old.unlink()
            bench.seen("train", arm.pairs)  # features are not training
            began, worked = time.perf_counter(), time.process_time()
            recipe = bench.align(arm, CONNECTOR_SEED)
            seconds, of_cpu = time.perf_counter() - began, time.process_time() - worked
            weights = {k: v.half().contiguous() for k, v in recipe.visual.state_dict().items()}
            write_atomic(path, to_safetensors(weights))
            english = bench.test(recipe, CONNECTOR_SEED, "val", ("en",), ("real",), closed=0)
            cards[name] = {
                "key": key,
                "arm": asdict(arm),
                "options": asdict(arm.recipe_options),
                "seed": CONNECTOR_SEED,
                "english_on_val": {k: round(float(english[k].mean()), 4) for k in ("exact", "slots")},
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "seconds": round(seconds),
                "cpu_seconds": round(of_cpu),
                "threads": torch.get_num_threads(),
                "commit": commit(),
                "command": "python -m mpm_lite.experiments.pretrain.shipped",
            }
            write_atomic(folder / CONNECTOR_CARD, (json.dumps(cards, indent=1) + "\n").encode())
        found.append(path)
    return found


# The other three systems.

CARD = "card.json"


@dataclass(frozen=True)
class Shipped:
    """A system, a seed, and what of the system is trained: the recipe whose weights ship."""

    arm: System
    seed: int = 0
    make: Callable[[Any, Any, int], Any] = lambda bench, arm, seed: bench.train(arm, seed)


SHIPPED = {
    "MLA's English dual encoder": Shipped(
        Acquiring(english_options=SHORT_ENGLISH), make=lambda bench, arm, seed: bench.dual(arm, seed)
    ),
    # The ledger's own, of its first seed.
    "M3P without switching": Shipped(PLAIN, FIRST_SEED),
    "M3P, half of the words switched": Shipped(Matching(switch={"words": RATE}), FIRST_SEED),
    # Of its second seed, whose English language model ships.
    "mBLIP's English Q-Former": Shipped(SHARED, FIRST_SEED + 1, lambda bench, arm, seed: bench.generation(arm, seed)),
}


def build_systems(out: Path) -> list[Path]:
    """Train what is missing, or read back what MPM_LITE_HOME keeps, and write weights and card under OUT/kept; what the card
    does not name goes. Returns the files of the weights."""
    folder, cards, found = out / KEPT, {}, []
    before = json.loads((folder / CARD).read_text()) if (folder / CARD).exists() else {}
    for name, one in SHIPPED.items():
        bench = one.arm.bench()
        with collect_files() as files:
            recipe = one.make(bench, one.arm, one.seed)
        data = files[-1].read_bytes()  # of the last stage
        path = folder / files[-1].name
        if not path.exists():
            write_atomic(path, data)
        found.append(path)
        named, there = {"file": path.name, "sha256": hashlib.sha256(data).hexdigest()}, before.get(name, {})
        if named.items() <= there.items():
            cards[name] = there  # the same weights: their card stays as it was
            continue
        scores = bench.choose(recipe, one.seed, "val", ("en",)).groupby("look")["choice"].mean()
        cards[name] = {
            **named,
            "arm": asdict(one.arm),
            "options": asdict(recipe.options),
            "seed": one.seed,
            "english_on_val": {f"choice, {look}": round(float(value), 4) for look, value in scores.items()},
            "commit": commit(),
            "command": "python -m mpm_lite.experiments.pretrain.shipped",
        }
    for old in set(folder.glob("*.safetensors")) - set(found):
        old.unlink()
    write_atomic(folder / CARD, (json.dumps(cards, indent=1) + "\n").encode())
    return found


if __name__ == "__main__":
    for made in build_connectors(runtime.asset()):
        print(made)
    for made in build_systems(runtime.asset()):
        print(made)
