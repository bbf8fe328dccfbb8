"""The benchmark: every provider on the same tensors, in turn, with its float64 error and its memory beside its time.

Importable with torch alone. Times are medians with their 20th and 80th percentile over rounds in which the providers take
turns, so that a slow moment of the machine falls on all of them; on CUDA by events, with the L2 cache flushed before each
run. Memory is the peak above what was there before, without the gradients that the caller asked for. TFLOP/s count useful
work for everybody alike (plan.USEFUL); the first run of a provider (compilation included) is not timed. Peers are imported
only here and only where they are installed; one that cannot run on a device is left out.
"""

from __future__ import annotations

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
from mpm_lite.ops.plan import USEFUL, explain

Loss = Callable[..., Tensor]


def has(module: str) -> bool:
    """Whether a package is installed, without importing it."""
    return importlib.util.find_spec(module) is not None


def installed(op: str, device: torch.device, bias: Tensor) -> dict[str, Loss]:
    """Peers of an op: provider name (the package first) -> function of `bench.tensors`."""
    build = {"clip_loss": _clip, "siglip_loss": _siglip, "linear_cross_entropy": _tokens, "retrieval_ranks": _ranks}
    return build[op](device, bias)


def naive_clip(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    """InfoNCE by one product in the input dtype, as a training loop without this library has it."""
    logits = s.to(a.dtype) * a @ b.T
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def naive_tokens(x: Tensor, w: Tensor, t: Tensor) -> Tensor:
    """The loss over a vocabulary with all logits at once."""
    return F.cross_entropy(F.linear(x, w), t)


def _lazily(make: Callable[[], Loss]) -> Loss:
    """A provider that is built at its first call, so that one that fails to import fails alone."""
    made: list[Loss] = []

    def call(*given: Any) -> Tensor:
        if not made:
            made.append(make())
        return made[0](*given)

    return call


def _clip(device: torch.device, bias: Tensor) -> dict[str, Loss]:
    def open_clip() -> Loss:
        return importlib.import_module("open_clip.loss").ClipLoss()

    def inf_cl() -> Loss:
        each = importlib.import_module("inf_cl").cal_flash_loss  # a loss a row
        one_way = lambda a, b, s: each(a, b, scale=s, head_dim=256).mean()  # noqa: E731
        return lambda a, b, s: (one_way(a, b, s) + one_way(b, a, s)) / 2

    peers = {"torch compile": _lazily(lambda: torch.compile(naive_clip))}
    if has("open_clip"):
        peers["open_clip_torch"] = _lazily(open_clip)
    if has("inf_cl") and device.type == "cuda":
        peers["inf-cl"] = _lazily(inf_cl)
    return peers


def _siglip(device: torch.device, bias: Tensor) -> dict[str, Loss]:
    def naive(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        z = s.to(a.dtype) * a @ b.T + bias.to(a.dtype)
        sign = 2 * torch.eye(len(a), device=a.device, dtype=a.dtype) - 1
        return -F.logsigmoid(sign * z).sum() / len(a)

    def open_clip(**options: Any) -> Loss:
        loss = importlib.import_module("open_clip.loss").SigLipLoss(**options)
        return lambda a, b, s: loss(a, b, s, bias)

    def kernel(**options: Any) -> Loss:
        loss = importlib.import_module("siglip_kernel").siglip_loss
        return lambda a, b, s: loss(a, b, s.log(), bias, **options)

    peers = {"torch compile": _lazily(lambda: torch.compile(naive))}
    if has("open_clip"):
        peers["open_clip_torch"] = _lazily(open_clip)
    if has("siglip_kernel") and device.type == "cuda":
        peers["siglip-kernel auto"] = _lazily(kernel)
        peers["siglip-kernel chunk=1024"] = _lazily(lambda: kernel(chunk_size=1024))
    return peers


def _tokens(device: torch.device, bias: Tensor) -> dict[str, Loss]:
    def torch_own(**options: Any) -> Loss:
        chosen = torch.nn.LinearCrossEntropyOptions(**options) if options else None
        return lambda x, w, t: F.linear_cross_entropy(x, w, t, **({"options": chosen} if chosen else {}))

    def liger(**options: Any) -> Loss:
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

    def cce(**options: Any) -> Loss:
        loss = importlib.import_module("cut_cross_entropy").linear_cross_entropy
        return lambda x, w, t: loss(x, w, t, **options)

    def quack() -> Loss:
        loss = importlib.import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy
        return lambda x, w, t: loss(x, w, t, chunk_size=4096)

    peers = {"torch compile": _lazily(lambda: torch.compile(naive_tokens))}
    if hasattr(F, "linear_cross_entropy"):
        peers["torch linear_cross_entropy auto"] = _lazily(torch_own)
        fixed = {"batch_chunk_size": 256, "chunking_method": None}
        peers["torch linear_cross_entropy 256"] = _lazily(lambda: torch_own(**fixed))
    if device.type == "cuda":
        if has("liger_kernel"):
            peers["liger-kernel"] = _lazily(liger)
            peers["liger-kernel C=16"] = _lazily(lambda: liger(chunk_mem_const=16))
            peers["liger-kernel C=16 fp32"] = _lazily(lambda: liger(chunk_mem_const=16, accum_dtype=torch.float32))
        if has("cut_cross_entropy"):
            peers["cut-cross-entropy"] = _lazily(cce)
            peers["cut-cross-entropy exact"] = _lazily(lambda: cce(filter_eps=None))
        if has("quack"):
            peers["quack-kernels"] = _lazily(quack)
    return peers


def _ranks(device: torch.device, bias: Tensor) -> dict[str, Loss]:
    def by_sorting(query: Tensor, cand: Tensor, target: Tensor) -> Tensor:
        order = (query @ cand.T).argsort(dim=1, descending=True)
        return (order == target[:, None]).int().argmax(dim=1)

    return {"torch matmul + argsort": by_sorting}


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
        return f"{self.op} {self.n} x {self.m} x {self.d} {short(self.dtype)}"


def short(dtype: torch.dtype) -> str:
    """float32, not torch.float32."""
    return str(dtype).removeprefix("torch.")


def cases(kind: str) -> list[Case]:
    """The committed shapes: kind cpu, cuda (bf16, what KERNELS-sized training means) or small (seconds anywhere)."""
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
    """What an op takes, seeded. data: random (as at the start of training) or peaked (as at its end)."""
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


def providers(case: Case, device: torch.device, peers: bool = True) -> dict[str, Loss]:
    """Name -> function of `tensors`: ours, the naive form, and the peers that are installed and can run here."""

    bias = torch.tensor(-10.0, device=device)
    ours = getattr(ops, case.op)
    impls = ["chunked", "triton"] if device.type == "cuda" else ["chunked"]
    extra = (bias,) if case.op == "siglip_loss" else ()
    found: dict[str, Loss] = {f"mpm_lite {i}": lambda *t, i=i: ours(*t, *extra, impl=i) for i in impls}
    # In the input dtype, as a training loop without this library has it.
    naive = {
        "clip_loss": naive_clip,
        "siglip_loss": lambda a, b, s: reference.siglip_loss(a, b, s, bias),
        "linear_cross_entropy": naive_tokens,
        "retrieval_ranks": reference.retrieval_ranks,
    }[case.op]
    found["naive"] = naive
    return found | (installed(case.op, device, bias) if peers else {})


def run_case(
    case: Case, device: torch.device, rounds: int = 15, data: str = "random", peers: bool = True
) -> Iterator[dict[str, Any]]:
    """Rows of one case, one a provider and direction (forward; forward and gradients)."""
    given = tensors(case, device, data)
    bias = (torch.tensor(-10.0, device=device),) if case.op == "siglip_loss" else ()
    exact = tuple(t.double() if t.is_floating_point() else t for t in given)  # the same rounded inputs
    learns = case.op != "retrieval_ranks"
    truth = _caller(lambda *t: getattr(ops, case.op)(*t, *bias, impl="chunked"), exact, learns)()
    for backward in (False, True)[: 1 + learns]:
        calls, rows = {}, {}
        for name, loss in providers(case, device, peers).items():
            call = _caller(loss, given, backward)
            start = time.perf_counter()
            try:
                result = call()
                _sync(device)
                first = 1e3 * (time.perf_counter() - start)
                errors = _errors(case, result, truth, backward)  # of whoever gives something else, too
                rows[name] = {"first_ms": first, "peak_mb": _peak(call, device) / 1e6} | errors
            except (RuntimeError, ValueError, AttributeError, ImportError) as error:
                print(f"  {name}: left out, {str(error).splitlines()[0][:120]}", file=sys.stderr)
                continue
            calls[name] = call
            del result
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
                "op": case.op, "n": case.n, "m": case.m, "d": case.d, "dtype": short(case.dtype),
                "data": data, "direction": "forward+backward" if backward else "forward", "provider": name,
                "version": _provider_version(name), "ms": middle, "p20": spent[len(spent) // 5],
                "p80": spent[-1 - len(spent) // 5], "rounds": rounds,
                "tflops": useful * case.n * case.m * case.d / middle * 1e-9, "floor_ms": _floor(case, device, useful),
            } | rows[name]  # fmt: skip


def _caller(loss: Loss, given: tuple[Tensor, ...], backward: bool) -> Callable[[], list[Tensor]]:
    def call() -> list[Tensor]:
        learn = [t.detach().requires_grad_(backward and t.is_floating_point()) for t in given]
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
    whole = {"V": case.m} if case.op == "linear_cross_entropy" else {"M": case.m}
    try:
        floor = explain(case.op, N=case.n, D=case.d, dtype=case.dtype, **whole).floor_ms
    except ValueError:  # a card whose rates nobody listed is timed all the same
        floor = None
    return floor * useful / USEFUL[case.op] if floor else float("nan")


def _provider_version(provider: str) -> str:
    package = provider.split()[0]
    return _version({"naive": "torch"}.get(package, package))


def _version(package: str) -> str:
    """The version of an installed package; empty where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def processor() -> str:
    """The processor's name, where the system tells it."""
    model = "unknown CPU"
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return model


def _where(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = f"{processor()} ({platform.machine()})"
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    today = time.strftime("%Y-%m-%d", time.gmtime())
    return {
        "date": today,
        "hardware": hardware,
        "threads": threads,
        "torch": torch.__version__,
        "triton": _version("triton"),
    }


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a file in place of older ones on the same hardware, shape and direction; the file is whole at all times."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[k]) for k in KEY)

    new = {key(row) for row in rows}
    kept = [row for row in read(path) if key(row) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    with open(beside, "w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        out.writeheader()
        for row in [*kept, *rows]:
            out.writerow({k: f"{row[k]:.4g}" if isinstance(row[k], float) else row[k] for k in COLUMNS})
    os.replace(beside, path)
