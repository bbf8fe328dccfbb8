"""What is kept is found again by all that decides it: weights, data, settings and code; anything else is another run."""

import copy
import json
import os
import pickle
import shutil
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_experiment import PARTS, Smooth, made, made_experiment, world  # noqa: F401
from test_hypothesis import made as made_hypothesis
from test_towers_tiny import TEXTS, encoder, open_clip_model, pictures, vision

import mpm_lite as mpm
from mpm_lite.claims import ledger
from mpm_lite.cli import main
from mpm_lite.core import keys, runtime, store
from mpm_lite.core.keys import Key, OtherRun
from mpm_lite.core.runtime import UserError
from mpm_lite.data import CaptionSet, Part
from mpm_lite.experiments import experiment
from mpm_lite.experiments.system import Trial
from mpm_lite.recipes import Align
from mpm_lite.towers import catalogue
from mpm_lite.towers.feature_cache import image_features, text_features
from mpm_lite.towers.load import load_image_tower, load_text_tower


def small(**change):
    return made_experiment(**({"seeds": 1, "steps": 5} | change))


def test_equal_parts_give_an_equal_digest_and_the_key_can_be_read_back(tmp_path):
    key = Key("numbers", {"weights": "w", "data": ["a", b"b"], "text": "x" * 500})
    assert key.digest == Key("numbers", {"weights": "w", "data": ["a", b"b"], "text": "x" * 500}).digest
    assert key.digest != Key("numbers", {"weights": "v", "data": ["a", b"b"], "text": "x" * 500}).digest
    told = key.describe()
    assert told["parts"]["weights"] == "w" and told["parts"]["data"].startswith("2 parts, SHA-256")
    store.write_table(tmp_path / "t.parquet", pd.DataFrame({"x": [1]}), key)
    store.keep_weights(tmp_path / "w.safetensors", lambda work: {"w": torch.ones(1)}, key)
    for file in ("t.parquet", "w.safetensors"):
        assert keys.read_key(tmp_path / file) == json.loads(json.dumps(told))


# other weights, other data, other code


def test_a_sweep_does_not_return_the_results_of_other_weights(world):  # noqa: F811
    mpm.sweep(small(text=Smooth(name="mine")), out=world / "s", pairs=[20])
    with pytest.raises(OtherRun, match="weights of text"):
        mpm.sweep(small(text=Smooth(name="mine", seed=9)), out=world / "s", pairs=[20])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_sweep_does_not_return_the_results_of_other_pictures(world, split, monkeypatch):  # noqa: F811
    mpm.sweep(small(), out=world / "s", pairs=[20])
    monkeypatch.setitem(PARTS, split, made(split, len(PARTS[split]), 7))
    with pytest.raises(OtherRun, match=f"pictures and captions of {split}"):
        mpm.sweep(small(), out=world / "s", pairs=[20])


def test_two_towers_of_one_name_in_one_sweep_are_two_arms(world):  # noqa: F811
    towers = [Smooth(name="mine"), Smooth(name="mine", seed=9)]
    kept = mpm.sweep(small(steps=40), out=world / "s", text=towers)
    free = mpm.sweep(small(steps=40), text=towers)
    pd.testing.assert_frame_equal(kept.table, free.table)
    halves = [of["value"].to_numpy() for _, of in kept.table.groupby("text", sort=False)]
    assert len(halves) == 2 and not np.array_equal(*halves)
    assert list(dict.fromkeys(kept.table["text"])) == [f"mine@{tower.fingerprint[:8]}" for tower in towers]
    assert len(kept.retention()["text"].unique()) == 2
    with pytest.raises(UserError, match="twice"):
        mpm.sweep(small(), pairs=[20, 20])


RECIPE = """
from mpm_lite.recipes import Align
class Mine(Align):
    name = "mine"
    def loss(self, batch):
        return {factor} * super().loss(batch)
"""


def test_a_recipe_of_ones_own_is_known_by_its_code(world, monkeypatch):  # noqa: F811
    monkeypatch.syspath_prepend(world)

    def recipe(module, factor):
        (world / f"{module}.py").write_text(RECIPE.format(factor=factor))
        return __import__(module).Mine

    mpm.sweep(small(recipe=recipe("first", 1.0)), out=world / "s", pairs=[20])
    mpm.sweep(small(recipe=recipe("second", 1.0)), out=world / "s", pairs=[20])
    with pytest.raises(OtherRun, match="code"):
        mpm.sweep(small(recipe=recipe("third", 0.5)), out=world / "s", pairs=[20])
    space = {}
    exec(RECIPE.format(factor=1), space)
    assert len(small(recipe=space["Mine"]).run(progress=False).table)
    with pytest.raises(UserError, match="source of 'Mine' cannot be read"):
        mpm.sweep(small(recipe=space["Mine"]), out=world / "t", pairs=[20])


def test_a_function_that_was_edited_is_another_function(tmp_path):
    def table(n):
        return pd.DataFrame({"value": [n]})

    def edited(n):
        return pd.DataFrame({"value": [2 * n]})

    factor = 3

    def around(n):
        return pd.DataFrame({"value": [factor * n]})

    assert mpm.sweep(table, out=tmp_path / "a", n=[1, 2])["value"].tolist() == [1, 2]
    assert mpm.sweep(table, out=tmp_path / "a", n=[1, 2])["value"].tolist() == [1, 2]
    with pytest.raises(OtherRun, match="function"):
        mpm.sweep(edited, out=tmp_path / "a", n=[1, 2])
    assert mpm.sweep(around, out=tmp_path / "b", n=[1])["value"].tolist() == [3]
    factor = 4
    with pytest.raises(OtherRun, match="function"):
        mpm.sweep(around, out=tmp_path / "b", n=[1])


SCALE, AROUND = 1.0, {"factor": 1.0}


def scaled(x):
    return x * AROUND["factor"]


class Scaled(Align):
    name = "scaled"
    times = 1.0

    def loss(self, batch):
        return SCALE * self.times * super().loss(batch)


@pytest.mark.parametrize("place, name", [("module", "SCALE"), ("class", "times")])
def test_a_recipe_is_known_by_the_values_that_it_takes_from_around_it(world, monkeypatch, place, name):  # noqa: F811
    mpm.sweep(small(recipe=Scaled), out=world / "s", pairs=[20])
    mpm.sweep(small(recipe=Scaled), out=world / "s", pairs=[20])
    monkeypatch.setattr(Scaled if place == "class" else sys.modules[__name__], name, -1.0)
    with pytest.raises(OtherRun, match="code"):
        mpm.sweep(small(recipe=Scaled), out=world / "s", pairs=[20])


def test_a_function_is_known_by_its_defaults_its_settings_and_its_helpers(tmp_path, monkeypatch):
    def made(factor):
        def table(x, times=factor):
            return pd.DataFrame({"value": [scaled(x) * times]})

        return table

    assert mpm.sweep(made(1), out=tmp_path, x=[1])["value"].tolist() == [1]
    with pytest.raises(OtherRun, match="function"):
        mpm.sweep(made(2), out=tmp_path, x=[1])
    monkeypatch.setitem(AROUND, "factor", 2.0)
    with pytest.raises(OtherRun, match="function"):
        mpm.sweep(made(1), out=tmp_path, x=[1])


def test_a_method_of_an_object_is_not_kept(tmp_path):
    class Runner:
        def __init__(self, factor):
            self.factor = factor

        def table(self, x):
            return pd.DataFrame({"value": [self.factor * x]})

    assert mpm.sweep(Runner(2).table, x=[1])["value"].tolist() == [2]
    with pytest.raises(UserError, match="method of an object"):
        mpm.sweep(Runner(2).table, out=tmp_path, x=[1])


def two_sets():
    return [CaptionSet([(made("train", 5, start), np.arange(5))], ["en"]) for start in (0, 9)]


@pytest.mark.parametrize(
    "one, other",
    [
        (1, "1"),
        (np.zeros(3000), np.eye(1, 3000, 1500)[0]),
        (pd.DataFrame({"x": range(99)}), pd.DataFrame({"x": [*range(50), 0, *range(51, 99)]})),
        (SimpleNamespace(name="a", lr=1), SimpleNamespace(name="a", lr=2)),
        two_sets(),
    ],
    ids=["a number and its text", "long arrays", "long tables", "objects of one name", "caption sets of one size"],
)
def test_values_that_look_alike_are_told_apart(tmp_path, one, other):
    def table(x):
        return pd.DataFrame({"value": [0.0]})

    for _ in range(2):
        mpm.sweep(table, out=tmp_path, x=[one])
    with pytest.raises(OtherRun, match="x"):
        mpm.sweep(table, out=tmp_path, x=[other])


def test_a_value_without_bytes_is_refused_where_it_decides(tmp_path):
    def table(x):
        return pd.DataFrame({"value": [0.0]})

    with pytest.raises(UserError, match="type lock.*fingerprint"):
        mpm.sweep(table, out=tmp_path, x=[threading.Lock()])


def test_a_verdict_holds_for_what_it_was_registered_on(world, monkeypatch):  # noqa: F811
    one = made_hypothesis()
    one.register(world / "h")
    first = one.run(world / "h").verdict
    assert one.run(world / "h").verdict == first
    monkeypatch.setitem(PARTS, "test", made("test", 106, 7))
    for again in (one.run, one.register):
        with pytest.raises(UserError, match="registered on other weights or data"):
            again(world / "h")
    monkeypatch.undo()


def test_a_stopped_run_is_not_continued_on_other_validation_pictures(world, monkeypatch):  # noqa: F811
    small().run(out=world / "r", progress=False)
    monkeypatch.setitem(PARTS, "val", made("val", 30, 7))
    with pytest.raises(OtherRun, match="pictures and captions of val"):
        small().run(out=world / "r", progress=False)


# weights in a folder that is written again


def rewrite(folder, seed):
    """Put other weights into the folder, in files of the same names and sizes."""
    for file in folder.glob("*.safetensors"):
        weights, noise = load_file(file), torch.Generator().manual_seed(seed)
        save_file(
            {k: v + 0.3 * torch.randn(v.shape, generator=noise) for k, v in weights.items()}, file, {"format": "pt"}
        )


@pytest.mark.parametrize("kind", ["text", "image", "open_clip image", "open_clip text"])
def test_a_tower_whose_folder_was_written_again_is_another_tower(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))
    folder, first_weights = tmp_path / "tower", tmp_path / "first"
    if kind.startswith("open_clip"):
        open_clip_model(folder)
    elif kind == "text":
        encoder(folder)
    else:
        vision(folder, "vit")
    shutil.copytree(folder, first_weights)
    captions = {"en": TEXTS[:3], "de": TEXTS[2:]}
    part = Part("made/test", ["a", "b", "c"], captions, ["x", "y", "z"], lambda i: pictures(3, 256)[i])
    many = CaptionSet([(part, np.arange(3))], ["en", "de"])
    load = experiment.text_tower if kind.endswith("text") else experiment.image_tower

    def said(tower, language="en"):
        return text_features(many, language, tower) if kind.endswith("text") else image_features(many, tower)

    first = load(str(folder))
    before = said(first)
    rewrite(folder, 1)
    again = load(str(folder))
    assert again.fingerprint != first.fingerprint and load(str(folder)) is again
    after = said(again)
    assert not np.allclose(before, after)
    said(again, "de")
    shutil.rmtree(folder)
    shutil.copytree(first_weights, folder)
    back = load(str(folder))
    assert back.fingerprint == first.fingerprint and np.array_equal(said(back), before)
    direct = back.encode(many.captions["de"]) if kind.endswith("text") else before
    assert np.array_equal(said(back, "de"), direct), "nothing of the second weights is stored under the first ones' key"


def test_a_tower_that_was_trained_in_memory_is_another_tower(tmp_path, monkeypatch):
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))
    part = Part("made/test", ["a", "b", "c"], {"en": TEXTS[:3]}, ["x", "y", "z"], lambda i: pictures(3, 256)[i])
    many = CaptionSet([(part, np.arange(3))], ["en"])
    reads = load_text_tower(str(encoder(tmp_path / "text")))
    vision(tmp_path / "image", "vit")
    sees = load_image_tower(str(tmp_path / "image"))
    for tower, said in ((reads, lambda: text_features(many, "en", reads)), (sees, lambda: image_features(many, sees))):
        loaded, before = tower.fingerprint, said()
        copied = pickle.loads(pickle.dumps(copy.deepcopy(tower))) if tower is reads else copy.deepcopy(tower)
        assert copied.fingerprint == loaded == tower.fingerprint
        optimizer = torch.optim.SGD([p.requires_grad_(True) for p in tower.model.parameters()], lr=0.5)
        sum(p.square().sum() for p in tower.model.parameters()).backward()
        optimizer.step()
        assert tower.fingerprint != loaded and copied.fingerprint == loaded
        assert not np.allclose(before, said())


def by_data(tower):
    for weight in tower.model.parameters():
        weight.data.add_(0.3)


def by_other_data(tower):
    for weight in tower.model.parameters():
        weight.data = weight.data + 0.3 * torch.randn_like(weight)


def by_another_parameter(tower):
    table = tower.model.get_input_embeddings()
    table.weight = torch.nn.Parameter(table.weight.flip(0))


def by_assigned_weights(tower):
    weights = tower.model.state_dict()
    tower.model.load_state_dict({k: v + 0.3 if v.is_floating_point() else v for k, v in weights.items()}, assign=True)


def by_another_order(tower):
    layers = tower.model.encoder.layer
    layers[0], layers[1] = layers[1], layers[0]


CHANGES = {
    "in place through .data": by_data,
    "with other .data": by_other_data,
    "with another Parameter": by_another_parameter,
    "with assigned weights": by_assigned_weights,
    "with its layers in another order": by_another_order,
    "in half the bits": lambda tower: tower.model.half(),
    "with another prompt": lambda tower: setattr(tower, "prefix", "query: "),
    "with another length": lambda tower: setattr(tower, "max_tokens", 4),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tower_changed_in_memory_is_another_tower(change, tmp_path):
    tower = load_text_tower(str(encoder(tmp_path / "text")))
    loaded = tower.fingerprint
    before = tower.encode(TEXTS[:3])
    CHANGES[change](tower)
    assert not np.array_equal(tower.encode(TEXTS[:3]), before)
    changed = tower.fingerprint
    assert changed != loaded and pickle.loads(pickle.dumps(tower)).fingerprint == changed == tower.fingerprint


def test_random_vectors_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))
    tower = load_text_tower(str(encoder(tmp_path / "text")))
    part = Part("made/test", ["a"], {"en": TEXTS[:1]}, ["x"], lambda i: pictures(1, 256)[i])
    many = CaptionSet([(part, np.arange(1))], ["en"])
    tower.model.train()
    with pytest.raises(UserError, match=r"training mode.*eval\(\)"):
        text_features(many, "en", tower)
    tower.model.eval()
    assert np.array_equal(text_features(many, "en", tower), tower.encode(TEXTS[:1]))


def test_a_file_is_read_again_when_its_bytes_may_have_changed(tmp_path):
    file, old = tmp_path / "weights", 1_000_000_000
    file.write_bytes(b"one")
    os.utime(file, (old, old))
    first = keys.file_digest(file)
    file.write_bytes(b"two")
    os.utime(file, (old, old))  # the same name, size and time
    assert keys.file_digest(file) != first


# rows of claims


def test_rows_of_a_claim_stand_on_the_weights_of_their_language_models(tmp_path, monkeypatch):
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path))
    one = ledger.find_claim("C1a")
    arm = next(arm for arm in one.arms.values() if arm.lm == "toy-mixed")
    asked = {**one.asked, "split": "test"}
    before = Trial(arm, 40, asked).key()
    monkeypatch.setattr(catalogue, "weights_digest", lambda name, seed: f"other weights of {name}:{seed}")
    after = Trial(arm, 40, asked).key()
    assert keys.differences(before.describe(), after.describe()) == ["weights of lm"]


def test_the_committed_rows_are_those_of_todays_arms():
    """Every run that the ledger judges has its rows under its key."""
    there = set(ledger.shelf(runtime.asset("results")).packed()["key"])
    for name, row in ledger.read_ledger().items():
        one, seeds = ledger.find_claim(name), range(row["first_seed"], row["first_seed"] + row["seeds"])
        for arm in one.arms.values():
            asked = {**one.asked, "split": row["split"]}
            assert {store.name_of(Trial(arm, seed, asked).key()) for seed in seeds} <= there


def test_a_claim_names_a_missing_language_model_before_the_first_unit(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(runtime, "run_jobs", lambda *a, **k: pytest.fail("a unit was run"))
    gone = [
        f"toy-english:{seed}" for seed in catalogue.seeds("toy-english") if seed not in catalogue.shipped("toy-english")
    ]
    assert main(["claims", "run", "C1a", "--seeds", "5", "--out", str(tmp_path / "out")]) == 2
    assert gone and f"mpm-lite pretrain {' '.join(gone)}" in capsys.readouterr().err


# why


def test_doctor_says_in_what_a_kept_thing_differs_from_the_most_similar(world, capsys):  # noqa: F811
    mpm.sweep(small(), out=world / "s", pairs=[20, 30])
    assert main(["doctor", "--why", str(world / "s" / "pairs=20")]) == 0
    told = capsys.readouterr().out
    assert (
        "results of an experiment" in told and "weights of text" in told and "pairs=30, differs in experiment" in told
    )
    assert main(["doctor", "--why", str(world / "s")]) == 2
    assert "holds 2 results" in (said := capsys.readouterr().err) and f"{world / 's' / 'pairs=20'}." in said
    features = sorted((world / "home" / "features").glob("*.safetensors"))
    assert main(["doctor", "--why", str(features[0])]) == 0
    assert "weights" in capsys.readouterr().out
    checkpoint = next((world / "s" / "pairs=20" / "seed-0" / "checkpoints").glob("step-*"))
    assert main(["doctor", "--why", str(checkpoint)]) == 0
    (world / "plain.json").write_text("[]")
    for wrong in ("plain.json", "nothing.parquet"):
        assert main(["doctor", "--why", str(world / wrong)]) == 2
