"""Readable references: the formula, a page, plain autograd.

Letters, here and in the whole project: N queries or pairs, M candidates, D width, T tokens, P patches, H W a picture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_loss(img: Tensor, txt: Tensor, logit_scale: Tensor, *, label_offset: int = 0) -> Tensor:
    """Symmetric InfoNCE over a batch of matching pairs (CLIP, 2103.00020, figure 3; InfoNCE, 1807.03748).

    img (N, D) and txt (M, D), unit norm; logit_scale () is the multiplier itself, after exp. Row i of `img` matches row
    i + label_offset of `txt`. For M != N only the image-to-text direction is defined. Returns () in float32, or in
    float64 for float64 inputs. Raises ValueError on shapes that do not fit.
    """
    if img.ndim != 2 or txt.ndim != 2 or img.shape[1] != txt.shape[1]:
        raise ValueError(f"clip_loss needs img (N, D) and txt (M, D); got {tuple(img.shape)} and {tuple(txt.shape)}.")
    if len(img) == 0 or not 0 <= label_offset <= len(txt) - len(img):
        raise ValueError(f"{len(img)} images from label {label_offset} on do not fit {len(txt)} texts.")
    exact = torch.promote_types(img.dtype, torch.float32)
    logits = logit_scale.to(exact) * img.to(exact) @ txt.to(exact).T  # (N, M)
    target = torch.arange(len(img), device=img.device) + label_offset  # (N,)
    image_to_text = F.cross_entropy(logits, target)
    if len(img) != len(txt):
        return image_to_text
    return (image_to_text + F.cross_entropy(logits.T, target)) / 2


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
    never by comparing scores. Returns int64 (N,), or `Ranks` with `return_ties`. Raises ValueError on a target that is
    no candidate.
    """
    if query.ndim != 2 or cand.ndim != 2 or query.shape[1] != cand.shape[1]:
        raise ValueError(f"retrieval_ranks needs (N, D) and (M, D); got {tuple(query.shape)} and {tuple(cand.shape)}.")
    if target.shape != (len(query),) or (len(target) and not 0 <= int(target.min()) <= int(target.max()) < len(cand)):
        raise ValueError(f"target must name one of {len(cand)} candidates for each of {len(query)} queries.")
    scores = query @ cand.T  # (N, M)
    correct = torch.zeros_like(scores, dtype=torch.bool)
    correct[torch.arange(len(query), device=query.device), target] = True
    if groups is not None:
        correct |= groups[0][:, None] == groups[1][None, :]
    best = scores.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)  # (N, 1)
    better = ((scores > best) & ~correct).sum(dim=1)
    if not return_ties:
        return better
    return Ranks(better, ((scores == best) & ~correct).sum(dim=1), ((scores == best) & correct).sum(dim=1))
