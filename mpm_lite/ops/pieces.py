"""What is done with one chunk of rows: a product, and elementwise work on it, in torch or in a Triton kernel.

R rows of a chunk, M columns; the other letters are in reference.py. Every function takes the plan that chose it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mpm_lite.ops.choose import Plan, capability
from mpm_lite.ops.reference import Ranks


def product(a: Tensor, b: Tensor, exact: torch.dtype) -> Tensor:
    """a (R, K) @ b (K, M) with the sums kept in `exact`, returned in it: (R, M)."""
    if a.dtype == b.dtype == exact:
        return a @ b
    if a.is_cuda and a.dtype == b.dtype and exact == torch.float32 and capability(a.device) >= (8, 0):
        return torch.mm(a, b, out_dtype=exact)
    if a.is_cuda and a.dtype == b.dtype:
        return (a @ b).to(exact)  # older cards return half precision only: one rounding of the result
    return a.to(exact) @ b.to(exact)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a (K, R) @ b (R, D), in the dtype of `total`, without a second buffer where the library allows it."""
    if a.dtype == b.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda and total.dtype == torch.float32 and capability(a.device) >= (8, 0):
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total += product(a, b, total.dtype)


def lse(img: Tensor, txt: Tensor, scale: Tensor, columns: bool, plan: Plan) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp of the logits scale * img @ txt.T over each row (N,), and over each column (M,) where asked."""
    if plan.impl == "triton":
        from mpm_lite.ops.kernels import contrastive

        return contrastive.lse(img, txt, scale, columns=columns)
    rows, top, total = [], None, None
    for i in range(0, len(img), plan.rows):
        cos = product(img[i : i + plan.rows], txt.T, plan.exact)  # (R, M)
        if plan.elementwise:
            from mpm_lite.ops.kernels import elementwise

            rows.append(elementwise.row_lse(cos, scale))
            if columns:
                high, found = elementwise.col_partials(cos, scale)
                new = high if top is None else torch.maximum(top, high)
                found *= (high - new).exp_()
                total = found if total is None else total * (top - new).exp_() + found
                top = new
            continue
        z = cos.mul_(scale)
        # amax, exp and sum by hand: torch.logsumexp along a row takes many times longer on a CPU.
        highest = z.amax(dim=1, keepdim=True)
        e = (z - highest).exp_()
        rows.append(e.sum(dim=1).log_() + highest[:, 0])
        if columns:
            high = z.amax(dim=0)
            new = high if top is None else torch.maximum(top, high)
            torch.sub(z, new, out=e).exp_()
            total = e.sum(dim=0) if total is None else total * (top - new).exp_() + e.sum(dim=0)
            top = new
    return torch.cat(rows), total.log_().add_(top) if columns else None


def clip_grad(
    img: Tensor, txt: Tensor, scale: Tensor, row_lse: Tensor, col_lse: Tensor | None, offset: int, plan: Plan
) -> tuple[Tensor, Tensor]:
    """G = P_rows + P_columns - 2 [match] of one chunk (R, M), not scaled so that half precision holds it, and () sum of
    G times the cosines. Without `col_lse` the row direction alone: P_rows - [match]."""
    if plan.impl == "triton":
        from mpm_lite.ops.kernels import contrastive

        out = torch.empty(len(img), len(txt), dtype=img.dtype, device=img.device)
        return out, contrastive.clip_grad(img, txt, scale, row_lse, col_lse, offset, out)
    cos = product(img, txt.T, plan.exact)  # (R, M)
    if plan.elementwise:
        from mpm_lite.ops.kernels import elementwise

        out = torch.empty_like(cos, dtype=img.dtype)
        return out, elementwise.clip_grad_elementwise(cos, scale, row_lse, col_lse, offset, out)
    g = torch.addcmul(-row_lse[:, None], cos, scale).exp_()
    if col_lse is not None:
        g += torch.addcmul(-col_lse, cos, scale).exp_()
    g.diagonal(offset)[: len(img)] -= 1 if col_lse is None else 2
    return g, torch.dot(g.view(-1), cos.view(-1))


def siglip_grad(
    img: Tensor, txt: Tensor, scale: Tensor, bias: Tensor, offset: int | None, need_grad: bool, plan: Plan
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Of one chunk: G = d loss / d logit (R, M), None without `need_grad`, and () sums of the loss, of G times the cosines,
    of G; the last two mean nothing without `need_grad`."""
    if plan.impl == "triton":
        from mpm_lite.ops.kernels import contrastive

        out = torch.empty(len(img), len(txt), dtype=img.dtype, device=img.device) if need_grad else None
        return out, *contrastive.siglip_grad(img, txt, scale, bias, offset, out)
    cos = product(img, txt.T, plan.exact)  # (R, M)
    if plan.elementwise:
        from mpm_lite.ops.kernels import elementwise

        out = torch.empty_like(cos, dtype=img.dtype) if need_grad else None
        return out, *elementwise.siglip_grad_elementwise(cos, scale, bias, offset, out)
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
    need_grad: bool, plan: Plan,
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    """Of one chunk of rows: d loss / d logit (R, V), times factor (R,) where given, and the losses (R,)."""
    if x.is_cuda:  # in the input dtype, overwritten in place: half the memory, twice the speed
        z = torch.mm(x, weight.T) if bias is None else torch.addmm(bias, x, weight.T)  # (R, V)
    else:
        z = product(x, weight.T, plan.exact)
        z = z if bias is None else z.add_(bias)
    if plan.impl == "triton" or plan.elementwise:
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


def rank_counts(query: Tensor, cand: Tensor, target: Tensor, groups: tuple[Tensor, Tensor] | None, plan: Plan) -> Ranks:
    """Ranks of one chunk of queries (R, D) among all candidates (M, D)."""
    scores = product(query, cand.T, plan.exact)  # (R, M)
    own = target[:, None]
    if groups is None:
        best = scores.gather(1, own)  # (R, 1)
        tied_correct = torch.ones_like(target)
        scores.scatter_(1, own, -torch.inf)
    else:
        correct = (groups[0][:, None] == groups[1]).scatter_(1, own, True)  # (R, M)
        best = scores.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)
        tied_correct = ((scores == best) & correct).sum(dim=1)
        scores.masked_fill_(correct, -torch.inf)
    return Ranks((scores > best).sum(dim=1), (scores == best).sum(dim=1), tied_correct)
