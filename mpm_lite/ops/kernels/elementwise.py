"""Kernels without a matrix product: what stands between two cuBLAS calls. They run from sm_75 on.

Every program writes its own partial sums and torch adds them afterwards: no atomics, so a run repeats bit for bit.
Scale and bias are read in the kernel, so nothing waits for the device. All arithmetic is fp32, in natural units: the
difference z - lse is taken before anything is multiplied, where it is nearly exact.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mpm_lite.ops.kernels import tiles, use_device
from mpm_lite.ops.kernels.tiles import Tile

LOWEST = tl.constexpr(-3.0e38)  # a finite start for a running maximum: -inf - -inf would be NaN


@triton.jit
def clip_gradient(cos, scale, row_lse, col_lse, hit, COLUMNS: tl.constexpr):
    """G = softmax over the row [+ softmax over the column] - 1 [2] where `hit`, for a tile of cosines."""
    z = cos * scale
    g = tl.exp(z - row_lse[:, None])
    if COLUMNS:
        g += tl.exp(z - col_lse[None, :])
        return tl.where(hit, g - 2.0, g)
    return tl.where(hit, g - 1.0, g)


@triton.jit
def siglip_terms(cos, scale, bias, hit, LABEL: tl.constexpr):
    """Loss softplus(u) and G = dloss/dz for a tile of cosines; u = -z where `hit`, z elsewhere.

    With t = exp(-|u|) in (0, 1]: sigmoid(u) is 1 / (1 + t) or t / (1 + t), with no 1 - x that would lose small ones, and
    softplus(u) = max(u, 0) + log(1 + t). log(1 + t) / t is a polynomial here (fitted by least squares, reweighted until
    the relative error was even: 2e-7): log of a rounded 1 + t would lose every t below 6e-8, and a batch of 32k has
    enough of those to matter. It also keeps the one unit that does exp and division free.
    """
    z = cos * scale + bias
    u = z
    if LABEL:
        u = tl.where(hit, -z, z)
    t = tl.exp(-tl.abs(u))
    p = 1.0 / (1.0 + t)
    s = tl.where(u >= 0, p, t * p)
    g = s
    if LABEL:
        g = tl.where(hit, -s, s)
    q = 0.04408962005 - 0.008539204865 * t
    q = q * t - 0.1076816988
    q = q * t + 0.1774524065
    q = q * t - 0.2449546263
    q = q * t + 0.3327547976
    q = q * t - 0.4999740540
    q = q * t + 0.9999998057
    return tl.maximum(u, 0.0) + t * q, g


@triton.jit(do_not_specialize=["label_offset"])
def _clip_elementwise(
    cos, scale, row_lse, col_lse, out, part, R, M, label_offset,
    COLUMNS: tl.constexpr, GROW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(M, BN)
    pid = tl.program_id(0)
    rows = (pid // across) * BM + tl.arange(0, BM)
    cols = (pid % across) * BN + tl.arange(0, BN)
    inside = (rows < R)[:, None] & (cols < M)[None, :]
    at = rows.to(tl.int64)[:, None] * M + cols[None, :]
    c = tl.load(cos + at, mask=inside, other=0.0).to(tl.float32)
    by_row = tl.load(row_lse + rows, mask=rows < R, other=0.0)
    by_col = by_row
    if COLUMNS:
        by_col = tl.load(col_lse + cols, mask=cols < M, other=0.0)
    hit = cols[None, :] == (rows + label_offset)[:, None]
    g = clip_gradient(c, tl.load(scale), by_row, by_col, hit, COLUMNS)
    tl.store(out + at, (g * GROW).to(out.dtype.element_ty), mask=inside)
    tl.store(part + pid, tl.sum(tl.sum(tl.where(inside, g * c, 0.0), 1), 0))


@triton.jit(do_not_specialize=["label_offset"])
def _siglip_elementwise(
    cos, scale, bias, out, part, R, M, label_offset,
    LABEL: tl.constexpr, GROW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(M, BN)
    pid = tl.program_id(0)
    rows = (pid // across) * BM + tl.arange(0, BM)
    cols = (pid % across) * BN + tl.arange(0, BN)
    inside = (rows < R)[:, None] & (cols < M)[None, :]
    at = rows.to(tl.int64)[:, None] * M + cols[None, :]
    c = tl.load(cos + at, mask=inside, other=0.0).to(tl.float32)
    hit = cols[None, :] == (rows + label_offset)[:, None]
    loss, g = siglip_terms(c, tl.load(scale), tl.load(bias), hit, LABEL)
    if out is not None:
        tl.store(out + at, (g * GROW).to(out.dtype.element_ty), mask=inside)
    programs = tl.num_programs(0)
    tl.store(part + pid, tl.sum(tl.sum(tl.where(inside, loss, 0.0), 1), 0))
    tl.store(part + programs + pid, tl.sum(tl.sum(tl.where(inside, g * c, 0.0), 1), 0))
    tl.store(part + 2 * programs + pid, tl.sum(tl.sum(tl.where(inside, g, 0.0), 1), 0))


@triton.jit
def _capped(x, cap):
    """cap * tanh(x / cap), by the form whose exponential cannot overflow."""
    t = tl.exp(-2.0 * tl.abs(x / cap))
    y = cap * (1.0 - t) / (1.0 + t)
    return tl.where(x < 0, -y, y)


@triton.jit
def _row_pass(x, width, target, scale, cap, SOFTCAP: tl.constexpr, BN: tl.constexpr):
    """Log-sum-exp of one row, and the logit at `target`.

    Every lane keeps a maximum and a sum of its own, and one exponential serves both cases: the larger of the old and
    the new value becomes the maximum, and exp(-|difference|) is what the other one counts. The target's logit is picked
    up on the way, by index, and not loaded: in place, another warp might have overwritten it by then.
    """
    lane = tl.arange(0, BN)
    peak = tl.full((BN,), LOWEST, tl.float32)
    total = tl.zeros((BN,), tl.float32)
    hit = tl.zeros((BN,), tl.float32)
    for start in range(0, width, BN):
        cols = start + lane
        z = tl.load(x + cols, mask=cols < width, other=float("-inf")).to(tl.float32) * scale
        if SOFTCAP:
            z = tl.where(cols < width, _capped(z, cap), float("-inf"))
        e = tl.exp(-tl.abs(z - peak))
        total = tl.where(z > peak, total * e + 1.0, total + e)
        peak = tl.maximum(peak, z)
        hit += tl.where(cols == target, z, 0.0)
    top = tl.max(peak, 0)
    return top + tl.log(tl.sum(total * tl.exp(peak - top), 0)), tl.sum(hit, 0)


@triton.jit
def _cross_entropy(
    logits, target, upstream, loss, out, V, cap,
    GRADIENT: tl.constexpr, UPSTREAM: tl.constexpr, SOFTCAP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    y = tl.load(target + row)
    x = logits + row * V
    lse, hit = _row_pass(x, V, y, 1.0, cap, SOFTCAP, BN)
    tl.store(loss + row, lse - hit)
    if GRADIENT:
        weight = 1.0
        if UPSTREAM:
            weight = tl.load(upstream + row)
        lane = tl.arange(0, BN)
        for start in range(0, V, BN):
            cols = start + lane
            z = tl.load(x + cols, mask=cols < V, other=0.0).to(tl.float32)
            slope = weight
            if SOFTCAP:
                z = _capped(z, cap)
                slope = weight * (1.0 - (z / cap) * (z / cap))
            p = tl.exp(z - lse)
            g = tl.where(cols == y, p - 1.0, p) * slope
            tl.store(out + row * V + cols, g.to(out.dtype.element_ty), mask=cols < V)


@triton.jit
def _row_lse(cos, scale, out, M, BN: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lse, _ = _row_pass(cos + row * M, M, -1, tl.load(scale), 1.0, False, BN)
    tl.store(out + row, lse)


@triton.jit
def _col_partials(cos, scale, peaks, totals, R, M, span, BM: tl.constexpr, BN: tl.constexpr):
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    by = tl.load(scale)
    peak = tl.full((BM, BN), LOWEST, tl.float32)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(split * span, tl.minimum(split * span + span, R), BM):
        rows = start + tl.arange(0, BM)
        inside = (rows < R)[:, None] & (cols < M)[None, :]
        at = rows.to(tl.int64)[:, None] * M + cols[None, :]
        z = tl.where(inside, tl.load(cos + at, mask=inside, other=0.0).to(tl.float32) * by, float("-inf"))
        e = tl.exp(-tl.abs(z - peak))
        total = tl.where(z > peak, total * e + 1.0, total + e)
        peak = tl.maximum(peak, z)
    top = tl.max(peak, 0)
    at_col = split.to(tl.int64) * M + cols
    tl.store(peaks + at_col, top, mask=cols < M)
    tl.store(totals + at_col, tl.sum(total * tl.exp(peak - top[None, :]), 0), mask=cols < M)


def added(part: Tensor) -> Tensor:
    """Partial sums (..., programs) fp32 -> (...) fp32, added in float64: there may be 100,000 of them."""
    return part.sum(dim=-1, dtype=torch.float64).float()


def clip_grad_elementwise(
    cos: Tensor, scale: Tensor, row_lse: Tensor, col_lse: Tensor | None, label_offset: int, out: Tensor,
    *, grow: int = 1, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """The unscaled gradient of the contrastive loss by its logits, from cosines (CLIP, 2103.00020, figure 3).

    cos (R, M) any float; scale () fp32; row_lse (R,) and col_lse (M,) or None fp32, of scale * cos; row i matches column
    i + label_offset. Writes G = softmax(row) + softmax(column) - 2 onehot, or softmax(row) - onehot without col_lse, times
    `grow`, to out (R, M) any float, which may be `cos` itself. Returns (programs,) fp32, to be `added`: sums of G * cos,
    from G before rounding.
    """
    (height, width), device = cos.shape, cos.device
    tile = tile or tiles.pick_here("clip_elementwise", device, cos.dtype)
    grid = (triton.cdiv(height, tile.bm) * triton.cdiv(width, tile.bn),)
    part = torch.empty(grid, dtype=torch.float32, device=device)
    with use_device(device):
        _clip_elementwise[grid](
            cos, scale, row_lse, row_lse if col_lse is None else col_lse, out, part, height, width, label_offset,
            COLUMNS=col_lse is not None, GROW=grow, **tile.sides,
        )  # fmt: skip
    return part


def siglip_grad_elementwise(
    cos: Tensor, scale: Tensor, bias: Tensor, label_offset: int | None, out: Tensor | None,
    *, grow: int = 1, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """Loss and its gradient by the logits z = scale * cos + bias, from cosines (SigLIP, 2303.15343, section 3.2).

    cos (R, M) any float; scale, bias () fp32; row i matches column i + label_offset, nothing matches where it is None.
    Writes G = -y sigmoid(-y z), times `grow`, to out (R, M) any float, which may be `cos` itself or None. Returns
    (3, programs) fp32, to be `added`: sums of softplus(-y z), of G * cos and of G.
    """
    (height, width), device = cos.shape, cos.device
    tile = tile or tiles.pick_here("siglip_elementwise", device, cos.dtype)
    grid = (triton.cdiv(height, tile.bm) * triton.cdiv(width, tile.bn),)
    part = torch.empty((3, *grid), dtype=torch.float32, device=device)
    with use_device(device):
        _siglip_elementwise[grid](
            cos, scale, bias, out, part, height, width, label_offset or 0,
            LABEL=label_offset is not None, GROW=grow, **tile.sides,
        )  # fmt: skip
    return part


def ce_grad(
    logits: Tensor, target: Tensor, upstream: Tensor | None, softcap: float | None, out: Tensor | None,
    *, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """Cross-entropy of every row, and its gradient by the logits, which may overwrite them.

    logits (R, V) any float; target (R,) int64, all valid; upstream (R,) fp32 or None: what the row's gradient is
    multiplied by; softcap c: logits count as z = c tanh(x / c) (Gemma 2, 2408.00118, section 2) and the gradient is by
    x. Writes (softmax - onehot) upstream (1 - (z / c)^2) to out (R, V) any float, where there is one. Returns loss (R,)
    fp32.
    """
    (height, width), device = logits.shape, logits.device
    tile = tile or tiles.pick_here("cross_entropy", device, logits.dtype)
    loss = torch.empty(height, dtype=torch.float32, device=device)
    with use_device(device):
        _cross_entropy[(height,)](
            logits, target, loss if upstream is None else upstream, loss, logits if out is None else out, width,
            float(softcap or 1), GRADIENT=out is not None, UPSTREAM=upstream is not None, SOFTCAP=softcap is not None,
            BN=tile.bn, num_warps=tile.warps,
        )  # fmt: skip
    return loss


def ce_loss(logits: Tensor, target: Tensor, softcap: float | None, *, tile: Tile | None = None) -> Tensor:
    """Cross-entropy of every row, as `ce_grad` and without a gradient. Returns (R,) fp32."""
    return ce_grad(logits, target, None, softcap, None, tile=tile)


def row_lse(cos: Tensor, scale: Tensor, *, tile: Tile | None = None) -> Tensor:
    """Log-sum-exp of scale * cos over each row. cos (R, M) any float, scale () fp32. Returns (R,) fp32."""
    (height, width), device = cos.shape, cos.device
    tile = tile or tiles.pick_here("row_lse", device, cos.dtype)
    out = torch.empty(height, dtype=torch.float32, device=device)
    with use_device(device):
        _row_lse[(height,)](cos, scale, out, width, BN=tile.bn, num_warps=tile.warps)
    return out


def col_partials(cos: Tensor, scale: Tensor, *, tile: Tile | None = None) -> tuple[Tensor, Tensor]:
    """For one chunk of rows, the maximum over each column of scale * cos and the sum of exp(scale * cos - maximum).

    cos (R, M) any float, scale () fp32. Returns two (M,) fp32.
    """
    (height, width), device = cos.shape, cos.device
    tile = tile or tiles.pick_here("col_partials", device, cos.dtype)
    span = 16 * tile.bm  # rows per program: enough programs for the card, few enough partials
    grid = (triton.cdiv(width, tile.bn), triton.cdiv(height, span))
    peaks, totals = torch.empty((2, grid[1], width), dtype=torch.float32, device=device)
    with use_device(device):
        _col_partials[grid](cos, scale, peaks, totals, height, width, span, **tile.sides)
    if grid[1] == 1:
        return peaks[0], totals[0]
    top = peaks.amax(dim=0)
    return top, (totals * (peaks - top).exp_()).sum(dim=0)
