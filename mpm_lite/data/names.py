"""Names of real things in many languages as text: what a language model may read before it sees a picture of any.

The counterpart of `toyworld/text_mix.py` for emoji and stamps. A document is a name, a question, and the name again, in the same
language or in another; the share of the latter is a dial. Names of held-out pictures are read too: else nobody could say
them in a language that no picture is captioned in. So a model may recite without seeing, and every score needs its blind
control.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mpm_lite.core import runtime
from mpm_lite.data import available, load_captions
from mpm_lite.data.captionset import SPLITS
from mpm_lite.data.toyworld.text_mix import PIVOT

SETS = ("emoji", "stamps", "clipart")
# The languages in which every emoji is named, and the question that asks for a name.
ASK: dict[str, str] = tomllib.loads(runtime.asset("data/names.toml").read_text(encoding="utf-8"))["questions"]
LANGUAGES = tuple(ASK)


@dataclass(frozen=True)
class Named:
    """One picture's names by language, English among them, and where it comes from."""

    id: str
    split: str
    names: dict[str, str]


@dataclass(frozen=True)
class NameDocument:
    """A name, the question, a name of the same thing; `languages` are those of the first and of the second."""

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


def documents(parallel: float = 0.5, seed: int = 0, sets: tuple[str, ...] = SETS) -> Iterator[NameDocument]:
    """An endless stream of documents: a share `parallel` names a thing in two languages, one of them English; the rest
    names it twice in one language. The stream of a seed never changes on the same sets."""
    if not 0 <= parallel <= 1:
        raise runtime.UserError(f"parallel is a share between 0 and 1, not {parallel}.")
    rng, things = np.random.default_rng([seed, 21]), named(sets)
    translated = [thing for thing in things if len(thing.names) > 1]
    while True:
        if rng.random() < parallel:
            thing = translated[rng.integers(len(translated))]
            others = [code for code in thing.names if code != PIVOT]
            pair = (PIVOT, others[rng.integers(len(others))])
            first, second = pair if rng.random() < 0.5 else pair[::-1]
        else:
            thing = things[rng.integers(len(things))]
            first = second = list(thing.names)[rng.integers(len(thing.names))]
        yield NameDocument((thing.names[first], question(second), thing.names[second]), (first, second))
