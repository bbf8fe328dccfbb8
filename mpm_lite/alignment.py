"""How well a text tower already puts translations together, measured without a picture and on training concepts only,
and which languages it can be expected to know at all: cells that are fixed before any pivot is judged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mpm_lite import cache, evaluate
from mpm_lite.data import CaptionSet, load_captions
from mpm_lite.data.languages import base, family
from mpm_lite.keys import Key, digest

CELLS = ("read", "relative read", "no relative read", "unreadable pieces")
UNKNOWN_PIECES = 0.05  # from this share of unknown pieces on, the tokenizer hides the language
SAMPLE = 120  # training captions a language, one for each English caption


def cell(code: str, read: frozenset[str], unknown_rate: float) -> str:
    """The cell of a language for a tower that was trained on `read`. The rule, in this order:

    read: the tower was trained on it. unreadable pieces: at least 5 % of its pieces are unknown to the tokenizer.
    relative read: another language of its branch (Romance, Slavic, ...) was read. no relative read: none of these.
    """
    if base(code) in read or code in read:
        return "read"
    if unknown_rate >= UNKNOWN_PIECES:
        return "unreadable pieces"
    return "relative read" if family(code) in {family(known) for known in read} else "no relative read"


def sample(set_name: str = "stamps", limit: int = SAMPLE) -> CaptionSet:
    """The training captions that alignment is measured on: one picture for each English caption, in a fixed order."""
    captions = load_captions(set_name, "train", "all")
    said = captions.captions["en"]
    first = {text.casefold(): i for i, text in reversed(list(enumerate(said))) if text}
    order = sorted(first.values(), key=lambda i: digest(["alignment", captions.ids[i]]))
    return captions.take(np.array(order[:limit]))


def whole(captions: CaptionSet, code: str, tower: Any, progress: bool = False) -> np.ndarray:
    """Sentence vectors of the sample in one language, float32 (N, D), NaN where it has no caption; cached as one whole."""
    said = captions.captions[code]
    there = captions.with_caption(code)
    decides = {"kind": "alignment", "weights": tower.fingerprint, "captions": digest([code, *said])}
    key = Key("vectors of captions", decides)
    vectors = np.full((len(said), tower.width), np.nan, dtype=np.float32)
    vectors[there] = cache.features(key, lambda: tower.encode([said[i] for i in there], progress=progress))
    return vectors


def table(
    tower: Any, captions: CaptionSet | None = None, languages: list[str] | None = None, progress: bool = False
) -> pd.DataFrame:
    """One row a language: alignment, unknown_rate, pieces_a_caption, cell, family, n.

    alignment: translation recall@1 into English among the sampled captions, expected over ties; the frozen tower's own
    vectors, nothing trained. Languages with fewer than 20 such captions are left out.
    """
    captions = captions or sample()
    rows = []
    for code in languages or captions.languages:
        there = captions.with_caption(code) if code in captions.languages else []
        if len(there) < 20:
            continue
        said = [captions.captions[code][i] for i in there]
        english = [captions.captions["en"][i] for i in there]
        pivot, other = whole(captions, "en", tower, progress)[there], whole(captions, code, tower, progress)[there]
        unknown = tower.unknown_rate(said)
        rows.append(
            {
                "text": tower.name,
                "language": code,
                "family": family(code),
                "cell": cell(code, tower.languages, unknown),
                "alignment": evaluate.translation_recall(pivot, other, evaluate.equal_groups(english, said)),
                "unknown_rate": unknown,
                "pieces_a_caption": float(np.mean([len(p) for p in tower.pieces(said)])),
                "n": len(there),
            }
        )
    return pd.DataFrame(rows)
