"""Scores and what may be said of them: expected recall over ties, chance, retention, and a bootstrap that respects
seeds, concepts and items.

The whole held-out gallery is ranked whatever the language of the query; equal captions are equal answers; a candidate
tied with the right one counts as if the tie were broken at random, so that a constant image tower scores chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
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


def equal_groups(*captions: list[str]) -> np.ndarray:
    """Items whose captions are equal in any of the given languages share a number (transitively); int64 (N,).

    An empty caption equals nothing.
    """
    parent = list(range(len(captions[0])))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for texts in captions:
        first: dict[str, int] = {}
        for i, text in enumerate(texts):
            said = " ".join(text.casefold().split())
            if said:
                parent[root(i)] = root(first.setdefault(said, i))
    return np.array([root(i) for i in range(len(parent))])


def retrieval_hits(images: Tensor, texts: Tensor, asked: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
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


def several_hits(images: Tensor, texts: Tensor, of: np.ndarray) -> dict[str, np.ndarray]:
    """Hits by picture where pictures have several captions: images (N, D), texts (C, D), of int (C,) whose each caption is.

    A picture counts once, however many captions it has: text to image is the mean over its captions; image to text is
    right where *any* of them is among the first k, which is easier with five than with one. So languages are compared
    with as many captions each (`retrieval_hits` of the first), and this score only with its own chance.
    Returns {metric: float64 (N,)} and {"chance " + metric: ...}, NaN for a picture without a caption.
    """
    whose, place = torch.as_tensor(of), torch.arange(len(images))
    count = torch.bincount(whose, minlength=len(images))
    there = torch.nonzero(count)[:, 0]
    first = torch.full((len(images),), len(of)).scatter_reduce(0, whose, torch.arange(len(of)), "amin")
    t2i = ops.retrieval_ranks(texts, images, whose, groups=(whose, place), return_ties=True)
    i2t = ops.retrieval_ranks(images[there], texts, first[there], groups=(there, whose), return_ties=True)
    hits = {}
    for k in KS:
        by_picture = np.bincount(of, expected_hits(t2i, k), len(images)) / count.clamp(min=1).numpy()
        found = {"t2i": by_picture, "i2t": np.zeros(len(images))}
        found["i2t"][there.numpy()] = expected_hits(i2t, k)
        chance = {"t2i": np.full(len(images), min(1.0, k / len(images))), "i2t": chance_hits(count.numpy(), len(of), k)}
        for way in found:
            hits[f"{way}_r@{k}"] = np.where(count > 0, found[way], np.nan)
            hits[f"chance {way}_r@{k}"] = np.where(count > 0, chance[way], np.nan)
    return hits


def translation_recall(pivot: np.ndarray, other: np.ndarray, groups: np.ndarray) -> float:
    """Share of texts in L whose nearest English text is their own translation: the tower's alignment, no picture in it.

    pivot, other float32 (N, D), groups int (N,) of equal captions.
    """
    group = torch.as_tensor(groups)
    ranks = ops.retrieval_ranks(
        torch.as_tensor(other),
        torch.as_tensor(pivot),
        torch.arange(len(group)),
        groups=(group, group),
        return_ties=True,
    )
    return float(expected_hits(ranks, 1).mean())


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval and a one-sided p for being above zero."""

    value: float
    low: float
    high: float
    p: float = float("nan")


def bootstrap_weights(
    concepts: list[str], seeds: int, draws: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """How often each item and each seed is drawn: float64 (B, N) and (B, S).

    Hierarchical: concepts with replacement, then as many items as a drawn concept has, with replacement; seeds apart.
    """
    rng = np.random.default_rng(seed)
    names, place = np.unique(np.asarray(concepts), return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)  # (B, C)
    weights = np.zeros((draws, len(concepts)))
    for c in range(len(names)):
        members = np.flatnonzero(place == c)
        if len(members) == 1:
            weights[:, members[0]] = drawn[:, c]
        else:
            weights[:, members] = rng.multinomial(drawn[:, c] * len(members), np.full(len(members), 1 / len(members)))
    return weights, rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws).astype(float)


def resampled_mean(hits: np.ndarray, weights: np.ndarray, seed_weights: np.ndarray) -> np.ndarray:
    """The mean of hits (S, Q) under every draw: weights (B, Q), seed_weights (B, S) -> (B,)."""
    total = weights.sum(axis=1)
    by_seed = weights @ hits.T / np.maximum(total, 1e-12)[:, None]  # (B, S)
    mean = (by_seed * seed_weights).sum(axis=1) / seed_weights.sum(axis=1)
    return np.where(total > 0, mean, np.nan)


def summarise(value: float, draws: np.ndarray) -> Interval:
    """Percentile interval of the draws around `value`; p = share of draws at or below zero (never under 1/(B+1))."""
    fine = draws[np.isfinite(draws)]
    if not len(fine):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(fine, [2.5, 97.5])
    return Interval(value, float(low), float(high), float((1 + (fine <= 0).sum()) / (1 + len(fine))))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values, (K,) -> (K,)."""
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty_like(adjusted)
    out[order] = np.minimum(adjusted, 1.0)
    return out
