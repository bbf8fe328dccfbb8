"""CaptionSet: pictures with captions in one or more languages, drawn only when looked at."""

from __future__ import annotations

import hashlib
import html
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np

from mpm_lite.core.keys import digest
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data.picture import RENDER, SIZE, data_uri, draw_many

SPLITS = ("train", "val", "test")


def place_of(data: bytes) -> float:
    """A number in [0, 1) that follows from these bytes alone, on every machine: 64 bits of their SHA-256."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2**64


def split_of_place(place: float, test: float, val: float) -> str:
    """The split of what stands at a place in [0, 1): test first, then val, each as long as its share; the rest is train."""
    return "test" if place < test else "val" if place < test + val else "train"


@dataclass(frozen=True)
class Item:
    """One picture of a source: `id` ("stamps/animals/birds/owl"), captions by language (English always), its file."""

    id: str
    captions: Mapping[str, str]
    file: Path


@dataclass(frozen=True, eq=False)
class Part:
    """One whole (set, split), the unit that is encoded and cached.

    `captions[lang]` has one entry an item, '' where there is none, and `several[lang]`, where it is there, all captions of
    each item; `render(i)` gives uint8 (size, size, 3);
    `sources` are the files the pictures are made of; `open_licence` says whether thumbnails may be shown in notebooks.
    `made_by` names what the pictures follow from beside the ids, so that no digest need draw them.
    `left_out` says, a sentence a picture, what is not in the part and why.
    `contents` has the SHA-256 of each picture's bytes, where the pictures were read; else it is empty.
    `render` has to be picklable (a function of a module, or an object), so that spawned workers can draw.
    """

    name: str
    ids: list[str]
    captions: Mapping[str, list[str]]
    concepts: list[str]
    render: Callable[[int], np.ndarray]
    sources: Sequence[Path] = field(default=())
    open_licence: bool = False
    size: int = SIZE
    made_by: str = ""
    several: Mapping[str, list[list[str]]] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    contents: Sequence[bytes] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def pictures(self, which: Sequence[int]) -> np.ndarray:
        """The pictures of these numbers, uint8 (N, size, size, 3); from files they are drawn on all cores."""
        if self.sources:
            return draw_many([self.sources[i] for i in which])
        return np.stack([self.render(i) for i in which])

    def image_digest(self) -> str:
        """SHA-256 of what the pictures are made of: ids, source files, renderer. Draws nothing."""
        return self._image_digest

    @cached_property
    def _image_digest(self) -> str:
        made_by = [self.made_by, str(self.size)] if self.made_by else [RENDER, _renderer()]
        pieces: list[str | bytes] = [self.name, *made_by, *self.ids]
        pieces += [hashlib.sha256(Path(file).read_bytes()).digest() for file in self.sources]
        if not self.sources and not self.made_by:  # made in memory: there is nothing but the pixels to go by
            pieces += [np.ascontiguousarray(self.render(i)).tobytes() for i in range(len(self))]
        return digest(pieces)

    def text_digest(self, language: str) -> str:
        """SHA-256 of the captions in `language`; raises UserError for a language the part lacks."""
        if language not in self.captions:
            raise unknown(f"language of {self.name}", language, self.captions)
        return digest([self.name, language, *self.captions[language]])


def _renderer() -> str:
    import PIL
    import resvg_py

    return f"resvg_py {resvg_py.__version__}, resvg {resvg_py.__resvg_version__}, PIL {PIL.__version__}"


class LazyImages:
    """Looks like a uint8 array (N, H, W, 3); draws a picture when it is indexed. UserError for parts of two sizes."""

    dtype = np.dtype(np.uint8)

    def __init__(self, parts: Sequence[tuple[Part, np.ndarray]]):
        sizes = {part.size: part.name for part, _ in parts}
        if len(sizes) > 1:
            listed = ", ".join(f"{name} {size}" for size, name in sorted(sizes.items()))
            raise UserError(f"Pictures of different sizes are no one array (pixels: {listed}). Load the sets apart.")
        self._size = next(iter(sizes), SIZE)
        self._where = [(part, int(i)) for part, indices in parts for i in indices]

    def __len__(self) -> int:
        return len(self._where)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self), self._size, self._size, 3)

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """One picture (H, W, 3) for an int; (M, H, W, 3) for a slice, an int array or a boolean mask."""
        if isinstance(index, (int, np.integer)):
            part, i = self._where[index]
            return part.render(i)
        which = index if isinstance(index, slice) else np.asarray(index, dtype=None if len(index) else int)
        picked = np.arange(len(self))[which]
        if not len(picked):
            return np.empty((0, self._size, self._size, 3), np.uint8)
        runs = groupby((self._where[i] for i in picked), key=lambda place: place[0])
        return np.concatenate([part.pictures([i for _, i in places]) for part, places in runs])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("These pictures are drawn on demand; an array of them is always a copy.")
        return self[:].astype(dtype or np.uint8, copy=False)

    def __repr__(self) -> str:
        return f"LazyImages(shape={self.shape}, dtype=uint8)"


class CaptionSet:
    """Pictures, their captions and their concepts; made of `(Part, indices into it)` pairs, in order.

    `languages` is the view: `captions[lang]` exists for each of them, with '' where an item has no such caption.
    """

    def __init__(self, parts: Iterable[tuple[Part, np.ndarray]], languages: Sequence[str] = ("en",)):
        self.parts = [(part, np.asarray(indices, dtype=np.int64)) for part, indices in parts]
        self.languages = list(languages)

    def __len__(self) -> int:
        return sum(len(indices) for _, indices in self.parts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the set shows: its pictures, and its captions in its languages. Draws nothing but pictures that are
        made in memory."""
        told: list[str | bytes] = list(self.languages)
        for part, indices in self.parts:
            told += [part.image_digest(), indices.tobytes()]
            told += [part.text_digest(code) if code in part.captions else "" for code in self.languages]
            told += [text for code in self.languages for few in part.several.get(code, ()) for text in (*few, "")]
        return digest(told)

    @property
    def _flat(self) -> list[tuple[Part, int]]:
        """The part of each item, and its number there."""
        return [(part, int(i)) for part, indices in self.parts for i in indices]

    @cached_property
    def ids(self) -> list[str]:
        return [part.ids[i] for part, i in self._flat]

    @cached_property
    def concepts(self) -> list[str]:
        return [part.concepts[i] for part, i in self._flat]

    @cached_property
    def images(self) -> LazyImages:
        return LazyImages(self.parts)

    @cached_property
    def captions(self) -> dict[str, list[str]]:
        return {
            code: [part.captions[code][i] if code in part.captions else "" for part, i in self._flat]
            for code in self.languages
        }

    @cached_property
    def several(self) -> dict[str, list[list[str]]]:
        """Every caption of every item by language; `captions` has the first of each."""
        return {
            code: [
                part.several[code][i] if code in part.several else [text] if text else []
                for (part, i), text in zip(self._flat, self.captions[code], strict=True)
            ]
            for code in self.languages
        }

    @cached_property
    def contents(self) -> dict[bytes, str]:
        """The id of each picture by the SHA-256 of its bytes, for sets of one's own; pictures of packaged sets are not in it."""
        return {part.contents[i]: part.ids[i] for part, i in self._flat if part.contents}

    @property
    def left_out(self) -> list[str]:
        """What `skip_bad` left out of the sets, a sentence a picture: its id, its file and why."""
        return [why for part in dict.fromkeys(part for part, _ in self.parts) for why in part.left_out]

    def with_caption(self, language: str) -> np.ndarray:
        """Indices (int64) of the items that have a caption in `language`; UserError where it was not loaded."""
        if language not in self.captions:
            raise unknown("language of this set", language, self.languages)
        return np.flatnonzero([bool(text) for text in self.captions[language]])

    def take(self, indices: Iterable[int] | np.ndarray) -> CaptionSet:
        """The items at `indices` (ints or a boolean mask), in that order."""
        numbers = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
        numbers = np.flatnonzero(numbers) if numbers.dtype == bool else numbers.astype(np.int64)
        owner = np.repeat(np.arange(len(self.parts)), [len(rows) for _, rows in self.parts]).astype(np.int64)
        row = np.concatenate([rows for _, rows in self.parts] or [[]]).astype(np.int64)
        owner, row = owner[numbers], row[numbers]
        cuts = np.flatnonzero(np.diff(owner)) + 1
        pieces = zip(np.split(owner, cuts), np.split(row, cuts), strict=True)
        return CaptionSet([(self.parts[one[0]][0], few) for one, few in pieces if len(one)], self.languages)

    def __add__(self, other: CaptionSet) -> CaptionSet:
        """Both sets, one after the other. UserError where different pictures have the same id: scores count a picture by it."""
        if not isinstance(other, CaptionSet):
            return NotImplemented
        owners = {part.ids[i]: part for part, i in self._flat}
        for part, i in other._flat:
            own = owners.get(part.ids[i], part)
            if own is not part and own.image_digest() != part.image_digest():
                raise UserError(
                    f"Two sets have a picture {part.ids[i]!r}, and not the same one: load them in one call, "
                    "load_captions('parquet:a/photos+parquet:b/photos'), which tells them apart by their folders."
                )
        return CaptionSet([*self.parts, *other.parts], list(dict.fromkeys([*self.languages, *other.languages])))

    def __repr__(self) -> str:
        sizes: Counter[str] = Counter()
        for part, indices in self.parts:
            sizes[part.name] += len(indices)
        made_of = ", ".join(f"{name} {count}" for name, count in sizes.items())
        more = f" and {len(self.languages) - 6} more" if len(self.languages) > 6 else ""
        shown = ", ".join(self.languages[:6]) + more
        return f"CaptionSet({len(self)} pictures: {made_of}; {len(set(self.concepts))} concepts; captions in {shown})"

    def _repr_html_(self) -> str:
        """A row of up to six items; pictures only where their licence is open, since notebooks are committed."""
        cells = []
        for part, i in self._flat[:: max(1, len(self) // 6)][:6]:
            lines = [
                f'<div lang="{lang}" dir="auto">{html.escape(part.captions[lang][i])}</div>'
                for lang in self.languages[:3]
                if part.captions.get(lang) and part.captions[lang][i]
            ]
            picture = _thumbnail(part, i) if part.open_licence else ""
            cells.append(f'<td style="text-align:center;vertical-align:top">{picture}{"".join(lines)}</td>')
        return f"<div>{html.escape(repr(self))}</div><table><tr>{''.join(cells)}</tr></table>"


def _thumbnail(part: Part, i: int) -> str:
    alt = html.escape(part.captions.get("en", [""] * len(part))[i], quote=True)
    return f'<img width="96" alt="{alt}" src="{data_uri(part.render(i), 96)}">'
