"""The ledger's machinery on made-up rows whose answer is known, and on one tiny claim that really runs."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from worlds import own_home

from mpm_lite import UserError
from mpm_lite.claims import ladder, ledger, mpm
from mpm_lite.claims.ledger import CLAIMS
from mpm_lite.cli import main
from mpm_lite.core import figures, runtime
from mpm_lite.data.toyworld import grammar
from mpm_lite.evaluation import choice, stats
from mpm_lite.evaluation.chat import METRICS as OF_CHAT
from mpm_lite.evaluation.stats import Sample
from mpm_lite.experiments import mpm_paint
from mpm_lite.experiments.mpm_chat import Chat

SEEDS = range(5)
ITEMS, CONCEPTS = (np.array([f"{letter}{i}" for i in range(400)], object) for letter in "ic")
METRICS = list(dict.fromkeys((*OF_CHAT, *mpm_paint.SCORES, *mpm_paint.OF_SETS, *choice.SCORES)))


def rows(arm, language, look="real", n=400, seeds=SEEDS, **means):
    """Made-up scores: 0 or 1 by picture and seed with the given means."""
    levels = np.array([means.get(metric, 0.0) for metric in METRICS])
    drawn = [
        np.random.default_rng([seed, *f"{arm} {language} {look}".encode()]).random((len(METRICS), n)) for seed in seeds
    ]
    frame = pd.DataFrame((np.concatenate(drawn, axis=1).T < levels).astype(float), columns=METRICS)
    if "nats" in means:
        frame["nats"] = means["nats"]
    seed, k = np.repeat(seeds, n), np.tile(np.arange(n), len(seeds))
    named = {"item": ITEMS[k], "concept": CONCEPTS[k % 40]}
    return frame.assign(arm=arm, language=language, look=look, seed=seed, lm_seed=seed % 3, **named)


def world(arms, **blind):
    """{arm: (means in English, means in the others)} as rows of all ten languages, real and blind."""
    every = []
    for arm, (english, others) in arms.items():
        for code in grammar.LANGUAGES:
            said = english if code == "en" else others
            every += [
                rows(arm, code, **said),
                rows(arm, code, "blind", **blind),
                rows(arm, code, "begun", **said),
                rows(arm, code, "text", **({"reply_language": 1.0} | said)),
            ]
    return Sample(pd.concat(every, ignore_index=True), draws=400)


def test_figures_keep_their_draws_paired():
    s = world({"mpm": ({"slots": 0.9}, {"slots": 0.6})}, slots=0.3)
    rho = s.rho("mpm", "de", "slots")
    assert rho.value == pytest.approx(0.5, abs=0.1) and rho.interval.low < 0.5 < rho.interval.high
    same = s.score("mpm", "de", "slots") - s.score("mpm", "de", "slots")
    assert same.value == 0 and not same.draws.any()
    assert np.isclose(stats.average_figures([rho, rho]).value, rho.value) and s.n == 400
    with pytest.raises(UserError, match="No rows of arm 'mlp'"):
        s.score("mlp", "de", "slots")
    with pytest.raises(UserError, match="'agreement' of arm 'mpm' in 'de', real, was not asked for"):
        Sample(s.items.assign(agreement=np.nan), draws=10).score("mpm", "de", "agreement")
    with pytest.raises(UserError, match="mean of no figures"):
        stats.average_figures([])


def test_a_score_is_the_resampled_mean_over_a_table_of_seeds_and_pictures():
    """By its formula, from a pivot table, bit for bit: rows in any order, some of them missing, some without a value."""
    known = rows("a", "en", slots=0.4, n=90).astype({"slots": "float32"}).sample(frac=0.9, random_state=0)
    known.loc[known.sample(frac=0.1, random_state=1).index, "slots"] = np.nan
    s = Sample(known, draws=300)
    hits = known.pivot(index="seed", columns="item", values="slots").loc[s.seeds, list(s.names)].to_numpy()
    over, share = (
        stats.average_draws(x, s.weights, s.seed_weights)
        for x in (np.nan_to_num(hits), np.isfinite(hits).astype(float))
    )
    found = s.score("a", "en", "slots")
    equal = s.seed_shares[:, None]  # language models count alike, however many seeds share one
    mean = (equal * np.nan_to_num(hits)).sum() / (equal * np.isfinite(hits)).sum()
    assert found.value == pytest.approx(float(mean), abs=1e-9) and np.array_equal(found.draws, over / share)
    assert s.score("a", "en", "slots") is found, "a figure is computed once"
    with pytest.raises(UserError, match="Arm 'a' has a picture twice"):
        Sample(pd.concat([known, known[:1]]), draws=10).score("a", "en", "slots")


def test_some_packed_rows_are_read_without_the_others():
    shelf = ladder.shelf(runtime.asset("results"))
    every = shelf.packed()
    keys = every["key"].unique()[[3, 11]]
    pd.testing.assert_frame_equal(
        shelf.packed(keys), every[every["key"].isin(keys)].reset_index(drop=True), check_exact=True
    )
    assert shelf.packed([]).empty


def test_an_interval_covers_the_truth_as_often_as_it_says():
    """Scores with a known mean, drawn again and again with other pictures and seeds: 95 % of intervals hold it."""
    held = 0
    for trial in range(120):
        rng = np.random.default_rng(trial)
        seed_level, picture_level = rng.normal(0.5, 0.1, 5), rng.normal(0, 0.1, 60)
        frames = [
            pd.DataFrame({"slots": seed_level[k] + picture_level + rng.normal(0, 0.05, 60)}).assign(
                arm="a",
                language="en",
                look="real",
                seed=k,
                lm_seed=k,
                item=[f"i{j}" for j in range(60)],
                concept=[f"c{j}" for j in range(60)],
            )
            for k in range(5)
        ]
        found = Sample(pd.concat(frames, ignore_index=True), draws=400).score("a", "en", "slots").interval
        held += found.low <= 0.5 <= found.high
    # Five seeds resampled understate their spread (by the square root of 4/5, and with thin tails): not 95, but near.
    assert 0.78 <= held / 120 <= 0.99


def test_language_models_are_drawn_before_the_seeds_that_share_one():
    """Scores that differ by language model alone: five seeds on three models must not look like five witnesses."""
    means = {0: 0.2, 1: 0.5, 2: 0.8}
    frames = [rows("a", "en", seeds=[k], slots=means[k % 3]) for k in range(6)]
    shared = Sample(pd.concat(frames, ignore_index=True), draws=2000)
    assert np.allclose(shared.seed_weights.sum(1), 3) and shared.seed_weights.shape == (2000, 6)
    apart = Sample(pd.concat(frames, ignore_index=True).assign(lm_seed=lambda f: f["seed"]), draws=2000)
    wide, narrow = (s.score("a", "en", "slots").interval for s in (shared, apart))
    assert wide.high - wide.low > 1.15 * (narrow.high - narrow.low)


def test_alignment_and_text_transfer_are_read_from_what_was_measured():
    near, far = (mpm.alignments(name)["value"].mean() for name in ("toy-mixed", "toy-english"))
    assert 0 <= far < near <= 1 and 1 <= mpm.chosen_layer("toy-mixed") <= 4
    assert mpm.text_transfer("toy-mixed").min() > 0.8 > mpm.text_transfer("toy-unmixed").min()
    assert mpm.C6_ARMS["english LM"].layer == mpm.chosen_layer(), (
        "the control reads the layer that the effect is read at"
    )
    with pytest.raises(UserError, match="mpm-lite pretrain toy-x:0"):
        mpm.alignments("toy-x")


@pytest.mark.parametrize("name", list(CLAIMS))
def test_every_claim_is_whole(name):
    claim = CLAIMS[name]
    assert claim.id == name and all(text.endswith(".") for text in (claim.statement, claim.rule, claim.change))
    assert claim.control and claim.effect and claim.here and (claim.size or name == "instrument")
    # Figures that nobody verified are quoted nowhere.
    assert not claim.theirs or "[R]" in claim.theirs or "[S]" in claim.theirs
    assert bool(claim.arms) != bool(claim.study)
    if claim.arms:
        assert claim.asked["count"] >= 100 and claim.asked["first"] >= 200 and "split" not in claim.asked


TINY = {"steps": 2, "batch": 8, "queries": 4, "width": 32, "heads": 2, "layers": 1, "bf16": False}


@pytest.fixture
def tiny(monkeypatch):
    arms = {
        "mpm": Chat(lm="toy-multilingual", pairs=16, options=TINY),
        "english LM": Chat(lm="toy-multilingual", lm_seed=1, pairs=16, options=TINY),
    }
    asked = {"count": 6, "first": 3, "captions": False, "looks": ("real", "blind", "english")}
    one = replace(CLAIMS["C1a"], arms=arms, asked=asked)
    monkeypatch.setitem(CLAIMS, "C1a", one)
    return one


def test_a_claim_runs_resumes_and_is_entered(tiny, tmp_path, monkeypatch):
    own_home(monkeypatch, tmp_path / "home")
    said = []

    def stopping(line):
        said.append(line)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.run_claim("C1a", tmp_path, [20], "val", stopping)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "claims").iterdir()}
    assert len(kept) == 1
    with pytest.raises(UserError, match="delete that file, and `mpm-lite claims run C1a`"):
        ledger.judge_claim(tiny, tmp_path, [20], "val")
    said.clear()
    found = ledger.run_claim("C1a", tmp_path, [20], "val", said.append)
    assert len(said) == 1 and all(p.stat().st_mtime_ns == t for p, t in kept.items())
    assert found["seeds"] == 1 and found["n"] == 6
    ledger.write_ledger(found, tmp_path / "claims.json")
    table = ledger.ledger_table(tmp_path / "claims.json")
    assert list(table.columns) == list(ledger.COLUMNS) and list(table["claim"]) == list(CLAIMS)
    assert table.set_index("claim").loc["C1a", "seeds"] == 1 and (table["verdict"] == "pending").all()
    loose = tmp_path / "loose"
    shutil.copytree(tmp_path / "claims", loose / "claims")
    packed = ledger.shelf(loose).pack()
    assert not list((loose / "claims").iterdir()) and packed.name == "claims.parquet"
    said.clear()
    again = ledger.run_claim("C1a", loose, [20], "val", said.append)
    assert not said, "what is packed is not run again"
    assert again.keys() == found.keys() and again["effect"] == pytest.approx(found["effect"], abs=0.01, nan_ok=True)
    ledger.run_claim("C1a", loose, [20, 21], "val", said.append)
    assert len(said) == 2
    assert len(pd.read_parquet(ledger.shelf(loose).pack())) == 2 * len(ledger.read_items(tiny, tmp_path, [20], "val"))
    with pytest.raises(UserError, match="No rows lie under"):
        ledger.shelf(loose).pack()
    packed.write_bytes(b"torn")
    with pytest.raises(UserError, match="not readable: delete it"):
        ledger.read_items(tiny, loose, [20], "val")
    next(iter(kept)).write_bytes(b"torn")
    with pytest.raises(UserError, match="not readable"):
        ledger.read_items(tiny, tmp_path, [20], "val")


def test_the_command_line_prints_the_ledger_and_knows_its_claims(tmp_path, capsys):
    assert main(["claims", "table", "--json", str(tmp_path / "t.json")]) == 0
    assert "C8" in capsys.readouterr().out and len(pd.read_json(tmp_path / "t.json")) == len(CLAIMS)
    assert main(["claims", "run", "C77", "--out", str(tmp_path)]) == 2
    assert "Unknown claim 'C77'" in capsys.readouterr().err
    (tmp_path / "claims.json").write_text("{")
    assert main(["claims", "table", "--out", str(tmp_path)]) == 2


def test_figures_of_a_ledger_come_from_its_details(tmp_path):
    """A point for each share, and all that was found as text; where a claim has not run again, what the first ledger found."""
    book = tmp_path / "claims.json"
    assert ledger.replies_by_share(book) is None
    assert "pending; `mpm-lite claims run C3` runs it" in " ".join(ledger.describe_claim("C3", book).split())
    shares = {
        f"{what} at {x}{tail}": [0.5, 0.4, 0.6]
        for what in ("reply in L", "content")
        for x in ("1 %", "5 %")
        for tail in ("", " of text alone")
    }
    shares |= {f"{what} at none": [0.1, 0.0, 0.2] for what in ("reply in L", "content")}
    row = {
        "claim": "C3",
        "seeds": 5,
        "models": 5,
        "n": 60,
        "commit": "abc",
        "split": "test",
        "effect": 0.5,
        "low": 0.4,
        "high": 0.6,
    }
    row |= {"control_effect": 0.1, "control_low": 0.0, "control_high": 0.2, "p": {"for": 1.0, "against": 1.0}}
    part = {
        "part": "claim",
        "said": "x",
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "above": 0.5,
        "met": True,
        "holds": False,
    }
    ledger.write_ledger(row | {"conditions": [part], "details": shares}, book)
    replies = ledger.replies_by_share(book)
    assert len(replies) == 2 * 2 * 3 and set(replies["metric"]) == {"reply_language", "content"}
    none = replies.groupby(["metric", "share"])["value"].nunique().loc[:, 0.0]
    assert none.eq(1).all(), "none is none, of either kind"
    said = ledger.describe_claim("C3", book)
    assert (
        "0.500 [0.400, 0.600] replies in the language asked" in said
        and "verdict: no power" in said
        and "reply in L at 5 %" in said
    )
    few = ledger.read_details("C3", {"reply in L at 1 %": "one", "reply in L at 5 %": "five"}, book)
    assert list(few["name"]) == ["one", "five"] and (few["low"] <= few["high"]).all()
    with pytest.raises(UserError, match="mpm-lite claims run C1a"):
        ledger.read_details("C1a", {}, book)
    dots = figures.draw_intervals(few.assign(group=["a", "b"]), "retention")
    assert "five" in dots.mpm_alt and dots.axes[0].get_legend()
    for figure in (figures.draw_reply_language(replies, {"content": "content"}), dots):
        assert len(figure.mpm_alt) > 60


def test_the_first_ledger_stands_beside_todays():
    """Each of its claims is one of today's, with the words that it was judged by and a reason where those changed."""
    first = ledger.read_first()
    assert set(first) <= set(CLAIMS) and len(first) == 18
    for name, row in first.items():
        assert set(row["told"]) == {"statement", "theirs", "effect", "control", "rule"} and CLAIMS[name].why
        said = ledger.describe_claim(name)
        assert f"first ledger: {row['verdict']}" in " ".join(said.split())
    for name in set(first) - set(ledger.read_ledger()):
        assert ledger.latest_row(name) == first[name] and "pending" in ledger.describe_claim(name)


def test_the_ledger_that_ships_is_what_its_rows_say():
    """Judged again from the packed rows (three decimals of a score), every claim that has run comes out as it stands."""
    known, out = ledger.read_ledger(), runtime.asset("results")
    assert known, "the ledger is empty"
    todays = {}
    for name, row in known.items():
        seeds = range(row["first_seed"], row["first_seed"] + row["seeds"])
        todays[name] = ledger.judge_claim(CLAIMS[name], out, seeds, row["split"])
    for name, again in ledger.judge_rows(todays).items():
        row = known[name]
        for figure in ("verdict", "n", "models", "rule"):
            assert again[figure] == row[figure], (name, figure)
        for figure in ("effect", "low", "high", "control_effect"):
            assert again[figure] == pytest.approx(row[figure], abs=0.003), (name, figure)
        assert again["details"].keys() == row["details"].keys()


def test_disputes_are_decided_by_figures_of_the_ledger():
    row = {"effect": 0.3, "low": 0.2, "high": 0.4, "details": {"closed answers": [0.0, -0.02, 0.02]}}
    pairs, closed = (next(d for d in ledger.DISPUTES if d.claim == c and d.bar == 0.05) for c in ("C5", "C15"))
    assert ledger.answer_dispute(pairs, row) == "yes" and ledger.answer_dispute(closed, row) == "no"
    assert ledger.answer_dispute(replace(closed, bar=0.01), row) == "open"
    assert "Here no: 0.00 [-0.02, 0.02]" in ledger.describe_dispute(closed, row)
    # Each side has a tag that says where its figure is from, and no figure that nobody verified.
    for one in ledger.DISPUTES:
        assert all(re.search(r"\[[RSD]\]", side) and "[M]" not in side for side in (one.yes, one.no)), one
        if (ran := ledger.latest_row(one.claim)) is not None:
            assert ledger.answer_dispute(one, ran) in ("yes", "no", "open")
            assert ledger.describe_dispute(one, ran)[:60] in " ".join(ledger.describe_claim(one.claim).split())
