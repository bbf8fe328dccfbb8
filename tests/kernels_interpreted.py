"""Every kernel in Triton's interpreter, on the CPU, against float64 on the same rounded inputs.

`test_kernels.py` runs this file in a process of its own, because TRITON_INTERPRET has to be set before the kernels are
imported: TRITON_INTERPRET=1 python -m pytest tests/kernels_interpreted.py. fp32 and fp16 only: the interpreter computes
with the bits of bf16. Memory that nobody has written is NaN throughout, so what a kernel leaves out shows.
"""

import os
from itertools import product

os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
import torch.nn.functional as F

from mpm_lite.ops import kernels, reference
from mpm_lite.ops.kernels import contrastive, elementwise, rank, tiles

FP32, FP16 = torch.float32, torch.float16
GRADIENT = {FP32: 1e-5, FP16: 1e-3}
SMALLEST = {FP32: 1e-9, FP16: 6e-8}  # what a number may be off by anyway: fp16 holds nothing below
SIZES = [(45, 45, 50, 0), (1, 1, 64, 0), (33, 64, 32, 0), (37, 101, 40, 17), (1, 45, 16, 44)]  # N, M, D, label offset


@pytest.fixture(autouse=True)
def poison():
    """torch.empty returns NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def features(n, m, d, dtype, offset=0, seed=0):
    """Unit rows; row i of the first resembles row i + offset of the second, as half-way through training."""
    g = torch.Generator().manual_seed(seed)
    txt = torch.randn(m, d, generator=g, dtype=torch.float64)
    img = txt[offset : offset + n] + 2 * torch.randn(n, d, generator=g, dtype=torch.float64)
    return F.normalize(img, dim=-1).to(dtype), F.normalize(txt, dim=-1).to(dtype)


def number(x):
    return torch.tensor(x, dtype=FP32)


def close(ours, truth, relative, known=0.0):
    """Relative Frobenius norm of the error, beyond `known` for each number; and nothing that is not a number."""
    ours, truth = ours.double(), truth.double()
    assert ours.isfinite().all()
    error = (ours - truth).norm().item()
    assert error <= relative * truth.norm().item() + known * truth.numel() ** 0.5, error / truth.norm().item()


def scalar(ours, truth, relative, least=1.0):
    assert ours.dtype == FP32 and ours.ndim == 0
    assert abs(ours.item() - truth.item()) <= relative * max(least, abs(truth.item())), (ours, truth)


def again(f):
    """f() twice, bit for bit the same; returns the first."""
    first, second = f(), f()
    for a, b in zip(first, second, strict=True):
        assert (a is b is None) or torch.equal(a, b)
    return first


def clip_truth(cos, scale, offset, both):
    """Log-sum-exps, G and sum(G cos) in float64."""
    z = scale.double() * cos
    hit = torch.zeros_like(z)
    hit.diagonal(offset)[: len(z)] = 1
    g = z.softmax(1) + z.softmax(0) - 2 * hit if both else z.softmax(1) - hit
    return z.logsumexp(1), z.logsumexp(0), g, (g * cos).sum()


def siglip_truth(cos, scale, bias, offset):
    z = scale.double() * cos + bias.double()
    y = torch.full_like(z, -1)
    if offset is not None:
        y.diagonal(offset)[: len(z)] = 1
    g = -y * torch.sigmoid(-y * z)
    return F.softplus(-y * z, threshold=1e9).sum(), (g * cos).sum(), g.sum(), g


def test_ready():
    assert kernels.interpreting() and kernels.ready(torch.device("cpu")) == ""
    assert tiles.pick_here("lse", torch.device("cpu"), FP32) == tiles.SMALL


# All sizes at one scale, and the flattest and sharpest logits on a square and on an oblong one.
@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize("size, scale", [*product(SIZES, [14.3]), *product((SIZES[0], SIZES[3]), [1.0, 100.0])])
def test_clip(size, scale, dtype):
    n, m, d, offset = size
    (img, txt), scale = features(n, m, d, dtype, offset), number(scale)
    both = n == m
    cos = img.double() @ txt.double().T
    row, col, g, dot = clip_truth(cos, scale, offset, both)
    row_lse, col_lse = again(lambda: contrastive.lse(img, txt, scale, columns=both))
    assert row_lse.dtype == FP32 and (row_lse - row).abs().max() <= 1e-5 * max(1, row.abs().max())
    assert (col_lse is None) == (not both)
    if both:
        assert col_lse.dtype == FP32 and (col_lse - col).abs().max() <= 1e-5 * max(1, col.abs().max())

    def run():
        out = torch.full((n, m), torch.nan, dtype=dtype)
        return out, contrastive.clip_grad(img, txt, scale, row_lse, col_lse, offset, out)

    out, ours = again(run)
    size_of_sum = (g * cos).abs().sum().item() / 10  # sums of both signs cancel when everything is nearly learnt
    # a logit of size s is known to s * 6e-8 in fp32, and so is 1 - probability: all there is where pairs are learnt
    close(out, g, GRADIENT[dtype], known=2**-24 * scale.item() * max(n, m) ** -0.5)
    scalar(ours, dot, 1e-4, least=max(size_of_sum, 1e-5))


@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize("both", [True, False])
def test_clip_elementwise(both, dtype):
    """From a matrix of cosines, also in place; with row and column log-sum-exps of the same matrix."""
    (img, txt), scale = features(45, 45 if both else 77, 24, FP32, 0 if both else 13), number(14.3)
    offset = 0 if both else 13
    cos = (img @ txt.T).to(dtype)
    row, col, g, dot = clip_truth(cos.double(), scale, offset, both)
    (row_lse,) = again(lambda: (elementwise.row_lse(cos, scale),))
    close(row_lse, row, 1e-6)
    halves = [elementwise.col_partials(part, scale) for part in (cos[:20], cos[20:])]
    peaks, totals = (torch.stack(x) for x in zip(*halves, strict=True))
    col_lse = (peaks + totals.log()).logsumexp(0)
    close(col_lse, col, 1e-6)

    def run(out):
        source = cos.clone()
        out = source if out is None else out
        ours = elementwise.clip_grad_elementwise(source, scale, row_lse, col_lse if both else None, offset, out)
        return out, elementwise.added(ours)

    out, ours = again(lambda: run(torch.full_like(cos, torch.nan)))
    close(out, g, GRADIENT[dtype])
    scalar(ours, dot, 1e-4)
    assert all(torch.equal(a, b) for a, b in zip(run(None), (out, ours), strict=True))
    close(run(torch.full_like(cos, torch.nan, dtype=FP16))[0], g, GRADIENT[FP16])


def test_column_partials_over_many_rows():
    """More rows than one program takes."""
    cos = torch.randn(1100, 40, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    for scale in (1.0, 100.0):
        peaks, totals = elementwise.col_partials(cos, number(scale))
        assert torch.equal(peaks, (cos * scale).amax(0))
        close(peaks + totals.log(), (cos.double() * scale).logsumexp(0), 1e-6)


@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize("scale, bias", [(1.0, 0.0), (14.3, -10.0), (100.0, -60.0)])
@pytest.mark.parametrize("size", SIZES[::3] + [(33, 37, 16, None)])
def test_siglip(size, scale, bias, dtype):
    n, m, d, offset = size
    (img, txt), scale, bias = features(n, m, d, dtype, offset or 0), number(scale), number(bias)
    cos = img.double() @ txt.double().T
    *sums, g = siglip_truth(cos, scale, bias, offset)

    def run():
        out = torch.full((n, m), torch.nan, dtype=dtype)
        return out, *contrastive.siglip_grad(img, txt, scale, bias, offset, out)

    out, *ours = again(run)
    close(out, g, GRADIENT[dtype], known=SMALLEST[dtype])
    scalar(ours[0], sums[0], 1e-5)
    for a, b, weight in zip(ours[1:], sums[1:], (g * cos, g), strict=True):
        scalar(a, b, 1e-4, least=weight.abs().sum().item() / 10)

    matrix = (img.float() @ txt.float().T).to(dtype)
    *sums, g = siglip_truth(matrix.double(), scale, bias, offset)
    before = matrix.clone()
    separate = torch.full_like(matrix, torch.nan)
    ours = elementwise.added(elementwise.siglip_grad_elementwise(matrix, scale, bias, offset, separate))
    assert torch.equal(matrix, before)
    inplace = elementwise.added(elementwise.siglip_grad_elementwise(matrix, scale, bias, offset, matrix))
    assert torch.equal(matrix, separate) and all(torch.equal(a, b) for a, b in zip(ours, inplace, strict=True))
    close(separate, g, GRADIENT[dtype], known=SMALLEST[dtype])
    scalar(ours[0], sums[0], 1e-5)
    for a, b, weight in zip(ours[1:], sums[1:], (g * before.double(), g), strict=True):
        scalar(a, b, 1e-4, least=weight.abs().sum().item() / 10)


def test_gradients_are_written_larger_where_half_precision_would_lose_them():
    """Near the end of training most are below 6e-5. `grow` keeps their digits and leaves the sums alone."""
    cos = torch.linspace(-0.2, 0.2, 64 * 32).view(64, 32)
    scale, bias = number(30.0), number(-18.0)
    *_, g = siglip_truth(cos.double(), scale, bias, None)
    plain, grown = torch.empty(64, 32, dtype=FP16), torch.empty(64, 32, dtype=FP16)
    sums = elementwise.siglip_grad_elementwise(cos, scale, bias, None, plain)
    same = elementwise.siglip_grad_elementwise(cos, scale, bias, None, grown, grow=1024)
    assert torch.equal(sums, same)
    close(grown.double() / 1024, g, 5e-4)
    assert (plain.double() - g).norm() > 3 * (grown.double() / 1024 - g).norm()


def test_siglip_of_the_smallest_and_largest_logits():
    """Relative accuracy where 1 - x or log(1 + x) would lose everything, and no overflow at the other end."""
    z = torch.cat((torch.linspace(-85, 85, 511), torch.tensor([-1e4, 1e4])))[None]
    for label in (None, 0):
        for i in range(0, z.shape[1], 64):
            cos = z[:, i:]
            *sums, g = siglip_truth(cos.double(), number(1.0), number(0.0), label)
            out = torch.full_like(cos, torch.nan)
            loss = elementwise.added(elementwise.siglip_grad_elementwise(cos, number(1.0), number(0.0), label, out))[0]
            assert (out - g).abs().le(2e-6 * g.abs() + 1e-38).all()
            scalar(loss, sums[0], 1e-6)
    few = torch.full((64, 512), -17.0)  # each loss is 4e-8: as many as fill a batch must not vanish
    loss = elementwise.added(elementwise.siglip_grad_elementwise(few, number(1.0), number(0.0), None, few.clone()))[0]
    assert abs(loss.item() / F.softplus(few.double(), threshold=1e9).sum().item() - 1) < 1e-5


@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize("softcap", [None, 5.0, 30.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [(5, 101), (1, 32), (3, 1)])
def test_cross_entropy(size, weighted, softcap, dtype):
    n, v = size
    g = torch.Generator().manual_seed(n)
    logits = (6 * torch.randn(n, v, generator=g)).to(dtype)
    logits[0, 0] = 40
    target = torch.randint(0, v, (n,), generator=g)
    upstream = torch.randn(n, generator=g) if weighted else None
    x = logits.double().requires_grad_()
    z = x if softcap is None else softcap * torch.tanh(x / softcap)
    truth = F.cross_entropy(z, target, reduction="none")
    truth.backward(torch.ones(n, dtype=torch.float64) if upstream is None else upstream.double())

    def run(in_place):
        source = logits.clone()
        out = source if in_place else torch.full_like(logits, torch.nan)
        return out, elementwise.ce_grad(source, target, upstream, softcap, out)

    out, loss = again(lambda: run(False))
    assert loss.dtype == FP32 and (loss - truth).abs().max() <= 1e-5 * max(1, truth.abs().max())
    close(out, x.grad, GRADIENT[dtype], known=SMALLEST[dtype])
    assert all(torch.equal(a, b) for a, b in zip(run(True), (out, loss), strict=True))
    assert torch.equal(elementwise.ce_loss(logits, target, softcap), loss)


@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize("size", [(37, 90, 6), (1, 1, 3), (70, 33, 40), (3, 200, 64)])
@pytest.mark.parametrize("grouped", [False, True])
def test_ranks(grouped, size, dtype):
    """Small integers: every score is exact, so ties are many and the reference is the truth."""
    n, m, d = size
    g = torch.Generator().manual_seed(d)
    query, cand = (torch.randint(-2, 3, (k, d), generator=g).to(dtype) for k in (n, m))
    cand[m // 2 :] = cand[: m - m // 2].clone()  # equal candidates far apart
    target = torch.randint(0, m, (n,), generator=g)
    groups = None
    if grouped:  # large numbers, some of them in one list only
        groups = tuple(10**12 + torch.randint(0, 25, (k,), generator=g) for k in (n, m))
    truth = reference.retrieval_ranks(query, cand, target, groups=groups, return_ties=True)
    ours = again(lambda: rank.rank_counts(query, cand, target, groups))
    for a, b in zip(ours, truth, strict=True):
        assert a.dtype == torch.int64 and torch.equal(a, b)


def test_equal_candidates_tie_whatever_their_score():
    """The target's twin ties with it exactly, whatever tile it stands in.

    Entries are multiples of 2^-11, so that every sum is exact: on a card, equal candidates get the same arithmetic
    wherever they stand, but the interpreter's products are numpy's, and some CPUs' BLAS sums the columns at the edge of
    a tile in another order than those in its middle.
    """
    query, cand = ((2048 * x).round() / 2048 for x in features(40, 90, 48, FP32))
    cand[50:] = cand[:40]
    better, tied, correct = rank.rank_counts(query, cand, torch.arange(40), None)
    assert (tied == 1).all() and (correct == 1).all()
    groups = (torch.arange(40), torch.cat((torch.arange(50), torch.arange(40))))
    better, tied, correct = rank.rank_counts(query, cand, torch.arange(40), groups)
    assert (tied == 0).all() and (correct == 2).all()


@pytest.mark.parametrize("tile", [tiles.Tile(16, 64, 16, 4, 1), tiles.Tile(64, 16, 64, 4, 1)])
def test_oblong_tiles(tile):
    (img, txt), scale = features(50, 50, 40, FP32), number(14.3)
    row, col, g, dot = clip_truth(img.double() @ txt.double().T, scale, 0, True)
    row_lse, col_lse = contrastive.lse(img, txt, scale, columns=True, tile=tile)
    out = torch.full((50, 50), torch.nan)
    ours = contrastive.clip_grad(img, txt, scale, row_lse, col_lse, 0, out, tile=tile)
    close(out, g, 1e-5)
    scalar(ours, dot, 1e-4)
    target = torch.arange(50).flip(0)
    for groups in (None, (torch.arange(50) // 3, torch.arange(50) // 2)):
        truth = reference.retrieval_ranks(img, txt, target, groups=groups, return_ties=True)
        ours = rank.rank_counts(img, txt, target, groups, tile=tile)
        assert all(torch.equal(a, b) for a, b in zip(ours, truth, strict=True))


def test_a_view_at_an_odd_address():
    img, txt = features(20, 20, 32, FP16)
    shifted = torch.empty(20 * 32 + 1, dtype=FP16)[1:].view(20, 32).copy_(img)
    assert shifted.data_ptr() % 16
    ours, theirs = (contrastive.lse(x, txt, number(3.0), columns=True) for x in (shifted, img))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
