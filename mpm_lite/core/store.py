"""What was computed once and is kept: features of frozen towers, weights of recipes, rows of results.

Everything kept has a `Key`: a name made of all that decides it. A file that is kept says its key itself, so that
`mpm-lite doctor --why FILE` can tell why something was computed again. A file is written beside its place, synced, and
renamed, so that a killed run leaves nothing half-written, and a damaged file is noticed and made again.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

from mpm_lite.core import runtime
from mpm_lite.core.keys import KEY, Key, digest
from mpm_lite.core.runtime import UserError


def folder() -> Path:
    """Where features lie: MPM_LITE_HOME/features."""
    return runtime.home() / "features"


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """While it lasts, nobody else, in whatever process, makes that file: who comes later waits, and finds it there. A process
    that dies lets go."""
    locks = runtime.home() / "locks"
    with locked(locks / digest([str(path.absolute())])[:32], runtime.home()):
        yield


@contextmanager
def locked(lock: Path, place: Path) -> Iterator[None]:
    """While it lasts, no other process holds that lock file. UserError, naming the place, where it cannot be written."""
    held = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except OSError as error:
        raise unwritable(place, error) from error
    try:
        yield
    finally:
        held.release()


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside the place, sync, rename: a reader sees the old file or the new one, never half of one."""
    beside = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            if not _running(stale.suffixes[-2]):  # another process may be writing the same file just now
                stale.unlink(missing_ok=True)
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def _running(number: str) -> bool:
    """Whether there is a process of that number, given as the ".123" of a file's name."""
    try:
        os.kill(int(number.removeprefix(".")), 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:  # another user's
        pass
    return True


def unwritable(path: Path, error: OSError) -> runtime.UserError:
    """The error for a file or folder that cannot be written."""
    return runtime.UserError(
        f"Could not write {path}: {error.strerror or error}. Free some room, or write to another folder (--out for results, "
        "MPM_LITE_HOME for the cache)."
    )


def check_writable(folder: Path) -> None:
    """UserError where nothing can be written to a folder, made where it is not there yet: asked before long work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error


def _read(path: Path) -> np.ndarray | None:
    """The entry's array, or None where the file is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            array = file.get_tensor("features")
            expected = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    return array if hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() == expected else None


def features(key: Key, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array under `key`; computed, stored and read back where it is missing or damaged.

    Even a first run returns what was read back from the disk, so first and later runs see the same bytes.
    """
    path = folder() / f"{key.digest}.safetensors"
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
        told = {"sha256": hashlib.sha256(array.tobytes()).hexdigest(), **metadata(key)}
        write_atomic(path, save({"features": array}, metadata=told))
        back = _read(path)
    if back is None:
        raise runtime.UserError(
            f"{path} does not read back as written: the disk may be failing. Set MPM_LITE_HOME to another folder."
        )
    return back


def learned(
    path: Path, learn: Callable[[Path], Mapping[str, torch.Tensor]], key: Key | None = None
) -> dict[str, torch.Tensor]:
    """The weights in a file, in float32. Where there is no file yet, `learn(work)` says them first: they are kept in
    float16 with their key, whole or not at all, and `work`, a folder for the checkpoints of a run that may be stopped, goes.

    Raises UserError for a file that is torn.
    """
    if not path.exists():
        with alone(path):
            if not path.exists():
                work = path.with_suffix(".run")
                weights = {k: v.half().contiguous() for k, v in learn(work).items()}
                write_atomic(path, save_weights(weights, metadata=metadata(key)))
                shutil.rmtree(work, ignore_errors=True)
    try:
        return {k: v.float() for k, v in load_weights(path.read_bytes()).items()}
    except SafetensorError as error:
        raise runtime.UserError(f"{path} is torn ({error}): delete it, and it is learned again.") from error


def metadata(key: Key | None) -> dict[str, str] | None:
    """What a safetensors file says of its key."""
    return {KEY: json.dumps(key.describe())} if key else None


def write_table(path: Path, table: pd.DataFrame, key: Key, **how: Any) -> None:
    """Write a table as parquet with its key, whole or not at all; `how` goes to pandas."""
    told = table.copy(deep=False)
    told.attrs = {KEY: key.describe()}
    write_atomic(path, told.to_parquet(**how))


def written(
    out: Path, study: str, tables: dict[str, pd.DataFrame], said: dict[str, Any], card: str, version: str,
    seeds: Sequence[int], digits: str = "%.4f",
) -> list[Path]:  # fmt: skip
    """A study's tables as OUT/TITLE.csv, and OUT/CARD.json: its commit, seeds and command, and what else is `said`; each
    file whole or not at all. Returns the files."""
    for title, table in tables.items():
        write_atomic(out / f"{title}.csv", table.to_csv(index=False, float_format=digits, lineterminator="\n").encode())
    told = {"study": study, "commit": version, "seeds": list(seeds), **said}
    told.setdefault("command", f"mpm-lite run {study} --seeds {len(seeds)} --out assets/results")
    write_atomic(out / f"{card}.json", json.dumps(told, indent=1).encode() + b"\n")
    return [*(out / f"{title}.csv" for title in tables), out / f"{card}.json"]


def write_json(path: Path, said: dict[str, Any]) -> None:
    """A dict as a file, whole or not at all."""
    write_atomic(path, (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode())


# Rows of results.

DIGITS = 3  # of a score in a packed row


def name_of(key: Key) -> str:
    """What a run's rows are called."""
    return key.digest[:16]


@dataclass(frozen=True)
class Shelf:
    """Rows under a folder: OUT/NAME/KEY.parquet a run, and OUT/NAME.parquet, packed, whose column `key` says which run each
    row is of. `command` makes rows again; with `rounded`, packed scores have DIGITS places."""

    out: Path
    name: str
    command: str
    rounded: bool = True

    @property
    def path(self) -> Path:
        """The packed file."""
        return self.out / f"{self.name}.parquet"

    def loose(self, key: str) -> Path:
        """The file of one run."""
        return self.out / self.name / f"{key}.parquet"

    def files(self) -> list[Path]:
        """The files of runs that are not packed yet."""
        return sorted((self.out / self.name).glob("*.parquet"))

    def packed(self, keys: Iterable[str] | None = None) -> pd.DataFrame:
        """The rows that are packed, or only those of some runs; none where there is no file. UserError where it is torn."""
        wanted = None if keys is None else pc.field("key").isin(pa.array(keys, pa.string()))
        rows = self._readable(lambda: pd.read_parquet(self.path, filters=wanted))
        # Back from categories, which a grouping would cross with each other.
        return rows.astype({name: str for name, kind in rows.dtypes.items() if kind == "category"})

    def _readable(self, read: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        if not self.path.exists():
            return pd.DataFrame({"key": []})
        try:
            return read()
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path} is not readable: delete it, and `{self.command}` makes its rows again."
            ) from error

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that no rows are kept of."""
        there = set(self._readable(lambda: pd.read_parquet(self.path, columns=["key"]))["key"])
        return [key for key in keys if key not in there and not self.loose(key).exists()]

    def put(self, key: Key, rows: pd.DataFrame) -> None:
        """Keep a run's rows under its key, whole or not at all, and `on` what they were computed: no empty columns, scores in
        half the bits if they are rounded later anyway."""
        rows = rows.dropna(axis="columns", how="all").assign(on=runtime.hardware())
        if self.rounded:
            rows = rows.astype(dict.fromkeys(scores(rows), "float32"))
        write_table(self.loose(name_of(key)), rows, key, compression="zstd", index=False)

    def read(self, keys: Mapping[str, str]) -> dict[str, pd.DataFrame]:
        """The rows of runs, by key; `keys` says what each is, for the UserError where one is missing or torn."""
        by = dict(list(self.packed(keys).groupby("key")))
        return {key: by[key] if key in by else self._read(key, what) for key, what in keys.items()}

    def _read(self, key: str, what: str) -> pd.DataFrame:
        path = self.loose(key)
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"The rows of {what} are not readable at {path}: delete that file, and `{self.command}` makes it again."
            ) from error

    def pack(self) -> Path:
        """Put the rows of all files into the packed one, and delete the files. UserError where one is torn, or none is there."""
        files, before = self.files(), self.packed()
        if not files:
            raise UserError(f"No rows lie under {self.out / self.name}: `{self.command} --out {self.out}` makes some.")
        there = set(before["key"])
        try:
            frames = [pd.read_parquet(path).assign(key=path.stem) for path in files if path.stem not in there]
        except (OSError, ValueError) as error:
            raise UserError(
                f"A file under {self.out / self.name} is not readable ({error}): delete it and run `{self.command}`."
            ) from error
        rows = pd.concat([*([before] if len(before) else []), *frames], ignore_index=True)
        of = scores(rows)
        if self.rounded:
            rows[of] = rows[of].astype("float64").round(DIGITS).astype("float32")
        names = [column for column in rows if column not in of and rows[column].dtype != "int64"]
        rows = rows.astype(dict.fromkeys(names, "category")).sort_values("key", kind="stable", ignore_index=True)
        write_atomic(self.path, rows.to_parquet(compression="zstd", compression_level=19, index=False))
        for path in files:
            path.unlink()
        return self.path


def scores(rows: pd.DataFrame) -> list[str]:
    """The columns that hold scores: those of floating-point numbers."""
    return rows.select_dtypes("floating").columns.tolist()
