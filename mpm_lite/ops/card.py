"""A short stay on a GPU, in the order of its worth: are the answers right there, what do the ops cost beside their peers, and
would other chunks or tiles cost less. `mpm-lite bench --card` runs it; on a CPU, on small shapes, to see that it runs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpm_lite.ops import bench
from mpm_lite.ops.bench import Case, Loss, call_op, list_impls
from mpm_lite.ops.plan import make_plan

# What is tried of each op: (n, m, d) and keywords. "rare" leaves most rows out, "bias" gives one to the layer, "mates" makes
# every tenth candidate correct. A few bytes for a chunk make many chunks.
TRIALS: dict[str, list[tuple[tuple[int, int, int], dict[str, Any]]]] = {
    "clip_loss": [
        ((257, 257, 96), {}), ((1024, 1024, 512), {}), ((130, 515, 128), {"label_offset": 7}),
        ((1024, 1024, 128), {"chunk_bytes": 2**21}),
    ],
    "siglip_loss": [
        ((257, 257, 96), {}), ((1024, 1024, 512), {}), ((130, 515, 128), {"label_offset": None}),
        ((1024, 1024, 128), {"chunk_bytes": 2**21}),
    ],
    "linear_cross_entropy": [
        ((100, 1001, 96), {}), ((512, 8192, 256), {"softcap": 5.0}), ((512, 8192, 256), {"reduction": "none"}),
        ((300, 1001, 96), {"rare": True}), ((300, 1001, 96), {"bias": True, "chunk_bytes": 2**18}),
    ],
    "retrieval_ranks": [((301, 2000, 128), {}), ((301, 2000, 128), {"mates": True})],
}  # fmt: skip
# Relative error of loss and gradients against float64 on the same rounded inputs, beside five times that of the reference
# in float32, and at most TOLERANT times as much in all. Of ranks, the share of queries that differ: one in a hundred, where
# two candidates may be too near to decide.
ALLOWED = {torch.bfloat16: 6e-3, torch.float16: 1.5e-3, torch.float32: 5e-5}
TOLERANT = 10
# One chunk of gradients of logits holds more than 2^31 numbers, where indices of 32 bits would come round.
LARGE = [Case(op, 4096, 600_000, 64, torch.bfloat16) for op in ("clip_loss", "siglip_loss", "linear_cross_entropy")]
CHUNKS = {"cuda": (128, 256, 512, 1024, 2048, 4096), "cpu": (1, 16)}  # MiB
KERNELS = {"clip_loss": ("lse", "clip_grad"), "siglip_loss": ("siglip_grad",), "retrieval_ranks": ("rank",)}


def check_op(op: str, device: torch.device) -> Iterator[dict[str, Any]]:
    """One row for every trial of an op: how far loss and gradients are from float64; and whether a second call, tensors that
    are not contiguous, and a forward and backward within autocast give the same bits."""
    for dtype, allowed in ALLOWED.items():
        for impl in list_impls(op, device):
            for (n, m, d), asked in TRIALS[op]:
                # Unbounded logits of a peaked vocabulary lose their last digits in any form, the reference's too.
                bounded = op != "linear_cross_entropy" or "softcap" in asked
                for data in ("random", "peaked") if bounded else ("random",):
                    case = Case(op, n, m, d, dtype)
                    row = {"op": op, "shape": f"{n} x {m} x {d}", "dtype": bench.shorten_dtype(dtype), "impl": impl}
                    row |= {"data": data, "asked": " ".join(f"{k}={v}" for k, v in asked.items())}
                    try:
                        found = try_case(case, device, impl, data, **asked)
                    except Exception as error:  # a kernel may fail in any way on a card that it never met
                        yield row | {"right": False, "said": bench.shorten_error(error)}
                        continue
                    bound = min(allowed + 5 * found["reference_error"], TOLERANT * allowed)
                    bound = 0.01 if op == "retrieval_ranks" else bound
                    right = found["error"] <= bound and found["same"]
                    yield row | found | {"allowed": bound, "right": right, "said": ""}


def try_case(
    case: Case, device: torch.device, impl: str, data: str, rare: bool = False, mates: bool = False, bias: bool = False,
    **asked: Any,
) -> dict[str, Any]:  # fmt: skip
    """The errors of one trial."""
    given = list(bench.tensors(case, device, data))
    ranks = case.op == "retrieval_ranks"
    if bias:
        given.append(torch.linspace(-1, 1, case.m, device=device).to(case.dtype))
    if rare:
        given[2] = given[2].masked_fill(torch.arange(case.n, device=device) % 5 > 0, -100)
    if ranks and data == "random":
        given[2] = given[2].flip(0)  # wrong targets, which stand anywhere
    if mates:
        asked["groups"] = (given[2] % 10, torch.arange(case.m, device=device) % 10)
    # As in training, float16 has a loss scale; a loss a row has weights.
    upstream = torch.linspace(0.5, 2, case.n, device=device) * (1024 if case.dtype == torch.float16 else 1)

    whole = {k: v for k, v in asked.items() if k != "chunk_bytes"}

    def run(tensors: list[Tensor], low: torch.dtype | None = None, **how: Any) -> list[Tensor]:
        learn = [t.detach().requires_grad_(t.is_floating_point() and not ranks) for t in tensors]
        with torch.autocast(device.type, low or torch.bfloat16, enabled=low is not None):
            loss = call_op(case, device, **(whole if how["impl"] == "reference" else asked), **how)(*learn)
            if not ranks:
                (loss * (upstream if loss.ndim else upstream[0])).sum().backward()
        return [loss.detach(), *(t.grad for t in learn if t.grad is not None)]

    def far(found: list[Tensor]) -> float:
        if ranks:
            return float((found[0] != truth[0]).double().mean())
        # Of a loss near 0 the difference counts, and float16 holds nothing below 6e-8.
        least = 6e-8 / ALLOWED[torch.float16] if case.dtype == torch.float16 else 1e-12
        norms = [truth[0].norm().clamp_min(1), *(t.norm().clamp_min(least * t.numel() ** 0.5) for t in truth[1:])]
        return max(float((a.double() - b).norm() / n) for a, b, n in zip(found, truth, norms, strict=True))

    def with_dtype(dtype: torch.dtype) -> list[Tensor]:
        return [t.to(dtype) if t.is_floating_point() else t for t in given]

    truth = run(with_dtype(torch.float64), impl="reference")
    found = run(given, impl=impl)
    apart = [t.repeat(1, 2)[:, : t.shape[1]] if t.ndim == 2 else t for t in given]  # not contiguous
    others = [run(given, impl=impl), run(apart, impl=impl)]
    if case.dtype != torch.float32 and not ranks:
        mixed = [t.float() if t.ndim == 2 else t for t in given]
        others.append([t.to(f.dtype) for t, f in zip(run(mixed, case.dtype, impl=impl), found, strict=True)])
    same = all(torch.equal(a, b) for other in others for a, b in zip(found, other, strict=True))
    return {"error": far(found), "reference_error": far(run(with_dtype(torch.float32), impl="reference")), "same": same}


def check_large(case: Case, device: torch.device) -> Iterator[dict[str, Any]]:
    """As `check_op`, for one large chunk against small ones of the same implementation."""
    given = bench.tensors(case, device)
    for impl in list_impls(case.op, device):
        row = {"op": case.op, "shape": f"{case.n} x {case.m} x {case.d}", "dtype": "bfloat16", "impl": impl}
        row |= {"data": "random", "asked": "one chunk", "allowed": ALLOWED[torch.bfloat16]}
        try:
            small, large = (
                bench.call_with_gradients(call_op(case, device, impl=impl, chunk_bytes=size), given, True)()
                for size in (2**30, 2**34)
            )
        except Exception as error:  # as above; and the card may be too small
            yield row | {"right": False, "said": bench.shorten_error(error)}
            continue
        pairs = zip(large, small, strict=True)
        errors = [float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs]
        right = all(error <= row["allowed"] for error in errors)  # which no NaN is
        yield row | {"error": max(errors), "same": True, "right": right, "said": ""}


def list_choices(case: Case, device: torch.device) -> dict[str, Loss]:
    """The providers of one case by the bytes of a chunk, and on CUDA by the tile of each of its kernels."""
    from mpm_lite.ops.kernels import tiles

    def with_tile(kernel: str, tile: tiles.Tile) -> Loss:
        call = call_op(case, device, impl="triton")
        call.within = partial(tiles.trying, kernel, torch.cuda.get_device_capability(device), tile)  # type: ignore[attr-defined]
        return call

    impls = list_impls(case.op, device)
    found, seen = {}, set()
    for impl in impls:
        for size in CHUNKS[device.type]:
            try:
                plan = make_plan(case.op, device, case.dtype, case.m, impl, size << 20)
            except ValueError:  # too small for a row
                continue
            if (impl, min(plan.rows, case.n)) not in seen:
                seen.add((impl, min(plan.rows, case.n)))
                found[f"mpm_lite {impl} {size} MiB"] = call_op(case, device, impl=impl, chunk_bytes=size << 20)
    if "triton" in impls:
        for kernel, tile in itertools.product(KERNELS.get(case.op, ()), tiles.CANDIDATES):
            words = " ".join(str(n) for n in astuple(tile) if n)
            found[f"mpm_lite triton {kernel} {words}"] = with_tile(kernel, tile)
    return found


def stay(device: torch.device, folder: Path, minutes: float) -> list[str]:
    """All of it in about `minutes`: nothing is begun after them. Writes checks.csv, cuda.csv (on a CPU small.csv) and sweep.csv
    to the folder as it goes, so that a cut leaves what was measured. An op that is not right is not timed. Returns
    sentences on what was not right, and on what was left out."""
    until, on_card = time.monotonic() + 60 * minutes, device.type == "cuda"
    large = LARGE if on_card and torch.cuda.get_device_properties(device).total_memory > 60e9 else []
    checks: list[dict[str, Any]] = []
    wrong: list[str] = []
    for rows in [*(check_op(op, device) for op in TRIALS), *(check_large(case, device) for case in large)]:
        checks += rows
        bench.write_table(folder / "checks.csv", checks)
        wrong = [row["op"] for row in checks if not row["right"]]
        print(f"checked {checks[-1]['op']}: {len(checks)} trials so far, {len(wrong)} not right")
    kind = "cuda" if on_card else "small"
    cases = [case for case in bench.list_cases(kind) if case.op not in wrong]
    late = bench.measure(cases, device, folder / f"{kind}.csv", rounds=9, until=until)
    choices = {"only": lambda case: list_choices(case, device), "until": until}
    late += bench.measure(cases, device, folder / "sweep.csv", rounds=9, **choices)
    said = [
        f"{op}: {wrong.count(op)} trials are not right (checks.csv), so it was not timed."
        for op in dict.fromkeys(wrong)
    ]
    return said + [f"{case} was left out: the {minutes:g} minutes are over." for case in late]
