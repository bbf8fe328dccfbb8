"""Where things run and where they live: device, dtype, presets, folders, worker processes, and errors in one sentence.

Worker processes pay because a GPU that trains one toy model is hardly busy, and because a CPU with many cores trains
many such models side by side faster than one after the other with all its cores. What two workers share, such as a
Q-Former, is made by one of them while the other waits (`store.lock_file`).
"""

from __future__ import annotations

import difflib
import multiprocessing
import numbers
import os
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

DEVICES = ("cpu", "cuda")


class UserError(ValueError):
    """A mistake the user can mend: the message says what is wrong and what to do. The command line prints it and exits 2."""


def unknown(kind: str, name: object, choices: Iterable[str]) -> UserError:
    """The error for a name nobody knows, with the nearest known name suggested."""
    known = sorted(choices)
    lowered = {choice.lower(): choice for choice in known}
    near = difflib.get_close_matches(str(name).lower(), list(lowered), n=1, cutoff=0.5)
    hint = f" Did you mean {lowered[near[0]]!r}?" if near else ""
    return UserError(f"Unknown {kind} {str(name)!r}.{hint} Known: {', '.join(known)}.")


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """The value, where it is a whole number of at least `least`. Raises UserError, naming it, for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise UserError(f"{name}={value!r} is no whole number of at least {least}.")
    return int(value)


def device(name: str | torch.device | None = None) -> torch.device:
    """The device to use: the one named, else CUDA where there is one, else the CPU. Raises UserError for a device that
    torch does not know, that this machine lacks, or that this project does not compute on."""
    try:
        chosen = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, TypeError) as error:
        raise unknown("device", name, DEVICES) from error
    if chosen.type not in DEVICES:
        raise UserError(f"Device {str(name)!r} is not supported: use {' or '.join(DEVICES)}.")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError("Device 'cuda' was asked for, but torch sees no CUDA GPU here. Use --device cpu.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"Device {str(name)!r} was asked for, but there are {torch.cuda.device_count()} GPUs here.")
    return chosen


def hardware() -> str:
    """The name of what computes here: the GPU, else the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    from mpm_lite.ops.bench import name_processor  # where it is needed with torch alone

    return name_processor()


def device_of(module: torch.nn.Module) -> torch.device:
    """The device that a module's weights are on; the CPU for one that has none."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def compute_dtype(on: torch.device) -> torch.dtype:
    """bfloat16 from compute capability 8.0 on, float16 on older GPUs, float32 on a CPU.

    The capability decides, never `is_bf16_supported`: on a T4 that says yes because of emulation, and kernels then fail.
    """
    if on.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(on) >= (8, 0) else torch.float16


def in_full_precision(x: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or in the float64 that it has: losses and unit norms are computed so even under autocast."""
    return x if x.dtype == torch.float64 else x.float()


def fast_bf16(on: torch.device | None = None) -> bool:
    """Whether bfloat16 products are faster than float32 ones: on a CPU with units for them, on a GPU from 8.0 on."""
    on = on or device()
    if on.type == "cuda":
        return compute_dtype(on) == torch.bfloat16
    return on.type == "cpu" and bool({"amx_bf16", "avx512_bf16"} & _cpu_flags())


@lru_cache(maxsize=1)
def _cpu_flags() -> set[str]:
    """What the processor can do, in its own words; nothing where the system does not tell."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(next((line for line in told.splitlines() if line.startswith("flags")), "").split())


@dataclass(frozen=True)
class Preset:
    """What fits a machine: how many pictures and texts a tower encodes at once."""

    name: str
    image_batch: int
    text_batch: int


PRESETS = {
    "cpu": Preset("cpu", image_batch=32, text_batch=64),
    "t4": Preset("t4", image_batch=128, text_batch=256),
    "l4": Preset("l4", image_batch=256, text_batch=512),
    "a100": Preset("a100", image_batch=512, text_batch=1024),
    "h200": Preset("h200", image_batch=1024, text_batch=2048),
}
PRESETS["big"] = PRESETS["a100"]  # its name before there were several
UNDER = {"t4": 20, "l4": 30, "a100": 100}  # GiB of memory under which a card is that one; any other is an h200


def preset(on: torch.device | None = None) -> Preset:
    """The preset of this machine: `cpu`, else by the card's memory: `t4` (under 20 GiB), `l4` (30), `a100` (100), `h200`.

    MPM_LITE_PRESET overrides it; UserError where that names none. `training/presets.py` has what each trains in what memory.
    """
    asked = os.environ.get("MPM_LITE_PRESET")
    if asked:
        if asked not in PRESETS:
            raise unknown("preset", asked, PRESETS)
        return PRESETS[asked]
    on = on or device()
    if on.type != "cuda":
        return PRESETS["cpu"]
    memory = torch.cuda.get_device_properties(on).total_memory
    return PRESETS[next((name for name, gib in UNDER.items() if memory < gib * 2**30), "h200")]


def home() -> Path:
    """The folder for caches and fetched data: MPM_LITE_HOME, else the user's cache folder."""
    named = os.environ.get("MPM_LITE_HOME")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mpm_lite"


def asset(name: str = "") -> Path:
    """The path of a file under assets/: inside the installed package, or at the top of a checkout.

    Raises UserError where no such asset exists.
    """
    installed = Path(str(resources.files("mpm_lite"))) / "assets"
    root = installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "assets"
    found = root / name
    if not found.exists():
        names = [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()] if root.is_dir() else []
        raise unknown("asset", name, names)
    return found


def quiet() -> bool:
    """Whether progress bars would only clutter a log: with MPM_LITE_QUIET, or in neither a terminal nor a notebook."""
    return bool(os.environ.get("MPM_LITE_QUIET")) or not (sys.stderr.isatty() or "ipykernel" in sys.modules)


def bar(steps: Iterable[Any], what: str, progress: bool) -> Any:
    """The steps behind a tqdm bar, where one was asked for and would not clutter a log."""
    from tqdm.auto import tqdm

    return tqdm(steps, desc=what, disable=not progress or quiet(), leave=False)


def banner() -> str:
    """A line that says what this machine is, so that nobody trains on a CPU by accident."""
    on = device()
    if on.type == "cuda":
        props = torch.cuda.get_device_properties(on)
        where = f"{props.name}, {props.total_memory / 2**30:.0f} GiB, {str(compute_dtype(on)).removeprefix('torch.')}"
    else:
        threads = torch.get_num_threads()
        where = f"CPU, {threads} {'thread' if threads == 1 else 'threads'}, float32"
    return f"mpm_lite on {where}; preset {preset(on).name}; torch {torch.__version__}"


@lru_cache(maxsize=1)
def _answers(seconds: float = 2.0) -> bool:
    """Whether the hub's host, or the proxy in front of it, takes a connection. Asked once a process."""
    from huggingface_hub import constants

    endpoint = urlparse(constants.ENDPOINT)
    direct = urllib.request.proxy_bypass(endpoint.hostname or "")
    proxy = None if direct else urllib.request.getproxies().get(endpoint.scheme)
    at = urlparse(proxy if proxy and "//" in proxy else f"http://{proxy}") if proxy else endpoint
    port = at.port or (443 if at.scheme == "https" else 80)
    answered: list[bool] = []

    def knock() -> None:
        try:
            socket.create_connection((at.hostname or "", port), timeout=seconds).close()
            answered.append(True)
        except OSError:
            pass

    # In a thread: looking a name up has no timeout of its own.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(seconds + 0.5)
    return bool(answered)


def reachable() -> bool:
    """Whether the hub may be asked: not with HF_HUB_OFFLINE set, and only if it answers (checked once, briefly)."""
    from huggingface_hub import constants

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return not (offline or constants.HF_HUB_OFFLINE) and _answers()


# Worker processes.

Job = tuple[Callable[..., Any], tuple[Any, ...]]  # a function of a module, and what it is called with


def check_workers(workers: int) -> None:
    """Raises UserError for a number of workers that does nothing."""
    if workers < 1:
        raise UserError(f"{workers} workers do nothing: take at least 1.")


def run_jobs(jobs: Mapping[str, Job], workers: int = 1, say: Callable[[str], None] = lambda line: None) -> None:
    """Do every job: one after the other in this process, or in that many processes. `say` is told the label of each job
    as it begins or, with several workers, as it is done. The first error stops the rest. UserError for no worker."""
    check_workers(workers)
    if workers == 1:
        for number, (label, (call, given)) in enumerate(jobs.items(), 1):
            say(f"{number} of {len(jobs)}: {label}")
            call(*given)
        return
    # Forked processes would share what torch has already begun.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs) or 1), spawned, _begin, (workers,)) as pool:
        running = {pool.submit(call, *given): label for label, (call, given) in jobs.items()}
        try:
            for number, done in enumerate(as_completed(running), 1):
                done.result()
                say(f"{number} of {len(jobs)} done: {running[done]}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(workers: int) -> None:
    """Give each process, before its first job, its share of the cores, and keep its bars from mixing with others'."""
    os.environ["MPM_LITE_QUIET"] = "1"
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
