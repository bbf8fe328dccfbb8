"""Where the best correct candidate of each query stands, with no N x M matrix of scores (sm_80 on).

Two passes of one and the same tile arithmetic: a score computed any other way differs in its last bits, and with them
almost half of all targets would outrank themselves. Correct candidates are told by index, never by their score.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mpm_lite.ops.kernels import tiles, use_device
from mpm_lite.ops.kernels.contrastive import padded, product_options, quarter_of, spans, tile_product
from mpm_lite.ops.kernels.tiles import Tile


@triton.jit
def _best_own(
    query, cand, target, best, N, D,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Without groups: a block of queries against its own targets, of which only the diagonal is kept."""
    first = tl.program_id(0).to(tl.int64) * BM  # offsets within a tile fit into 32 bits, others may not
    height = N - tl.program_id(0) * BM
    row = tl.arange(0, BM)
    found = tl.full((BM,), float("-inf"), tl.float32)
    for start in range(0, BM, BN):
        owner = start + tl.arange(0, BN)
        own = tl.load(target + first + tl.minimum(owner, height - 1))
        score = tile_product(query + first * D, cand, tl.minimum(row, height - 1), own, D, BM, BN, BD, UPCAST)
        score = tl.where(row[:, None] == owner[None, :], score, float("-inf"))
        found = tl.maximum(found, tl.max(score, 1))
    tl.store(best + first + row, found, mask=row < height)


@triton.jit
def _best_group(
    query, cand, target, query_group, cand_group, best, N, M, D, span,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """With groups: every tile that holds a correct candidate is computed, all others are passed over."""
    split = tl.program_id(1)
    first = tl.program_id(0).to(tl.int64) * BM
    height = N - tl.program_id(0) * BM
    row = tl.arange(0, BM)
    safe_row = tl.minimum(row, height - 1)
    own = tl.load(target + first + safe_row).to(tl.int32)
    group = tl.load(query_group + first + safe_row)
    cand += split.to(tl.int64) * span * D
    found = tl.full((BM,), float("-inf"), tl.float32)
    for start in range(split * span, tl.minimum(split * span + span, M), BN):
        some = tl.zeros((BM,), tl.int32)
        for quarter in tl.static_range(4):
            # Axes exchanged: in the shape of the scores the answers would be kept in registers until they come.
            part = quarter * (BN // 4) + tl.arange(0, BN // 4)
            fellows = tl.load(cand_group + start + tl.minimum(part, M - start - 1))
            turned = (part[:, None] == (own - start)[None, :]) | (fellows[:, None] == group[None, :])
            some = tl.maximum(some, tl.max(turned.to(tl.int32), 0))
        if tl.max(some, 0) > 0:
            safe_col = tl.minimum(tl.arange(0, BN), M - start - 1)
            scores = tile_product(query + first * D, cand, safe_row, safe_col, D, BM, BN, BD, UPCAST)
            for quarter in tl.static_range(4):
                part = quarter * (BN // 4) + tl.arange(0, BN // 4)
                fellows = tl.load(cand_group + start + tl.minimum(part, M - start - 1))
                correct = (part[None, :] == (own - start)[:, None]) | (fellows[None, :] == group[:, None])
                score = quarter_of(scores, quarter, BM, BN)
                score = tl.where(correct & (part < M - start)[None, :], score, float("-inf"))
                found = tl.maximum(found, tl.max(score, 1))
        cand += BN * D
    tl.store(best + split.to(tl.int64) * N + first + row, found, mask=row < height)


@triton.jit
def _count(
    query, cand, target, query_group, cand_group, best, counts, N, M, D, span,
    GROUPS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    first = tl.program_id(0).to(tl.int64) * BM
    height = N - tl.program_id(0) * BM
    row = tl.arange(0, BM)
    safe_row = tl.minimum(row, height - 1)
    own = tl.load(target + first + safe_row).to(tl.int32)
    group = own
    if GROUPS:
        group = tl.load(query_group + first + safe_row)
    bar = tl.load(best + first + safe_row)
    cand += split.to(tl.int64) * span * D
    better = tl.zeros((BM,), tl.int32)
    tied = tl.zeros((BM,), tl.int32)
    tied_correct = tl.zeros((BM,), tl.int32)
    for start in range(split * span, tl.minimum(split * span + span, M), BN):
        last = M - start - 1
        safe_col = tl.minimum(tl.arange(0, BN), last)
        scores = tile_product(query + first * D, cand, safe_row, safe_col, D, BM, BN, BD, UPCAST)
        cand += BN * D
        for quarter in tl.static_range(4):
            col = quarter * (BN // 4) + tl.arange(0, BN // 4)
            score = quarter_of(scores, quarter, BM, BN)
            correct = col[None, :] == (own - start)[:, None]
            if GROUPS:
                mates = tl.load(cand_group + start + tl.minimum(col, last))
                correct = correct | (mates[None, :] == group[:, None])
            equal = score == bar[:, None]
            # Three counts in one integer, 10 bits each: one sum over the columns, and a quarter has no more than 64.
            count = tl.where(equal, 1 << 10, 1 - (score <= bar[:, None]).to(tl.int32))  # NaN beats
            count = tl.where(correct, tl.where(equal, 1 << 20, 0), count)
            count = tl.sum(tl.where((col <= last)[None, :], count, 0), 1)
            better += count & 1023
            tied += (count >> 10) & 1023
            tied_correct += count >> 20
    at = counts + split.to(tl.int64) * N + first + row
    step = tl.num_programs(1).to(tl.int64) * N
    tl.store(at, better, mask=row < height)
    tl.store(at + step, tied, mask=row < height)
    if GROUPS:
        tl.store(at + 2 * step, tied_correct, mask=row < height)


def _numbered(query_group: Tensor, cand_group: Tensor) -> tuple[Tensor, Tensor]:
    """The same equalities between int64 (N,) and (M,) in int32: half the registers for what every tile compares."""
    order = torch.cat((query_group, cand_group)).sort().values
    return torch.searchsorted(order, query_group, out_int32=True), torch.searchsorted(order, cand_group, out_int32=True)


def rank_counts(
    query: Tensor, cand: Tensor, target: Tensor, groups: tuple[Tensor, Tensor] | None, *, tile: Tile | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """For each query, how many candidates stand above its best correct one, and how many beside it.

    query (N, D), cand (M, D) fp16, bf16 or fp32; target (N,) int64, the index of each query's own candidate; with groups
    ((N,), (M,)) int64 every candidate of the query's group is correct too. Scores are dot products accumulated in fp32.
    Returns three (N,) int64: wrong candidates that score higher than the best correct one; wrong ones that score
    exactly as high; correct ones that do, the best one included.
    """
    height, width, device = len(query), len(cand), query.device
    tile = tile or tiles.pick_here("rank" if groups is None else "rank_groups", device, query.dtype, query.shape[1])
    query, cand = padded(tile, query, cand)
    options = product_options(tile, query)
    blocks = triton.cdiv(height, tile.bm)
    span, splits = spans(blocks, width, tile, device)
    fields = 2 if groups is None else 3
    counts = torch.empty((fields, splits, height), dtype=torch.int32, device=device)
    with use_device(device):
        if groups is None:
            query_group = cand_group = target
            best = torch.empty(height, dtype=torch.float32, device=device)
            _best_own[(blocks,)](query, cand, target, best, height, query.shape[1], **options)
        else:
            query_group, cand_group = _numbered(*groups)
            best = torch.empty((splits, height), dtype=torch.float32, device=device)
            _best_group[(blocks, splits)](
                query, cand, target, query_group, cand_group, best, height, width, query.shape[1], span, **options
            )
            best = best.amax(dim=0)
        _count[(blocks, splits)](
            query, cand, target, query_group, cand_group, best, counts, height, width, query.shape[1], span,
            GROUPS=groups is not None, **options,
        )  # fmt: skip
    better, tied, *tied_correct = counts.sum(dim=1)
    return better, tied, tied_correct[0] if tied_correct else torch.ones_like(better)
