"""Names of real things in many languages as text: what a language model may read before it sees a picture of any.

The counterpart of `data/text.py` for emoji and stamps. A document is a name, a question, and the name again, in the same
language or in another, or what kind of thing the name is of, in English (the folders of stamps and clip art say so);
the shares are dials. Names of held-out pictures are read too: else nobody could say them in a language that no picture
is captioned in. So a model may recite without seeing, and every score needs its blind control.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mpm_lite import runtime
from mpm_lite.data import available, load_captions
from mpm_lite.data.captionset import SPLITS
from mpm_lite.data.text import PIVOT

SETS = ("emoji", "stamps", "clipart")
# The languages in which every emoji is named, and the question that asks for a name.
ASK = {
    "en": "What is this?",
    "es": "¿Qué es esto?",
    "ja": "これは何ですか。",
    "ko": "이것은 무엇입니까?",
    "pt": "O que é isto?",
    "it": "Che cos'è questo?",
    "fr": "Qu'est-ce que c'est ?",
    "de": "Was ist das?",
    "fa": "این چیست؟",
    "id": "Apa ini?",
    "zh": "这是什么？",
    "ru": "Что это?",
    "tr": "Bu nedir?",
    "ar": "ما هذا؟",
}
LANGUAGES = tuple(ASK)
KIND = "What kind of thing is this?"


@dataclass(frozen=True)
class Named:
    """One picture's names by language, English among them, and where it comes from; an id is set/folders/name."""

    id: str
    split: str
    names: dict[str, str]

    @property
    def kind(self) -> str:
        """What kind of thing it is, broad to narrow ("food, fruit"), "" where no folder says so."""
        return ", ".join(folder.replace("_", " ") for folder in self.id.split("/")[1:-1])


@dataclass(frozen=True)
class NameDocument:
    """A name, the question, a name of the same thing or its kind; `languages` are those of the first and of the last."""

    segments: tuple[str, str, str]
    languages: tuple[str, str]

    @property
    def text(self) -> str:
        """The segments, a line each."""
        return "\n".join(self.segments)


def question(language: str) -> str:
    """What asks for a name. UserError for a language that is not among the fourteen."""
    if language not in ASK:
        raise runtime.unknown("language of names", language, ASK)
    return ASK[language]


@lru_cache(maxsize=2)
def named(sets: tuple[str, ...] = SETS) -> tuple[Named, ...]:
    """Every captioned thing of those sets that are on this machine, with its names in the fourteen languages."""
    found = []
    for one in [one for one in sets if available(one)]:
        for split in SPLITS:
            captions = load_captions(one, split, "all")
            codes = [code for code in LANGUAGES if code in captions.languages]
            for i, name in enumerate(captions.ids):
                names = {code: captions.captions[code][i] for code in codes if captions.captions[code][i]}
                found.append(Named(name, split, names))
    if not found:
        raise runtime.UserError(f"None of {', '.join(sets)} is on this machine: `mpm-lite data get stamps` brings one.")
    return tuple(found)


def documents(
    parallel: float = 0.5, kinds: float = 0.1, seed: int = 0, sets: tuple[str, ...] = SETS
) -> Iterator[NameDocument]:
    """An endless stream of documents: a share `parallel` names a thing in two languages, one of them English; a share
    `kinds` says in English what kind of thing it is; the rest names it twice in one language. The stream of a seed never
    changes on the same sets."""
    if not (0 <= parallel and 0 <= kinds and parallel + kinds <= 1):
        raise runtime.UserError(f"parallel={parallel} and kinds={kinds} are shares: from 0, together at most 1.")
    rng, things = np.random.default_rng([seed, 21]), named(sets)
    translated = [thing for thing in things if len(thing.names) > 1]
    sorted_ = [thing for thing in things if thing.kind]
    while True:
        drawn = rng.random()
        if drawn < parallel:
            thing = translated[rng.integers(len(translated))]
            others = [code for code in thing.names if code != PIVOT]
            pair = (PIVOT, others[rng.integers(len(others))])
            first, second = pair if rng.random() < 0.5 else pair[::-1]
            yield NameDocument((thing.names[first], question(second), thing.names[second]), (first, second))
        elif drawn < parallel + kinds and sorted_:
            thing = sorted_[rng.integers(len(sorted_))]
            yield NameDocument((thing.names[PIVOT], KIND, thing.kind), (PIVOT, PIVOT))
        else:
            thing = things[rng.integers(len(things))]
            code = list(thing.names)[rng.integers(len(thing.names))]
            yield NameDocument((thing.names[code], question(code), thing.names[code]), (code, code))
