"""The ledger's machinery on made-up rows whose answer is known, and on one tiny claim that really runs."""

import re
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
from worlds import own_home

from mpm_lite import UserError
from mpm_lite.claims import ledger, mpm
from mpm_lite.claims.ledger import CLAIMS
from mpm_lite.claims.mpm import OTHERS
from mpm_lite.cli import main
from mpm_lite.core import figures, runtime
from mpm_lite.data.toyworld import grammar
from mpm_lite.evaluation import choice, stats
from mpm_lite.evaluation.chat import METRICS as OF_CHAT
from mpm_lite.evaluation.stats import AGAINST, FOR, OPEN, Sample, above, below, both, within
from mpm_lite.experiments import mpm_paint
from mpm_lite.experiments.correlations import spearman
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
    assert found.value == float(np.nanmean(hits)) and np.array_equal(found.draws, over / share)
    assert s.score("a", "en", "slots") is found, "a figure is computed once"
    with pytest.raises(UserError, match="Arm 'a' has a picture twice"):
        Sample(pd.concat([known, known[:1]]), draws=10).score("a", "en", "slots")


def test_some_packed_rows_are_read_without_the_others():
    shelf = ledger.shelf(runtime.asset("results"))
    every = shelf.packed()
    keys = every["key"].unique()[[3, 40]]
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


def test_rules():
    i = stats.Interval(0.5, 0.4, 0.6)
    assert [above(i, bar) for bar in (0.3, 0.5, 0.7)] == [FOR, OPEN, AGAINST]
    assert [below(i, bar) for bar in (0.7, 0.5, 0.3)] == [FOR, OPEN, AGAINST]
    assert [within(i, margin) for margin in (0.7, 0.5, 0.3)] == [FOR, OPEN, AGAINST]
    assert both([FOR, FOR]) == FOR and both([FOR, OPEN]) == OPEN and both([OPEN, AGAINST]) == AGAINST


def test_c1_is_for_the_claim_where_it_holds_against_where_not_and_open_where_the_control_sees():
    holds = {"mpm": ({"answers": 0.95}, {"answers": 0.93}), "LM without pairs": ({"answers": 0.95}, {"answers": 0.4})}
    blind = {"answers": 0.35}
    good = CLAIMS["C1"].judge(world(holds | {"english LM": ({"answers": 0.95}, {"answers": 0.35})}, **blind))
    assert good.verdict == FOR and good.control_holds and ledger.claim_verdict(good, 5) == FOR
    assert ledger.claim_verdict(good, 4) == ledger.PENDING == ledger.claim_verdict(good, 5, "val")
    sees = CLAIMS["C1"].judge(world(holds | {"english LM": ({"answers": 0.95}, {"answers": 0.9})}, **blind))
    assert not sees.control_holds and ledger.claim_verdict(sees, 5) == ledger.BROKEN
    weak = {"mpm": ({"answers": 0.95}, {"answers": 0.6}), "LM without pairs": holds["LM without pairs"]}
    poor = CLAIMS["C1"].judge(world(weak | {"english LM": ({"answers": 0.95}, {"answers": 0.35})}, **blind))
    assert poor.verdict == AGAINST and set(poor.details) >= {f"rho {code}" for code in OTHERS}


def test_c2_wants_content_kept_and_the_language_lost():
    before = ({"content": 0.95, "reply_language": 1.0}, {"content": 0.9, "reply_language": 0.9})
    english = ({"content": 0.95, "reply_language": 1.0}, {"content": 0.9, "reply_language": 0.02})
    other = ({"content": 0.95, "reply_language": 1.0}, {"content": 0.9, "reply_language": 0.9})
    judge = CLAIMS["C2"].judge
    as_claimed, not_so = (
        judge(_text(world({"mpm": before, "tuned": t, "tuned long": t}, content=0.2))) for t in (english, other)
    )
    assert as_claimed.verdict == FOR and as_claimed.control_holds and not_so.verdict == AGAINST


def _text(s):
    """The same sample, replies to a caption in the picture's place all in the language asked."""
    items = s.items.copy()
    items.loc[items["look"] == "text", "reply_language"] = 1.0
    return Sample(items, draws=400)


def test_alignment_is_read_from_what_was_measured():
    near, far = (mpm.alignment(f"toy-{name}", "de") for name in ("multilingual", "noparallel"))
    assert 0 <= far < near <= 1
    with pytest.raises(UserError, match="mpm-lite pretrain toy-x:0"):
        mpm.alignment("toy-x", "de")


def test_c7_finds_an_order_that_is_there_and_none_that_is_not(monkeypatch):
    """Retention that rises with alignment by construction, and retention that ignores it."""
    lms = list(dict.fromkeys(chat.lm for chat in mpm.C7_ARMS.values()))
    monkeypatch.setattr(mpm, "alignment", lambda lm, language: lms.index(lm) + 0.1 * OTHERS.index(language))
    for follows, says in ((True, FOR), (False, AGAINST)):
        arms = {}
        for k, arm in enumerate(CLAIMS["C7"].arms):
            arms[arm] = ({"slots": 0.9}, {"slots": 0.25 + 0.12 * (k if follows else 5 - k)})
        s = world(arms | {"shuffled": ({"slots": 0.2}, {"slots": 0.2})}, slots=0.2)
        assert CLAIMS["C7"].judge(s).verdict == says
    draws = np.random.default_rng(0).random((7, 5)).round(1)
    assert np.allclose(mpm._spearmans(draws[:, 0], draws), [spearman(draws[:, 0], d) for d in draws.T])


def test_c6_wants_prompts_elsewhere_to_paint_as_well_and_a_model_of_english_not_to():
    looks = {"real": 0.95, "wrong": 0.35, "none": 0.35, "drawn": 1.0, "decoded": 1.0}

    def sample(**others):
        every = [rows(arm, code, look, attributes=others[arm] if look == "real" and code != "en" else level)
                 for arm in others for code in grammar.LANGUAGES for look, level in looks.items()]  # fmt: skip
        return Sample(pd.concat(every, ignore_index=True).fillna(0.5), draws=200)

    judge, arms = CLAIMS["C6"].judge, {"LM without pairs": 0.4}
    for level, said in ((0.94, FOR), (0.6, AGAINST)):
        found = judge(sample(mpm=level, **{"english LM": 0.35}, **arms))
        assert found.verdict == said and found.control_holds
    assert not judge(sample(mpm=0.94, **{"english LM": 0.9}, **arms)).control_holds


@cache
def uniform(who, code, look, n):
    """Numbers in [0, 1) for n pictures of every seed, in a row."""
    return np.concatenate([np.random.default_rng([seed, *f"{who} {code} {look}".encode()]).random(n) for seed in SEEDS])


def chosen(claim, metric, **levels):
    """Scores in other languages by arm, English at 0.95 and the same in all, chance at 0.1; arms not named are at the first
    level."""
    first, n = next(iter(levels.values())), 200
    asked = [
        (arm, code, look) for arm in CLAIMS[claim].arms for code in grammar.LANGUAGES for look in ("real", "blind")
    ]
    scores = []
    for arm, code, look in asked:
        level = 0.1 if look == "blind" else 0.95 if code == "en" else levels.get(arm, first)
        scores.append(uniform("any" if code == "en" or look == "blind" else arm, code, look, n) < level)
    known = dict.fromkeys(("reply_language", "content", "answers", "cider_d"), 0.5)
    known |= {metric: np.concatenate(scores).astype(float)}
    of_rows = np.array(asked, object).repeat(n * len(SEEDS), axis=0)
    known |= {name: of_rows[:, i] for i, name in enumerate(("arm", "language", "look"))}
    k, seed = np.tile(np.arange(n), len(SEEDS) * len(asked)), np.tile(np.repeat(SEEDS, n), len(asked))
    named = {"item": ITEMS[k], "concept": CONCEPTS[k % 40], "seed": seed, "lm_seed": seed % 3}
    return CLAIMS[claim].judge(Sample(pd.DataFrame(known | named), draws=200))


@pytest.mark.parametrize(
    ("claim", "levels", "said", "holds"),
    [
        ("C9", {"words 0.5": 0.8, "plain": 0.3, "random dictionary": 0.3}, FOR, True),
        ("C9", {"words 0.5": 0.3, "plain": 0.3, "random dictionary": 0.3}, AGAINST, None),
        ("C9", {"words 0.5": 0.8, "plain": 0.3, "random dictionary": 0.8}, FOR, False),
        ("C11", {"acquirers": 0.93, "embedding alone": 0.5}, FOR, True),
        ("C11", {"acquirers": 0.5, "embedding alone": 0.5}, AGAINST, False),
        ("C12", {"both": 0.9, "transfer alone": 0.8, "exposure alone": 0.4, "shuffled": 0.1}, FOR, True),
        ("C12", {"both": 0.9, "transfer alone": 0.4, "exposure alone": 0.8, "shuffled": 0.1}, AGAINST, True),
        ("C12", {"both": 0.9, "transfer alone": 0.8, "exposure alone": 0.4, "shuffled": 0.6}, FOR, False),
        ("C13", {"later": 0.9, "together": 0.9, "shared, first": 0.9, "shared, later": 0.5}, FOR, True),
        ("C13", {"later": 0.5, "together": 0.9, "shared, first": 0.9, "shared, later": 0.9}, AGAINST, False),
        ("C17", {"pivot": 0.9, "translated 0.1": 0.7, "translated 0.0": 0.95}, FOR, True),
        ("C17", {"pivot": 0.6, "translated 0.1": 0.7, "translated 0.0": 0.8}, AGAINST, False),
    ],
)
def test_claims_on_choices_follow_their_rules(claim, levels, said, holds):
    found = chosen(claim, "choice", **levels)
    assert found.verdict == said
    if holds is not None:
        assert found.control_holds == holds


def test_c10_wants_the_own_language_above_english_and_all_above_that():
    low, mid, high = 0.3, 0.6, 0.9
    own = {f"fine-tuned in {code}": mid for code in ("zh", "hi", "tr")}
    strange = {f"shuffled, {code}": 0.1 for code in ("zh", "hi", "tr")}
    found = chosen("C10", "choice", plain=0.2, **own, **strange, **{"fine-tuned in en": low, "fine-tuned in all": high})
    assert found.verdict == FOR and found.control_holds
    found = chosen(
        "C10", "choice", plain=0.2, **own, **strange, **{"fine-tuned in en": high, "fine-tuned in all": high}
    )
    assert found.verdict == AGAINST
    assert not chosen(
        "C10", "choice", plain=0.2, **own, **dict.fromkeys(strange, high), **{"fine-tuned in en": low}
    ).control_holds


@pytest.mark.parametrize(
    ("claim", "levels", "said", "holds"),
    [
        ("C14", {"english, 2000": 0.8, "random, 8000": 0.5, "projection alone": 0.4}, FOR, True),
        ("C14", {"english, 2000": 0.3, "random, 8000": 0.5, "projection alone": 0.6}, AGAINST, False),
        ("C15", {"mix": 0.8, "english": 0.2}, FOR, True),
        ("C15", {"mix": 0.2, "english": 0.2}, AGAINST, None),
        ("C16", {"uniform": 0.8, "proportional": 0.4, "unread, uniform": 0.2, "unread, proportional": 0.2}, FOR, True),
        ("C16", {"uniform": 0.8, "proportional": 0.4, "unread, uniform": 0.8, "unread, proportional": 0.2}, FOR, False),
    ],
)
def test_claims_on_captions_follow_their_rules(claim, levels, said, holds):
    found = chosen(claim, "slots", **levels)
    assert found.verdict == said
    if holds is not None:
        assert found.control_holds == holds


@pytest.mark.parametrize("name", list(CLAIMS))
def test_every_claim_is_whole_and_its_arms_are_what_its_judge_reads(name, monkeypatch):
    monkeypatch.setattr(mpm, "alignment", lambda lm, language: len(lm) + len(language))
    claim = CLAIMS[name]
    assert claim.id == name and claim.statement.endswith(".") and claim.control and claim.rule.startswith("for:")
    assert not claim.theirs or "[R]" in claim.theirs or "[S]" in claim.theirs, (
        "figures that nobody verified are quoted nowhere"
    )
    looks = claim.asked.get("looks", ("real", "blind"))
    codes = claim.asked.get("languages", grammar.LANGUAGES)
    every = [rows(arm, code, look, 60, reply_language=0.5, slots=0.6, content=0.6, answers=0.6, nats=2.0, paired=0.6, withheld=0.5,
                  attributes=0.3 if look == "wrong" else 0.8, one=0.9, pair=0.8, choice=0.1 if look == "blind" else 0.7)
             for arm in claim.arms for code in codes for look in looks]  # fmt: skip
    found = claim.judge(Sample(pd.concat(every, ignore_index=True), draws=50))
    assert claim.asked.get("count", 0) >= 100 and "split" not in claim.asked
    assert found.verdict in (FOR, AGAINST, OPEN) and len(found.details) >= 2


TINY = {"steps": 2, "batch": 8, "queries": 4, "width": 32, "heads": 2, "layers": 1, "bf16": False}


@pytest.fixture
def tiny(monkeypatch):
    arms = {"mpm": Chat(lm="toy-multilingual", pairs=16, options=TINY), "english LM": Chat(lm="toy-multilingual", lm_seed=1, pairs=16, options=TINY),
            "LM without pairs": Chat(lm="toy-multilingual", pairs=24, options=TINY)}  # fmt: skip
    one = replace(CLAIMS["C1"], arms=arms, asked={"count": 6, "captions": False})
    monkeypatch.setitem(CLAIMS, "C1", one)
    return one


def test_a_claim_runs_resumes_and_is_entered(tiny, tmp_path, monkeypatch):
    own_home(monkeypatch, tmp_path / "home")
    said = []

    def stopping(line):
        said.append(line)
        if len(said) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.run_claim("C1", tmp_path, [20], "val", stopping)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "claims").iterdir()}
    assert len(kept) == 2
    with pytest.raises(UserError, match="delete that file, and `mpm-lite claims run C1`"):
        ledger.judge_claim(tiny, tmp_path, [20], "val")
    said.clear()
    found = ledger.run_claim("C1", tmp_path, [20], "val", said.append)
    assert len(said) == 1 and all(p.stat().st_mtime_ns == t for p, t in kept.items())
    assert found["verdict"] == "pending" and found["seeds"] == 1 and found["n"] == 6
    ledger.write_ledger(found, tmp_path / "claims.json")
    table = ledger.ledger_table(tmp_path / "claims.json")
    assert list(table.columns) == list(ledger.COLUMNS) and list(table["claim"]) == list(CLAIMS)
    assert table.set_index("claim").loc["C1", "seeds"] == 1 and (table["verdict"] == "pending").all()
    loose = tmp_path / "loose"
    shutil.copytree(tmp_path / "claims", loose / "claims")
    packed = ledger.shelf(loose).pack()
    assert not list((loose / "claims").iterdir()) and packed.name == "claims.parquet"
    said.clear()
    again = ledger.run_claim("C1", loose, [20], "val", said.append)
    assert not said, "what is packed is not run again"
    assert again.keys() == found.keys() and again["effect"] == pytest.approx(found["effect"], abs=0.01, nan_ok=True)
    ledger.run_claim("C1", loose, [20, 21], "val", said.append)
    assert len(said) == 3
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


def test_figures_of_a_ledger_come_from_its_details(tmp_path, monkeypatch):
    """A point for each share, and all that was found as text."""
    monkeypatch.setattr(mpm, "alignment", lambda lm, language: len(lm) + len(language))
    book = tmp_path / "claims.json"
    assert ledger.replies_by_share(book) is None
    assert "pending; `mpm-lite claims run C7` runs it" in ledger.describe_claim("C7", book)
    for name in ("C3", "C7"):
        one = CLAIMS[name]
        looks = one.asked.get("looks", ("real", "blind"))
        every = [rows(arm, code, look, 60, reply_language=0.5, slots=0.6, content=0.6)
                 for arm in one.arms for code in grammar.LANGUAGES for look in looks]  # fmt: skip
        found = one.judge(Sample(pd.concat(every, ignore_index=True), draws=50))
        row = {"claim": name, "verdict": found.verdict, "seeds": 5, "n": 60, "commit": "abc", "effect": 0.5, "low": 0.4}
        row |= {"high": 0.6, "control_effect": 0.1, "control_low": 0.0, "control_high": 0.2}
        row["details"] = {k: [i.value, i.low, i.high] for k, i in found.details.items()}
        ledger.write_ledger(row, book)
    replies = ledger.replies_by_share(book)
    assert len(replies) == 2 * 2 * 6 and set(replies["metric"]) == {"reply_language", "content"}
    assert replies.groupby(["metric", "share"])["value"].nunique().loc[:, 0.0].eq(1).all(), (
        "none is none, of either kind"
    )
    said = ledger.describe_claim("C7", book)
    assert "0.500 [0.400, 0.600] Spearman" in said and "rho of de, pairs 5 %" in said
    few = ledger.read_details("C7", {"rho of de, pairs 5 %": "German", "rho of fr, pairs 5 %": "French"}, book)
    assert list(few["name"]) == ["German", "French"] and (few["low"] <= few["high"]).all()
    with pytest.raises(UserError, match="mpm-lite claims run C1"):
        ledger.read_details("C1", {}, book)
    dots = figures.draw_intervals(few.assign(group=["a", "b"]), "retention")
    assert "French" in dots.mpm_alt and dots.axes[0].get_legend()
    for figure in (figures.draw_reply_language(replies, {"content": "content"}), dots):
        assert len(figure.mpm_alt) > 60


def test_the_ledger_that_ships_is_what_its_rows_say():
    """Judged again from the packed rows (three decimals of a score), every claim that has run comes out as it stands."""
    known, out = ledger.read_ledger(), runtime.asset("results")
    assert known, "the ledger is empty"
    for name, row in known.items():
        seeds = range(row["first_seed"], row["first_seed"] + row["seeds"])
        again = ledger.judge_claim(CLAIMS[name], out, seeds, row["split"])
        assert (again["verdict"], again["n"]) == (row["verdict"], row["n"]), name
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
        if (ran := ledger.read_ledger().get(one.claim)) is not None:
            assert ledger.answer_dispute(one, ran) in ("yes", "no", "open")
            assert ledger.describe_dispute(one, ran)[:60] in " ".join(ledger.describe_claim(one.claim).split())
