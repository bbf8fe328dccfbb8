"""Open Clip Art: public-domain drawings with an English title, from the Debian package `openclipart-svg`.

The English-only web crawl of this little world: noisy, and cleaned by rule. `keep()` is the rule; what it kept from the
package is committed as assets/splits/clipart_keep.txt (paths inside the package), so nobody has to draw 3,000 pictures
to learn which are blank. `python -m mpm_lite.data.clipart` rebuilds that list.

* Folders: icon themes, buttons, geometric shapes, flags, map symbols, playing cards, patterns, gradients, LED digits,
  arrows, logos and boating rules are left out: no pictures of things, or thousands of one kind.
* Titles: a placeholder ("Various Cliparts", "Clipart by ...": one title pasted over a whole upload) gives way to the
  file's own name; numbers, "(B and W)" and the like go; author names, file-like and over-long titles drop the picture.
* English: every word must be an English word (simplemma's word list), and at least one a word of its own. Three
  contributors titled in Italian or French; of theirs, a title that could be Italian or French is dropped too.
* At most three pictures a title; no blank (one-colour), failing or identical pictures.
"""

from __future__ import annotations

import hashlib
import html
import re
import tomllib
from collections import Counter
from functools import lru_cache
from pathlib import Path

import simplemma
from tqdm.auto import tqdm

from mpm_lite.core import runtime
from mpm_lite.core.packages import DebianPackage
from mpm_lite.core.runtime import UserError
from mpm_lite.data.captionset import Item
from mpm_lite.data.picture import draw, svg_text

PACKAGE = DebianPackage(
    "clipart", "openclipart-svg", Path("usr/share/openclipart/svg"),
    missing="The clip art is not on this machine", size="25 MB",
)  # fmt: skip
KEEP = "splits/clipart_keep.txt"
FILTER_VERSION = 1  # names the filter that the hand labels were made for
MOST_WORDS = 6
MOST_PER_TITLE = 3

_WORDS = tomllib.loads(runtime.asset("data/clipart.toml").read_text(encoding="utf-8"))
_FOLDERS, _PLACEHOLDER, _ROMANCE_AUTHORS, _NOISE = (
    re.compile(_WORDS[name].replace("\n", "")) for name in ("folders", "placeholder", "romance_authors", "noise")
)
_NOT_ENGLISH, _UNFIT, _ENGLISH = (frozenset(_WORDS[name].split()) for name in ("not_english", "unfit", "english"))


def items() -> list[Item]:
    """The kept pictures in the order of their paths, each with its English title. Raises UserError if they are missing."""
    return _items(PACKAGE.root())


@lru_cache(maxsize=4)
def _items(folder: Path) -> list[Item]:
    paths = runtime.asset(KEEP).read_text(encoding="utf-8").split("\n")
    found = []
    for path in filter(None, paths):
        file = folder / path
        if file.exists():  # some may be missing in another version of the package
            found.append(Item(f"clipart/{path.removesuffix('.svg')}", {"en": title(path, svg_text(file))}, file))
    return found


def raw_title(text: str) -> str:
    """The title in the metadata of an SVG, '' if there is none."""
    match = re.search(r"<dc:title[^>]*>(.*?)</dc:title>", text, re.S)
    return html.unescape(html.unescape(re.sub(r"\s+", " ", match[1]))).strip() if match else ""


def title(path: str, text: str) -> str:
    """The cleaned title of a picture: from its metadata, or from the file's name if that title is a placeholder."""
    given = raw_title(text)
    if not given or _PLACEHOLDER.search(given):
        given = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", Path(path).stem)
    given = re.sub(r"[_#]+|\s-\s(body part|clothing)$|(?<=\w)-(?=\d)", " ", given)
    given = _NOISE.sub(" ", given)
    given = re.sub(r"\(\s*\)|(?<=[A-Za-z])\d+\b|\b\d+$|\b0\d+\b|\bv\d+\b", " ", given)
    return re.sub(r"\s+", " ", given).strip(" -,.|:")


def english(caption: str, path: str = "", text: str = "") -> bool:
    """Whether every word is English, by simplemma's word list. Short function words alone do not make a title.

    The rule is stricter for contributors who also wrote titles in Italian or French.
    """
    words = [word.casefold() for word in re.findall(r"[^\W\d_]+", caption.replace("'s", "").replace("’s", ""))]
    content = [word for word in words if len(word) > 2]
    if not content or re.search(r"(^| )[.]|\bgeneral$", caption, re.I) or not (_NOT_ENGLISH | _UNFIT).isdisjoint(words):
        return False
    if not all(word in _ENGLISH or simplemma.is_known(word, lang="en") for word in words if len(word) > 1):
        return False
    creator = re.search(r"<dc:creator>.*?<dc:title[^>]*>(.*?)</dc:title>", text, re.S)
    unsure = [word for word in content if word not in _ENGLISH]
    if not unsure or not _ROMANCE_AUTHORS.search(f"{path} {creator[1] if creator else ''}"):
        return True
    return not any(all(simplemma.is_known(word, lang=lang) for word in unsure) for lang in ("it", "fr"))


def sample(count: int = 200) -> list[str]:
    """The first `count` distinct kept titles in the order of their SHA-256: the sample that is labelled by hand.

    The labels are in assets/labels/clipart_titles.csv. A small change of the filter keeps most of the sample.
    """
    titles = {item.captions["en"] for item in items()}
    return sorted(titles, key=lambda text: hashlib.sha256(text.encode()).hexdigest())[:count]


def keep(folder: Path) -> list[str]:
    """The paths that the rule keeps by folder, title, language, repetition and drawing. This takes minutes."""
    used, drawn, kept = Counter(), set(), []
    for file in tqdm(sorted(folder.rglob("*.svg")), desc="clip art", disable=runtime.quiet()):
        path = file.relative_to(folder).as_posix()
        if _FOLDERS.match(path):
            continue
        text = svg_text(file)
        caption = title(path, text)
        if not 1 <= len(caption.split()) <= MOST_WORDS or used[caption.casefold()] >= MOST_PER_TITLE:
            continue
        if not english(caption, path, text):
            continue
        try:
            picture = draw(file)
        except UserError:
            continue
        seen = hashlib.sha256(picture.tobytes()).digest()
        if int(picture.max()) - int(picture.min()) < 16 or picture.std() < 4 or seen in drawn:
            continue
        drawn.add(seen)
        used[caption.casefold()] += 1
        kept.append(path)
    return sorted(kept)


def main() -> None:
    """Rebuild the committed list of kept paths."""
    kept = keep(PACKAGE.root())
    (Path(runtime.asset()) / KEEP).write_text("".join(f"{path}\n" for path in kept), encoding="utf-8")
    print(f"{len(kept)} of {sum(1 for _ in PACKAGE.root().rglob('*.svg'))} kept")


if __name__ == "__main__":
    main()
