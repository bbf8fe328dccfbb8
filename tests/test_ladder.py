"""The identity, retention = t * e, on made-up readers whose t and e are known; and the ladder, small, from end to end."""

import json

import numpy as np
import pandas as pd
import pytest
from worlds import own_home

from mpm_lite import UserError
from mpm_lite.claims import ladder
from mpm_lite.cli import main
from mpm_lite.core import figures, provenance, runtime
from mpm_lite.data.toyworld import grammar
from mpm_lite.evaluation.stats import Sample
from mpm_lite.experiments.mpm_chat import Chat
from mpm_lite.experiments.pretrain import language_models
from mpm_lite.recipes.pretraining.language_model import LanguageModel, LanguageModelOptions
from mpm_lite.report import readme
from mpm_lite.towers import catalogue
from mpm_lite.towers.load import load_lm
from mpm_lite.towers.text import save_tokenizer

TINY = LanguageModelOptions(width=32, layers=2, hidden=64, lookups=2, steps=4, compiled=False)
OTHERS = ladder.OTHERS


def reader(arm, t, e, english=0.8, seen=0.75, blind=0.3, n=300, seeds=(0, 1)):
    """Items of a system whose English gains `english` - `blind` from the caption and of that the share `seen` from the picture;
    other languages gain t of the first, and from the picture e times as large a share of that."""
    text = {"en": english - blind} | dict.fromkeys(OTHERS, t * (english - blind))
    picture = {code: gain * seen * (1 if code == "en" else e) for code, gain in text.items()}
    frames = []
    for code in grammar.LANGUAGES:
        for look, gain in (("blind", 0.0), ("english", text[code]), ("real", picture[code])):
            for seed in seeds:
                rng = np.random.default_rng([seed, *f"{arm} {code} {look}".encode()])
                hits = (rng.random(n) < blind + gain).astype(float)
                told = {"arm": arm, "language": code, "look": look, "seed": seed, "lm_seed": seed}
                told |= {"item": [f"i{i}" for i in range(n)], "concept": [f"c{i % 40}" for i in range(n)]}
                frames.append(pd.DataFrame(told | dict.fromkeys(ladder.METRICS, hits)))
    return pd.concat(frames, ignore_index=True)


def reader_mean(items, code, look):
    return items[(items["language"] == code) & (items["look"] == look)]["answers"].mean()


@pytest.mark.parametrize(("t", "e"), [(0.95, 1.0), (0.5, 1.0), (0.95, 0.5), (0.5, 0.6)])
def test_retention_is_text_transfer_times_pivot_efficiency(t, e):
    items = reader("a", t, e)
    found = Sample(items, draws=500).identity("a", OTHERS, "answers")
    assert abs(found.retention.value - found.transfer.value * found.efficiency.value) < 1e-6
    gains = {
        code: [reader_mean(items, code, look) - reader_mean(items, code, "blind") for look in ("real", "english")]
        for code in grammar.LANGUAGES
    }
    others = np.mean([gains[code] for code in OTHERS], axis=0)
    assert found.retention.value == pytest.approx(others[0] / gains["en"][0])
    assert found.transfer.value == pytest.approx(others[1] / gains["en"][1])
    assert np.allclose(found.retention.draws, found.transfer.draws * found.efficiency.draws, atol=1e-6)
    for figure, truth in ((found.transfer, t), (found.efficiency, e), (found.retention, t * e)):
        assert figure.interval.low < truth < figure.interval.high
        assert 0 < figure.interval.high - figure.interval.low < 0.6
    assert set(found.table()) == {"retention", "t", "e"}


def test_joint_draws_make_a_shorter_interval_than_draws_apart():
    """What makes an English picture hard makes it hard in every language; draws that are not paired would not know."""
    items = reader("a", 0.9, 1.0)
    hard = items["item"].str.slice(1).astype(int) % 2 == 0
    items.loc[hard, list(ladder.METRICS)] = 0.0
    found = Sample(items, draws=500).identity("a", OTHERS, "answers")
    apart = found.picture.draws / np.random.default_rng(0).permutation(found.pivot_picture.draws)
    assert found.retention.draws.std() < apart.std()


def test_no_ratio_is_said_where_english_gains_too_little():
    found = Sample(reader("a", 0.9, 1.0, english=0.45), draws=200).identity("a", OTHERS, "answers")
    assert not found.said and set(found.table()) == {
        "gain, picture",
        "gain, English caption",
        "gain in English, picture",
        "gain in English, English caption",
    }
    assert found.table()["gain in English, picture"].value == pytest.approx(0.15 * 0.75, abs=0.06)


def test_the_ladder_tells_a_perfect_pivot_from_one_that_fails():
    """Where e is 1 on every rung, retention follows t; where sight fails in other languages, e says so at every t."""
    strengths = (0.2, 0.4, 0.6, 0.8, 0.95)
    for e in (1.0, 0.4):
        many = [reader(f"m:{i}", t, e, n=600, seeds=(0,)) for i, t in enumerate(strengths)]
        scores = ladder.ladder_table(pd.concat(many, ignore_index=True), draws=100)
        assert len(scores) == len(strengths) * len(ladder.METRICS) * 3
        said = ladder.across_models(scores, draws=300).set_index(["metric", "figure"])
        of = said.loc["answers", "mean e"]
        assert of["low"] <= of["value"] <= of["high"] and of["models"] == len(strengths)
        assert abs(of["value"] - e) < 0.2
        assert said.loc[("answers", "retention against t"), "value"] > 0.8
        figure = figures.draw_ladder(scores, dict(ladder.METRICS), ladder.tower_points())
        assert "5 language models" in figure.mpm_alt


def test_an_untrained_reader_gets_gains_and_no_ratios():
    scores = ladder.ladder_table(reader("m:0", 0.0, 0.0, english=0.3), draws=50)
    assert len(set(scores["figure"])) == 4
    assert "t" not in set(scores["figure"]) and ladder.across_models(scores).empty


def test_no_efficiency_is_said_where_the_others_read_nothing():
    """Sight that loses nothing, in a language model that reads English alone: retention is 0, and e would be noise."""
    rows = pd.concat([reader(f"m:{i}", 0.0, 1.0) for i in range(4)], ignore_index=True)
    scores = ladder.ladder_table(rows, draws=100)
    assert set(scores["figure"]) == {"retention", "t"} and (scores["high"] < 0.2).all()
    said = ladder.across_models(scores, draws=50)
    assert set(said["figure"]) == {"retention against t"}
    assert figures.draw_ladder(scores, dict(ladder.METRICS)).mpm_alt


def test_other_options_of_the_recipe_are_other_rows(monkeypatch):
    rung = next(r for r in ladder.all_rungs() if catalogue.is_present(r.name, r.seed))
    before = ladder.rung_trial(rung, "test").key()
    monkeypatch.setattr(ladder, "RECIPE", Chat(options={"queries": 8}))
    assert ladder.rung_trial(rung, "test").key() != before


def test_the_ladder_that_ships_is_what_its_rows_say():
    """One model's rows give that model's lines of the table; all models have their lines, and their rows."""
    out = runtime.asset("results")
    said, card = pd.read_csv(out / "ladder.csv"), json.loads((out / "ladder.json").read_text())
    told = [rung for rung in ladder.all_rungs() if str(rung) in card["models"]]
    assert len(told) == len(card["models"]) == len(said.drop_duplicates(["lm", "lm_seed"])) >= 8
    assert not ladder.shelf(out).missing([ladder.name_of(ladder.rung_trial(rung, "test").key()) for rung in told])
    one = next(rung for rung in told if rung.name == "toy-mixed")
    again = ladder.ladder_table(ladder.read_items([one], out))
    lines = said[(said["lm"] == one.name) & (said["lm_seed"] == one.seed)].reset_index(drop=True)
    numbers = ["value", "low", "high"]
    assert again[["metric", "figure"]].equals(lines[["metric", "figure"]])
    assert np.allclose(again[numbers], lines[numbers], atol=2e-4)


def test_what_the_readme_says_of_the_ladder_is_so():
    """Its words on closed questions and on captions; the numbers are compared elsewhere."""
    scores = pd.read_csv(runtime.asset("results/ladder.csv"))
    e = scores[scores["figure"] == "e"].set_index(["metric", "lm", "lm_seed"]).sort_index()
    # Near 1 or above it: pictures serve the other languages at least about as well as captions do.
    assert e.loc["answers", "value"].min() > 0.8 and e.loc["answers", "high"].min() > 0.95
    models = pd.read_csv(runtime.asset("results/ladder-models.csv")).set_index(["metric", "figure"])
    follows = models.loc[pd.IndexSlice[:, "retention against t"], :]
    assert (follows["low"] > 0).all() and (follows["value"] > 0.8).all()
    mixed = e.index.get_level_values("lm").str.startswith("toy-mixed")
    for metric in ("slots", "choice"):
        here = e.index.get_level_values("metric") == metric
        assert e.loc[here & mixed, "value"].min() > e.loc[here & ~mixed, "value"].max()
    words = e.index.get_level_values("metric") == "slots"  # of choice, intervals overlap
    assert e.loc[words & mixed, "low"].min() > e.loc[words & ~mixed, "high"].max()
    assert e.loc["exact", "high"].max() < 0.95, "even in the strongest models looking is not as good as reading"


def test_two_models_are_too_few_to_speak_for_all():
    rows = pd.concat([reader("m:0", 0.5, 1.0), reader("m:1", 0.9, 1.0)], ignore_index=True)
    assert ladder.across_models(ladder.ladder_table(rows, draws=50)).empty


def test_the_study_runs_is_kept_and_goes_on(tmp_path, monkeypatch, capsys):
    own_home(monkeypatch, tmp_path)
    monkeypatch.setattr(ladder, "RECIPE", Chat(pairs=16, options={"steps": 2, "batch": 8, "bf16": False}))
    monkeypatch.setattr(ladder, "ASKED", {**ladder.ASKED, "count": 12})
    monkeypatch.setattr(
        ladder, "present_rungs", lambda: [r for r in ladder.all_rungs() if r.name == "toy-mixed-short"][:1]
    )
    tokenizer = load_lm("toy-english").tokenizer
    monkeypatch.setattr(catalogue, "shipped", lambda name: [])
    monkeypatch.setattr(catalogue, "_there", lambda name: catalogue._in(tmp_path / "lm", name))
    with pytest.raises(UserError, match="toy-mixed-short:0 is not here"):
        ladder.run_ladder(tmp_path / "out")
    model = LanguageModel(
        len(tokenizer), TINY, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    language_models.save(
        model.decoder, tmp_path / "lm/toy-mixed-short-0", lambda beside: save_tokenizer(tokenizer, beside)
    )
    assert main(["run", "ladder", "--out", str(tmp_path / "out")]) == 0
    assert "ladder.csv" in capsys.readouterr().out
    scores = pd.read_csv(tmp_path / "out/ladder.csv")
    assert set(scores["metric"]) == set(ladder.METRICS) and set(scores["lm"]) == {"toy-mixed-short"}
    card = json.loads((tmp_path / "out/ladder.json").read_text())
    assert card["models"] == ["toy-mixed-short:0"]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/ladder").iterdir()}
    ladder.run_ladder(tmp_path / "out")
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/ladder").iterdir()}, "nothing again"

    monkeypatch.setattr(ladder, "STRONGEST", "toy-mixed-short")
    monkeypatch.setattr(ladder, "CONNECTORS", {ladder.PAPER: {}, "self-distillation": {"distil": 1.0}})
    assert main(["run", "connectors", "--out", str(tmp_path / "out")]) == 0
    rows = set((tmp_path / "out/ladder").iterdir())
    assert set(kept) < rows and len(rows) == 2, "the paper's connector on that model is the ladder's"
    scores = pd.read_csv(tmp_path / "out/connectors.csv")
    assert set(scores["connector"]) == set(ladder.CONNECTORS) and set(scores["models"]) == {1}
    card = json.loads((tmp_path / "out/connectors.json").read_text())
    assert card["command"] == "mpm-lite run connectors --out assets/results"


def test_every_connector_is_held_against_the_papers():
    """Made-up connectors: one that loses half of what is carried over to other languages, and one that loses nothing."""
    lost = dict.fromkeys(ladder.CONNECTORS, 0.5) | {"self-distillation": 1.0}
    many = [reader(name, 0.95, e).assign(connector=name) for name, e in lost.items()]
    found = ladder.connectors_table(pd.concat(many, ignore_index=True), draws=300)
    found = found.set_index(["connector", "metric", "figure"])
    assert (found["models"] == 2).all() and (ladder.PAPER, "slots", "others, over the paper's") not in found.index
    for metric in ladder.METRICS:
        better = found.loc[("self-distillation", metric, "others, over the paper's")]
        same = found.loc[("four queries", metric, "others, over the paper's")]
        assert better["low"] > 0.05 and same["low"] < 0 < same["high"]
        assert found.loc[("self-distillation", metric, "e"), "value"] > found.loc[(ladder.PAPER, metric, "e"), "high"]


def test_what_the_page_says_of_connectors():
    """The words under the table of connectors hold for the committed rows."""
    of = provenance.read_table("connectors").set_index(["connector", "metric", "figure"])
    for metric in ("slots", "choice"):
        e = of.loc[("self-distillation", metric, "e")]
        assert round(e["value"], 2) == 0.99 and e["low"] > of.loc[("as in the paper", metric, "e"), "value"]
    english = {name: of.loc[(name, "answers", "English"), "value"] for name in ("self-distillation", "as in the paper")}
    assert english["self-distillation"] > english["as in the paper"]
    exact = {name: of.loc[(name, "exact", "English")] for name in ("self-distillation", "as in the paper")}
    assert exact["self-distillation"]["high"] < exact["as in the paper"]["low"]
    more = of.xs("others, over the paper's", level="figure")
    assert (more.loc["self-distillation", "low"] > 0).all() and (more.loc["four queries", "high"] < 0).all()
    assert (more.loc["three times the steps", "value"] > 0).all() and more.loc[
        "three times the steps", "value"
    ].max() < 0.1
    mixed = more.loc["mixtures of embeddings"]
    assert ((mixed["low"] < 0) & (mixed["high"] > 0)).all()


def test_connectors_differ_in_one_option_each_and_read_english_only():
    arms = {name: ladder.Rung(ladder.STRONGEST, 0, name).system for name in ladder.CONNECTORS}
    assert arms[ladder.PAPER] == ladder.Rung(ladder.STRONGEST, 0).system == Chat(lm=ladder.STRONGEST, lm_seed=0)
    assert all(arm.languages == ("en",) and not arm.also for arm in arms.values())
    keys = {ladder.rung_trial(rung, "test").key().digest for rung in ladder.connector_rungs()}
    assert len(keys) == len(ladder.connector_rungs()) > 0 and len(keys) % len(ladder.CONNECTORS) == 0


def test_mistakes_are_said_in_one_sentence(monkeypatch, capsys):
    assert main(["run", "ladder", "--set", "steps=3"]) == 2
    assert "committed configuration" in capsys.readouterr().err
    assert main(["run", "ladder", "--seeds", "3"]) == 2
    assert "neither --set nor --seeds" in capsys.readouterr().err
    assert main(["run", "connectors", "--seeds", "3"]) == 2
    assert "neither --set nor --seeds" in capsys.readouterr().err
    assert main(["pretrain", "--ladder", "toy-mixed:0"]) == 2
    assert "--ladder names its own models" in capsys.readouterr().err
    monkeypatch.setattr(ladder, "present_rungs", list)
    assert main(["run", "ladder"]) == 2
    assert "mpm-lite pretrain --ladder" in capsys.readouterr().err


def test_the_page_of_the_ladder_has_a_line_for_each_connector_and_score():
    lost = dict.fromkeys(ladder.CONNECTORS, 0.5) | {"self-distillation": 1.0}
    many = [reader(name, 0.95, e).assign(connector=name) for name, e in lost.items()]
    table = readme.list_connectors(ladder.connectors_table(pd.concat(many, ignore_index=True), draws=50))
    lines = table.splitlines()
    assert len(lines) == 2 + len(ladder.CONNECTORS) * len(ladder.METRICS)
    assert lines[2].startswith(f"| closed questions | {ladder.PAPER} |") and "| - |" in lines[2]
