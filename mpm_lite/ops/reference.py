"""Readable references: the formula, a page, plain autograd. Every other implementation is judged by these.

Letters, here and in the whole project: N queries or pairs, M candidates, D width, V vocabulary, T tokens, P patches, H W
a picture. Loss and scalar gradients are float32, or float64 for float64 inputs, whatever the dtype of the features. `product` is a
plain matrix product that autocast leaves alone in the backward pass too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mpm_lite.ops.plan import product


def clip_loss(img: Tensor, txt: Tensor, logit_scale: Tensor, *, label_offset: int = 0) -> Tensor:
    """Symmetric InfoNCE over a batch of matching pairs (CLIP, 2103.00020, figure 3; InfoNCE, 1807.03748).

    img (N, D) and txt (M, D), unit norm; logit_scale () is the multiplier itself, after exp. Row i of `img` matches row
    i + label_offset of `txt`. For M != N only the image-to-text direction is defined. Returns ().
    """
    exact = torch.promote_types(img.dtype, torch.float32)
    logits = product(logit_scale.to(exact) * img.to(exact), txt.to(exact).T)  # (N, M)
    target = torch.arange(len(img), device=img.device) + label_offset  # (N,)
    image_to_text = F.cross_entropy(logits, target)
    if len(img) != len(txt):
        return image_to_text
    return (image_to_text + F.cross_entropy(logits.T, target)) / 2


def siglip_loss(
    img: Tensor, txt: Tensor, logit_scale: Tensor, logit_bias: Tensor, *, label_offset: int | None = 0
) -> Tensor:
    """A yes-or-no question for every image-text combination (SigLIP, 2303.15343, section 3.2 and algorithm 1).

    img (N, D), txt (M, D), logit_scale () and logit_bias (). Row i of `img` matches row i + label_offset of `txt`, and
    nothing matches where label_offset is None. Returns (): the sum over all N x M divided by N.
    """
    exact = torch.promote_types(img.dtype, torch.float32)
    logits = product(logit_scale.to(exact) * img.to(exact), txt.to(exact).T) + logit_bias.to(exact)  # (N, M)
    sign = torch.full_like(logits, -1)
    if label_offset is not None:
        sign.diagonal(label_offset)[: len(img)] = 1
    return -F.logsigmoid(sign * logits).sum() / len(img)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, *, ignore_index: int = -100,
    reduction: str = "mean", softcap: float | None = None,
) -> Tensor:  # fmt: skip
    """Cross-entropy of a linear layer into a vocabulary: the last step of every language model.

    x (N, D), weight (V, D), target int64 (N,), bias (V,) or None. Rows whose target is ignore_index count for nothing.
    softcap c bends the logits z into c tanh(z / c) (Gemma 2, 2408.00118, section 2). reduction: mean (over the rows that
    count), sum, or none. Returns () or (N,).
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    logits = product(x.to(exact), weight.to(exact).T)  # (N, V)
    if bias is not None:
        logits = logits + bias.to(exact)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)


class Ranks(NamedTuple):
    """Where the best correct candidate of each query stands; every field int64 (N,)."""

    better: Tensor  # wrong candidates that score higher than the best correct one
    tied: Tensor  # wrong candidates that score exactly the same
    tied_correct: Tensor  # correct candidates in that tie, the best one included


def retrieval_ranks(
    query: Tensor,
    cand: Tensor,
    target: Tensor,
    *,
    groups: tuple[Tensor, Tensor] | None = None,
    return_ties: bool = False,
) -> Tensor | Ranks:
    """How many candidates beat the best correct one, for each query.

    query (N, D), cand (M, D), target int64 (N,): the index of each query's own candidate. With groups=(query_group (N,),
    cand_group (M,)) every candidate of a query's group is correct as well. Correct candidates are left out by index,
    never by comparing scores. Returns int64 (N,), or `Ranks` with `return_ties`.
    """
    exact = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(exact) @ cand.to(exact).T  # (N, M)
    correct = torch.zeros_like(scores, dtype=torch.bool)
    correct[torch.arange(len(query), device=query.device), target] = True
    if groups is not None:
        correct |= groups[0][:, None] == groups[1][None, :]
    best = scores.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)  # (N, 1)
    better = (~(scores <= best) & ~correct).sum(
        dim=1
    )  # what is no number beats the correct ones: nobody is right by it
    if not return_ties:
        return better
    return Ranks(better, ((scores == best) & ~correct).sum(dim=1), ((scores == best) & correct).sum(dim=1))
