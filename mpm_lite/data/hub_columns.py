"""What the columns of a captioned set are called, guessed or told, and looked at before a row is used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mpm_lite.data.languages import REGIONAL, bcp47, display_name
from mpm_lite.data.local import SPLIT_WORDS
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
_KNOWN = frozenset(bcp47(code) for code in CODES) | frozenset(REGIONAL)
GUESSED = "where there is one"  # the column of splits that nobody named


@dataclass(frozen=True)
class Columns:
    """Which column is what.

    image: bytes, a path, or what `datasets` keeps of a picture. captions: {language: column, or columns}; or one column, whose
    language `language` says (a column, or "split" where each split is a language), a row a caption, rows of one `id` being one
    picture; or one column that holds {language: caption or captions}. A caption is a text or a list of texts. id: None
    numbers the rows, and those of equal pictures are one. split: the column that says train, val or test; left out, a column
    called split, where there is one; None leaves the splits to the names of files.
    """

    image: str
    captions: Any
    id: str | None = None
    language: str | None = None
    split: str | None = GUESSED

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
        if not told["captions"]:
            raise UserError("columns['captions'] is empty: say which columns hold captions.")
        return cls(**told)

    @property
    def texts(self) -> list[str]:
        """Every column of captions."""
        of = self.captions.values() if isinstance(self.captions, Mapping) else [self.captions]
        return [one for few in of for one in ([few] if isinstance(few, str) else few)]

    @property
    def named(self) -> list[str]:
        """Every column that is asked for."""
        split = None if self.split == GUESSED else self.split
        return [c for c in (self.image, self.id, *self.texts, self.language, split) if c and c != "split"]

    def split_column(self, there: Iterable[str]) -> str | None:
        """The column that says the split of a row, if any."""
        if self.split != GUESSED:
            return self.split
        taken = {self.image, self.id, self.language, *self.texts}
        return next((c for c in there if c.lower() == "split" and c not in taken), None)


def guessed(name: str, there: Iterable[str], held: Mapping[str, Sequence[Any]] | None = None) -> Columns:
    """By the names that are usual, and by what the columns hold.

    there: the columns; held: some values of each, none of them null. Without `held`, names alone decide.
    Raises UserError, naming the columns there are, where no column is called as usual, and where a column `id` may hold
    ids as well as Indonesian captions.
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
    if by_language and text and "en" not in by_language:  # a plain caption is taken for English, alone or beside others
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
    """Whether a column is called as pictures or captions usually are."""
    return column.lower() in (*IMAGES, *TEXTS) or _code(column) is not None


def _code(column: str) -> str | None:
    """The language that a column is called for: `de`, `zh_Hans`, `pt-BR`, `caption_de`."""
    code = bcp47(re.sub(rf"^({'|'.join(TEXTS[:-1])})[_-]", "", column.lower()))
    return code if code in _KNOWN else None


def _are_texts(values: Sequence[Any]) -> bool:
    """Whether a column holds captions: texts, or lists of texts. One that is empty throughout does not."""
    flat = [text for value in values for text in _texts(value) if text is not None]
    return bool(flat) and all(isinstance(text, str) for text in flat) and any(text.strip() for text in flat)


def _are_captions(name: str, column: str, held: Mapping[str, Sequence[Any]] | None) -> bool:
    """Whether a column of texts called `id` holds captions in Indonesian, not the ids of pictures.

    Sentences are captions; single words are ids where they have digits, or where the other captions are sentences.
    Raises UserError where it cannot be known.
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
    """Whether at least half of the texts have that many words."""
    texts = [str(text) for value in values for text in _texts(value)]
    return sum(len(text.split()) >= words for text in texts) * 2 >= len(texts)


def checked(name: str, columns: Columns, held: Mapping[str, Sequence[Any]]) -> None:
    """Look at the columns and at some values of each. UserError, naming the column, for what is missing or wrong."""
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
    """Raises UserError where a column that is not called split holds words for splits, and no other."""
    for column in [column for column in held if column not in columns.named]:
        said = {SPLIT_WORDS.get(v.strip().lower()) if isinstance(v, str) else None for v in held[column]}
        if len(said) > 1 and None not in said:
            raise UserError(
                f"{name}: column {column!r} seems to say the splits ({', '.join(sorted(map(str, said)))}): say "
                f'columns={{..., "split": "{column}"}} to follow it, or columns={{..., "split": None}} to leave it out.'
            )


def unread_texts(columns: Columns, held: Mapping[str, Sequence[Any]]) -> list[str]:
    """The columns that are called as captions are, and hold texts, but are not read as guessed."""
    found = []
    for column in [column for column in held if column not in columns.named and _are_texts(held[column])]:
        bare = re.sub(rf"^({'|'.join(TEXTS[:-1])})[_-]", "", column.lower())
        if bare != column.lower() or bare in TEXTS or display_name(bcp47(bare)) != bcp47(bare):
            found.append(column)
    return found


def captions_of(row: Mapping[str, Any], columns: Columns, code: str, shown: str = "a row") -> dict[str, list[str]]:
    """A row's captions by language, empty ones left out; where two names mean one language (zh-CN, zh), theirs together.

    code: the language of the row's split, where splits are languages. shown: what an error calls the row.
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
        if text and text.strip():
            if not isinstance(own, str) or not own.strip():
                raise UserError(f"{shown} has a caption, and no language in column {columns.language!r}: fill it in.")
            found.setdefault(bcp47(own), []).append(text)
    return found


def id_of(value: Any) -> str | None:
    """A picture's id as text; None where the row has none: null, not a number, or empty."""
    if value is None or value != value:
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return str(value).strip() or None


def split_of_value(value: Any, column: str, shown: str) -> str:
    """The split that a row's own column says: train, val or test. Raises UserError for a value that says none."""
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
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return list(value) if isinstance(value, (list, tuple)) else [value]
