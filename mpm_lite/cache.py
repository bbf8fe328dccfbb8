"""The feature cache: what a frozen tower says of a whole part of a set, kept on disk by content and weights.

A key names everything the numbers depend on (tower fingerprint, content digest, batch). An entry is one
safetensors file with the SHA-256 of its own array inside; it is written beside its place, synced, and renamed, so that
a killed run leaves no entry, and a damaged entry is noticed and made again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

from mpm_lite import runtime


def digest(parts: Iterable[str | bytes]) -> str:
    """SHA-256 over the parts, each with its length, so that ("ab", "c") and ("a", "bc") differ."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def folder() -> Path:
    """Where features lie: MPM_LITE_HOME/features."""
    return runtime.home() / "features"


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """While it lasts, nobody else, in whatever process, makes that file: who comes later waits, and finds it there. A process
    that dies lets go."""
    locks = runtime.home() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / digest([str(path.absolute())])[:32]):
        yield


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside the place, sync, rename: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*.tmp"):
        stale.unlink(missing_ok=True)
    beside = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise runtime.UserError(
            f"Could not write {path}: {error.strerror}. Free some room, or set MPM_LITE_HOME to another folder."
        ) from error


def _read(path: Path) -> np.ndarray | None:
    """The entry's array, or None where the file is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            array = file.get_tensor("features")
            expected = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    return array if hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() == expected else None


def features(key: Iterable[str], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array under `key`; computed, stored and read back where it is missing or damaged.

    Even a first run returns what was read back from the disk, so first and later runs see the same bytes.
    """
    path = folder() / f"{digest(key)}.safetensors"
    found = _read(path) if path.exists() else None
    if found is not None:
        return found
    with alone(path):
        if path.exists():  # damaged, or made meanwhile
            found = _read(path)
            if found is not None:
                return found
            print(f"mpm_lite: the cached features {path.name} are damaged; making them again.", file=sys.stderr)
        array = np.ascontiguousarray(compute())
        if not np.isfinite(array).all():
            raise runtime.UserError(
                "A tower returned values that are not finite; nothing was cached. Check its weights."
            )
        write_atomic(path, save({"features": array}, metadata={"sha256": hashlib.sha256(array.tobytes()).hexdigest()}))
        back = _read(path)
    if back is None:
        raise runtime.UserError(
            f"{path} does not read back as written: the disk may be failing. Set MPM_LITE_HOME to another folder."
        )
    return back


def learned(path: Path, learn: Callable[[Path], Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The weights in a file, in float32. Where there is no file yet, `learn(work)` says them first: they are kept in
    float16, whole or not at all, and `work`, a folder for the checkpoints of a run that may be stopped, goes.

    Raises UserError for a file that is torn.
    """
    if not path.exists():
        with alone(path):
            if not path.exists():
                work = path.with_suffix(".run")
                write_atomic(path, save_weights({k: v.half().contiguous() for k, v in learn(work).items()}))
                shutil.rmtree(work, ignore_errors=True)
    try:
        return {k: v.float() for k, v in load_weights(path.read_bytes()).items()}
    except SafetensorError as error:
        raise runtime.UserError(f"{path} is torn ({error}): delete it, and it is learned again.") from error
