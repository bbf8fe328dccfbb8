"""Text for language models: what it describes, what it holds back, and the noise dials."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from mpm_lite import UserError
from mpm_lite.data.toyworld import grammar, text_mix
from mpm_lite.data.toyworld.noise import Noise, levels, noisy_caption, translate
from mpm_lite.data.toyworld.scenes import (
    COLOURS,
    SHAPES,
    combinations,
    draw_neighbours,
    scenes,
    split_of,
    split_of_combination,
    text_scenes,
)

LANGUAGES = grammar.LANGUAGES
MIXES = (
    text_mix.Mix(withheld=3),
    text_mix.Mix(parallel=0.7, seed=1, withheld=3),
    text_mix.Mix(parallel=0.3, seed=2, withheld=1, mixed=0.5),
    text_mix.Mix(parallel=0.3, seed=2),
)
MANY = {mix: list(islice(text_mix.write_documents(mix), 1500)) for mix in MIXES}


@pytest.mark.parametrize("mix", MIXES[:2] + MIXES[3:], ids=["5 %", "70 %", "30 %"])
def test_the_shares_are_what_the_dials_say(mix):
    kinds = Counter(d.kind for d in MANY[mix])
    n = len(MANY[mix])
    for kind, share in (
        (text_mix.PARALLEL, mix.parallel),
        (text_mix.DISCOURSE, (1 - mix.parallel) * mix.discourse * (1 - mix.quoted)),
        (text_mix.QUOTATION, (1 - mix.parallel) * mix.discourse * mix.quoted),
        (text_mix.PLAIN, (1 - mix.parallel) * (1 - mix.discourse)),
    ):
        assert abs(kinds[kind] / n - share) < 4 * (share * (1 - share) / n) ** 0.5, kind
    read = {language for d in MANY[mix] for language in d.languages}
    assert read == set(mix.languages)


@pytest.mark.parametrize("mix", MIXES, ids=["5 %", "70 %", "mixed", "30 %"])
def test_no_document_tells_of_what_a_test_scene_shows(mix):
    """By what it says, not by what it was made from: its captions parse to combinations of train or of text alone."""
    shown = set().union(*(combinations(s) for split in ("val", "test") for s in islice(scenes(split), 600)))
    shown = {name for name in shown if len(name.split()) > 2 and split_of_combination(name) != "train"}
    assert len(shown) > 500
    for d in MANY[mix]:
        assert split_of(d.scene) in ("train", "text") and not combinations(d.scene) & shown
        parsed = [grammar.parse(d.segments[0], d.languages[0]), grammar.parse(d.segments[-1], d.languages[1])]
        assert parsed[0] is not None and not grammar.held_out(parsed[0])
        if d.kind == text_mix.PARALLEL:
            assert parsed[1] == parsed[0], d.text  # a translation states the same
        if d.kind == text_mix.QUOTATION:
            half = len(d.segments) // 2
            assert half == 3 and d.segments[:half] == d.segments[half:]
            for said in d.segments[:half]:
                facts = grammar.parse(said, d.languages[0])
                assert facts is not None and not grammar.held_out(facts)


def test_words_that_are_withheld_are_in_no_pair_but_in_other_text():
    assert all(len(text_mix.draw_withheld(seed, count)) == count for seed in range(8) for count in range(4))
    assert all(
        text_mix.draw_withheld(seed, 1) < text_mix.draw_withheld(seed, 2) < text_mix.draw_withheld(seed)
        for seed in range(8)
    )
    assert len({text_mix.draw_withheld(seed) for seed in range(5)}) == 5
    for mix, many in MANY.items():
        apart = text_mix.draw_withheld(mix.seed, mix.withheld)
        named = {kind: Counter() for kind in (text_mix.PARALLEL, text_mix.DISCOURSE)}
        for d in many:
            for place in (0, -1):
                spotted = grammar.spot(d.segments[place], d.languages[place])
                named.setdefault(d.kind, Counter()).update([*spotted.shape, *spotted.colour])
        assert not apart & set(named[text_mix.PARALLEL]) and apart <= set(named[text_mix.DISCOURSE])
        if not mix.withheld:
            assert len(named[text_mix.PARALLEL]) == len(SHAPES) + len(COLOURS)


def test_mixed_discourse_asks_in_another_language_than_the_caption_and_can_be_answered():
    mix = MIXES[2]
    many = [d for d in MANY[mix] if d.kind == text_mix.MIXED]
    goes_on = sum(d.kind in (text_mix.MIXED, text_mix.DISCOURSE) for d in MANY[mix])
    assert 0.4 < len(many) / goes_on < 0.6  # the share that was asked for
    described = 0
    for d in many:
        caption, question, reply = d.segments
        first, second = d.languages
        assert first != second and d.foreseen == (False, False, True)
        facts = grammar.parse(caption, first)
        if question == grammar.describe(second):
            described += 1
            assert grammar.parse(reply, second) == facts
        else:
            assert (question, reply) in [(q, a) for _, q, a in text_mix.answerable(d.scene, second, facts)]
    assert 0.3 < described / len(many) < 0.6
    assert all({d.languages[place] for d in many} == set(grammar.LANGUAGES) for place in (0, 1))
    assert all(d.kind != text_mix.MIXED for other in MIXES if not other.mixed for d in MANY[other])


def test_a_discourse_stays_in_its_language_and_can_be_answered():
    for d in MANY[MIXES[0]]:
        if d.kind != text_mix.DISCOURSE:
            continue
        language, facts = d.languages[0], grammar.parse(d.segments[0], d.languages[0])
        answers = dict(said for _, *said in text_mix.answerable(d.scene, language, facts))
        rest = list(d.segments[1:])
        while rest:
            one = rest.pop(0)
            if one in answers:
                assert rest.pop(0) == answers[one]
            elif one != grammar.describe(language):
                assert grammar.parse(one, language) == facts, d.text


def test_the_same_mix_gives_the_same_text_and_another_seed_another():
    again = list(islice(text_mix.write_documents(MIXES[0]), 50))
    assert [d.text for d in again] == [d.text for d in MANY[MIXES[0]][:50]]
    assert [d.text for d in islice(text_mix.write_documents(text_mix.Mix(seed=5)), 50)] != [d.text for d in again]


def test_a_mix_that_cannot_be_says_so():
    with pytest.raises(UserError, match="Did you mean 'de'"):
        text_mix.Mix(languages=("en", "dee"))
    with pytest.raises(UserError, match="between 0 and 1"):
        text_mix.Mix(parallel=5)
    with pytest.raises(UserError, match="English and another"):
        text_mix.Mix(languages=("en",), parallel=0.05)
    with pytest.raises(UserError, match="needs two languages"):
        text_mix.Mix(languages=("en",), parallel=0, mixed=0.5)
    for wrong in (-1, 4, 1.5):
        with pytest.raises(UserError, match="0 to 3"):
            text_mix.Mix(withheld=wrong)


def test_neighbours_differ_in_one_attribute():
    rng = np.random.default_rng(0)
    for scene in islice(text_scenes(), 100):
        for other in draw_neighbours(scene, rng, 3):
            assert split_of(other) == "train" and len(other.things) == len(scene.things)
            changed = [(a, b) for a, b in zip(scene.things, other.things, strict=True) if a != b]
            assert len(changed) in (1, len(scene.things) if scene.kind == "group" else 1)
            slots = {s for a, b in changed for s in ("shape", "colour", "size") if getattr(a, s) != getattr(b, s)}
            assert len(slots) == 1


# noise


def test_no_noise_changes_nothing_and_noise_says_what_it_does():
    for i, scene in enumerate(islice(text_scenes(), 40)):
        for language in LANGUAGES:
            gold = noisy_caption(scene, language, Noise(), np.random.default_rng(i))
            assert gold in grammar.captions(scene, language)
            facts = grammar.parse(gold, language)
            swapped = grammar.parse(noisy_caption(scene, language, Noise(swap=0.5), np.random.default_rng(i)), language)
            assert swapped is not None and not grammar.held_out(swapped)
            assert len(swapped.relations) == len(facts.relations) or len(swapped.things) < len(facts.things)
            bent = noisy_caption(scene, language, Noise(agreement=0.5), np.random.default_rng(i))
            assert (bent == gold) or grammar.parse(bent, language) != facts or grammar.mistakes(bent, language) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_agreement_noise_is_what_the_agreement_score_finds(language):
    """Bent captions keep their content, and score below captions left alone; Japanese and English have few forms."""
    many = list(islice(text_scenes(), 150))
    bent = [noisy_caption(s, language, Noise(agreement=0.2), np.random.default_rng(i)) for i, s in enumerate(many)]
    scores = [a for a in (grammar.agreement(one, language) for one in bent) if a is not None]
    assert len(scores) > 75 and np.mean(scores) < 0.995


def test_noise_is_the_same_in_every_process():
    """The forms of a word come from sets, whose order is another in every process."""
    import os
    import subprocess
    import sys

    code = (
        "import numpy as np; from itertools import islice; from mpm_lite.data.toyworld.noise import Noise, noisy_caption\n"
        "from mpm_lite.data.toyworld.scenes import text_scenes\n"
        "for i, s in enumerate(islice(text_scenes(), 20)):\n"
        "    print(ascii(noisy_caption(s, 'de', Noise(agreement=0.5), np.random.default_rng(i))))"
    )
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert said[0].returncode == 0, said[0].stderr.decode()[-500:]
    assert said[0].stdout == said[1].stdout and said[0].stdout.count(b"\n") == 20


def test_english_left_in_is_english():
    scene = next(s for s in text_scenes() if s.kind == "pair")
    left = noisy_caption(scene, "zh", Noise(english=1.0), np.random.default_rng(0))
    for thing in scene.things:
        assert thing.shape in left and thing.colour in left


def test_a_translator_without_noise_translates():
    rng = np.random.default_rng(0)
    for scene in islice(text_scenes(), 30):
        facts, _, _ = text_mix.translations(scene, "en", "tr", rng)
        assert grammar.parse(translate(scene, facts, "tr", Noise(), rng), "tr") == facts
    with pytest.raises(UserError, match="own facts"):
        translate(next(scenes("val")), facts, "tr", Noise(), rng)
    with pytest.raises(UserError, match="between 0 and 1"):
        Noise(swap=1.5)


def test_every_level_of_noise_costs_chrf():
    table = levels(list(islice(text_scenes(3), 60)), ("de", "zh"), (0.0, 0.1, 0.4))
    for _, rows in table.groupby(["dial", "language"]):
        assert rows["chrf"].iloc[0] == 100 and rows["changed"].iloc[0] == 0
        assert rows["chrf"].is_monotonic_decreasing and rows["chrf"].iloc[-1] < 97
