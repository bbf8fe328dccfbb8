"""The comparison at equal budgets: what training costs, tables that are equal in what they say, files that are read back."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from worlds import own_home

from mpm_lite import UserError
from mpm_lite.claims import comparisons
from mpm_lite.claims.comparisons import COMPETITORS, PAIRS, TABLES, UPDATES, Competitor
from mpm_lite.cli import main
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import exchanges, grammar
from mpm_lite.data.toyworld.scenes import one_off
from mpm_lite.evaluation.reply_scores import agree
from mpm_lite.experiments import m3p, mblip, mla, mpm_chat
from mpm_lite.experiments.m3p import Matching
from mpm_lite.experiments.mla import Acquiring
from mpm_lite.experiments.mpm_chat import Chat
from mpm_lite.experiments.rivals import Pairing
from mpm_lite.experiments.system import Trial
from mpm_lite.experiments.worlds import DEPTH, ONE_TEXT
from mpm_lite.report import readme, systems
from mpm_lite.teaching import views
from mpm_lite.towers import catalogue
from mpm_lite.towers.load import load_lm
from mpm_lite.training import cost

SHORT = {"steps": 2, "batch": 4, "bf16": False}
M3P = Matching(switch={"words": 0.5}, pairs=30, options={"text_steps": 1, "captions": 2, **SHORT})
PIVOT = Pairing("pivot", pairs=30, options=SHORT)


def of_tables(arm, few):  # the second's arm is the first's, and is not run again
    return dict.fromkeys(TABLES, arm) | {TABLES[2]: few, TABLES[3]: replace(arm, world=ONE_TEXT)}


SMALL = {
    "pivot": Competitor(of_tables(PIVOT, replace(PIVOT, pairs=29)), stands_on=("toy-text",)),
    "M3P": Competitor(of_tables(M3P, replace(M3P, layers=1))),
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    own_home(monkeypatch, tmp_path / "home")
    monkeypatch.setattr(m3p, "SENTENCES", 200)
    return tmp_path


def test_a_book_says_what_each_stage_costs(home):
    bench, arm = mla.MlaBench(progress=False), Acquiring(english=30, english_options=SHORT)
    books = []
    for _ in range(2):  # trained, then read back
        with cost.open_book() as book:
            recipe = bench.dual(arm, 0)
        books.append(book)
    one = books[0][0]
    assert books[0] == books[1] and (one.stage, one.updates, one.trainable) == ("contrast", 2, recipe.trainable)
    # Forward and backward of the text encoder's matrices alone, over the tokens of four captions of three forms.
    batch = bench.captioned(30, 0).batch(torch.arange(4))["ids"]
    matrices = sum(p.numel() for name, p in recipe.encoder.named_parameters() if p.ndim == 2 and "embed" not in name)
    assert 2 * 6 * matrices * batch.numel() < one.flops < 2 * 30 * matrices * batch.numel()
    again = bench.dual(arm, 0)  # with no book: nothing is written down, and noting has changed no weight
    assert all(torch.equal(a, b) for a, b in zip(recipe.parameters(), again.parameters(), strict=True))
    assert len(books[1]) == 1


def test_the_tables_are_equal_in_what_they_say(home, monkeypatch):
    """Without training: pairs, updates and what learns, of every system's arms."""
    updates, most = {}, {}

    def noted(recipe, data=None, seed=0, place="", label="", told=(), progress=True, before=None):
        if before:
            before()
        updates[key] = updates.get(key, 0) + sum(s.steps for s in recipe.stages() if s.name != "text")
        most[key] = max(most.get(key, 0), *(_learns(recipe, stage) for stage in recipe.stages()))
        return recipe.eval()

    def _learns(recipe, stage):
        return sum(p.numel() for p in cost.loop.freeze_all_but(recipe, stage.learns))

    for module in (mla, m3p, mblip):
        monkeypatch.setattr(module, "train_once", noted)
    monkeypatch.setattr(mpm_chat.ChatBench, "align", lambda self, arm, seed: noted(
        self.recipe(mpm_chat.language_model(arm.lm, arm.lm_seed, seed), arm.recipe_options)))  # fmt: skip
    for name, competitor in COMPETITORS.items():
        for table in ("updates", "parameters"):
            key = name, table
            competitor.arms[table].bench().train(competitor.arms[table], 0)
    assert {updates[name, "updates"] for name in COMPETITORS} == {UPDATES}
    goal = most["M3P", "parameters"]
    assert all(abs(most[name, "parameters"] / goal - 1) < 0.06 for name in COMPETITORS), most
    for system in COMPETITORS.values():
        for arm in system.arms.values():
            pairs = arm.pairs
            if isinstance(arm, Acquiring):
                pairs = arm.english + arm.pairs * len(arm.languages)
            elif isinstance(arm, mblip.Realigning):
                pairs = arm.total
            assert pairs == PAIRS
            if system.abroad or system.translated:
                assert arm.noise == comparisons.NOISE  # one translator for all who read one


def test_every_system_and_table_is_written_and_read_back(home, monkeypatch):
    monkeypatch.setattr(comparisons, "COMPETITORS", SMALL)
    monkeypatch.setattr(catalogue, "seeds", lambda name: [0])  # the models whose weights ship
    # M3P reads ten captions beside each picture in every language.
    monkeypatch.setattr(m3p.M3pBench, "languages", lambda *_: ("en", "zh", "sw"))
    run = lambda: comparisons.compare_systems(home / "out", 2, "val", count=20, tables=TABLES)  # noqa: E731
    files = run()
    scores, budgets = (pd.read_csv(home / "out" / f"{name}.csv") for name in ("head-to-head", "head-to-head-budgets"))
    assert {path.name for path in files} == {"head-to-head.csv", "head-to-head-budgets.csv", "head-to-head.json"}
    assert set(scores["table"]) == set(TABLES) and set(scores["system"]) == set(SMALL)
    assert {"en", "others", "sw"} <= set(scores["language"]) and scores["value"].between(0, 1).all()
    first = scores[scores["table"] == "pairs"]
    assert {"choice", "hard", "retrieval", "true"} == set(first["metric"])  # neither system answers questions
    assert set(scores[scores["table"] == "updates"]["metric"]) == {"choice", "hard"}
    for (_, metric), of in first.groupby(["system", "metric"]):
        by = of.set_index("language")["value"]
        assert abs(by.drop(["en", "others"]).mean() - by["others"]) < 1e-3, metric
    assert (budgets["flops"] > 0).all() and set(budgets["translations"]) == {0, 24_000, 39_807}
    monkeypatch.setattr(systems, "ADVICE", tuple(one for one in systems.ADVICE if one[-1] in SMALL))
    monkeypatch.setattr(systems, "has_table", lambda name: name != systems.REAL)
    monkeypatch.setattr(systems, "read_table", lambda name: pd.read_csv(home / "out" / f"{name}.csv"))
    monkeypatch.setattr(systems, "read_card", lambda name: json.loads((home / "out" / f"{name}.json").read_text()))
    block, alt = readme.render_page("assets/results/systems.md"), systems.draw_figure().mpm_alt
    assert block.count("| M3P | ") == 6 and "mpm-lite run head_to_head --seeds 2" in block
    assert repr(views.show_comparison()) == alt  # as the notebook shows it
    for name in (*TABLES, "iglue", "advice"):
        assert "M3P" in views.show_table(name).data and "(2 rows)" in repr(views.show_table(name)), name
    assert "has not run yet" in repr(views.show_table("real"))
    value = f"{first.set_index(['system', 'metric', 'language']).loc[('pivot', 'choice', 'others'), 'value']:.2f}"
    assert f"| pivot | {value} [" in block and f"pivot {value}" in alt
    before = scores.to_csv()

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(comparisons, "shared_bench", never)
    run()
    assert pd.read_csv(home / "out" / "head-to-head.csv").to_csv() == before
    assert main(["claims", "pack", "--out", str(home / "out")]) == 0
    assert not list((home / "out" / "head-to-head-rows").iterdir())
    run()
    again = pd.read_csv(home / "out" / "head-to-head.csv")
    pd.testing.assert_frame_equal(again, scores, atol=1e-3)
    told = json.loads((home / "out" / "head-to-head.json").read_text())
    assert told["tables"] == list(TABLES) and (pd.read_csv(home / "out" / "head-to-head-budgets.csv") == budgets).all(
        axis=None
    )


ONE = {"world": ONE_TEXT, "pairs": 30, "options": SHORT}
OF_ONE_TEXT = {
    "pivot": Pairing("pivot", **ONE),
    "translate-test": Pairing("translate-test", noise=0.05, **ONE),
    "teacher": Pairing("teacher", ("de",), parallel=64, english_options=SHORT, **ONE | {"options": {"steps": 2}}),
    "MLA": Acquiring(("de",), english=30, parallel=64, english_options=SHORT,
                     **ONE | {"pairs": 64, "options": {"transfer_steps": 2, "exposure_steps": 2}}),
    "M3P": replace(M3P, world=ONE_TEXT),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_ONE_TEXT)
def test_where_there_is_one_text_for_all_encoders_come_from_the_language_models(home, name):
    arm = OF_ONE_TEXT[name]
    bench = arm.bench(progress=False)
    recipe = bench.train(arm, 0)
    rows = bench.choose(recipe, 0, "val", ("en", "de"), count=12)
    assert rows["choice"].between(0, 1).all() and set(rows["language"]) == {"en", "de"}
    english = name in ("translate-test", "MLA")  # MLA's encoder is English, and its table of other languages is not
    theirs = load_lm("toy-english" if english else "toy-mixed", 0).model.base_model
    table = theirs.get_input_embeddings().weight
    part = recipe.english if name == "MLA" else recipe
    ours = part.encoder.get_input_embeddings().weight
    captions = [caption for few in exchanges.draw_candidates(toyworld.split_scenes("val")[:30]) for caption in few]
    ids = m3p.encoded([exchanges.caption(one, code) for one in captions for code in ("en", "de")])
    used = ids.unique()[4:]  # half of the vocabulary are pieces of words that no text has
    like = lambda a, b: torch.nn.functional.cosine_similarity(a[used], b[used], dim=-1).median()  # noqa: E731
    assert like(ours, table) > 0.9, "a few steps later, the words are still nearly the language model's"
    if name != "M3P":
        assert len(part.encoder.layers) == DEPTH < len(theirs.layers)
    if name == "MLA":
        mixed = load_lm("toy-mixed", 0).model.get_input_embeddings().weight
        assert like(recipe.acquirers.enter.words.weight, mixed) > 0.9 > like(ours, mixed)
    models = {"pivot": {"toy-mixed"}, "M3P": {"toy-mixed"}, "translate-test": {"toy-english"}}
    assert {name for name, _ in arm.models(0).values()} == models.get(name, {"toy-mixed", "toy-english"})
    assert not replace(arm, world="toyworld").models(0)
    assert Trial(arm, 0).key() != Trial(replace(arm, world="toyworld"), 0).key()


def test_missing_language_models_are_said_before_anything_is_trained(home):
    with pytest.raises(
        UserError, match="`mpm-lite pretrain toy-english:1 toy-english:2 toy-mixed:1 toy-mixed:2` makes"
    ):
        comparisons.compare_systems(home / "out", tables=TABLES[3:])


def test_what_writes_is_asked_through_its_captions(home, monkeypatch):
    scenes = toyworld.split_scenes("val")[:12]
    gold = [grammar.in_order(scene, "de")[0] for scene in scenes]
    assert [agree(one, scene, "de") for one, scene in zip(gold, scenes, strict=True)] == [1.0] * 12
    assert agree("", scenes[0], "de") == 0 < agree(gold[0], one_off(scenes[0])[0], "de") < 1
    arm = Chat(lm="toy-mixed", lm_seed=0, pairs=30, options=SHORT)
    trial = comparisons.comparison(Competitor({"text": arm}), "text", 0, "val", 12)
    bench = arm.bench(progress=False)
    # As it would be if it saw everything, and said it in German alone.
    monkeypatch.setattr(type(bench), "say", lambda self, recipe, soft, many, language: gold)
    rows = trial.run(bench)
    by = rows.groupby(["look", "language"])["captioned"].mean()
    assert (by.xs("de", level=1) == 1).all() and by["real", "zh"] < 0.3 and rows["choice"].notna().all()
    assert "captioned" not in comparisons.comparison(Competitor({"pairs": PIVOT}), "pairs", 0, "val", 12).run()


def test_a_comparison_that_was_stopped_leaves_the_tables_that_are_whole(home, monkeypatch):
    monkeypatch.setattr(comparisons, "COMPETITORS", {"pivot": SMALL["pivot"]})

    def stopping(line):
        assert "equal updates" not in line
        if "equal parameters" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comparisons.compare_systems(home / "out", 1, "val", stopping, count=20)
    assert set(pd.read_csv(home / "out" / "head-to-head.csv")["table"]) == {"pairs", "updates"}
    monkeypatch.setattr(systems, "read_card", lambda name: json.loads((home / "out" / f"{name}.json").read_text()))
    assert list(systems.read_titles()) == ["pairs", "updates"]
    monkeypatch.setattr(systems, "has_table", lambda name: True)
    assert "has not run yet" in repr(views.show_table("parameters"))


def test_what_readme_advises_follows_from_the_tables():
    """Its paragraph on what to choose: who stands before whom, in every table."""
    others, in_english = systems.join_budgets(), systems.join_budgets(language="en")
    for name in systems.read_titles():
        scores = others[others["table"] == name].set_index("system")
        english = in_english[in_english["table"] == name].set_index("system")["value"]
        by_text, words = ["MLA", "teacher", "translate-train", "pivot"], ["MPM", "M3P", "mBLIP"]
        assert (
            scores.loc[by_text, "low"].min() > scores.loc["translate-test", "value"] > scores.loc[words, "high"].max()
        )
        assert scores.loc[["MLA", "teacher"], "value"].min() > scores.loc["pivot", "value"]
        assert english["MPM"] > 0.9 and english["mBLIP"] < 0.8
    m3p = others[others["system"] == "M3P"].set_index("table")["value"]
    assert m3p["updates"] < m3p["pairs"]


def test_readme_says_of_real_pictures_what_the_table_says():
    """Its paragraph on them, and notebook 10's."""
    rows = systems.read_table(systems.REAL)
    by = {key: of.set_index("system") for key, of in rows.groupby(["metric", "language"])}
    recall, choice, english = by["recall", "others"], by["choice", "others"]["value"], by["recall", "en"]["value"]
    ways = ["pivot", "teacher", "translate-train"]
    assert recall["value"].idxmax() == choice.idxmax() == "translate-test"
    assert recall.loc[ways, "value"].max() - recall.loc[ways, "value"].min() < 0.03
    assert (english[["teacher", "translate-train"]] < english["pivot"]).all() and choice[ways].idxmax() == "teacher"
    assert recall.loc["untranslated", "value"] < recall.loc["MLA", "low"] and english["MLA"] >= english["pivot"] - 0.01
    assert recall.loc[ways, "value"].min() > recall.loc["MLA", "value"] and choice[ways].min() > choice["MLA"]
    m3p = {language: by["choice", language].loc["M3P"] for language in ("en", "others")}
    assert all(of["low"] > of["chance"] for of in m3p.values())
    over = {language: of["value"] - of["chance"] for language, of in m3p.items()}
    assert 0.6 * over["en"] < over["others"] < over["en"] and by["choice", "en"]["value"].idxmin() == "M3P"
    assert choice["untranslated"] < m3p["others"]["low"] and m3p["others"]["value"] < choice["MLA"]


def test_the_notebook_says_what_has_not_run(monkeypatch):
    monkeypatch.setattr(systems, "has_table", lambda name: False)
    assert "has not run yet" in repr(views.show_comparison())


def test_the_comparison_takes_no_settings(home, capsys):
    assert main(["run", "head_to_head", "--set", "pairs=3"])
    assert "committed configuration" in capsys.readouterr().err
