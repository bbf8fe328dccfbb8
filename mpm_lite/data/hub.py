"""Captioned pictures through the `datasets` library: sets of the hub by name, and parquet, webdataset and image folders.

    load_captions("parquet:photos", columns={"image": "img", "captions": {"en": "cap_en", "de": "cap_de"}})
    load_captions("hub:owner/name", "test", ["en", "de"], revision="main")

Columns are checked before a row is read. Pictures are decoded only when looked at. No code of a repository is ever run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from mpm_lite.cache import digest
from mpm_lite.data.captionset import SPLITS, Part
from mpm_lite.data.hub_columns import CODES, Columns, captions_of, checked, guessed
from mpm_lite.data.picture import SIZE, photo
from mpm_lite.runtime import UserError

RENDER = "photo-1: turned, on white, padded to a square, Lanczos, 256 px"
OTHER = {"validation": "val", "valid": "val", "dev": "val", "eval": "val"}  # what splits are called elsewhere
SHARES = {"test": 0.1, "val": 0.2}  # of a set that has none of our three, below which place in [0, 1) an id belongs
LOCAL = ("parquet", "webdataset", "imagefolder")


@dataclass(frozen=True)
class Known:
    """A set of the hub: where it lies, what its columns are called, how many captions a picture has, and its licence."""

    repo: str
    columns: Columns
    captions: str
    licence: str


_FIVE = Columns(image="image", captions={"en": "caption"})
# As these repositories were last known to be laid out; where one has changed, the check of its columns says what is there,
# and `hub:OWNER/NAME` with `columns` reads it.
KNOWN = {
    "multi30k": Known(
        "romrawinjp/multi30k", Columns(image="image", captions={c: c for c in ("en", "de", "fr", "cs")}),
        "5 in en and de, 1 in fr and cs", "captions CC BY-NC-SA 4.0; photographs Flickr's terms",
    ),
    "xm3600": Known(
        "floschne/xm3600", Columns(image="image", id="image_id", captions="captions", language="split"),
        "2 and more in 36 languages; a split is a language", "CC BY 4.0",
    ),
    "xtd": Known(
        "floschne/xtd", Columns(image="image", id="image_id", captions="caption", language="split"),
        "1 in 11 languages; a split is a language", "CC BY-NC-SA 4.0; photographs COCO's terms",
    ),
    "coco-cn": Known(
        "AIML-TUDA/coco-cn", Columns(image="image", captions={"en": "caption_en", "zh": "caption_zh"}),
        "1 and more in zh, 5 in en", "non-commercial; photographs COCO's terms",
    ),
    "flickr8k": Known(
        "jxie/flickr8k", Columns(image="image", captions={"en": [f"caption_{k}" for k in range(5)]}),
        "5 in en", "non-commercial; photographs Flickr's terms",
    ),
    "flickr30k": Known("nlphuji/flickr30k", _FIVE, "5 in en", "non-commercial; photographs Flickr's terms"),
    "wit": Known(
        "wikimedia/wit_base", Columns(image="image", id="image_url", captions="caption", language="language"),
        "1 a row, a row a language, 108 languages", "CC BY-SA 3.0 and each picture's own",
    ),
}  # fmt: skip


def known(name: str) -> bool:
    """Whether a name is one of these sets', or says where one lies."""
    kind, colon, _ = name.partition(":")
    return name in KNOWN or (bool(colon) and kind in (*LOCAL, "hub"))


def here(name: str) -> bool:
    """Whether a local set's files are on this machine; the hub is not asked."""
    kind, colon, path = name.partition(":")
    return bool(colon) and kind in LOCAL and Path(path).expanduser().exists()


def parts(
    name: str, columns: Mapping[str, Any] | None = None, revision: str | None = None, limit: int | None = None,
    streaming: bool = False,
) -> dict[str, Part]:  # fmt: skip
    """The three parts of a set: those it has, or, where it has none of them, by a hash of each picture's id.

    `streaming` reads no more than the first `limit` rows of each split, in the order of its files.
    Raises UserError for columns that are not there or hold something else, for a repository or folder that is not there or
    not open, and for streaming without a limit.
    """
    if streaming and not limit:
        raise UserError("streaming=True needs a limit: it reads the first rows and no more.")
    told = json.dumps(dict(columns), sort_keys=True) if columns else ""
    return dict(_parts(name, told, revision, limit, streaming, _stamp(name)))


def _stamp(name: str) -> str:
    """What tells a local set's files from what they were before: names, sizes and times."""
    path = Path(name.partition(":")[2]).expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return digest([f"{f}{f.stat().st_size}{f.stat().st_mtime_ns}" for f in files if f.is_file()]) if here(name) else ""


@lru_cache(maxsize=8)
def _parts(
    name: str, columns: str, revision: str | None, limit: int | None, streaming: bool, stamp: str
) -> dict[str, Part]:
    splits = _opened(name, revision, streaming)
    features = next(iter(splits.values())).features
    if features is None:  # a stream of files that do not say
        features = dict.fromkeys(next(iter(next(iter(splits.values()))), {}))
    if columns:
        said = Columns.of(json.loads(columns))
    else:
        said = KNOWN[name].columns if name in KNOWN else guessed(name, features)
    if said.language == "split" and "split" not in features:
        known = {code: of for code, of in splits.items() if code.lower() in CODES}
        rows = {"": _joined([(code, row) for code, of in known.items() for row in _rows(of, said, name, limit)], said)}
    else:
        rows = {split: _joined([("", r) for r in _rows(of, said, name, limit)], said) for split, of in splits.items()}
    shared = {OTHER.get(split, split): of for split, of in rows.items()}
    if not set(shared) & {"val", "test"}:
        shared = _shared([row for of in shared.values() for row in of])
    mark = digest([name, revision or "", stamp, columns, str(limit), RENDER])
    kind, _, where = name.partition(":")
    shown = f"{kind}:{Path(where).name}" if kind in LOCAL else name  # no folder of this machine in a table
    every = sorted(
        {c for of in shared.values() for row in of for c in row.captions}, key=lambda code: (code != "en", code)
    )
    return {split: _part(f"{shown}/{split}", shared.get(split, []), every, mark) for split in SPLITS}


def _opened(name: str, revision: str | None, streaming: bool) -> dict[str, Any]:
    """The splits of a set as `datasets` opens them, pictures left encoded."""
    import datasets

    kind, _, where = name.partition(":")
    how: dict[str, Any] = {"streaming": streaming}
    if kind in LOCAL:
        path = Path(where).expanduser()
        if not path.exists():
            raise UserError(f"There is nothing at {where!r}: give the folder or file of a {kind} set.")
        if revision:
            raise UserError(f"{name!r} has no revisions: only sets of the hub have.")
        source, how = kind, how | _files(kind, path)
    else:
        source, how = KNOWN[name].repo if name in KNOWN else where, how | {"revision": revision}
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with _hub_or_cache(kind in LOCAL):
            found = datasets.load_dataset(source, **how)
        return {split: _encoded(of) for split, of in found.items() if streaming or len(of)}
    except UserError:
        raise
    except Exception as error:  # the hub's, the reader's and the file system's: each its own kind
        raise _failed(name, source, revision, kind in LOCAL, error) from error
    finally:
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def _hub_or_cache(local: bool) -> Iterator[None]:
    """The libraries look into their caches only, where the hub cannot be reached: at once, not after retries."""
    import datasets
    from huggingface_hub import constants

    from mpm_lite.towers.snapshots import reachable

    were = [(of, of.HF_HUB_OFFLINE) for of in (datasets.config, constants)]
    try:
        for of, was in were:
            of.HF_HUB_OFFLINE = was or local or not reachable()
        yield
    finally:
        for of, was in were:
            of.HF_HUB_OFFLINE = was


def _files(kind: str, path: Path) -> dict[str, Any]:
    """What `load_dataset` is told of local files: those under a split's name are that split's, else all are train."""
    if kind == "imagefolder":
        return {"data_dir": str(path)}
    ends = "*.parquet" if kind == "parquet" else "*.tar"
    files = [path] if path.is_file() else sorted(path.rglob(ends))
    if not files:
        raise UserError(f"There is no {ends} under {path}: give the folder of a {kind} set.")
    found: dict[str, list[str]] = {}
    for file in files:
        words = {*file.stem.lower().replace("_", "-").split("-"), *(p.lower() for p in file.parent.parts)}
        split = next((s for s in (*SPLITS, *OTHER) if s in words), "train")
        found.setdefault(OTHER.get(split, split), []).append(str(file))
    return {"data_files": found}


def _encoded(of: Any) -> Any:
    """The same with pictures as bytes and paths, decoded only when looked at."""
    import datasets

    for column, kind in (of.features or {}).items():
        if isinstance(kind, datasets.Image):
            of = of.cast_column(column, datasets.Image(decode=False))
    return of


def _failed(name: str, source: str, revision: str | None, local: bool, error: Exception) -> UserError:
    """One sentence for whatever went wrong."""
    chain, said = [], error
    while said is not None:
        chain.append(type(said).__name__)
        said = said.__cause__ or said.__context__  # type: ignore[assignment]
    reason = (str(error).strip().splitlines() or [chain[0]])[0]
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


@dataclass
class Row:
    """One picture: its id, what it is encoded as, and its captions by language."""

    id: str
    picture: Any
    captions: dict[str, list[str]] = field(default_factory=dict)


def _rows(of: Any, columns: Columns, name: str, limit: int | None) -> Iterator[dict[str, Any]]:
    """The rows of one split, once its columns were looked at."""
    import datasets

    first = next(iter(of), None)
    if first is None:
        return
    checked(name, columns, first, of.features or dict.fromkeys(first))
    # Where rows can be had by number, pictures stay on the disk until somebody looks at them.
    lazy = isinstance(of, datasets.Dataset)
    for k, row in enumerate(of.remove_columns(columns.image) if lazy else of):
        if limit is not None and k >= limit:
            return
        yield {"": k, **row} | ({columns.image: partial(_at, of, k, columns.image)} if lazy else {})


def _at(of: Any, k: int, column: str) -> Any:
    return of[k][column]


def _joined(rows: list[tuple[str, dict[str, Any]]], columns: Columns) -> list[Row]:
    """Rows of the same id as one picture, in the order in which they come."""
    found: dict[str, Row] = {}
    for code, row in rows:
        name = str(row[columns.id]) if columns.id else f"{row['']:06d}"
        one = found.setdefault(name, Row(name, row[columns.image]))
        for language, texts in captions_of(row, columns, code).items():
            one.captions.setdefault(language, []).extend(texts)
    return list(found.values())


def _shared(rows: list[Row]) -> dict[str, list[Row]]:
    """Eight tenths to train, one to val, one to test, by a hash of the id: the same on every machine."""
    found: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in rows:
        place = int.from_bytes(hashlib.sha256(row.id.encode()).digest()[:8], "big") / 2**64
        found[next((split for split, end in SHARES.items() if place < end), "train")].append(row)
    return found


def _part(name: str, rows: list[Row], codes: list[str], mark: str) -> Part:
    from mpm_lite.data.concepts import head_noun

    several = {code: [row.captions.get(code, []) for row in rows] for code in codes}
    firsts = {code: [(few or [""])[0] for few in of] for code, of in several.items()}

    def render(i: int) -> Any:
        try:
            return _picture(rows[i].picture)
        except UserError as error:
            raise UserError(f"{name}, picture {rows[i].id!r}: {error}") from error

    return Part(
        name=name,
        ids=[f"{name}/{row.id}" for row in rows],
        captions=firsts,
        concepts=[head_noun(text) if text else row.id for text, row in zip(firsts.get("en", [""] * len(rows)), rows, strict=True)],
        render=render,
        size=SIZE,
        made_by=mark,
        several=several,
    )  # fmt: skip


def _picture(encoded: Any) -> Any:
    if callable(encoded):
        encoded = encoded()
    if isinstance(encoded, Mapping):
        encoded = encoded.get("bytes") or encoded.get("path")
    if isinstance(encoded, str):
        encoded = Path(encoded)
    if isinstance(encoded, (bytes, Path)):
        return photo(encoded)
    raise UserError(f"A picture is {type(encoded).__name__}, neither bytes nor the path of a file.")


def listing() -> list[dict[str, str]]:
    """A row a set of the hub for `mpm-lite data list`, without asking it: name, repository, captions, licence."""
    return [{"name": n, "repo": k.repo, "captions": k.captions, "licence": k.licence} for n, k in KNOWN.items()]
