"""Scores of retrieval: recall that counts ties fairly, chance, and how often a translation is found.

The whole held-out gallery is ranked whatever the language of the query; equal captions are equal answers; a candidate
tied with the right one counts as if the tie were broken at random, so that a constant image tower scores chance.
"""

from __future__ import annotations

import unicodedata

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mpm_lite import ops

KS = (1, 5, 10)
METRICS = tuple(f"{way}_r@{k}" for way in ("t2i", "i2t") for k in KS)


def expected_hits(ranks: ops.Ranks, k: int) -> np.ndarray:
    """P(a correct candidate is among the first k) over a random order of ties; float64 (N,).

    Of the tie's b = tied + tied_correct places the first m = k - better are drawn: the chance that all m are wrong is
    C(tied, m) / C(b, m).
    """
    better, tied, right = (x.double().cpu().numpy() for x in ranks)
    room = np.clip(k - better, 0, None)
    miss = np.ones_like(room)
    for draw in range(k):
        wrong_left, left = tied - draw, tied + right - draw
        drawn = np.where(left > 0, np.clip(wrong_left, 0, None) / np.maximum(left, 1), 0.0)
        miss = np.where(draw < room, miss * drawn, miss)
    return 1.0 - miss


def chance_hits(correct: np.ndarray, candidates: int, k: int) -> np.ndarray:
    """The blind score: P(hit within k) when every candidate looks the same. correct int (N,) -> float64 (N,)."""
    n = torch.as_tensor(correct)
    return expected_hits(ops.Ranks(torch.zeros_like(n), candidates - n, n), k)


def group_captions(*captions: list[str]) -> np.ndarray:
    """Items whose captions are equal in any of the given languages share a number (transitively); int64 (N,).

    An empty caption equals nothing.
    """
    rows, columns = [], []
    for texts in captions:
        first: dict[str, int] = {}
        for i, text in enumerate(texts):
            # These two characters are no letters, and have no width.
            plain = unicodedata.normalize("NFC", text).replace("\u200b", "").replace("\ufeff", "")
            if said := " ".join(plain.casefold().split()):
                rows.append(i)
                columns.append(first.setdefault(said, i))
    same = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(captions[0]),) * 2)
    return connected_components(same, directed=False)[1].astype(np.int64)


def score_retrieval(images: Tensor, texts: Tensor, asked: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Hits of every query, both directions. images (N, D), texts (N, D), asked int (Q,) the items with a caption in this
    language, groups (N,). Returns {metric: float64 (Q,)} and {"chance " + metric: ...}.

    Text-to-image ranks all N pictures; image-to-text ranks the Q captions there are.
    """
    ask, group = torch.as_tensor(asked), torch.as_tensor(groups)
    said, place = texts[ask], torch.arange(len(asked))
    t2i = ops.retrieval_ranks(said, images, ask, groups=(group[ask], group), return_ties=True)
    i2t = ops.retrieval_ranks(images[ask], said, place, groups=(group[ask], group[ask]), return_ties=True)
    right_images = (group[ask][:, None] == group[None, :]).sum(dim=1).numpy()
    right_texts = (group[ask][:, None] == group[ask][None, :]).sum(dim=1).numpy()
    hits = {}
    for k in KS:
        hits[f"t2i_r@{k}"], hits[f"i2t_r@{k}"] = expected_hits(t2i, k), expected_hits(i2t, k)
        hits[f"chance t2i_r@{k}"] = chance_hits(right_images, len(images), k)
        hits[f"chance i2t_r@{k}"] = chance_hits(right_texts, len(asked), k)
    return hits


def score_text_alone(pivot: Tensor, texts: Tensor, asked: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Hits where a caption in the pivot language stands in the place of each picture: pivot (N, D) and texts (N, D) as the
    frozen text tower gives them, asked int (Q,), groups (N,). No picture and nothing that was trained is in it.

    Returns {"text " + metric: float64 (Q,)} for text to image.
    """
    ask, group = torch.as_tensor(asked), torch.as_tensor(groups)
    ranks = ops.retrieval_ranks(texts[ask], pivot, ask, groups=(group[ask], group), return_ties=True)
    return {f"text t2i_r@{k}": expected_hits(ranks, k) for k in KS}


def translation_recall(pivot: np.ndarray, other: np.ndarray, groups: np.ndarray) -> float:
    """Share of texts in L whose nearest English text is their own translation: the tower's alignment, no picture in it.

    pivot, other float32 (N, D), groups int (N,) of equal captions.
    """
    group = torch.as_tensor(groups)
    query, found, own = torch.as_tensor(other), torch.as_tensor(pivot), torch.arange(len(group))
    ranks = ops.retrieval_ranks(query, found, own, groups=(group, group), return_ties=True)
    return float(expected_hits(ranks, 1).mean())
