"""The contrastive kernels: a matrix product whose results are used up in registers (sm_80 on).

`lse` keeps of N x M logits only two vectors (online softmax, 1805.02867); `clip_grad` and `siglip_grad` write the
gradient by the logits for a chunk of rows, which cuBLAS then multiplies by the features. No atomics: every program
writes partial results of its own and torch merges them, so a run repeats bit for bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mpm_lite.ops.kernels import interpreting, programs_wanted, tiles, use_device
from mpm_lite.ops.kernels.elementwise import added, clip_gradient, siglip_terms
from mpm_lite.ops.kernels.tiles import Tile


@triton.jit
def tile_product(
    a, b, a_rows, b_rows, D, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """Rows `a_rows` of a (., D) times rows `b_rows` of b (., D), both within bounds: (BM, BN) fp32.

    D is a multiple of BD: `padded` sees to that, so nothing is masked here and every load is a full one. UPCAST:
    Triton's interpreter multiplies the bits of bf16.
    """
    depth = tl.arange(0, BD)
    a_at = a + (a_rows[:, None] * D + depth[None, :])
    b_at = b + (b_rows[None, :] * D + depth[:, None])
    acc = tl.zeros((BM, BN), tl.float32)
    for _ in range(0, D, BD):
        x = tl.load(a_at)
        y = tl.load(b_at)
        if UPCAST:
            x = x.to(tl.float32)
            y = y.to(tl.float32)
        acc = tl.dot(x, y, acc, input_precision="ieee")
        a_at += BD
        b_at += BD
    return acc


@triton.jit
def _half_of(x, SIDE: tl.constexpr, BM: tl.constexpr, HALF: tl.constexpr):
    left, right = tl.split(tl.permute(tl.reshape(x, (BM, 2, HALF)), (0, 2, 1)))
    if SIDE == 0:
        return left
    else:
        return right


@triton.jit
def quarter_of(x, QUARTER: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """The columns from QUARTER * BN / 4 on, BN / 4 of them. What is computed from one quarter of the results fits into
    registers next to them; from all at once it would not. The quarters lie in registers already, nothing moves."""
    return _half_of(_half_of(x, QUARTER // 2, BM, BN // 2), QUARTER % 2, BM, BN // 4)


@triton.jit
def _place(pid, down, across, GROUP: tl.constexpr):
    """Row and column of tile `pid`: GROUP tiles down, then the next column, so that neighbours in time share reads."""
    first = (pid // (GROUP * across)) * GROUP
    height = tl.minimum(down - first, GROUP)
    inner = pid % (GROUP * across)
    return first + inner % height, inner // height


@triton.jit
def _lse(
    img, txt, scale, row_part, col_part, N, M, D, span,
    COLUMNS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    split = tl.program_id(1)
    row = tl.arange(0, BM)
    height = N - block * BM  # rows and columns left from here: offsets within a tile fit into 32 bits, others may not
    img += block.to(tl.int64) * BM * D
    txt += split.to(tl.int64) * span * D
    col_part += block.to(tl.int64) * M
    by = tl.load(scale)
    peak = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    for start in range(split * span, tl.minimum(split * span + span, M), BN):
        last = M - start - 1
        cos = tile_product(
            img, txt, tl.minimum(row, height - 1), tl.minimum(tl.arange(0, BN), last), D, BM, BN, BD, UPCAST
        )
        txt += BN * D
        for quarter in tl.static_range(4):
            col = quarter * (BN // 4) + tl.arange(0, BN // 4)
            z = by * quarter_of(cos, quarter, BM, BN)
            if COLUMNS:
                down = tl.where((row < height)[:, None], z, float("-inf"))
                top = tl.max(down, 0)
                mass = tl.sum(tl.exp(down - top[None, :]), 0)
                tl.store(col_part + start + col, top + tl.log(mass), mask=col <= last)
            z = tl.where((col <= last)[None, :], z, float("-inf"))
            higher = tl.maximum(peak, tl.max(z, 1))
            total = total * tl.exp(peak - higher) + tl.sum(tl.exp(z - higher[:, None]), 1)
            peak = higher
    tl.store(row_part + split.to(tl.int64) * N + block * BM + row, peak + tl.log(total), mask=row < height)


@triton.jit(do_not_specialize=["label_offset"])
def _clip_grad(
    img, txt, scale, row_lse, col_lse, out, part, R, M, D, label_offset,
    COLUMNS: tl.constexpr, GROW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    down, across = _place(pid, tl.cdiv(R, BM), tl.cdiv(M, BN), 8)
    row = tl.arange(0, BM)
    first_row = down.to(tl.int64) * BM  # offsets within a tile fit into 32 bits, others may not
    first_col = across.to(tl.int64) * BN
    safe_row = tl.minimum(row, R - down * BM - 1)
    last = M - across * BN - 1
    cos = tile_product(
        img + first_row * D, txt + first_col * D, safe_row, tl.minimum(tl.arange(0, BN), last), D, BM, BN, BD, UPCAST
    )
    by = tl.load(scale)
    by_row = tl.load(row_lse + first_row + safe_row)
    dot = tl.zeros((BM,), tl.float32)
    for quarter in tl.static_range(4):
        col = quarter * (BN // 4) + tl.arange(0, BN // 4)
        c = quarter_of(cos, quarter, BM, BN)
        by_col = by_row
        if COLUMNS:
            by_col = tl.load(col_lse + first_col + tl.minimum(col, last))
        hit = (col + (across * BN - down * BM - label_offset))[None, :] == row[:, None]
        g = clip_gradient(c, by, by_row, by_col, hit, COLUMNS)
        inside = (row < R - down * BM)[:, None] & (col <= last)[None, :]
        dot += tl.sum(tl.where(inside, g * c, 0.0), 1)
        at = out + first_row * M + first_col + (row[:, None] * M + col[None, :])
        tl.store(at, (g * GROW).to(out.dtype.element_ty), mask=inside)
    tl.store(part + pid, tl.sum(dot, 0))


@triton.jit(do_not_specialize=["label_offset"])
def _siglip_grad(
    img, txt, scale, bias, out, part, R, M, D, label_offset,
    LABEL: tl.constexpr, GROW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    down, across = _place(pid, tl.cdiv(R, BM), tl.cdiv(M, BN), 8)
    row = tl.arange(0, BM)
    first_row = down.to(tl.int64) * BM
    first_col = across.to(tl.int64) * BN
    safe_row = tl.minimum(row, R - down * BM - 1)
    last = M - across * BN - 1
    cos = tile_product(
        img + first_row * D, txt + first_col * D, safe_row, tl.minimum(tl.arange(0, BN), last), D, BM, BN, BD, UPCAST
    )
    by = tl.load(scale)
    plus = tl.load(bias)
    loss_sum = tl.zeros((BM,), tl.float32)
    cos_sum = tl.zeros((BM,), tl.float32)
    g_sum = tl.zeros((BM,), tl.float32)
    for quarter in tl.static_range(4):
        col = quarter * (BN // 4) + tl.arange(0, BN // 4)
        c = quarter_of(cos, quarter, BM, BN)
        hit = (col + (across * BN - down * BM - label_offset))[None, :] == row[:, None]
        loss, g = siglip_terms(c, by, plus, hit, LABEL)
        inside = (row < R - down * BM)[:, None] & (col <= last)[None, :]
        g = tl.where(inside, g, 0.0)
        loss_sum += tl.sum(tl.where(inside, loss, 0.0), 1)
        cos_sum += tl.sum(g * c, 1)
        g_sum += tl.sum(g, 1)
        if out is not None:
            at = out + first_row * M + first_col + (row[:, None] * M + col[None, :])
            tl.store(at, (g * GROW).to(out.dtype.element_ty), mask=inside)
    programs = tl.num_programs(0)
    tl.store(part + pid, tl.sum(loss_sum, 0))
    tl.store(part + programs + pid, tl.sum(cos_sum, 0))
    tl.store(part + 2 * programs + pid, tl.sum(g_sum, 0))


def product_options(tile: Tile, features: Tensor) -> dict:
    """The keyword arguments of every kernel with a `tile_product`, and its launch options."""
    upcast = interpreting() and features.dtype == torch.bfloat16
    return tile.sides | {"BD": tile.bd, "UPCAST": upcast, "num_stages": tile.stages}


def padded(tile: Tile, *features: Tensor) -> list[Tensor]:
    """The features with zeros added until their width is a multiple of tile.bd, and at an address fit for full loads.

    Copies only where needed; widths of real models are multiples of 64. Without it every load would go by two bytes.
    """
    extra = -features[0].shape[1] % tile.bd
    return [F.pad(x, (0, extra)) if extra else x.clone() if x.data_ptr() % 16 else x for x in features]


def spans(blocks: int, columns: int, tile: Tile, device: torch.device) -> tuple[int, int]:
    """(columns per program, programs side by side): `blocks` of rows alone may leave most of a card idle."""
    across = triton.cdiv(columns, tile.bn)
    splits = min(across, max(1, triton.cdiv(programs_wanted(device), blocks)))
    span = triton.cdiv(across, splits) * tile.bn
    return span, triton.cdiv(columns, span)


def _merged(part: Tensor) -> Tensor:
    """Log-sum-exp over the first dimension of partial ones (S, N), which are overwritten: they may be large."""
    if len(part) == 1:
        return part[0]
    top = part.amax(dim=0)
    return top + part.sub_(top).exp_().sum(dim=0).log_()


def lse(
    img: Tensor, txt: Tensor, scale: Tensor, *, columns: bool, tile: Tile | None = None
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp of z = scale * img @ txt.T over each row, and over each column if asked, in one sweep: 2 N M D FLOPs.

    img (N, D), txt (M, D) fp16, bf16 or fp32; scale () fp32. A program keeps a block of rows, walks over the columns
    with a running maximum and sum (1805.02867), and leaves for every column the log-sum-exp over its rows. Returns
    (N,) fp32 and (M,) fp32 or None. Above that it takes 4 bytes for each column and block of rows.
    """
    height, width, device = len(img), len(txt), img.device
    tile = tile or tiles.pick_here("lse", device, img.dtype, img.shape[1])
    img, txt = padded(tile, img, txt)
    blocks = triton.cdiv(height, tile.bm)
    span, splits = spans(blocks, width, tile, device)
    row_part = torch.empty((splits, height), dtype=torch.float32, device=device)
    col_part = torch.empty((blocks, width), dtype=torch.float32, device=device) if columns else None
    with use_device(device):
        _lse[(blocks, splits)](
            img, txt, scale, row_part, col_part if columns else row_part, height, width, img.shape[1], span,
            COLUMNS=columns, **product_options(tile, img),
        )  # fmt: skip
    return _merged(row_part), _merged(col_part) if columns else None


def clip_grad(
    rows: Tensor, txt: Tensor, scale: Tensor, row_lse: Tensor, col_lse: Tensor | None, label_offset: int, out: Tensor,
    *, grow: int = 1, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """The unscaled gradient of the contrastive loss by its logits, for a chunk of rows (CLIP, 2103.00020, figure 3).

    rows (R, D), txt (M, D) fp16, bf16 or fp32; scale () fp32; row_lse (R,), col_lse (M,) or None fp32, from `lse`; row i
    matches column i + label_offset. Writes G = softmax(row) + softmax(column) - 2 onehot, or softmax(row) - onehot
    without col_lse, times `grow`, to out (R, M). Returns () fp32: the sum of G * cosine, from G before rounding.
    """
    (height, width), device = out.shape, rows.device
    tile = tile or tiles.pick_here("clip_grad", device, rows.dtype, rows.shape[1])
    rows, txt = padded(tile, rows, txt)
    grid = (triton.cdiv(height, tile.bm) * triton.cdiv(width, tile.bn),)
    part = torch.empty(grid, dtype=torch.float32, device=device)
    with use_device(device):
        _clip_grad[grid](
            rows, txt, scale, row_lse, row_lse if col_lse is None else col_lse, out, part,
            height, width, rows.shape[1], label_offset,
            COLUMNS=col_lse is not None, GROW=grow, **product_options(tile, rows),
        )  # fmt: skip
    return added(part)


def siglip_grad(
    rows: Tensor, txt: Tensor, scale: Tensor, bias: Tensor, label_offset: int | None, out: Tensor | None,
    *, grow: int = 1, tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss and its gradient by the logits z = scale * cosine + bias, for a chunk of rows (SigLIP, 2303.15343).

    rows (R, D), txt (M, D) fp16, bf16 or fp32; scale, bias () fp32; row i matches column i + label_offset, nothing
    matches where it is None. Writes G = -y sigmoid(-y z), times `grow`, to out (R, M), where there is one. Returns three
    () fp32: the sums of softplus(-y z), of G * cosine and of G.
    """
    height, width, device = len(rows), len(txt), rows.device
    tile = tile or tiles.pick_here("siglip_grad", device, rows.dtype, rows.shape[1])
    rows, txt = padded(tile, rows, txt)
    grid = (triton.cdiv(height, tile.bm) * triton.cdiv(width, tile.bn),)
    part = torch.empty((3, *grid), dtype=torch.float32, device=device)
    with use_device(device):
        _siglip_grad[grid](
            rows, txt, scale, bias, out, part, height, width, rows.shape[1], label_offset or 0,
            LABEL=label_offset is not None, GROW=grow, **product_options(tile, rows),
        )  # fmt: skip
    return added(part).unbind()
