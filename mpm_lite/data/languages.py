"""Language codes (BCP 47), English names, families, regional variants, writing direction: assets/data/languages.toml."""

from __future__ import annotations

import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterable

from mpm_lite.core import runtime

_TOLD = tomllib.loads(runtime.asset("data/languages.toml").read_text(encoding="utf-8"))
REGIONAL: dict[str, str] = _TOLD["regional"]  # a variant of a language that is there too -> that language
_SPECIAL: dict[str, str] = _TOLD["special"]  # a locale name that is not its own code once '_' is '-' -> its code
_NAMES: dict[str, list[str]] = _TOLD["languages"]  # code -> English name, branch


def bcp47(locale: str) -> str:
    """The BCP 47 code of a locale: zh_CN -> zh, pt_BR -> pt-BR, ca@valencia -> ca-valencia, sr@latin -> sr-Latn."""
    text = locale.strip().split(".")[0]
    if text in _SPECIAL:
        return _SPECIAL[text]
    head, *rest = text.replace("_", "-").replace("@", "-").split("-")
    written = {2: str.upper, 4: str.title}  # region XX, script Xxxx; a variant is in lower case
    code = "-".join([head.lower(), *(written.get(len(piece), str.lower)(piece) for piece in rest)])
    return _SPECIAL.get(code, code)


def english_first(codes: Iterable[str]) -> list[str]:
    """Each code once: English, then the others by their codes."""
    return sorted(set(codes), key=lambda code: (code != "en", code))


def base(code: str) -> str:
    """The language that a regional variant belongs to: pt-BR -> pt. Any other code is returned as it is."""
    return REGIONAL.get(code, code)


def display_name(code: str) -> str:
    """The English name of a language ("Catalan"), or its code if the table lacks it."""
    return _NAMES.get(code, _NAMES.get(base(code), [code]))[0]


def family(code: str) -> str:
    """The branch of a language ("Romance", "Bantu"), for bootstraps over families; its code if the table lacks it."""
    return _NAMES.get(code, _NAMES.get(base(code), [code]))[-1]


def script(texts: Iterable[str]) -> str:
    """The script that most letters of some texts are in, as Unicode names it: "Latin", "Devanagari", "Cjk" ...; "" for texts
    without letters."""
    letters = Counter(
        unicodedata.name(letter, "").split(" ")[0] for text in texts for letter in text if letter.isalpha()
    )
    return letters.most_common(1)[0][0].capitalize() if letters else ""


def is_rtl(code: str) -> bool:
    """Whether a language is written from right to left."""
    return base(code).split("-")[0] in _TOLD["right_to_left"]
