"""Rows of long studies: a file a run while they come in, packed into one table that can be committed, and read from both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mpm_lite import runtime
from mpm_lite.cache import write_atomic, write_table
from mpm_lite.data import toyworld
from mpm_lite.keys import Key
from mpm_lite.runtime import UserError
from mpm_lite.towers import toys

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


def rows_key(arm: Any, seed: int, told: Mapping[str, Any], data: Mapping[str, str] | None = None) -> Key:
    """What decides the rows of an arm with a seed: the arm, what it is asked (`told`, JSON-able), the weights that it stands on,
    and the pictures and captions that it learns from and is asked about: `data`, else those of the toy world."""
    decides = {"kind": type(arm).__name__, "arm": json.dumps(asdict(arm), sort_keys=True), "seed": str(seed)}
    decides |= {name: json.dumps(value, sort_keys=True, default=dict) for name, value in told.items()}
    if data is None:
        painters = ["paint"] if hasattr(arm, "encoder") else []
        data = {f"toy world, {split}": toyworld.mark(split) for split in ("train", str(told.get("split", "test")))}
        decides["toy towers"] = toys.towers("towers", *painters)
    decides |= {f"weights of {field}": toys.weights(*model) for field, model in toys.models_of(arm, seed).items()}
    return Key("rows of an arm", decides | data)


def scores(rows: pd.DataFrame) -> list[str]:
    """The columns that hold scores: those of floating-point numbers."""
    return rows.select_dtypes("floating").columns.tolist()
