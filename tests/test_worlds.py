"""MLA and its rivals on real pictures, few of them: compact vocabularies, what is learned from, how a test is made."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from need import require

from mpm_lite import UserError
from mpm_lite.claims import comparisons as compared
from mpm_lite.claims.comparisons import TABLE, Competitor
from mpm_lite.core import runtime, store
from mpm_lite.data import load_captions
from mpm_lite.experiments import real_pictures
from mpm_lite.experiments.experiment import text_tower
from mpm_lite.experiments.m3p import REAL_M3P, M3pBench, Matching
from mpm_lite.experiments.mla import ENGLISH, MULTILINGUAL, Acquiring, MlaBench
from mpm_lite.experiments.real_pictures import DUAL, LANGUAGES, REAL, RealWorld, imagenet_classes
from mpm_lite.experiments.rivals import Pairing, RivalBench
from mpm_lite.recipes.m3p import FINE, PRETRAIN
from mpm_lite.report import readme, systems
from mpm_lite.towers.text import padded

SHORT = DUAL | {"steps": 2, "batch": 8, "bf16": False}
ARM = REAL | {
    "languages": ("de", "zh"), "english_options": SHORT,
    "options": {"bottleneck": 8, "transfer_steps": 2, "exposure_steps": 1, "batch": 8},
}  # fmt: skip
ONE_STEP = {"text_steps": 0, "steps": 1, "batch": 4, "captions": 3, "bf16": False}  # of M3P


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The same sets, 40 pictures a split."""
    require("stamps")
    home, fetched = tmp_path_factory.mktemp("home"), runtime.home() / "data"
    if fetched.is_dir():  # else they came with the system
        (home / "data").symlink_to(fetched)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPM_LITE_HOME", str(home))
        patch.setattr(
            real_pictures, "real_captions", cache(lambda split: load_captions("stamps", split, ("en", *LANGUAGES), 40))
        )
        patch.setattr(real_pictures, "ENOUGH", 20)
        real_pictures.real_encoder.cache_clear()
        real_pictures.world_mark.cache_clear()
        imagenet_classes.cache_clear()
        yield
        imagenet_classes.cache_clear()
        real_pictures.real_encoder.cache_clear()
        real_pictures.world_mark.cache_clear()


@pytest.fixture(scope="module")
def bench(few):
    return MlaBench(False, RealWorld(False))


@pytest.mark.parametrize("name", [ENGLISH, MULTILINGUAL])
def test_a_compact_vocabulary_reads_as_the_whole_one(few, name):
    tower, encoder = text_tower("minilm-en" if name == ENGLISH else "e5-small", "cpu"), real_pictures.real_encoder(name)
    texts = list(real_pictures.real_captions("test").captions["en"])[:5]
    ids = padded(encoder.tokenizer(texts)["input_ids"])
    assert ids.max() <= len(encoder.tokenizer.used) < 5_000
    with torch.no_grad():
        states = encoder.model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    wanted, mask = tower.tokens(texts)
    assert np.array_equal(mask, (ids != 0).numpy())
    np.testing.assert_allclose(states.numpy()[mask], wanted[mask], atol=2e-4)


def test_languages_are_acquired_beside_english_and_asked_on_held_out_stamps(bench):
    recipe = bench.train(Acquiring(**ARM), 0)
    assert recipe.trainable < sum(p.numel() for p in recipe.parameters())
    rows = bench.test(recipe, 0, "val")
    assert set(rows["look"]) == {"real", "blind"} and {"en", "de", "zh"} <= set(rows["language"])
    there = rows[rows["language"] == "zh"].groupby("look")["recall"].apply(lambda x: x.notna().sum())
    assert (there == sum(map(bool, real_pictures.real_captions("val").captions["zh"]))).all()
    assert rows["recall"].dropna().between(0, 1).all() and rows["choice"].dropna().between(0, 1).all()
    again = bench.train(Acquiring(**ARM), 0)
    assert rows.equals(bench.test(again, 0, "val"))


def test_what_a_language_learns_from_is_the_same_pictures_captions(bench):
    said = bench.world.captions(("de", "zh"), 30, 0.0, 0)
    many = real_pictures.real_captions("train").captions
    assert all(text == many[code][i] for text, code, i in zip(*said, strict=True)) and max(said.of) < 30
    english = bench.dual(Acquiring(**ARM), 0)
    said, near = bench.translated(english, ("de",), 10, 0.0, 0)
    assert len(near) == 10 and torch.allclose(near[3], bench.vectors(english, [many["en"][3]])[0], atol=1e-5)


def test_behind_a_perfect_translator_a_language_scores_as_english(few):
    bench = RivalBench(False, RealWorld(False))
    arm = Pairing("translate-test", LANGUAGES, world="real", pairs=40, options=SHORT)
    rows = bench.test(bench.train(arm, 0), 0, "val", languages=("en", "de"), looks=("real",))
    both = rows.pivot(index="item", columns="language", values="recall").dropna()
    assert len(both) > 20 and (both["en"] == both["de"]).mean() > 0.9
    floor = Pairing("untranslated", LANGUAGES, world="real", pairs=40, options=SHORT)
    rows = bench.test(bench.train(floor, 0), 0, "val", languages=("en", "de"), looks=("real",))
    other = rows.pivot(index="item", columns="language", values="recall").dropna()
    assert other["en"].equals(both["en"]) and not other["de"].equals(both["de"])


def test_captions_of_all_languages_are_paired_where_a_picture_has_any(few):
    bench = RivalBench(False, RealWorld(False))
    data = bench._captions(Pairing("in-language", ("zh",), world="real", pairs=40, noise=0.0), 0)
    assert len(data) == sum(map(bool, real_pictures.real_captions("train").captions["zh"]))


def test_a_frozen_encoder_reads_each_caption_once_and_what_learns_sees_no_difference(bench):
    dual = bench.dual(Acquiring(**ARM), 0)
    data, which = bench.captioned(40, 0), torch.arange(9)
    ids, read = data.batch(which), data.read_by(dual).batch(which)
    assert "ids" not in read and read["read"].shape == (9, dual.encoder.config.hidden_size)
    found = {}
    for name, batch in (("ids", ids), ("read", read)):
        dual.zero_grad()
        dual.loss(batch).backward()
        found[name] = [dual.loss(batch).detach(), dual.text_head.weight.grad.clone()]
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_both_looks_and_scores_read_a_caption_once(bench, monkeypatch):
    recipe, read = bench.dual(Acquiring(**ARM), 0), []
    ids_for = MlaBench.ids_for
    monkeypatch.setattr(
        MlaBench, "ids_for", lambda self, r, said, code: read.extend(said) or ids_for(self, r, said, code)
    )
    rows = bench.choose(recipe, 0, "val", languages=("en",))
    assert (
        len(read) == len(set(read)) == len(set(real_pictures.real_captions("val").captions["en"]))
        and bench._read is None
    )
    one = bench.choose(recipe, 0, "val", languages=("en",), looks=("real",))
    assert one.equals(rows[rows["look"] == "real"])


def test_m3p_reads_names_and_regions_with_e5s_lower_layers(few):
    bench = M3pBench(False, RealWorld(False))
    arm = Matching(**REAL_M3P | {"fine": (), "options": ONE_STEP})
    data = bench.data(arm, PRETRAIN, 0)
    batch = data.batch(torch.arange(4))
    own = real_pictures.real_captions("train").captions["en"]
    assert any(data.told(i, np.random.default_rng(i))[0] != own[i] for i in range(40))  # switched
    plain = bench.data(replace(arm, switch=None), PRETRAIN, 0).told(3, np.random.default_rng(1))
    assert plain[0] == own[3] and own[3] not in plain[1:] and set(plain[1:]) <= set(own)
    assert batch["match_ids"].shape[:2] == (4, 3) and 1 <= batch["classes"].min() <= batch["classes"].max() <= 1000
    special = data.reads.special
    assert not torch.isin(batch["ids"][batch["words_asked"]], special).any() and len(special) >= 3
    recipe = bench.train(arm, 0)
    assert len(recipe.encoder.encoder.layer) == REAL_M3P["layers"] == 4
    rows = bench.test(recipe, 0, "val", languages=("en", "de"), looks=("real",))
    assert rows["recall"].isna().all() and rows["choice"].notna().any()


def test_m3p_tells_names_of_one_collection_apart_where_it_has_several(few, monkeypatch):
    both = load_captions("emoji+stamps", "train", ("en", *LANGUAGES), 60)
    monkeypatch.setattr(real_pictures, "real_captions", lambda split: both)
    monkeypatch.setattr(RealWorld, "seen", lambda self, split, count=None, first=0: torch.zeros(len(both), 9, 1280))
    monkeypatch.setattr(real_pictures, "imagenet_classes", lambda: torch.ones(len(both), 9, dtype=torch.long))
    arm = Matching(**REAL_M3P | {"switch": None, "options": ONE_STEP | {"fine_steps": 1}})
    told, own = M3pBench(False, RealWorld(False)).data(arm, FINE, 0).told, both.captions["en"]
    of = [part.name for part, indices in both.parts for _ in indices]
    said = {name: {text for text, part in zip(own, of, strict=True) if part == name} for name in of}
    emoji, stamps = said.values()
    assert not emoji & stamps
    for i, name in enumerate(of):
        first, *others = told(i, np.random.default_rng(i))
        assert first == own[i] and set(others) <= said[name] - {first}


def test_m3ps_regions_start_near_their_pictures_names(few):
    bench, arm = M3pBench(False, RealWorld(False)), Matching(**REAL_M3P | {"fine": (), "options": ONE_STEP})
    torch.manual_seed(0)
    recipe = bench.untrained(arm.recipe_options, arm.layers)
    seen, ids = bench.seen("train").float(), bench.reads.encode(real_pictures.real_captions("train").captions["en"])
    told = ~torch.isin(ids, bench.reads.special)[..., None]

    def rank():
        """The share of names that are farther from a picture than its own: a half by chance."""
        with torch.no_grad():
            names = (recipe.words(ids) * told).sum(1) / told.sum(1)
            of = recipe.region(seen).mean(1)
            near = F.normalize(of - of.mean(0), dim=1) @ F.normalize(names - names.mean(0), dim=1).T
        return (near < near.diagonal()[:, None]).float().mean()

    before, encoder = rank(), [v.clone() for v in recipe.encoder.parameters()]
    bench.begin(recipe, arm)
    assert rank() > 0.9 > 0.7 > before
    assert all(torch.equal(a, b) for a, b in zip(encoder, recipe.encoder.parameters(), strict=True))
    assert not recipe.box.weight.any() and recipe.region.weight.abs().sum() > 0


def test_m3p_is_fine_tuned_in_english_on_switched_names_after_pretraining(few):
    bench = M3pBench(False, RealWorld(False))
    arm = Matching(**REAL_M3P | {"fine": (), "options": ONE_STEP})
    tuned = replace(arm, fine=("en",), options=ONE_STEP | {"fine_steps": 1})
    data = bench.data(tuned, FINE, 0)
    own = real_pictures.real_captions("train").captions["en"]
    assert any(data.told(i, np.random.default_rng(i))[0] != own[i] for i in range(40))
    assert set(data.batch(torch.arange(4))) == {"match_seen", "match_ids"}  # matching alone
    with store.collect_weights() as opened:
        before, after = bench.train(arm, 0).state_dict(), bench.train(tuned, 0).state_dict()
    assert len({path for path, _ in opened}) == 2 and not torch.equal(before["match.0.weight"], after["match.0.weight"])
    assert torch.equal(before["bias"], after["bias"])  # fine-tuning asks no words
    for wrong in ({"fine": ("de",)}, {"shuffled": True}, {"pictures": False}):
        with pytest.raises(UserError, match="own English captions"):
            bench.train(replace(tuned, **wrong), 0)


def test_the_comparison_on_real_pictures_is_written_and_read_back(few, tmp_path, monkeypatch):
    monkeypatch.setattr(
        real_pictures, "LANGUAGES", ("de", "zh")
    )  # M3P reads ten captions beside each picture in every language
    arm = Pairing("translate-train", LANGUAGES, world="real", pairs=40, noise=0.0, options=SHORT)
    m3p = Matching(**REAL_M3P | {"fine": (), "pairs": 40, "options": ONE_STEP})
    small = {
        "M3P": Competitor({TABLE: m3p}),
        "MLA": Competitor({TABLE: Acquiring(**ARM)}),
        "all": Competitor({TABLE: arm}),
    }
    monkeypatch.setattr(compared, "REAL_COMPETITORS", small)
    run = lambda: compared.compare_real(tmp_path, seeds=2, split="val")  # noqa: E731
    run()
    rows = pd.read_csv(tmp_path / "head-to-head-real.csv")
    assert set(rows["system"]) == set(small) and set(rows["metric"]) == {"recall", "choice"}
    assert {"en", "others", "de", "zh"} <= set(rows["language"]) and rows["value"].between(0, 1).all()
    monkeypatch.setattr(systems, "has_table", lambda name: name == systems.REAL)
    monkeypatch.setattr(systems, "read_table", lambda name: pd.read_csv(tmp_path / f"{name}.csv"))
    monkeypatch.setattr(systems, "read_card", lambda name: json.loads((tmp_path / f"{name}.json").read_text()))
    block = readme.render_page("assets/results/systems.md")
    assert "| MLA | " in block and "head_to_head_real --seeds 2" in block
    assert "| M3P | - | - | - | " in block  # it chooses, and retrieves nothing
    monkeypatch.setattr(MlaBench, "train", None)  # read back
    run()
    assert pd.read_csv(tmp_path / "head-to-head-real.csv").equals(rows)


def test_what_real_pictures_lack_is_said(bench):
    with pytest.raises(UserError, match="people's"):
        bench.world.captions(("de",), 10, 0.1, 0)
    with pytest.raises(UserError, match="real language 'sw'"):
        Acquiring(languages=("sw",), world="real")
    with pytest.raises(UserError, match="Unknown world 'moon'"):
        Pairing(world="moon")
