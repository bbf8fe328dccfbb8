"""Which languages there are, the grammar of each, and a thing of a scene as any of them names it."""

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
