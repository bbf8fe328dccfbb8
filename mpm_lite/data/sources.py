"""Captioned pictures read with the `datasets` library: sets of the Hugging Face hub, and your own files as parquet,
webdataset or image folder.

    load_captions("parquet:photos", columns={"image": "img", "captions": {"en": "cap_en", "de": "cap_de"}})
    load_captions("hub:owner/name", "test", ["en", "de"], revision="main")

Columns are checked before any row is read. A picture is decoded only when somebody looks at it. No code from a repository
is ever run.
"""

from __future__ import annotations

import csv
import glob
import json
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mpm_lite.core import runtime
from mpm_lite.core.runtime import UserError
from mpm_lite.data import local, rows
from mpm_lite.data.captionset import Part
from mpm_lite.data.rows import CODES, GUESSED, Columns, Source
from mpm_lite.data.splits import parts_of, pictures_of

LOCAL = tuple(local.ENDS)
LOOKED_AT = 200  # how many values of a column are looked at to find out what it holds


@dataclass(frozen=True)
class Known:
    """A set on the hub: its repository, the names of its columns, how many captions a picture has, and its licence."""

    repo: str
    columns: Columns
    captions: str
    licence: str


_TOLD = tomllib.loads(runtime.asset("data/hub.toml").read_text(encoding="utf-8"))
KNOWN = {name: Known(**of | {"columns": Columns(**of["columns"])}) for name, of in _TOLD.items()}


def is_hub_or_local(name: str) -> bool:
    """Whether a name is one of the KNOWN sets, or says where a set is (`hub:OWNER/NAME`, `parquet:PATH`)."""
    return name in KNOWN or name.startswith("hub:") or local.is_local(name)


def parts(
    name: str, columns: Mapping[str, Any] | None = None, revision: str | None = None, limit: int | None = None,
    streaming: bool = False, skip_bad: bool = False, shown: str = "",
) -> dict[str, Part]:  # fmt: skip
    """The train, val and test part of a set. A set without such splits is split by a hash of each picture's bytes.

    `streaming` reads only the first `limit` rows of each split, in the order of its files. `skip_bad` leaves out pictures that
    cannot be decoded and pictures that are in two splits. `shown` is the name of the set in tables and ids.
    Raises UserError for columns that are missing or hold something else, for a repository or folder that is missing or not
    open, for pictures that are missing or in two splits, and for streaming without a limit.
    """
    if streaming and not limit:
        raise UserError("streaming=True needs a limit: it reads the first rows and no more.")
    if columns is not None and not isinstance(columns, Mapping):
        raise UserError(
            f'columns={columns!r} is no dictionary: write it as columns={{"image": ..., "captions": {{"en": ...}}}}.'
        )
    told = json.dumps(dict(columns)) if columns else ""
    shown = shown or local.shown_names([name])[name]
    asked = (name, told, revision, limit if streaming else None, skip_bad, shown, local.stamp(name))
    found, watched, stamp = _parts(*asked)
    if local.stamp_of(watched) != stamp:  # a picture outside the set's folder was replaced
        _parts.cache_clear()
        found, _, _ = _parts(*asked)
    return dict(found)


@lru_cache(maxsize=8)
def _parts(
    name: str, columns: str, revision: str | None, limit: int | None, skip_bad: bool, shown: str, stamp: str
) -> tuple[dict[str, Part], tuple[Path, ...], str]:
    """The three parts, the files that hold their pictures, and the stamp of those files when they were read.

    limit: read only so many rows of each split, as a stream; None reads all.
    """
    own = local.is_local(name)
    opened = _local_sources(name, revision, limit) if own else _hub_sources(name, revision, limit)
    sources = [source for source in opened if len(source.rows)]
    if not sources:
        raise UserError(f"{name} has no rows.")
    held = _held(sources)
    if columns:
        said = Columns.of(json.loads(columns))
    else:
        said = KNOWN[name].columns if name in KNOWN else rows.guess_columns(name, held, held)
    rows.checked(name, said, held)
    if said.language == "split" and "split" not in held:
        sources = [source for source in sources if not own and (source.split or "").lower() in CODES]
        if not sources:
            raise UserError(
                f'{name}: language "split" needs splits that are called as languages are, such as en or de.'
            )
    column = said.split_column(held)
    if said.split == GUESSED and not column and not any(source.split for source in sources):
        rows.check_no_other_splits(name, said, held)
    if not columns:
        unread = rows.unread_texts(said, held)
        if unread and (own or name not in KNOWN):
            told = f"the texts of {', '.join(unread)} are not read; columns= says which columns are captions."
            print(f"mpm_lite: {name}: {told}", file=sys.stderr)
    if column and (not held[column] or not (own or _one_split(sources))):
        column = None  # it is empty, or the repository has splits of its own
    read = rows.rows_of([replace(source, image=said.image) for source in sources], said, column)
    watched = tuple(dict.fromkeys(path for row in read for path in row.watched))
    there = local.stamp_of(watched)
    key = [name, revision or "", str(limit), stamp, there, columns, *map(_snapshot, sources)]
    pictures = pictures_of(read, said, column is not None, name in KNOWN, key if limit is None else [])
    return parts_of(shown, pictures, skip_bad, key), watched, there


def _one_split(sources: list[Source]) -> bool:
    """Whether the splits of a repository say nothing: there is only one, or none of them is val or test."""
    if len(sources) == 1:
        return True
    return {"val", "test"}.isdisjoint([local.split_of_name(source.split or "", source.name) for source in sources])


def _held(sources: list[Source]) -> dict[str, list[Any]]:
    """Some values of each column, without nulls; of a column that may hold pictures only one."""
    found: dict[str, list[Any]] = {}
    for source in sources:
        for column in source.rows.column_names:
            values, held = found.setdefault(column, []), source.rows.data.column(column)
            is_heavy = (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary)
            room = (1 if any(kind(held.type) for kind in is_heavy) else LOOKED_AT) - len(values)
            if held.null_count < len(held):
                values += islice((one for v in held if (one := v.as_py()) is not None), max(0, room))
    return found


def _local_sources(name: str, revision: str | None, limit: int | None) -> list[Source]:
    """The files of a local set, each with the split that its name says; of a stream only the first rows of each split."""
    import datasets

    if revision:
        raise UserError(f"{name!r} has no revisions: only sets of the hub have.")
    kind, root = name.partition(":")[0], local.place(name)
    files = local.files(name)
    # `datasets` keeps copies under names and times of files. The folder's name makes sure that no older copy is taken.
    where = Path(datasets.config.HF_DATASETS_CACHE) / f"files-{local.stamp_of(files)[:16]}"
    opened: dict[Path, Any] = {}
    for few in _alike(name, kind, files):
        named = {f"file_{number:06d}": [glob.escape(str(file))] for number, file in enumerate(few)}
        found = _loaded(name, kind, True, data_files=named, cache_dir=str(where), streaming=limit is not None)
        opened |= zip(few, found.values(), strict=True)
    if kind == "webdataset" and limit is None:
        _check_fields(name, root, opened)
    sources, taken = [], {}
    for file in [file for file in files if file in opened]:
        path = local.below(file, root)
        if file.suffix == ".csv":
            _check_csv(file, f"{name}: {path}")
        split = local.split_of_name(path.stem, f"{name}: {path}") or local.split_of_folders(path, f"{name}: {path}")
        few = _read(opened[file], None if limit is None else limit - taken.get(split, 0))
        taken[split] = taken.get(split, 0) + len(few)
        if kind == "webdataset" and limit is None:
            local.check_whole(file, f"{name}: {path}")
        sources.append(Source(few, path.as_posix(), split, root if root.is_dir() else root.parent, file))
    return sources


def _check_csv(file: Path, shown: str) -> None:
    """Raises UserError for a text that the reader of CSV files takes for a missing value, such as the caption None."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        header = next(csv.reader(lines), [])
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise UserError(f"{shown} has two columns named {twice[0]!r}: give each a name of its own.")
    told = pd.read_csv(file, dtype=str, keep_default_na=False)
    if not isinstance(told.index, pd.RangeIndex):
        raise UserError(
            f"{shown}: its rows have more fields than its header: put texts that hold commas between quotes."
        )
    lost = told.ne("") & pd.read_csv(file, dtype=str).isna()
    for column in told.columns[lost.any()]:
        k = int(lost[column].to_numpy().argmax())
        raise UserError(
            f"{shown}, row {k}: {told[column][k]!r} in column {column!r} is taken for nothing in a CSV file: write "
            "metadata.jsonl, in which a text stays a text."
        )


def _check_fields(name: str, root: Path, opened: Mapping[Path, Any]) -> None:
    """Raises UserError for pictures or captions in a tar file that would be lost: `datasets` learns the fields from the first
    few examples and ignores any other."""
    for file, few in opened.items():
        for field in sorted(local.tar_fields(file) - set(few.column_names)):
            if rows.is_usual(field):
                raise UserError(
                    f"{name}: in {local.below(file, root)}, members that end in .{field} would be lost, since the first pictures "
                    "have none: give every picture the same members (an empty text where there is no caption)."
                )


def _alike(name: str, kind: str, files: list[Path]) -> list[list[Path]]:
    """The files in groups with equal columns: `datasets` gives all files that it reads together the columns of the first one.
    Files without rows are left out, since it cannot read them."""
    if kind != "parquet":
        return [[file] for file in files] if kind == "imagefolder" else [files]
    groups: dict[Any, list[Path]] = {}
    for file in files:
        try:
            said = pq.read_metadata(file)
        except Exception as error:  # a damaged file makes its reader raise errors of many kinds
            raise _failed(name, name, None, True, error) from error
        schema = said.schema.to_arrow_schema()
        if said.num_rows:
            features = (schema.metadata or {}).get(b"huggingface")
            groups.setdefault((schema.remove_metadata().to_string(), features), []).append(file)
    return list(groups.values())


def _hub_sources(name: str, revision: str | None, limit: int | None) -> list[Source]:
    """The splits of a repository on the hub."""
    where = KNOWN[name].repo if name in KNOWN else name.partition(":")[2]
    found = _loaded(name, where, False, revision=revision, streaming=limit is not None)
    return [Source(_read(opened, limit), f"split {split}", split) for split, opened in found.items()]


def _read(opened: Any, limit: int | None) -> Any:
    """A `datasets.Dataset` whose pictures stay encoded, as bytes and paths; of a stream only its first rows."""
    import datasets

    for column, kind in (opened.features or {}).items():
        if isinstance(kind, datasets.Image):
            opened = opened.cast_column(column, datasets.Image(decode=False))
    if limit is None:
        return opened
    return datasets.Dataset.from_list(list(islice(opened, max(0, limit))), features=opened.features)


def _snapshot(source: Source) -> str:
    """The folder in which `datasets` caches a repository's rows; its name follows from the commit."""
    files = source.rows.cache_files if source.file is None else []
    return Path(files[0]["filename"]).parent.name if files else ""


def _loaded(name: str, source: str, own: bool, **how: Any) -> dict[str, Any]:
    """What `datasets.load_dataset` opens, without progress bars. For your own files, and where the hub cannot be reached, the
    libraries look only into their caches, instead of trying the network again and again. Raises UserError, in one sentence,
    for whatever goes wrong."""
    import datasets
    from huggingface_hub import constants

    bars, were = datasets.is_progress_bar_enabled(), [(of, of.HF_HUB_OFFLINE) for of in (datasets.config, constants)]
    datasets.disable_progress_bars()
    try:
        for of, was in were:
            of.HF_HUB_OFFLINE = was or own or not runtime.reachable()
        return datasets.load_dataset(source, **how)
    except Exception as error:  # the hub, the readers and the file system raise errors of many kinds
        raise _failed(name, source, how.get("revision"), own, error) from error
    finally:
        for of, was in were:
            of.HF_HUB_OFFLINE = was
        if bars:
            datasets.enable_progress_bars()


def _failed(name: str, source: str, revision: str | None, local: bool, error: Exception) -> UserError:
    """The error for whatever went wrong, in one sentence."""
    chain, said, first = [], error, error
    while said is not None:
        chain.append(type(said).__name__)
        first, said = said, said.__cause__ or said.__context__  # type: ignore[assignment]
    reason = (str(first if local else error).strip().splitlines() or [chain[0]])[0]
    if local:
        return UserError(f"{name} cannot be read ({reason}): check its files.")
    if "GatedRepoError" in chain:
        return UserError(f"The set {source!r} is gated: accept its terms on its page and log in with a token.")
    if "RevisionNotFoundError" in chain or (revision and "revision" in reason.lower()):
        return UserError(f"The set {source!r} has no revision {revision!r}: give one of its branches, tags or commits.")
    if chain[0] in ("DatasetNotFoundError", "RepositoryNotFoundError"):
        return UserError(f"The hub has no open set {source!r}: check its spelling, or log in if it is private.")
    return UserError(
        f"{name} is neither on this machine nor did the hub give it ({reason}); emoji, stamps, clipart, toyworld and your own "
        f"files ({', '.join(f'{kind}:PATH' for kind in LOCAL)}) need no hub."
    )
