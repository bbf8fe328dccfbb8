"""Text of the toy world for language models: plain text, discourse in one language or in two, and translation pairs.

Three things that a web crawl mixes have a dial of their own here. *Discourse* teaches a model to read a scene from its context
and to talk about it: a caption, then a paraphrase, or a question and its answer, all in one language. *Mixed discourse* does so
in two languages: the caption is in one, and the conversation goes on in the other, as it happens on the web. *Parallel* text
teaches that two languages say the same. All texts describe scenes of train or scenes that are never drawn, so that a model reads
nothing about what a test scene shows.

The segments of a document are joined by line breaks. Nothing in a document names its language.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.data.toyworld import grammar
from mpm_lite.data.toyworld.grammar import Facts, Mention, Question
from mpm_lite.data.toyworld.scenes import COLOURS, SHAPES, Scene, one_of, text_scenes

PIVOT = "en"
PLAIN, DISCOURSE, QUOTATION, PARALLEL, MIXED = "plain", "discourse", "quotation", "parallel", "mixed"
_WITHHELD = ("colour", "shape", "colour")  # in this order; three of fifteen attributes are a fifth


@dataclass(frozen=True)
class Mix:
    """What a language model reads, as dials.

    `parallel` is the share of documents that are translation pairs (English and one other language, in either order), and
    `discourse` the share of the others that continue after the caption, with a paraphrase or with a question and its answer.
    Of these, the share `quoted` are captions of several scenes that are all repeated word by word. Of the rest, the share
    `asked` are a caption and a question of one of `kinds` with its answer, if the caption answers any, and the others are a
    caption and its paraphrase. There is only one thing to find in each document, since several distract from each other.
    The share `same_order` of paraphrases keep the topic and the order of the first caption. At a half, whether "left" is
    repeated or turned into "right" is an exclusive or of two coins, and a model of a million parameters only guesses during
    the first hundred thousand documents. Another `stream` has other documents of other scenes, and withholds the same words.

    `mixed` is the share of discourse with the caption in one language and the question and answer in another; any two of
    `languages`. Here too, the share `asked` are closed questions; the others ask what there is, and their answer is a
    translation of the caption. `withheld` attributes (0 to 3) occur in no translation pair, which shows what missing pairs
    cost. Documents of mixed discourse may mention them.
    """

    languages: tuple[str, ...] = grammar.LANGUAGES
    parallel: float = 0.05
    discourse: float = 0.9
    quoted: float = 0.1
    asked: float = 0.6
    kinds: tuple[str, ...] = grammar.KINDS
    same_order: float = 0.8
    seed: int = 0
    stream: int = 0
    mixed: float = 0.0
    withheld: int = 0

    def __post_init__(self) -> None:
        for language in self.languages:
            if language not in grammar.LANGUAGES:
                raise unknown("toyworld language", language, grammar.LANGUAGES)
        for kind in self.kinds:
            if kind not in grammar.KINDS:
                raise unknown("kind of question", kind, grammar.KINDS)
        for name in ("parallel", "discourse", "quoted", "asked", "same_order", "mixed"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a share between 0 and 1, not {getattr(self, name)}.")
        if self.parallel and (not self.others or PIVOT not in self.languages):
            raise UserError("Translation pairs need English and another language: set parallel=0 or add one.")
        if self.mixed and len(self.languages) < 2:
            raise UserError("Mixed discourse needs two languages: set mixed=0 or add one.")
        draw_withheld(self.seed, self.withheld)

    @property
    def others(self) -> tuple[str, ...]:
        """The languages except English."""
        return tuple(language for language in self.languages if language != PIVOT)


@dataclass(frozen=True)
class Order:
    """The topic of a caption, and whether it comes first ("the circle left of the square") or last."""

    topic: Mention
    first: bool


@dataclass(frozen=True)
class Document:
    """One text: its segments, its kind, the languages of its first and of its last segment, and its scene."""

    segments: tuple[str, ...]
    kind: str
    languages: tuple[str, str]
    scene: Scene
    # For each segment, whether the segments before it decide what it can say: not so for news, and not for a question.
    foreseen: tuple[bool, ...]

    @property
    def text(self) -> str:
        """The segments, a line each."""
        return "\n".join(self.segments)


def draw_withheld(seed: int, count: int = len(_WITHHELD)) -> frozenset[str]:
    """The attributes whose words occur in monolingual text but in no translation pair: a colour, a shape, another colour.

    Seeds take them in turn from an order that a hash fixes, so that other seeds withhold other attributes. Raises UserError for
    a count that is not a whole number from 0 to 3.
    """
    if not isinstance(count, int) or not 0 <= count <= len(_WITHHELD):
        raise UserError(f"withheld={count}: 0 to {len(_WITHHELD)} attributes can be withheld.")
    found: set[str] = set()
    for slot, names in (("shape", SHAPES), ("colour", COLOURS)):
        order = sorted(names, key=lambda name: hashlib.sha256(f"withheld {name}".encode()).digest())
        found |= {order[(seed * _WITHHELD.count(slot) + k) % len(order)] for k in range(_WITHHELD[:count].count(slot))}
    return frozenset(found)


def holds(scene: Scene, attributes: frozenset[str]) -> bool:
    """Whether anything in the scene has one of these shapes or colours."""
    return any(attributes & {thing.shape, thing.colour} for thing in scene.things)


def by_facts(scene: Scene, language: str) -> dict[Facts, list[str]]:
    """The captions of a scene in one language, grouped by what they state."""
    every = by_order(scene, language).items()
    return {facts: [text for texts in orders.values() for text in texts] for facts, orders in every}


def by_order(scene: Scene, language: str) -> dict[Facts, dict[Order, list[str]]]:
    """The captions of a scene in one language, grouped by what they state, and then by the order in which they do."""
    found: dict[Facts, dict[Order, list[str]]] = {}
    for plan in grammar.plans(scene, language):
        text, facts = grammar.say(plan, language)
        pattern, named = plan[0]
        order = Order(named["a"], pattern.slots[0][0] == "a")
        found.setdefault(facts, {}).setdefault(order, []).append(text)
    return found


def paraphrases(scene: Scene, language: str, rng: np.random.Generator) -> tuple[Facts, str, str]:
    """Two different captions that state the same, and what they state."""
    facts, texts = one_of([of for of in by_facts(scene, language).items() if len(of[1]) > 1], rng)
    first, second = rng.permutation(len(texts))[:2]
    return facts, texts[first], texts[second]


def translations(scene: Scene, source: str, target: str, rng: np.random.Generator) -> tuple[Facts, str, str]:
    """A caption in each of two languages that state the same, and what they state."""
    ours, theirs = by_facts(scene, source), by_facts(scene, target)
    facts = one_of([facts for facts in ours if facts in theirs], rng)
    return facts, one_of(ours[facts], rng), one_of(theirs[facts], rng)


def answerable(scene: Scene, language: str, facts: Facts) -> list[tuple[Question, str, str]]:
    """The closed questions that can be answered from a text that states `facts` of the scene: (question, words, answer)."""
    every = zip(grammar.asked(scene), grammar.questions(scene, language), strict=True)
    return [(q, *said) for q, said in every if facts.places or not (q.kind == "where" and isinstance(q.answer, str))]


def write_documents(mix: Mix) -> Iterator[Document]:
    """An endless stream of documents, each about one scene; the stream of a mix never changes."""
    rng = np.random.default_rng([mix.seed, 4, mix.stream])
    others, own = mix.others, mix.seed + 2_000 * mix.stream
    apart, spare = draw_withheld(mix.seed, mix.withheld), text_scenes(own + 1_000)
    for scene in text_scenes(own):
        if rng.random() < mix.parallel:
            # A pair needs a scene without withheld words; another scene is taken, so that the share of pairs holds.
            while holds(scene, apart):
                scene = next(spare)
            yield _pair(scene, one_of(others, rng), rng)
        else:
            language = one_of(mix.languages, rng)
            if rng.random() >= mix.discourse:
                yield Document((_told(scene, language, rng),), PLAIN, (language, language), scene, (False,))
            elif rng.random() < mix.quoted:
                yield _quotation([scene, next(spare), next(spare)], language, rng)
            elif mix.mixed and rng.random() < mix.mixed:
                yield _mixed(scene, language, mix, rng)
            else:
                yield _discourse(scene, language, mix, rng)


def _pair(scene: Scene, other: str, rng: np.random.Generator) -> Document:
    source, target = (PIVOT, other) if rng.random() < 0.5 else (other, PIVOT)
    _, first, second = translations(scene, source, target, rng)
    asked = [grammar.describe(target)] if rng.random() < 0.5 else []
    foreseen = (False,) * (1 + len(asked)) + (True,)
    return Document((first, *asked, second), PARALLEL, (source, target), scene, foreseen)


def _quotation(many: Sequence[Scene], language: str, rng: np.random.Generator) -> Document:
    """Several captions, and all of them again: to know what comes next, look up what followed the same words before."""
    said = tuple(_told(scene, language, rng) for scene in many)
    foreseen = (False,) * len(said) + (True,) * len(said)
    return Document(said + said, QUOTATION, (language, language), many[0], foreseen)


def _discourse(scene: Scene, language: str, mix: Mix, rng: np.random.Generator) -> Document:
    """A caption, and a question about the scene with its answer; or another caption that states the same, with or without a
    question that asks for it. By chance, it may have the same words."""
    facts, orders = one_of(list(by_order(scene, language).items()), rng)
    first = one_of(list(orders), rng)
    said = [(one_of(orders[first], rng), False)]
    asked = [a for a in answerable(scene, language, facts) if a[0].kind in mix.kinds]
    if asked and rng.random() < mix.asked:
        _, question, answer = one_of(asked, rng)
        said += [(question, False), (answer, True)]
    else:
        others = [order for order in orders if order != first]
        stays = not others or rng.random() < mix.same_order
        said += [(grammar.describe(language), False)] if rng.random() < 0.5 else []
        said.append((one_of(orders[first if stays else one_of(others, rng)], rng), True))
    segments, foreseen = zip(*said, strict=True)
    return Document(segments, DISCOURSE, (language, language), scene, foreseen)


def _mixed(scene: Scene, first: str, mix: Mix, rng: np.random.Generator) -> Document:
    """A caption in one language; then, in another, a question about the scene with its answer, or a request for a caption with
    the translation."""
    second = one_of([language for language in mix.languages if language != first], rng)
    facts, caption, again = translations(scene, first, second, rng)
    asked = [a for a in answerable(scene, second, facts) if a[0].kind in mix.kinds]
    question, reply = grammar.describe(second), again
    if asked and rng.random() < mix.asked:
        _, question, reply = one_of(asked, rng)
    return Document((caption, question, reply), MIXED, (first, second), scene, (False, False, True))


def _told(scene: Scene, language: str, rng: np.random.Generator) -> str:
    return grammar.one_caption(scene, language, int(rng.integers(2**31)))
