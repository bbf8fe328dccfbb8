"""How the ops behave under torch.autocast: it chooses the dtype of the matrices, and computes nothing in the ops itself.

Autocast converts the inputs of every matrix product that it sees, also in a backward pass that is called within it. The
ops choose the dtype of every sum themselves, so their forward and their backward both run with autocast switched off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def off(device: torch.device) -> torch.autocast:
    """A context in which autocast does nothing to tensors on `device`."""
    return torch.autocast(device.type, enabled=False)


def without_autocast(compute: Callable) -> Callable:
    """Decorate the forward or backward of an autograd.Function so that it runs with autocast switched off.

    Unlike torch.amp.custom_bwd, which has to be told a device type in advance, it takes the device of its first tensor,
    and the backward need not be called in the same autocast state as the forward.
    """

    @functools.wraps(compute)
    def call(*args: Any) -> Any:
        with off(next(arg.device for arg in args if isinstance(arg, Tensor))):
            return compute(*args)

    return call


def _low(matrices: tuple[Tensor, ...]) -> torch.dtype | None:
    """Autocast's dtype on the device of the matrices; None where it is off, or leaves them alone (integers, float64)."""
    if not all(isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 for t in matrices):
        return None
    kind = matrices[0].device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def for_product(*matrices: Tensor) -> list[Tensor]:
    """The matrices in autocast's dtype where it is on, as for any product."""
    low = _low(matrices)
    return list(matrices) if low is None else [t.to(low) for t in matrices]


def for_measurement(*matrices: Tensor) -> list[Tensor]:
    """The matrices in the widest dtype of them where autocast is on: they may differ there, and none loses a digit."""
    if _low(matrices) is None:
        return list(matrices)
    wide = functools.reduce(torch.promote_types, (t.dtype for t in matrices))
    return [t.to(wide) for t in matrices]


class Product(torch.autograd.Function):
    """a (R, K) @ b (K, M) -> (R, M), in the dtype of a and b, also where its backward is called within autocast.

    Differentiable any number of times, and usable under torch.func transforms.
    """

    generate_vmap_rule = True

    @staticmethod
    @without_autocast
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        need_a, need_b = ctx.needs_input_grad
        return product(upstream, b.mT) if need_a else None, product(a.mT, upstream) if need_b else None

    @staticmethod
    @without_autocast
    def jvp(ctx: Any, of_a: Tensor | None, of_b: Tensor | None) -> Tensor:
        a, b = ctx.saved_tensors
        if of_a is None or of_b is None:
            return a @ of_b if of_a is None else of_a @ b
        return of_a @ b + a @ of_b


product: Callable[[Tensor, Tensor], Tensor] = Product.apply
