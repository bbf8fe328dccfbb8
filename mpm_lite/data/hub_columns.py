"""What the columns of a captioned set are called, guessed or told, and looked at before a row is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from mpm_lite.data.languages import bcp47
from mpm_lite.runtime import UserError, unknown

IMAGES = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "image_bytes")
IDS = ("image_id", "img_id", "id", "key", "__key__", "cocoid", "filename")
TEXTS = ("captions", "caption", "text", "txt", "sentence", "sentences", "raw", "en")
LANGUAGES = ("language", "lang", "locale")
# Two letters, and the few longer ones of the sets known here: what a column or a split may be called for its language.
CODES = frozenset(
    "af ar bg bn ca cs da de el en es et eu fa fi fil fr gl gu he hi hr hu hy id is it ja ka kk kn ko lt lv mi mk ml mr ms nb "
    "nl no pa pl pt quz ro ru sk sl sq sr sv sw ta te th tl tr uk ur uz vi zh zh-hans zh-cn jp".split()
)


@dataclass(frozen=True)
class Columns:
    """Which column is what.

    image: bytes, a path, or what `datasets` keeps of a picture. captions: {language: column, or columns}; or one column, whose
    language `language` says (a column, or "split" where each split is a language), a row a caption, rows of one `id` being one
    picture; or one column that holds {language: caption or captions}. A caption is a text or a list of texts. id: None
    numbers the rows.
    """

    image: str
    captions: Any
    id: str | None = None
    language: str | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Columns:
        """From a dict. UserError for a key nobody knows and for one that is missing."""
        names = [f.name for f in fields(cls)]
        for key in told:
            if key not in names:
                raise unknown("key of columns", key, names)
        for key in ("image", "captions"):
            if key not in told:
                raise UserError(f"columns needs {key!r}: say which column holds it.")
        return cls(**told)

    @property
    def named(self) -> list[str]:
        """Every column that is asked for."""
        of = self.captions.values() if isinstance(self.captions, Mapping) else [self.captions]
        texts = [one for few in of for one in ([few] if isinstance(few, str) else few)]
        return [c for c in (self.image, self.id, *texts, self.language) if c and c != "split"]


def guessed(name: str, there: Iterable[str]) -> Columns:
    """By the names that are usual. UserError, which names the columns there are, where none is."""
    have = list(there)
    lowered = {column.lower(): column for column in have}
    pick = lambda usual: next((lowered[u] for u in usual if u in lowered), None)  # noqa: E731
    image, own, language = pick(IMAGES), pick(IDS), pick(LANGUAGES)
    by_language = {
        bcp47(code): column for code, column in lowered.items() if code in CODES and column not in (image, own)
    }
    for lower, column in lowered.items():
        head, _, code = lower.rpartition("_")
        if head in TEXTS and code in CODES:
            by_language[bcp47(code)] = column
    text = pick(TEXTS)
    captions: Any = text if language and text else by_language or ({"en": text} if text else None)
    if image is None or captions is None:
        what = "pictures" if image is None else "captions"
        raise UserError(
            f"{name}: no column of {what} is called as usual; there are {', '.join(have)}. Say which with "
            'columns={"image": ..., "captions": {"en": ...}}.'
        )
    return Columns(image, captions, own, language if isinstance(captions, str) else None)


def checked(name: str, columns: Columns, row: Mapping[str, Any], there: Iterable[str]) -> None:
    """Look at the columns and at what a first row has in them. UserError, naming the column, for what is missing or wrong."""
    for column in columns.named:
        if column not in row:
            raise unknown(f"column of {name}", column, there)
    picture = row[columns.image]
    if not isinstance(picture, (bytes, str, Mapping)):
        raise UserError(
            f"{name}: column {columns.image!r} holds {type(picture).__name__}, no picture (bytes or a path)."
        )
    for texts in captions_of(row, columns, "en", strict=name).values():
        if not all(isinstance(text, str) for text in texts):
            wrong = next(type(text).__name__ for text in texts if not isinstance(text, str))
            raise UserError(f"{name}: column {columns.captions!r} holds {wrong}, no text.")


def captions_of(row: Mapping[str, Any], columns: Columns, code: str, strict: str = "") -> dict[str, list[str]]:
    """A row's captions by language, empty ones left out. `code`: the language of the row's split, where splits are languages."""
    if isinstance(columns.captions, Mapping):
        few = {c: [names] if isinstance(names, str) else names for c, names in columns.captions.items()}
        found = {bcp47(c): [t for n in names for t in _texts(row[n])] for c, names in few.items()}
    elif columns.language:
        said = code if columns.language == "split" else row[columns.language]
        found = {bcp47(str(said)): _texts(row[columns.captions])}
    elif isinstance(row[columns.captions], Mapping):
        found = {bcp47(c): _texts(texts) for c, texts in row[columns.captions].items()}
    else:
        found = {"en": _texts(row[columns.captions])}
    return (
        found if strict else {c: kept for c, texts in found.items() if (kept := [t for t in texts if t and t.strip()])}
    )


def _texts(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return list(value) if isinstance(value, (list, tuple)) else [value]
