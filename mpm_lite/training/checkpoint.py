"""Atomic checkpoints: a folder step-N appears whole, with a SHA-256 manifest, or not at all.

Tensors lie in safetensors, everything else in JSON. Nothing is pickled, which is why Accelerate's `save_state` and
torch.distributed.checkpoint are not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mpm_lite.core.runtime import UserError
from mpm_lite.core.store import locked


@dataclass
class Checkpoint:
    """One moment of a run: groups of tensors by name, and JSON-able state."""

    step: int
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep every other process from training into that folder: a later one waits. A process that dies lets go.

    Raises UserError if the folder cannot be written to.
    """
    with locked(folder.with_name(f".{folder.name}.lock"), folder):
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write step-N.tmp, sync it, rename it to step-N, and keep the newest `keep` folders. Returns the folder written.

    Raises UserError if it cannot be written; what was there before stays as it was.
    """
    final, beside = folder / f"step-{checkpoint.step}", folder / f"step-{checkpoint.step}.tmp"
    if _valid(final):
        return final
    files = {
        # Cloned, because tied weights share their memory, which the format refuses.
        f"{name}.safetensors": save({k: v.contiguous().clone() for k, v in group.items()})
        for name, group in checkpoint.tensors.items()
    }
    files["state.json"] = json.dumps({"step": checkpoint.step, **checkpoint.state}, indent=1).encode()
    manifest = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files["manifest.json"] = json.dumps(manifest).encode()
    try:
        for old in folder.glob("step-*.tmp"):
            shutil.rmtree(old)
        shutil.rmtree(final, ignore_errors=True)
        beside.mkdir(parents=True)
        for name, data in files.items():
            (beside / name).write_bytes(data)
            _sync(beside / name)
        _sync(beside)
        os.replace(beside, final)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(
            f"Could not write a checkpoint to {folder}: {error.strerror}. Free some room or choose another --out."
        ) from error
    for old in _steps(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _steps(folder: Path) -> list[Path]:
    found = [p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")), reverse=True)


def _valid(path: Path) -> bool:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        return all(hashlib.sha256((path / name).read_bytes()).hexdigest() == sha for name, sha in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


def read_latest(folder: Path) -> Checkpoint | None:
    """The checkpoint of the highest step whose manifest holds; damaged ones are passed over. None if there is none."""
    for path in _steps(folder):
        if not _valid(path):
            continue
        try:
            state = json.loads((path / "state.json").read_text())
            tensors = {p.stem: load(p.read_bytes()) for p in sorted(path.glob("*.safetensors"))}
        except (SafetensorError, ValueError) as error:
            raise UserError(f"The checkpoint {path} cannot be read ({error}); delete it and run again.") from error
        return Checkpoint(state.pop("step"), tensors, state)
    return None


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors: '<parameter number>.<slot>'. Numbers become tensors of shape ()."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{slot}": torch.as_tensor(value) for i, slots in state.items() for slot, value in slots.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, packed: dict[str, Tensor]) -> None:
    """Put back what `pack_optimizer` took out. The optimizer must have the same parameters in the same order."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in packed.items():
        number, slot = name.split(".", 1)
        state.setdefault(int(number), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
