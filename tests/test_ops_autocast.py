"""Under autocast an op gives what it gives of the same rounded matrices outside, wherever its backward is called."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mpm_lite import ops

IMPLS = ("reference", "chunked")
# Relative error of a gradient (Frobenius norm) against float64, the same as outside autocast: see test_ops_chunked.
GRADIENT = {torch.float16: 1e-3, torch.bfloat16: 5e-3}
# Where autocast is on: in the forward, in the backward.
WHERE = {"inside": (True, True), "forward only": (True, False), "backward only": (False, True)}
N, M, D, V = 13, 29, 17, 37


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(rows: int, seed: int) -> Tensor:
    return F.normalize(drawn(rows, D, seed=seed), dim=-1)


def targets() -> Tensor:
    target = torch.arange(N) * 5 % V
    target[[0, 6, 12]] = -100
    return target


# What an op is called with: its loss of (inputs, impl, chunk bytes), and the inputs, of which matrices and vectors are rounded.
Case = tuple[Callable[..., Tensor], list[Tensor]]


def contrast(fn: Callable[..., Tensor], columns: int, *numbers: float, **options: Any) -> Case:
    """A loss of N images and as many texts as there are columns, with its scale and perhaps its bias."""
    inputs = [unit(N, 0), unit(columns, 1), *map(torch.tensor, numbers)]
    return lambda given, impl, size: fn(*given, impl=impl, chunk_bytes=size, **options), inputs


def words(reduction: str, bias: bool = False, softcap: float | None = None) -> Case:
    """The loss of N rows over V words, three rows ignored."""

    def loss(given: list[Tensor], impl: str, size: int) -> Tensor:
        x, weight, *rest = given
        options = {"reduction": reduction, "softcap": softcap, "impl": impl, "chunk_bytes": size}
        return ops.linear_cross_entropy(x, weight, targets(), *rest, **options)

    return loss, [drawn(N, D, seed=2), drawn(V, D, seed=3), *([drawn(V, seed=4)] if bias else [])]


CASES = {
    "clip_loss": contrast(ops.clip_loss, N, 14.3),
    "clip_loss, more texts": contrast(ops.clip_loss, M, 14.3, label_offset=7),
    "clip_loss, log-sum-exps": contrast(
        lambda *given, **how: sum(part.sum() for part in ops.clip_loss(*given, return_lse=True, **how)), N, 14.3
    ),
    "siglip_loss": contrast(ops.siglip_loss, M, 14.3, -10.0, label_offset=7),
    "siglip_loss, no match": contrast(ops.siglip_loss, M, 14.3, -10.0, label_offset=None),
    "cross-entropy, mean": words("mean"),
    "cross-entropy, sum": words("sum", bias=True),
    "cross-entropy, none": words("none"),
    "cross-entropy, none, bias and softcap": words("none", bias=True, softcap=5.0),
}


def rounded(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Matrices and vectors in this dtype; scale and bias of a contrast stay as they are, as they do under autocast."""
    return [t.to(dtype) if t.ndim else t for t in inputs]


def results(
    case: Case, inputs: list[Tensor], impl: str, forward: torch.dtype | None = None, backward: torch.dtype | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients, with autocast in these dtypes in the forward and in the backward; None: without."""

    def under(low: torch.dtype | None) -> Any:
        return nullcontext() if low is None else torch.autocast("cpu", low)

    learning = [t.clone().requires_grad_() for t in inputs]
    with under(forward):
        loss = case[0](learning, impl, 16 * max(N, M, V) * 5)  # chunks of five rows in float64
    # Rows of losses have upstream gradients that differ; no chunk of rows is a whole number of times in N.
    upstream = torch.linspace(-1, 2, N) if loss.ndim else torch.tensor(1.7)
    with under(backward):
        loss.backward(upstream.to(loss.dtype))
    return loss.detach(), [t.grad for t in learning]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("low", list(GRADIENT), ids=str)
@pytest.mark.parametrize("name", CASES)
def test_autocast_changes_the_matrices_dtype_and_nothing_else(
    name: str, low: torch.dtype, given: torch.dtype, impl: str, where: str
) -> None:
    """To the bit what the op gives of matrices that were rounded by hand, and as near to float64."""
    case, inputs = CASES[name], rounded(CASES[name][1], given)
    forward, backward = (low if on else None for on in WHERE[where])
    loss, grads = results(case, inputs, impl, forward, backward)
    by_hand = rounded(inputs, low if forward else given)
    loss_by_hand, grads_by_hand = results(case, by_hand, impl)
    assert loss.dtype == torch.float32 and torch.equal(loss, loss_by_hand)
    true_loss, true_grads = results(case, [t.double() for t in by_hand], "reference")
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-5, atol=1e-5)
    for grad, same, right, t in zip(grads, grads_by_hand, true_grads, inputs, strict=True):
        assert grad.dtype == t.dtype and torch.equal(grad, same.to(t.dtype))
        exact = {torch.float32: 1e-5} | GRADIENT
        allowed = 1e-4 if t.ndim == 0 else max(exact[given], exact[low if forward else given])
        assert float((grad.double() - right).norm()) <= allowed * float(right.norm()) + 1e-9


@pytest.mark.parametrize("name", CASES)
def test_float64_stays_float64_under_autocast(name: str) -> None:
    case, inputs = CASES[name], [t.double() for t in CASES[name][1]]
    loss, grads = results(case, inputs, "chunked", torch.bfloat16, torch.bfloat16)
    true_loss, true_grads = results(case, inputs, "reference")
    torch.testing.assert_close(loss, true_loss, rtol=1e-11, atol=1e-11)
    for grad, right in zip(grads, true_grads, strict=True):
        torch.testing.assert_close(grad, right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("grouped", [False, True])
def test_ranks_under_autocast_are_the_ranks_outside(grouped: bool, impl: str, ties: bool) -> None:
    """A measurement is not rounded: candidates whose scores bfloat16 cannot tell apart keep their order."""
    query, cand = unit(40, 27), unit(60, 28)  # float32 can tell every score from the best one
    target = torch.arange(40)
    groups = (torch.arange(40) % 7, torch.arange(60) % 7) if grouped else None
    how = {"groups": groups, "return_ties": ties}
    right = ops.retrieval_ranks(query.double(), cand.double(), target, impl="reference", **how)
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.retrieval_ranks(query, cand, target, impl=impl, chunk_bytes=3000, **how)
        mixed = ops.retrieval_ranks(query.bfloat16(), cand, target, impl=impl, **how)
    halved = ops.retrieval_ranks(query.bfloat16().double(), cand.double(), target, impl="reference", **how)
    for a, b in ((found, right), (mixed, halved)):
        assert all(map(torch.equal, a, b)) if ties else torch.equal(a, b)
    low = ops.retrieval_ranks(query.bfloat16(), cand.bfloat16(), target, **how)
    assert not torch.equal(low.better if ties else low, right.better if ties else right)  # rounding does change ranks


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
def test_a_batch_whose_rows_are_all_ignored_teaches_nothing(
    given: torch.dtype, reduction: str, impl: str, autocast: bool
) -> None:
    """The loss is what torch's own gives, and the gradient of every input is zero: one such batch must not end a training."""
    nothing = torch.full((N,), -100)
    x, weight, bias = (drawn(*s, seed=7).to(given).requires_grad_() for s in ((N, D), (V, D), (V,)))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = ops.linear_cross_entropy(x, weight, nothing, bias, reduction=reduction, impl=impl)
        loss.sum().backward()
    theirs = F.cross_entropy(drawn(N, V, seed=8), nothing, reduction=reduction)
    torch.testing.assert_close(loss.detach(), theirs, rtol=0, atol=0, equal_nan=True)
    for t in (x, weight, bias):
        assert t.grad.dtype == given and not t.grad.any() and torch.isfinite(t.grad).all()


@pytest.mark.parametrize("op", ["clip_loss", "siglip_loss", "linear_cross_entropy"])
def test_the_reference_stays_composable(op: str) -> None:
    """Its products keep all that torch can do with a plain one: per-sample gradients, Hessians, forward mode."""
    case = {
        "clip_loss": lambda x: ops.clip_loss(x, fixed[: len(x)], 3.0, impl="reference"),
        "siglip_loss": lambda x: ops.siglip_loss(x, fixed[: len(x)], 3.0, -1.0, impl="reference"),
        "linear_cross_entropy": lambda x: ops.linear_cross_entropy(
            x, fixed, torch.arange(len(x)), impl="reference", check=False
        ),
    }[op]
    x, fixed = drawn(3, 4, seed=9).double(), drawn(5, 4, seed=10).double()
    plain = x.clone().requires_grad_()
    case(plain).backward()
    torch.testing.assert_close(torch.func.jacfwd(case)(x), plain.grad)
    torch.testing.assert_close(torch.func.hessian(case)(x), torch.autograd.functional.hessian(case, x))


def test_without_gradient_the_kernels_of_siglip_are_given_nowhere_to_write_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from mpm_lite.ops import chunked, kernels

    given = []

    def sums(*args: Any, grow: int) -> Tensor:
        given.append(args[-1])
        return torch.zeros(3, 1)

    def added(part: Tensor) -> Tensor:
        return part.sum(dim=-1)

    fake = SimpleNamespace(siglip_grad=sums, siglip_grad_elementwise=sums, added=added)
    monkeypatch.setattr(kernels, "contrastive", fake, raising=False)
    monkeypatch.setattr(kernels, "elementwise", fake, raising=False)
    scale, bias = torch.tensor(3.0), torch.tensor(-1.0)
    for impl in ("triton", "chunked"):
        plan = SimpleNamespace(impl=impl, elementwise=True, exact=torch.float32, piece=4, grow=1)
        for need in (False, True):
            g, *_ = chunked.siglip_grad(unit(4, 0), unit(6, 1), scale, bias, 0, need, plan)
            same = g is None if given[-1] is None else g.data_ptr() == given[-1].data_ptr()
            assert same and (g is not None) == need
