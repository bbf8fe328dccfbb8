"""Numbers, folders, devices and sets that cannot be meant: one sentence before any work, or simply what the words say."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from test_experiment import PARTS, made_experiment, world  # noqa: F401

import mpm_lite as mpm
from mpm_lite.cli import main, set_and_languages
from mpm_lite.core import runtime, store
from mpm_lite.core.keys import OtherRun
from mpm_lite.core.runtime import UserError
from mpm_lite.data import Part
from mpm_lite.experiments import alignment, experiment, sweep
from mpm_lite.recipes import Align, build_options


def never(*_, **__):
    pytest.fail("work was begun")


# numbers


@pytest.mark.parametrize(
    "change, said",
    [
        ({"pairs": -30}, "pairs=-30 is no whole number of at least 1"),
        ({"pairs": 0}, "pairs=0 "),
        ({"pairs": 0.5}, "pairs=0.5 "),
        ({"pairs": True}, "pairs=True "),
        ({"pairs": {"en": -5}}, "pairs of en=-5 "),
        ({"pairs": {"de": 5}}, "Unknown training language of pairs 'de'"),
        ({"pairs": {"en": 5, "EN": 7}}, "names one language twice"),
        ({"steps": 0}, "steps=0 "),
        ({"steps": -5}, "steps=-5 "),
        ({"seeds": 0}, "seeds=0 "),
        ({"seed": -1}, "seed=-1 "),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused_as_the_experiment_is_made(change, said):
    with pytest.raises(UserError, match=said):
        made_experiment(**change)


@pytest.mark.parametrize(
    "key, value", [("pairs", "-30"), ("pairs", "0.5"), ("steps", "0"), ("steps", "-5"), ("batch", "1")]
)
def test_the_command_line_refuses_the_same_numbers(key, value, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(alignment, "load_captions", never)
    assert main(["run", "align", "--set", f"{key}={value}", "--out", str(tmp_path)]) == 2
    assert f"{key}={value} is no whole number" in capsys.readouterr().err


def test_pairs_by_language_mean_that_language_however_it_is_written(world):  # noqa: F811
    one = made_experiment(train=("made", ["en", "de"]), pairs={"EN": 5, "de": None})
    bench = one.system.bench(False)
    assert len(bench.pairs(0)) == 5 + 119 and bench.n_pairs == {"en": 5, "de": 119}
    chinese = mpm.Experiment(train=("emoji", ["en", "zh-CN"]), pairs={"en": 5, "zh-CN": 5})
    assert [chinese.system.pairs_of(code) for code in ("en", "zh")] == [5, 5]


def test_a_contrast_needs_two_examples_and_options_have_least_values(world):  # noqa: F811
    with pytest.raises(UserError, match="batch=1 is no whole number of at least 2"):
        build_options(Align.Options, {"batch": 1})
    with pytest.raises(UserError, match="width=-4"):
        build_options(Align.Options, {"width": -4})
    from worlds import small_recipe

    from mpm_lite.training import loop

    recipe, data = small_recipe(batch=1)
    with pytest.raises(UserError, match="needs 2"):
        loop.fit(recipe, data)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"train": "emoji"}, "train='emoji' is no pair of a set and its languages"),
        ({"train": ("emoji", [])}, "train=.* is no pair"),
        ({"train": ("emoji", None)}, "train=.* is no pair"),
        ({"val": ("emoji",)}, "val=.* is no pair.*None"),
        ({"test": "stamps"}, "test='stamps' is no pair"),
        ({"test": []}, "names no set to test on"),
        ({"test": [("stamps", "en"), ("stamps", "de")]}, "'stamps' twice"),
        ({"options": None}, "take a dictionary"),
        ({"load_options": {"skip_bda": True}}, "Did you mean 'skip_bad'"),
    ],
)
def test_what_is_no_set_no_language_and_no_option_is_refused_as_the_experiment_is_made(change, said):
    with pytest.raises(UserError, match=said):
        mpm.Experiment(**change)


@pytest.mark.parametrize(
    "given",
    [{"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}, {"temperature": 0.0}, {"dropout": 1.0}, {"weight_decay": -0.1}],
)
def test_options_with_which_nothing_can_be_learned_are_refused(given):
    with pytest.raises(UserError, match=f"{next(iter(given))}=.* is not a number"):
        build_options(Align.Options, given)


def test_numbers_from_numpy_are_numbers(world, tmp_path):  # noqa: F811
    one = made_experiment(pairs=np.int64(20), steps=np.int64(5), seeds=np.int64(1), options={"lr": np.float32(0.5)})
    one.run(out=tmp_path / "r", progress=False).save(tmp_path / "r")
    kept = json.loads((tmp_path / "r" / "config.json").read_text())
    assert kept["experiment"]["pairs"] == 20 and kept["options"]["steps"] == 5 and kept["options"]["lr"] == 0.5
    found = mpm.sweep(made_experiment(steps=5, seeds=1), pairs=np.array([20, 30]))
    assert sorted(set(found.table["pairs"])) == [20, 30]


def test_a_language_given_twice_is_learned_and_asked_once(world):  # noqa: F811
    once, twice = (
        made_experiment(seeds=1, steps=20, train=("made", codes), test=("made", codes)).run(progress=False)
        for codes in (["en"], ["en", "EN"])
    )
    np.testing.assert_array_equal(once.table["value"], twice.table["value"])


def test_all_languages_may_be_those_of_training_and_validation(world):  # noqa: F811
    found = made_experiment(seeds=1, steps=5, train=("made", "all"), val=("made", "all")).run(progress=False)
    assert found.meta["pairs"] == {"en": 120, "de": 119, "fi": 120}
    with pytest.raises(UserError, match="training language of pairs 'l'"):
        made_experiment(train=("made", "all"), pairs={"l": 5}).run(progress=False)


def test_weights_of_another_precision_are_not_taken(world, tmp_path):  # noqa: F811
    one = made_experiment(seeds=1, steps=5)
    one.run(out=tmp_path, progress=False, precision="bf16").save(tmp_path)
    with pytest.raises(OtherRun, match="precision"):
        one.run(out=tmp_path, progress=False)
    with pytest.raises(OtherRun, match="precision"):
        sweep.run_kept(one, tmp_path)


def test_parts_and_devices_are_checked_before_any_work(world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(alignment, "load_captions", never)
    with pytest.raises(UserError, match="parts=0"):
        made_experiment().run(progress=False, parts=0)
    for device, said in (
        ("cdua", "Did you mean 'cuda'"),
        ("mps", "not supported"),
        ("cuda:99", "no CUDA GPU|GPUs here"),
    ):
        with pytest.raises(UserError, match=said):
            runtime.device(device)
        with pytest.raises(UserError, match=said):
            made_experiment(device=device).run(progress=False)
        assert main(["run", "align", "--device", device, "--out", str(tmp_path)]) == 2
    for how, said in (({"precision": "bf17"}, "Unknown precision"), ({"track": "tensorbord"}, "Unknown tracker")):
        with pytest.raises(UserError, match=said):
            made_experiment().run(progress=False, **how)
    assert main(["run", "align", "--parts", "0", "--out", str(tmp_path)]) == 2
    assert main(["claims", "run", "C1a", "--workers", "0"]) == 2
    assert main(["run", "align", "--seeds", "0"]) == 2


# sets


def emptied(split):
    part = PARTS[split]
    return Part(part.name, [], {code: [] for code in part.captions}, [], part.render)


def test_no_step_is_chosen_on_a_set_without_validation_pictures(world, monkeypatch):  # noqa: F811
    monkeypatch.setitem(PARTS, "val", emptied("val"))
    monkeypatch.setattr(alignment, "image_features", never)
    with pytest.raises(UserError, match="no captioned pictures for validation.*val=None"):
        made_experiment().run(progress=False)


@pytest.mark.parametrize(
    "split, said", [("train", "no pictures to train on"), ("test", "no captioned pictures to test on")]
)
def test_an_empty_split_is_said_before_anything_is_encoded(world, monkeypatch, split, said):  # noqa: F811
    monkeypatch.setitem(PARTS, split, emptied(split))
    monkeypatch.setattr(alignment, "image_features", never)
    with pytest.raises(UserError, match=said):
        made_experiment().run(progress=False)


def test_retention_is_there_though_english_was_not_asked_for(world):  # noqa: F811
    with_english = made_experiment(seeds=1, steps=60, test=("made", ["en", "de"])).run(progress=False)
    without = made_experiment(seeds=1, steps=60, test=("made", ["de"])).run(progress=False)
    assert set(without.table["language"]) == {"de"}
    rho = [results.retention().set_index("language").loc["de", "rho"] for results in (with_english, without)]
    assert rho[0] == rho[1]
    nobody = made_experiment(seeds=1, steps=5, pivot="fr", test=("made", ["de"])).run(progress=False)
    for asked in (nobody.retention, lambda: nobody.mean_retention(["de"])):
        with pytest.raises(UserError, match="were not asked in it"):
            asked()


def test_a_tower_without_a_fingerprint_is_told_to_have_one(world):  # noqa: F811
    tower = made_experiment().text
    del tower.fingerprint
    with pytest.raises(UserError, match="has no fingerprint"):
        made_experiment(text=tower).run(progress=False)


@pytest.mark.parametrize(
    "value, name, languages",
    [
        ("stamps", "stamps", ""),
        ("stamps:en,de", "stamps", "en,de"),
        ("emoji+stamps:all", "emoji+stamps", "all"),
        ("parquet:photos", "parquet:photos", ""),
        ("parquet:photos:en,de", "parquet:photos", "en,de"),
        ("hub:owner/name:de", "hub:owner/name", "de"),
    ],
)
def test_the_command_line_reads_sets_of_ones_own(value, name, languages):
    assert set_and_languages(value) == (name, languages)


def test_an_experiment_reads_a_set_of_ones_own_as_it_is_told(tmp_path, monkeypatch):
    import io

    import pandas as pd
    from PIL import Image
    from worlds import Meaning

    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))

    def png(number):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "png")
        return file.getvalue()

    rows = [{"seen": png(i), "said": f"thing {i}", "split": "test" if i % 4 == 0 else "train"} for i in range(60)]
    rows[5]["seen"] = b"torn"
    (tmp_path / "photos").mkdir()
    pd.DataFrame(rows).to_parquet(tmp_path / "photos" / "all.parquet")
    where, columns = f"parquet:{tmp_path / 'photos'}", {"image": "seen", "captions": {"en": "said"}}
    one = mpm.Experiment(text=Meaning(name="text"), image=Meaning(seed=1, name="image"), train=(where, ["en"]), val=None,
                         test=(where, "all"), steps=2, seeds=1, options={"width": 8},
                         load_options={"columns": columns, "skip_bad": True})  # fmt: skip
    results = one.run(progress=False)
    assert set(results.table["n"]) == {15} and results.meta["pairs"] == {"en": 44}, (
        "val=None on a set without val works"
    )
    assert len(mpm.load_captions(where, "train", columns=columns, skip_bad=True).left_out) == 1


# worlds


@pytest.mark.parametrize("system", ["mla", "m3p"])
def test_the_world_decides_the_data(system, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(experiment.Experiment, "run", lambda one, **_: taken.append(one.system) or never)
    monkeypatch.chdir(tmp_path)
    for name in ("real", "toyworld"):
        more = "languages=de" if system == "mla" else "layers=2"
        with pytest.raises(AttributeError):  # nothing was run, so there is nothing to save
            main(["run", system, "--set", f"world={name}", more])
        assert taken[-1].world == name == taken[-1].bench(progress=False).world.name


def test_a_bench_refuses_an_arm_of_another_world():
    from mpm_lite.experiments.m3p import M3pBench, Matching
    from mpm_lite.experiments.mla import Acquiring, MlaBench
    from mpm_lite.experiments.rivals import Pairing, RivalBench

    for bench, arm in ((MlaBench(), Acquiring(languages=("de",), world="real")), (M3pBench(), Matching(world="real")),
                       (RivalBench(), Pairing(kind="pivot", languages=("de",), world="real"))):  # fmt: skip
        with pytest.raises(UserError, match="cannot be trained on the pictures of 'toyworld'"):
            bench.train(arm, 0)


# the command line


@pytest.mark.parametrize("vary, values", [("pairs=500", [500]), ("seed=3", [3]), ("lr=0.001", [0.001]), ("text=toy", ["toy"]),
                                          ("pairs=20,30", [20, 30]), ("text=toy,use-m", ["toy", "use-m"])])  # fmt: skip
def test_one_value_is_a_sweep_too(vary, values, tmp_path, monkeypatch):
    from mpm_lite.experiments import sweep

    asked = {}

    def swept(one, out, track, **dials):
        asked.update(dials)
        raise UserError("enough")

    monkeypatch.setattr(sweep, "sweep", swept)
    assert main(["sweep", "align", "--vary", vary, "--out", str(tmp_path)]) == 2
    assert asked == {vary.split("=")[0]: values}


def test_one_tower_recipe_or_dictionary_is_one_value(world):  # noqa: F811
    one = made_experiment(seeds=1, steps=5)
    for dial, value in (("text", one.text), ("recipe", Align), ("pairs", {"en": 20})):
        assert len(mpm.sweep(one, **{dial: value}).table) == len(one.run(progress=False).table)


def test_results_whose_settings_are_torn_are_named(world, tmp_path):  # noqa: F811
    made_experiment(seeds=1, steps=5).run(progress=False).save(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="no readable results"):
        mpm.Results.load(tmp_path)


@pytest.mark.parametrize("flag", ["--set", "--vary"])
def test_a_setting_given_twice_is_refused(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(alignment, "load_captions", never)
    other = ["--vary", "lr=0.1"] if flag == "--set" else []
    given = ["sweep", "align", *other, flag, "pairs=20", flag, "pairs=30", "--out", str(tmp_path)]
    assert main(given) == 2 and "pairs is given twice" in capsys.readouterr().err


def test_of_several_values_the_wrong_one_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment.Experiment, "run", never)
    monkeypatch.setattr(
        sweep, "run_kept", lambda one, *_: build_options(Align.Options, one.system.all_options) and never()
    )
    with pytest.raises(pytest.fail.Exception):
        main(["sweep", "align", "--vary", "lr=0.001,1e-4", "--out", str(tmp_path)])
    assert main(["sweep", "align", "--vary", "lr=0.1e,0.001", "--out", str(tmp_path)]) == 2
    assert "got '0.1e'" in capsys.readouterr().err


def test_sets_are_swept_as_they_are_set(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(experiment.Experiment, "run", lambda self, **_: seen.append((self.train, self.val)) or never())
    for vary in (["train=emoji"], ["train=emoji+stamps:de"], ["val=None"]):
        with pytest.raises(pytest.fail.Exception):
            main(["sweep", "align", "--vary", *vary, "--out", str(tmp_path / "s")])
    assert [train for train, _ in seen[:2]] == [("emoji", ["en"]), ("emoji+stamps", ["de"])] and seen[2][1] is None


def test_one_value_is_a_sweep_in_python_too(world):  # noqa: F811
    one = made_experiment(seeds=1, steps=3)
    assert set(mpm.sweep(one, pairs=20).table["pairs"]) == {20}
    assert len(mpm.sweep(one, pairs={"en": 5}).table) == len(mpm.sweep(one, text=one.text).table)


def test_all_languages_of_a_set_can_be_learned_from(world):  # noqa: F811
    results = made_experiment(seeds=1, steps=3, train=("made", "all"), pairs={"de": 5}).run(progress=False)
    assert results.meta["pairs"] == {"en": 120, "de": 5, "fi": 120}
    with pytest.raises(UserError, match="training language of pairs 'fr'"):
        made_experiment(train=("made", "all"), pairs={"fr": 5}).run(progress=False)
    with pytest.raises(UserError, match="names no set to test on"):
        made_experiment(test=[]).run(progress=False)


def test_a_number_of_numpys_is_the_number(world):  # noqa: F811
    plain, numpys = (made_experiment(seeds=1, steps=3, pairs=n) for n in (20, np.int64(20)))
    assert plain.key().digest == numpys.key().digest


def test_a_folder_that_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    from mpm_lite.report import tour

    monkeypatch.setattr(tour, "run_tour", never)
    monkeypatch.setattr(alignment, "load_captions", never)
    for command in (
        ["tour"],
        ["run", "align"],
        ["sweep", "align", "--vary", "pairs=5"],
        ["run", "mla"],
        ["run", "mpm_chat"],
    ):
        assert main([*command, "--out", str(blocked / "out")]) == 2
        assert "Could not write" in capsys.readouterr().err
    assert main(["tour", "--json", str(blocked / "tour.json")]) == 2


def test_a_cache_that_cannot_be_written_is_one_sentence_and_what_is_there_is_read(world, tmp_path, monkeypatch):  # noqa: F811
    key = store.Key("numbers", {"kind": "k"})
    kept = store.keep_features(key, lambda: np.ones((2, 2), np.float32))

    def refused(*_, **__):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(store.Path, "mkdir", refused)
    monkeypatch.setattr(store, "FileLock", lambda path: type("Lock", (), {"acquire": refused, "release": never})())
    assert np.array_equal(store.keep_features(key, never), kept)
    with pytest.raises(UserError, match="Could not write .*Read-only file system.*MPM_LITE_HOME"):
        store.keep_features(store.Key("numbers", {"kind": "other"}), never)
    with pytest.raises(UserError, match="Could not write"):
        store.write_atomic(tmp_path / "new" / "file", b"x")


def piped(command, **environment):
    env = os.environ | {"MPM_LITE_QUIET": "1"} | environment
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env)


def test_a_reader_that_goes_away_and_a_terminal_without_letters():
    name = f"{sys.executable} -m mpm_lite.cli claims show C1a C2 C3 C4"
    done = piped(f"set -o pipefail; {name} | true")
    assert "Traceback" not in done.stderr and "Error" not in done.stderr and done.returncode in (0, 141)
    code = "from mpm_lite import cli; cli.presets = lambda args: print('猫 ' * 3); import sys; sys.exit(cli.main(['presets']))"
    done = piped(f'{sys.executable} -c "{code}"', PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.strip() == r"\u732b \u732b \u732b"


def test_a_closed_output_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["presets"]) == 0


def test_streams_that_are_no_files_are_left_alone(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert main(["presets"]) == 0
