"""Closed questions on a scene, their answers, and all the answers among which each is decided; and the one open question."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np

from mpm_lite.data.toyworld.grammar.engine import Grammar, Mention, Pattern
from mpm_lite.data.toyworld.grammar.registry import grammar, mention, readable
from mpm_lite.data.toyworld.scenes import COLOURS, PLACES, RELATIONS, SHAPES, Scene, meeting_name, pair_name, relation

_KNOWN = 2  # of the patterns with a relation or a place, the one that speaks of a thing already known
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
            false = [r for r in RELATIONS if r != how and readable(meeting_name(m.pair, r, n.pair))]
            if true or false:
                said = how if true else false[rng.integers(len(false))]
                found.append(Question("holds", mention(m, False), mention(n, False), said, "yes" if true else "no"))
            if scene.kind == "pair":
                found.append(Question("where", mention(m, False), None, "", (how, mention(n, False))))
    return tuple(found)


@cache
def _readable_pairs() -> tuple[tuple[str, str], ...]:
    return tuple((c, s) for c in COLOURS for s in SHAPES if readable(pair_name((c, s))))


def questions(scene: Scene, language: str) -> list[tuple[str, str]]:
    """The closed questions on a scene in one language, each with its answer.

    What colour something is and where it is, a whole sentence says; yes, no and a number stand alone.
    """
    return [(_ask(grammar(language), q), answer(q, language)) for q in asked(scene)]


def describe(language: str) -> str:
    """The open question that asks for a caption, in one language; what language it is in is all it says of language."""
    one = grammar(language)
    return one.capital(one.ask["describe"])


def _ask(one: Grammar, q: Question) -> str:
    text = one.expanded(one.ask[q.kind], q.value)
    return one.capital(one.fill(text, {"a": q.a, **({"b": q.b} if q.b else {})}))


def answer(q: Question, language: str) -> str:
    """The right answer to a question, in words."""
    one = grammar(language)
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


def answers(q: Question, language: str) -> list[str]:
    """Every answer that a question of this kind may have, the right one among them, always in the same order.

    Yes and no; the eight colours; the numbers two to four; the five places, or the four relations to the other thing.
    """
    if q.kind in ("exists", "holds"):
        return [answer(replace(q, answer=word), language) for word in ("yes", "no")]
    if q.kind == "colour":
        return [answer(replace(q, answer=colour), language) for colour in COLOURS]
    if q.kind == "count":
        return [answer(replace(q, a=replace(q.a, count=n), answer=str(n)), language) for n in (2, 3, 4)]
    if isinstance(q.answer, tuple):
        return [answer(replace(q, answer=(how, q.answer[1])), language) for how in RELATIONS]
    return [answer(replace(q, answer=place), language) for place in PLACES]
