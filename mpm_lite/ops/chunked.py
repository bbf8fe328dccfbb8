"""The losses with a backward written by hand: no N x M matrix is ever kept, every chunk of rows is made, used, dropped.

clip_loss needs both log-sum-exps before any gradient, so its backward makes each chunk again: 8 N M D operations in
place of 6, unless one chunk holds all logits. siglip_loss has no normaliser and linear_cross_entropy one that a row knows
alone: their gradients are taken in the forward, while the chunk is there, at no extra arithmetic (the design of Liger,
2410.10989, section 3).

First comes what is done with one chunk of rows: a product, and elementwise work on it, in torch or in a Triton kernel. R rows of
a chunk, M columns; the other letters are in reference.py. Every function takes the plan that chose it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpm_lite.ops.plan import TERMS, ChunkPlan, capability, without_autocast
from mpm_lite.ops.reference import Ranks


def product(a: Tensor, b: Tensor, exact: torch.dtype) -> Tensor:
    """a (R, K) @ b (K, M) with the sums kept in `exact`, returned in it: (R, M)."""
    if a.dtype == b.dtype == exact:
        return a @ b
    if a.is_cuda and a.dtype == b.dtype and exact == torch.float32 and capability(a.device) >= (8, 0):
        return torch.mm(a, b, out_dtype=exact)
    if a.is_cuda and a.dtype == b.dtype == torch.float16 and exact == torch.float32:
        return _product_in_half(a, b, exact)
    return a.to(exact) @ b.to(exact)


def _product_in_half(a: Tensor, b: Tensor, exact: torch.dtype) -> Tensor:
    """a @ b on cards that return half precision only: sums of TERMS numbers, which do not overflow, added in `exact`."""
    total = (a[:, :TERMS] @ b[:TERMS]).to(exact)
    for i in range(TERMS, len(b), TERMS):
        total += a[:, i : i + TERMS] @ b[i : i + TERMS]
    return total


def add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """total += a (K, R) @ b (R, D), in the dtype of `total`, without a second buffer where the library allows it; for the
    first chunk total = a @ b, whatever `total` held before."""
    keep = 0 if first else 1
    if a.dtype == b.dtype == total.dtype:
        total.addmm_(a, b, beta=keep)
    elif a.is_cuda and a.dtype == b.dtype and total.dtype == torch.float32 and capability(a.device) >= (8, 0):
        torch.addmm(total, a, b, beta=keep, out_dtype=torch.float32, out=total)
    elif first:
        total.copy_(product(a, b, total.dtype))
    else:
        total += product(a, b, total.dtype)


def scaled(total: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Tensor:
    """factor * total in another dtype, scaled and rounded in one pass: no second matrix in the dtype of the sums."""
    if factor is None:
        return total.to(dtype)
    if total.dtype == dtype:
        return total.mul_(factor)
    return torch.mul(total, factor, out=total.new_empty(total.shape, dtype=dtype))


def lse(img: Tensor, txt: Tensor, scale: Tensor, columns: bool, plan: ChunkPlan) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp of the logits scale * img @ txt.T over each row (N,), and over each column (M,) where asked."""
    rows, top, total = [], scale.new_full((len(txt),), -torch.inf), scale.new_zeros(len(txt))
    for i in range(0, len(img), step := _rows_of_lse(img, plan)):
        part = img[i : i + step]
        if plan.impl == "triton":
            from mpm_lite.ops.kernels import contrastive

            by_row, high = contrastive.lse(part, txt, scale, columns=columns)
            rows.append(by_row)
            if columns:
                new = torch.maximum(top, high)
                found = (high - new).exp_()
        elif plan.elementwise:
            from mpm_lite.ops.kernels import elementwise

            cos = product(part, txt.T, plan.exact)  # (R, M)
            rows.append(elementwise.row_lse(cos, scale))
            if columns:
                high, found = elementwise.col_partials(cos, scale)
                new = torch.maximum(top, high)
                found *= (high - new).exp_()
        else:
            z = product(part, txt.T, plan.exact).mul_(scale)  # (R, M)
            # amax, exp and sum by hand: torch.logsumexp along a row takes many times longer on a CPU.
            highest = z.amax(dim=1, keepdim=True)
            e = (z - highest).exp_()
            rows.append(e.sum(dim=1).log_() + highest[:, 0])
            if columns:
                new = torch.maximum(top, z.amax(dim=0))
                found = torch.sub(z, new, out=e).exp_().sum(dim=0)
        if columns:
            total = total * (top - new).exp_() + found
            top = new
    return torch.cat(rows), total.log_().add_(top) if columns else None


def _rows_of_lse(img: Tensor, plan: ChunkPlan) -> int:
    """The rows of a step of `lse`, which takes no more bytes than a chunk of gradients: four for each column and 64 rows (the
    kernel's partial results, of which no tile leaves more), or for each cosine."""
    if plan.impl == "triton":
        return 64 * plan.rows
    return max(1, plan.rows * img.element_size() // plan.exact.itemsize) if plan.elementwise else plan.rows


def clip_grad(
    img: Tensor, txt: Tensor, scale: Tensor, row_lse: Tensor, col_lse: Tensor | None, offset: int, plan: ChunkPlan
) -> tuple[Tensor, Tensor]:
    """For one chunk: plan.grow times G = P_rows + P_columns - 2 [match] (R, M), so that half precision can hold it, and the sum
    () of G times the cosines. Without `col_lse` it is the row direction alone: P_rows - [match]."""
    if plan.impl == "triton":
        from mpm_lite.ops.kernels import contrastive

        out = torch.empty(len(img), len(txt), dtype=img.dtype, device=img.device)
        return out, contrastive.clip_grad(img, txt, scale, row_lse, col_lse, offset, out, grow=plan.grow)
    if plan.elementwise:
        from mpm_lite.ops.kernels import elementwise

        out, sums = torch.empty(len(img), len(txt), dtype=img.dtype, device=img.device), []
        for i, at, cos in _pieces(img, txt, plan):
            by_row, to = row_lse[at], out[at]
            sums.append(elementwise.clip_grad_elementwise(cos, scale, by_row, col_lse, offset + i, to, grow=plan.grow))
        return out, elementwise.added(torch.cat(sums))
    cos = product(img, txt.T, plan.exact)  # (R, M)
    g = torch.addcmul(-row_lse[:, None], cos, scale).exp_()
    if col_lse is not None:
        g += torch.addcmul(-col_lse, cos, scale).exp_()
    g.diagonal(offset)[: len(img)] -= 1 if col_lse is None else 2
    return g, torch.dot(g.view(-1), cos.view(-1))


def clip_at_once(
    img: Tensor, txt: Tensor, scale: Tensor, offset: int, needs: tuple[bool, ...], plan: ChunkPlan
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """For logits that are one chunk: the loss (), the log-sum-exp of each row (N,), and the gradients of the loss by img, txt
    and scale that are wanted, those by img and txt before they are multiplied by the scale."""
    square, own = len(img) == len(txt), slice(len(img))
    cos = product(img, txt.T, plan.exact)  # (N, M)
    z = cos * scale
    match = z.diagonal(offset)[own].clone()  # (N,)
    top = z.amax(dim=1, keepdim=True)
    g = (z - top).exp_()
    total = g.sum(dim=1, keepdim=True)
    row_lse = (total.log() + top)[:, 0]
    loss = (row_lse - match).mean()
    g /= total
    if square:
        top = z.amax(dim=0)
        e = z.sub_(top).exp_()
        total = e.sum(dim=0)
        loss = (loss + (total.log() + top - match).mean()) / 2
        g.addcdiv_(e, total)
    directions = 2 if square else 1
    g.diagonal(offset)[own] -= directions
    g /= directions * len(img)
    d_img = product(g, txt, plan.exact) if needs[0] else None
    d_txt = product(g.T, img, plan.exact) if needs[1] else None
    return loss, row_lse, [d_img, d_txt, torch.dot(g.view(-1), cos.view(-1)) if needs[2] else None]


def _pieces(img: Tensor, txt: Tensor, plan: ChunkPlan) -> Iterator[tuple[int, slice, Tensor]]:
    """The cosines of one chunk, a few rows at a time: the first row of a piece, its place, and its cosines."""
    for i in range(0, len(img), plan.piece):
        at = slice(i, i + plan.piece)
        yield i, at, product(img[at], txt.T, plan.exact)


def siglip_grad(
    img: Tensor, txt: Tensor, scale: Tensor, bias: Tensor, offset: int | None, need_grad: bool, plan: ChunkPlan
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """For one chunk: plan.grow times G = d loss / d logit (R, M), and three sums (): of the loss, of G times the cosines, and of
    G. Without `need_grad` the first is None and the last two sums mean nothing."""
    if plan.impl == "triton":
        from mpm_lite.ops.kernels import contrastive

        out = torch.empty(len(img), len(txt), dtype=img.dtype, device=img.device) if need_grad else None
        return out, *contrastive.siglip_grad(img, txt, scale, bias, offset, out, grow=plan.grow)
    if plan.elementwise:
        from mpm_lite.ops.kernels import elementwise

        out = torch.empty(len(img), len(txt), dtype=img.dtype, device=img.device) if need_grad else None
        sums = []
        for i, at, cos in _pieces(img, txt, plan):
            shifted, to = None if offset is None else offset + i, None if out is None else out[at]
            sums.append(elementwise.siglip_grad_elementwise(cos, scale, bias, shifted, to, grow=plan.grow))
        return out, *elementwise.added(torch.cat(sums, dim=1)).unbind()
    cos = product(img, txt.T, plan.exact)  # (R, M)
    z = torch.addcmul(bias, cos, scale)  # (R, M)
    match = z.new_empty(0) if offset is None else z.diagonal(offset)[: len(img)]
    match.neg_()  # every combination answers "no", the matches "yes"
    # From 40 on softplus(z) is z in float64 too; torch's own threshold of 20 is not exact.
    loss = F.softplus(z, threshold=40).sum()
    if not need_grad:
        return None, loss, loss.new_zeros(()), loss.new_zeros(())
    g = z.sigmoid_()
    match.neg_()
    return g, loss, torch.dot(g.view(-1), cos.view(-1)), g.sum()


def token_grad(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, factor: Tensor | None, softcap: float | None,
    need_grad: bool, plan: ChunkPlan,
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    """Of one chunk of rows: d loss / d logit (R, V), times factor (R,) where given, and the losses (R,)."""
    if x.is_cuda and plan.exact == torch.float32:
        # In the input dtype, overwritten in place: half the memory, twice the speed.
        z = torch.mm(x, weight.T) if bias is None else torch.addmm(bias, x, weight.T)  # (R, V)
    else:
        z = product(x, weight.T, plan.exact)
        z = z if bias is None else z.add_(bias)
    if plan.elementwise:
        from mpm_lite.ops.kernels import elementwise

        if not need_grad:
            return None, elementwise.ce_loss(z, target, softcap)
        return z, elementwise.ce_grad(z, target, factor, softcap, z)
    z = z.to(plan.exact)
    if softcap is not None:
        z.div_(softcap).tanh_()
        bend = 1 - z.square() if need_grad else None  # d capped / d logit
        z.mul_(softcap)
    right = z.gather(1, target[:, None])  # (R, 1)
    top = z.amax(dim=1, keepdim=True)
    total = z.sub_(top).exp_().sum(dim=1, keepdim=True)
    loss = (total.log() + top - right)[:, 0]
    if not need_grad:
        return None, loss
    g = z.mul_((1 if factor is None else factor[:, None]) / total)
    g.scatter_add_(1, target[:, None], -torch.ones_like(total) if factor is None else -factor[:, None])
    return (g if softcap is None else g.mul_(bend)), loss


def count_ranks_of_chunk(
    query: Tensor, cand: Tensor, target: Tensor, groups: tuple[Tensor, Tensor] | None, plan: ChunkPlan
) -> Ranks:
    """Ranks of one chunk of queries (R, D) among all candidates (M, D)."""
    scores = product(query, cand.T, plan.exact)  # (R, M)
    own = target[:, None]
    if groups is None:
        best = scores.gather(1, own)  # (R, 1)
        tied_correct = right = torch.ones_like(target)
        scores.scatter_(1, own, -torch.inf)
    else:
        correct = (groups[0][:, None] == groups[1]).scatter_(1, own, True)  # (R, M)
        best = scores.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)
        tied_correct, right = ((scores == best) & correct).sum(dim=1), correct.sum(dim=1)
        scores.masked_fill_(correct, -torch.inf)
    # What is no number counts against the query. Correct ones, now -inf, lie at or below `best`, unless that is none.
    better = scores.shape[1] - (scores <= best).sum(dim=1) - right * best[:, 0].isnan()
    return Ranks(better, (scores == best).sum(dim=1), tied_correct)


def _chunks(rows: int, plan: ChunkPlan) -> Iterator[slice]:
    """The places of the chunks of so many rows."""
    return (slice(i, min(i + plan.rows, rows)) for i in range(0, rows, plan.rows))


def _once(op: str) -> None:
    """Refuse to be differentiated twice. Under create_graph=True the backward runs with gradients enabled."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op}: only impl='reference' can be differentiated twice (create_graph=True).")


def _gradient_of_rows(out: Tensor, g: Tensor, txt: Tensor, factor: Tensor | None, exact: torch.dtype) -> None:
    """out (R, D) = factor * G (R, M) @ txt (M, D), rounded once, to the dtype of `out`."""
    found = product(g, txt, exact)
    out.copy_(found) if factor is None else torch.mul(found, factor, out=out)


class ClipLoss(torch.autograd.Function):
    """clip_loss: saves the inputs and the log-sum-exps, N + M numbers; or the gradients, where one chunk holds all logits."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, img: Tensor, txt: Tensor, scale: Tensor, offset: int, plan: ChunkPlan
    ) -> tuple[Tensor, Tensor]:
        n, square, s = len(img), len(img) == len(txt), scale.detach().to(plan.exact).reshape(())
        ctx.offset, ctx.plan, ctx.at_once = offset, plan, False
        needs = ctx.needs_input_grad[:3]
        if any(needs) and n <= plan.rows and not plan.elementwise:
            ctx.at_once = True
            loss, row_lse, grads = clip_at_once(img, txt, s, offset, needs, plan)
            ctx.save_for_backward(scale, *grads)
            ctx.like = img.dtype
            ctx.mark_non_differentiable(row_lse)
            return loss, row_lse
        row_lse, col_lse = lse(img, txt, s, square, plan)
        own = txt[offset : offset + n]
        match = [own[at].to(plan.exact).mul(img[at]).sum(dim=1) for at in _chunks(n, plan)]
        match = torch.cat(match) * s  # (N,)
        loss = (row_lse - match).mean()
        if square:
            loss = (loss + (col_lse - match).mean()) / 2
        ctx.save_for_backward(img, txt, scale, row_lse, col_lse)
        ctx.mark_non_differentiable(row_lse)
        return loss, row_lse

    @staticmethod
    @without_autocast
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        _once("clip_loss")
        if ctx.at_once:
            scale, *grads, d_scale = ctx.saved_tensors
            by = upstream * scale.to(upstream.dtype)
            grads = [None if d is None else (d * by).to(ctx.like) for d in grads]
            d_scale = None if d_scale is None else (d_scale * upstream).to(scale.dtype).reshape(scale.shape)
            return *grads, d_scale, None, None
        img, txt, scale, row_lse, col_lse = ctx.saved_tensors
        plan, n, s = ctx.plan, len(img), scale.to(ctx.plan.exact).reshape(())
        need_img, need_txt, need_scale = ctx.needs_input_grad[:3]
        each = upstream.to(plan.exact) / (n if col_lse is None else 2 * n)
        factor = each * s / plan.grow
        d_img = torch.empty_like(img) if need_img else None
        d_txt = torch.empty(txt.shape, dtype=plan.exact, device=txt.device) if need_txt else None
        d_scale = torch.zeros((), dtype=torch.float64, device=img.device)
        for at in _chunks(n, plan):
            g, dot = clip_grad(img[at], txt, s, row_lse[at], col_lse, ctx.offset + at.start, plan)
            d_scale += dot
            if need_img:
                _gradient_of_rows(d_img[at], g, txt, factor, plan.exact)
            if need_txt:
                add_product(d_txt, g.T, img[at], at.start == 0)
            del g  # before the next chunk is made, not after
        return (
            d_img,
            scaled(d_txt, factor, txt.dtype) if need_txt else None,
            (d_scale * each).to(scale.dtype).reshape(scale.shape) if need_scale else None,
            None,
            None,
        )


class SiglipLoss(torch.autograd.Function):
    """siglip_loss: gradients taken in the forward, scaled by the upstream gradient in the backward."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, img: Tensor, txt: Tensor, scale: Tensor, bias: Tensor, offset: int | None, plan: ChunkPlan
    ) -> Tensor:
        n, s, b = len(img), scale.detach().to(plan.exact).reshape(()), bias.detach().to(plan.exact).reshape(())
        need_img, need_txt, need_scale, need_bias = ctx.needs_input_grad[:4]
        need = any(ctx.needs_input_grad)
        d_img = torch.empty(img.shape, dtype=plan.exact, device=img.device) if need_img else None
        d_txt = torch.empty(txt.shape, dtype=plan.exact, device=txt.device) if need_txt else None
        sums = torch.zeros(3, dtype=torch.float64, device=img.device)  # loss, d scale, d bias
        for at in _chunks(n, plan):
            shifted = None if offset is None else offset + at.start
            g, *found = siglip_grad(img[at], txt, s, b, shifted, need, plan)
            sums += torch.stack(found)
            if need_img:
                _gradient_of_rows(d_img[at], g, txt, None, plan.exact)
            if need_txt:
                add_product(d_txt, g.T, img[at], at.start == 0)
            del g
        sums /= n
        for d in (d_img, d_txt):
            if d is not None:
                d.mul_(s / (n * plan.grow))
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
    """linear_cross_entropy over the rows that `counts` (N,) names, or over all where it is None. Gradients are taken in the
    forward where the loss is one number, and in the backward where each row has a loss of its own, for then each also has an
    upstream gradient of its own. Rows that do not count must hold zeros and any valid target."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, counts: Tensor | None,
        softcap: float | None, reduction: str, plan: ChunkPlan,
    ) -> Tensor:  # fmt: skip
        ctx.plan, ctx.softcap, ctx.reduction = plan, softcap, reduction
        early = reduction != "none" and any(ctx.needs_input_grad[:3])
        needs = ctx.needs_input_grad[:3] if early else (False,) * 3
        factor = None if counts is None else counts.to(plan.exact)
        losses, ctx.grads = _token_sweep(x, weight, bias, target, softcap, factor, needs, plan)
        if not early:
            ctx.grads = None
        if counts is not None:
            losses.masked_fill_(~counts, 0)
        ctx.divisor = 1
        if reduction == "mean":
            ctx.divisor = len(x) if counts is None else counts.sum()
        ctx.save_for_backward(x, weight, bias, target, factor)
        # No rows: 0 / 0, which is NaN, as torch has it.
        return losses if reduction == "none" else losses.sum() / ctx.divisor

    @staticmethod
    @without_autocast
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        _once("linear_cross_entropy")
        x, weight, bias, target, counts = ctx.saved_tensors
        grads, ctx.grads = ctx.grads, None  # handed over, not copied; a second backward makes them again
        upstream = upstream.to(ctx.plan.exact)
        if ctx.reduction == "none":
            # A kernel reads one number a row: the gradient of a plain sum is one number, expanded.
            counts = (upstream if counts is None else upstream * counts).contiguous()
        if grads is None:
            needs = ctx.needs_input_grad[:3]
            _, grads = _token_sweep(x, weight, bias, target, ctx.softcap, counts, needs, ctx.plan)
        factor = None  # each row has had its own
        if ctx.reduction != "none":
            # Without a row that counts the mean is NaN, but its gradients are zero, as torch has it.
            divisor = ctx.divisor
            factor = upstream / (divisor.clamp(min=1) if isinstance(divisor, Tensor) else max(1, divisor))
        like = (x, weight, bias)
        given = [None if d is None else scaled(d, factor, t.dtype) for d, t in zip(grads, like, strict=True)]
        return *given, None, None, None, None, None


def _token_sweep(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, softcap: float | None, factor: Tensor | None,
    needs: tuple[bool, ...], plan: ChunkPlan,
) -> tuple[Tensor, list[Tensor | None]]:  # fmt: skip
    """Losses (N,) and the wanted gradients of their sum (each row times factor (N,), where given), in plan.exact."""
    d_x, d_weight, d_bias = grads = [
        torch.empty(t.shape, dtype=plan.exact, device=t.device) if need and t is not None else None
        for t, need in zip((x, weight, bias), needs, strict=True)
    ]
    if not x.is_cuda and x.dtype != plan.exact:  # a CPU computes in the exact dtype: convert the table once
        weight = weight.to(plan.exact)
    losses = torch.empty(len(x), dtype=plan.exact, device=x.device)
    for at in _chunks(len(x), plan):
        first, rows = at.start == 0, None if factor is None else factor[at]
        g, losses[at] = token_grad(x[at], weight, bias, target[at], rows, softcap, any(needs), plan)
        if d_x is not None:
            _gradient_of_rows(d_x[at], g, weight, None, plan.exact)
        if d_weight is not None:
            add_product(d_weight, g.T, x[at], first)
        if d_bias is not None:
            found = g.sum(dim=0, dtype=plan.exact)
            d_bias.copy_(found) if first else d_bias.add_(found)
        del g
    if not len(x):
        grads = [None if d is None else d.zero_() for d in grads]
    return losses, grads


def count_ranks(
    query: Tensor, cand: Tensor, target: Tensor, groups: tuple[Tensor, Tensor] | None, plan: ChunkPlan
) -> Ranks:
    """retrieval_ranks, by chunks of queries or in one kernel that writes no score to memory."""
    if plan.impl == "triton":
        from mpm_lite.ops.kernels import rank

        return Ranks(*rank.rank_counts(query, cand, target, groups))
    found = []
    for at in _chunks(len(query), plan):
        mates = None if groups is None else (groups[0][at], groups[1])
        found.append(count_ranks_of_chunk(query[at], cand, target[at], mates, plan))
    return Ranks(*(torch.cat(parts) for parts in zip(*found, strict=True)))
