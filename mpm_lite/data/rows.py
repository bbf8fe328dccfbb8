"""The rows of a captioned set: what each says, in which split its names or its columns put it, and where its picture is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from mpm_lite import cache, runtime
from mpm_lite.data.hub_columns import Columns, captions_of, id_of, split_of_value
from mpm_lite.data.local import picture_file, split_of_folders, split_of_name
from mpm_lite.keys import Key
from mpm_lite.runtime import UserError


@dataclass(frozen=True)
class Source:
    """Rows that lie together: a file of one's own, or a split of a repository of the hub.

    rows: a `datasets.Dataset`, its pictures still encoded. name: what messages call it. split: what its name says.
    root, file: the folder that was given and the file, for files of one's own.
    """

    rows: Any
    name: str
    split: str | None
    root: Path | None = None
    file: Path | None = None


@dataclass(frozen=True)
class Row:
    """One row: what it says, and where its picture is.

    shown: what messages call it. number: its place in its source. split: what its names or its column say. picture: the file
    that holds the picture; None where the row itself does. missing: why there is no picture; "" where there is one. watched:
    the files that the picture depends on. inside: the picture's own path below the set's folder, or in its tar file.
    """

    source: int
    number: int
    shown: str
    id: str | None
    split: str | None
    captions: Mapping[str, list[str]]
    picture: Path | None = None
    missing: str = ""
    watched: tuple[Path, ...] = ()
    inside: PurePath = PurePath()


def rows_of(sources: Sequence[Source], columns: Columns, column: str | None) -> list[Row]:
    """Every row of every source, in order. column: the one that says the split of a row, if any.

    A split is said by the column; else by the name of the file and its folders; else by the folders of the picture; and where
    none of these says anything in the whole set, by the pictures' own names.
    Raises UserError for a split that nobody knows, for a file and a column that disagree, and for a path with two meanings.
    """
    found = []
    for s, source in enumerate(sources):
        in_tar = source.file is not None and source.file.suffix == ".tar"
        needed = {*columns.named, column, columns.language, "__key__" if in_tar else None} - {columns.image}
        there = [c for c in source.rows.column_names if c in needed]
        names = dict(enumerate(getattr(source.rows.features.get(column), "names", ())))  # of a column of class labels
        lacking = dict.fromkeys(c for c in columns.named if c not in there)  # other files of the set have them
        places = picture_places(source.rows, columns.image)
        texts = source.rows.select_columns(there)
        for k, (place, values) in enumerate(zip(places, texts, strict=True)):
            shown = f"{source.name}, row {k}"
            said = lacking | values | {columns.image: place}
            picture, missing, watched = _located(source, place, shown)
            inside = PurePath(values["__key__"]) if in_tar else _inside(source, place)
            split = source.split
            if column:
                split = split_of_value(names.get(said.get(column), said.get(column)), column, shown)
                if source.file and source.split not in (None, split):
                    raise UserError(
                        f"{shown}: the name of the file says {source.split}, its column {column!r} says {split}: rename the "
                        'file, or say columns={..., "split": None} to leave the column out.'
                    )
            elif source.file and split is None:
                split = split_of_folders(inside, shown)
            own = id_of(said[columns.id]) if columns.id else None
            captions = captions_of(said, columns, source.split or "", shown)
            found.append(Row(s, k, shown, own, split, captions, picture, missing, watched, inside))
    return found if any(row.split for row in found) else _split_by_names(found)


def picture_places(rows: Any, column: str) -> list[str | bool]:
    """Where each picture of a column is: the path of a file, True where the row itself holds it, False where it is nowhere."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column not in rows.column_names:
        return [False] * len(rows)
    held = rows.data.column(column)
    if pa.types.is_string(held.type) or pa.types.is_large_string(held.type):
        return [path or False for path in held.to_pylist()]
    in_struct = [one.name for one in held.type] if pa.types.is_struct(held.type) else []
    data = pc.struct_field(held, "bytes") if "bytes" in in_struct else held
    paths = pc.struct_field(held, "path").to_pylist() if "path" in in_struct else [None] * len(held)
    if pa.types.is_binary(data.type) or pa.types.is_large_binary(data.type):
        inside = [bool(length) for length in pc.binary_length(data).to_pylist()]  # none, and none of length 0
    else:
        inside = [False] * len(held)
    return [one or path or False for one, path in zip(inside, paths, strict=True)]


def _located(source: Source, place: str | bool, shown: str) -> tuple[Path | None, str, tuple[Path, ...]]:
    """The file of a picture, why there is none, and the files to watch."""
    if isinstance(place, bool):
        return None, "" if place else "there is no picture", ()
    if "://" in place:
        return None, f"the picture {place!r} is an address, and pictures are not fetched: save them beside the set", ()
    folders = [] if source.file is None or source.root is None else [source.root, source.file.parent]
    found, tried = picture_file(place, folders, shown)
    where = f"looked for {' and '.join(map(str, tried))}" if tried else "a set of the hub has no folder here"
    return found, "" if found else f"the picture {place!r} is not there ({where})", tuple(tried)


def _inside(source: Source, place: str | bool) -> PurePath:
    """A picture's path below the set's folder; nothing for one that the row holds and for one that lies elsewhere."""
    if isinstance(place, bool) or source.root is None:
        return PurePath()
    path = Path(place)
    if path.is_absolute():
        return path.relative_to(source.root) if path.is_relative_to(source.root) else PurePath()
    return path


def _split_by_names(rows: list[Row]) -> list[Row]:
    """The same rows, split by the names of their pictures where every one says a split.

    Raises UserError where only some do: it cannot be known whether `train.png` is for training or shows a train.
    """
    said = [split_of_name(row.inside.stem, row.shown) for row in rows]
    if not any(said):
        return rows
    if silent := next((row for row, split in zip(rows, said, strict=True) if split is None), None):
        loud, split = next((row, split) for row, split in zip(rows, said, strict=True) if split)
        raise UserError(
            f"{loud.shown}: the picture {loud.inside.name} is called as one of {split} would be, and other pictures say no split "
            f"({silent.inside.name or silent.shown}): rename it, or say the splits in a column called split."
        )
    return [replace(row, split=split) for row, split in zip(rows, said, strict=True)]


def contents(sources: Sequence[Source], rows: Sequence[Row], column: str, key: Sequence[str]) -> list[bytes | None]:
    """The SHA-256 of each row's picture as it is encoded; None for a row without one. Kept on disk under `key`, if any."""

    def compute() -> np.ndarray:
        few = tqdm(rows, desc="reading pictures", delay=2, disable=runtime.quiet(), leave=False)
        made = [hashlib.sha256(encoded(sources, row, column)).digest() if not row.missing else bytes(32) for row in few]
        return np.frombuffer(b"".join(made), np.uint8).reshape(-1, 32)

    found = kept(key, compute)
    return [None if row.missing else one.tobytes() for row, one in zip(rows, found, strict=True)]


def encoded(sources: Sequence[Source], row: Row, column: str) -> bytes:
    """The bytes of a row's picture, as they lie in the row or in its file. Raises UserError for a file that cannot be read."""
    if row.picture is not None:
        try:
            return row.picture.read_bytes()
        except OSError as error:
            raise UserError(f"{row.shown}: the picture {row.picture} cannot be read: {error.strerror}.") from error
    held = sources[row.source].rows.data.column(column)[row.number].as_py()
    return held["bytes"] if isinstance(held, Mapping) else held


def kept(key: Sequence[str], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """What is computed, kept on disk where there is a key (what it is, then what decides it) and the disk takes it."""
    made: list[np.ndarray | None] = []

    def once() -> np.ndarray:
        made.append(None)
        made[0] = compute()
        return made[0]

    if not key:
        return once()
    try:
        return cache.features(Key(key[0], {"kind": key[0], "pictures": list(key[1:])}), once)
    except (OSError, UserError):  # a folder that cannot be written to: what was computed is still right
        if made and made[0] is None:  # it was the computation that failed
            raise
        return made[0] if made else compute()
