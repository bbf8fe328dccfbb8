"""Triton kernels of the ops, imported only when one of them runs: this package needs nothing but torch.

`elementwise` holds no matrix product and runs from sm_75 on (a T4) next to cuBLAS; `contrastive` and `rank` hold the
products as well, which Triton gives to tensor cores from sm_80 on. With TRITON_INTERPRET=1 in the environment before
the first kernel is imported, everything runs on CPU tensors in Triton's interpreter: slow, and how the tests work.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os

import torch


def interpreting() -> bool:
    """Whether Triton interprets its kernels on the CPU; it reads the same variable when a kernel is defined."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def ready(device: torch.device, *, dot: bool = False) -> str:
    """'' where the Triton kernels can run on `device`, else one sentence that says why not.

    dot: ask for the kernels with matrix products, which are worth running from sm_80 on; otherwise only for the
    elementwise ones. Costs no synchronisation and imports nothing.
    """
    device = torch.device(device)
    try:
        found = importlib.util.find_spec("triton") is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        return "Triton is not installed: the CUDA builds of torch for Linux bring it, or `pip install triton`."
    if interpreting():
        return ""
    if device.type != "cuda":
        return f"Triton kernels need a CUDA device, not {device.type} (or TRITON_INTERPRET=1, which is slow)."
    if not torch.cuda.is_available():
        return "Triton kernels need a CUDA device, and torch sees none."
    if torch.version.cuda is None:
        return "The Triton kernels are written and tested for NVIDIA cards only."
    capability = torch.cuda.get_device_capability(device)
    needed = (8, 0) if dot else (7, 5)
    if capability < needed:
        name, have = torch.cuda.get_device_name(device), "".join(map(str, capability))
        return f"These Triton kernels need sm_{needed[0]}{needed[1]} or newer; {name} is sm_{have}."
    return ""


def use_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Triton launches on the current device: make it `device` meanwhile; nothing on the CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def programs_wanted(device: torch.device) -> int:
    """How many programs keep the whole card busy: two for each multiprocessor; a few in the interpreter, so that splits are
    exercised."""
    if device.type != "cuda":
        return 4
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count
