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
from mpm_lite.data import local
from mpm_lite.data.captionset import SPLITS, CaptionSet, Item, LazyImages, Part
from mpm_lite.data.languages import bcp47
from mpm_lite.data.picture import draw

__all__ = ["SETS", "SPLITS", "CaptionSet", "LazyImages", "Part", "SetInfo", "available", "counts", "load_captions"]

BOTH = "train+val"


def _module(name: str) -> ModuleType:
    """The module of a packaged set, imported when it is first asked for."""
    from mpm_lite.data import clipart, emoji, stamps, toyworld

    return {"emoji": emoji, "stamps": stamps, "clipart": clipart, "toyworld": toyworld}[name]


@dataclass(frozen=True)
class SetInfo:
    """What the registry knows of a set; its module (mpm_lite.data.NAME) is imported when it is first asked for."""

    name: str
    languages: str
    licence: str
    open_licence: bool

    def items(self) -> list[Item]:
        """Every kept item, in order. UserError where the set is not on this machine."""
        return _module(self.name).items()

    def parts(self) -> dict[str, Part] | None:
        """The three parts of a set that splits itself; None for one that is split by its concepts."""
        own = getattr(_module(self.name), "parts", None)
        return own() if own else None

    def present(self) -> bool:
        """True where the set is on this machine."""
        return _module(self.name).present()


SETS = {
    "emoji": SetInfo("emoji", "14", "OpenMoji CC BY-SA 4.0; names Unicode", True),
    "stamps": SetInfo("stamps", "70+", "GPL-2", False),
    "clipart": SetInfo("clipart", "English", "public domain", True),
    "toyworld": SetInfo("toyworld", "10", "drawn here, MIT", True),
}


def available(name: str) -> bool:
    """True where every set of `name` ("emoji+stamps") is known and on this machine."""
    return all(SETS[one].present() if one in SETS else local.here(one) for one in _names(name))


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
    from mpm_lite.data import hub

    if limit is not None:
        runtime.whole_number("limit", limit)
    names = _names(name)
    for one in names:
        if not _known(one) and Path(one).expanduser().exists():
            kinds = ", ".join(f"{kind}:{one}" for kind in hub.LOCAL)
            raise runtime.UserError(f"{one} is here, but which kind of set it is has to be said: {kinds}.")
        if not _known(one):
            raise runtime.unknown("caption set", one, [*SETS, *hub.KNOWN, *hub.LOCAL])
    if split not in (*SPLITS, BOTH):
        raise runtime.unknown("split", split, [*SPLITS, BOTH])
    if own := next((one for one in names if one in SETS and (columns or revision or streaming)), None):
        raise runtime.UserError(f"{own} has its own columns: columns, revision and streaming are for other sets.")
    views, shown = [], local.shown_names(names)
    for one in names:
        if one in SETS:
            views += _views(one, split)
        else:
            parts = hub.parts(one, columns, revision, limit if streaming else None, streaming, skip_bad, shown[one])
            wanted = [parts[s] for s in (("train", "val") if split == BOTH else (split,))]
            views += [(part, np.arange(len(part))) for part in wanted]
            if left := sum(len(part.left_out) for part in wanted):
                whole = left + sum(len(part) for part in wanted)
                print(
                    f"mpm_lite: {left:,} of {whole:,} pictures of {one} are left out; the set's left_out lists them.",
                    file=sys.stderr,
                )
    parts = [part for part, _ in views]
    known = sorted({language for part in parts for language in part.captions}, key=lambda code: (code != "en", code))
    if isinstance(languages, str):
        asked = known if languages == "all" else [languages]
    else:
        asked = list(languages)
    asked = list(dict.fromkeys(bcp47(code) for code in asked))
    for code in asked:
        if code not in known:
            hint = runtime.unknown("language", code, known)
            raise runtime.UserError(f"{name} has no captions in {code!r}. {hint}")
    if not asked:
        raise runtime.UserError("No language was asked for. Give at least one, such as languages=('en',), or \"all\".")
    whole = CaptionSet(views, asked)
    if limit is None or limit >= len(whole):
        return whole
    return whole.take(np.sort(np.random.default_rng(0).permutation(len(whole))[:limit]))


def _views(name: str, split: str) -> list[tuple[Part, np.ndarray]]:
    """The parts of a split and which of their items belong to it."""
    from mpm_lite.data.concepts import mentions, test_concepts

    parts = _parts(name)
    if split != BOTH:
        return [(parts[split], np.arange(len(parts[split])))]
    if SETS[name].parts():  # split by combinations: no part states what another holds out
        return [(parts[one], np.arange(len(parts[one]))) for one in ("train", "val")]
    # Validation captions may mention what the test set is about; training captions may not.
    test = test_concepts() | frozenset(parts["test"].concepts)
    fit = np.flatnonzero([mentions(caption).isdisjoint(test) for caption in parts["val"].captions["en"]])
    return [(parts["train"], np.arange(len(parts["train"]))), (parts["val"], fit)]


def counts(name: str) -> dict[str, int]:
    """How many items of one set are in each split, and how many the leak rule dropped ("dropped")."""
    if name not in SETS:
        raise runtime.unknown("caption set", name, SETS)
    sizes = {split: len(part) for split, part in _parts(name).items()}
    return {**sizes, "dropped": len(SETS[name].items()) - sum(sizes.values())}


def _names(name: str) -> list[str]:
    return local.set_names(str(name), _known)


def _known(name: str) -> bool:
    """Whether a set is called so, or a name of this kind says where one lies."""
    from mpm_lite.data import hub

    return name in SETS or hub.known(name)


def _parts(name: str) -> dict[str, Part]:
    own = SETS[name].parts()
    if own:
        return own
    items = SETS[name].items()
    return _split(name, items[0].file.parent if items else Path(), len(items))


@lru_cache(maxsize=16)
def _split(name: str, _where: Path, _size: int) -> dict[str, Part]:
    """The three parts of a set; once a process and place."""
    from mpm_lite.data import concepts, emoji

    items = SETS[name].items()
    also = concepts.untabled(emoji.items()) | concepts.untabled(items)
    rows: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for item in items:
        split = concepts.split_of(item.captions["en"], also)
        if split is not None:
            rows[split].append(item)
    codes = sorted({code for item in items for code in item.captions}, key=lambda code: (code != "en", code))
    return {split: _part(f"{name}/{split}", kept, codes, SETS[name].open_licence) for split, kept in rows.items()}


def _draw(files: Sequence[Path], i: int) -> np.ndarray:
    return draw(files[i])


def _part(name: str, items: list[Item], codes: list[str], open_licence: bool) -> Part:
    from mpm_lite.data.concepts import head_noun

    files = [item.file for item in items]
    return Part(
        name=name,
        ids=[item.id for item in items],
        captions={code: [item.captions.get(code, "") for item in items] for code in codes},
        concepts=[head_noun(item.captions["en"]) for item in items],
        render=partial(_draw, files),
        sources=files,
        open_licence=open_licence,
    )
