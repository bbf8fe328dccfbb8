"""The benchmark: every provider on the same tensors, in turn, with its float64 error and its memory beside its time.

Importable with torch alone. Times are medians with their 20th and 80th percentile over rounds in which the providers take
turns, so that a slow moment of the machine falls on all of them; on CUDA by events, with the L2 cache flushed before each
run. Memory is the peak above what was there before, without the gradients that the caller asked for. TFLOP/s count useful
work for everybody alike (plan.USEFUL); the first run of a provider (compilation included) is not timed. Peers are imported
only here and only where they are installed; one that cannot run on a device is left out.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpm_lite import ops
from mpm_lite.ops import reference
from mpm_lite.ops.plan import USEFUL, explain, make_plan

Loss = Callable[..., Tensor]


def naive_clip(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    """InfoNCE by one product in the input dtype, as a training loop without this library would compute it."""
    logits = s.to(a.dtype) * a @ b.T
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def naive_tokens(x: Tensor, w: Tensor, t: Tensor) -> Tensor:
    """The loss over a vocabulary with all logits at once."""
    return F.cross_entropy(F.linear(x, w), t)


# Peers. Each function here imports a library and returns its loss, as a function of `tensors`.


def _inf_cl() -> Loss:
    each = importlib.import_module("inf_cl").cal_flash_loss  # a loss a row
    one_way = lambda a, b, s: each(a, b, scale=s, head_dim=256).mean()  # noqa: E731
    return lambda a, b, s: (one_way(a, b, s) + one_way(b, a, s)) / 2


def _open_clip_siglip(bias: Tensor) -> Loss:
    loss = importlib.import_module("open_clip.loss").SigLipLoss()
    return lambda a, b, s: loss(a, b, s, bias)


def _siglip_kernel(bias: Tensor, **options: Any) -> Loss:
    loss = importlib.import_module("siglip_kernel").siglip_loss
    return lambda a, b, s: loss(a, b, s.log(), bias, **options)


def _torch_tokens(**options: Any) -> Loss:
    chosen = {"options": torch.nn.LinearCrossEntropyOptions(**options)} if options else {}
    return lambda x, w, t: F.linear_cross_entropy(x, w, t, **chosen)


def _liger(**options: Any) -> Loss:
    function = importlib.import_module(
        "liger_kernel.ops.fused_linear_cross_entropy"
    ).LigerFusedLinearCrossEntropyFunction
    # autograd.Function.apply takes no keywords: put the options where this version's signature has them.
    order = list(inspect.signature(function.forward).parameters.values())[5:]  # after ctx, x, weight, target, bias
    given = [options.get(p.name, None if p.default is p.empty else p.default) for p in order]
    unknown = set(options) - {p.name for p in order}
    if unknown:
        raise ValueError(f"this Liger-Kernel has no {', '.join(sorted(unknown))}")
    return lambda x, w, t: function.apply(x, w, t, None, *given)[0]


def _from_module(module: str, name: str, **options: Any) -> Loss:
    loss = getattr(importlib.import_module(module), name)
    return lambda x, w, t: loss(x, w, t, **options)


def rank_by_sorting(query: Tensor, cand: Tensor, target: Tensor) -> Tensor:
    """The ranks, by sorting the scores of every query."""
    order = (query @ cand.T).argsort(dim=1, descending=True)
    return (order == target[:, None]).int().argmax(dim=1)


def _lazily(make: Callable[[], Loss]) -> Loss:
    """A provider that is built at its first call, so that one that fails to import fails alone."""
    made: list[Loss] = []

    def call(*given: Any) -> Tensor:
        if not made:
            made.append(make())
        return made[0](*given)

    return call


def installed(op: str, device: torch.device, bias: Tensor) -> dict[str, Loss]:
    """The peers of an op that are installed and can run on `device`: provider name, the package first -> function of
    `tensors`."""

    def naive_siglip(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        z = s.to(a.dtype) * a @ b.T + bias.to(a.dtype)
        sign = 2 * torch.eye(len(a), device=a.device, dtype=a.dtype) - 1
        return -F.logsigmoid(sign * z).sum() / len(a)

    here = lambda module: importlib.util.find_spec(module) is not None  # noqa: E731
    on_gpu = lambda module: device.type == "cuda" and here(module)  # noqa: E731
    cce, sizes = ("cut_cross_entropy", "linear_cross_entropy"), {"batch_chunk_size": 256, "chunking_method": None}
    quack = ("quack.linear_cross_entropy", "chunked_linear_cross_entropy")
    # Provider: (whether it can run here, what builds it).
    peers = {
        "clip_loss": {
            "torch compile": (True, lambda: torch.compile(naive_clip)),
            "open_clip_torch": (here("open_clip"), lambda: importlib.import_module("open_clip.loss").ClipLoss()),
            "inf-cl": (on_gpu("inf_cl"), _inf_cl),
        },
        "siglip_loss": {
            "torch compile": (True, lambda: torch.compile(naive_siglip)),
            "open_clip_torch": (here("open_clip"), lambda: _open_clip_siglip(bias)),
            "siglip-kernel auto": (on_gpu("siglip_kernel"), lambda: _siglip_kernel(bias)),
            "siglip-kernel chunk=1024": (on_gpu("siglip_kernel"), lambda: _siglip_kernel(bias, chunk_size=1024)),
        },
        "linear_cross_entropy": {
            "torch compile": (True, lambda: torch.compile(naive_tokens)),
            "torch linear_cross_entropy auto": (hasattr(F, "linear_cross_entropy"), _torch_tokens),
            "torch linear_cross_entropy 256": (hasattr(F, "linear_cross_entropy"), lambda: _torch_tokens(**sizes)),
            "liger-kernel": (on_gpu("liger_kernel"), _liger),
            "liger-kernel C=16": (on_gpu("liger_kernel"), lambda: _liger(chunk_mem_const=16)),
            "liger-kernel C=16 fp32": (
                on_gpu("liger_kernel"), lambda: _liger(chunk_mem_const=16, accum_dtype=torch.float32)
            ),
            "cut-cross-entropy": (on_gpu("cut_cross_entropy"), lambda: _from_module(*cce)),
            "cut-cross-entropy exact": (on_gpu("cut_cross_entropy"), lambda: _from_module(*cce, filter_eps=None)),
            "quack-kernels": (on_gpu("quack"), lambda: _from_module(*quack, chunk_size=4096)),
        },
        "retrieval_ranks": {"torch matmul + argsort": (True, lambda: rank_by_sorting)},
    }  # fmt: skip
    return {name: _lazily(make) for name, (can_run, make) in peers[op].items() if can_run}


COLUMNS = (
    "date hardware threads torch triton op n m d dtype data direction provider version ms p20 p80 rounds first_ms peak_mb "
    "loss_error grad_error tflops floor_ms"
).split()
KEY = ("hardware", "op", "n", "m", "d", "dtype", "data", "direction")


@dataclass(frozen=True)
class Case:
    """One shape of one op: n rows, m columns or tokens, width d."""

    op: str
    n: int
    m: int
    d: int
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"{self.op} {self.n} x {self.m} x {self.d} {shorten_dtype(self.dtype)}"


def shorten_dtype(dtype: torch.dtype) -> str:
    """float32, not torch.float32."""
    return str(dtype).removeprefix("torch.")


def list_cases(kind: str) -> list[Case]:
    """The committed shapes: kind cpu, cuda (half precision, at the sizes of real training) or small (seconds anywhere)."""
    if kind == "small":
        return [Case("clip_loss", 256, 256, 64), Case("siglip_loss", 256, 256, 64),
                Case("linear_cross_entropy", 128, 2000, 64), Case("retrieval_ranks", 100, 1000, 64)]  # fmt: skip
    if kind == "cpu":
        square = [Case(op, n, n, 512) for op in ("clip_loss", "siglip_loss") for n in (1024, 2048, 4096, 8192)]
        words = [Case("linear_cross_entropy", n, 50_000, 512) for n in (256, 1024, 2048)]
        words.append(Case("linear_cross_entropy", 256, 250_037, 384))
        return [*square, *words, *(Case("retrieval_ranks", 1000, m, 512) for m in (10_000, 50_000))]
    half = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    shapes = [("clip_loss", 32768, 32768, 512), ("clip_loss", 32768, 32768, 1024), ("siglip_loss", 65536, 65536, 768),
              ("linear_cross_entropy", 8192, 250_112, 1024), ("linear_cross_entropy", 16384, 248_320, 2048),
              ("retrieval_ranks", 3600, 261_375, 1024)]  # fmt: skip
    return [Case(op, n, m, d, half) for op, n, m, d in shapes]


def tensors(case: Case, device: torch.device, data: str = "random", seed: int = 0) -> tuple[Tensor, ...]:
    """The inputs of an op, from a seed. data: random (as at the start of training) or peaked (as at its end)."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(case.n, case.d, generator=g)
    if case.op == "linear_cross_entropy":
        w = torch.randn(case.m, case.d, generator=g) / case.d**0.5
        target = torch.randint(0, case.m, (case.n,), generator=g)
        if data == "peaked":  # x lies near the row of its target
            a = 4 * case.d**0.5 * F.normalize(w[target] + 0.3 * a / case.d**0.5, dim=-1)
        return tuple(t.to(device, case.dtype) for t in (a, w)) + (target.to(device),)
    b = torch.randn(case.m, case.d, generator=g)
    target = torch.randperm(case.m, generator=g)[: case.n] if case.op == "retrieval_ranks" else torch.arange(case.n)
    if data == "peaked" or case.op == "retrieval_ranks":
        a = 0.5 * a + b[target]
    a, b = (F.normalize(t, dim=-1).to(device, case.dtype) for t in (a, b))
    return (a, b, target.to(device)) if case.op == "retrieval_ranks" else (a, b, torch.tensor(14.3, device=device))


def list_impls(op: str, device: torch.device) -> tuple[str, ...]:
    """The implementations of an op that differ on a device, and can run there."""
    try:
        make_plan(op, device, torch.float16, 64, "triton")
    except RuntimeError:
        return ("chunked",)
    # The products of linear_cross_entropy are torch's either way: its two names are one code.
    return ("chunked", "triton") if op != "linear_cross_entropy" else ("chunked",)


def call_op(case: Case, device: torch.device, **options: Any) -> Loss:
    """An op as a function of its `tensors`."""
    bias = (torch.tensor(-10.0, device=device),) if case.op == "siglip_loss" else ()
    return lambda *given: getattr(ops, case.op)(*given, *bias, **options)


def providers(case: Case, device: torch.device, peers: bool = True) -> dict[str, Loss]:
    """Name -> function of `tensors`: ours, the naive form, and the peers that are installed and can run here."""
    bias = torch.tensor(-10.0, device=device)
    found: dict[str, Loss] = {
        f"mpm_lite {impl}": call_op(case, device, impl=impl) for impl in list_impls(case.op, device)
    }
    found["naive"] = {
        "clip_loss": naive_clip,
        "siglip_loss": lambda a, b, s: reference.siglip_loss(a, b, s, bias),
        "linear_cross_entropy": naive_tokens,
        "retrieval_ranks": reference.retrieval_ranks,
    }[case.op]
    return found | (installed(case.op, device, bias) if peers else {})


def run_case(
    case: Case, device: torch.device, rounds: int = 15, data: str = "random", peers: bool = True,
    only: dict[str, Loss] | None = None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The rows of one case: one for each provider and direction (forward; forward and gradients). The providers are those of
    `providers`, or `only` these."""
    given = tensors(case, device, data)
    exact = tuple(t.double() if t.is_floating_point() else t for t in given)  # the same rounded inputs
    learns = case.op != "retrieval_ranks"
    truth = call_with_gradients(call_op(case, device, impl="chunked"), exact, learns)()
    for backward in (False, True)[: 1 + learns]:
        calls, rows = {}, {}
        for name, loss in (only or providers(case, device, peers)).items():
            call = call_with_gradients(loss, given, backward)
            start = time.perf_counter()
            try:
                result = call()
                _sync(device)
                first = 1e3 * (time.perf_counter() - start)
                errors = _errors(case, result, truth, backward)  # of whoever gives something else, too
                rows[name] = {"first_ms": first, "peak_mb": _peak(call, device) / 1e6} | errors
            except Exception as error:  # a peer, or a compiler, may fail in any way on a machine that it never met
                print(f"  {name}: left out, {shorten_error(error)}", file=sys.stderr)
                continue
            calls[name] = call
            del result
        if not calls:
            continue
        times: dict[str, list[float]] = {name: [] for name in calls}
        flush = torch.empty(2**28, dtype=torch.int8, device=device) if device.type == "cuda" else None
        for turn in range(rounds):
            names = list(calls)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                times[name].append(_time(calls[name], device, flush))
        for name, spent in times.items():
            spent.sort()
            middle = spent[len(spent) // 2]
            useful = USEFUL[case.op] * (1 / 3 if learns and not backward else 1)
            yield _where(device) | {
                "op": case.op, "n": case.n, "m": case.m, "d": case.d, "dtype": shorten_dtype(case.dtype),
                "data": data, "direction": "forward+backward" if backward else "forward", "provider": name,
                "version": _version(name.split()[0].replace("naive", "torch")), "ms": middle, "p20": spent[len(spent) // 5],
                "p80": spent[-1 - len(spent) // 5], "rounds": rounds,
                "tflops": useful * case.n * case.m * case.d / middle * 1e-9, "floor_ms": _floor(case, device, useful),
            } | rows[name]  # fmt: skip


def call_with_gradients(loss: Loss, given: tuple[Tensor, ...], backward: bool) -> Callable[[], list[Tensor]]:
    def call() -> list[Tensor]:
        learn = [t.detach().requires_grad_(backward and t.is_floating_point()) for t in given]
        with getattr(loss, "within", contextlib.nullcontext)():  # what a provider wants around its backward too
            value = loss(*learn)
            if backward:
                value.backward()
        return [value.detach(), *(t.grad for t in learn if t.grad is not None)]

    return call


def _errors(case: Case, found: list[Tensor], truth: list[Tensor], backward: bool) -> dict[str, float]:
    if case.op == "retrieval_ranks":  # the share of queries whose rank differs
        return {"loss_error": float((found[0] != truth[0]).double().mean()), "grad_error": float("nan")}
    loss = abs(found[0].double() - truth[0]) / max(1.0, abs(float(truth[0])))
    pairs = zip(found[1:3], truth[1:3], strict=True) if backward else ()
    errors = [float((a.double() - b).norm() / b.norm()) for a, b in pairs]
    return {"loss_error": float(loss), "grad_error": max(errors, default=float("nan"))}


def shorten_error(error: Exception) -> str:
    """The kind of an error and its first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _time(call: Callable[[], Any], device: torch.device, flush: Tensor | None) -> float:
    if flush is None:
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    flush.zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end)


def _peak(call: Callable[[], list[Tensor]], device: torch.device) -> float:
    """Bytes above what was there before, at the highest point, without the gradients that stay."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        kept = call()
        top = torch.cuda.max_memory_allocated(device) - before
    else:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler talks
        # Every allocation and release that torch's allocator makes; a library's own workspace is not in it.
        with torch.autograd.profiler.profile(profile_memory=True) as record:
            kept = call()
        now = top = 0
        for event in record.kineto_results.events():
            if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU:
                now += event.nbytes()
                top = max(top, now)
    return max(0, top - sum(t.nbytes for t in kept[1:]))


def _floor(case: Case, device: torch.device, useful: float) -> float:
    if device.type != "cuda":
        return float("nan")
    try:
        floor = explain(case.op, N=case.n, M=case.m, D=case.d, dtype=case.dtype).floor_ms
    except ValueError:  # a card whose rates nobody listed is timed all the same
        return float("nan")
    return floor * useful / USEFUL[case.op]


def _version(package: str) -> str:
    """The version of an installed package; empty where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def name_processor() -> str:
    """The processor's name, where the system tells it."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def _where(device: torch.device) -> dict[str, Any]:
    on_gpu, today = device.type == "cuda", time.strftime("%Y-%m-%d", time.gmtime())
    hardware = torch.cuda.get_device_name(device) if on_gpu else f"{name_processor()} ({platform.machine()})"
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    versions = {"torch": torch.__version__, "triton": _version("triton")}
    return {"date": today, "hardware": hardware, "threads": threads} | versions


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measure(
    cases: list[Case], device: torch.device, path: Path, rounds: int = 15, peers: bool = True, keep: bool = False,
    only: Callable[[Case], dict[str, Loss]] | None = None, until: float = float("inf"),
) -> list[Case]:  # fmt: skip
    """Run cases, print their rows and write them to a file as soon as each is measured; those that the file holds already are
    left alone with `keep`. Nothing is begun once time.monotonic() is past `until`: returns the cases left out for that."""
    for i, case in enumerate(cases):
        if time.monotonic() > until:
            return cases[i:]
        held = {tuple(row[k] for k in ("op", "n", "m", "d", "dtype")) for row in read_rows(path)}
        if keep and (case.op, str(case.n), str(case.m), str(case.d), shorten_dtype(case.dtype)) in held:
            print(f"{case}: kept")
            continue
        print(case)
        rows = list(run_case(case, device, rounds, peers=peers, only=only(case) if only else None))
        write_rows(path, rows)
        for row in rows:
            print(
                f"  {row['direction']:17} {row['provider']:32} {row['ms']:9.2f} ms [{row['p20']:.2f}, {row['p80']:.2f}]"
                f" {row['peak_mb']:9.1f} MB {row['tflops']:8.3f} TFLOP/s  errors {row['loss_error']:.1e} {row['grad_error']:.1e}"
            )
    return []


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a file in place of older ones on the same hardware, shape and direction."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[k]) for k in KEY)

    new = {key(row) for row in rows}
    kept = [row for row in read_rows(path) if key(row) not in new]
    write_table(path, [{k: row[k] for k in COLUMNS} for row in [*kept, *rows]])


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a CSV file, which is whole at all times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    with open(beside, "w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, list(dict.fromkeys(k for row in rows for k in row)), lineterminator="\n")
        out.writeheader()
        out.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    os.replace(beside, path)
