"""The losses with a backward written by hand: no N x M matrix is ever kept, every chunk of rows is made, used, dropped.

clip_loss needs both log-sum-exps before any gradient, so its backward makes each chunk again: 8 N M D operations in
place of 6. siglip_loss has no normaliser and linear_cross_entropy one that a row knows alone: their gradients are taken
in the forward, while the chunk is there, at no extra arithmetic (the design of Liger, 2410.10989, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mpm_lite.ops import pieces
from mpm_lite.ops.autocast import without_autocast
from mpm_lite.ops.choose import Plan
from mpm_lite.ops.reference import Ranks


def _once(op: str) -> None:
    """Refuse to be differentiated twice. Under create_graph=True the backward runs with gradients enabled."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op}: only impl='reference' can be differentiated twice (create_graph=True).")


def _gradients(
    g: Tensor, rows: Tensor, txt: Tensor, d_img: Tensor | None, d_txt: Tensor | None, at: slice, exact: torch.dtype
) -> None:
    """d_img[at] = G @ txt and d_txt += G.T @ rows, for those that are wanted."""
    if d_img is not None:
        d_img[at] = pieces.product(g, txt, exact)
    if d_txt is not None:
        pieces.add_product(d_txt, g.T, rows)


class ClipLoss(torch.autograd.Function):
    """clip_loss: saves the inputs and the log-sum-exps, N + M numbers."""

    @staticmethod
    @without_autocast
    def forward(ctx: Any, img: Tensor, txt: Tensor, scale: Tensor, offset: int, plan: Plan) -> tuple[Tensor, Tensor]:
        n, square, s = len(img), len(img) == len(txt), scale.detach().to(plan.exact).reshape(())
        row_lse, col_lse = pieces.lse(img, txt, s, square, plan)
        match = txt[offset : offset + n].to(plan.exact).mul(img).sum(dim=1) * s  # (N,)
        loss = (row_lse - match).mean()
        if square:
            loss = (loss + (col_lse - match).mean()) / 2
        ctx.save_for_backward(img, txt, scale, row_lse, col_lse)
        ctx.offset, ctx.plan = offset, plan
        ctx.mark_non_differentiable(row_lse)
        return loss, row_lse

    @staticmethod
    @without_autocast
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        _once("clip_loss")
        img, txt, scale, row_lse, col_lse = ctx.saved_tensors
        plan, n, s = ctx.plan, len(img), scale.to(ctx.plan.exact).reshape(())
        need_img, need_txt, need_scale = ctx.needs_input_grad[:3]
        d_img = torch.empty(img.shape, dtype=plan.exact, device=img.device) if need_img else None
        d_txt = torch.zeros(txt.shape, dtype=plan.exact, device=txt.device) if need_txt else None
        d_scale = torch.zeros((), dtype=torch.float64, device=img.device)
        for i in range(0, n, plan.rows):
            at = slice(i, i + plan.rows)
            g, dot = pieces.clip_grad(img[at], txt, s, row_lse[at], col_lse, ctx.offset + i, plan)
            d_scale += dot
            _gradients(g, img[at], txt, d_img, d_txt, at, plan.exact)
            del g  # before the next chunk is made, not after
        each = upstream.to(plan.exact) / (n if col_lse is None else 2 * n)
        return (
            d_img.mul_(each * s).to(img.dtype) if need_img else None,
            d_txt.mul_(each * s).to(txt.dtype) if need_txt else None,
            (d_scale * each).to(scale.dtype).reshape(scale.shape) if need_scale else None,
            None,
            None,
        )


class SiglipLoss(torch.autograd.Function):
    """siglip_loss: gradients taken in the forward, scaled by the upstream gradient in the backward."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, img: Tensor, txt: Tensor, scale: Tensor, bias: Tensor, offset: int | None, plan: Plan
    ) -> Tensor:
        n, s, b = len(img), scale.detach().to(plan.exact).reshape(()), bias.detach().to(plan.exact).reshape(())
        need_img, need_txt, need_scale, need_bias = ctx.needs_input_grad[:4]
        need = any(ctx.needs_input_grad)
        d_img = torch.empty(img.shape, dtype=plan.exact, device=img.device) if need_img else None
        d_txt = torch.zeros(txt.shape, dtype=plan.exact, device=txt.device) if need_txt else None
        sums = torch.zeros(3, dtype=torch.float64, device=img.device)  # loss, d scale, d bias
        for i in range(0, n, plan.rows):
            at = slice(i, i + plan.rows)
            shifted = None if offset is None else offset + i
            g, *found = pieces.siglip_grad(img[at], txt, s, b, shifted, need, plan)
            sums += torch.stack(found)
            if g is not None:
                _gradients(g, img[at], txt, d_img, d_txt, at, plan.exact)
            del g
        sums /= n
        for d in (d_img, d_txt):
            if d is not None:
                d.mul_(s / n)
        ctx.save_for_backward(d_img, d_txt, sums[1] if need_scale else None, sums[2] if need_bias else None)
        ctx.like = [(x.dtype, x.shape) for x in (img, txt, scale, bias)]
        return sums[0].to(plan.exact)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        _once("siglip_loss")
        grads = []
        for d, (dtype, shape) in zip(ctx.saved_tensors, ctx.like, strict=True):
            if d is not None:  # scaled and rounded in one pass: no second matrix in the exact dtype
                d = torch.mul(d, upstream.to(d.dtype), out=d.new_empty(d.shape, dtype=dtype)).reshape(shape)
            grads.append(d)
        return *grads, None, None


class LinearCrossEntropy(torch.autograd.Function):
    """linear_cross_entropy over rows that all count: gradients in the forward where one number comes out, in the backward
    where a loss a row does (each row then has an upstream gradient of its own)."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, softcap: float | None, reduction: str,
        plan: Plan,
    ) -> Tensor:  # fmt: skip
        ctx.plan, ctx.softcap, ctx.reduction = plan, softcap, reduction
        ctx.save_for_backward(x, weight, bias, target)
        early = reduction != "none" and any(ctx.needs_input_grad[:3])
        needs = ctx.needs_input_grad[:3] if early else (False,) * 3
        losses, ctx.grads = _token_sweep(x, weight, bias, target, softcap, None, needs, plan)
        if not early:
            ctx.grads = None
        return {"mean": losses.mean, "sum": losses.sum, "none": losses.clone}[reduction]()

    @staticmethod
    @without_autocast
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        _once("linear_cross_entropy")
        x, weight, bias, target = ctx.saved_tensors
        grads, ctx.grads = ctx.grads, None  # handed over, not copied; a second backward makes them again
        factor = upstream.to(ctx.plan.exact)
        if grads is None:
            rows = factor if ctx.reduction == "none" else None
            _, grads = _token_sweep(x, weight, bias, target, ctx.softcap, rows, ctx.needs_input_grad[:3], ctx.plan)
        # Without a row that counts the mean is NaN, but its gradients stay zero, as torch has it.
        if ctx.reduction != "none" and len(x):
            factor = factor / len(x) if ctx.reduction == "mean" else factor
            grads = [None if d is None else d.mul_(factor) for d in grads]
        like = (x, weight, bias)
        given = [None if d is None else d.to(t.dtype) for d, t in zip(grads, like, strict=True)]
        return *given, None, None, None, None


def _token_sweep(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, softcap: float | None, factor: Tensor | None,
    needs: tuple[bool, ...], plan: Plan,
) -> tuple[Tensor, list[Tensor | None]]:  # fmt: skip
    """Losses (N,) and the wanted gradients of their sum (each row times factor (N,), where given), in plan.exact."""
    like = (x, weight, bias)
    d_x, d_weight, d_bias = grads = [
        torch.zeros(t.shape, dtype=plan.exact, device=t.device) if need and t is not None else None
        for t, need in zip(like, needs, strict=True)
    ]
    if not x.is_cuda and x.dtype != plan.exact:  # a CPU computes in the exact dtype: convert the table once
        weight = weight.to(plan.exact)
    losses = torch.empty(len(x), dtype=plan.exact, device=x.device)
    for i in range(0, len(x), plan.rows):
        at = slice(i, i + plan.rows)
        rows = None if factor is None else factor[at]
        g, losses[at] = pieces.token_grad(x[at], weight, bias, target[at], rows, softcap, any(needs), plan)
        if g is not None:
            _gradients(g, x[at], weight, d_x, d_weight, at, plan.exact)
            if d_bias is not None:
                d_bias += g.sum(dim=0, dtype=plan.exact)
        del g
    return losses, grads


def ranks(query: Tensor, cand: Tensor, target: Tensor, groups: tuple[Tensor, Tensor] | None, plan: Plan) -> Ranks:
    """retrieval_ranks by chunks of queries, or in one kernel that writes no score anywhere."""
    if plan.impl == "triton":
        from mpm_lite.ops.kernels import rank

        return Ranks(*rank.rank_counts(query, cand, target, groups))
    found = []
    for i in range(0, len(query), plan.rows):
        at = slice(i, i + plan.rows)
        mates = None if groups is None else (groups[0][at], groups[1])
        found.append(pieces.rank_counts(query[at], cand, target[at], mates, plan))
    return Ranks(*(torch.cat(parts) for parts in zip(*found, strict=True)))
