"""What does not fit in a GPU's memory: computed in halves, or said in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mpm_lite import runtime


def in_halves(compute: Callable[[int, int], Any], start: int, stop: int, name: str) -> list[Any]:
    """What `compute(start, stop)` gives: in one piece, or, where memory runs out, in as many as it takes, in order.

    Raises UserError where not even one item fits.
    """
    try:
        return [compute(start, stop)]
    except torch.cuda.OutOfMemoryError as error:
        if stop - start < 2:
            raise runtime.UserError(
                f"{name}: the GPU's memory holds not even one item: free some (other models, other processes), lower the "
                "batch with MPM_LITE_PRESET=t4 or cpu, or use device='cpu'."
            ) from error
    # Not within `except`: there the failed attempt's tensors would still be alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (start + stop) // 2
    return in_halves(compute, start, middle, name) + in_halves(compute, middle, stop, name)


def frozen(model: torch.nn.Module, device: torch.device, name: str) -> torch.nn.Module:
    """The model on the device, in float32, without gradients and dropout. Raises UserError where it does not fit there."""
    try:
        return model.to(device).float().eval().requires_grad_(False)
    except torch.cuda.OutOfMemoryError as error:
        raise too_large(name) from error


def too_large(name: str) -> runtime.UserError:
    """The error for a model that the GPU's memory does not hold."""
    return runtime.UserError(f"{name} does not fit in the GPU's memory: load a smaller model, or device='cpu'.")
