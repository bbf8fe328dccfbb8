"""The few weights of the other systems that ship, so that a notebook can begin where training ended.

python -m mpm_lite.shipped        trains what is missing, and writes it with a card under assets/kept
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpm_lite import acquiring, keeping, runtime
from mpm_lite.acquiring import Acquiring
from mpm_lite.cache import write_atomic
from mpm_lite.claims_mla import ENGLISH
from mpm_lite.studies import commit

SEED = 0
CARD = "card.json"


@dataclass(frozen=True)
class Shipped:
    """A bench, an arm, and what of the arm is trained: the recipe whose weights ship."""

    bench: Callable[[], Any]
    arm: Any
    make: Callable[[Any, Any, int], Any]


SHIPPED = {
    "MLA's English dual encoder": Shipped(
        acquiring.Bench, Acquiring(english_options=ENGLISH), lambda bench, arm, seed: bench.dual(arm, seed)
    ),
}


def build(out: Path) -> list[Path]:
    """Train what is missing, or read back what MPM_LITE_HOME keeps, and write weights and card under OUT/kept; what the card
    does not name goes. Returns the files of the weights."""
    folder, cards, found = out / keeping.KEPT, {}, []
    for name, one in SHIPPED.items():
        bench = one.bench()
        with keeping.opened() as files:
            recipe = one.make(bench, one.arm, SEED)
        data = files[-1].read_bytes()  # of the last stage
        path = folder / files[-1].name
        if not path.exists():
            write_atomic(path, data)
        scores = bench.choose(recipe, SEED, "val", ("en",)).groupby("look")["choice"].mean()
        cards[name] = {
            "file": path.name,
            "arm": asdict(one.arm),
            "options": asdict(recipe.options),
            "seed": SEED,
            "english_on_val": {f"choice, {look}": round(float(value), 4) for look, value in scores.items()},
            "sha256": hashlib.sha256(data).hexdigest(),
            "commit": commit(),
            "command": "python -m mpm_lite.shipped",
        }
        found.append(path)
    for old in set(folder.glob("*.safetensors")) - set(found):
        old.unlink()
    write_atomic(folder / CARD, (json.dumps(cards, indent=1) + "\n").encode())
    return found


if __name__ == "__main__":
    for made in build(runtime.asset()):
        print(made)
