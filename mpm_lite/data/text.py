"""Text of the toy world for language models: monolingual text, monolingual discourse, and translation pairs.

Two dials that a web crawl confounds are apart here. *Discourse* teaches to read a scene from the context and to say it
again: a caption, then a paraphrase, or questions and answers, all in one language. *Parallel* text teaches that two
languages say the same. What a text describes are scenes of train and of text alone, so nothing that a test scene
shows is read.

A document is its segments joined by line breaks. Nothing in it names its language.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mpm_lite import runtime
from mpm_lite.data import grammar
from mpm_lite.data.grammar import Facts
from mpm_lite.data.scenes import COLOURS, SHAPES, Scene, text_scenes

PIVOT = "en"
PLAIN, DISCOURSE, QUOTATION, PARALLEL = "plain", "discourse", "quotation", "parallel"
MOVES = 3  # what a discourse adds to its first caption
QUOTED = 0.3  # of what is not plain: captions of several scenes, all said again in the same words
_WITHHELD = {"shape": 1, "colour": 2}  # of 7 and 8: three of fifteen attributes, a fifth


@dataclass(frozen=True)
class Mix:
    """What a language model reads, as dials.

    `parallel` is the share of documents that are translation pairs (English and one other language, either first),
    `discourse` the share of the monolingual rest that goes on: three times a paraphrase or a question with its answer.
    """

    languages: tuple[str, ...] = grammar.LANGUAGES
    parallel: float = 0.05
    discourse: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        for language in self.languages:
            if language not in grammar.LANGUAGES:
                raise runtime.unknown("toyworld language", language, grammar.LANGUAGES)
        for name in ("parallel", "discourse"):
            if not 0 <= getattr(self, name) <= 1:
                raise runtime.UserError(f"{name} is a share between 0 and 1, not {getattr(self, name)}.")
        if self.parallel and (not self.others or PIVOT not in self.languages):
            raise runtime.UserError("Translation pairs need English and another language: set parallel=0 or add one.")

    @property
    def others(self) -> tuple[str, ...]:
        """The languages beside English."""
        return tuple(language for language in self.languages if language != PIVOT)


@dataclass(frozen=True)
class Document:
    """One text: its segments, what kind it is, the language of its first and of its last segment, its scene."""

    segments: tuple[str, ...]
    kind: str
    languages: tuple[str, str]
    scene: Scene

    @property
    def text(self) -> str:
        """The segments, a line each."""
        return "\n".join(self.segments)


def withheld(seed: int) -> frozenset[str]:
    """The attributes whose words occur in monolingual text but in no translation pair: one shape and two colours.

    They are taken in turn from an order fixed by a hash, so that other seeds withhold others.
    """
    found = []
    for slot, names in (("shape", SHAPES), ("colour", COLOURS)):
        order = sorted(names, key=lambda name: hashlib.sha256(f"withheld {name}".encode()).digest())
        found += [order[(seed * _WITHHELD[slot] + k) % len(order)] for k in range(_WITHHELD[slot])]
    return frozenset(found)


def holds(scene: Scene, attributes: frozenset[str]) -> bool:
    """Whether anything in the scene has one of these shapes or colours."""
    return any(attributes & {thing.shape, thing.colour} for thing in scene.things)


def by_facts(scene: Scene, language: str) -> dict[Facts, list[str]]:
    """The captions of a scene in one language, together where they state the same."""
    found: dict[Facts, list[str]] = {}
    for text, facts in grammar.stated(scene, language):
        found.setdefault(facts, []).append(text)
    return found


def paraphrases(scene: Scene, language: str, rng: np.random.Generator) -> tuple[Facts, str, str]:
    """Two different captions that state the same, and what they state."""
    every = [(facts, texts) for facts, texts in by_facts(scene, language).items() if len(texts) > 1]
    facts, texts = every[rng.integers(len(every))]
    first, second = rng.permutation(len(texts))[:2]
    return facts, texts[first], texts[second]


def translations(scene: Scene, source: str, target: str, rng: np.random.Generator) -> tuple[Facts, str, str]:
    """A caption in each of two languages that state the same, and what they state."""
    ours, theirs = by_facts(scene, source), by_facts(scene, target)
    every = [facts for facts in ours if facts in theirs]
    facts = every[rng.integers(len(every))]
    return facts, _one(ours[facts], rng), _one(theirs[facts], rng)


def answerable(scene: Scene, language: str, facts: Facts) -> list[tuple[str, str]]:
    """The closed questions with their answers that a text stating `facts` of the scene lets one answer."""
    pairs = zip(grammar.asked(scene), grammar.questions(scene, language), strict=True)
    return [said for q, said in pairs if facts.places or not (q.kind == "where" and isinstance(q.answer, str))]


def documents(mix: Mix) -> Iterator[Document]:
    """An endless stream of documents, each of one scene; the stream of a mix never changes."""
    rng = np.random.default_rng([mix.seed, 4])
    others = mix.others
    apart, spare = withheld(mix.seed), text_scenes(mix.seed + 1_000)
    for scene in text_scenes(mix.seed):
        if rng.random() < mix.parallel:
            # The share holds although a pair needs a scene without withheld words.
            while holds(scene, apart):
                scene = next(spare)
            yield _pair(scene, others[rng.integers(len(others))], rng)
        else:
            language = mix.languages[rng.integers(len(mix.languages))]
            if rng.random() >= mix.discourse:
                yield Document((_told(scene, language, rng),), PLAIN, (language, language), scene)
            elif rng.random() < QUOTED:
                yield _quotation([scene, next(spare), next(spare)], language, rng)
            else:
                yield _discourse(scene, language, rng)


def _pair(scene: Scene, other: str, rng: np.random.Generator) -> Document:
    source, target = (PIVOT, other) if rng.random() < 0.5 else (other, PIVOT)
    _, first, second = translations(scene, source, target, rng)
    asked = [grammar.describe(target)] if rng.random() < 0.5 else []
    return Document((first, *asked, second), PARALLEL, (source, target), scene)


def _quotation(many: Sequence[Scene], language: str, rng: np.random.Generator) -> Document:
    """Several captions, and all of them again. To know what comes one must look up what followed the same words."""
    said = tuple(_told(scene, language, rng) for scene in many)
    return Document(said + said, QUOTATION, (language, language), many[0])


def _discourse(scene: Scene, language: str, rng: np.random.Generator) -> Document:
    every = by_facts(scene, language)
    facts = list(every)[rng.integers(len(every))]
    said = [_one(every[facts], rng), *_moves(scene, language, facts, every[facts], rng)]
    return Document(tuple(said), DISCOURSE, (language, language), scene)


def _told(scene: Scene, language: str, rng: np.random.Generator) -> str:
    return grammar.one_caption(scene, language, int(rng.integers(2**31)))


def _moves(scene: Scene, language: str, facts: Facts, texts: list[str], rng: np.random.Generator) -> Iterator[str]:
    """What follows a caption: it is said again, asked for or not, in other words or by chance in the same; or questions
    on the scene come with their answers."""
    asked = [list(pair) for pair in rng.permutation(answerable(scene, language, facts))]
    for _ in range(MOVES):
        if rng.random() < 0.5 or not asked:
            yield from [grammar.describe(language)] if rng.random() < 0.5 else []
            yield _one(texts, rng)
        else:
            yield from asked.pop()


def _one(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[rng.integers(len(texts))]
