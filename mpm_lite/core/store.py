"""The one place for what was computed once and is kept: features of frozen towers, weights of recipes, rows of results.

    features(key, compute)   an array, in MPM_LITE_HOME/features
    learned(path, learn)     the weights of a recipe, in a file
    Shelf(out, name, ...)    the rows of many runs: a file for each run, and one file into which they are packed

Everything kept has a `Key`, made of all that decides it. A kept file holds its own key, so that `mpm-lite doctor --why
FILE` can tell why something was computed again. Files are written beside their place, synced and then renamed, so that
a killed run leaves nothing half-written; a damaged file is noticed and made again.
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
from contextvars import ContextVar
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
from mpm_lite.core.keys import KEY, Key, digest, file_digest
from mpm_lite.core.runtime import UserError


def folder() -> Path:
    """The folder of features: MPM_LITE_HOME/features."""
    return runtime.home() / "features"


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """For the time being nobody else, in whatever process, makes that file: whoever comes later waits and finds it
    there. A process that dies gives up its turn."""
    with locked(runtime.home() / "locks" / digest([str(path.absolute())])[:32], runtime.home()):
        yield


@contextmanager
def locked(lock: Path, place: Path) -> Iterator[None]:
    """For the time being no other process holds that lock file. UserError, naming the place, where it cannot be written."""
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
    """Write a file beside its place, sync it and rename it: a reader sees the old file or the new one, never half of one."""
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
    """Whether there is a process of that number, written as the ".123" of a file's name."""
    try:
        os.kill(int(number.removeprefix(".")), 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:  # another user's
        pass
    return True


def unwritable(path: Path, error: OSError) -> UserError:
    """The error for a file or folder that cannot be written."""
    return UserError(
        f"Could not write {path}: {error.strerror or error}. Free some room, or write to another folder (--out for results, "
        "MPM_LITE_HOME for the cache)."
    )


def check_writable(folder: Path) -> None:
    """Raises UserError where nothing can be written to a folder, which is made if need be: to be asked before long work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error


def _stored(path: Path) -> np.ndarray | None:
    """The array in a file of features; None where there is no file, or a damaged one."""
    try:
        with safe_open(path, framework="numpy") as file:
            array = file.get_tensor("features")
            expected = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    return array if hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() == expected else None


def keep_features(key: Key, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array under `key`; computed, stored and read back where it is missing or damaged.

    Even the first run returns what it read back from the disk, so that first and later runs see the same bytes.
    """
    path = folder() / f"{key.digest}.safetensors"
    if (found := _stored(path)) is not None:
        return found
    with lock_file(path):
        if (found := _stored(path)) is not None:  # somebody else has made it meanwhile
            return found
        if path.exists():
            print(f"mpm_lite: the cached features {path.name} are damaged; making them again.", file=sys.stderr)
        array = np.ascontiguousarray(compute())
        if not np.isfinite(array).all():
            raise UserError("A tower returned values that are not finite; nothing was cached. Check its weights.")
        told = {"sha256": hashlib.sha256(array.tobytes()).hexdigest(), **metadata(key)}
        write_atomic(path, save({"features": array}, metadata=told))
        back = _stored(path)
    if back is None:
        raise UserError(
            f"{path} does not read back as written: the disk may be failing. Set MPM_LITE_HOME to another folder."
        )
    return back


WEIGHTS = "weights"  # the folder of the assets with the weights that ship
_OPENED: ContextVar[list[tuple[Path, Key]] | None] = ContextVar("opened", default=None)


def find_weights(key: Key, place: str) -> Path:
    """The file of the weights under a key: among the assets if they ship, else, there or not yet, in MPM_LITE_HOME/`place`.

    Weights that ship are assets/weights/NAME.safetensors, and the card beside them, NAME.json, lists the keys that they
    answer to. So a file has a name for readers, and a key that was renamed is one more line of a card. Raises UserError
    where the file is not the one that the card describes.
    """
    for card in sorted((runtime.asset() / WEIGHTS).glob("*.json")):
        told, path = json.loads(card.read_text(encoding="utf-8")), card.with_suffix(".safetensors")
        if key.digest in told["keys"]:
            if not path.exists() or file_digest(path).hex() != told["sha256"]:
                raise UserError(f"{path} is not the file that {card.name} describes: install mpm_lite again.")
            return path
    return runtime.home() / place / f"{key.digest}.safetensors"


@contextmanager
def collect_weights() -> Iterator[list[tuple[Path, Key]]]:
    """Collect the file and the key of all weights that `keep_weights` reads during the block, in order."""
    token = _OPENED.set([])
    try:
        yield _OPENED.get()
    finally:
        _OPENED.reset(token)


def keep_weights(
    path: Path, learn: Callable[[Path], Mapping[str, torch.Tensor]], key: Key | None = None, half: bool = True
) -> dict[str, torch.Tensor]:
    """The weights in a file, in float32. Where there is no file yet, `learn(work)` returns them first, and they are
    kept with their key, whole or not at all: in float16, or as they are if `half` is False. `work` is a folder for the
    checkpoints of a run that may be stopped; it is deleted in the end.

    Raises UserError for a file that is torn.
    """
    if not path.exists():
        with lock_file(path):
            if not path.exists():
                work = path.with_suffix(".run")
                weights = {k: (v.half() if half else v).contiguous() for k, v in learn(work).items()}
                write_atomic(path, save_weights(weights, metadata=metadata(key)))
                shutil.rmtree(work, ignore_errors=True)
    if key and (opened := _OPENED.get()) is not None:
        opened.append((path, key))
    try:
        return {k: v.float() for k, v in load_weights(path.read_bytes()).items()}
    except SafetensorError as error:
        raise UserError(f"{path} is torn ({error}): delete it, and it is learned again.") from error


def metadata(key: Key | None) -> dict[str, str] | None:
    """A key as the metadata of a safetensors file."""
    return {KEY: json.dumps(key.describe())} if key else None


def write_table(path: Path, table: pd.DataFrame, key: Key, **how: Any) -> None:
    """Write a table as parquet with its key, whole or not at all; `how` goes to pandas."""
    told = table.copy(deep=False)
    told.attrs = {KEY: key.describe()}
    write_atomic(path, told.to_parquet(**how))


def write_study(
    out: Path, study: str, tables: dict[str, pd.DataFrame], said: dict[str, Any], card: str, version: str,
    seeds: Sequence[int], digits: str = "%.4f",
) -> list[Path]:  # fmt: skip
    """Write a study's tables as OUT/TITLE.csv, and OUT/CARD.json with its commit, seeds and command and whatever else
    is `said`; each file whole or not at all. Returns the files."""
    for title, table in tables.items():
        write_atomic(out / f"{title}.csv", table.to_csv(index=False, float_format=digits, lineterminator="\n").encode())
    told = {"study": study, "commit": version, "seeds": list(seeds), **said}
    told.setdefault("command", f"mpm-lite run {study} --seeds {len(seeds)} --out assets/results")
    write_atomic(out / f"{card}.json", json.dumps(told, indent=1).encode() + b"\n")
    return [*(out / f"{title}.csv" for title in tables), out / f"{card}.json"]


def write_json(path: Path, said: dict[str, Any]) -> None:
    """Write a dict as a file, whole or not at all."""
    write_atomic(path, (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode())


# Rows of results.

DIGITS = 3  # of a score in a packed row


@contextmanager
def _readable(message: str) -> Iterator[None]:
    """Around the reading of rows: UserError with that message for a file that is missing or torn."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(message) from error


def name_of(key: Key) -> str:
    """The name under which a run's rows are kept."""
    return key.digest[:16]


@dataclass(frozen=True)
class Shelf:
    """Rows under a folder: OUT/NAME/KEY.parquet for each run, and OUT/NAME.parquet, packed, whose column `key` says to
    which run a row belongs. `command` makes rows again; with `rounded`, packed scores have DIGITS places."""

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
        """The rows that are packed, or only those of some runs; none where there is no file. UserError for a torn file."""
        wanted = None if keys is None else pc.field("key").isin(pa.array(keys, pa.string()))
        rows = self._packed(filters=wanted)
        # Back from categories, which a grouping would cross with each other.
        return rows.astype({name: str for name, kind in rows.dtypes.items() if kind == "category"})

    def _packed(self, **how: Any) -> pd.DataFrame:
        if not self.path.exists():
            return pd.DataFrame({"key": []})
        with _readable(f"{self.path} is not readable: delete it, and `{self.command}` makes its rows again."):
            return pd.read_parquet(self.path, **how)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys under which no rows are kept."""
        there = set(self._packed(columns=["key"])["key"])
        return [key for key in keys if key not in there and not self.loose(key).exists()]

    def put(self, key: Key, rows: pd.DataFrame) -> None:
        """Keep a run's rows under its key, whole or not at all, with a column `on` that names the machine. Empty
        columns are left out, and scores that will be rounded anyway take half the bits."""
        rows = rows.dropna(axis="columns", how="all").assign(on=runtime.hardware())
        if self.rounded:
            rows = rows.astype(dict.fromkeys(scores(rows), "float32"))
        write_table(self.loose(name_of(key)), rows, key, compression="zstd", index=False)

    def read(self, keys: Mapping[str, str]) -> dict[str, pd.DataFrame]:
        """The rows of runs, by key; `keys` says what each run is, for the UserError where its rows are missing or torn."""
        found = dict(list(self.packed(keys).groupby("key")))
        for key, what in keys.items():
            if key not in found:
                path = self.loose(key)
                advice = f"delete that file, and `{self.command}` makes it again."
                with _readable(f"The rows of {what} are not readable at {path}: {advice}"):
                    found[key] = pd.read_parquet(path)
        return {key: found[key] for key in keys}

    def pack(self) -> Path:
        """Move the rows of all files into the packed one. UserError where a file is torn, or where there is none."""
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
