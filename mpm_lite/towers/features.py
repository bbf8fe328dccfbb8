"""What a frozen tower says of a caption set, through the cache.

A part (one whole split of one set) is encoded whole, in fixed batches, or not at all: encoding only the items that are
missing would change the shape of a batch, and with it the last bits of every number in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm.auto import tqdm

from mpm_lite import cache, runtime

CHUNK = 512


def image_features(captions: Any, tower: Any, progress: bool = False) -> np.ndarray:
    """Features of every picture of a CaptionSet: float32 (N, D)."""
    rows = []
    for part, indices in captions.parts:
        key = ("image", tower.fingerprint, part.image_digest())
        whole = cache.features(key, lambda part=part: _encode(part, tower, progress))
        rows.append(whole[indices])
    return np.concatenate(rows)


def _encode(part: Any, tower: Any, progress: bool) -> np.ndarray:
    """The whole part through the tower, CHUNK pictures in memory at a time; a chunk is a whole number of batches."""
    starts = tqdm(range(0, len(part.ids), CHUNK), desc=f"{tower.name}: {part.name}", disable=not progress or runtime.quiet(), leave=False)
    return np.concatenate([tower.encode(part.pictures(start, start + CHUNK)) for start in starts])


def text_features(captions: Any, language: str, tower: Any, progress: bool = False) -> np.ndarray:
    """Sentence vectors of the captions in one language: float32 (N, D); rows without a caption are NaN, so that a
    caller who forgets to leave them out cannot miss it."""
    rows = []
    for part, indices in captions.parts:
        texts = part.captions.get(language) or [""] * len(part.ids)
        there = np.array([bool(text) for text in texts])
        whole = np.full((len(texts), tower.width), np.nan, dtype=np.float32)
        if there.any():
            key = ("text", tower.fingerprint, language, part.text_digest(language))
            said = [text for text in texts if text]
            whole[there] = cache.features(key, lambda said=said: tower.encode(said, progress=progress))
        rows.append(whole[indices])
    return np.concatenate(rows)
