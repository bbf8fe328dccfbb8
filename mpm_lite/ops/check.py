"""What the ops refuse, each with one sentence that says what is wrong and what to do."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def matrices(op: str, **named: Tensor) -> None:
    """Two matrices (N, D) and (M, D): one width, one float dtype, one device, nothing empty. Raises ValueError."""
    (a, x), (b, y) = named.items()
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor) or tensor.ndim != 2:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{op} needs {name} as a matrix (rows, width); got {got}.")
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{op} needs {name} in a float dtype; got {tensor.dtype}: call .float() on it.")
        if 0 in tensor.shape:
            raise ValueError(f"{op} needs at least one row and one column in {name}; got {tuple(tensor.shape)}.")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{op}: {a} {tuple(x.shape)} and {b} {tuple(y.shape)} differ in width; both need D columns.")
    if x.dtype != y.dtype:
        raise ValueError(f"{op}: {a} is {x.dtype} and {b} is {y.dtype}; convert one, or run under torch.autocast.")
    if x.device != y.device:
        raise ValueError(f"{op}: {a} is on {x.device} and {b} on {y.device}; move one with .to().")


def scalar(op: str, name: str, value: Tensor) -> None:
    """One number. Raises ValueError."""
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(f"{op} needs {name} as one float; got {value.dtype} {tuple(value.shape)}.")


def offset(op: str, rows: int, columns: int, label_offset: int) -> None:
    """Labels label_offset ... label_offset + rows - 1 must be columns. Raises ValueError."""
    if not 0 <= label_offset <= columns - rows:
        raise ValueError(
            f"{op}: {rows} rows matched from column {label_offset} on do not fit {columns} columns; "
            "give a label_offset between 0 and M - N."
        )


def targets(op: str, target: Tensor, rows: int, device: torch.device) -> None:
    """int64 (N,), on the same device. Raises ValueError."""
    if target.dtype != torch.int64 or target.shape != (rows,):
        raise ValueError(f"{op} needs target as int64 ({rows},); got {target.dtype} {tuple(target.shape)}.")
    if target.device != device:
        raise ValueError(f"{op}: target is on {target.device}, the rest on {device}; move it with .to().")


def in_range(op: str, target: Tensor, top: int) -> None:
    """Every target names one of `top` columns. Reads values: a sync on CUDA. Raises ValueError."""
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < top:
        raise ValueError(
            f"{op}: targets run from {int(target.min())} to {int(target.max())}; {top} columns allow 0 to {top - 1}."
        )


def finite(op: str, **named: Tensor | None) -> None:
    """No NaN or infinity in any of them. Reads values: a sync on CUDA. Raises ValueError."""
    for name, tensor in named.items():
        # A sum needs no second tensor, and only one that is not finite calls for a closer look.
        if tensor is None or bool(torch.isfinite(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)))):
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{op}: {name} holds NaN or infinity; look at what made it.")
