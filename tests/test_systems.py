"""One experiment for every system: settings by name, results that know retention, trials that are run once, one's own."""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest
import torch
from worlds import own_home

import mpm_lite as mpm
from mpm_lite import UserError
from mpm_lite.cli import main
from mpm_lite.core.store import Shelf
from mpm_lite.evaluation.stats import Sample
from mpm_lite.experiments import system
from mpm_lite.experiments.experiment import SYSTEMS, Experiment, system_class
from mpm_lite.experiments.results import Results
from mpm_lite.experiments.system import System, Trial, read_trials, run_trials
from mpm_lite.recipes.base import at_least


@dataclass(frozen=True)
class NoOptions:
    """A recipe's options."""

    steps: int = at_least(1, 3)


@dataclass(frozen=True)
class Guesser(System):
    """A system whose scores are drawn: it gains in English, and half of that in German."""

    name = "guesser"
    Options = NoOptions

    gain: float = 0.4
    codes: tuple[str, ...] = ("en", "de")
    options: dict = field(default_factory=dict)

    def bench(self, progress=True):
        return GuesserBench()

    def towers_key(self):
        return {}

    def data_key(self, split):
        return {}


class GuesserBench:
    trained = []

    def train(self, one, seed):
        self.trained.append((one.gain, seed))
        recipe = torch.nn.Linear(1, 1)
        recipe.of = one
        return recipe

    def test(self, recipe, seed, split="test", languages=(), looks=("real", "blind"), count=300):
        frames, one = [], recipe.of
        for look in looks:
            for code in languages or one.codes:
                rng = np.random.default_rng([seed, *f"{look} {code}".encode()])
                level = 0.3 + (look == "real") * one.gain * (1 if code == "en" else 0.5)
                told = {"seed": seed, "lm": "guess", "lm_seed": seed, "look": look, "language": code}
                told |= {"item": [f"i{i}" for i in range(count)], "concept": [f"c{i % 40}" for i in range(count)]}
                frames.append(pd.DataFrame(told | {"choice": (rng.random(count) < level) * 1.0, "nats": np.nan}))
        return pd.concat(frames, ignore_index=True)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(system, "_BENCH", {})
    monkeypatch.setattr(GuesserBench, "trained", [])


def test_the_results_of_a_system_are_those_of_two_towers():
    one = Experiment(Guesser, seeds=3, asked={"count": 300})
    results = one.run(progress=False)
    assert set(results.models) == {0, 1, 2} and set(results.table["metric"]) == {"choice"}
    kept = results.retention("choice").set_index(["condition", "language"])
    sample = Sample(
        results.items.rename(columns={"condition": "look", "model_seed": "lm_seed"}).assign(arm="a"), draws=400
    )
    assert kept.loc[("real", "de"), "rho"] == pytest.approx(sample.rho("a", "de", "choice").value)
    assert kept.loc[("real", "de"), "low"] < 0.5 < kept.loc[("real", "de"), "high"]
    assert kept.loc[("real", "en"), "rho"] == pytest.approx(1) and kept.loc[("real", "de"), "counts"]
    mean = results.where(condition="real").mean_retention(["de"], "choice")
    assert mean.value == pytest.approx(kept.loc[("real", "de"), "rho"])
    assert set(results.scores("choice", ["de"])["condition"]) == {"real", "blind"}


def test_results_are_saved_and_read_back(tmp_path):
    results = Experiment(Guesser, seeds=1, asked={"count": 20}).run(progress=False)
    results.models = {}
    again = Results.load(results.save(tmp_path))
    pd.testing.assert_frame_equal(again.table, results.table)
    assert again.meta["asked"]["split"] == "val" and again.meta["experiment"]["recipe"] == "guesser"
    assert "train" not in again.meta["experiment"], "what a system does not read is not said of it"


def test_a_sweep_and_a_hypothesis_take_systems(tmp_path):
    base = Experiment(Guesser, seeds=3, asked={"count": 150})
    found = mpm.sweep(base, out=tmp_path / "sweep", gain=[0.1, 0.4])
    once = list(GuesserBench.trained)
    assert mpm.sweep(base, out=tmp_path / "sweep", gain=[0.1, 0.4]).table.equals(found.table)
    assert GuesserBench.trained == once and len(once) == 6
    arms = {"little": {"gain": 0.1}, "much": {"gain": 0.5}, "same": {"gain": 0.1}}
    idea = mpm.Hypothesis(
        "more gain, more score", base, arms, effect=("much", "little"), control=("same", "little"), languages=("en",),
        measure="score", metric="choice",
    )  # fmt: skip
    idea.register(tmp_path / "idea")
    assert idea.run(tmp_path / "idea").effect.low > 0


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_has_settings_of_its_own(name):
    kind = system_class(name)
    assert kind.name == name and set(kind.__dataclass_fields__) - {"options"} <= set(kind.settings())
    one = Experiment(name, seeds=1)
    assert type(one.system) is kind and one.questions["looks"] == kind.looks
    with pytest.raises(UserError, match="Unknown setting 'stepz'"):
        Experiment(name, options={"stepz": 3})
    with pytest.raises(UserError, match=f"{name}.*has no train"):
        Experiment(name, train=("stamps", ["en"]))


def test_settings_find_their_place():
    one = Experiment("mla", steps=None, pairs=50, options={"languages": "de,zh", "transfer_steps": 7, "world": "real"})
    assert one.system.pairs == 50 and one.system.languages == ("de", "zh") and one.system.world == "real"
    assert one.system.options == {"transfer_steps": 7} and one.system.recipe_options.transfer_steps == 7
    switched = Experiment("m3p", options={"words": 0.5, "layers": 1}).system
    assert switched.switch == {"words": 0.5} and Experiment("m3p", options={"switch": "none"}).system.switch is None
    chat = Experiment("mpm_chat", lm="toy-mixed", steps=5)
    assert chat.system.lm == "toy-mixed" and chat.system.recipe_options.steps == 5
    for wrong, says in (
        ({"asked": {"colour": 1}}, "Unknown question 'colour'"),
        ({"asked": {"count": 0}}, "count=0 is no whole number"),
        ({"recipe": "m3pp"}, "Did you mean 'm3p'"),
        ({"recipe": "m3p", "lm": "toy-mixed"}, "uses no language model"),
        ({"recipe": "m3p", "options": {"switch": "half"}}, "switch=none"),
        ({"recipe": "align", "asked": {"count": 3}}, "has no asked"),
    ):
        with pytest.raises(UserError, match=says):
            Experiment(**{"recipe": Guesser} | wrong)
    with pytest.raises(UserError, match="takes no parts"):
        Experiment(Guesser).run(parts=2)


def test_trials_are_run_once_kept_and_gone_on_with(tmp_path):
    shelf, said = Shelf(tmp_path, "rows", "mpm-lite run it"), []
    trials = {f"{gain}, {seed}": Trial(Guesser(gain), seed) for seed in (0, 1) for gain in (0.1, 0.4)}
    trials["the first again"] = trials["0.1, 0"]

    def stopping(line):
        said.append(line)
        if len(said) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trials(trials, shelf, say=stopping)
    assert GuesserBench.trained == [(0.1, 0), (0.4, 0)]
    with pytest.raises(UserError, match="0.1, 1"):
        read_trials(trials, shelf)
    run_trials(trials, shelf)
    assert GuesserBench.trained == [(0.1, 0), (0.4, 0), (0.1, 1), (0.4, 1)]
    rows = read_trials(trials, shelf)
    assert rows["the first again"].equals(rows["0.1, 0"]) and len(shelf.files()) == 4


def test_what_decides_rows_is_in_their_key():
    one = Trial(Guesser(), 0)
    others = [Trial(Guesser(0.5), 0), Trial(Guesser(), 1), Trial(Guesser(), 0, {"split": "test"})]
    assert len({trial.key().digest for trial in (one, *others)}) == 4
    assert "code" in one.key().parts, "a class of one's own may be changed"
    assert "code" not in Trial(system_class("m3p")(), 0).key().parts


def page():
    """The fifth recipe as notebook 12 writes it."""
    cells = json.loads((mpm.asset().parent / "notebooks" / "12_your_hypothesis.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    return next(s for s in sources if s.startswith("%%writefile linear_lora.py")).partition("\n")[2]


def test_a_recipe_of_ones_own_is_a_file(tmp_path, monkeypatch, capsys):
    own_home(monkeypatch, tmp_path / "home")
    file = tmp_path / "linear_lora.py"
    file.write_text(page())
    few = ["lm=toy-english", "lm_seed=0", "pairs=16", "steps=2", "batch=4", "bf16=False", "count=4", "closed=0"]
    assert main(["run", str(file), "--out", str(tmp_path / "out"), "--set", *few, "languages=en"]) == 0
    assert "slots" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["options"]["thawed"] == "lora" and config["system"]["pairs"] == 16
    rows = pd.read_parquet(tmp_path / "out" / "results.parquet")
    kind = system_class(f"{file}:LinearChat")
    own = {"lm": "toy-english", "pairs": 16, "steps": 2, "options": {"lm_seed": 0, "batch": 4, "bf16": False}}
    again = Experiment(kind, seeds=1, **own, asked={"count": 4, "closed": 0}).run(progress=False)
    pd.testing.assert_frame_equal(again.table[["value", "n"]], rows[["value", "n"]])
    assert {name.split(".")[0] for name, p in again.models[0].named_parameters() if again.models[0].trains(name)} == {
        "visual",
        "decoder",
    }


def test_a_file_without_a_recipe_is_refused(tmp_path, capsys):
    file = tmp_path / "mine.py"
    for text, says in (("x = 1", "has 0 recipes"), ("import nothing_at_all", "does not run"), ("x =", "does not run")):
        file.write_text(text)
        assert main(["run", str(file)]) == 2 and says in capsys.readouterr().err
    assert main(["run", str(tmp_path / "gone.py")]) == 2 and "is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"image": "efficientnet-lite1", "recipe": "m3p"}, "m3p.*has no image"),
        ({"pairs": 16, "options": {"pairs": 32}}, "pairs is given twice"),
        ({"recipe": "m3p", "options": {"switch": "none", "sentences": 0.5}}, "inside of switch"),
        ({"asked": {"split": "foo"}}, "Unknown split 'foo'"),
        ({"asked": {"count": 10_000_000}}, "toyworld has 400 pictures of val"),
        ({"options": {"noise": "x"}}, "noise takes a float"),
        ({"pairs": {"en": 16}}, "pairs"),
        ({"recipe": "mla", "options": {"english_options": {"foo": 1}}}, "Unknown option 'foo'"),
        ({"recipe": "mblip", "options": {"generation_options": {"foo": 1}}}, "Unknown option 'foo'"),
        ({"recipe": "mla", "options": {"transfer_steps": -1}}, "transfer_steps=-1"),
        ({"recipe": Guesser()}, "give Guesser, not one of it"),
    ],
)
def test_what_cannot_be_meant_is_said_as_the_experiment_is_made(given, says):
    with pytest.raises(UserError, match=says):
        Experiment(**{"recipe": "mpm_chat"} | given)


def test_what_is_given_reaches_the_system_even_if_it_is_the_default_of_two_towers():
    assert Experiment("mpm_chat", image="efficientnet-lite1").system.image == "efficientnet-lite1"
    assert Experiment("mpm_chat").system.image == "toy"
    assert replace(Experiment("mpm_chat"), seeds=1).system.image == "toy"
    asked = Experiment("mpm_chat", asked={"looks": "shuffled", "languages": "de,en"}).questions
    assert asked["looks"] == ("shuffled", "blind") and asked["languages"] == ("de", "en")


def test_a_look_alone_brings_its_chance_and_a_picture_twice_is_two():
    results = Experiment(Guesser, seeds=1, asked={"count": 30, "looks": ["real"]}).run(progress=False)
    assert results.table["chance"].notna().all()
    rows = GuesserBench().test(GuesserBench().train(Guesser(), 0), 0, count=3).assign(item="one")
    twice = Results.of_looks(rows, dict.fromkeys(("recipe", "text", "image", "lm", "train", "test"), None))
    assert set(twice.table["n"]) == {3} and twice.items["item"].nunique() == 3
    german = Experiment(Guesser, seeds=1, asked={"count": 30, "languages": "de"}).run(progress=False)
    with pytest.raises(UserError, match="asked in it"):
        german.retention()


def test_dials_with_the_names_of_columns_stay_apart(tmp_path):
    @dataclass(frozen=True)
    class Kinds(Guesser):
        kind: str = "a"

    found = mpm.sweep(Experiment(Kinds, seeds=1, asked={"count": 30}), kind=["a", "b"])
    assert len(found.scores()) == 2 * 2 * 2 and set(found.scores()["kind"]) == {"a", "b"}


def test_systems_of_ones_own_that_differ_have_benches_of_their_own():
    @dataclass(frozen=True)
    class Gap(Guesser):
        def bench(self, progress=True):
            bench = GuesserBench()
            bench.gap = self.gain
            return bench

    assert [system.shared_bench(Gap(gain)).gap for gain in (0.1, 0.9)] == [0.1, 0.9]
