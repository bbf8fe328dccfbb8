"""Names of real things in many languages, as text that a language model reads before it sees any picture.

This is the counterpart of `toyworld/text_mix.py` for emoji and stamps. A document is a name, a question, and the name again, in
the same language or in another one; the share of the latter is a dial. The names of held-out pictures are in the text too, since
otherwise no model could say them in a language without captioned pictures. A model may therefore recite names without seeing
anything, and every score needs its blind control.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mpm_lite.core import runtime
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data import is_available, load_captions
from mpm_lite.data.captionset import SPLITS
from mpm_lite.data.toyworld.scenes import one_of
from mpm_lite.data.toyworld.text_mix import PIVOT

SETS = ("emoji", "stamps", "clipart")
# The languages in which every emoji is named, and the question that asks for a name.
ASK: dict[str, str] = tomllib.loads(runtime.asset("data/names.toml").read_text(encoding="utf-8"))["questions"]
LANGUAGES = tuple(ASK)


@dataclass(frozen=True)
class Named:
    """The names of one picture by language, English among them, with its id and split."""

    id: str
    split: str
    names: dict[str, str]


@dataclass(frozen=True)
class NameDocument:
    """A name, the question, and a name of the same thing; `languages` are the languages of the two names."""

    segments: tuple[str, str, str]
    languages: tuple[str, str]

    @property
    def text(self) -> str:
        """The segments, a line each."""
        return "\n".join(self.segments)


def ask_name(language: str) -> str:
    """The question that asks for a name. Raises UserError for a language that is not one of the fourteen."""
    if language not in ASK:
        raise unknown("language of names", language, ASK)
    return ASK[language]


@lru_cache(maxsize=2)
def read_names(sets: tuple[str, ...] = SETS) -> tuple[Named, ...]:
    """All captioned things of the sets that are on this machine, with their names in the fourteen languages."""
    found = []
    for one in [one for one in sets if is_available(one)]:
        for split in SPLITS:
            captions = load_captions(one, split, "all")
            codes = [code for code in LANGUAGES if code in captions.languages]
            for i, name in enumerate(captions.ids):
                names = {code: captions.captions[code][i] for code in codes if captions.captions[code][i]}
                found.append(Named(name, split, names))
    if not found:
        raise UserError(f"None of {', '.join(sets)} is on this machine: `mpm-lite data get stamps` brings one.")
    return tuple(found)


def write_documents(parallel: float = 0.5, seed: int = 0, sets: tuple[str, ...] = SETS) -> Iterator[NameDocument]:
    """An endless stream of documents. The share `parallel` of them name a thing in two languages, one of them English; the
    others name it twice in one language. With the same sets, the stream of a seed never changes."""
    if not 0 <= parallel <= 1:
        raise UserError(f"parallel is a share between 0 and 1, not {parallel}.")
    rng, things = np.random.default_rng([seed, 21]), read_names(sets)
    translated = [thing for thing in things if len(thing.names) > 1]
    while True:
        if rng.random() < parallel:
            thing = one_of(translated, rng)
            pair = (PIVOT, one_of([code for code in thing.names if code != PIVOT], rng))
            first, second = pair if rng.random() < 0.5 else pair[::-1]
        else:
            thing = one_of(things, rng)
            first = second = one_of(list(thing.names), rng)
        yield NameDocument((thing.names[first], ask_name(second), thing.names[second]), (first, second))
