"""M3P, small: streams, tasks, masking, code-switched data, regimes of fine-tuning, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from worlds import own_home

from mpm_lite import UserError
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import exchanges, grammar
from mpm_lite.data.toyworld.scenes import one_off, split_of
from mpm_lite.experiments import m3p
from mpm_lite.experiments.m3p import M3pBench, Matching, Streams
from mpm_lite.recipes import m3p as method
from mpm_lite.recipes.m3p import FINE, PRETRAIN, TEXT, M3p, M3pOptions, draw_hidden, grid_boxes
from mpm_lite.teaching import views
from mpm_lite.training import loop

FEW = {"text_steps": 3, "steps": 3, "batch": 6, "bf16": False}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        own_home(patch, tmp_path_factory.mktemp("home"))
        patch.setattr(m3p, "SENTENCES", 200)
        yield M3pBench(progress=False)


@pytest.fixture(scope="module")
def recipe(bench):
    torch.manual_seed(0)
    return bench.untrained(M3pOptions(**FEW)).eval()


def batch(bench, arm=Matching(pairs=50, options=FEW), stage=PRETRAIN, seed=0):
    return bench.data(arm, stage, seed).batch(torch.arange(6))


def test_words_see_the_picture_and_padding_is_not_seen(bench, recipe):
    seen, ids = bench.seen("val", 4).float(), m3p.encoded(["A red circle."] * 4)
    alone = recipe.matching(seen, ids)
    assert alone.shape == (4,) and len(alone.unique()) == 4
    longer = recipe.matching(seen, F.pad(ids, (0, 5)))
    torch.testing.assert_close(longer, alone, atol=1e-5, rtol=1e-5)
    states = recipe.stream(recipe.words(ids), ids != 0)
    assert states.shape == (4, 1 + ids.shape[1], 128)


def test_captions_of_like_length_are_read_together_and_nothing_else_changes(bench, recipe, monkeypatch):
    texts = [
        "A red circle.",
        "A small red circle.",
        "A blue star.",
        "From left to right: a red circle, a blue star.",
        "A",
    ]
    seen, ids = bench.seen("val", 5).float(), m3p.encoded(texts)
    parts = recipe.matching(seen, ids)
    monkeypatch.setattr(method, "LENGTHS", 1)
    torch.testing.assert_close(parts, recipe.matching(seen, ids), atol=1e-5, rtol=1e-5)
    one = recipe.matching(seen[3:4], ids[3:4])
    torch.testing.assert_close(parts[3:4], one, atol=1e-5, rtol=1e-5)


def test_regions_have_boxes_and_hidden_ones_lose_all_but_theirs(recipe):
    boxes = grid_boxes(9)
    assert boxes.shape == (9, 5) and torch.allclose(boxes[:, 4].sum(), torch.tensor(1.0))
    assert boxes[4, :4].tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    seen, hidden = torch.randn(2, 9, 128), torch.zeros(2, 9, dtype=torch.bool)
    hidden[:, 4] = True
    with torch.no_grad():
        shown, other = recipe.regions(seen, hidden), recipe.regions(seen + hidden[..., None], hidden)
    assert torch.equal(shown, other) and torch.equal(shown[0, 4], shown[1, 4])
    assert not torch.equal(shown[0, 3], shown[1, 3])


def test_every_task_has_a_gradient_and_a_sample_hides_words_or_regions(bench, recipe):
    found = batch(bench)
    both = found["words_asked"].any(1) & found["regions_asked"].any(1)
    assert not both.any() and found["words_asked"].any(1).sum() == 3 == found["regions_asked"].any(1).sum()
    assert (found["classes"][found["regions_asked"]] > 0).all()  # as a detector's regions do, they hold something
    assert found["match_ids"].shape[:2] == (6, M3pOptions().captions) and found["text"].shape[0] == 6
    recipe.zero_grad()
    recipe.loss(found).backward()
    for name in ("first", "gone", "region.weight", "box.weight", "bias", "regress.weight", "classify.weight"):
        assert recipe.get_parameter(name).grad.abs().sum() > 0, name
    assert recipe.match[2].weight.grad.abs().sum() > 0
    recipe.zero_grad()


def test_masking_asks_about_the_share_and_never_about_padding():
    ids = torch.randint(0, 8, (400, 20), generator=torch.Generator().manual_seed(0))
    asked = draw_hidden(ids.shape, 0.15, ids > 3, torch.Generator().manual_seed(1))
    assert not (asked & (ids <= 3)).any() and asked.any(1).all()
    assert 0.13 < asked[ids > 3].float().mean() < 0.2
    nothing = draw_hidden((2, 4), 0.5, torch.zeros(2, 4, dtype=torch.bool), torch.Generator().manual_seed(1))
    assert not nothing.any()


def test_matching_learns_from_its_own_caption_against_others(bench):
    data = bench.data(Matching(switch=None, pairs=50, options=FEW), PRETRAIN, 0)
    scene = toyworld.split_scenes("train")[0]
    own, *rest = data.told(0, np.random.default_rng(0))
    assert own == exchanges.caption(scene, "en") and len({own, *rest}) == 6
    near = {exchanges.caption(s, "en") for s in one_off(scene) if split_of(s) == "train"}
    assert [one in near for one in rest] == [False] * 3 + [True] * 2


def test_matching_among_captions_or_each_by_itself(bench):
    seen, ids = torch.randn(2, 9, 128), torch.randint(4, 90, (2, 4, 6))
    torch.manual_seed(0)
    among = bench.untrained(M3pOptions())
    torch.manual_seed(0)
    alone = bench.untrained(M3pOptions(matching="binary"))
    with torch.no_grad():
        logits = among.matching(seen.repeat_interleave(4, 0), ids.flatten(0, 1)).view(2, 4)
        assert float(among.told_apart(seen, ids)) == pytest.approx(float(-logits.log_softmax(1)[:, 0].mean()), abs=1e-5)
        each = torch.cat([F.softplus(-logits[:, :1]), F.softplus(logits[:, 1:])], dim=1).mean()
        assert float(alone.told_apart(seen, ids)) == pytest.approx(float(each), abs=1e-5)
    with pytest.raises(UserError, match="way to match"):
        bench.untrained(M3pOptions(matching="perhaps"))


def test_switched_captions_are_foreign_with_pictures_or_as_text(bench):
    english = set(range(1705)) & {i for s in toyworld.split_scenes("train")[:50]
                                  for i in m3p.tokenizer()(exchanges.caption(s, "en"))["input_ids"]}  # fmt: skip
    foreign = lambda ids: len(set(ids.unique().tolist()) - english)  # noqa: E731
    plain = batch(bench, Matching(switch=None, pairs=50, options=FEW))
    switched = batch(bench, Matching(pairs=50, options=FEW))
    assert foreign(switched["ids"]) > 5 > foreign(plain["ids"])
    apart = bench.data(Matching(pictures=False, pairs=50, options=FEW), PRETRAIN, 0)
    assert foreign(apart.batch(torch.arange(6))["ids"]) < 5 and len(apart.text) == 200 + 50
    assert all(told.isascii() for told in apart.told(0, np.random.default_rng(0)))
    assert any(not text.isascii() for text in apart.text[200:])


def test_text_follows_zipf_to_the_power_of_alpha(bench):
    def count(alpha):
        return sum(text.isascii() and grammar.parse(text, "en") is not None
                   for text in bench.world.sentences(300, alpha, 0))  # fmt: skip

    assert count(0.0) < 60 < count(1.0)


def test_arms_share_text_and_pretraining_and_fine_tuning_goes_on_from_it(bench, monkeypatch):
    stages = []
    whole = M3pBench.data
    monkeypatch.setattr(
        M3pBench, "data", lambda self, arm, stage, seed: stages.append(stage) or whole(self, arm, stage, seed)
    )
    arm = Matching(pairs=50, options=FEW)
    first = bench.train(arm, 0)
    bench.train(replace(arm, switch=None), 0)
    fine = replace(arm, fine=("zh",), options=FEW | {"fine_steps": 2})
    later = bench.train(fine, 0)
    assert stages == [TEXT, PRETRAIN, PRETRAIN, FINE]
    # Rates of fine-tuning are not among what came before it.
    bench.train(replace(fine, options=fine.options | {"fine_lr": 1e-3, "slower": 0.1}), 0)
    assert stages[4:] == [FINE]
    a, b = first.state_dict(), later.state_dict()
    assert not torch.equal(a["match.0.weight"], b["match.0.weight"])
    again = bench.train(arm, 0)
    assert all(torch.equal(v, a[k]) for k, v in again.state_dict().items()) and len(stages) == 5
    chinese = whole(bench, fine, FINE, 0).batch(torch.arange(3))
    assert set(chinese) == {"match_seen", "match_ids"}
    strange = whole(bench, replace(fine, shuffled=True), FINE, 0).batch(torch.arange(3))
    assert torch.equal(strange["match_ids"], chinese["match_ids"])
    assert not torch.equal(strange["match_seen"], chinese["match_seen"])


def test_in_fine_tuning_the_encoder_may_learn_slower_than_its_heads(bench):
    recipe = bench.untrained(M3pOptions(text_steps=0, fine_steps=1, slower=0.0))
    data = bench.data(Matching(pairs=50, fine=("en",), options=FEW | {"fine_steps": 1}), FINE, 0)
    pretraining, fine = recipe.stages()
    assert not pretraining.faster and dict(fine.faster) == {"encoder": 0.0}
    recipe.options = replace(recipe.options, steps=0)
    before = {k: v.clone() for k, v in recipe.state_dict().items()}
    loop.fit(recipe, data)
    moved = {k.split(".")[0] for k, v in recipe.state_dict().items() if not torch.equal(v, before[k])}
    assert "encoder" not in moved and {"first", "region", "match"} <= moved


def test_a_caption_in_the_pictures_place_is_refused(bench, recipe):
    with pytest.raises(UserError, match="no way to read a caption in the picture's place"):
        bench.test(recipe, 0, "val", ("en",), ("english",), count=30)


def test_the_common_task_ranks_by_matching_logits(bench, recipe):
    rows = bench.test(recipe, 0, "val", ("en", "zh"), ("real", "blind"), count=40)
    assert len(rows) == 2 * 2 * 40 and rows["choice"].between(0, 1).all()
    seen, told = (
        bench.looked("val", 3, "real"),
        exchanges.write_candidates(exchanges.draw_candidates(toyworld.split_scenes("val")[:40])[:3], "en"),
    )
    fits = bench.fits(recipe, seen, told, "en")
    with torch.no_grad():
        one = recipe.predict({"seen": seen[1:2], "ids": m3p.encoded([told[1][4]])})["match"]
    assert fits.shape == (3, 10) and fits[1, 4] == pytest.approx(float(one), abs=1e-4)


def test_nonsense_is_refused(bench):
    for wrong in (
        {"fine": ("en",)},
        {"pairs": 1},
        {"pictures": False, "switch": None},
        {"switch": {"words": 3.0}},
        {"shuffled": True},
    ):
        with pytest.raises(UserError):
            Matching(**wrong)
    with pytest.raises(UserError, match="matching needs"):
        M3p(bench.untrained(M3pOptions()).encoder, 128, 9, 57, M3pOptions(captions=1))
    with pytest.raises(UserError, match="square"):
        grid_boxes(8)


def test_streams_differ_in_their_digest(bench):
    arm = Matching(pairs=50, options=FEW)
    digests = {bench.data(a, PRETRAIN, s).digest for a, s in
               ((arm, 0), (arm, 1), (replace(arm, switch=None), 0), (replace(arm, switch={"dictionary": "random"}), 0))}  # fmt: skip
    assert len(digests) == 4 and isinstance(bench.data(arm, TEXT, 0), Streams)


def test_its_fidelity_table_is_read_off_the_recipe(bench, recipe):
    rows = views.build_fidelity_table(recipe)
    assert len(rows) >= 9 and all(row.part and row.paper and row.here and row.why for row in rows)
    assert not any("[M]" in row.paper for row in rows) and any(
        "3 steps" in row.here or "2 steps" in row.here for row in rows
    )
