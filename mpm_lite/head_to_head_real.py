"""M3P, MLA and rivals on real pictures at equal pairs: emoji, stamps and clip art learned from, held-out stamps asked about.

    mpm-lite run head_to_head_real --seeds 3 --out assets/results

Every system learns from the same training pictures, each with one caption; MLA and the teacher read the captions of other
languages as text alone, M3P switches words by the names of training emoji. *Pivot* is MPM's way with two towers: English
captions through a multilingual encoder that stays as it is. *Translate-test* is English retrieval itself, on the queries
that the language has: a perfect translator. *Untranslated* asks the English model in L as it is: what shared spelling gives.
MPM chat and mBLIP need a language model of many languages, of which no package brings one. A text encoder that stays frozen
reads each caption once, before the updates, as the image tower reads each picture; FLOPs count neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from mpm_lite.acquiring import Acquiring
from mpm_lite.claims import FIRST_SEED
from mpm_lite.head_to_head import System, gathered, scored, shelves
from mpm_lite.matching import Matching
from mpm_lite.pairing import Pairing
from mpm_lite.real import DUAL, LANGUAGES, MOST, REAL, AcquiringReal, PairingReal, captions, data_key
from mpm_lite.real_matching import REAL_M3P, MatchingReal
from mpm_lite.studies import commit, written

TABLE = "real"
TEXT_ALONE = {"bottleneck": 96, "order": "transfer", "transfer_steps": 600}  # at equal pairs no picture is left for it


def _rival(kind: str, **given: object) -> System:
    shared = {"world": "real", "pairs": MOST, "parallel": MOST, "noise": 0.0, "options": DUAL}
    return System(PairingReal, {TABLE: Pairing(kind, LANGUAGES, **(shared | given))}, data=data_key)


SYSTEMS = {
    "M3P": System(MatchingReal, {TABLE: Matching(**REAL_M3P)}, data=data_key),
    "MLA": System(AcquiringReal, {TABLE: Acquiring(**REAL | {"pairs": 0, "options": TEXT_ALONE})}, data=data_key),
    "pivot": _rival("pivot"),
    "teacher": _rival("teacher", english_options=DUAL, options={"steps": 500, "lr": 1e-4}),
    "translate-train": _rival("translate-train"),
    "translate-test": _rival("translate-test"),
    "untranslated": _rival("untranslated"),
}


def run(
    out: Path, seeds: int = 3, split: str = "test", say: Callable[[str], None] = lambda line: None,
    systems: Sequence[str] = tuple(SYSTEMS), workers: int = 1,
) -> list[Path]:  # fmt: skip
    """Train and test what is missing, in so many processes, and write OUT/head-to-head-real.csv and its card."""
    version, many, kept = commit(), range(FIRST_SEED, FIRST_SEED + seeds), shelves(out, "head_to_head_real")
    found = gathered(SYSTEMS, systems, TABLE, many, split, None, kept, say, workers)
    table = scored(found.rows, metrics=("recall", "choice"))
    spent = pd.DataFrame([
        {"system": name, "updates": cost["updates"].sum(), "trainable": cost["trainable"].max(), "flops": cost["flops"].sum()}
        for name, cost in found.costs.items()
    ])  # fmt: skip
    card = {"split": split, "pictures": len(captions("train"))}
    return written(out, "head_to_head_real", {"head-to-head-real": table.merge(spent, on="system")}, card,
                   "head-to-head-real", version, many)  # fmt: skip
