"""CaptionSet: pictures with captions in one or more languages. A picture is drawn only when somebody looks at it."""

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
import PIL

from mpm_lite.core.keys import digest
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data.picture import RENDER, SIZE, data_uri, draw_many

SPLITS = ("train", "val", "test")


def place_of(data: bytes) -> float:
    """A number in [0, 1) from these bytes, the same on every machine: the first 64 bits of their SHA-256."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2**64


def split_of_place(place: float, test: float, val: float) -> str:
    """The split at a place in [0, 1): first comes test, then val, each as long as its share, and the rest is train."""
    return "test" if place < test else "val" if place < test + val else "train"


@dataclass(frozen=True)
class Item:
    """One picture of a packaged set: `id` ("stamps/animals/birds/owl"), captions by language (always English), its file."""

    id: str
    captions: Mapping[str, str]
    file: Path


@dataclass(frozen=True, eq=False)
class Part:
    """One split of one set: the unit that is encoded and cached.

    `captions[lang]` has one text for each item, '' if it has no caption; `several[lang]`, if there are more, all its captions.
    `render(i)` gives picture i, uint8 (size, size, 3). It must be picklable (a function of a module, or an object), so that
    spawned worker processes can draw. `sources` are the files that the pictures are drawn from.
    `made_by` names what the pictures depend on beside their ids, so that a digest need not draw them.
    `open_licence` says whether notebooks may show thumbnails. `left_out` has a sentence about each picture that was left out.
    `contents` has the SHA-256 of each picture's bytes if the pictures were read; else it is empty.
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
        """The pictures with these numbers, uint8 (N, size, size, 3). Pictures from files are drawn on all cores."""
        if self.sources:
            return draw_many([self.sources[i] for i in which])
        return np.stack([self.render(i) for i in which])

    def image_digest(self) -> str:
        """SHA-256 of what the pictures depend on: ids, source files, renderer. Draws only pictures made in memory."""
        return self._image_digest

    @cached_property
    def _image_digest(self) -> str:
        made_by = [self.made_by, str(self.size)] if self.made_by else [RENDER, _renderer()]
        pieces: list[str | bytes] = [self.name, *made_by, *self.ids]
        pieces += [hashlib.sha256(Path(file).read_bytes()).digest() for file in self.sources]
        if not self.sources and not self.made_by:  # made in memory: only their pixels can tell them from others
            pieces += [np.ascontiguousarray(self.render(i)).tobytes() for i in range(len(self))]
        return digest(pieces)

    def text_digest(self, language: str) -> str:
        """SHA-256 of the captions in `language`. Raises UserError for a language that the part does not have."""
        if language not in self.captions:
            raise unknown(f"language of {self.name}", language, self.captions)
        return digest([self.name, language, *self.captions[language]])


def _renderer() -> str:
    import resvg_py

    return f"resvg_py {resvg_py.__version__}, resvg {resvg_py.__resvg_version__}, PIL {PIL.__version__}"


class LazyImages:
    """Looks like a uint8 array (N, H, W, 3), but draws a picture only when it is indexed. Raises UserError for parts with
    pictures of different sizes."""

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
        """One picture (H, W, 3) for a whole number; (M, H, W, 3) for a slice, several numbers or a boolean mask."""
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
    """Pictures, their captions and their concepts, as a list of parts, each with the numbers of the items that are taken.

    `captions[lang]` exists for each of the `languages`, with '' where an item has no caption in it.
    """

    def __init__(self, parts: Iterable[tuple[Part, np.ndarray]], languages: Sequence[str] = ("en",)):
        self.parts = [(part, np.asarray(indices, dtype=np.int64)) for part, indices in parts]
        self.languages = list(languages)

    def __len__(self) -> int:
        return sum(len(indices) for _, indices in self.parts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pictures and of the captions in the set's languages. Draws only pictures made in memory."""
        told: list[str | bytes] = list(self.languages)
        for part, indices in self.parts:
            told += [part.image_digest(), indices.tobytes()]
            told += [part.text_digest(code) if code in part.captions else "" for code in self.languages]
            told += [text for code in self.languages for few in part.several.get(code, ()) for text in (*few, "")]
        return digest(told)

    @property
    def _flat(self) -> list[tuple[Part, int]]:
        """For each item its part, and its number there."""
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
        """All captions of each item by language; `captions` has only the first one."""
        return {
            code: [
                part.several[code][i] if code in part.several else [text] if text else []
                for (part, i), text in zip(self._flat, self.captions[code], strict=True)
            ]
            for code in self.languages
        }

    @cached_property
    def contents(self) -> dict[bytes, str]:
        """The id of each picture by the SHA-256 of its bytes; only for pictures that were read, so not for packaged sets."""
        return {part.contents[i]: part.ids[i] for part, i in self._flat if part.contents}

    @property
    def same_pictures(self) -> list[str]:
        """The SHA-256 of each picture's bytes, in hexadecimal, item by item; "" for pictures that were not read."""
        return [part.contents[i].hex() if part.contents else "" for part, i in self._flat]

    @property
    def left_out(self) -> list[str]:
        """One sentence for each picture that `skip_bad` left out: its id, its file and the reason."""
        return [why for part in dict.fromkeys(part for part, _ in self.parts) for why in part.left_out]

    def with_caption(self, language: str) -> np.ndarray:
        """The numbers (int64) of the items with a caption in `language`. Raises UserError for a language not loaded."""
        if language not in self.captions:
            raise unknown("language of this set", language, self.languages)
        return np.flatnonzero([bool(text) for text in self.captions[language]])

    def take(self, indices: Iterable[int] | np.ndarray) -> CaptionSet:
        """The items at `indices` (whole numbers or a boolean mask), in this order. Raises UserError for anything else."""
        numbers = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
        if len(numbers) and (numbers.dtype.kind not in "iub" or numbers.dtype == bool and len(numbers) != len(self)):
            raise UserError(f"take() wants whole numbers, or a mask of {len(self)} truth values.")
        numbers = np.flatnonzero(numbers) if numbers.dtype == bool else numbers.astype(np.int64)
        owner = np.repeat(np.arange(len(self.parts)), [len(rows) for _, rows in self.parts]).astype(np.int64)
        row = np.concatenate([rows for _, rows in self.parts] or [[]]).astype(np.int64)
        owner, row = owner[numbers], row[numbers]
        cuts = np.flatnonzero(np.diff(owner)) + 1
        pieces = zip(np.split(owner, cuts), np.split(row, cuts), strict=True)
        return CaptionSet([(self.parts[one[0]][0], few) for one, few in pieces if len(one)], self.languages)

    def __add__(self, other: CaptionSet) -> CaptionSet:
        """Both sets, one after the other. Raises UserError if different pictures have the same id, since scores count by id."""
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
        """A row of up to six items. Pictures are shown only if their licence is open, because notebooks are committed."""
        cells = []
        for part, i in self._flat[:: max(1, len(self) // 6)][:6]:
            lines = [
                f'<div lang="{lang}" dir="auto">{html.escape(part.captions[lang][i])}</div>'
                for lang in self.languages[:3]
                if part.captions.get(lang) and part.captions[lang][i]
            ]
            alt = html.escape(part.captions.get("en", [""] * len(part))[i], quote=True)
            picture = f'<img width="96" alt="{alt}" src="{data_uri(part.render(i), 96)}">' if part.open_licence else ""
            cells.append(f'<td style="text-align:center;vertical-align:top">{picture}{"".join(lines)}</td>')
        return f"<div>{html.escape(repr(self))}</div><table><tr>{''.join(cells)}</tr></table>"
