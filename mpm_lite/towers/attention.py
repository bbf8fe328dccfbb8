"""Which attention kernel a language model computes with, where the usual choice is slow or wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# All but cuDNN's.
SOUND = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def chosen(config: Any, device: torch.device) -> Iterator[None]:
    """While it lasts, a transformers model of this configuration attends in a way that suits the device.

    CPU, where a recipe trains in bfloat16: not fused, since that kernel's gradient costs more than all else there. CUDA: not
    by cuDNN. Prompts are padded to the left, so that under a causal mask the first places of a row see nothing, and the
    gradient that cuDNN's kernel gives of such rows is NaN at times (H100, torch 2.11; the other kernels' is right).
    """
    usual = config._attn_implementation
    slow = device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    config._attn_implementation = "eager" if slow and usual == "sdpa" else usual
    try:
        if device.type == "cuda":
            with sdpa_kernel(SOUND):
                yield
        else:
            yield
    finally:
        config._attn_implementation = usual
