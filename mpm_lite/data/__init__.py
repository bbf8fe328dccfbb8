"""Captions and pictures: one call, `load_captions`, for every set."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mpm_lite.core import runtime
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data import hub, local
from mpm_lite.data.captionset import SPLITS, CaptionSet, Item, LazyImages, Part
from mpm_lite.data.debian import DebianPackage
from mpm_lite.data.languages import bcp47, english_first
from mpm_lite.data.picture import draw

__all__ = ["SETS", "SPLITS", "CaptionSet", "LazyImages", "Part", "SetInfo", "available", "counts", "load_captions"]

BOTH = "train+val"


@dataclass(frozen=True)
class SetInfo:
    """What the registry knows of a set; its module (mpm_lite.data.NAME) is imported when it is first asked for."""

    name: str
    languages: str
    licence: str
    open_licence: bool

    @property
    def _module(self) -> ModuleType:
        from mpm_lite.data import clipart, emoji, stamps, toyworld

        return {"emoji": emoji, "stamps": stamps, "clipart": clipart, "toyworld": toyworld}[self.name]

    @property
    def package(self) -> DebianPackage | None:
        """The Debian package that brings the pictures; None for a set that comes with the installation."""
        return getattr(self._module, "PACKAGE", None)

    def items(self) -> list[Item]:
        """Every kept item, in order. UserError where the set is not on this machine."""
        return self._module.items()

    def parts(self) -> dict[str, Part]:
        """The three parts of the set: those that it makes itself, or its items split by their concepts."""
        if own := getattr(self._module, "parts", None):
            return own()
        items = self.items()
        return _split(self.name, items[0].file.parent if items else Path(), len(items))

    def present(self) -> bool:
        """True where the set is on this machine."""
        return self.package is None or self.package.present()


SETS = {
    "emoji": SetInfo("emoji", "14", "OpenMoji CC BY-SA 4.0; names Unicode", True),
    "stamps": SetInfo("stamps", "70+", "GPL-2", False),
    "clipart": SetInfo("clipart", "English", "public domain", True),
    "toyworld": SetInfo("toyworld", "10", "drawn here, MIT", True),
}


def available(name: str) -> bool:
    """True where every set of `name` ("emoji+stamps") is known and on this machine."""
    return all(SETS[one].present() if one in SETS else local.here(one) for one in local.set_names(str(name), _known))


def load_captions(
    name: str,
    split: str = "train",
    languages: str | Sequence[str] = ("en",),
    limit: int | None = None,
    *,
    columns: Mapping[str, Any] | None = None,
    revision: str | None = None,
    streaming: bool = False,
    skip_bad: bool = False,
) -> CaptionSet:
    """The pictures and captions of one set, or of several joined with '+' ("emoji+stamps+clipart").

    `languages` is a list of BCP 47 codes (or one code), or "all": every language of any of the sets, English first.
    split "train+val" is for a last fit after every choice was made: both, without what mentions a test concept.
    `limit` keeps that many items by a seeded permutation, so limit=100 lies inside limit=300.
    Beside the sets of SETS: `parquet:PATH`, `webdataset:PATH` and `imagefolder:PATH`, files of one's own; `hub:OWNER/NAME`,
    and the names of `hub.KNOWN`, through the `datasets` library. For these, `columns` says what is where (see `hub.Columns`),
    `revision` pins a hub repository, and `streaming` (with a limit) reads the first rows only. `skip_bad` leaves out pictures
    that cannot be decoded, that are not there, or that are in two splits (train yields to val, and val to test), says how many
    these are, and lists them in `left_out`; the packaged sets have none.
    Raises UserError for a set, split, language or column nobody knows, for a set that is not on this machine, and for a set of
    one's own that contradicts itself: two splits for one picture, two pictures for one id.
    """
    if limit is not None:
        runtime.whole_number("limit", limit)
    names = local.set_names(str(name), _known)
    for one in names:
        if not _known(one) and Path(one).expanduser().exists():
            kinds = ", ".join(f"{kind}:{one}" for kind in hub.LOCAL)
            raise UserError(f"{one} is here, but which kind of set it is has to be said: {kinds}.")
        if not _known(one):
            raise unknown("caption set", one, [*SETS, *hub.KNOWN, *hub.LOCAL])
    if split not in (*SPLITS, BOTH):
        raise unknown("split", split, [*SPLITS, BOTH])
    if own := next((one for one in names if one in SETS and (columns or revision or streaming)), None):
        raise UserError(f"{own} has its own columns: columns, revision and streaming are for other sets.")
    views, shown = [], local.shown_names(names)
    for one in names:
        if one in SETS:
            views += _views(one, split)
        else:
            parts = hub.parts(one, columns, revision, limit if streaming else None, streaming, skip_bad, shown[one])
            wanted = [parts[s] for s in _splits(split)]
            views += [(part, np.arange(len(part))) for part in wanted]
            if left := sum(len(part.left_out) for part in wanted):
                told = f"{left:,} of {left + sum(map(len, wanted)):,} pictures of {one} are left out"
                print(f"mpm_lite: {told}; the set's left_out lists them.", file=sys.stderr)
    known = english_first(code for part, _ in views for code in part.captions)
    if isinstance(languages, str):
        languages = known if languages == "all" else [languages]
    asked = list(dict.fromkeys(map(bcp47, languages)))
    for code in asked:
        if code not in known:
            hint = unknown("language", code, known)
            raise UserError(f"{name} has no captions in {code!r}. {hint}")
    if not asked:
        raise UserError("No language was asked for. Give at least one, such as languages=('en',), or \"all\".")
    whole = CaptionSet(views, asked)
    if limit is None or limit >= len(whole):
        return whole
    return whole.take(np.sort(np.random.default_rng(0).permutation(len(whole))[:limit]))


def _splits(split: str) -> tuple[str, ...]:
    return ("train", "val") if split == BOTH else (split,)


def _views(name: str, split: str) -> list[tuple[Part, np.ndarray]]:
    """The parts of a split of a packaged set, and which of their items belong to it."""
    from mpm_lite.data.concepts import held_out, mentions

    parts = SETS[name].parts()
    whole = {one: np.arange(len(part)) for one, part in parts.items()}
    # Validation captions may mention what the test set is about; training captions may not. The toy world holds out
    # combinations instead: there, no part mentions what another holds out.
    if split == BOTH and name != "toyworld":
        test = held_out("test") | frozenset(parts["test"].concepts)
        whole["val"] = np.flatnonzero([mentions(text).isdisjoint(test) for text in parts["val"].captions["en"]])
    return [(parts[one], whole[one]) for one in _splits(split)]


def counts(name: str) -> dict[str, int]:
    """How many items of one set are in each split, and how many the leak rule dropped ("dropped")."""
    if name not in SETS:
        raise unknown("caption set", name, SETS)
    sizes = {split: len(part) for split, part in SETS[name].parts().items()}
    return {**sizes, "dropped": len(SETS[name].items()) - sum(sizes.values())}


def _known(name: str) -> bool:
    """Whether a set is called so, or a name of this kind says where one lies."""
    return name in SETS or hub.known(name)


@lru_cache(maxsize=16)
def _split(name: str, _where: Path, _size: int) -> dict[str, Part]:
    """The three parts of a set by the concepts of its items; once a process and place."""
    from mpm_lite.data import concepts, emoji

    info = SETS[name]
    items = info.items()
    also = concepts.untabled(emoji.items()) | concepts.untabled(items)
    rows: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for item in items:
        split = concepts.split_of(item.captions["en"], also)
        if split is not None:
            rows[split].append(item)
    codes = english_first(code for item in items for code in item.captions)
    return {
        split: Part(
            name=f"{name}/{split}",
            ids=[item.id for item in kept],
            captions={code: [item.captions.get(code, "") for item in kept] for code in codes},
            concepts=[concepts.head_noun(item.captions["en"]) for item in kept],
            render=partial(_draw, [item.file for item in kept]),
            sources=[item.file for item in kept],
            open_licence=info.open_licence,
        )
        for split, kept in rows.items()
    }


def _draw(files: Sequence[Path], i: int) -> np.ndarray:
    return draw(files[i])
