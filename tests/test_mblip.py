"""mBLIP and the Q-Former, small: masks, BLIP-2's objectives, the mix of tasks, stages, what is kept, prompts, refusals."""

import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from worlds import own_home

from mpm_lite import UserError
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import exchanges, grammar
from mpm_lite.data.toyworld.noise import Noise
from mpm_lite.experiments.mblip import MblipBench, Realigning
from mpm_lite.recipes.mblip import Blip2, Blip2Options, Mblip, MblipOptions
from mpm_lite.recipes.modules.connectors import QFormer
from mpm_lite.teaching import views
from mpm_lite.towers.load import load_lm

SMALL = {"steps": 2, "batch": 4, "queries": 4, "width": 32, "layers": 2, "bf16": False}
FEW = {"warm_steps": 2, "steps": 2, "batch": 4, "bf16": False}
ARM = Realigning(english=30, pairs=30, options=FEW, english_options=SMALL,
                 generation_options={"steps": 2, "batch": 4, "bf16": False})  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        own_home(patch, tmp_path_factory.mktemp("home"))
        yield MblipBench(progress=False)


@pytest.fixture(scope="module")
def qformer():
    torch.manual_seed(0)
    return QFormer(16, 6, 50, queries=4, width=32, layers=2).eval()


# the Q-Former


def test_who_sees_whom(qformer):
    seen, ids = torch.randn(2, 6, 16), torch.randint(4, 40, (2, 5))
    other = ids.clone()
    other[:, 3] = 45
    moved = lambda **how: (qformer.both(seen, ids, **how) - qformer.both(seen, other, **how)).abs().amax((0, 2)) > 1e-6  # noqa: E731
    assert moved().all()  # matching: each sees all
    telling = moved(telling=True)
    assert not telling[: 4 + 3].any() and telling[4 + 3 :].all()  # queries see no word, words none behind them
    torch.testing.assert_close(qformer.both(seen, ids, telling=True)[:, :4], qformer.see(seen))


def test_padding_is_not_seen(qformer):
    seen, ids = torch.randn(2, 6, 16), torch.randint(4, 40, (2, 5))
    longer = torch.cat([ids, torch.zeros(2, 3, dtype=torch.long)], dim=1)
    for short, long in (
        (qformer.read(ids), qformer.read(longer)[:, :5]),
        (qformer.both(seen, ids), qformer.both(seen, longer)[:, :9]),
        (qformer.both(seen, ids, True), qformer.both(seen, longer, True)[:, :9]),
    ):
        torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)


def test_queries_look_at_the_picture(qformer):
    a, b = qformer.see(torch.randn(2, 6, 16)), qformer.see(torch.randn(2, 6, 16))
    assert a.shape == (2, 4, 32) and not torch.allclose(a, b)
    with pytest.raises(UserError, match="multiple of heads"):
        QFormer(16, 6, 50, width=30)


def test_blip2_learns_its_three_objectives():
    torch.manual_seed(0)
    recipe = Blip2(16, 6, 50, Blip2Options(queries=4, width=32, layers=2))
    seen, ids = torch.randn(4, 6, 16), torch.randint(4, 50, (4 * 3, 7))
    ids[:, 0], ids[1, 5:] = 1, 0
    optimizer = torch.optim.AdamW(recipe.parameters(), lr=2e-3)

    def parts():
        lost = recipe.itc_loss(seen, ids), recipe.itm_loss(seen, ids), recipe.itg_loss(seen, ids[:4])
        return [of.detach() for of in lost]

    before = [float(x) for x in parts()]
    for _ in range(60):
        optimizer.zero_grad()
        recipe.loss({"seen": seen, "ids": ids}).backward()
        optimizer.step()
    after = [float(x) for x in parts()]
    assert all(b < 0.7 * a for a, b in zip(before, after, strict=True)), (before, after)
    match = recipe.predict({"seen": seen.repeat(2, 1, 1), "ids": torch.cat([ids[:4], ids[4:8]])})["match"]
    assert match[:4].mean() > match[4:].mean()


# the mix


def test_every_task_is_there_and_well_formed():
    many = toyworld.split_scenes("train")[:600]
    mixed = exchanges.mix_tasks(many, grammar.LANGUAGES, "uniform")
    kinds = Counter(e.kind for e in mixed)
    assert set(kinds) == set(exchanges.TASKS) and min(kinds.values()) > 40
    assert [e.picture for e in mixed] == list(range(600)) and all(e.reply and e.question for e in mixed)
    for e in mixed:
        if e.kind == "caption":
            assert grammar.parse(e.reply, e.language) == grammar.shown(many[e.picture])
        if e.kind == "match":
            said = e.question.split('"')[1]
            assert (e.reply == "yes") == (grammar.parse(said, e.language) == grammar.shown(many[e.picture]))
        if e.kind in exchanges.ENGLISH_ONLY:
            assert e.language == "en"
    answers = Counter(e.reply for e in mixed if e.kind == "match")
    assert 0.35 < answers["yes"] / answers.total() < 0.65


def test_rules_share_out_languages_and_leave_the_examples_as_they_are():
    for rule in exchanges.RULES:
        assert exchanges.share_languages(grammar.LANGUAGES, rule).sum() == pytest.approx(1)
    uniform, tempered, proportional = (dict(zip(grammar.LANGUAGES, exchanges.share_languages(grammar.LANGUAGES, r), strict=True))
                                       for r in exchanges.RULES)  # fmt: skip
    assert uniform["sw"] > tempered["sw"] > proportional["sw"] and proportional["en"] > tempered["en"] > uniform["en"]
    many = toyworld.split_scenes("train")[:200]
    one, other = (exchanges.mix_tasks(many, ("en", "de"), rule) for rule in ("uniform", "proportional"))
    assert [e.kind == f.kind for e, f in zip(one, other, strict=True)].count(False) < 60
    english = [(e, f) for e, f in zip(one, other, strict=True) if e.language == f.language == "en" and e.kind == f.kind]
    assert english and all(e == f for e, f in english)


def test_translations_have_mistakes_and_english_has_none():
    many = toyworld.split_scenes("train")[:300]
    mixed = exchanges.mix_tasks(many, ("en", "de"), "uniform", Noise(swap=0.5), ("caption",))
    right = {code: np.mean([grammar.parse(e.reply, code) == grammar.shown(many[e.picture]) for e in mixed if e.language == code])
             for code in ("en", "de")}  # fmt: skip
    assert right["en"] == 1 and right["de"] < 0.5


# re-alignment


def states(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def test_stages_say_what_learns(bench):
    recipe = bench.train(ARM, 0)
    warm, stage = recipe.stages()
    assert warm.learns == ("visual.to_lm",) and stage.name == "re-alignment"
    assert any("lora" in part for part in stage.learns) and "visual.qformer.former" in stage.learns
    only = Mblip(
        load_lm("toy-multilingual"), copy.deepcopy(recipe.visual.qformer), 128, MblipOptions(learns="projection")
    )
    assert not any("qformer" in part for part in only.stages()[-1].learns)
    generation = Mblip(
        load_lm("toy-english"), copy.deepcopy(recipe.visual.qformer), 128, MblipOptions(warm_steps=0, rank=0)
    )
    assert [s.name for s in generation.stages()] == ["generation"]
    assert not any("lora" in name for name, _ in generation.named_parameters())


def test_realignment_starts_from_the_english_q_former_and_keeps_the_language_model(bench):
    english, recipe = bench.english(ARM, 0), bench.train(ARM, 0)
    random = bench.english(replace(ARM, start="random"), 0)
    assert not torch.equal(english.queries, random.queries)
    assert not torch.equal(english.queries, recipe.visual.qformer.queries)
    assert torch.allclose(english.queries, recipe.visual.qformer.queries, atol=0.01)
    plain = load_lm("toy-multilingual", 0).model.state_dict()
    tuned = {k.replace(".base_layer", ""): v for k, v in recipe.lm.model.state_dict().items() if "lora" not in k}
    assert tuned.keys() == plain.keys() and all(torch.equal(v, plain[k]) for k, v in tuned.items())
    again = bench.train(ARM, 0)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in states(recipe).items())
    assert ARM.total == 60 and replace(ARM, start="random").total == 30


def test_new_pairs_are_other_pictures_than_those_of_blip2(bench):
    assert torch.equal(bench.world.seen("train", 20, 30), bench.seen("train", 50)[30:])


def test_it_is_asked_in_its_own_words(bench):
    recipe = bench.train(ARM, 0)
    rows = bench.test(recipe, 0, "val", ("en", "sw"), ("real",), count=3)
    assert len(rows) == 6 and rows["answers"].notna().all() and rows["slots"].between(0, 1).all()
    assert bench.open_prompt("sw") == "Caption in Swahili:" and bench.closed_prompt("a?", "de").endswith("German:")
    chosen = bench.choose(recipe, 0, "val", ("de",), ("real", "blind"), count=30)
    assert len(chosen) == 60 and set(chosen["lm"]) == {"toy-multilingual"}


def test_nonsense_is_refused():
    for wrong in ({"start": "nothing"}, {"rule": "fair"}, {"english": 20_000, "pairs": 9_000}, {"languages": ("xx",)}):
        with pytest.raises(UserError):
            Realigning(**wrong)
    with pytest.raises(UserError, match="task"):
        exchanges.mix_tasks(toyworld.split_scenes("train")[:2], ("en",), tasks=("sing",))
    with pytest.raises(UserError, match="re-aligned"):
        Mblip(load_lm("toy-english"), QFormer(16, 6, 50, width=32, layers=2), 16, MblipOptions(learns="all"))


def test_its_fidelity_table_is_read_off_the_recipe(bench):
    rows = views.build_fidelity_table(bench.train(ARM, 0))
    assert len(rows) >= 9 and all(row.part and row.paper and row.here and row.why for row in rows)
    assert not any("[M]" in row.paper for row in rows) and any(
        "3 steps" in row.here or "2 steps" in row.here for row in rows
    )
