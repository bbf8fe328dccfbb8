"""Experiment, Results, sweep on a made-up world: the pivot is there when it should be, the controls are at chance."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from need import require
from PIL import Image
from worlds import Constant, Meaning

import mpm_lite as mpm
from mpm_lite.claims import two_towers
from mpm_lite.core import figures
from mpm_lite.core.runtime import UserError
from mpm_lite.data import CaptionSet, Part
from mpm_lite.evaluation import retrieval, text_only
from mpm_lite.experiments import alignment, correlations


class Polyglot(Meaning):
    """Reads English and German alike; Finnish is noise to it, and the last word of any text is its meaning."""

    languages = frozenset({"en", "de"})

    def number(self, x):
        if isinstance(x, str) and x.startswith("asia"):
            return (int(x.split()[-1]) * 73 + 19) % 256
        return super().number(x)

    def unknown_rate(self, texts):
        return 0.5 if texts[0].startswith("asia") else 0.0

    def pieces(self, texts):
        return [t.split() for t in texts]


def made(split, n, start):
    words = {"en": "thing", "de": "Ding", "fi": "asia"}
    numbers = [(start + i) * 91 % 256 for i in range(n)]  # the splits lie between one another
    captions = {code: [f"{word} {number}" for number in numbers] for code, word in words.items()}
    captions["de"][0] = ""
    where = f"made/{split}"
    part = Part(
        where,
        [f"{where}/{i}" for i in range(n)],
        captions,
        [f"c{start + i}" for i in range(n)],
        lambda i: np.full((256, 256, 3), numbers[i], np.uint8),
    )
    return part


PARTS = {"train": made("train", 120, 0), "val": made("val", 30, 120), "test": made("test", 106, 150)}


class Smooth(Polyglot):
    """Features that vary smoothly with the number, so that unseen numbers can be found."""

    def encode(self, things, progress=False):
        x = np.array([self.number(t) for t in things])[:, None] / 256
        rng = np.random.default_rng(self.seed)
        waves = np.concatenate([np.sin(2 * np.pi * x * k + rng.uniform(0, 6)) for k in range(1, 7)] + [x], axis=1)
        found = waves @ rng.normal(size=(7, self.width))
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


class Blank(Constant, Smooth):
    pass


@pytest.fixture
def world(monkeypatch, tmp_path):
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))

    def load(name, split="train", languages=("en",), limit=None):
        codes = ["en", "de", "fi"] if languages == "all" else list(languages)
        return CaptionSet([(PARTS[split], np.arange(len(PARTS[split])))], codes)

    monkeypatch.setattr(alignment, "load_captions", load)
    monkeypatch.setattr(text_only, "load_captions", load)
    return tmp_path


def made_experiment(**change):
    given = {
        "text": Smooth(name="text"),
        "image": Smooth(seed=1, name="image"),
        "train": ("made", ["en"]),
        "val": ("made", None),
        "test": ("made", "all"),
        "steps": 200,
        "seeds": 2,
        "options": {"width": 16, "batch": 64, "dropout": 0.0, "lr": 5e-3},
    }
    return mpm.Experiment(**(given | change))


def test_english_pairs_only_and_german_follows(world):
    results = made_experiment().run(progress=False)
    assert list(results.table.columns[:13]) == [
        "recipe",
        "text",
        "image",
        "lm",
        "train",
        "test",
        "condition",
        "seed",
        "language",
        "metric",
        "value",
        "n",
        "chance",
    ]
    assert results.table["value"].between(0, 1).all() and set(results.table["seed"]) == {0, 1}
    rho = results.retention().set_index("language")
    assert rho.loc["en", "score"] > 0.4 and rho.loc["de", "rho"] > 0.9 and rho.loc["fi", "rho"] < 0.3
    assert rho.loc["de", "n"] == 105 and (rho["low"] <= rho["rho"]).all() and (rho["rho"] <= rho["high"]).all()
    assert rho.loc["de", "p_holm"] < 0.05
    assert results.mean_retention(["de"]).value == pytest.approx(rho.loc["de", "rho"])
    figure = results.plot()
    assert "chance" in figure.mpm_alt


@pytest.mark.parametrize(
    "change",
    [{"condition": "shuffled"}, {"condition": "blind"}, {"condition": "random-image"}, {"image": Blank(name="blank")}],
)
def test_controls_are_at_chance(world, change):
    results = made_experiment(**change).run(progress=False)
    rho = results.retention().set_index("language")
    top = results.table[results.table["metric"] == "t2i_r@10"]
    assert (top["chance"] - 10 / 106).abs().max() < 1e-3
    assert (rho["score"] < 0.25).all(), "far below the 0.4 and more of real pairs"
    if change.get("condition") == "blind" or "image" in change:
        assert np.allclose(top["value"], top["chance"], atol=0.02)


def test_a_language_that_is_not_there_is_refused(world, monkeypatch):
    """Not left out in silence: neither in training nor in a test, nor in a mean."""
    results = made_experiment().run(progress=False)
    for ask in (results.mean_retention, results.mean_score_draws, results.identity):
        with pytest.raises(UserError, match="Unknown language of these results 'xx'"):
            ask(["de", "xx"])
    for part in PARTS.values():
        monkeypatch.setitem(part.captions, "de", [""] * len(part))
    for change in ({"train": ("made", ["en", "de"])}, {"test": ("made", ["en", "de"])}):
        with pytest.raises(UserError, match="with a caption in 'de'"):
            made_experiment(**change).run(progress=False)


def test_same_seed_same_table_and_pairs_nest(world):
    a, b = (made_experiment(seeds=1, pairs=50).run(progress=False) for _ in range(2))
    pd.testing.assert_frame_equal(a.table, b.table)
    small = made_experiment(pairs=20).system.bench(False).pairs(0)
    large = made_experiment(pairs=50).system.bench(False).pairs(0)
    assert np.array_equal(small.texts.numpy(), large.texts.numpy()[:20])


def test_sweep_adds_a_column_a_dial_and_resumes(world):
    results = mpm.sweep(made_experiment(seeds=1, steps=10), out=world / "sweep", pairs=[20, 60], lr=[1e-3, 1e-2])
    assert set(results.table["pairs"]) == {20, 60} and set(results.table["lr"]) == {1e-3, 1e-2}
    assert len(results.retention()) == 4 * 3
    again = mpm.sweep(made_experiment(seeds=1, steps=10), out=world / "sweep", pairs=[20, 60], lr=[1e-3, 1e-2])
    pd.testing.assert_frame_equal(results.table, again.table)
    with pytest.raises(UserError, match="Did you mean 'pairs'"):
        mpm.sweep(made_experiment(), pair=[1])
    with pytest.raises(UserError, match="'pairs' has no values"):
        mpm.sweep(made_experiment(), pairs=[])


def test_a_sweep_runs_nothing_twice_and_nothing_else_in_its_place(world, monkeypatch):
    ran = []
    plain = mpm.Experiment.run
    monkeypatch.setattr(mpm.Experiment, "run", lambda self, *a, **k: ran.append(self.pairs) or plain(self, *a, **k))
    one = made_experiment(seeds=1, steps=10)
    first = mpm.sweep(one, out=world / "s", pairs=[20, 60])
    again = mpm.sweep(one, out=world / "s", pairs=[20, 60, 80])
    assert ran == [20, 60, 80]
    pd.testing.assert_frame_equal(first.table, again.table[again.table["pairs"] < 80])
    mpm.sweep(made_experiment(seeds=1, steps=11), out=world / "t", pairs=[20])
    with pytest.raises(
        UserError, match="another configuration"
    ):  # never another experiment's results under this one's name
        mpm.sweep(made_experiment(seeds=1, steps=10), out=world / "t", pairs=[20])
    (world / "s/pairs=20/results.parquet").write_bytes(b"torn")
    with pytest.raises(UserError, match="no readable results"):
        mpm.sweep(one, out=world / "s", pairs=[20])


def test_a_sweep_over_any_function(tmp_path):
    ran = []

    def table(lr, name):
        ran.append((lr, name))
        if name == "c" and len(ran) == 3:
            raise KeyboardInterrupt
        return pd.DataFrame({"value": [lr, 2 * lr]})

    dials = {"lr": [1, 2], "name": ["a/b", "c"]}
    with pytest.raises(KeyboardInterrupt):
        mpm.sweep(table, out=tmp_path, lr=[1], name=["a/b", "c/d", "c"])
    found = mpm.sweep(table, out=tmp_path, **dials)
    assert ran == [(1, "a/b"), (1, "c/d"), (1, "c"), (1, "c"), (2, "a/b"), (2, "c")]
    assert list(found.columns) == ["value", "lr", "name"] and len(found) == 8
    pd.testing.assert_frame_equal(found, mpm.sweep(table, out=tmp_path, **dials))
    assert len(ran) == 6 and set(found["name"]) == {"a/b", "c"}
    with pytest.raises(UserError, match="returned int"):
        mpm.sweep(lambda x: x, x=[1])
    with pytest.raises(UserError, match="an Experiment or a function"):
        mpm.sweep("align", x=[1])


def test_arms_are_compared_with_their_intervals(world):
    results = mpm.sweep(made_experiment(steps=60), pairs=[20, 100])
    scores = results.scores(languages=["en", "de"])
    assert len(scores) == 4 and (scores["low"] <= scores["value"]).all() and (scores["value"] <= scores["high"]).all()
    direct = results.table[(results.table["metric"] == "t2i_r@10") & (results.table["language"] == "de")]
    by_pairs = direct.groupby("pairs")["value"].mean()
    for row in scores[scores["language"] == "de"].itertuples():
        assert row.value == pytest.approx(by_pairs[row.pairs])
    figure = results.compare("pairs", ("en", "de"))
    assert "20: en" in figure.mpm_alt and "100: de" in figure.mpm_alt
    with pytest.raises(UserError, match="Did you mean 'pairs'"):
        results.compare("pair")
    with pytest.raises(UserError, match="differ in pairs too"):
        results.compare("text")
    with pytest.raises(UserError, match="language of these results"):
        results.scores(languages=["xx"])


def test_what_is_tracked_can_be_read_back(world):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = world / "tracked"
    made_experiment(seeds=1, steps=20).run(out=out, progress=False, track="tensorboard")
    [folder] = {path.parent for path in out.rglob("events.out.tfevents.*") if path.parent.name == "mpm_lite"}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {"loss", "rate", "score"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 21))
    with pytest.raises(UserError, match="pip install wandb|needs a folder"):
        made_experiment(seeds=1).run(progress=False, track="wandb")
    with pytest.raises(UserError, match="Did you mean 'tensorboard'"):
        made_experiment(seeds=1).run(progress=False, track="tensorbord")


def test_results_save_and_load(world):
    results = made_experiment(seeds=1, steps=5).run(out=world / "run", progress=False)
    results.save(world / "run")
    back = mpm.Results.load(world / "run")
    pd.testing.assert_frame_equal(results.table, back.table)
    (world / "run/results.parquet").write_bytes(b"cut")
    with pytest.raises(UserError, match="no readable results"):
        mpm.Results.load(world / "run")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"recipe": "aling"}, "align"),
        ({"condition": "shuffle"}, "shuffled"),
        ({"options": {"widht": 4}}, "width"),
        ({"options": {"width": "wide"}}, "takes a int"),
        ({"lm": "toy"}, "no language model"),
    ],
)
def test_unknown_names_suggest_the_nearest(world, change, said):
    with pytest.raises(UserError, match=said):
        made_experiment(**change).run(progress=False)


def test_real_loaders_suggest_too():
    for change, said in (
        ({"text": "use-n"}, "use-m"),
        ({"image": "efficientnet-lite9"}, "efficientnet-lite"),
        ({"train": ("emojy", ["en"])}, "emoji"),
        ({"train": ("emoji", ["xx"])}, "no captions in 'xx'"),
    ):
        with pytest.raises(UserError, match=said):
            mpm.Experiment(**change).run(progress=False)


def test_cells_follow_the_rule():
    read = frozenset({"en", "de", "ar", "fr"})
    assert text_only.classify_language("de", read, 0.9) == "read"
    assert text_only.classify_language("en-GB", read, 0.0) == "read"
    assert text_only.classify_language("gl", read, 0.01) == "relative read"
    assert text_only.classify_language("gl", read, 0.05) == "unreadable pieces"
    assert text_only.classify_language("eu", read, 0.0) == "no relative read"


def test_alignment_sees_training_text_only(world):
    tower = Smooth(name="text")
    table = text_only.measure_alignment(tower, text_only.sample("made")).set_index("language")
    assert table.loc["de", "alignment"] == 1.0 and table.loc["fi", "alignment"] < 0.2
    assert table.loc["fi", "cell"] == "unreadable pieces"
    assert set(text_only.sample("made").ids) <= set(PARTS["train"].ids)


def test_rank_correlations():
    x = np.array([1.0, 2, 3, 4, 5, 6])
    assert correlations.spearman(x, x**3) == pytest.approx(1) and correlations.spearman(x, -x) == pytest.approx(-1)
    z = np.array([1.0, 1, 2, 2, 3, 3])
    assert abs(correlations.partial_spearman(z + 0.01 * x, z - 0.01 * x[::-1], z)) <= 1
    rows = pd.DataFrame({"alignment": x, "rho": x, "unknown_rate": 0.0, "family": list("aabbcc")})
    assert correlations.by_family(rows, correlations.spearman, ("alignment", "rho"), 200).low > 0.9
    kept = rows.assign(t=x, latin=np.array([0, 1, 0, 1, 0, 1]))
    kept["rho"] = 0.1 * kept["t"] + 0.5 * kept["latin"]
    found = correlations.by_family(kept, correlations.group_effect, ("rho", "t", "latin"), 200)
    assert found.value == pytest.approx(0.5) and found.low > 0.3
    assert np.isnan(correlations.group_effect(x, x, np.ones(6)))


def test_text_in_the_pictures_place():
    """A text tower that reads a language as English has all hits, one that reads noise has chance, and half of each the middle."""
    rng = np.random.default_rng(0)
    pivot, noise = (torch.nn.functional.normalize(torch.tensor(rng.normal(size=(400, 32))), dim=1) for _ in range(2))
    each, half = np.arange(400), torch.arange(400)[:, None] % 2 == 0
    for texts, low, high in ((pivot, 1.0, 1.0), (noise, 0.0, 0.06), (torch.where(half, pivot, noise), 0.48, 0.56)):
        hits = retrieval.score_text_alone(pivot, texts, each, each)["text t2i_r@10"]
        assert low <= hits.mean() <= high
    few = retrieval.score_text_alone(pivot, pivot, np.array([3, 5]), each)
    assert few["text t2i_r@1"].tolist() == [1.0, 1.0]


def test_retention_is_text_transfer_times_pivot_efficiency(world):
    results = made_experiment().run(progress=False)
    rho = results.retention().set_index("language")
    assert rho.loc["en", ["t", "e", "t_low", "e_high"]].tolist() == pytest.approx([1.0] * 4)
    assert rho.loc["de", "t"] == pytest.approx(1.0, abs=0.02)  # the tower reads German as English
    assert rho.loc["de", "e"] == pytest.approx(rho.loc["de", "rho"] / rho.loc["de", "t"])
    assert abs(rho.loc["fi", "t"]) < 0.1 and np.isnan(
        rho.loc["fi", "e"]
    )  # and Finnish as noise: a ratio would be one too
    both = results.identity(["de", "fi"])
    alone = [results.identity([code]) for code in ("de", "fi")]
    assert both.text.value == pytest.approx(np.mean([one.text.value for one in alone]))
    assert both.transfer.value * both.efficiency.value == pytest.approx(both.retention.value)
    assert 0.4 < both.transfer.value < 0.6
    with pytest.raises(UserError, match="Unknown language of these results 'xx'"):
        results.identity(["xx"])
    kept = mpm.Results(results.table, results.items.drop(columns="pivot text t2i_r@10"))
    with pytest.raises(UserError, match="no caption stood in the picture's place"):
        kept.identity(["de"])


def test_what_retention_goes_with():
    """Retention that is text transfer, and a fifth more where the language was read; script has no part in it."""
    t, n = np.linspace(0.1, 0.9, 24), np.arange(24)
    rows = pd.DataFrame({"text": "a", "test": "made", "language": [f"l{i}" for i in n], "counts": True, "t": t})
    rows["family"], rows["script"] = [f"f{i // 2}" for i in n], np.where(n % 3 == 0, "Latin", "Greek")
    rows["cell"], rows["chrf"] = np.where(n % 2 == 0, "read", "relative read"), np.cos(n)
    rows["rho"] = 0.7 * t + 0.2 * (rows["cell"] == "read")
    found = correlations.association_table(rows, None, "t", "chrf", draws=200).set_index("what")["value"]
    assert found["spearman of text transfer and retention, within read"] == pytest.approx(1.0)
    assert found["partial of text transfer and retention, within never-read"] == pytest.approx(1.0)
    assert found["having been read on retention at equal text transfer, pooled"] == pytest.approx(0.2)
    assert abs(found["Latin script on retention at equal text transfer, within read"]) < 1e-9


def test_spelling_is_looked_at_on_paper():
    said = {"en": ["red bus", "dog"], "nl": ["Red Bus", "hond"], "ru": ["красный автобус", ""], "xx": ["", ""]}
    part = Part("made/train", ["0", "1"], said, ["bus", "dog"], lambda i: np.zeros((256, 256, 3), np.uint8))
    found = text_only.measure_spelling(CaptionSet([(part, np.arange(2))], list(said))).set_index("language")
    assert found["script"].to_dict() == {"en": "Latin", "nl": "Latin", "ru": "Cyrillic"}
    assert found.loc["en", "chrf"] == pytest.approx(1.0) and 0.5 < found.loc["nl", "chrf"] < 0.9
    assert found.loc["ru", "chrf"] == 0.0


def test_every_committed_study_can_be_built(monkeypatch):
    require("stamps")
    known = type("Known", (), {"languages": frozenset({"de", "is"})})()
    monkeypatch.setattr(two_towers, "load_translator", lambda name: known)
    monkeypatch.setattr(two_towers, "is_available", lambda name: True)
    for arms, _ in two_towers.ALIGNMENTS.values():
        assert all(isinstance(one, mpm.Experiment) for one in arms().values())
    monkeypatch.setattr(two_towers, "is_available", lambda name: False)
    with pytest.raises(UserError, match="mpm-lite data get emoji-names"):
        two_towers.retention_arms()


def test_a_figure_in_few_colours_is_smaller_and_as_large():
    drawn = figures.draw_curves(pd.DataFrame({"n": [1, 2], "y": [0.1, 0.2], "arm": ["a", "a"]}), "n", "y", "arm")
    small, buffer = figures.png(drawn), io.BytesIO()
    drawn.savefig(buffer, format="png")
    assert small == figures.png(drawn) and len(small) < 0.6 * len(buffer.getvalue())
    assert Image.open(io.BytesIO(small)).size == Image.open(buffer).size


def test_crossing_interpolates_in_log_and_is_bounded():
    assert two_towers.crossing([100, 1000], [0.2, 0.4], 0.3) == pytest.approx(10**2.5)
    assert (
        two_towers.crossing([100, 1000], [0.2, 0.4], 0.1) == 100
        and two_towers.crossing([100, 1000], [0.2, 0.4], 0.5) == np.inf
    )


def test_an_arm_that_was_run_is_not_run_again(world, monkeypatch):
    arms = {"one": made_experiment(seeds=1, steps=5)}
    first = two_towers.run_arms(arms, world / "study", 1, progress=False)
    monkeypatch.setattr(mpm.Experiment, "run", lambda *a, **k: pytest.fail("run again"))
    second = two_towers.run_arms(arms, world / "study", 1, progress=False)
    pd.testing.assert_frame_equal(first["one"].table, second["one"].table)
    with pytest.raises(UserError, match="another configuration"):
        two_towers.run_arms({"one": made_experiment(seeds=1, steps=6)}, world / "study", 1, progress=False)


def test_figures_describe_themselves():
    rows = pd.DataFrame(
        {
            "text": ["a"] * 4,
            "language": list("wxyz"),
            "alignment": [0.1, 0.4, 0.6, 0.9],
            "rho": [0, 0.3, 0.5, 0.9],
            "low": [0] * 4,
            "high": [1] * 4,
            "cell": ["read", "relative read", "no relative read", "unreadable pieces"],
        }
    )
    assert "alignment" in figures.retention_against(rows).mpm_alt
    lines = pd.DataFrame({"n": [1, 10, 1, 10], "y": [0.1, 0.2, 0.3, 0.4], "arm": list("aabb")})
    assert "from 0.10" in figures.draw_curves(lines, "n", "y", "arm").mpm_alt
    named = lines.assign(n=["sw", "en"] * 2)  # names keep their order
    drawn = figures.draw_curves(named, "n", "y", "arm", log=False)
    assert [t.get_text() for t in drawn.axes[0].get_xticklabels()] == ["sw", "en"]
