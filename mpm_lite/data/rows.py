"""The rows of a captioned set: what their columns mean (you say it, or it is guessed from names and values), and for each row
its captions, its split and its picture. All columns are checked before any row is used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from mpm_lite.core import runtime, store
from mpm_lite.core.keys import Key
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data.languages import REGIONAL, bcp47, display_name
from mpm_lite.data.local import SPLIT_WORDS, picture_file, split_of_folders, split_of_name

IMAGES = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "image_bytes")
IDS = ("image_id", "img_id", "id", "key", "__key__", "cocoid", "filename")
TEXTS = ("captions", "caption", "text", "txt", "sentence", "sentences", "raw", "en")
LANGUAGES = ("language", "lang", "locale")
# The codes by which a column or a split may be named after its language: two letters, and the longer ones of known sets.
CODES = frozenset(
    "af ar bg bn ca cs da de el en es et eu fa fi fil fr gl gu he hi hr hu hy id is it ja ka kk kn ko lt lv mi mk ml mr ms nb "
    "nl no pa pl pt quz ro ru sk sl sq sr sv sw ta te th tl tr uk ur uz vi zh zh-hans zh-cn jp".split()
)
_KNOWN = frozenset(bcp47(code) for code in CODES) | frozenset(REGIONAL)
_CODE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")  # of a language
_PREFIX = re.compile(rf"^({'|'.join(TEXTS[:-1])})[_-]")  # `caption_de` is a column of captions in German
GUESSED = "where there is one"  # stands for the column of splits where nobody named one


@dataclass(frozen=True)
class Columns:
    """The meaning of the columns.

    image: the pictures, as bytes, as paths, or as `datasets` stores them.
    captions: {language: column, or list of columns}; or one column of captions, with their languages in the column `language`
    (or "split", where each split is a language), where rows with the same `id` are one picture; or one column of dictionaries
    {language: caption or captions}. A caption is a text or a list of texts.
    id: what tells pictures apart; with None, rows are numbered, and rows with equal pictures are one.
    split: the column that says train, val or test. By default a column named split, if there is one; with None, only the names
    of files say the splits.
    """

    image: str
    captions: Any
    id: str | None = None
    language: str | None = None
    split: str | None = GUESSED

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Columns:
        """Columns from a dictionary. Raises UserError for an unknown key and for a missing one."""
        names = [f.name for f in fields(cls)]
        for key in told:
            if key not in names:
                raise unknown("key of columns", key, names)
        if missing := next((key for key in ("image", "captions") if key not in told), None):
            raise UserError(f"columns needs {missing!r}: say which column holds it.")
        if not told["captions"]:
            raise UserError("columns['captions'] is empty: say which columns hold captions.")
        return cls(**told)

    @property
    def texts(self) -> list[str]:
        """All columns of captions."""
        of = self.captions.values() if isinstance(self.captions, Mapping) else [self.captions]
        return [one for few in of for one in ([few] if isinstance(few, str) else few)]

    @property
    def named(self) -> list[str]:
        """All columns that these settings name."""
        split = None if self.split == GUESSED else self.split
        return [c for c in (self.image, self.id, *self.texts, self.language, split) if c and c != "split"]

    def split_column(self, there: Iterable[str]) -> str | None:
        """The column that says each row's split, if there is one. there: the names of all columns."""
        if self.split != GUESSED:
            return self.split
        taken = {self.image, self.id, self.language, *self.texts}
        return next((c for c in there if c.lower() == "split" and c not in taken), None)


def guess_columns(name: str, there: Iterable[str], held: Mapping[str, Sequence[Any]] | None = None) -> Columns:
    """The meaning of columns by their usual names and by what they hold.

    there: the names of the columns; held: some values of each, without nulls. Without `held` only the names decide.
    Raises UserError, which lists the columns, where none has a usual name, and where a column `id` may hold ids of pictures or
    captions in Indonesian.
    """
    have = [column for column in there if column.lower() != "split"]
    lowered = {column.lower(): column for column in reversed(have)}
    pick = lambda usual: next((lowered[u] for u in usual if u in lowered), None)  # noqa: E731
    texts = [column for column in have if held is None or _are_texts(held[column])]
    indonesian = {column for column in texts if _code(column) == "id" and _are_captions(name, column, held)}
    empty = {column for column in have if held is not None and not held[column]}
    image, language = pick(IMAGES), pick([one for one in LANGUAGES if lowered.get(one) in texts])
    own = pick([one for one in IDS if lowered.get(one) not in indonesian | empty])
    by_language: dict[str, list[str]] = {}
    for column in texts:
        code = _code(column)
        if code and column not in (image, own) and (code != "id" or column in indonesian):
            by_language.setdefault(code, []).append(column)
    text = pick([one for one in TEXTS if lowered.get(one) in texts and lowered[one] not in (image, own)])
    if by_language and text and "en" not in by_language:  # a column just named caption is taken for English
        by_language = {"en": [text], **by_language}
    few_columns = {code: few[0] if len(few) == 1 else few for code, few in by_language.items()}
    captions: Any = text if language and text else few_columns or ({"en": text} if text else None)
    if image is None or captions is None:
        what = "pictures" if image is None else "captions"
        blank = f" ({', '.join(c for c in have if c in empty)} without a value)" if empty else ""
        raise UserError(
            f"{name}: no column of {what} is called as usual; there are {', '.join(have)}{blank}. Say which with "
            'columns={"image": ..., "captions": {"en": ...}}.'
        )
    return Columns(image, captions, own, language if isinstance(captions, str) else None)


def is_usual(column: str) -> bool:
    """Whether a column has a usual name for pictures or captions."""
    return column.lower() in (*IMAGES, *TEXTS) or _code(column) is not None


def _code(column: str) -> str | None:
    """The language that a column is named after: `de`, `zh_Hans`, `pt-BR`, `caption_de`."""
    code = bcp47(_PREFIX.sub("", column.lower()))
    return code if code in _KNOWN else None


def _are_texts(values: Sequence[Any]) -> bool:
    """Whether values are captions: texts or lists of texts, not all of them empty."""
    flat = [text for value in values for text in _texts(value) if text is not None]
    return bool(flat) and all(isinstance(text, str) for text in flat) and any(text.strip() for text in flat)


def _are_captions(name: str, column: str, held: Mapping[str, Sequence[Any]] | None) -> bool:
    """Whether a column of texts named `id` holds captions in Indonesian, and not ids of pictures.

    Sentences are captions. Single words are ids if they have digits, or if the other captions are sentences.
    Raises UserError where this does not decide.
    """
    if held is None:
        return column.lower() != "id"
    values = held[column]
    if any(isinstance(value, (list, tuple)) for value in values) or _mostly(values, 3):
        return True
    numbered = all(any(letter.isdigit() for letter in str(value)) for value in values)
    if _mostly(values, 2) and not numbered:
        return True
    single = max(len(str(value).split()) for value in values) < 2
    others = [c for c in held if c != column and (_code(c) or c.lower() in TEXTS) and _are_texts(held[c])]
    if single and (numbered or any(_mostly(held[c], 3) for c in others)):
        return False
    raise UserError(
        f"{name}: column {column!r} may hold ids of pictures or captions in Indonesian, such as {values[0]!r}. Say which: "
        f'columns={{"image": ..., "id": "{column}", "captions": ...}} or columns={{"image": ..., "captions": {{"id": "{column}"}}}}.'
    )


def _mostly(values: Sequence[Any], words: int) -> bool:
    """Whether at least half of the texts have so many words or more."""
    texts = [str(text) for value in values for text in _texts(value)]
    return sum(len(text.split()) >= words for text in texts) * 2 >= len(texts)


def checked(name: str, columns: Columns, held: Mapping[str, Sequence[Any]]) -> None:
    """Check the columns and some values of each. Raises UserError, which names the column, for what is missing or wrong."""
    for column in [*columns.named, columns.split_column(held)]:
        if column and column not in held:
            raise unknown(f"column of {name}", column, held)
    for picture in held[columns.image]:
        if not isinstance(picture, (bytes, str, Mapping)):
            raise UserError(
                f"{name}: column {columns.image!r} holds {type(picture).__name__}, no picture (bytes or a path)."
            )
    for column in columns.texts:
        for value in held[column]:
            by_language = isinstance(value, Mapping) and not isinstance(columns.captions, Mapping)
            for text in [t for few in (value.values() if by_language else [value]) for t in _texts(few)]:
                if text is not None and not isinstance(text, str):
                    raise UserError(f"{name}: column {column!r} holds {type(text).__name__}, no text.")
    for value in held[columns.id] if columns.id else ():
        if not isinstance(value, (str, int, float, bytes)):
            raise UserError(f"{name}: column {columns.id!r} holds {type(value).__name__}, no id (a text or a number).")


def check_no_other_splits(name: str, columns: Columns, held: Mapping[str, Sequence[Any]]) -> None:
    """Raises UserError where a column that is not named split holds only words for splits, and at least two of them."""
    for column in [column for column in held if column not in columns.named]:
        said = {SPLIT_WORDS.get(v.strip().lower()) if isinstance(v, str) else None for v in held[column]}
        if len(said) > 1 and None not in said:
            raise UserError(
                f"{name}: column {column!r} seems to say the splits ({', '.join(sorted(map(str, said)))}): say "
                f'columns={{..., "split": "{column}"}} to follow it, or columns={{..., "split": None}} to leave it out.'
            )


def unread_texts(columns: Columns, held: Mapping[str, Sequence[Any]]) -> list[str]:
    """The columns of texts that are named like captions, but that the guess leaves out."""
    found = []
    for column in [column for column in held if column not in columns.named and _are_texts(held[column])]:
        bare = _PREFIX.sub("", column.lower())
        if bare != column.lower() or bare in TEXTS or display_name(bcp47(bare)) != bcp47(bare):
            found.append(column)
    return found


def captions_of(row: Mapping[str, Any], columns: Columns, code: str, shown: str = "a row") -> dict[str, list[str]]:
    """A row's captions by language, without empty ones. Captions under two names of one language (zh-CN, zh) are joined.

    code: the language of the row's split, where splits are languages. shown: the row's name in errors.
    Raises UserError for a caption whose language is missing.
    """
    if isinstance(columns.captions, Mapping):
        few = {c: [names] if isinstance(names, str) else names for c, names in columns.captions.items()}
        said = [(c, text) for c, names in few.items() for n in names for text in _texts(row[n])]
    elif columns.language:
        own = code if columns.language == "split" and "split" not in row else row[columns.language]
        said = [(own, text) for text in _texts(row[columns.captions])]
    elif isinstance(row[columns.captions], Mapping):
        said = [(c, text) for c, texts in row[columns.captions].items() for text in _texts(texts)]
    else:
        said = [("en", text) for text in _texts(row[columns.captions])]
    found: dict[str, list[str]] = {}
    for own, text in said:
        if isinstance(text, bytes):
            raise UserError(f"{shown} has a caption {text[:40]!r} that is no text in UTF-8: write it again in UTF-8.")
        if text and text.strip():
            if not isinstance(own, str) or not own.strip():
                raise UserError(f"{shown} has a caption, and no language in column {columns.language!r}: fill it in.")
            if not _CODE.fullmatch(known := bcp47(own)):
                raise UserError(f"{shown} says the language {own!r}, which is no code such as 'de' or 'zh-Hans'.")
            found.setdefault(known, []).append(text)
    return found


def id_of(value: Any) -> str | None:
    """A picture's id as text; None where the row has none (null, NaN or empty)."""
    if value is None or value != value:
        return None
    if isinstance(value := _decoded(value), bytes):
        raise UserError(f"An id, {value[:40]!r}, is no text in UTF-8: write it again in UTF-8.")
    return str(value).strip() or None


def split_of_value(value: Any, column: str, shown: str) -> str:
    """The split that a value of the column of splits means: train, val or test. Raises UserError for any other value."""
    said = SPLIT_WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if said is None:
        raise UserError(
            f"{shown}: column {column!r} says {value!r}, which is no split: use train, val or test, or say "
            'columns={..., "split": None} to leave the column out.'
        )
    return said


def _texts(value: Any) -> list[Any]:
    if value is None:
        return []
    value = _decoded(value)
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _decoded(value: Any) -> Any:
    """Bytes as text, where they are text in UTF-8."""
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


@dataclass(frozen=True)
class Source:
    """Rows that belong together: one of your own files, or a split of a repository on the hub.

    rows: a `datasets.Dataset` with encoded pictures. name: its name in messages. split: the split that its name says.
    root, file: for your own files, the folder that you gave and the file. image: the column of pictures.
    """

    rows: Any
    name: str
    split: str | None
    root: Path | None = None
    file: Path | None = None
    image: str = "image"


@dataclass(frozen=True)
class Row:
    """One row of a source: its captions, its split, and where its picture is.

    number: its place in the source. split: what the column of splits or the names say. picture: the file that holds the
    picture; None if the row itself holds it. missing: why there is no picture, else "". watched: the files that the picture
    depends on. inside: the picture's path below the set's folder, or in its tar file. content: the SHA-256 of the encoded
    picture, once it was read.
    """

    source: Source
    number: int
    id: str | None
    split: str | None
    captions: Mapping[str, list[str]]
    picture: Path | None = None
    missing: str = ""
    watched: tuple[Path, ...] = ()
    inside: PurePath = PurePath()
    content: bytes | None = None

    @property
    def shown(self) -> str:
        """The row's name in messages."""
        return f"{self.source.name}, row {self.number}"

    def encoded(self) -> bytes:
        """The bytes of its picture, from the row or from its file. Raises UserError for a file that cannot be read."""
        if self.picture is not None:
            try:
                return self.picture.read_bytes()
            except OSError as error:
                raise UserError(
                    f"{self.shown}: the picture {self.picture} cannot be read: {error.strerror}."
                ) from error
        held = self.source.rows.data.column(self.source.image)[self.number].as_py()
        return held["bytes"] if isinstance(held, Mapping) else held


def rows_of(sources: Sequence[Source], columns: Columns, column: str | None) -> list[Row]:
    """All rows of all sources, in order. column: the column of splits, if there is one.

    The split of a row comes from that column; else from the name of the file and of its folders; else from the picture's
    folders; and if none of these says a split in the whole set, from the names of the pictures.
    Raises UserError for an unknown split, for a file and a column that disagree, and for a path that fits two files.
    """
    found = []
    for source in sources:
        in_tar = source.file is not None and source.file.suffix == ".tar"
        needed = {*columns.named, column, columns.language, "__key__" if in_tar else None} - {columns.image}
        there = [c for c in source.rows.column_names if c in needed]
        names = dict(enumerate(getattr(source.rows.features.get(column), "names", ())))  # of a column of class labels
        lacking = dict.fromkeys(c for c in columns.named if c not in there)  # other files of the set have them
        places = picture_places(source.rows, columns.image)
        for k, (place, values) in enumerate(zip(places, source.rows.select_columns(there), strict=True)):
            shown = f"{source.name}, row {k}"
            said = lacking | values | {columns.image: place}
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
            found.append(Row(source, k, own, split, captions, *_located(source, place, shown), inside))
    return found if any(row.split for row in found) else _split_by_names(found)


def picture_places(rows: Any, column: str) -> list[str | bool]:
    """Where each picture of a column is: the path of a file, True if the row itself holds it, False if there is none."""
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
    """The file of a picture, or why it is missing, and the files to watch."""
    if isinstance(place, bool):
        return None, "" if place else "there is no picture", ()
    if "://" in place:
        return None, f"the picture {place!r} is an address, and pictures are not fetched: save them beside the set", ()
    folders = [] if source.file is None or source.root is None else [source.root, source.file.parent]
    found, tried = picture_file(place, folders, shown)
    where = f"looked for {' and '.join(map(str, tried))}" if tried else "a set of the hub has no folder here"
    return found, "" if found else f"the picture {place!r} is not there ({where})", tuple(tried)


def _inside(source: Source, place: str | bool) -> PurePath:
    """A picture's path below the set's folder; an empty path for one that the row holds or that lies elsewhere."""
    if isinstance(place, bool) or source.root is None:
        return PurePath()
    path = source.root / place  # an absolute place is kept as it is
    return path.relative_to(source.root) if path.is_relative_to(source.root) else PurePath()


def _split_by_names(rows: list[Row]) -> list[Row]:
    """The same rows, with the splits that the names of their pictures say, if all of them say one.

    Raises UserError if only some do: nobody can know whether `train.png` is for training or shows a train.
    """
    said = [split_of_name(row.inside.stem, row.shown) for row in rows]
    if not any(said):
        return rows
    if None in said:
        silent, loud = rows[said.index(None)], next(k for k, split in enumerate(said) if split)
        raise UserError(
            f"{rows[loud].shown}: the picture {rows[loud].inside.name} is called as one of {said[loud]} would be, and other "
            f"pictures say no split ({silent.inside.name or silent.shown}): rename it, or say the splits in a column called split."
        )
    return [replace(row, split=split) for row, split in zip(rows, said, strict=True)]


def with_contents(rows: Sequence[Row], key: Sequence[str]) -> list[Row]:
    """The same rows with the SHA-256 of their pictures. The digests are kept on disk under `key`, if it is not empty."""

    def compute() -> np.ndarray:
        few = tqdm(rows, desc="reading pictures", delay=2, disable=runtime.quiet(), leave=False)
        made = [bytes(32) if row.missing else hashlib.sha256(row.encoded()).digest() for row in few]
        return np.frombuffer(b"".join(made), np.uint8).reshape(-1, 32)

    taken = zip(rows, kept(key, compute), strict=True)
    return [row if row.missing else replace(row, content=content.tobytes()) for row, content in taken]


def kept(key: Sequence[str], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The result of `compute`, read from disk if it was kept there. The key says what it is, then all that it depends on;
    with an empty key, or if the disk cannot be written to, nothing is kept."""
    made: list[np.ndarray | None] = []

    def once() -> np.ndarray:
        made.append(None)
        made[0] = compute()
        return made[0]

    if not key:
        return once()
    try:
        return store.keep_features(Key(key[0], {"kind": key[0], "pictures": list(key[1:])}), once)
    except (OSError, UserError):  # if only the writing failed, the result is still right
        if made and made[0] is None:  # the computation itself failed
            raise
        return made[0] if made else compute()
