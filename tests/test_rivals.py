"""The rivals of MLA, small: whose captions are learned from, who translates, what the teacher keeps, refusals."""

from dataclasses import replace

import pytest
import torch
from worlds import own_home

from mpm_lite import UserError
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import exchanges, grammar
from mpm_lite.experiments.mla import DualOptions
from mpm_lite.experiments.rivals import KINDS, Pairing, RivalBench

FEW = {"steps": 2, "batch": 8}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        own_home(patch, tmp_path_factory.mktemp("home"))
        short = DualOptions(**FEW, bf16=False)
        patch.setattr("mpm_lite.experiments.mla.Acquiring.dual_options", property(lambda self: short))
        yield RivalBench(progress=False)


def arm(kind, **given):
    languages = {"in-language": ("zh",)}.get(kind, ("de", "zh"))
    return Pairing(kind, **({"languages": languages, "pairs": 40, "parallel": 40, "options": FEW} | given))


@pytest.mark.parametrize("kind", KINDS)
def test_every_rival_chooses_captions(bench, kind):
    recipe = bench.train(arm(kind), 0)
    rows = bench.test(recipe, 0, split="val", languages=("en", "zh"), count=30)
    assert len(rows) == 2 * 2 * 30 and rows["choice"].between(0, 1).all()
    again = bench.train(arm(kind), 0)
    assert rows.equals(bench.test(again, 0, split="val", languages=("en", "zh"), count=30))
    text = bench.test(recipe, 0, split="val", languages=("en", "zh"), looks=("english",), count=30)
    by = text.groupby("language")["choice"].mean()
    assert by["en"] > 0.8, "in English, the given caption says what its own says, in other words"
    if kind == "translate-test":
        assert by["zh"] > 0.3, "a translator makes English of it, of which chance would find a tenth"


def test_captions_are_in_the_languages_that_an_arm_names(bench):
    def first(kind, **given):
        data = bench._captions(arm(kind, **given), 0)
        return [bench_text(row[0]) for row in data.rows]

    def bench_text(row):
        return bench.world.text().tokenizer.decode(row, skip_special_tokens=True).strip()

    assert all(text.isascii() for text in first("pivot"))
    assert all(grammar.parse(text, "zh") or not text.isascii() for text in first("in-language"))
    mixed = first("translate-train", noise=0.0)
    assert any(text.isascii() for text in mixed) and any(not text.isascii() for text in mixed)


def test_a_translator_makes_english_of_it_with_mistakes(bench):
    many = toyworld.split_scenes("val")[:40]
    asked = exchanges.draw_candidates(many)
    right, wrong = (bench.train(arm("translate-test", noise=n), 0) for n in (0.0, 0.5))
    clean, spoilt = bench.told(right, asked, "zh"), bench.told(wrong, asked, "zh")

    def share(said):
        return sum(grammar.parse(few[0], "en") == grammar.shown(s) for few, s in zip(said, many, strict=True)) / 40

    assert share(clean) == 1 and share(spoilt) < 0.5
    assert bench.told(wrong, asked, "en") == exchanges.write_candidates(asked, "en")
    assert spoilt == bench.told(wrong, asked, "zh") != bench.told(wrong, asked, "de")


def test_a_teacher_stays_as_it_is(bench):
    recipe = bench.train(arm("teacher"), 0)
    for name, value in recipe.english.state_dict().items():
        assert torch.equal(value, bench.train(arm("translate-test"), 0).state_dict()[name])
    (stage,) = recipe.stages()
    assert stage.learns == ("encoder", "head")


def test_nonsense_is_refused():
    for wrong in ({"kind": "hope"}, {"kind": "in-language"}, {"languages": ("xx",)}, {"pairs": 10**6}):
        with pytest.raises(UserError):
            Pairing(**wrong)
    with pytest.raises(UserError, match="stepz"):
        replace(arm("pivot"), options={"stepz": 3}).recipe_options  # noqa: B018
