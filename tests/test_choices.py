"""The common task: ten captions, five of them one attribute off, the same in every language."""

import numpy as np
import pytest

from mpm_lite import UserError
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import exchanges, grammar


@pytest.fixture(scope="module")
def asked():
    return exchanges.draw_candidates(toyworld.split_scenes("val")[:120], seed=3)


def _values(scene):
    return [(t.shape, t.colour, t.size) for t in scene.things]


def test_five_are_wrong_in_one_attribute_and_four_in_more(asked):
    for own, *others in asked:
        apart = [sum(a != b for x, y in zip(_values(own), _values(o), strict=True) for a, b in zip(x, y, strict=True))
                 if len(o.things) == len(own.things) else 9 for o in others]  # fmt: skip
        of_a_group = len(own.things) if own.kind == "group" else 1
        assert apart[:5] == [of_a_group] * 5 and len(others) == 9


@pytest.mark.parametrize("language", grammar.LANGUAGES)
def test_ten_different_captions_that_say_what_they_should(asked, language):
    for scenes, captions in zip(asked, exchanges.write_candidates(asked, language), strict=True):
        assert len(set(captions)) == 10
        assert grammar.parse(captions[0], language) == grammar.shown(scenes[0])


def test_the_same_seed_the_same_choice_and_another_another(asked):
    many = [few[0] for few in asked]
    assert exchanges.draw_candidates(many, seed=3) == asked != exchanges.draw_candidates(many, seed=4)
    first = [few[1:6] for few in exchanges.draw_candidates(many[:60], seed=3)]
    assert first == [few[1:6] for few in asked[:60]]


def test_ties_share_and_too_few_scenes_are_refused():
    scores = np.array([[2.0, 1, 0], [1, 2, 0], [1, 1, 0], [0, 0, 0]])
    assert exchanges.score_choices(scores) == pytest.approx([1, 0, 0.5, 1 / 3])
    with pytest.raises(UserError, match="too few"):
        exchanges.draw_candidates(toyworld.split_scenes("val")[:3])
