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

from mpm_lite import acquiring, keeping, matching, realigning, runtime
from mpm_lite.acquiring import Acquiring
from mpm_lite.cache import write_atomic
from mpm_lite.claims import FIRST_SEED
from mpm_lite.claims_m3p import PLAIN, RATE
from mpm_lite.claims_mblip import SHARED
from mpm_lite.claims_mla import ENGLISH
from mpm_lite.matching import Matching
from mpm_lite.studies import commit

CARD = "card.json"


@dataclass(frozen=True)
class Shipped:
    """A bench, an arm, a seed, and what of the arm is trained: the recipe whose weights ship."""

    bench: Callable[[], Any]
    arm: Any
    seed: int = 0
    make: Callable[[Any, Any, int], Any] = lambda bench, arm, seed: bench.train(arm, seed)


SHIPPED = {
    "MLA's English dual encoder": Shipped(
        acquiring.Bench, Acquiring(english_options=ENGLISH), make=lambda bench, arm, seed: bench.dual(arm, seed)
    ),
    # The ledger's own, of its first seed.
    "M3P without switching": Shipped(matching.Bench, PLAIN, FIRST_SEED),
    "M3P, half of the words switched": Shipped(matching.Bench, Matching(switch={"words": RATE}), FIRST_SEED),
    # Of its second seed, whose English language model ships.
    "mBLIP's English Q-Former": Shipped(
        realigning.Bench, SHARED, FIRST_SEED + 1, lambda bench, arm, seed: bench.generation(arm, seed)
    ),
}


def build(out: Path) -> list[Path]:
    """Train what is missing, or read back what MPM_LITE_HOME keeps, and write weights and card under OUT/kept; what the card
    does not name goes. Returns the files of the weights."""
    folder, cards, found = out / keeping.KEPT, {}, []
    before = json.loads((folder / CARD).read_text()) if (folder / CARD).exists() else {}
    for name, one in SHIPPED.items():
        bench = one.bench()
        with keeping.opened() as files:
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
            "command": "python -m mpm_lite.shipped",
        }
    for old in set(folder.glob("*.safetensors")) - set(found):
        old.unlink()
    write_atomic(folder / CARD, (json.dumps(cards, indent=1) + "\n").encode())
    return found


if __name__ == "__main__":
    for made in build(runtime.asset()):
        print(made)
