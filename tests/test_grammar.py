"""Ten grammars: every caption parses back to what it states, hand-written sentences, agreement, questions.

`python tests/test_grammar.py 5000` runs the round trip over that many scenes a language; the ordinary test takes fewer.
"""

import sys
import time
import unicodedata
from itertools import islice, product

import pytest
from sentences import RIGHT, WRONG

from mpm_lite.core import runtime
from mpm_lite.data.toyworld import grammar
from mpm_lite.data.toyworld.grammar.engine import Mention, meaning, related
from mpm_lite.data.toyworld.scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    count_name,
    draw_scene,
    meeting_name,
    pair_name,
    relation,
    scenes,
    split_of_combination,
    text_scenes,
)

LANGUAGES = grammar.languages()


def of_all_splits(count):
    import numpy as np

    rng = np.random.default_rng(7)
    return [draw_scene(rng) for _ in range(count)]


def true_of(facts, scene):
    """Whether the scene bears out what was stated: checked on the grid, apart from the generator."""
    things = {thing.pair: thing for thing in scene.things}
    for m in facts.things:
        thing = things.get((m.colour, m.shape))
        many = len(scene.things) if scene.kind == "group" else 1
        if thing is None or m.size not in (None, thing.size) or m.count != many:
            return False
    held = all(relation(things[a.colour, a.shape], things[b.colour, b.shape]) == how for a, how, b in facts.relations)
    return held and all(scene.place == place for _, place in facts.places)


def round_trip(language, count):
    """How many captions were made, and those that do not parse to what they state or state what is not so."""
    made, lost = 0, []
    for scene in of_all_splits(count):
        texts = grammar.stated(scene, language)
        made += len(texts)
        lost += [t for t, meant in texts if grammar.parse(t, language) != meant or not true_of(meant, scene)]
        assert len(texts) >= 3 and len({t for t, _ in texts}) == len(texts)
    return made, lost


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_caption_parses_to_what_it_states(language):
    made, lost = round_trip(language, 1000)
    assert made > 9000 and not lost, lost[:3]


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_are_clean_unicode_and_in_a_fixed_order(language):
    for scene in of_all_splits(50):
        texts = grammar.captions(scene, language)
        assert texts == grammar.captions(scene, language)
        assert [grammar.one_caption(scene, language, i) for i in range(len(texts))] == texts
        for text in texts:
            assert unicodedata.normalize("NFC", text) == text and "  " not in text and text == text.strip()
            assert "{" not in text and text.endswith(grammar.grammar(language).stop)
            assert grammar.parse(unicodedata.normalize("NFD", text), language) == grammar.parse(text, language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_facts_share_a_caption(language):
    """All noun phrases of all forms: one spelling, one mention (in its number)."""
    one = grammar.grammar(language)
    forms = {(form, p.kind == "counted") for ps in one.all_patterns.values() for p in ps for _, form in p.slots}
    for form, several in forms:
        spelt = {}
        for shape, colour, size in product(SHAPES, COLOURS, (None, "small", "large")):
            for count in (2, 3, 4) if several else (1,):
                mention = Mention(shape, colour, size, count)
                assert spelt.setdefault(one.phrase(mention, form), mention) == mention
    meant = {}
    for scene in of_all_splits(400):
        for text, facts in grammar.stated(scene, language):
            assert meant.setdefault(text, facts) == facts


@pytest.mark.parametrize(("language", "text", "english"), [(k, t, e) for k, v in RIGHT.items() for t, e in v.items()])
def test_hand_written_sentences_mean_what_their_english_means(language, text, english):
    facts = grammar.parse(text, language)
    if english is None:  # good in the language, but not of this grammar: the spotter still reads it
        assert facts is None and grammar.spot(text, language).shape
        return
    assert facts is not None and facts == grammar.parse(english, "en")
    assert grammar.agreement(text, language) == 1.0 and grammar.mistakes(text, language) == []


@pytest.mark.parametrize(("language", "text", "right"), [(k, t, r) for k, v in WRONG.items() for t, r in v.items()])
def test_wrong_agreement_is_rejected_scored_and_still_read(language, text, right):
    assert grammar.parse(text, language) is None
    spotted = grammar.spot(text, language)
    assert spotted.shape and (spotted.colour or spotted.size)
    if right is None:
        return
    facts = grammar.parse(right, language)
    assert facts is not None
    assert spotted == grammar.spot(right, language)
    assert 0.5 <= grammar.agreement(text, language) < 1 and grammar.mistakes(text, language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_glossed_examples_are_captions_and_mean_their_english(language):
    """The page at the head of a language file is no less true than its code."""
    examples = grammar.glosses(language)
    assert len(examples) == 3
    for text, columns, english in examples:
        facts = grammar.parse(text, language)
        assert facts is not None and facts == grammar.parse(english, "en"), text
        assert all(piece and gloss for piece, gloss in columns)


def test_enough_sentences_by_hand():
    assert set(RIGHT) == set(WRONG) == set(LANGUAGES)
    for language in LANGUAGES:
        assert sum(e is not None for e in RIGHT[language].values()) >= 6
        assert sum(r is not None for r in WRONG[language].values()) >= 6


@pytest.mark.parametrize("language", LANGUAGES)
def test_swapped_words_are_never_accepted_silently(language):
    """Any one word replaced by another form of itself either is rejected or says the same."""
    one = grammar.grammar(language)
    forms = {}
    for form, group in one.groups.items():
        forms.setdefault(group, []).append(form)
    tried = 0
    for scene in of_all_splits(40):
        for text, facts in grammar.stated(scene, language)[:4]:
            for word in set(one.tokens(text)):
                for other in forms.get(one.groups.get(word, ""), []):
                    if other != word and word in text:
                        changed = text.replace(word, other)
                        got = grammar.parse(changed, language)
                        tried += 1
                        assert changed == text or got is None or got == facts, (text, changed)
    assert tried > 50


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_spotter_reads_every_caption(language):
    for scene in of_all_splits(100):
        for text, facts in grammar.stated(scene, language):
            slots = grammar.spot(text, language)
            assert set(slots.shape) == {m.shape for m in facts.things}, text
            assert set(slots.colour) == {m.colour for m in facts.things}, text
            assert set(slots.size) == {m.size for m in facts.things if m.size}, text
            assert set(slots.count) == {str(m.count) for m in facts.things if m.count > 1}, text
            assert bool(slots.relation) == bool(facts.relations) and bool(slots.place) == bool(facts.places), text
            assert set(slots.place) == {place for _, place in facts.places}, text


def test_the_spotter_reads_what_no_grammar_says():
    slots = grammar.spot("I can see the big red star, and under it two blue circles!", "en")
    assert slots.shape == ("star", "circle") and slots.colour == ("red", "blue")
    assert slots.size == ("large",) and slots.count == ("2",) and slots.relation == ("below",)
    assert grammar.spot("nothing", "de") == grammar.Slots()


def test_what_is_no_caption_has_no_facts():
    for language in LANGUAGES:
        for text in ("", "xyz", "xyz.", " ", "The red."):
            assert grammar.parse(text, language) is None
            assert grammar.agreement(text, language) is None
    good = "There is a red circle."
    for text in (good + " ", good.lower(), good[:-1], "  " + good, good + good, "There is a  red circle."):
        assert grammar.parse(text, "en") is None
    with pytest.raises(runtime.UserError, match="Unknown toyworld language 'gr'"):
        grammar.parse("x", "gr")


def test_facts_close_and_turn_round():
    a, b, c = (Mention(shape, "red") for shape in ("circle", "square", "star"))
    assert related(a, "left", b) == related(b, "right", a)
    assert (a, "left", c) in (related(a, "left", b) | related(c, "right", b)).relations
    assert not (related(a, "left", b) | related(b, "above", c)).relations - {(a, "left", b), (b, "above", c)}


def test_questions_answer_truthfully():
    kinds = set()
    for scene in of_all_splits(600):
        things = {thing.pair: thing for thing in scene.things}
        asked = grammar.asked(scene)
        assert len(asked) >= 1
        for q in asked:
            kinds.add((q.kind, q.answer if q.answer in ("yes", "no") else ""))
            if q.kind == "exists":
                assert q.answer == ("yes" if (q.a.colour, q.a.shape) in things else "no")
            elif q.kind == "colour":
                assert [t.colour for t in scene.things if t.shape == q.a.shape] == [q.answer]
            elif q.kind == "count":
                assert q.answer == str(len(scene.things))
            elif q.kind == "holds":
                held = relation(things[q.a.colour, q.a.shape], things[q.b.colour, q.b.shape]) == q.value
                assert q.answer == ("yes" if held else "no")
            elif isinstance(q.answer, tuple):
                how, other = q.answer
                assert relation(things[q.a.colour, q.a.shape], things[other.colour, other.shape]) == how
            else:
                assert q.answer == scene.place
    assert {("exists", "yes"), ("exists", "no"), ("holds", "yes"), ("holds", "no")} <= kinds
    assert {kind for kind, _ in kinds} == {"exists", "holds", "colour", "count", "where"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_questions_in_words_say_what_was_asked(language):
    one = grammar.grammar(language)
    for scene in of_all_splits(150):
        asked, said = grammar.asked(scene), grammar.questions(scene, language)
        assert len(asked) == len(said)
        for q, (question, answer) in zip(asked, said, strict=True):
            slots = one.spot(question)
            assert slots.shape[0] in (q.a.shape, q.b and q.b.shape) and "{" not in question + answer
            assert set(slots.colour) == {m.colour for m in (q.a, q.b) if m and m.colour}
            if q.kind == "colour":
                assert one.spot(answer).colour == (q.answer,) and one.spot(answer).shape == (q.a.shape,)
            elif q.kind == "count":
                assert one.spot(answer).count == (q.answer,)
            elif isinstance(q.answer, tuple):
                assert grammar.parse(answer, language) == related(q.a, *q.answer)
            elif q.kind == "where":
                assert grammar.parse(answer, language) == meaning("placed", q.answer, {"a": q.a})
            else:
                assert answer == one.answers[q.answer]
                assert q.kind == "exists" or one.spot(question).relation == (q.value,)


def test_the_colour_that_an_answer_names_agrees_with_its_thing():
    said = {}
    for code in LANGUAGES:
        for shape in ("flower", "heart", "star", "book"):
            q = grammar.Question("colour", Mention(shape), None, "", "white" if shape == "flower" else "green")
            said[code, shape] = grammar.answer(q, code)
    assert said["en", "heart"] == "The heart is green." and said["de", "flower"] == "Die Blume ist weiß."
    assert said["es", "flower"] == "La flor es blanca." and said["fr", "flower"] == "La fleur est blanche."
    assert said["fr", "star"] == "L'étoile est verte." and said["fr", "heart"] == "Le cœur est vert."
    assert said["zh", "heart"] == "心形是绿色的。" and said["tr", "heart"] == "Resimdeki kalp yeşil."
    assert said["ja", "flower"] == "花は白いです。" and said["ja", "heart"] == "ハートは緑です。"
    assert said["ar", "flower"] == "الزهرة بيضاء." and said["ar", "heart"] == "القلب أخضر."
    assert said["hi", "book"] == "किताब हरी है।" and said["hi", "heart"] == "दिल हरा है।"
    assert said["sw", "flower"] == "Ua lina rangi nyeupe." and said["sw", "heart"] == "Moyo una rangi ya kijani."


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_are_told_apart(language):
    one = grammar.grammar(language)
    assert len(set(one.answers.values())) == len(one.answers)
    assert len(set(one.phrases["place"].values())) == 5
    assert set(one.phrases["rel"]) == set(one.phrases["rel.def"]) == set(RELATIONS) == set(one.phrases["row"])


def test_no_text_states_what_a_test_scene_shows():
    """Captions by what they parse to, questions by what they ask: all of it is of train, or of text alone."""
    readable = ("train", "text")
    for scene in islice(text_scenes(), 600):
        named = [facts for _, facts in grammar.stated(scene, "en")]
        for facts in named:
            assert not grammar.held_out(facts)
            for m in facts.things:
                pair = (m.colour, m.shape)
                assert facts.relations or m.count > 1 or split_of_combination(pair_name(pair)) == "train"
                assert m.count == 1 or split_of_combination(count_name(m.count, pair)) in readable
            for a, how, b in facts.relations:
                name = meeting_name((a.colour, a.shape), how, (b.colour, b.shape))
                assert split_of_combination(name) in readable
        for q in grammar.asked(scene):
            if q.kind == "exists" and q.answer == "no":
                assert split_of_combination(pair_name((q.a.colour, q.a.shape))) == "train"
            if q.kind == "holds":
                name = meeting_name((q.a.colour, q.a.shape), q.value, (q.b.colour, q.b.shape))
                assert split_of_combination(name) in readable


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_caption_of_test_or_val_is_one_of_train_or_of_any_text(language):
    texts = {
        s: {t for x in islice(scenes(s), 500) for t in grammar.captions(x, language)} for s in ("train", "val", "test")
    }
    read = {t for x in islice(text_scenes(), 2000) for t in grammar.captions(x, language)}
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["val"] and not texts["val"] & texts["test"]
    assert not read & texts["test"] and not read & texts["val"]


if __name__ == "__main__":
    for code in LANGUAGES:
        start = time.time()
        total, failed = round_trip(code, int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
        print(f"{code}: {total} captions, {len(failed)} lost, {time.time() - start:.1f} s", failed[:2])
