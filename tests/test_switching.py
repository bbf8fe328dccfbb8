"""Code-switching: dictionaries of the grammars and of emoji names, both variants, the random control."""

import numpy as np
import pytest
from need import require

from mpm_lite import UserError
from mpm_lite.core.packages import DebianPackage
from mpm_lite.data import load_captions, toyworld
from mpm_lite.data.toyworld import grammar
from mpm_lite.data.toyworld.switching import Switching, make_dictionary, switch_captions
from mpm_lite.experiments.m3p import Matching

OTHERS = [code for code in grammar.LANGUAGES if code != "en"]


@pytest.fixture(scope="module")
def captions():
    return [grammar.in_order(scene, "en")[0] for scene in toyworld.split_scenes("train")[:300]]


@pytest.mark.parametrize("language", OTHERS)
def test_a_dictionary_holds_words_of_its_language_for_the_same_thing(language):
    english, theirs = grammar.grammar("en"), grammar.grammar(language)
    own = make_dictionary(language)
    assert len(own) == 31
    for word, said in own.items():
        slot, value = english.spotted[word]
        spotted = theirs.spot(said)
        assert value in getattr(spotted, slot), (word, said)


def test_words_stand_as_in_a_dictionary():
    assert make_dictionary("de")["flowers"] == "Blumen" and make_dictionary("es")["red"] == "rojo"
    assert make_dictionary("ar")["book"] == "كتاب" and make_dictionary("zh")["circle"] == "圆形"


@pytest.mark.parametrize("language", OTHERS)
def test_a_random_dictionary_has_the_same_words_and_none_against_its_own(language):
    own, mixed = make_dictionary(language), make_dictionary(language, kind="random")
    assert own.keys() == mixed.keys() and set(mixed.values()) <= set(own.values())
    english, theirs = grammar.grammar("en"), grammar.grammar(language)
    for word, said in mixed.items():
        slot, value = english.spotted[word]
        assert value not in getattr(theirs.spot(said), slot)
    assert mixed["circle"] == mixed["circles"]


def test_languages_do_not_agree_on_what_is_wrong():
    meant = {str(grammar.spot(make_dictionary(code, kind="random")["circle"], code)) for code in OTHERS}
    assert len(meant) > 4


def test_every_word_or_one_word_a_sentence(captions):
    all_of_it = switch_captions(captions, Switching(("zh",), 1.0, 1.0), seed=0)
    english = set(make_dictionary("de"))
    assert not any(word.strip(".,:").lower() in english for text in all_of_it for word in text.split())
    one = switch_captions(captions, Switching(sentences=1.0, variant="one", languages=("de",)), seed=0)
    for before, after in zip(captions, one, strict=True):
        changed = [(a, b) for a, b in zip(before.split(), after.split(), strict=True) if a != b]
        assert len(changed) == 1 and make_dictionary("de")[changed[0][0].strip(".,:").lower()] == changed[0][1].strip(
            ".,:"
        )


def test_rates_hold_and_languages_are_even(captions):
    some = switch_captions(captions, Switching(sentences=0.5), seed=1)
    assert 0.4 < np.mean([a != b for a, b in zip(captions, some, strict=True)]) < 0.6
    assert switch_captions(captions, Switching(sentences=0.0), seed=1) == captions
    assert switch_captions(captions, Switching(), seed=1) == switch_captions(captions, Switching(), seed=1)
    assert switch_captions(captions, Switching(), seed=1) != switch_captions(captions, Switching(), seed=2)
    said = " ".join(
        switch_captions(captions, Switching(sentences=1.0, words=1.0, languages=("sw", "tr")), seed=3)
    ).split()
    counts = [sum(word.strip(".,:") in set(make_dictionary(code).values()) for word in said) for code in ("sw", "tr")]
    assert 0.85 < counts[0] / counts[1] < 1.15


def test_emoji_names_make_a_dictionary_without_test_names():
    german = make_dictionary("de", "emoji")
    assert german["umbrella"] == "regenschirm" and german["taurus"] and len(german) > 150
    held_out = load_captions("emoji", "test", ("en", "de"))
    assert not set(held_out.captions["en"]) & set(german)
    assert switch_captions(["an umbrella and a gear"], Switching(("de",), 1.0, 1.0, world="emoji"), 0) == [
        "an regenschirm and a zahnrad"
    ]


def test_nonsense_is_refused():
    for wrong in ({"words": 1.5}, {"variant": "some"}, {"dictionary": "wrong"}, {"languages": ()}):
        with pytest.raises(UserError):
            Switching(**wrong)
    with pytest.raises(UserError, match="world"):
        make_dictionary("de", "photographs")
    with pytest.raises(UserError, match="language"):
        make_dictionary("xx")


def test_real_dictionaries_lack_words_and_choose_wrong_senses():
    require("freedict")
    real, own = make_dictionary("de", "freedict"), make_dictionary("de")
    assert set(own) < set(real) and real["star"] == "Stern" and real["yellow"] != own["yellow"]
    assert not set(own) <= set(make_dictionary("sw", "freedict"))
    wrong = make_dictionary("de", "freedict", "random")
    assert wrong.keys() == real.keys() and not any(wrong[word] == real[word] for word in ("star", "red"))
    half, few = (make_dictionary("de", "freedict", coverage=share) for share in (0.5, 0.1))
    assert few.items() < half.items() < real.items() and abs(len(half) - len(real) / 2) <= 1
    how = Switching(("de", "ja"), 1.0, 1.0, world="freedict")
    assert switch_captions(["a red star"], how, seed=0)[0].endswith((" Stern", " 星")) and len(how.mark()) == 1
    assert "dictionaries" in Matching(switch={"world": "freedict", "languages": ("de",)}).towers_key()
    assert "dictionaries" not in Matching().towers_key() and not Switching().mark()
    with pytest.raises(UserError, match="FreeDict dictionary 'zh'"):
        make_dictionary("zh", "freedict")


def test_a_share_of_a_dictionary_and_a_missing_one(monkeypatch, tmp_path):
    own = make_dictionary("sw")
    half = make_dictionary("sw", coverage=0.5)
    assert half.items() < own.items() and len(half) == round(0.5 * len(own)) and not make_dictionary("sw", coverage=0.0)
    with pytest.raises(UserError, match="coverage=1.5 is a share"):
        Switching(coverage=1.5)
    monkeypatch.setattr(DebianPackage, "places", lambda package: [tmp_path / package.name])
    with pytest.raises(UserError, match="from English to cy .*`mpm-lite data get freedict`"):
        make_dictionary("cy", "freedict")
