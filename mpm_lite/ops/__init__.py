"""The GPU-bound core: contrastive losses, the loss over a large vocabulary, ranking against a large gallery.

Every op has a readable form (reference.py), one in chunks that runs everywhere (chunked.py) and Triton kernels for recent
cards (kernels/); plan.py picks one. Importable with torch alone; triton is imported when a kernel first runs.

The public functions take, beside what reference.py documents:
  impl         "auto", "reference", "chunked" or "triton"
  chunk_bytes  what a chunk may take; default 24 to 64 MiB on a CPU, 256 MiB to 1 GiB on CUDA (plan.BUDGET)
  accum_dtype  dtype of sums and losses; default float32, or float64 for float64 inputs
  check        look for NaN and for targets out of range; default only on a CPU: reading values makes Python wait for CUDA
They raise ValueError for inputs that do not fit and RuntimeError where an implementation cannot run here. Gradients are
exact (nothing is filtered), nothing is atomic, and the same call gives the same bits. Twice differentiable and usable under
torch.func: "reference" only.

Under torch.autocast the losses convert their matrices (and the bias of a layer) to its dtype, as for any product, and then
compute exactly what they would compute of such matrices outside it; whether backward() is called inside or outside makes
no difference. retrieval_ranks measures and does not train: its matrices are not rounded (of two dtypes the wider is taken).

On CUDA no op makes Python wait unless `check` is on, or a scale lies on a CPU. linear_cross_entropy then cannot know how
many rows are ignored, and computes them all, weighted by 0: where most are ignored, turn `check` on or select the rows
yourself.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mpm_lite.ops import chunked as _chunked
from mpm_lite.ops import plan as _planning
from mpm_lite.ops import reference as _reference
from mpm_lite.ops.plan import ChunkPlan, explain
from mpm_lite.ops.reference import Ranks

__all__ = ["Ranks", "clip_loss", "explain", "linear_cross_entropy", "retrieval_ranks", "siglip_loss"]


def _eager(fn: Callable) -> Callable:
    """torch.compiler.disable, but only once somebody compiles: the decorator itself imports dynamo, and with it triton."""
    kept: list[Callable] = []

    @functools.wraps(fn)
    def call(*args: Any, **options: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return fn(*args, **options)
        if not kept:
            kept.append(torch.compiler.disable(fn))
        return kept[0](*args, **options)

    return call


def _matrices(op: str, autocast: Callable[..., list[Tensor]] = _planning.for_product, **named: Tensor) -> list[Tensor]:
    """The matrices, in the dtype that `autocast` gives them, checked and contiguous."""
    named = dict(zip(named, autocast(*named.values()), strict=True))
    _planning.check_matrices(op, **named)
    return [_learning(t).contiguous() for t in named.values()]


def _learning(t: Tensor) -> Tensor:
    """The tensor, detached under no_grad: even there, autograd tells a Function that its inputs need gradients."""
    return t if torch.is_grad_enabled() else t.detach()


def _scalar(op: str, name: str, value: Tensor | float, like: Tensor) -> Tensor:
    if not isinstance(value, Tensor):  # filled there: copying a number to CUDA would make Python wait
        value = torch.full((), value, dtype=torch.float32, device=like.device)
    value = value.to(like.device)
    _planning.check_scalar(op, name, value)
    return _learning(value)


def _looks(check: bool | None, tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" if check is None else check


def _may_read(check: bool | None, tensor: Tensor) -> bool:
    """Whether Python may read values: on a CPU it waits for nobody, elsewhere only where it is to check them anyway."""
    return tensor.device.type == "cpu" or bool(check)


def _plan_loss(op: str, like: Tensor, columns: int, *chosen: Any) -> ChunkPlan:
    """The plan of a loss, `chosen` being impl, chunk_bytes and accum_dtype. RuntimeError inside torch.func, where only the
    reference works."""
    plan = _planning.make_plan(op, like.device, like.dtype, columns, *chosen)
    transforming = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
    if plan.impl != "reference" and transforming():
        raise RuntimeError(f"{op}: only impl='reference' works inside torch.func transforms.")
    return plan


def _finite(op: str, check: bool | None, loss: Tensor, **inputs: Tensor | None) -> None:
    """NaN in an input shows in the loss, so the inputs are only searched once the loss is not finite."""
    if _looks(check, loss) and not bool(torch.isfinite(loss.detach()).all()):
        _planning.check_finite(op, **inputs)


@_eager
def clip_loss(
    img: Tensor, txt: Tensor, logit_scale: Tensor | float, *, label_offset: int = 0, impl: str = "auto",
    chunk_bytes: int | None = None, accum_dtype: torch.dtype | None = None, return_lse: bool = False,
    check: bool | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Symmetric InfoNCE (CLIP, 2103.00020, figure 3): img (N, D), txt (M, D), logit_scale () -> ().

    Row i of `img` matches row i + label_offset of `txt`; for M != N it is the image-to-text direction alone, and across
    processes the loss is the mean of the two local-against-gathered calls. With return_lse also the log-sum-exp of each
    image's logits (N,), without gradient. Raises ValueError on what does not fit.
    """
    op = "clip_loss"
    img, txt = _matrices(op, img=img, txt=txt)
    scale = _scalar(op, "logit_scale", logit_scale, img)
    _planning.check_offset(op, len(img), len(txt), label_offset)
    plan = _plan_loss(op, img, len(txt), impl, chunk_bytes, accum_dtype)
    with _planning.autocast_off(img.device):
        if plan.impl == "reference":
            loss = _reference.clip_loss(img, txt, scale, label_offset=label_offset)
            exact = loss.dtype
            lse = (scale.to(exact) * img.to(exact) @ txt.to(exact).T).logsumexp(1).detach() if return_lse else None
        else:
            loss, lse = _chunked.ClipLoss.apply(img, txt, scale, label_offset, plan)
    _finite(op, check, loss, img=img, txt=txt, logit_scale=scale)
    return (loss, lse) if return_lse else loss


@_eager
def siglip_loss(
    img: Tensor, txt: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float, *, label_offset: int | None = 0,
    impl: str = "auto", chunk_bytes: int | None = None, accum_dtype: torch.dtype | None = None,
    check: bool | None = None,
) -> Tensor:  # fmt: skip
    """The pairwise sigmoid loss (SigLIP, 2303.15343, section 3.2): img (N, D), txt (M, D), scale (), bias () -> ().

    Row i of `img` matches row i + label_offset of `txt`; with None all N x M combinations are negatives. The sum is
    divided by N. Raises ValueError on what does not fit.
    """
    op = "siglip_loss"
    img, txt = _matrices(op, img=img, txt=txt)
    scale = _scalar(op, "logit_scale", logit_scale, img)
    bias = _scalar(op, "logit_bias", logit_bias, img)
    if label_offset is not None:
        _planning.check_offset(op, len(img), len(txt), label_offset)
    plan = _plan_loss(op, img, len(txt), impl, chunk_bytes, accum_dtype)
    with _planning.autocast_off(img.device):
        if plan.impl == "reference":
            loss = _reference.siglip_loss(img, txt, scale, bias, label_offset=label_offset)
        else:
            loss = _chunked.SiglipLoss.apply(img, txt, scale, bias, label_offset, plan)
    _finite(op, check, loss, img=img, txt=txt, logit_scale=scale, logit_bias=bias)
    return loss


@_eager
def linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, *, ignore_index: int = -100,
    reduction: str = "mean", softcap: float | None = None, impl: str = "auto", chunk_bytes: int | None = None,
    accum_dtype: torch.dtype | None = None, check: bool | None = None,
) -> Tensor:  # fmt: skip
    """Cross-entropy of a linear layer into V tokens: x (N, D), weight (V, D), target int64 (N,), bias (V,) -> () or (N,).

    Rows whose target is ignore_index lose nothing; on a CPU, and with `check`, they are dropped before the product. Like
    torch, the mean of no rows is NaN. softcap c bends logits into c tanh(z / c). reduction: mean, sum or none. Raises
    ValueError on what does not fit.
    """
    op = "linear_cross_entropy"
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{op}: reduction must be 'mean', 'sum' or 'none'; got {reduction!r}.")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{op}: softcap must be above 0, or None; got {softcap}.")
    x, weight = _matrices(op, x=x, weight=weight)
    _planning.check_targets(op, target, len(x), x.device)
    if bias is not None:
        if bias.shape != (len(weight),) or not bias.is_floating_point() or bias.device != x.device:
            raise ValueError(f"{op} needs bias ({len(weight)},) as floats on {x.device}; got {tuple(bias.shape)}.")
        bias = _learning(bias.to(x.dtype))
    plan = _plan_loss(op, x, len(weight), impl, chunk_bytes, accum_dtype)
    counts, reads = target != ignore_index, _may_read(check, x)
    whole = reads and bool(counts.all())
    if _looks(check, x):
        _planning.check_in_range(op, target if whole else target[counts], len(weight))
    with _planning.autocast_off(x.device):
        if plan.impl == "reference":
            options = {"ignore_index": ignore_index, "reduction": reduction, "softcap": softcap}
            loss = _reference.linear_cross_entropy(x, weight, target, bias, **options)
        elif not reads:  # rows that do not count are computed all the same, and weighted by 0
            rows, named = x.masked_fill(~counts[:, None], 0), target.masked_fill(~counts, 0)
            loss = _chunked.LinearCrossEntropy.apply(rows, weight, bias, named, counts, softcap, reduction, plan)
        else:
            rows, named = (x, target) if whole else (x[counts], target[counts])
            loss = _chunked.LinearCrossEntropy.apply(rows, weight, bias, named, None, softcap, reduction, plan)
            if reduction == "none" and not whole:
                loss = loss.new_zeros(len(x)).masked_scatter(counts, loss)
    if whole or (reads and bool(counts.any())):
        _finite(op, check, loss, x=x if whole else x[counts], weight=weight, bias=bias)
    return loss


@_eager
def retrieval_ranks(
    query: Tensor, cand: Tensor, target: Tensor, *, groups: tuple[Tensor, Tensor] | None = None,
    return_ties: bool = False, impl: str = "auto", chunk_bytes: int | None = None, check: bool | None = None,
) -> Tensor | Ranks:  # fmt: skip
    """How many wrong candidates beat the best correct one: query (N, D), cand (M, D), target int64 (N,) -> int64 (N,).

    With groups=(query_group (N,), cand_group (M,)), integers, every candidate of a query's group is correct too. With
    return_ties the candidates that score the same are counted apart, see `Ranks`. Raises ValueError on what does not fit.
    """
    op = "retrieval_ranks"
    with torch.no_grad():
        query, cand = _matrices(op, _planning.for_measurement, query=query, cand=cand)
    _planning.check_targets(op, target, len(query), query.device)
    if groups is not None:
        for name, group, length in zip(("query_group", "cand_group"), groups, (len(query), len(cand)), strict=True):
            if group.shape != (length,) or group.is_floating_point() or group.device != query.device:
                got = tuple(group.shape)
                raise ValueError(f"{op} needs {name} as integers ({length},) on {query.device}; got {got}.")
        groups = (groups[0].long(), groups[1].long())
    plan = _planning.make_plan(op, query.device, query.dtype, len(cand), impl, chunk_bytes)
    if _looks(check, query):
        _planning.check_in_range(op, target, len(cand))
        _planning.check_finite(op, query=query, cand=cand)
    with _planning.autocast_off(query.device):
        if plan.impl == "reference":
            found = _reference.retrieval_ranks(query, cand, target, groups=groups, return_ties=True)
        else:
            found = _chunked.count_ranks(query, cand, target, groups, plan)
    return found if return_ties else found.better
