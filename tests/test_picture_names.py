"""MPM chat on real pictures, small: a language model that reads names, a connector on English ones, scores, baselines."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from worlds import own_home

from mpm_lite import UserError
from mpm_lite.claims import comparisons
from mpm_lite.cli import main
from mpm_lite.data import is_available, load_captions, names
from mpm_lite.experiments import picture_names, system
from mpm_lite.towers.feature_cache import pooled

TINY = {"steps": 4, "batch": 8, "queries": 4, "width": 32, "heads": 2, "layers": 1, "bf16": False}
ARM = picture_names.Naming(text="minilm-en", image="toy", sets=("emoji",), reading=TINY, options=TINY)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Models of these tests lie nowhere else; features may be shared."""
    own = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        own_home(patch, own)
        patch.setattr(picture_names, "DOCUMENTS", 2_000)
        # The encoder reads every name before the language model learns one: those of a split's first hundred pictures will do.
        first = lambda *asked: load_captions(*asked).take(np.arange(100))  # noqa: E731
        patch.setattr(names, "load_captions", first)
        names.read_names.cache_clear()
        yield own
        names.read_names.cache_clear()


@pytest.fixture(scope="module")
def bench(home):
    return picture_names.NameBench("toy", progress=False)


@pytest.fixture(scope="module")
def recipe(bench):
    return bench.train(ARM, 1)


def test_what_reads_names_is_trained_once_and_kept(bench, recipe, home):
    kept = list((home / "names").glob("*.safetensors"))
    assert len(kept) == 1 and recipe.lm.name == "names:1"
    assert recipe.lm.decode(recipe.lm.encode(["peti mati\n棺桶"], special=False)) == ["peti mati\n棺桶"]
    stamp = kept[0].stat().st_mtime_ns
    again = picture_names.train_reader(ARM, 1, progress=False)
    assert kept[0].stat().st_mtime_ns == stamp
    same = zip(again.visual.parameters(), recipe.visual["read"].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    picture_names.train_reader(ARM, 2, progress=False)
    assert len(list((home / "names").glob("*.safetensors"))) == 2


def test_only_what_turns_a_picture_into_a_vector_learns_to_see(bench, recipe):
    before = picture_names.train_reader(ARM, 1, progress=False)
    stages = recipe.stages()
    assert [s.learns for s in stages] == [("visual.see",)] and "language model" in stages[0].frozen
    assert all(torch.equal(a, b) for a, b in zip(before.decoder.parameters(), recipe.decoder.parameters(), strict=True))
    torch.manual_seed(1)
    fresh = picture_names.SeeNames(before, 64, ARM.recipe_options)
    assert fresh.see(torch.randn(3, 16, 64)).shape == (3, 4, recipe.lm.width)


def test_scores_of_every_look_and_of_the_nearest_picture(bench, recipe):
    items = bench.test(recipe, 1, "val", ("emoji",), ("en", "de"))
    assert set(items["look"]) == {*picture_names.LOOKS, picture_names.NEAREST} and set(items["language"]) == {
        "en",
        "de",
    }
    assert len(items) == 4 * 2 * len(load_captions("emoji", "val")) and (items["lm_seed"] == 1).all()
    assert items[list(picture_names.METRICS)].stack().between(0, 1).all()
    blind = items[(items["look"] == "blind") & (items["language"] == "de")]
    assert blind["said"].nunique() == 1, "one picture for all: one reply"
    near = items[items["look"] == picture_names.NEAREST]
    train = [load_captions(one, "train", "all").captions["de"] for one in picture_names.TESTED if is_available(one)]
    assert set(near[near["language"] == "de"]["said"]) <= {name for of in train for name in of}
    assert near[near["language"] == "en"]["choice"].mean() > 0.1, "the nearest picture's name is better than a coin"
    shown = picture_names.name_table(items, draws=50)
    assert len(shown) == 2 * 3 and {"real", "blind", "shuffled", "nearest", "rho", "rho_low", "n"} <= set(shown)
    english = shown[(shown["language"] == "en") & (shown["metric"] == "chrf")].iloc[0]
    own = items[(items["language"] == "en") & (items["look"] == "real")]
    assert np.isclose(english["real"], own["chrf"].mean()) and english["n"] == len(own)


def test_candidates_hold_the_right_name_once_and_repeat():
    gold = ["red star", "Red star.", "moon", "sun", "rain", "snow", "wind", "tree", "leaf", "root", "bark", "bird"]
    few = picture_names.draw_candidates(gold, 3)
    assert few == picture_names.draw_candidates(gold, 3) != picture_names.draw_candidates(gold, 4)
    for i, each in enumerate(few):
        assert (
            len(each) == 10 == len(set(each))
            and [picture_names.normalise_name(gold[k]) for k in each].count(picture_names.normalise_name(gold[i])) == 1
        )
    assert (
        picture_names.normalise_name("Le  chat !")
        == picture_names.normalise_name("le chat")
        != picture_names.normalise_name("le chien")
    )
    assert (
        picture_names.chrf("moon", "moon")
        == 1.0
        > picture_names.chrf("noon", "moon")
        > picture_names.chrf("tree", "moon")
    )


def test_a_square_of_patches_is_averaged():
    patches = np.arange(2 * 64 * 3, dtype=np.float32).reshape(2, 64, 3)
    few = pooled(patches, 4)
    assert few.shape == (2, 16, 3) and np.allclose(few[:, 0], patches[:, [0, 1, 8, 9]].mean(1))
    assert pooled(patches, None) is patches
    with pytest.raises(UserError, match="no square"):
        pooled(patches[:, :60], 4)


def test_a_run_is_written_and_resumes(bench, home, tmp_path, monkeypatch):
    monkeypatch.setattr(picture_names.Naming, "bench", lambda self, progress=True: bench)
    monkeypatch.setattr(system, "_BENCH", {})
    monkeypatch.setattr(picture_names, "TESTED", ("emoji",))
    monkeypatch.setattr(bench, "test", lambda *a, **k: naming_items())
    study = replace(comparisons.NAMES, arms={"mpm": ARM}, first=1)
    files = study.run(tmp_path, 1, "val")
    assert [p.name for p in files] == ["names.csv", "names-said.csv", "names.json"]
    card = json.loads(files[2].read_text())
    assert card["seeds"] == [1] and card["pairs"] == len(load_captions("emoji", "train")) and card["split"] == "val"
    monkeypatch.setattr(bench, "train", lambda *a: pytest.fail("it was tested before"))
    assert study.run(tmp_path, 1, "val") == files
    assert "stamps" not in files[1].read_text()


def naming_items():
    rng = np.random.default_rng(0)
    rows = [
        {"set": one, "look": look, "language": code, "item": f"{one}/{i}", "concept": f"c{i}", "seed": 1, "lm_seed": 1,
         "gold": "a", "said": "b", "picked": "a", **{m: float(rng.random() < 0.6) for m in picture_names.METRICS}}
        for one in ("emoji", "stamps") for look in (*picture_names.LOOKS, picture_names.NEAREST) for code in ("en", "de") for i in range(30)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_mistakes_are_said(bench, recipe, capsys):
    with pytest.raises(UserError, match="Unknown way to look 'sidewise'"):
        bench.test(recipe, 1, "val", looks=("sidewise",))
    with pytest.raises(UserError, match="None of emoji has 9999 names"):
        bench.test(recipe, 1, "val", ("emoji",), fewest=9999)
    with pytest.raises(UserError, match="stepz"):
        picture_names.Naming(reading={"stepz": 3}).reading_options  # noqa: B018
    assert main.main(["run", "mpm_names", "--set", "stepz=3"]) == 2
    assert "Unknown setting 'stepz'" in capsys.readouterr().err
