"""The one place that decides which implementation runs, in which chunks, and with which precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch

IMPLS = ("auto", "reference", "chunked", "triton")
MIB = 1 << 20
# What a chunk may take: large enough that the products run at full speed, small beside the inputs.
BUDGET = {  # op: (CPU, CUDA)
    "clip_loss": (16 * MIB, 256 * MIB),
    "siglip_loss": (16 * MIB, 256 * MIB),
    "retrieval_ranks": (64 * MIB, 256 * MIB),
    "linear_cross_entropy": (64 * MIB, 1024 * MIB),
}
# Chunk-sized buffers that are alive at once.
LIVE = {"clip_loss": 2, "siglip_loss": 2, "retrieval_ranks": 2, "linear_cross_entropy": 1}
# Ops whose kernel is slower than chunks (83 ms beside 68 on an H100, seven runs: assets/bench/provisional).
CHUNKS_WIN = ("siglip_loss",)


@dataclass(frozen=True)
class Plan:
    """How one call runs."""

    op: str
    impl: str  # reference | chunked | triton
    why: str  # the reason, for people
    rows: int  # of the first matrix in a chunk
    row_bytes: int  # what each of them takes while it is worked on
    exact: torch.dtype  # of loss, scalar gradients and accumulators
    elementwise: bool  # chunked: the work between two products runs in one Triton kernel


def capability(device: torch.device) -> tuple[int, int]:
    """(major, minor) of a CUDA device; (0, 0) elsewhere."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def plan(
    op: str,
    device: torch.device,
    dtype: torch.dtype,
    columns: int,
    impl: str = "auto",
    chunk_bytes: int | None = None,
    accum_dtype: torch.dtype | None = None,
) -> Plan:
    """Decide for one op on this device, for matrices of `columns` columns (M, or V)."""
    from mpm_lite.ops.kernels import ready

    return decide(op, device.type, capability(device), ready(device), dtype, columns, impl, chunk_bytes, accum_dtype)


def decide(
    op: str,
    kind: str,
    able: tuple[int, int],
    missing: str,
    dtype: torch.dtype,
    columns: int,
    impl: str = "auto",
    chunk_bytes: int | None = None,
    accum_dtype: torch.dtype | None = None,
) -> Plan:
    """The rule, on a machine that need not be here: kind cpu or cuda, its capability, why Triton is missing ("": it is not).

    auto: triton on CUDA from capability 8.0 on (below, tl.dot has no tensor cores) but for CHUNKS_WIN, chunked everywhere
    else. float64 always runs chunked: it is there to be exact. Raises ValueError or RuntimeError where it cannot be.
    """
    if impl not in IMPLS:
        raise ValueError(f"{op}: impl must be one of {', '.join(IMPLS)}; got {impl!r}.")
    exact = accum_dtype or torch.promote_types(dtype, torch.float32)
    if exact not in (torch.float32, torch.float64) or torch.promote_types(exact, dtype) != exact:
        raise ValueError(f"{op}: accum_dtype must be float32 or float64 and hold {dtype}; got {exact}.")
    no_kernel = missing or ("there is no float64 kernel" if exact == torch.float64 else "")
    old = "" if able >= (8, 0) or kind == "cpu" else "tl.dot has no tensor cores before capability 8.0"
    if impl == "triton" and (no_kernel or old):
        raise RuntimeError(
            f"{op}: impl='triton' cannot run: {(no_kernel or old).rstrip('.')}. Use impl='chunked' or 'auto'."
        )
    why = "asked for"
    if impl == "auto" and kind == "cuda" and not no_kernel and not old and op not in CHUNKS_WIN:
        impl, why = "triton", "CUDA from capability 8.0 on"
    elif impl == "auto":
        slower = "its kernel measured slower than chunks" if kind == "cuda" else "on a CPU kernels are only interpreted"
        impl, why = "chunked", no_kernel or old or slower
    # On CUDA logits of a vocabulary stay in the input dtype and are overwritten by their gradient.
    row = columns * (dtype.itemsize if kind == "cuda" and op == "linear_cross_entropy" else LIVE[op] * exact.itemsize)
    budget = chunk_bytes if chunk_bytes is not None else BUDGET[op][kind == "cuda"]
    if impl != "reference" and budget < row:
        raise ValueError(f"{op}: chunk_bytes={budget} is too small for a row of {columns} columns; give {row} or more.")
    elementwise = impl == "chunked" and kind == "cuda" and not no_kernel
    return Plan(op, impl, why, max(1, budget // row), row, exact, elementwise)
