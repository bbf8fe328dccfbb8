"""Tux Paint stamps: photographs and drawings, each with a human caption in up to 75 languages (GPL-2, never committed).

From the Debian and Ubuntu package `tuxpaint-stamps-default`; `mpm-lite data get stamps` unpacks it without root.
NAME.txt beside each picture: the first line is English, then lines such as `de.utf8=Ein roter Apfel.`

What is left out, and why: alphabets, sign language, mathematics and money (pictures of text and coins); English
captions of more than 50 characters, which explain ("The green light means you can go ...") rather than say what is
shown; and three pictures whose caption is a motto. A caption that equals the English one (but for case) is an
untranslated string, and counts as missing, except in varieties of English.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from mpm_lite.core.packages import DebianPackage
from mpm_lite.data.captionset import Item
from mpm_lite.data.languages import base, bcp47

PACKAGE = DebianPackage(
    "stamps", "tuxpaint-stamps-default", Path("usr/share/tuxpaint/stamps"),
    missing="The stamps are not on this machine", size="160 MB",
)  # fmt: skip
LONGEST = 50

_SKIPPED = re.compile(r"^symbols/(alphabets|money|math|sign)|^sports/cartoon/football_helmet|^military/final-roll-call")


def items() -> list[Item]:
    """The kept stamps in the order of their paths, with captions by BCP 47 code, English among them. Raises UserError if the
    stamps are missing."""
    return _items(PACKAGE.root())


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
    """The captions in the text of one NAME.txt by BCP 47 code, without untranslated and empty ones."""
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
    """The caption without byte-order mark, doubled blanks, or the final '|' that some Hindi captions have for a danda."""
    return re.sub(r"\s+", " ", caption.replace("\ufeff", "").strip().rstrip("|")).strip()
