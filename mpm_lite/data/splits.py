"""The pictures of a captioned set: which rows show the same picture, which split it is in, and what is left out.

Pictures are compared by their bytes, so that a picture which was saved again in another format counts as another one:
rows without ids are one picture if their bytes are equal, rows with one id must show the same picture, and no picture may
be in two splits.
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
from mpm_lite.data.picture import photo
from mpm_lite.data.rows import Columns, Row, kept, with_contents

RENDER = "photo-2: turned, on white, padded to a square, Lanczos, 256 px"
TEST_SHARE = VAL_SHARE = 0.1  # of the pictures of a set without splits of its own


@dataclass
class Picture:
    """One picture: its id, the row that holds it, and the captions of all its rows by language."""

    id: str
    row: Row
    captions: dict[str, list[str]] = field(default_factory=dict)


def pictures_of(
    rows: Sequence[Row], columns: Columns, followed: bool, trusted: bool, key: Sequence[str]
) -> dict[str, list[Picture]]:
    """The pictures of each split. A set that has neither val nor test is split by a hash of the pictures' bytes.

    followed: a column says each row's split. trusted: the set's ids are known to tell its pictures apart. key: the digests of
    the pictures are kept on disk under this key; with an empty one they are not kept.
    """
    own = any(row.source.file for row in rows)
    if own:
        check_all_say(rows)
    meant = {row.split or "": row.shown for row in rows}
    meant = {name: _split_meant(name, shown, own) for name, shown in meant.items()}
    splits = [meant[row.split or ""] for row in rows]
    hashed = not (followed or {"val", "test"} & set(splits))
    ids = [row.id for row in rows if row.id]
    # The bytes are read of all your own files, but of sets of the hub only if nothing else tells their pictures apart.
    read = own or not (trusted or (not hashed and len(set(ids)) == len(ids)))
    if read:
        rows = with_contents(rows, key and ["contents of rows", *key])
    pools: dict[str, list[Row]] = {}
    for row, split in zip(rows, splits, strict=True):
        pools.setdefault("" if hashed else split, []).append(row)
    apart = told_apart if own and columns.id == "__key__" else list
    found = {split: joined(apart(few), columns) for split, few in pools.items()}
    if not hashed:
        if unread := sorted(name for name, split in meant.items() if not split):
            names = ", ".join(map(repr, unread))
            print(f"mpm_lite: the splits {names} are none of {', '.join(SPLITS)}: left out.", file=sys.stderr)
        return {split: found.get(split, []) for split in SPLITS}
    if own and any(row.split for row in rows):
        told = "its files name no pictures for val and test: a tenth of its pictures is held out for each of the two."
        print(f"mpm_lite: {rows[0].shown}: {told}", file=sys.stderr)
    whole = found.get("", [])
    if not read:
        firsts = with_contents([one.row for one in whole], key and ["contents", *key])
        whole = [replace(one, row=row) for one, row in zip(whole, firsts, strict=True)]
    return shared(whole)


def _split_meant(name: str, shown: str, own: bool) -> str:
    """train, val or test; "" for a split of the hub whose name means none of them, such as a language."""
    return SPLIT_WORDS.get(name) or ("train" if own else split_of_name(name, shown) or "")


def check_all_say(rows: Sequence[Row]) -> None:
    """Raises UserError if only some rows say their split: the others might be for training or for testing."""
    silent = next((row for row in rows if row.split is None), None)
    loud = next((row for row in rows if row.split), None)
    if silent and loud:
        raise UserError(
            f"{silent.shown} says no split, and {loud.shown} says {loud.split}: put the word train, val or test into the name of "
            "every file or of its folder, or into a column called split."
        )


def parts_of(
    name: str, pictures: Mapping[str, Sequence[Picture]], skip_bad: bool, key: Sequence[str]
) -> dict[str, Part]:
    """The three parts of a set. Raises UserError for a picture that is missing or that is in two splits.

    skip_bad: instead leave such pictures out and list them, and also those that cannot be decoded. key: identifies the version
    of the pictures where their bytes were not read.
    """
    left: dict[str, list[str]] = {split: [] for split in SPLITS}

    def leave_out(split: str, one: Picture, why: str) -> None:
        text = f"{name}/{split}, picture {one.id!r} ({one.row.picture or one.row.shown}): {why.removesuffix('.')}."
        if not skip_bad:
            raise UserError(f"{text} Mend the set, or leave such pictures out with skip_bad=True.")
        left[split].append(text)

    good: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        bad = bad_pictures(pictures[split], [*key, split]) if skip_bad else {}
        for i, one in enumerate(pictures[split]):
            if why := one.row.missing or bad.get(i):
                leave_out(split, one, why)
            else:
                good[split].append(one)
    good = without_repeats(good, leave_out)
    if not any(good.values()):
        first = next((why for few in left.values() for why in few), "")
        raise UserError(f"{name}: no picture can be used. {first}".strip())
    codes = english_first(code for few in good.values() for one in few for code in one.captions)
    return {split: _part(f"{name}/{split}", good[split], codes, left[split], key) for split in SPLITS}


def _part(
    name: str, pictures: Sequence[Picture], codes: Sequence[str], left_out: Sequence[str], key: Sequence[str]
) -> Part:
    from mpm_lite.data.concepts import head_noun

    several = {code: [one.captions.get(code, []) for one in pictures] for code in codes}
    firsts = {code: [(few or [""])[0] for few in of] for code, of in several.items()}
    english = firsts.get("en", [""] * len(pictures))
    taken = [one.row.content or b"" for one in pictures]
    concepts = [head_noun(text) if text else one.id for text, one in zip(english, pictures, strict=True)]
    made_by, contents = digest([RENDER, *(taken if all(taken) else key)]), taken if all(taken) else ()
    return Part(
        name, [f"{name}/{one.id}" for one in pictures], firsts, concepts, Drawing(name, pictures), made_by=made_by,
        several=several, left_out=tuple(left_out), contents=contents,
    )  # fmt: skip


def told_apart(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows of one split. If files of a webdataset use the same keys, the path of the file is put before each key."""
    files: dict[str | None, set[str]] = {}
    for row in rows:
        files.setdefault(row.id, set()).add(row.source.name)
    if all(len(few) == 1 for few in files.values()):
        return rows
    return [replace(row, id=f"{row.source.name.removesuffix('.tar')}/{row.id}") for row in rows]


def joined(rows: Sequence[Row], columns: Columns) -> list[Picture]:
    """The pictures that rows show, in order, each with the captions of all its rows.

    Rows belong to one picture if they have the same id or, without ids, if their pictures have the same bytes. Raises UserError
    for a row without an id where others have one, and for rows with one id that show different pictures.
    """
    found: dict[Any, Picture] = {}
    for number, row in enumerate(rows):
        if columns.id and row.id is None:
            raise UserError(
                f'{row.shown} has no id in column {columns.id!r}: fill it in, or say columns={{..., "id": None}} to number '
                "the rows."
            )
        one = found.setdefault(row.id or row.content or number, Picture(row.id or f"{number:06d}", row))
        if one.row.missing and not row.missing:
            one.row = row
        elif not row.missing and one.row.content != row.content:
            raise UserError(
                f"Column {columns.id!r} has the id {row.id!r} twice, and not of one picture: {one.row.shown} and {row.shown} hold "
                'different ones. Say which column tells pictures apart, or columns={..., "id": None} to number the rows.'
            )
        for language, texts in row.captions.items():
            one.captions.setdefault(language, []).extend(texts)
    return list(found.values())


def shared(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Eight tenths for train, one for val and one for test, by a hash of each picture: the same on every machine."""
    found: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for one in pictures:
        place = place_of(one.row.content or one.id.encode())
        found[split_of_place(place, TEST_SHARE, VAL_SHARE)].append(one)
    return found


def without_repeats(
    pictures: Mapping[str, Sequence[Picture]], leave_out: Callable[[str, Picture, str], None]
) -> dict[str, list[Picture]]:
    """The same splits without pictures that are in two of them: such a picture stays in test rather than val or train, and in
    val rather than train.

    leave_out: called with each picture that is left out and the reason; it may raise.
    """
    found: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    seen: dict[bytes, str] = {}  # the bytes of each picture so far, and where it is
    for split in reversed(SPLITS):
        for one in pictures[split]:
            if other := seen.get(one.row.content or b""):
                leave_out(split, one, f"its picture is also in {other}")
            else:
                found[split].append(one)
        seen |= {one.row.content: f"{split} ({one.row.shown})" for one in found[split] if one.row.content}
    return found


def bad_pictures(pictures: Sequence[Picture], key: Sequence[str]) -> dict[int, str]:
    """The pictures that cannot be decoded, by their number, with the reason. All pictures are decoded only once: the outcome is
    kept on disk, under the digests of their bytes, or under `key` where these were not read."""

    def why(one: Picture) -> str:
        if one.row.missing:
            return one.row.missing
        try:
            photo(one.row.encoded())
        except UserError as error:
            return str(error)
        return ""

    def compute() -> np.ndarray:
        few = tqdm(pictures, desc="decoding pictures", delay=2, disable=runtime.quiet(), leave=False)
        return np.array([bool(why(one)) for one in few], np.uint8)

    if not pictures:
        return {}
    read = all(one.row.content or one.row.missing for one in pictures)
    under = [one.row.content or b"" for one in pictures] if read else [*key, *(one.id for one in pictures)]
    found = kept(["pictures that cannot be decoded", RENDER, *under], compute)
    return {i: why(pictures[i]) for i in np.flatnonzero(found).tolist()}


@dataclass(frozen=True)
class Drawing:
    """Decodes picture i of a part when somebody looks at it: uint8 (256, 256, 3). Raises UserError, which names the picture, if
    that fails."""

    name: str
    pictures: Sequence[Picture]

    def __call__(self, i: int) -> np.ndarray:
        one = self.pictures[i]
        try:
            return photo(one.row.encoded())
        except UserError as error:
            where = one.row.picture or one.row.shown
            raise UserError(f"{self.name}, picture {one.id!r}: {error} It is in {where}.") from error
