"""Ten hand-written grammars of the toy world: captions, questions, an exact parser, a spotter, and agreement.

    captions(scene, "de")    every paraphrase, in a fixed order
    in_order(scene, "de")    those that tell a picture in full, as one reads it; `shown(scene)` is what they state
    parse(text, "de")        what a caption states (`Facts`); None where it is not exactly German of this grammar
    spot(text, "de")         the content words of any text, right or wrong (`Slots`)
    agreement(text, "de")    the share of words in their right form, where the content can be made out

Each language is one file of this folder, which opens with its rules and glossed examples.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from itertools import combinations

from mpm_lite.data.toyworld.grammar.closed import KINDS, Question, answer, answers, asked, describe, questions
from mpm_lite.data.toyworld.grammar.engine import Facts, Grammar, Mention, Pattern, Slots, meaning
from mpm_lite.data.toyworld.grammar.registry import LANGUAGES, grammar, mention, readable
from mpm_lite.data.toyworld.scenes import CONVERSE, Scene, Thing, count_name, meeting_name, pair_name, relation

__all__ = [
    "KINDS",
    "LANGUAGES",
    "Facts",
    "Mention",
    "Question",
    "Slots",
    "agreement",
    "answer",
    "answers",
    "asked",
    "captions",
]
__all__ += ["describe", "glosses", "grammar", "held_out", "in_order", "in_order_plans", "languages", "mention"]
__all__ += ["mistakes", "one_caption", "other_forms", "parse", "plans", "questions", "say", "shown", "spot", "stated"]

# One sentence of a plan: kind of sentence, value of its placeholder, what is named, which of the patterns (None: each).
Planned = tuple[str, str, dict[str, Mention], int | None]
# A caption before it is worded: for each sentence its pattern, and the thing in each of its places.
Said = list[tuple[Pattern, dict[str, Mention]]]


def languages() -> tuple[str, ...]:
    """The ten languages, English first."""
    return LANGUAGES


def glosses(language: str) -> list[tuple[str, list[tuple[str, str]], str]]:
    """The glossed examples of a language's page: (sentence, its pieces with their glosses, what it says in English)."""
    one = grammar(language)
    page = (import_module(f"mpm_lite.data.toyworld.grammar.{language}").__doc__ or "").split("Glossed examples")[1]
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


def in_order_plans(scene: Scene, language: str) -> list[Said]:
    """The captions that tell a picture in full, before they are worded: each thing with its size, places too, and things
    in the order of reading, from the left or from the top.

    Whoever sees a picture and is asked for "a caption" could otherwise only guess which one is meant: which end to begin
    at and what to leave out is in no picture.
    """
    return list(_in_order(scene, language))


def _in_order(scene: Scene, language: str) -> Iterator[Said]:
    first, facts = mention(_in_reading(scene)[0], True, _count(scene)), shown(scene)
    for plan in _choices(scene, grammar(language)):
        if plan[0][1]["a"] == first and _stated(plan) == facts:
            yield plan


def in_order(scene: Scene, language: str) -> list[str]:
    """The captions that tell a picture in full, in the order of reading; see `in_order_plans`."""
    return [say(plan, language)[0] for plan in _in_order(scene, language)]


def first_in_order(scene: Scene, language: str) -> str:
    """The first of those, without making the others."""
    return say(next(_in_order(scene, language)), language)[0]


@lru_cache(maxsize=4096)
def shown(scene: Scene) -> Facts:
    """All that a picture of the scene shows and a caption can state: the truth that a description is held against."""
    read = _in_reading(scene)
    things = [mention(thing, True, _count(scene)) for thing in read]
    facts = Facts(frozenset(things))
    if scene.place:
        facts |= Facts(places=frozenset({(things[0], scene.place)}))
    if scene.kind != "group":
        for (a, one), (b, two) in combinations(zip(things, read, strict=True), 2):
            facts |= Facts(relations=frozenset({(a, relation(one, two) or "", b)}))
    return facts


def _count(scene: Scene) -> int:
    return len(scene.things) if scene.kind == "group" else 1


def _in_reading(scene: Scene) -> list[Thing]:
    """The things from the left, or from the top, row by row."""
    return sorted(scene.things, key=lambda thing: (thing.row, thing.column))


def say(plan: Said, language: str) -> tuple[str, Facts]:
    """A plan, or one with other things in the places of its own, in words; and what it states."""
    one = grammar(language)
    return one.join(one.sentence(pattern, named) for pattern, named in plan), _stated(plan)


def _stated(plan: Said) -> Facts:
    """What a plan states, in whatever words."""
    facts = Facts()
    for pattern, named in plan:
        facts = facts | meaning(pattern.kind, pattern.value, named)
    return facts


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
        read = _in_reading(scene)
        a, b, c = (mention(thing, sized) for thing in read)
        how = relation(*read[:2]) or ""
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
    return frozenset(name for name in names if not readable(name))


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
