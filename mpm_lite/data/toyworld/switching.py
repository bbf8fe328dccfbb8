"""Code-switching as in M3P (2006.02635, section 3.2): words of an English caption are replaced by their translations.

A dictionary knows single words and no grammar: "A small red circle." may become "A pequeño rojo 圆形." For the toy world it
has the content words of the grammars, for the emoji the names of those in train. "freedict" takes dictionaries that people
use: they lack words, and a word with many senses may get the wrong one. The control for any effect of code-switching
is a dictionary in which each of these words has a wrong translation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mpm_lite.core.keys import digest
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data import is_available, load_captions, translators
from mpm_lite.data.toyworld import grammar
from mpm_lite.data.toyworld.grammar import Mention
from mpm_lite.data.toyworld.scenes import one_of

VARIANTS = ("words", "one")
KINDS = ("own", "random")
SLOTS = ("shape", "colour", "size", "count", "relation")
_WORD = re.compile(translators.WORD)


@dataclass(frozen=True)
class Switching:
    """How captions are switched: the share `sentences` of them; and of these, each word of the dictionary with chance `words`
    (variant "words", as in the paper's text), or one such word (variant "one", as in its released pretraining code). Each
    word's language is drawn evenly. Raises UserError for a share out of range and for unknown names."""

    languages: tuple[str, ...] = tuple(code for code in grammar.LANGUAGES if code != "en")
    sentences: float = 0.8
    words: float = 0.8
    variant: str = "words"
    dictionary: str = "own"  # or "random": every word has a wrong translation in the same language
    world: str = "toyworld"  # whose dictionaries: "toyworld", "emoji" or "freedict"
    coverage: float = 1.0  # the share of their words that is kept; a larger one keeps those of a smaller one

    def __post_init__(self) -> None:
        for name in ("sentences", "words", "coverage"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} is a share, from 0 to 1.")
        if self.variant not in VARIANTS:
            raise unknown("variant of code-switching", self.variant, VARIANTS)
        if self.dictionary not in KINDS:
            raise unknown("kind of dictionary", self.dictionary, KINDS)
        if not self.languages:
            raise UserError("Code-switching needs a language to switch to.")

    @property
    def dictionaries(self) -> list[Mapping[str, str]]:
        """For each language its dictionary, from English words in lower case."""
        return [make_dictionary(code, self.world, self.dictionary, self.coverage) for code in self.languages]

    def mark(self) -> dict[str, str]:
        """What decides its dictionaries beside its dials, as a part of a key: the files of those that were fetched, and the words
        that are taken."""
        if self.world != "freedict":
            return {}
        return {"dictionaries": digest([translators.dictionaries_mark(self.languages), *sorted(words_used())])}


@lru_cache(maxsize=64)
def make_dictionary(
    language: str, world: str = "toyworld", kind: str = "own", coverage: float = 1.0
) -> Mapping[str, str]:  # fmt: skip
    """From English words in lower case to words of a language. Raises UserError for a language or world without one."""
    worlds = {"toyworld": _of_grammar, "emoji": _of_emoji, "freedict": _of_freedict}
    if world not in worlds:
        raise unknown("world with dictionaries", world, worlds)
    entries = worlds[world](language)
    found = {word: said for word, (_, said) in (entries if kind == "own" else _mixed(entries, language)).items()}
    if coverage == 1:
        return found
    order = np.random.default_rng([5, *language.encode()]).permutation(sorted(found))
    return {word: found[word] for word in order[: round(coverage * len(order))].tolist()}


Entries = dict[str, tuple[str, str]]  # English word -> what it means, a translation


def _of_grammar(language: str) -> Entries:
    """The English content words with their translations, nouns in the singular and in the plural."""
    english, found = grammar.grammar("en").lexicon, {}
    for slot in SLOTS:
        for value, forms in english[slot].items():
            said = _citations(language, slot, value)
            found |= {form: (f"{slot} {value}", said[min(i, len(said) - 1)]) for i, form in enumerate(forms)}
    return found


def _citations(language: str, slot: str, value: str) -> list[str]:
    """The forms in a dictionary of a content word: as in the shortest caption with it, and of a noun the plural too."""
    one = grammar.grammar(language)
    if slot == "relation":  # the grammar lists a relation in one form
        return [next(iter(one.lexicon[slot][value]))]
    told, found = {"shape": "circle", "colour": None, "size": None, slot: value}, []
    for count in (1, 3) if slot == "shape" else (int(value) if slot == "count" else 1,):
        named = {"a": Mention(**told | {"count": count})}
        pattern = one.all_patterns["counted" if count > 1 else "exists", ""][0]
        text = one.fill(pattern.text, named)
        words = [word for word in one.tokens(text) if one.spotted.get(word) == (slot, value)]
        at = one.lower(text).find(words[0]) if words else -1
        # Arabic expresses two by its dual, without a word: then take the shortest form of the grammar.
        listed = min(one.lexicon[slot][value], key=lambda form: (len(form), form))
        found.append(text[at : at + len(words[0])] if at >= 0 else listed)
    return found


def _of_emoji(language: str) -> Entries:
    """The names of training emoji whose English name is one word."""
    names = load_captions("emoji", "train", ("en", language)).captions
    pairs = zip(names["en"], names[language], strict=True)
    return {ours.lower(): (ours, said) for ours, said in pairs if said and _WORD.fullmatch(ours)}


def _of_freedict(language: str) -> Entries:
    """Words that stand in English captions of the toy world or of training pictures that are here, each with the translation that most
    of its senses have."""
    used = words_used()
    return {word: (word, said[0]) for word, said in translators.english_words(language).items() if word in used}


@lru_cache(maxsize=1)
def words_used() -> frozenset[str]:
    """The words of the toy world's English and of the English captions of training pictures that are on this machine, in lower
    case."""
    here = "+".join(name for name in ("emoji", "stamps", "clipart") if is_available(name))
    texts = load_captions(here, "train").captions["en"]
    return frozenset(_of_grammar("de")) | {word[0].lower() for text in texts for word in _WORD.finditer(text)}


def _mixed(own: Entries, language: str) -> Entries:
    """The same words, each with the translation of another one, the same for all its forms. Languages mix differently, as
    otherwise they would agree on the wrong meaning."""
    first = dict(reversed(own.values()))  # one translation for each meaning
    if len(first) < 2:
        raise UserError("A random dictionary needs two words and more.")
    order = np.random.default_rng(list(language.encode())).permutation(sorted(first))
    other = dict(zip(order, np.roll(order, 1), strict=True))  # in one cycle, no word keeps its own
    return {word: (other[meaning], first[other[meaning]]) for word, (meaning, _) in own.items()}


def switch_words(caption: str, how: Switching, rng: np.random.Generator) -> str:
    """An English caption with some words switched at random."""
    if rng.random() >= how.sentences:
        return caption
    many = how.dictionaries
    known = [m for m in _WORD.finditer(caption) if any(m[0].lower() in one for one in many)]
    if how.variant == "one":
        chosen = [one_of(known, rng)] if known else []
    else:
        chosen = [m for m in known if rng.random() < how.words]
    parts, last = [], 0
    for found in chosen:
        there = [one[found[0].lower()] for one in many if found[0].lower() in one]
        parts += [caption[last : found.start()], one_of(there, rng)]
        last = found.end()
    return "".join([*parts, caption[last:]])


def switch_captions(captions: Sequence[str], how: Switching, seed: int) -> list[str]:
    """The captions, each switched; a seed always switches the same words."""
    rng = np.random.default_rng([seed, 7])
    return [switch_words(caption, how, rng) for caption in captions]
