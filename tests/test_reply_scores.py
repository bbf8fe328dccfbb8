"""Scores of replies about pictures: exact, attributes, language, n-grams; each with what it must not be fooled by."""

import math

import numpy as np
import pytest

from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import grammar
from mpm_lite.data.toyworld.grammar import LANGUAGES
from mpm_lite.data.toyworld.scenes import Scene, Thing
from mpm_lite.evaluation import reply_scores

PAIR = Scene((Thing("star", "red", "large", 0, 1), Thing("circle", "blue", "small", 2, 1)))


def scenes(n=60):
    return toyworld.split_scenes("val")[:n]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_caption_in_full_is_exact_and_in_its_language(language):
    known = 0
    for scene in scenes():
        every = grammar.in_order(scene, language)
        assert len(every) >= 3 and len(set(every)) == len(every)
        for said in every:
            scores = reply_scores.score_caption(said, scene, language)
            assert scores["exact"] == scores["slots"] == scores["content"] == scores["agreement"] == 1.0
            known += scores["reply_language"] / len(every)
    assert known / len(scenes()) > 0.98


def test_in_order_is_a_part_of_the_captions_and_begins_with_what_is_read_first():
    for scene in scenes():
        assert set(grammar.in_order(scene, "en")) < set(grammar.captions(scene, "en"))
        first = min(scene.things, key=lambda t: (t.row, t.column))
        for plan in grammar.in_order_plans(scene, "en"):
            assert (plan[0][1]["a"].shape, plan[0][1]["a"].size) == (first.shape, first.size)


def test_exact_is_blind_to_the_order_of_naming_and_to_nothing_else():
    right = (
        "A large red star to the left of a small blue circle.",
        "A small blue circle to the right of a large red star.",
    )
    assert all(reply_scores.is_exact(said, PAIR, "en") for said in right)
    for wrong in (
        "A large red star to the right of a small blue circle.",
        "A large blue star to the left of a small red circle.",
        "A red star to the left of a blue circle.",
        "A large red star.",
        "",
        "Ein großer roter Stern links von einem kleinen blauen Kreis.",
    ):
        assert not reply_scores.is_exact(wrong, PAIR, "en"), wrong
    assert reply_scores.is_exact("Ein großer roter Stern links von einem kleinen blauen Kreis.", PAIR, "de")


def test_content_counts_in_any_language_and_slots_in_the_one_asked():
    said = reply_scores.score_caption("A large red star to the left of a small blue circle.", PAIR, "de")
    assert said["content"] == 1.0 and said["slots"] == 0.0 and said["exact"] == 0.0 and said["reply_language"] == 0.0
    half = reply_scores.score_caption("Ein großer roter Stern.", PAIR, "de")
    assert half["slots"] == 0.5 and half["reply_language"] == 1.0
    empty = reply_scores.score_caption("", PAIR, "de")
    assert empty["content"] == 0 and empty["reply_language"] == 0 and math.isnan(empty["agreement"])


def test_naming_a_thing_twice_earns_nothing_and_wrong_agreement_is_scored_apart():
    assert reply_scores.score_caption("Red red red star star.", PAIR, "en")["slots"] == pytest.approx(2 / 6)
    bent = reply_scores.score_caption("Ein große roter Stern links von einem kleinen blauen Kreis.", PAIR, "de")
    assert bent["slots"] == 1.0 and bent["exact"] == 0.0 and bent["agreement"] < 1.0


@pytest.mark.parametrize("language", ("en", "zh", "ja", "ar"))
def test_n_gram_scores_prefer_the_right_picture(language):
    many = scenes(40)
    gold = [grammar.in_order(s, language) for s in many]
    own = reply_scores.score_corpus([g[0] for g in gold], gold, language)
    other = reply_scores.score_corpus([g[0] for g in gold[1:] + gold[:1]], gold, language)
    assert own["bleu"] == pytest.approx(100) and own["chrf"] == pytest.approx(100)
    assert all(own[k] > 2 * other[k] for k in own)
    by_item = reply_scores.cider_d([g[0] for g in gold], gold, language)
    assert by_item.shape == (40,) and by_item.mean() > 5


def test_words_of_languages_without_spaces_are_segmented():
    assert reply_scores.tokens("大きい赤い円", "ja") == grammar.grammar("ja").tokens("大きい赤い円")
    assert reply_scores.tokens("แมว นั่ง", "th")[:3] == ["แ", "ม", "ว"]
    assert reply_scores.tokens("En kat sidder.", "da") == ["en", "kat", "sidder", "."]


def test_cider_by_hand():
    """Two references each, one of two words shared with nobody: the n-gram vectors are small enough to do on paper."""
    said, gold = ["a b", "c d"], [["a b"], ["c e"]]
    scores = reply_scores.cider_d(said, gold, "da")
    # First: every n-gram matches: cosine 1 for n = 1, 2; no 3- and 4-grams: mean of (1, 1, 0, 0) times 10.
    assert scores[0] == pytest.approx(5.0)
    # Second: of "c d" only c is shared; all idf are log 2: min-clipped product over norms is 1/2 for n = 1, 0 for n = 2.
    assert scores[1] == pytest.approx(10 / 4 * (1 / 2))
    assert isinstance(scores, np.ndarray)
