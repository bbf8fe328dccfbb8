"""The few connectors that ship, so that a notebook can begin where training ended: `python -m mpm_lite.aligned` makes them.

Each is stage 1 of MPM chat on English captions, with the same pictures, steps and seed; only the language model differs.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

from mpm_lite import runtime
from mpm_lite.cache import write_atomic
from mpm_lite.chat import Bench, Chat
from mpm_lite.studies import commit

SEED = 0
SHIPPED = {name: Chat(lm=name) for name in ("toy-multilingual", "toy-noparallel", "toy-mixed")}
CARD = "card.json"


def build(out: Path) -> list[Path]:
    """Train what is missing under OUT/aligned, and write the card. Returns the files of the weights."""
    bench, folder = Bench(), out / "aligned"
    cards = json.loads((folder / CARD).read_text()) if (folder / CARD).exists() else {}
    found = []
    for name, arm in SHIPPED.items():
        key = bench.key(arm, SEED).digest
        path = folder / f"{key}.safetensors"
        if not path.exists():
            for old in [p for p in folder.glob("*.safetensors") if p.stem == cards.get(name, {}).get("key")]:
                old.unlink()
            bench.seen("train", arm.pairs)  # features are not training
            began, worked = time.perf_counter(), time.process_time()
            recipe = bench.align(arm, SEED)
            seconds, of_cpu = time.perf_counter() - began, time.process_time() - worked
            weights = {k: v.half().contiguous() for k, v in recipe.visual.state_dict().items()}
            write_atomic(path, to_safetensors(weights))
            english = bench.test(recipe, SEED, "val", ("en",), ("real",), closed=0)
            cards[name] = {
                "key": key,
                "arm": asdict(arm),
                "options": asdict(arm.recipe_options),
                "seed": SEED,
                "english_on_val": {k: round(float(english[k].mean()), 4) for k in ("exact", "slots")},
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "seconds": round(seconds),
                "cpu_seconds": round(of_cpu),
                "threads": torch.get_num_threads(),
                "commit": commit(),
                "command": "python -m mpm_lite.aligned",
            }
            write_atomic(folder / CARD, (json.dumps(cards, indent=1) + "\n").encode())
        found.append(path)
    return found


if __name__ == "__main__":
    for made in build(runtime.asset()):
        print(made)
