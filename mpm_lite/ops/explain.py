"""What a call costs before it is made: operations, bytes, the floor they set, and what would run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mpm_lite.ops.choose import decide

# capability, and what a card sustains, not what its sheet says: dense half-precision TFLOP/s and TB/s, from published
# measurements. A T4 is held at about 24 of its 65 TFLOP/s by its 70 W limit.
MACHINES = {
    "h200": ((9, 0), 790.0, 4.3),
    "h100": ((9, 0), 740.0, 3.0),
    "a100": ((8, 0), 280.0, 1.8),
    "l4": ((8, 9), 90.0, 0.28),
    "t4": ((7, 5), 24.0, 0.30),
}
# Operations that the answer needs, in N M D: three products forward and back, or one to rank. Made-twice work is not useful.
USEFUL = {"clip_loss": 6, "siglip_loss": 6, "linear_cross_entropy": 6, "retrieval_ranks": 2}


@dataclass(frozen=True)
class Cost:
    """The account of one call, forward and gradients. Print it."""

    op: str
    shape: str
    impl: str
    why: str
    rows: int  # of a chunk
    tile: str  # of the Triton kernel, "" where none runs
    tflop_useful: float
    tflop_done: float
    bytes_inputs: int  # inputs and their gradients, in the input dtype
    bytes_matrix: int  # the N x M matrix the naive form keeps for its backward, float32
    bytes_chunk: int  # what the chosen implementation holds beside inputs and gradients
    floor_ms: (
        float | None
    )  # useful work at the machine's rate or bytes at its bandwidth, the longer; None without rates
    machine: str

    def __str__(self) -> str:
        lines = [f"{self.op} {self.shape} on {self.machine}: {self.impl} ({self.why})"]
        lines.append(f"  work   {self.tflop_useful:.3g} TFLOP useful, {self.tflop_done:.3g} done")
        lines.append(
            f"  bytes  {_bytes(self.bytes_inputs)} inputs and gradients; {_bytes(self.bytes_chunk)} beside them in chunks of"
            f" {self.rows} rows, where the naive form keeps {_bytes(self.bytes_matrix)}"
        )
        floor = "give rate=(TFLOP/s, TB/s) to have one" if self.floor_ms is None else f"{self.floor_ms:.3g} ms"
        lines.append(f"  floor  {floor}")
        return "\n".join([*lines, f"  tile   {self.tile}"] if self.tile else lines)


def explain(
    fn: str | Callable,
    *,
    N: int,
    M: int | None = None,
    D: int,
    V: int | None = None,
    dtype: torch.dtype | None = None,
    machine: str | None = None,
    impl: str = "auto",
    chunk_bytes: int | None = None,
    rate: tuple[float, float] | None = None,
) -> Cost:
    """FLOPs, bytes, the floor in milliseconds, and which implementation and tile would run; nothing is computed.

    fn: an op or its name. N rows, M columns (default N) or V tokens, D width. machine: "cpu" or one of MACHINES; default
    the one at hand. dtype: default float32 on a CPU, bfloat16 elsewhere (float16 on a T4). rate: (TFLOP/s, TB/s) of a
    machine whose rates are not listed. Raises ValueError on unknown names.
    """
    op = fn if isinstance(fn, str) else fn.__name__
    if op not in USEFUL:
        raise ValueError(f"explain knows {', '.join(USEFUL)}; got {op!r}.")
    machine = machine or _here()
    if machine != "cpu" and machine not in MACHINES:
        raise ValueError(f"explain knows the machines cpu, {', '.join(MACHINES)}; got {machine!r}.")
    able, *listed = MACHINES.get(machine, ((0, 0), None, None))
    dtype = dtype or (torch.float32 if machine == "cpu" else torch.bfloat16 if able >= (8, 0) else torch.float16)
    columns = V or M or N
    kind, missing = ("cpu", "there is no CUDA device") if machine == "cpu" else ("cuda", "")
    layout = decide(op, kind, able, missing, dtype, columns, impl, chunk_bytes)
    rows, matrix = min(N, layout.rows), 4 * N * columns
    work = 1e-12 * N * columns * D
    inputs = (1 if op == "retrieval_ranks" else 2) * dtype.itemsize * D * (N + columns)
    held = rows * layout.row_bytes
    if layout.impl == "reference":
        held = 2 * matrix
    elif layout.impl == "triton" and op != "linear_cross_entropy":
        held = rows * columns * dtype.itemsize if op != "retrieval_ranks" else 24 * N
    tflops, tbs = rate or listed
    floor = None if tflops is None else 1e3 * max(USEFUL[op] * work / tflops, inputs * 1e-12 / tbs)
    return Cost(
        op=op,
        shape=f"{N} x {columns} x {D} {str(dtype).removeprefix('torch.')}",
        impl=layout.impl,
        why=layout.why,
        rows=rows,
        tile=_tile(op, able, dtype, D) if layout.impl == "triton" else "",
        tflop_useful=USEFUL[op] * work,
        tflop_done=(8 if op == "clip_loss" and layout.impl != "reference" else USEFUL[op]) * work,
        bytes_inputs=inputs,
        bytes_matrix=matrix,
        bytes_chunk=held,
        floor_ms=floor,
        machine=machine,
    )


def _here() -> str:
    """The name in MACHINES of the card at hand, or cpu."""
    if not torch.cuda.is_available():
        return "cpu"
    name = torch.cuda.get_device_name().lower()
    for known in MACHINES:
        if known in name:
            return known
    raise ValueError(f"explain has no rates for {name!r}; name the nearest of {', '.join(MACHINES)} as machine.")


def _tile(op: str, able: tuple[int, int], dtype: torch.dtype, width: int) -> str:
    """The tile of the kernel that does the product, in words."""
    from mpm_lite.ops.kernels import tiles

    kernel = {"clip_loss": "clip_grad", "siglip_loss": "siglip_grad", "retrieval_ranks": "rank"}.get(op)
    if kernel is None:
        return "cuBLAS products, one elementwise kernel in place"
    tile = tiles.pick(kernel, able, dtype, width)
    return f"{tile.bm} x {tile.bn} x {tile.bd}, {tile.warps} warps, {tile.stages} stages"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.3g} {unit}"
        count /= 1024
    return ""
