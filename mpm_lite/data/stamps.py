"""Tux Paint stamps: photographs and drawings, each with a human caption in up to 75 languages (GPL-2, never committed).

From the Debian and Ubuntu package `tuxpaint-stamps-default`; `mpm-lite data get stamps` unpacks it without root.
NAME.txt beside each picture: the first line is English, then lines such as `de.utf8=Ein roter Apfel.`

What is left out, and why: alphabets, sign language, mathematics and money (pictures of text and coins); English
captions of more than 50 characters, which explain ("The green light means you can go ...") rather than say what is
shown; and three pictures whose caption is a motto. A caption that equals the English one (but for case) is an
untranslated string, and counts as missing, except in varieties of English.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path

from mpm_lite.core import runtime
from mpm_lite.data.captionset import Item
from mpm_lite.data.languages import base, bcp47

PACKAGE = "tuxpaint-stamps-default"
INSIDE = Path("usr/share/tuxpaint/stamps")  # where the package keeps them
LONGEST = 50

_SKIPPED = re.compile(r"^symbols/(alphabets|money|math|sign)|^sports/cartoon/football_helmet|^military/final-roll-call")


def places() -> list[Path]:
    """Where the stamps may lie, the fetched copy first."""
    fetched = runtime.home() / "data" / PACKAGE / INSIDE
    return [fetched, Path(os.sep) / INSIDE]


def root() -> Path:
    """The folder with the stamps; UserError saying the one command that gets them."""
    for place in places():
        if place.is_dir():
            return place
    raise runtime.UserError(
        "The stamps are not on this machine: run `mpm-lite data get stamps` (160 MB, once; no root needed)."
    )


def present() -> bool:
    """True where the stamps are on this machine."""
    return any(place.is_dir() for place in places())


def items() -> list[Item]:
    """The kept stamps in path order; captions by BCP 47 code, English always there. UserError where missing."""
    return _items(root())


@lru_cache(maxsize=4)
def _items(folder: Path) -> list[Item]:
    kept = []
    for text in sorted(folder.rglob("*.txt")):
        stem = text.relative_to(folder).with_suffix("").as_posix()
        file = next((found for ending in (".svg", ".png") if (found := text.with_suffix(ending)).exists()), None)
        if file is None or _SKIPPED.match(stem):
            continue
        captions = read_captions(text.read_text(encoding="utf-8", errors="replace"))
        if captions.get("en") and len(captions["en"]) <= LONGEST:
            kept.append(Item(f"stamps/{stem}", captions, file))
    return kept


def read_captions(text: str) -> dict[str, str]:
    """The captions of one NAME.txt by BCP 47 code; untranslated and empty ones are left out."""
    first, *rest = text.splitlines() or [""]
    english = _tidy(first)
    captions = {"en": english} if english else {}
    for line in rest:
        locale, equals, caption = line.partition(".utf8=")
        caption = _tidy(caption)
        if not equals or not caption:
            continue
        code = bcp47(locale)
        if base(code) == "en" or caption.casefold().rstrip(".!") != english.casefold().rstrip(".!"):
            captions.setdefault(code, caption)
    return captions


def _tidy(caption: str) -> str:
    """Without byte-order mark, doubled blanks, or the '|' that some Hindi captions end in for a danda."""
    return re.sub(r"\s+", " ", caption.replace("\ufeff", "").strip().rstrip("|")).strip()
