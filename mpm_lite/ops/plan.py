"""The one place that decides which implementation runs, in which chunks and with which precision; what a call would cost
before it is made (operations, bytes, the floor they set); what torch.autocast changes; and what the ops refuse, each with one
sentence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IMPLS = ("auto", "reference", "chunked", "triton")
MIB = 1 << 20
# What a chunk may take: large enough that the products run at full speed, small beside the inputs.
BUDGET = {  # op: (CPU, CUDA)
    "clip_loss": (24 * MIB, 1024 * MIB),
    "siglip_loss": (24 * MIB, 1024 * MIB),
    "retrieval_ranks": (64 * MIB, 256 * MIB),
    "linear_cross_entropy": (64 * MIB, 1024 * MIB),
}
# Chunk-sized buffers in the exact dtype that are alive at once, where torch does all the work. A softcap needs two more.
LIVE = {"clip_loss": 3, "siglip_loss": 3, "retrieval_ranks": 2, "linear_cross_entropy": 1}
# On CUDA every chunk reads and writes the sum of the second matrix's gradients once, which takes about 330 / rows of the time
# of the arithmetic: a tenth is left at 4,096 rows, and more rows only take memory. A product whose height is a multiple of
# 256 leaves no tile of it half empty.
MOST_ROWS, MULTIPLE = 4096, 256
# Where torch makes the product on CUDA and a kernel the rest: rows whose cosines, in the exact dtype, lie there at once.
PIECE = 256
# Most gradients of a trained batch are below 6e-5, where float16 loses digits: the losses of pairs write them larger, and
# divide the sums by it. No gradient exceeds 2. Cards before capability 8.0 return sums in float16, so there 8 times sums of
# TERMS gradients must stay below 65,504.
GROW, GROW_OLD, TERMS = 1024, 8, 4096
# Ops whose kernel is slower than chunks (83 ms beside 68 on an H100, in seven runs, with chunks of 512 rows).
CHUNKS_WIN = ("siglip_loss",)


@dataclass(frozen=True)
class ChunkPlan:
    """How one call runs."""

    op: str
    impl: str  # reference | chunked | triton
    why: str  # the reason, for people
    rows: int  # of the first matrix in a chunk
    piece: int  # of those, the rows whose products lie in memory at once: fewer where torch makes the product on CUDA
    row_bytes: tuple[int, int]  # what a row takes meanwhile: its products, and their gradients where these lie apart
    exact: torch.dtype  # of loss, scalar gradients and accumulators
    elementwise: bool  # the work between two products runs in one Triton kernel
    grow: int  # what a kernel multiplies the gradients of logits by before it rounds them

    def count_bytes(self, rows: int) -> int:
        """What a chunk of so many rows takes while it is worked on."""
        return min(self.piece, rows) * self.row_bytes[0] + rows * self.row_bytes[1]


def capability(device: torch.device) -> tuple[int, int]:
    """(major, minor) of a CUDA device; (0, 0) elsewhere."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def make_plan(
    op: str, device: torch.device, dtype: torch.dtype, columns: int, impl: str = "auto", chunk_bytes: int | None = None,
    accum_dtype: torch.dtype | None = None,
) -> ChunkPlan:  # fmt: skip
    """Decide for one op on this device, for matrices of `columns` columns (M, or V)."""
    from mpm_lite.ops.kernels import ready

    return decide(op, device.type, capability(device), ready(device), dtype, columns, impl, chunk_bytes, accum_dtype)


def decide(
    op: str, kind: str, able: tuple[int, int], missing: str, dtype: torch.dtype, columns: int, impl: str = "auto",
    chunk_bytes: int | None = None, accum_dtype: torch.dtype | None = None,
) -> ChunkPlan:  # fmt: skip
    """The rule, for a machine that need not be this one: `kind` is cpu or cuda, `able` its compute capability, and `missing`
    says why Triton cannot run there ("" where it can).

    auto: triton on CUDA from capability 8.0 on in half precision (elsewhere tl.dot has no tensor cores), but for CHUNKS_WIN
    and for linear_cross_entropy, whose products are always torch's; chunked everywhere else. float64 always runs chunked: it
    is there to be exact. Raises ValueError or RuntimeError where it cannot be.
    """
    if impl not in IMPLS:
        raise ValueError(f"{op}: impl must be one of {', '.join(IMPLS)}; got {impl!r}.")
    exact = accum_dtype or torch.promote_types(dtype, torch.float32)
    if exact not in (torch.float32, torch.float64) or torch.promote_types(exact, dtype) != exact:
        raise ValueError(f"{op}: accum_dtype must be float32 or float64 and hold {dtype}; got {exact}.")
    no_kernel = missing or ("there is no float64 kernel" if exact == torch.float64 else "")
    old = "" if able >= (8, 0) or kind == "cpu" else "tl.dot has no tensor cores before capability 8.0"
    if impl == "triton" and (no_kernel or old):
        reason = (no_kernel or old).rstrip(".")
        raise RuntimeError(f"{op}: impl='triton' cannot run: {reason}. Use impl='chunked' or 'auto'.")
    why = "asked for"
    if impl == "auto":
        against = no_kernel or old or _reason_for_chunks(op, kind, dtype)
        impl, why = ("chunked", against) if against else ("triton", "half precision on CUDA from capability 8.0 on")
    elementwise = impl == "triton" or (impl == "chunked" and kind == "cuda" and not no_kernel)
    products, gradients = row_bytes = _row_bytes(op, kind, impl, elementwise, columns, dtype.itemsize, exact.itemsize)
    budget, least = BUDGET[op][kind == "cuda"] if chunk_bytes is None else chunk_bytes, products + gradients
    if impl != "reference" and budget < least:
        raise ValueError(
            f"{op}: chunk_bytes={budget} is too small for a row of {columns} columns; give {least} or more."
        )
    if products and gradients:
        piece = max(1, min(PIECE, budget // 4 // products))
        rows = (budget - piece * products) // gradients
    else:
        piece = rows = max(1, budget // max(1, least))
    if kind == "cuda" and op != "retrieval_ranks":
        rows = rows if chunk_bytes else min(rows, MOST_ROWS)
        rows -= rows % MULTIPLE if rows > MULTIPLE else 0
    half = dtype == torch.float16 and elementwise and op in ("clip_loss", "siglip_loss")
    grow = (GROW if able >= (8, 0) or kind == "cpu" else GROW_OLD) if half else 1
    return ChunkPlan(op, impl, why, rows, min(piece, rows), row_bytes, exact, elementwise, grow)


def _row_bytes(
    op: str, kind: str, impl: str, elementwise: bool, columns: int, size: int, exact: int
) -> tuple[int, int]:  # fmt: skip
    """What a row takes while it is worked on: its products, and their gradients where these lie apart. `size` and `exact`
    are the bytes of a number of the input and of an exact one."""
    if kind == "cuda" and op == "linear_cross_entropy":
        # In the input dtype, overwritten by their gradients; without a kernel for that, exact copies beside them.
        return columns * (size if elementwise else size + exact), 0
    if impl == "triton" and op == "retrieval_ranks":
        return 0, 0  # scores stay in registers, and leave counts
    if impl == "triton" and op != "linear_cross_entropy":
        return 0, columns * size  # cosines stay in registers
    if elementwise and op in ("clip_loss", "siglip_loss"):
        return columns * exact, columns * size
    return LIVE[op] * columns * exact, 0


def _reason_for_chunks(op: str, kind: str, dtype: torch.dtype) -> str:
    """Why `auto` takes chunks although there are kernels; "" where it takes the kernels."""
    if kind == "cpu":
        return "on a CPU kernels are only interpreted"
    if op == "linear_cross_entropy":
        return "its products are torch's, with one kernel between them"
    if op in CHUNKS_WIN:
        return "its kernel measured slower than chunks"
    return "" if dtype.itemsize == 2 else "float32 products in Triton use no tensor cores"


# What a call would cost.

# Capability, and what a card sustains, not what its sheet says: dense half-precision TFLOP/s and TB/s, from published
# measurements. A T4 is held at about 24 of its 65 TFLOP/s by its 70 W limit.
MACHINES = {
    "h200": ((9, 0), 790.0, 4.3),
    "h100": ((9, 0), 740.0, 3.0),
    "a100": ((8, 0), 280.0, 1.8),
    "l4": ((8, 9), 90.0, 0.28),
    "t4": ((7, 5), 24.0, 0.30),
}
# Operations that the answer needs, in N M D: three products forward and back, or one to rank. Work done twice is not useful.
USEFUL = {"clip_loss": 6, "siglip_loss": 6, "linear_cross_entropy": 6, "retrieval_ranks": 2}


@dataclass(frozen=True)
class Cost:
    """What one call costs, forward and gradients; print it to read it."""

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
    bytes_chunk: int  # what the chosen implementation holds beside inputs and gradients: a chunk, and sums of gradients
    floor_ms: float | None  # the longer of work at the machine's rate and bytes at its bandwidth; None without rates
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
    fn: str | Callable, *, N: int, M: int | None = None, D: int, V: int | None = None, dtype: torch.dtype | None = None,
    machine: str | None = None, impl: str = "auto", chunk_bytes: int | None = None,
    rate: tuple[float, float] | None = None,
) -> Cost:  # fmt: skip
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
    # Sums of half-precision gradients take more than the gradients that become of them.
    summed = {"clip_loss": columns, "siglip_loss": N + columns, "linear_cross_entropy": N + columns}.get(op, 0)
    held = layout.count_bytes(rows) + (layout.exact.itemsize - dtype.itemsize) * D * summed
    if layout.impl == "reference":
        held = 2 * matrix
    elif layout.impl == "triton" and op == "retrieval_ranks":
        held = 24 * N
    tflops, tbs = rate or listed
    floor = None if tflops is None else 1e3 * max(USEFUL[op] * work / tflops, inputs * 1e-12 / tbs)
    shape = f"{N} x {columns} x {D} {str(dtype).removeprefix('torch.')}"
    tile = _tile(op, able, dtype, D) if layout.impl == "triton" else ""
    done = 8 if op == "clip_loss" and layout.impl != "reference" else USEFUL[op]
    return Cost(
        op=op, shape=shape, impl=layout.impl, why=layout.why, rows=rows, tile=tile, machine=machine, floor_ms=floor,
        tflop_useful=USEFUL[op] * work, tflop_done=done * work,
        bytes_inputs=inputs, bytes_matrix=matrix, bytes_chunk=held,
    )  # fmt: skip


def _here() -> str:
    """The name in MACHINES of the card in this machine, or cpu."""
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
        return "products of cuBLAS, one elementwise kernel in place"
    tile = tiles.pick(kernel, able, dtype, width)
    return f"{tile.bm} x {tile.bn} x {tile.bd}, {tile.warps} warps, {tile.stages} stages"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.3g} {unit}"
        count /= 1024
    return ""


# Under torch.autocast: it chooses the dtype of the matrices, and computes nothing in the ops itself.
#
# Autocast converts the inputs of every matrix product that it sees, also in a backward pass that is called within it. The
# ops choose the dtype of every sum themselves, so their forward and their backward both run with autocast switched off.


def autocast_off(device: torch.device) -> torch.autocast:
    """A context in which autocast does nothing to tensors on `device`."""
    return torch.autocast(device.type, enabled=False)


def without_autocast(compute: Callable) -> Callable:
    """Decorate the forward or backward of an autograd.Function so that it runs with autocast switched off.

    Unlike torch.amp.custom_bwd, which has to be told a device type in advance, it takes the device of its first tensor,
    and the backward need not be called in the same autocast state as the forward.
    """

    @functools.wraps(compute)
    def call(*args: Any) -> Any:
        with autocast_off(next(arg.device for arg in args if isinstance(arg, Tensor))):
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


# What the ops refuse.

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_matrices(op: str, **named: Tensor) -> None:
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


def check_scalar(op: str, name: str, value: Tensor) -> None:
    """One number. Raises ValueError."""
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(f"{op} needs {name} as one float; got {value.dtype} {tuple(value.shape)}.")


def check_offset(op: str, rows: int, columns: int, label_offset: int) -> None:
    """Labels label_offset ... label_offset + rows - 1 must be columns. Raises ValueError."""
    if not 0 <= label_offset <= columns - rows:
        raise ValueError(
            f"{op}: {rows} rows matched from column {label_offset} on do not fit {columns} columns; "
            "give a label_offset between 0 and M - N."
        )


def check_targets(op: str, target: Tensor, rows: int, device: torch.device) -> None:
    """int64 (N,), on the same device. Raises ValueError."""
    if target.dtype != torch.int64 or target.shape != (rows,):
        raise ValueError(f"{op} needs target as int64 ({rows},); got {target.dtype} {tuple(target.shape)}.")
    if target.device != device:
        raise ValueError(f"{op}: target is on {target.device}, the rest on {device}; move it with .to().")


def check_in_range(op: str, target: Tensor, top: int) -> None:
    """Every target names one of `top` columns. Reads values: a sync on CUDA. Raises ValueError."""
    if len(target):
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= top:
            raise ValueError(f"{op}: targets run from {low} to {high}; {top} columns allow 0 to {top - 1}.")


def check_finite(op: str, **named: Tensor | None) -> None:
    """No NaN or infinity in any of them. Reads values: a sync on CUDA. Raises ValueError."""
    for name, tensor in named.items():
        # A sum needs no second tensor, and only one that is not finite calls for a closer look.
        if tensor is None or bool(torch.isfinite(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)))):
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{op}: {name} holds NaN or infinity; look at what made it.")
