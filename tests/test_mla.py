"""MLA and the English dual encoder, small: what stays bit by bit, what learns, stages, refusals."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from worlds import own_home

from mpm_lite import UserError
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import exchanges
from mpm_lite.data.toyworld.scenes import draw_neighbours, one_off, split_of
from mpm_lite.evaluation import choice
from mpm_lite.experiments import m3p, mla
from mpm_lite.experiments.mla import Acquiring, MlaBench
from mpm_lite.recipes.mla import Mla, MlaOptions
from mpm_lite.teaching import views
from mpm_lite.towers.text import padded

FEW = {"transfer_steps": 3, "exposure_steps": 2, "batch": 8}
ENGLISH = {"steps": 3, "batch": 8, "bf16": False}
ARM = Acquiring(languages=("de", "zh"), english=40, parallel=40, pairs=40, options=FEW, english_options=ENGLISH)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        own_home(patch, tmp_path_factory.mktemp("home"))
        yield MlaBench(progress=False)


def states(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def said(recipe, bench, language, text="Ein roter Kreis."):
    with torch.no_grad():
        return recipe.text(padded(bench.ids([text])), language)


def test_english_stays_as_it_was_bit_by_bit(bench):
    english = bench.dual(ARM, 0)
    before, vector = states(english), english.text(padded(bench.ids(["A red circle."], "toy-en")))
    recipe = bench.train(ARM, 0)
    assert all(torch.equal(v, before[k]) for k, v in recipe.english.state_dict().items())
    assert torch.equal(said(recipe, bench, "en", "A red circle."), vector)
    fresh = Mla(copy.deepcopy(english), ("de", "zh"), recipe.acquirers.enter.words.weight, MlaOptions(**FEW))
    assert not torch.equal(said(recipe, bench, "de"), said(fresh, bench, "de"))


def test_the_embedding_can_start_from_masked_text_alone(bench, monkeypatch):
    """A table that no translation shaped: that of M3P's text stage, another for every seed."""
    short = lambda **given: m3p.Matching(**given | {"options": {"steps": 0, "text_steps": 2, "batch": 4}})  # noqa: E731
    monkeypatch.setattr(mla, "Matching", short)
    arm = replace(ARM, table="masked text")
    english = bench.dual(arm, 0)
    tables = [bench._mla(english, arm.languages, arm, seed).acquirers.enter.words.weight for seed in (0, 1)]
    text = m3p.M3pBench(False, bench.world).train(short(switch=None), 0).encoder
    assert torch.equal(tables[0], text.get_input_embeddings().weight) and not torch.equal(*tables)
    usual = bench._mla(english, arm.languages, ARM, 0).acquirers.enter.words.weight
    assert usual.shape == tables[0].shape and not torch.equal(usual, tables[0])
    recipe = bench.train(arm, 0)
    assert not torch.equal(recipe.acquirers.enter.words.weight, tables[0])
    with pytest.raises(UserError, match="Unknown table to start from 'mask'"):
        replace(ARM, table="mask")
    with pytest.raises(UserError, match="the embedding starts from its text encoder"):
        Acquiring(world="real", languages=("de",), table="masked text")


def test_a_block_of_pictures_can_be_asked_about(bench):
    recipe, every = bench.train(ARM, 0), [scene.id for scene in toyworld.split_scenes("val")]
    rows = bench.test(recipe, 0, "val", ("en",), ("real", "blind"), count=40, first=2)
    assert list(rows["item"]) == every[2:42] * 2
    assert torch.equal(bench.looked("val", 4, "real", 2), bench.looked("val", 6, "real")[2:])
    with pytest.raises(UserError, match="toyworld has 400 pictures of val: no 200 from number 300 on"):
        ARM.check_questions({"split": "val", "count": 200, "first": 300})
    with pytest.raises(UserError, match="of real pictures all held-out ones"):
        Acquiring(world="real", languages=("de",)).check_questions({"first": 2})


def test_a_language_that_comes_later_touches_no_other(bench):
    arm = replace(ARM, languages=("de", "zh"), then=("sw", "tr"))
    first = bench.train(replace(arm, then=()), 0)
    recipe = bench.train(arm, 0)
    now, before = recipe.state_dict(), first.state_dict()
    assert len(before) > 10 and all(torch.equal(now[k], before[k]) for k in before)
    for language, text in (("de", "Ein roter Kreis."), ("zh", "红色的圆形。")):
        assert torch.equal(said(recipe, bench, language, text), said(first, bench, language, text))
    untouched = bench._mla(recipe.english, recipe.names, arm, 0).state_dict()
    moved = [k for k in now if k.startswith("acquirers.of.sw.") and not torch.equal(now[k], untouched[k])]
    assert moved


def test_a_shared_acquirer_is_touched_by_whoever_comes_later(bench):
    arm = replace(ARM, options=FEW | {"shared": True}, then=("sw",))
    recipe, early = bench.train(arm, 0), bench.train(replace(arm, then=()), 0)
    assert set(recipe.acquirers.of) == {"all"}
    assert not torch.equal(said(recipe, bench, "de"), said(early, bench, "de"))


@pytest.mark.parametrize(
    ("learns", "moves", "stays"),
    [
        ("acquirers", ("acquirers.of", "acquirers.enter"), ("english",)),
        ("embedding", ("acquirers.enter",), ("english",)),
        ("text encoder", ("acquirers.enter", "english.encoder"), ("english.pooler",)),
    ],
)
def test_what_learns_is_what_the_stage_says(bench, learns, moves, stays):
    recipe = bench.train(replace(ARM, options=FEW | {"learns": learns}), 1)
    before = bench.dual(ARM, 1)
    for stage in recipe.stages():
        assert all(any(part.startswith(p) for part in stage.learns) for p in moves)
        assert not any(part.startswith(stays) for part in stage.learns)
    for name, value in before.state_dict().items():
        if f"english.{name}".startswith(stays):
            assert torch.equal(value, recipe.english.state_dict()[name])
    counts = {"acquirers": 2 * 4 * (2 * 128 * 32 + 32 + 128), "embedding": 0, "text encoder": None}[learns]
    if counts is not None:
        assert recipe.trainable == counts + recipe.weights["embedding"]


def test_transfer_alone_exposure_alone_and_reversed_are_stages(bench):
    names = lambda order: [s.name for s in bench.train(replace(ARM, options=FEW | {"order": order}), 0).stages()]  # noqa: E731
    assert names("transfer") == ["transfer"] and names("exposure") == ["exposure"]
    assert names("exposure transfer") == ["exposure", "transfer"]
    for objective in ("mse", "cosine", "nce"):
        recipe = Mla(bench.dual(ARM, 0), ("de",), torch.randn(20, 128), MlaOptions(transfer=objective))
        near = torch.randn(4, 128)
        loss = recipe.loss({"ids": torch.randint(1, 20, (4, 6)), "near": near, "language": torch.tensor(0)})
        assert torch.isfinite(loss) and loss > 0


def test_shuffled_sentences_have_another_ones_translation(bench):
    english = bench.dual(ARM, 0)
    own, other = (
        bench.stages(replace(ARM, shuffled=s), english, ["de", "zh"], ("de", "zh"), 0)[0] for s in (False, True)
    )
    assert own.of[:40].tolist() == list(range(40)) == sorted(other.of[:40].tolist()) != other.of[:40].tolist()
    assert (
        torch.equal(own.near, other.near)
        and own.digest == other.digest
        or own.rows[0].tolist() == other.rows[0].tolist()
    )


def test_english_trained_on_afterwards_moves_and_acquirers_do_not(bench, monkeypatch):
    asked = []  # it wants all pictures of train, whose encoding takes a minute: 40 of them do for three steps
    few = lambda count, seed: asked.append(count) or MlaBench.captioned(bench, 40, seed)  # noqa: E731
    before = bench.train(ARM, 0)
    monkeypatch.setattr(bench, "captioned", few)
    after = bench.train(replace(ARM, afterwards=3), 0)
    assert asked == [toyworld.COUNTS["train"]]
    assert all(torch.equal(v, states(before.acquirers)[k]) for k, v in states(after.acquirers).items())
    assert not torch.equal(said(before, bench, "en"), said(after, bench, "en"))
    assert not torch.equal(said(before, bench, "zh", "红色的圆形。"), said(after, bench, "zh", "红色的圆形。"))


def test_wrong_captions_stand_beside_the_right_ones(bench):
    data = bench.captioned(30, 0)
    batch = data.batch(torch.arange(5))
    assert batch["seen"].shape[0] == 5 and len(batch["ids"]) == 5 * 3
    rows = [row[row != 0].tolist() for row in batch["ids"]]
    own, wrong = rows[:5], rows[5:]
    assert all(own[i] not in wrong[2 * i : 2 * i + 2] for i in range(5))
    train = toyworld.split_scenes("train")[:30]
    for scene in train:  # nothing that a split holds out is ever told, not even as wrong
        assert all(
            split_of(other) == "train" for other in draw_neighbours(scene, np.random.default_rng(0), choice.WRONG)
        )
    told = [exchanges.caption(o, "en") for s in train for o in one_off(s) if split_of(o) == "train"]
    known = {tuple(ids) for ids in bench.ids(told, "toy-en")}
    assert all(tuple(row.tolist()) in known for few in data.rows for row in few[1:])


def test_the_common_task_is_scored_picture_by_picture(bench, monkeypatch):
    class Knows:
        name = "knows"

        def eval(self):
            return self

    def fits(recipe, seen, captions, language):
        return np.tile(np.arange(10)[::-1].astype(float), (len(captions), 1))

    monkeypatch.setattr(bench, "fits", fits)
    rows = bench.test(Knows(), 0, "val", ("en", "de"), choice.LOOKS, count=30)
    assert len(rows) == 2 * 3 * 30 and (rows["choice"] == 1).all() and (rows["hard"] == 1).all()
    assert {"seed", "lm", "lm_seed", "look", "language", "item", "concept"} <= set(rows)
    assert bench.languages(bench.train(ARM, 0)) == ["en", "de", "zh"]


def test_nonsense_is_refused(bench):
    for wrong in ({"languages": ("en",)}, {"languages": ("xx",)}, {"parallel": 10**6}):
        with pytest.raises(UserError):
            Acquiring(**wrong)
    for options in ({"learns": "nothing"}, {"transfer": "hope"}, {"order": "rest"}):
        with pytest.raises(UserError):
            Mla(bench.dual(ARM, 0), ("de",), torch.randn(20, 128), MlaOptions(**options))
    with pytest.raises(UserError, match="acquired language"):
        said(bench.train(ARM, 0), bench, "sw")
    with pytest.raises(UserError, match="way to look"):
        bench.looked("val", 10, "sideways")


def test_its_fidelity_table_is_read_off_the_recipe(bench):
    rows = views.build_fidelity_table(bench.train(ARM, 0))
    assert len(rows) >= 9 and all(row.part and row.paper and row.here and row.why for row in rows)
    assert not any("[M]" in row.paper for row in rows) and any(
        "3 steps" in row.here or "2 steps" in row.here for row in rows
    )
