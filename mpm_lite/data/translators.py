"""Translators into English and dictionaries, real ones: they know a few languages, miss words, and choose wrong senses.

"apertium" translates by rules (Debian and Ubuntu packages `apertium`, `apertium-eng-spa` ..., GPL, a program of its own). "gloss"
puts for every word the first translation that a FreeDict dictionary gives (packages `dict-freedict-spa-eng` ..., GPL; dictd's
format), word by word and in the same order; inflected words are looked up by their lemma where simplemma knows the language.
What a translator does not know stays as it was. `english_words` reads dictionaries in the other direction, from English. Nothing of
either is committed.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import simplemma

from mpm_lite.core.keys import digest, file_digest
from mpm_lite.core.packages import DebianPackage
from mpm_lite.core.runtime import UserError, unknown

# The modes of Apertium that lead from each language to English, one after another. Serbian is turned into Latin script first.
MODES = {
    "bs": ("hbs-eng",), "ca": ("cat-eng",), "eo": ("eo-en",), "es": ("spa-eng",), "eu": ("eu-en",), "gl": ("gl-en",),
    "hr": ("hbs-eng",), "is": ("isl-eng",), "mk": ("mkd-eng",), "sr": ("Cyrl-Latn", "hbs-eng"), "sr-Latn": ("hbs-eng",),
}  # fmt: skip
PAIRS = "eng-spa eng-cat hbs-eng isl-eng mkd-eng eo-en eu-en en-gl"
# FreeDict's names of the languages whose dictionaries lead to English and whose words blanks separate.
DICTIONARIES = {
    "af": "afr", "ar": "ara", "cs": "ces", "cy": "cym", "da": "dan", "de": "deu", "el": "ell", "es": "spa", "fi": "fin",
    "fr": "fra", "ga": "gle", "hr": "hrv", "hu": "hun", "is": "isl", "it": "ita", "lt": "lit", "nl": "nld", "pl": "pol",
    "pt": "por", "sk": "slk", "sl": "slv", "sr": "srp", "sv": "swe", "sw": "swh", "tr": "tur",
}  # fmt: skip
# Those to which dictionaries lead from English, in any script.
FROM_ENGLISH = {code: name for code, name in DICTIONARIES.items() if code not in ("is", "sk", "sl")} | {
    "bg": "bul", "hi": "hin", "id": "ind", "ja": "jpn", "no": "nor", "ru": "rus",
}  # fmt: skip
LONGEST = 3  # words of a headword that is looked for
WORD = r"[^\W\d_]+(?:['’-][^\W\d_]+)*"
_DIGITS = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}


class Translator(ABC):
    """`languages`: those it translates from. `version` decides its output, and goes into keys."""

    name: str
    languages: frozenset[str]
    version: str

    def translate(self, texts: Sequence[str], language: str) -> tuple[list[str], np.ndarray]:
        """Texts in English, and for each whether all its words were translated, bool (N,). Raises UserError for a language that
        it does not know."""
        if language not in self.languages:
            raise unknown(f"language of {self.name}", language, sorted(self.languages))
        if not texts:
            return [], np.zeros(0, bool)
        said, whole = zip(*self._translate(list(texts), language), strict=True)
        return list(said), np.array(whole)

    @abstractmethod
    def _translate(self, texts: list[str], language: str) -> list[tuple[str, bool]]:
        """For each text, its translation and whether all its words were translated."""


class Apertium(Translator):
    """Rule-based translation, by the program of that name."""

    name, languages = "apertium", frozenset(MODES)

    def __init__(self) -> None:
        self.version = _run(["apertium", "-V"]).strip()
        there = set(_run(["apertium", "-l"]).split())
        if lacking := sorted({mode for modes in MODES.values() for mode in modes} - there):
            raise UserError(f"apertium lacks {', '.join(lacking)}: {_advice()}")

    def _translate(self, texts: list[str], language: str) -> list[tuple[str, bool]]:
        for mode in MODES[language]:
            told = _run(["apertium", mode], "\n\n".join(" ".join(text.split()) for text in texts))
            texts = [text.strip() for text in told.split("\n\n")]
        return [(re.sub(r"[*@#](?=\w)", "", text), not re.search(r"[*@#]\w", text)) for text in texts]


def _advice() -> str:
    return (
        f"on Debian or Ubuntu run `apt-get install apertium {' '.join(f'apertium-{pair}' for pair in PAIRS.split())}`."
    )


def _run(command: list[str], text: str = "") -> str:
    """What Apertium says. Raises UserError where it is not there or fails."""
    if shutil.which(command[0]) is None:
        raise UserError(f"apertium is not on this machine: {_advice()}")
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise UserError(f"`{' '.join(command)}` failed: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
    return done.stdout


class Gloss(Translator):
    """Word by word, by FreeDict's dictionaries."""

    name = "gloss"

    def __init__(self) -> None:
        self.languages = frozenset(code for code in DICTIONARIES if package_of(code).present())
        if not self.languages:
            raise UserError(
                "No dictionary is on this machine: run `mpm-lite data get freedict` (81 MB, once; no root needed)."
            )
        files = [_files(code)[0] for code in sorted(self.languages)]
        self.version = digest(f"{file.name} {file.stat().st_size}" for file in files)

    def _translate(self, texts: list[str], language: str) -> list[tuple[str, bool]]:
        return [gloss(text, read_dictionary(*_files(language)), language) for text in texts]


def package_of(code: str, from_english: bool = False) -> DebianPackage:
    """The package with the dictionary from a language to English, or from English to it. Raises UserError for a language
    without one."""
    known = FROM_ENGLISH if from_english else DICTIONARIES
    if code not in known:
        raise unknown("language with a FreeDict dictionary", code, known)
    one, other = ("English", code) if from_english else (code, "English")
    stem = f"freedict-eng-{known[code]}" if from_english else f"freedict-{known[code]}-eng"
    missing = f"The dictionary from {one} to {other} is not on this machine"
    files = (f"{stem}.index", f"{stem}.dict.dz")
    return DebianPackage("freedict", f"dict-{stem}", Path("usr/share/dictd"), missing, "81 MB", files)


def _files(code: str, from_english: bool = False) -> tuple[Path, ...]:
    """The index of a dictionary, and its entries."""
    package = package_of(code, from_english)
    return tuple(package.root() / file for file in package.wanted)


@lru_cache(maxsize=4)
def read_dictionary(index: Path, content: Path) -> dict[str, str]:
    """Headwords in lower case, and the first translation of each."""
    found: dict[str, str] = {}
    for word, entry in _read_entries(index, content):
        if told := first_sense(entry):
            found.setdefault(word, told)
    return found


@lru_cache(maxsize=32)
def english_words(language: str) -> dict[str, list[str]]:
    """Single English words in lower case, and the translations of each that are single words: those first that most of its senses
    have, else in the dictionary's order. Raises UserError for a language without a dictionary, and where it is missing."""
    found: dict[str, Counter[str]] = {}
    for word, entry in _read_entries(*_files(language, from_english=True)):
        if re.fullmatch(WORD, word):
            found.setdefault(word, Counter()).update(
                s for s in all_senses(entry) if re.fullmatch(r"[^\W\d_][^\s~]*", s)
            )
    return {word: [sense for sense, _ in told.most_common()] for word, told in found.items() if told}


def dictionaries_mark(languages: Sequence[str]) -> str:
    """A digest of the dictionaries from English to these languages."""
    return digest(file_digest(file) for code in languages for file in _files(code, from_english=True))


def _read_entries(index: Path, content: Path) -> Iterator[tuple[str, str]]:
    """Headwords in lower case with an entry each, from a dictionary in dictd's format: an index of words with places in base 64, and
    entries whose first line is the headword and whose second begins with its first sense."""
    entries = gzip.decompress(content.read_bytes())
    for line in index.read_text(encoding="utf-8").splitlines():
        word, *place = line.split("\t")
        if word.startswith("00database") or len(place) != 2:
            continue
        start, length = (sum(_DIGITS[c] * 64**i for i, c in enumerate(reversed(number))) for number in place)
        yield word.casefold(), entries[start : start + length].decode("utf-8", "replace")


def first_sense(entry: str) -> str:
    """The first translation in an entry, without numbers, marks of grammar and remarks; "" where there is none."""
    lines = [line for line in entry.splitlines()[1:] if line.strip()]
    return _senses(lines[0])[0] if lines else ""


def all_senses(entry: str) -> list[str]:
    """Every translation in an entry; indented lines are examples and remarks, and the next sense's number may end a line."""
    lines = [line for line in entry.splitlines()[1:] if line.strip() and not line[0].isspace()]
    return [sense for line in lines for sense in _senses(re.sub(r"\s\d+\.\s*$", "", line)) if sense]


def _senses(line: str) -> list[str]:
    text = re.sub(r"<[^>]*>|\[[^\]]*\]|\([^)]*\)|\{[^}]*\}|^\s*\d+\.\s*", " ", line).rpartition(":")[2]
    return [" ".join(one.split()) for one in re.split(r"[,;]", text)]  # "plural of: orange" is an orange


def gloss(text: str, dictionary: dict[str, str], language: str) -> tuple[str, bool]:
    """A text word by word in English, and whether every word was found. The longest headword that begins at a word counts."""
    pieces, found, whole = re.findall(r"\w+(?:[-'’]\w+)*", text), [], True
    while pieces:
        for n in range(min(LONGEST, len(pieces)), 0, -1):
            if told := dictionary.get(" ".join(pieces[:n]).casefold()):
                break
        else:
            n, told = 1, dictionary.get(_lemma(pieces[0], language).casefold())
        whole &= bool(told)
        found.append(told or pieces[0])
        pieces = pieces[n:]
    return " ".join(found), whole


def _lemma(word: str, language: str) -> str:
    """The word's lemma, where simplemma knows the language; else the word."""
    code = {"hr": "hbs", "sr": "hbs"}.get(language, language)
    try:
        return simplemma.lemmatize(word, lang=code)
    except ValueError:
        return word


TRANSLATORS: dict[str, type[Translator]] = {"apertium": Apertium, "gloss": Gloss}


@lru_cache(maxsize=2)
def load_translator(name: str) -> Translator:
    """A translator by its name. Raises UserError for a name that nobody knows, and where what it needs is not on this machine."""
    if name not in TRANSLATORS:
        raise unknown("translator", name, TRANSLATORS)
    return TRANSLATORS[name]()
