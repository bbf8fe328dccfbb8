"""Ten hand-written grammars of the toy world: captions, questions, an exact parser, a spotter, and agreement.

    captions(scene, "de")    every paraphrase, in a fixed order
    parse(text, "de")        what a caption states (`Facts`); None where it is not exactly German of this grammar
    spot(text, "de")         the content words of any text, right or wrong (`Slots`)
    agreement(text, "de")    the share of words in their right form, where the content can be made out

Each language is one file of this folder, which opens with its rules and glossed examples.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import import_module

import numpy as np

from mpm_lite import runtime
from mpm_lite.data.grammar.engine import Facts, Grammar, Mention, Pattern, Slots, meaning
from mpm_lite.data.scenes import (
    COLOURS,
    CONVERSE,
    RELATIONS,
    SHAPES,
    Scene,
    Thing,
    count_name,
    meeting_name,
    pair_name,
    relation,
    split_of_combination,
)

__all__ = ["Facts", "Mention", "Question", "Slots", "agreement", "asked", "captions", "describe", "glosses", "held_out"]
__all__ += [
    "languages",
    "mistakes",
    "one_caption",
    "other_forms",
    "parse",
    "plans",
    "questions",
    "say",
    "spot",
    "stated",
]

_KNOWN = 2  # of the patterns with a relation or a place, the one that speaks of a thing already known
LANGUAGES = ("en", "de", "es", "fr", "zh", "ja", "ar", "hi", "sw", "tr")
# One sentence of a plan: kind of sentence, value of its placeholder, what is named, which of the patterns (None: each).
Planned = tuple[str, str, dict[str, Mention], int | None]
# A caption before it is worded: for each sentence its pattern, and the thing in each of its places.
Said = list[tuple[Pattern, dict[str, Mention]]]


def languages() -> tuple[str, ...]:
    """The ten languages, English first."""
    return LANGUAGES


@cache
def grammar(language: str) -> Grammar:
    """The grammar of one language; UserError for one there is none for."""
    if language not in LANGUAGES:
        raise runtime.unknown("toyworld language", language, LANGUAGES)
    return import_module(f"mpm_lite.data.grammar.{language}").GRAMMAR


def glosses(language: str) -> list[tuple[str, list[tuple[str, str]], str]]:
    """The glossed examples of a language's page: (sentence, its pieces with their glosses, what it says in English)."""
    one = grammar(language)
    page = (import_module(f"mpm_lite.data.grammar.{language}").__doc__ or "").split("Glossed examples")[1]
    found = []
    for block in page.split("\n\n"):
        pieces, glossed, english = (line.strip() for line in block.strip().split("\n")[-3:])
        columns = list(zip(re.split(r"\s{2,}", pieces), re.split(r"\s{2,}", glossed), strict=True))
        text = (" " if one.spaced else "").join(piece for piece, _ in columns).replace("-", "").replace("' ", "'")
        found.append((text, columns, english.strip("'")))
    return found


def captions(scene: Scene, language: str) -> list[str]:
    """Every caption of the scene in one language, at least three, in a fixed order."""
    return [text for text, _ in stated(scene, language)]


def stated(scene: Scene, language: str) -> list[tuple[str, Facts]]:
    """Every caption with what it states; a size may be left out, relations of pairs and threes never are."""
    return [say(plan, language) for plan in plans(scene, language)]


def plans(scene: Scene, language: str) -> list[Said]:
    """Every caption before it is worded: for each of its sentences the pattern, and the things it names."""
    return list(_choices(scene, grammar(language)))


def say(plan: Said, language: str) -> tuple[str, Facts]:
    """A plan, or one with other things in the places of its own, in words; and what it states."""
    one, facts = grammar(language), Facts()
    for pattern, named in plan:
        facts = facts | meaning(pattern.kind, pattern.value, named)
    return one.join(one.sentence(pattern, named) for pattern, named in plan), facts


def other_forms(word: str, language: str) -> list[str]:
    """The forms among which agreement chooses the word's own, without it; none for a word that never changes."""
    one = grammar(language)
    group = one.groups.get(word)
    # Sorted: the forms come from sets, whose order is another in every process.
    return sorted(form for form, of in one.groups.items() if of == group and form != word) if group else []


def one_caption(scene: Scene, language: str, pick: int) -> str:
    """The caption of number `pick` modulo their number, without making the others."""
    every = plans(scene, language)
    return say(every[pick % len(every)], language)[0]


def _choices(scene: Scene, one: Grammar) -> Iterator[Said]:
    """The patterns of each caption, sentence by sentence."""
    for plan in _plans(scene):
        kind, value, named, which = plan[0]
        patterns = one.all_patterns[kind, value]
        for pattern in patterns if which is None else [patterns[which]]:
            rest = [(one.all_patterns[k, v][w or 0], n) for k, v, n, w in plan[1:]]
            yield [(pattern, named), *rest]


def mention(thing: Thing, sized: bool, count: int = 1) -> Mention:
    """The thing as a text names it, with or without its size."""
    return Mention(thing.shape, thing.colour, thing.size if sized else None, count)


def _plans(scene: Scene) -> Iterator[list[Planned]]:
    """What to say of a scene, and in which kinds of sentences: the same for all languages."""
    for sized in (False, True):
        if scene.kind in ("one", "group"):
            named = {"a": mention(scene.things[0], sized, len(scene.things))}
            yield [("counted" if scene.kind == "group" else "exists", "", named, None)]
            if scene.place:
                yield [("placed", scene.place, named, None)]
            continue
        if scene.kind == "pair":
            for a, b in (scene.things, scene.things[::-1]):
                how = relation(a, b)
                yield [("relate", how or "", {"a": mention(a, sized), "b": mention(b, sized)}, None)]
            continue
        a, b, c = (mention(t, sized) for t in sorted(scene.things, key=lambda t: (t.row, t.column)))
        how = relation(*sorted(scene.things, key=lambda t: (t.row, t.column))[:2]) or ""
        yield [("row", how, {"a": a, "b": b, "c": c}, None)]
        yield [("row", CONVERSE[how], {"a": c, "b": b, "c": a}, None)]
        # Two sentences: the first introduces, the second speaks of what is known.
        yield [("relate", how, {"a": a, "b": b}, 1), ("relate", how, {"a": b, "b": c}, 2)]
        yield [("relate", CONVERSE[how], {"a": c, "b": b}, 1), ("relate", CONVERSE[how], {"a": b, "b": a}, 2)]


def held_out(facts: Facts) -> frozenset[str]:
    """The combinations of val and test that a text stating this shows, in its relations and counts.

    A thing without its colour shows none. A pair of val or test that is merely named alone counts too.
    """
    named = [thing for thing in facts.things if thing.colour]
    alone = [] if facts.relations else [t for t in named if t.count == 1]
    names = {pair_name((str(t.colour), t.shape)) for t in alone}
    names |= {count_name(t.count, (str(t.colour), t.shape)) for t in named if t.count > 1}
    for a, how, b in facts.relations:
        if a.colour and b.colour:
            names.add(meeting_name((a.colour, a.shape), how, (b.colour, b.shape)))
    return frozenset(name for name in names if not _readable(name))


def parse(text: str, language: str) -> Facts | None:
    """What a caption states: the exact inverse of the generator, so None for anything it would not say."""
    return grammar(language).parse(_composed(text))


def spot(text: str, language: str) -> Slots:
    """The content words of any text, in its order, whatever their form and whatever stands between them."""
    return grammar(language).spot(_composed(text))


def mistakes(text: str, language: str) -> list[tuple[str, str]] | None:
    """(written, right) for every word in a wrong form; None where more than agreement is amiss."""
    return grammar(language).errors(_composed(text))


def agreement(text: str, language: str) -> float | None:
    """The share of the words that have their right form, 1.0 for none wrong; None where the content is unclear."""
    wrong = mistakes(text, language)
    if wrong is None:
        return None
    return 1 - len(wrong) / len(grammar(language).tokens(_composed(text)))


def _composed(text: str) -> str:
    """The same letters in the one way that the grammars write them (é as one character; Hindi's nukta as two)."""
    return unicodedata.normalize("NFC", text)


KINDS = ("exists", "holds", "colour", "count", "where")


@dataclass(frozen=True)
class Question:
    """A closed question before any language: `kind` is one of KINDS.

    `value` is the relation that "holds" asks for; `answer` is "yes", "no", a colour, a number, a place, or for "where"
    (relation, the other thing).
    """

    kind: str
    a: Mention
    b: Mention | None
    value: str
    answer: str | tuple[str, Mention]


@lru_cache(maxsize=4)  # those who ask for the questions in words ask for both
def asked(scene: Scene) -> tuple[Question, ...]:
    """The closed questions on a scene with their answers. A false one names no held-out combination in a train scene.

    What a false "exists" asks for shares in half of the scenes a shape or a colour with a thing that is there.
    """
    rng = np.random.default_rng(int(scene.id, 16))
    a = mention(scene.things[0], False, len(scene.things) if scene.kind == "group" else 1)
    there = scene.things[rng.integers(len(scene.things))]
    found = [Question("exists", mention(there, False), None, "", "yes")]
    pairs = {thing.pair for thing in scene.things}
    others = [pair for pair in _readable_pairs() if pair not in pairs]
    if rng.random() < 0.5:
        others = [(c, s) for c, s in others if (c == there.colour) != (s == there.shape)]
    colour, shape = others[rng.integers(len(others))]
    found.append(Question("exists", Mention(shape, colour), None, "", "no"))
    for thing in scene.things:
        if scene.kind != "group" and [t.shape for t in scene.things].count(thing.shape) == 1:
            found.append(Question("colour", Mention(thing.shape), None, "", thing.colour))
    if scene.kind == "group":
        return (*found[2:], Question("count", a, None, "", str(a.count)))
    if scene.place:
        return (*found, Question("where", a, None, "", scene.place))
    for one, two in zip(scene.things, scene.things[1:], strict=False):
        ways = [(one, two), (two, one)]
        for (m, n), true in zip(ways, rng.permutation(2), strict=True):
            how = relation(m, n) or ""
            false = [r for r in RELATIONS if r != how and _readable(meeting_name(m.pair, r, n.pair))]
            if true or false:
                said = how if true else false[rng.integers(len(false))]
                found.append(Question("holds", mention(m, False), mention(n, False), said, "yes" if true else "no"))
            if scene.kind == "pair":
                found.append(Question("where", mention(m, False), None, "", (how, mention(n, False))))
    return tuple(found)


@cache
def _readable_pairs() -> tuple[tuple[str, str], ...]:
    return tuple((c, s) for c in COLOURS for s in SHAPES if _readable(pair_name((c, s))))


def _readable(name: str) -> bool:
    return split_of_combination(name) in ("train", "text")


def questions(scene: Scene, language: str) -> list[tuple[str, str]]:
    """The closed questions on a scene in one language, each with its answer.

    What colour something is and where it is, a whole sentence says; yes, no and a number stand alone.
    """
    return [(_ask(grammar(language), q), _answer(grammar(language), q)) for q in asked(scene)]


def describe(language: str) -> str:
    """The open question that asks for a caption, in one language; what language it is in is all it says of language."""
    one = grammar(language)
    return one.capital(one.ask["describe"])


def _ask(one: Grammar, q: Question) -> str:
    text = one.expanded(one.ask[q.kind], q.value)
    return one.capital(one.fill(text, {"a": q.a, **({"b": q.b} if q.b else {})}))


def _answer(one: Grammar, q: Question) -> str:
    if q.kind == "count":
        return one.numeral(q.a)
    if q.kind == "colour":
        said = Pattern("colour", "", one.answers["colour"])
        return one.sentence(said, {"a": q.a, "c": replace(q.a, colour=q.answer)})
    if isinstance(q.answer, tuple):
        how, other = q.answer
        return one.sentence(one.all_patterns["relate", how][_KNOWN], {"a": q.a, "b": other})
    if q.kind == "where":
        return one.sentence(one.all_patterns["placed", q.answer][_KNOWN], {"a": q.a})
    return one.answers[q.answer]
