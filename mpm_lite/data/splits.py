"""The pictures of a captioned set: which rows are one picture, in which split it is, and what is left out.

A picture is told by its bytes: rows without ids are one picture where their bytes are equal, the rows of one id must show the
same picture, and no picture's bytes may lie in two splits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from mpm_lite.core import runtime
from mpm_lite.core.keys import digest
from mpm_lite.core.runtime import UserError
from mpm_lite.data.captionset import SPLITS, Part, place_of, split_of_place
from mpm_lite.data.languages import english_first
from mpm_lite.data.local import SPLIT_WORDS, split_of_name
from mpm_lite.data.picture import SIZE, photo
from mpm_lite.data.rows import Columns, Row, Source, contents, encoded, kept

RENDER = "photo-2: turned, on white, padded to a square, Lanczos, 256 px"
TEST_SHARE = VAL_SHARE = 0.1  # of a set that has none of our three splits


@dataclass
class Picture:
    """One picture: its id, the row that holds it, its captions by language, and the digest of its bytes where it was taken."""

    id: str
    row: Row
    captions: dict[str, list[str]] = field(default_factory=dict)
    content: bytes | None = None


def pictures_of(
    sources: Sequence[Source], rows: Sequence[Row], columns: Columns, followed: bool, trusted: bool, key: Sequence[str]
) -> dict[str, list[Picture]]:
    """The pictures of each split: those that the set has, or, where it says neither val nor test, by a hash of their bytes.

    followed: a column says each row's split. trusted: the set's ids are known to tell its pictures apart. key: what the digests
    of the pictures are kept on disk under; nothing keeps none.
    """
    own = any(source.file for source in sources)
    if own and any(row.split for row in rows):
        check_all_say(rows)
    names = {row.split or "": row for row in rows}
    meant = {name: _split_meant(name, row.shown, own) for name, row in names.items()}
    splits = [meant[row.split or ""] for row in rows]
    hashed = not (followed or {"val", "test"} & set(splits))
    ids = [row.id for row in rows if row.id]
    # Files of one's own are read throughout; sets of the hub where nothing else tells their pictures apart.
    read = own or not (trusted or (not hashed and len(set(ids)) == len(ids)))
    taken = contents(sources, rows, columns.image, key and ["contents of rows", *key]) if read else [None] * len(rows)
    pools: dict[str, list[int]] = {}
    for number, split in enumerate(splits):
        pools.setdefault("" if hashed else split, []).append(number)
    found = {}
    for split, numbers in pools.items():
        few = [rows[i] for i in numbers]
        if own and columns.id == "__key__":
            few = told_apart(few, sources)
        found[split] = joined(few, [taken[i] for i in numbers], columns)
    if not hashed:
        if unread := sorted(name for name, split in meant.items() if not split):
            print(
                f"mpm_lite: the splits {', '.join(map(repr, unread))} are none of {', '.join(SPLITS)}: left out.",
                file=sys.stderr,
            )
        return {split: found.get(split, []) for split in SPLITS}
    whole = found.get("", [])
    if not read:
        firsts = [one.row for one in whole]
        for one, content in zip(
            whole, contents(sources, firsts, columns.image, key and ["contents", *key]), strict=True
        ):
            one.content = content
    return shared(whole)


def _split_meant(name: str, shown: str, own: bool) -> str:
    """train, val or test, or "" for the name of a hub's split that says none of them, such as a language's."""
    return SPLIT_WORDS.get(name) or ("train" if own else split_of_name(name, shown) or "")


def check_all_say(rows: Sequence[Row]) -> None:
    """Raises UserError where some rows say their split and others none: those might be of training or of a test set."""
    silent = next((row for row in rows if row.split is None), None)
    if silent:
        loud = next(row for row in rows if row.split)
        raise UserError(
            f"{silent.shown} says no split, and {loud.shown} says {loud.split}: put the word train, val or test into the name of "
            "every file or of its folder, or into a column called split."
        )


def parts_of(
    name: str, sources: Sequence[Source], pictures: Mapping[str, Sequence[Picture]], column: str, skip_bad: bool,
    key: Sequence[str],
) -> dict[str, Part]:  # fmt: skip
    """The three parts of a set, without a picture that is not there or that is in two splits: refused, or left out.

    skip_bad: such pictures, and those that cannot be decoded, are left out and listed. key: what tells the pictures from what
    they were before, where their bytes were not read.
    """
    left: dict[str, list[str]] = {split: [] for split in SPLITS}
    good: dict[str, list[Picture]] = {}

    def leave_out(split: str, one: Picture, why: str) -> None:
        text = f"{name}/{split}, picture {one.id!r} ({one.row.picture or one.row.shown}): {why.removesuffix('.')}."
        if not skip_bad:
            raise UserError(f"{text} Mend the set, or leave such pictures out with skip_bad=True.")
        left[split].append(text)

    for split in SPLITS:
        good[split] = []
        bad = bad_pictures(sources, pictures[split], column, [*key, split]) if skip_bad else {}
        for i, one in enumerate(pictures[split]):
            if why := one.row.missing or bad.get(i):
                leave_out(split, one, why)
            else:
                good[split].append(one)
    good = without_repeats(good, leave_out)
    if not any(good.values()):
        raise UserError(
            f"{name}: no picture can be used. {next((why for few in left.values() for why in few), '')}".strip()
        )
    codes = english_first(code for few in good.values() for one in few for code in one.captions)
    return {s: _part(f"{name}/{s}", sources, good[s], codes, column, left[s], key) for s in SPLITS}


def _part(
    name: str, sources: Sequence[Source], pictures: Sequence[Picture], codes: Sequence[str], column: str,
    left_out: Sequence[str], key: Sequence[str],
) -> Part:  # fmt: skip
    from mpm_lite.data.concepts import head_noun

    several = {code: [one.captions.get(code, []) for one in pictures] for code in codes}
    firsts = {code: [(few or [""])[0] for few in of] for code, of in several.items()}
    english = firsts.get("en", [""] * len(pictures))
    read = all(one.content for one in pictures)
    return Part(
        name=name,
        ids=[f"{name}/{one.id}" for one in pictures],
        captions=firsts,
        concepts=[head_noun(text) if text else one.id for text, one in zip(english, pictures, strict=True)],
        render=Drawing(name, sources, [one.row for one in pictures], [one.id for one in pictures], column),
        size=SIZE,
        made_by=digest([RENDER, *([one.content for one in pictures if one.content] if read else key)]),
        several=several,
        left_out=tuple(left_out),
        contents=[one.content or b"" for one in pictures] if read else (),
    )


def told_apart(rows: Sequence[Row], sources: Sequence[Source]) -> list[Row]:
    """The rows of one split; where the files of a webdataset repeat each other's keys, with the file's path before each key."""
    holders: dict[str, set[int]] = {}
    for row in rows:
        holders.setdefault(row.id or "", set()).add(row.source)
    if not any(len(few) > 1 for few in holders.values()):
        return list(rows)
    shards = [source.name.removesuffix(".tar") for source in sources]
    return [replace(row, id=f"{shards[row.source]}/{row.id}") for row in rows]


def joined(rows: Sequence[Row], contents: Sequence[bytes | None], columns: Columns) -> list[Picture]:
    """Rows of one picture as one, in the order in which they come; their captions too, each as often as it is there.

    Rows with ids belong together by their ids, others by the bytes of their pictures. Raises UserError for a row without the
    id that others have, and for rows of one id that show different pictures.
    """
    found: dict[Any, Picture] = {}
    for number, (row, content) in enumerate(zip(rows, contents, strict=True)):
        if columns.id and row.id is None:
            raise UserError(
                f'{row.shown} has no id in column {columns.id!r}: fill it in, or say columns={{..., "id": None}} to number '
                "the rows."
            )
        one = found.setdefault(row.id or content or number, Picture(row.id or f"{number:06d}", row, {}, content))
        if one.row.missing and not row.missing:
            one.row, one.content = row, content
        elif not row.missing and one.content != content:
            raise UserError(
                f"Column {columns.id!r} has the id {row.id!r} twice, and not of one picture: {one.row.shown} and {row.shown} hold "
                'different ones. Say which column tells pictures apart, or columns={..., "id": None} to number the rows.'
            )
        for language, texts in row.captions.items():
            one.captions.setdefault(language, []).extend(texts)
    return list(found.values())


def shared(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Eight tenths to train, one to val, one to test, by a hash of the picture: the same on every machine."""
    found: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for one in pictures:
        found[split_of_place(place_of(one.content or one.id.encode()), TEST_SHARE, VAL_SHARE)].append(one)
    return found


def without_repeats(
    pictures: Mapping[str, Sequence[Picture]], leave_out: Callable[[str, Picture, str], None]
) -> dict[str, list[Picture]]:
    """The same splits, but no picture's bytes in two of them: train yields to val, and val to test.

    leave_out: told of each picture that is in two splits, with the reason; it may raise.
    """
    found, seen = {}, {}
    for split in reversed(SPLITS):
        found[split] = []
        for one in pictures[split]:
            other = seen.get(one.content)
            if one.content is not None and other is not None:
                leave_out(split, one, f"its picture is also in {other[0]} ({other[1].row.shown})")
            else:
                found[split].append(one)
        seen |= {one.content: (split, one) for one in found[split] if one.content is not None}
    return {split: found[split] for split in SPLITS}


def bad_pictures(
    sources: Sequence[Source], pictures: Sequence[Picture], column: str, key: Sequence[str]
) -> dict[int, str]:
    """Why these pictures, by number, cannot be decoded. Each is decoded once: what was found is kept on disk, under the bytes of
    the pictures, or under `key` where they were not read."""

    def why(one: Picture) -> str:
        if one.row.missing:
            return one.row.missing
        try:
            photo(encoded(sources, one.row, column))
        except UserError as error:
            return str(error)
        return ""

    def compute() -> np.ndarray:
        few = tqdm(pictures, desc="decoding pictures", delay=2, disable=runtime.quiet(), leave=False)
        return np.array([bool(why(one)) for one in few], np.uint8)

    if not pictures:
        return {}
    read = all(one.content or one.row.missing for one in pictures)
    under = [one.content or b"" for one in pictures] if read else [*key, *(one.id for one in pictures)]
    found = kept(["pictures that cannot be decoded", RENDER, *under], compute)
    return {i: why(pictures[i]) for i in np.flatnonzero(found).tolist()}


@dataclass(frozen=True)
class Drawing:
    """Decodes picture i of a part when it is asked for: uint8 (256, 256, 3). UserError, naming the picture, where it cannot."""

    name: str
    sources: Sequence[Source]
    rows: Sequence[Row]
    ids: Sequence[str]
    column: str

    def __call__(self, i: int) -> np.ndarray:
        row = self.rows[i]
        try:
            return photo(encoded(self.sources, row, self.column))
        except UserError as error:
            raise UserError(
                f"{self.name}, picture {self.ids[i]!r}: {error} It is in {row.picture or row.shown}."
            ) from error
