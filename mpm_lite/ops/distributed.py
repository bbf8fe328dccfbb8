"""Training in several processes: each has rows of its own, and InfoNCE compares them with the rows of all.

The loss is the mean of what the processes return, and data-parallel training averages their gradients in the same way: the
result is the gradient that a single process would have of all rows together. With one process nothing here has any effect.

Shapes: n rows of a process, W processes, N = W n rows in all, D features.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mpm_lite import ops
from mpm_lite.ops.plan import explain

PATIENCE = timedelta(hours=6)  # the first process may encode a whole set while the others wait


def count_processes() -> int:
    """The number of processes W; 1 where only one was started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def join_processes(device: Any = None) -> None:
    """Join the other processes, where a launcher started several, and take this one's GPU. May be called twice."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        on_cpu = torch.device(device or "cuda").type == "cpu" or not torch.cuda.is_available()
        PartialState(cpu=on_cpu, timeout=PATIENCE)


@contextmanager
def run_first() -> Iterator[None]:
    """Let the first process go first; the others follow when it is through, and find on disk what it has made."""
    if count_processes() > 1 and rank():
        dist.barrier()
    try:
        yield
    finally:
        if count_processes() > 1 and not rank():
            dist.barrier()


def rank() -> int:
    """The number of this process, from 0 on."""
    return dist.get_rank() if count_processes() > 1 else 0


class _Gather(torch.autograd.Function):
    """Forward, each process gets the rows of all; backward, the gradients that all have for a process's rows are summed.

    A gather that only copied would lose gradient: a row is a negative for the rows of all other processes too. The sums are
    scattered as they are made: on NCCL, to sum everything everywhere and keep one part of it would send twice as much.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.cat(all_rows(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        whole = grads[0].contiguous()
        own = torch.empty_like(whole[: len(whole) // count_processes()])
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # its older name
        scatter(own, whole)
        return own


def gather(x: Tensor) -> Tensor:
    """The rows (n, ...) of all processes in their order: (N, ...), with gradient. Each must bring the same number n."""
    return _Gather.apply(x) if count_processes() > 1 else x


def first_row(n: int) -> int:
    """Where this process's n rows begin among all."""
    return rank() * n


def clip_loss(img: Tensor, txt: Tensor, logit_scale: Tensor | float, **options: Any) -> Tensor:
    """`ops.clip_loss` of this process's pairs (n, D) against the rows of all; its mean over processes is the loss of all N."""
    if count_processes() == 1:
        return ops.clip_loss(img, txt, logit_scale, **options)
    options["label_offset"] = first_row(len(img))
    to_text = ops.clip_loss(img, gather(txt), logit_scale, **options)
    return (to_text + ops.clip_loss(txt, gather(img), logit_scale, **options)) / 2


def simulate(pairs: int, cards: int, width: int, ms_a_logit: float, gigabytes: float) -> dict[str, float]:
    """What `clip_loss` over `pairs` pairs of `width` numbers in half precision would take on each of several cards.

    `ms_a_logit`: of a symmetric loss on one card, forward and gradients, by a measurement; `gigabytes` a second that a card sends
    to its neighbour. On several cards each compares its pictures with all captions and its captions with all pictures: twice
    as many logits as one card has for as many pairs. A ring sends all features but its own, and their gradients back.
    Sending and computing may take place in turn, or at best at once.
    """
    own = pairs // cards
    compute = ms_a_logit * own * pairs * (2 if cards > 1 else 1)
    features = 2 * 2e-9 * pairs * width if cards > 1 else 0.0  # both sides, GB
    sent = 2 * features * (cards - 1) / cards  # there, and the gradients back
    send = 1e3 * sent / gigabytes
    # Both gathered sides, the gradients of one at a time, and what the op holds beside them.
    beside = explain("clip_loss", N=own, M=pairs, D=width, machine="h100").bytes_chunk
    held = features + 2e-9 * pairs * width + 1e-9 * beside
    return {
        "compute_ms": compute, "send_ms": send, "together_ms": max(compute, send), "apart_ms": compute + send,
        "sent_gb": sent, "held_gb": held,
    }  # fmt: skip


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum over processes, without gradient."""
    x = x.detach().clone()
    if count_processes() > 1:
        dist.all_reduce(x)
    return x


def all_rows(x: Tensor) -> list[Tensor]:
    """The x of each process, without gradient; all must have one shape."""
    if count_processes() == 1:
        return [x]
    parts = [torch.empty_like(x) for _ in range(count_processes())]
    dist.all_gather(parts, x.contiguous())
    return parts


def random_state(on: torch.device) -> dict[str, Tensor]:
    """The states of the random generators of all processes, as a checkpoint holds them."""
    found = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state(on)} if on.type == "cuda" else {})
    states = {k: all_rows(v.to(on)) for k, v in found.items()}
    return {k if not r else f"{k}-{r}": v.cpu() for k, of in states.items() for r, v in enumerate(of)}


def set_random_state(saved: dict[str, Tensor], on: torch.device) -> None:
    """Restore this process's random generators; a process that did not exist when they were saved keeps its own."""
    tail = f"-{rank()}" if rank() else ""
    if "cpu" + tail in saved:
        torch.set_rng_state(saved["cpu" + tail])
    if on.type == "cuda" and "cuda" + tail in saved:
        torch.cuda.set_rng_state(saved["cuda" + tail], on)
