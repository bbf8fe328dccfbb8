"""The public ops on Triton kernels in the interpreter, whole: forward, chunks, backward. Run by test_kernels.py in a process
of its own, because TRITON_INTERPRET must be set before a kernel is imported."""

import dataclasses
import os

assert os.environ.get("TRITON_INTERPRET") == "1", "run me through tests/test_kernels.py"

import pytest
import torch
import torch.nn.functional as F

from mpm_lite import ops
from mpm_lite.ops import chunked, plan

GRADIENT = {torch.float32: 1e-5, torch.float16: 1e-3}


@pytest.fixture(params=["triton", "chunked with elementwise kernels"])
def impl(request, monkeypatch):
    """Both ways in which kernels are used; the second is what a T4 runs."""
    if request.param == "triton":
        return "triton"
    decide = plan.decide
    monkeypatch.setattr(plan, "decide", lambda *a, **k: dataclasses.replace(decide(*a, **k), elementwise=True, piece=4))
    return "chunked"


def unit(n, d, seed, dtype):
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=-1).to(dtype)


def judge(fn, inputs, dtype, impl, chunk_bytes, upstream=1.7, **options):
    """Against the float64 reference on the same rounded numbers."""

    def results(tensors, **how):
        learn = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in tensors]
        loss = fn(*learn, **options, **how)
        (loss * upstream).sum().backward()
        return [loss.detach(), *(t.grad for t in learn if t.requires_grad)]

    truth = results([t.double() if t.is_floating_point() else t for t in inputs], impl="reference")
    found = results(inputs, impl=impl, chunk_bytes=chunk_bytes)
    # Logits of a vocabulary are kept in the input dtype on a card: the loss inherits one rounding of them.
    spread = 1e-5 * max(1.0, float(truth[0].abs().max()))
    torch.testing.assert_close(found[0].double(), truth[0], rtol=0, atol=spread)
    for got, right in zip(found[1:], truth[1:], strict=True):
        allowed = 1e-4 if right.ndim == 0 else GRADIENT[dtype]
        assert (
            torch.isfinite(got).all() and float((got.double() - right).norm()) <= allowed * float(right.norm()) + 1e-9
        )


@pytest.mark.parametrize("dtype", list(GRADIENT))
@pytest.mark.parametrize(
    "n, m, d, offset, scale", [*((37, 37, 17, 0, scale) for scale in (1.0, 14.3, 100.0)), (20, 50, 16, 9, 14.3)]
)
def test_clip_loss(n, m, d, offset, scale, dtype, impl):
    inputs = [unit(n, d, 0, dtype), unit(m, d, 1, dtype), torch.tensor(scale)]
    judge(ops.clip_loss, inputs, dtype, impl, 8 * m * 15, label_offset=offset)


def test_log_sum_exps_merge_over_steps(impl, monkeypatch):
    """As over a million columns, where the partial results of all rows would not fit into a chunk's bytes."""
    a, b, scale = unit(37, 16, 0, torch.float32), unit(50, 16, 1, torch.float32), torch.tensor(14.3)
    monkeypatch.setattr(chunked, "_rows_of_lse", lambda *_: 11)
    chosen = plan.make_plan("clip_loss", a.device, a.dtype, 50, impl)
    row, col = chunked.lse(a, b, scale, True, chosen)
    z = scale.double() * a.double() @ b.double().T
    torch.testing.assert_close(row.double(), z.logsumexp(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(col.double(), z.logsumexp(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", list(GRADIENT))
@pytest.mark.parametrize("offset", [0, 7, None])
def test_siglip_loss(offset, dtype, impl):
    inputs = [unit(20, 16, 0, dtype), unit(41, 16, 1, dtype), torch.tensor(14.3), torch.tensor(-10.0)]
    judge(ops.siglip_loss, inputs, dtype, impl, 8 * 41 * 9, label_offset=offset)


@pytest.mark.parametrize("dtype", list(GRADIENT))
@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_linear_cross_entropy(softcap, reduction, reads, dtype, impl, monkeypatch):
    monkeypatch.setattr(ops, "_may_read", lambda *_: reads)  # on a card values are not read
    g = torch.Generator().manual_seed(3)
    x, w, b = (torch.randn(*s, generator=g).to(dtype) for s in ((23, 12), (101, 12), (101,)))
    target = torch.randint(0, 101, (23,), generator=g)
    target[[2, 22]] = -100
    upstream = torch.linspace(-1, 2, 23) if reduction == "none" else 1.7
    judge(
        ops.linear_cross_entropy,
        [x, w, target, b],
        dtype,
        impl,
        8 * 101 * 6,
        upstream,
        reduction=reduction,
        softcap=softcap,
    )


def test_the_gradient_of_a_plain_sum_is_one_number_for_all_rows(impl):
    x, w = unit(12, 8, 0, torch.float32), unit(30, 8, 1, torch.float32)
    found = {}
    for reduction in ("sum", "none"):
        learn = x.clone().requires_grad_()
        ops.linear_cross_entropy(learn, w, torch.arange(12), reduction=reduction, impl=impl).sum().backward()
        found[reduction] = learn.grad
    torch.testing.assert_close(found["sum"], found["none"])


@pytest.mark.parametrize("where", ["inside", "forward only", "backward only"])
@pytest.mark.parametrize("op", ["clip_loss", "siglip_loss", "linear_cross_entropy"])
def test_autocast_changes_the_matrices_dtype_and_nothing_else(op, where, impl):
    """As test_ops_autocast.py has it for the other implementations, with the kernels in place of torch's own steps."""
    a, b = unit(13, 8, 0, torch.float32), unit(13, 8, 1, torch.float32)
    target = torch.arange(13).masked_fill(torch.arange(13) == 4, -100)
    loss_of = {
        "clip_loss": lambda x, y: ops.clip_loss(x, y, 14.3, impl=impl, chunk_bytes=8 * 13 * 5),
        "siglip_loss": lambda x, y: ops.siglip_loss(x, y, 14.3, -10.0, impl=impl, chunk_bytes=8 * 13 * 5),
        "linear_cross_entropy": lambda x, y: ops.linear_cross_entropy(
            x, y, target, impl=impl, chunk_bytes=4 * 13 * 5, reduction="none"
        ).sum(),
    }[op]

    def gradients(x, y, forward=False, backward=False):
        learn = [t.clone().requires_grad_() for t in (x, y)]
        with torch.autocast("cpu", torch.float16, enabled=forward):
            loss = loss_of(*learn)
        with torch.autocast("cpu", torch.float16, enabled=backward):
            loss.backward()
        return [loss.detach(), *(t.grad for t in learn)]

    found = gradients(a, b, where != "backward only", where != "forward only")
    rounded = [a, b] if where == "backward only" else [a.half(), b.half()]
    by_hand = gradients(*rounded)
    assert all(torch.equal(x, y.float()) for x, y in zip(found, by_hand, strict=True))


def test_siglip_without_gradient_is_the_same_loss(impl):
    """The kernels then write no gradient, and add up the same terms."""
    a, b = unit(20, 8, 0, torch.float32), unit(41, 8, 1, torch.float32)
    learning = ops.siglip_loss(a.clone().requires_grad_(), b, 14.3, -10.0, label_offset=3, impl=impl)
    assert torch.equal(ops.siglip_loss(a, b, 14.3, -10.0, label_offset=3, impl=impl), learning.detach())


@pytest.mark.parametrize("dtype", list(GRADIENT))
def test_ranks(dtype):
    g = torch.Generator().manual_seed(5)
    query, cand = (torch.randint(-2, 3, (n, 6), generator=g).to(dtype) for n in (31, 57))
    target = torch.randint(0, 57, (31,), generator=g)
    groups = (torch.randint(0, 9, (31,), generator=g), torch.randint(0, 9, (57,), generator=g))
    for mates in (None, groups):
        plain = ops.retrieval_ranks(query, cand, target, groups=mates, return_ties=True, impl="reference")
        found = ops.retrieval_ranks(query, cand, target, groups=mates, return_ties=True, impl="triton")
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def test_twice_the_same_bits(impl):
    x, w = (unit(40, 8, s, torch.float16).requires_grad_() for s in (0, 1))
    grads = [torch.autograd.grad(ops.clip_loss(x, w, 14.3, impl=impl, chunk_bytes=4000), (x, w)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_float64_has_no_kernel():
    with pytest.raises(RuntimeError, match="no float64 kernel"):
        ops.clip_loss(torch.eye(3).double(), torch.eye(3).double(), 1.0, impl="triton")
