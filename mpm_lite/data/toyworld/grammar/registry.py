"""Which languages there are, the grammar of each, and a thing of a scene as any of them names it.

To add a language, write its page beside the others (`engine.Grammar` says what a page must have; begin with a copy of the
nearest language), name it in LANGUAGES, and give it its size on the web in `exchanges.MC4`. `tests/test_grammar.py` then
checks that what it says can be read back. The language models that ship have not read it: `mpm-lite pretrain` makes new ones.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from mpm_lite.core import runtime
from mpm_lite.data.toyworld.grammar.engine import Grammar, Mention
from mpm_lite.data.toyworld.scenes import Thing, split_of_combination

LANGUAGES = ("en", "de", "es", "fr", "zh", "ja", "ar", "hi", "sw", "tr")


@cache
def grammar(language: str) -> Grammar:
    """The grammar of one language; UserError for one there is none for."""
    if language not in LANGUAGES:
        raise runtime.unknown("toyworld language", language, LANGUAGES)
    return import_module(f"mpm_lite.data.toyworld.grammar.{language}").GRAMMAR


def mention(thing: Thing, sized: bool, count: int = 1) -> Mention:
    """The thing as a text names it, with or without its size."""
    return Mention(thing.shape, thing.colour, thing.size if sized else None, count)


def readable(name: str) -> bool:
    """Whether text may tell of a combination: one of train, or of text alone."""
    return split_of_combination(name) in ("train", "text")
