"""Every rule of the ledger can come out either way: made-up rows of an ideal pivot, of its opposite, of models that did not
learn English, and of controls that fail."""

import numpy as np
import pandas as pd
import pytest

from mpm_lite.claims import (
    CONTRADICTED,
    CONTROL_FAILED,
    NO_POWER,
    NOT_HERE,
    PENDING,
    REPRODUCED,
    Condition,
    judge,
    ledger,
    mpm,
)
from mpm_lite.data.toyworld import grammar
from mpm_lite.evaluation.stats import Drawn, Sample, widen

SEEDS, N = range(40, 45), 120
ITEMS, CONCEPTS = (np.array([f"{letter}{i}" for i in range(N)], object) for letter in "ic")
CHANCE, ENGLISH = 0.1, 0.995
NO_PICTURE = ("blind", "wrong", "none", "shuffled")
METRICS = ("slots", "answers", "content", "choice", "attributes", "exact", "bound", "reply_language")
OTHER_METRICS = ("cider_d", "chrf", "r_precision", "fid", "nats")  # details, which decide nothing


def level(world, arm, code, look, metric):
    """The mean of a metric: what `world` says by (arm, metric), (arm, language), arm or metric; else English, or chance."""
    if look in NO_PICTURE:
        return world.get("wrong bound", 0.0) if metric in ("exact", "bound") else CHANCE
    if code == "en":
        return world.get((arm, "en"), world.get("en", ENGLISH))
    for key in ((arm, code), (arm, metric), arm, metric):
        if key in world:
            return world[key]
    return CHANCE


def judged(name, world, strong=True, monkeypatch=None, near=0.97):
    """The verdict on rows made up as `world` says."""
    one = ledger.CLAIMS[name]
    monkeypatch.setattr(mpm, "text_transfer", lambda lm: np.full(5, 0.97 if strong else 0.5))
    if near is not None:
        layer = pd.DataFrame({"lm_seed": range(5), "layer": 1, "to": "de", "value": near})
        monkeypatch.setattr(mpm, "alignments", lambda lm: layer)
        monkeypatch.setattr(mpm.catalogue, "seeds", lambda name: list(range(5)))
    languages, looks = one.asked.get("languages", grammar.LANGUAGES), one.asked["looks"]
    rng, parts, known = np.random.default_rng(0), [], []
    luck = {code: rng.random((len(SEEDS) * N, len(METRICS))) for code in languages}
    for arm in one.arms:
        for code in languages:
            for look in looks:
                parts.append(luck[code] < [level(world, arm, code, look, metric) for metric in METRICS])
                known.append((arm, code, look))
    rows = pd.DataFrame(np.concatenate(parts).astype(float), columns=METRICS).assign(
        **dict.fromkeys(OTHER_METRICS, 0.5)
    )
    rows[["arm", "language", "look"]] = np.array(known, object).repeat(len(SEEDS) * N, axis=0)
    k = np.tile(np.arange(N), len(SEEDS) * len(known))
    rows["seed"] = rows["lm_seed"] = np.tile(np.repeat(SEEDS, N), len(known))
    rows["item"], rows["concept"] = ITEMS[k], CONCEPTS[k % 20]
    sample = Sample(rows, 500, widened=True)
    row = one.judge(sample).row(sample.models)
    verdict, reason = judge(row, row["p"])  # by itself: what Holm does over all claims has a test of its own
    return row | {"verdict": verdict, "reason": reason}


# By claim: an ideal pivot, and its opposite with controls that hold. Levels of other languages, by arm or (arm, metric).
WORLDS = {
    "instrument": ({"mpm": 0.9}, {"mpm": 0.9, "en": 0.6}),
    "C1a": ({"mpm": 0.97}, {"mpm": 0.4}),
    "C1b": ({"tuned 0.05": 0.97, "tuned 0.5": 0.97}, {"tuned 0.05": 0.5, "tuned 0.5": 0.97}),
    "C2": (
        {"content": 0.97, ("mpm", "reply_language"): 0.9, "reply_language": 0.02},
        {"content": 0.97, "reply_language": 0.9},
    ),
    "C3": (
        {"content": 0.9, ("tuned", "reply_language"): 0.1, "reply_language": 0.99},
        {"content": 0.9, ("tuned", "reply_language"): 0.1, "reply_language": 0.6},
    ),
    "C4": (
        {"english": 0.9, "few noisy": 0.5, "many clean": 0.95},
        {"english": 0.3, "few noisy": 0.5, "many clean": 0.95},
    ),
    "C5": (
        {"english": 0.5, "more english": 0.5, "plus others": 0.8},
        {"english": 0.5, "more english": 0.5, "plus others": 0.8, ("plus others", "en"): 0.8},
    ),
    "C6": ({"layer 1": 0.98}, {"layer 1": 0.5}),
    "C8": ({"frozen": 0.9, "lora": 0.8, "free": 0.4}, {"frozen": 0.4, "lora": 0.8, "free": 0.9}),
    "C9": (
        {"plain": 0.2, "words 0.5": 0.8, "random dictionary": 0.2},
        {"plain": 0.2, "words 0.5": 0.8, "random dictionary": 0.2, ("words 0.5", "en"): 0.7},
    ),
    "C10": (
        {"fine-tuned in en": 0.3, "fine-tuned in all": 0.9} | {f"fine-tuned in {c}": 0.6 for c in ("zh", "hi", "tr")},
        {"fine-tuned in en": 0.6, "fine-tuned in all": 0.9} | {f"fine-tuned in {c}": 0.3 for c in ("zh", "hi", "tr")},
    ),
    "C11": ({"acquirers": 0.97, "embedding alone": 0.6}, {"acquirers": 0.6, "embedding alone": 0.3}),
    "C12": (
        {"both": 0.9, "transfer alone": 0.75, "exposure alone": 0.4},
        {"both": 0.6, "transfer alone": 0.8, "exposure alone": 0.4},
    ),
    "C13": (
        {"later": 0.9, "together": 0.9, "shared, first": 0.9, "shared, later": 0.5, "first": 0.9},
        {"later": 0.5, "together": 0.9, "shared, first": 0.9, "shared, later": 0.5, "first": 0.9},
    ),
    "C14": (
        {"english, 2000": 0.8, "random, 8000": 0.6, "random, 2000": 0.3},
        {"english, 2000": 0.6, "random, 8000": 0.8, "random, 2000": 0.3},
    ),
    "C15": (
        {("mix", "slots"): 0.9, ("english", "slots"): 0.2, "answers": 0.5, "content": 0.9},
        # The first ledger's: what the mix gains in the language asked, it loses of what is said.
        {("mix", "slots"): 0.6, ("english", "slots"): 0.1, ("mix", "content"): 0.6, ("english", "content"): 0.9},
    ),
    "C16": (
        {"uniform": 0.8, "proportional": 0.75, ("proportional", "sw"): 0.2, ("proportional", "hi"): 0.2},
        {"uniform": 0.8, "proportional": 0.75, ("proportional", "sw"): 0.2, ("uniform", "en"): 0.7},
    ),
    "C17": (
        {"pivot": 0.9, "translated 0.05": 0.7, "translated 0.0": ENGLISH},
        {"pivot": 0.5, "translated 0.05": 0.7, "translated 0.0": ENGLISH},
    ),
}
# What breaks each control, on top of the ideal pivot.
BROKEN = {
    "instrument": {"english LM": 0.9},
    "C1a": {"english LM": 0.9},
    "C1b": {"english LM, tuned 0.05": 0.97},
    "C2": {("mpm", "reply_language"): 0.1},
    "C3": {("tuned", "reply_language"): 0.99},
    "C4": {"many clean": 0.4},
    "C5": {"more english": 0.9},
    "C6": {"english LM": 0.9},
    "C8": {("free", "en"): 0.6},
    "C9": {"random dictionary": 0.8},
    "C10": {f"shuffled, {code}": 0.6 for code in ("zh", "hi", "tr")},
    "C11": {"embedding alone": 0.97},
    "C12": {"shuffled": 0.6},
    "C13": {"shared, later": 0.9},
    "C14": {"random, 2000": 0.9},
    "C15": {("english", "slots"): 0.88},
    "C16": {"proportional": 0.1},
    "C17": {"translated 0.0": 0.7},
}


def test_every_claim_with_arms_is_tried():
    with_arms = {name for name, one in ledger.CLAIMS.items() if one.arms}
    assert set(WORLDS) == set(BROKEN) == with_arms and set(ledger.CLAIMS) - with_arms == {"C7"}


@pytest.mark.parametrize("name", WORLDS)
def test_an_ideal_pivot_is_reproduced_and_its_opposite_is_not(name, monkeypatch):
    ideal, opposite = WORLDS[name]
    found = judged(name, ideal, monkeypatch=monkeypatch)
    assert found["verdict"] == REPRODUCED, found["reason"]
    assert "must lie" in found["reason"] and found["low"] <= found["effect"] <= found["high"]
    premise = any(one["part"] == "premise" for one in found["conditions"])
    against = judged(name, opposite, monkeypatch=monkeypatch)
    assert against["verdict"] == (CONTRADICTED if premise else NOT_HERE), against["reason"]
    weak = judged(name, opposite, strong=False, monkeypatch=monkeypatch)
    assert weak["verdict"] == NOT_HERE, weak["reason"]
    assert ("may be the language models' doing" in weak["reason"]) == premise


@pytest.mark.parametrize("name", WORLDS)
def test_chance_is_never_reproduced(name, monkeypatch):
    """English learned, and nothing in any other language."""
    world = {"instrument": {"en": 0.3}}.get(name, {})
    assert judged(name, world, monkeypatch=monkeypatch)["verdict"] not in (REPRODUCED, PENDING)


@pytest.mark.parametrize("name", [name for name in WORLDS if name != "instrument"])
def test_nothing_is_said_of_models_that_did_not_learn_english(name, monkeypatch):
    found = judged(name, WORLDS[name][0] | {"en": 0.25}, monkeypatch=monkeypatch)
    assert found["verdict"] == NO_POWER and "English is not where it has to be" in found["reason"]


@pytest.mark.parametrize("name", WORLDS)
def test_a_broken_control_is_said_before_the_effect(name, monkeypatch):
    found = judged(name, WORLDS[name][0] | BROKEN[name], monkeypatch=monkeypatch)
    assert found["verdict"] == CONTROL_FAILED, found["reason"]


def test_an_undecided_control_and_a_training_that_goes_on_say_nothing(monkeypatch):
    found = judged("C2", WORLDS["C2"][0] | {("tuned 600", "reply_language"): 0.5}, monkeypatch=monkeypatch)
    assert found["verdict"] == NO_POWER and "Training was not long enough" in found["reason"]
    found = judged("C12", WORLDS["C12"][0] | {"shuffled": 0.19}, monkeypatch=monkeypatch)
    assert found["verdict"] == NO_POWER and "The control is undecided" in found["reason"]


def test_c6_is_not_contradicted_by_a_layer_whose_languages_lie_apart(monkeypatch):
    """Its premise is closeness at the layer that is read, beside what text carries over."""
    assert judged("C6", WORLDS["C6"][1], monkeypatch=monkeypatch, near=0.6)["verdict"] == NOT_HERE


def test_seeds_that_share_a_language_model_are_one():
    rows = pd.DataFrame(
        {"slots": 0.5, "arm": "a", "language": "en", "look": "real", "item": "i", "concept": "c"}, index=range(5)
    )
    shared = Sample(rows.assign(seed=range(5), lm_seed=[0, 1, 2, 0, 1]), 10)
    assert shared.models == 3 and Sample(rows.assign(seed=range(5), lm_seed=range(5)), 10).models == 5


def test_models_that_carry_sight_by_their_alignment_or_not(monkeypatch):
    """C7 over made-up language models, among them two that read no translation."""
    monkeypatch.setattr(mpm, "text_transfer", lambda lm: np.full(5, 0.97))
    kinds = [*(f"toy-mixed-{k}" for k in range(10)), "toy-english", "toy-noparallel"]
    points = pd.DataFrame({"lm": kinds, "lm_seed": 0, "alignment": np.linspace(1, 0, 12)})
    of_none = [0.01, 0.0]  # the two that read no translation
    follows = np.r_[0.9 * points["alignment"][:10], of_none]
    against = np.r_[np.linspace(0.1, 0.9, 10), of_none]
    for retention, said in ((follows, REPRODUCED), (against, CONTRADICTED), (follows + 0.5, CONTROL_FAILED)):
        monkeypatch.setattr(mpm, "ladder_points", lambda values=retention: points.assign(retention=values))
        row = {"claim": "C7", "seeds": 12, "models": 12, "split": "test", **mpm.c7().row(12)}
        assert ledger.judge_rows({"C7": row})["C7"]["verdict"] == said


def condition(value, spread, **bars):
    return Condition("x", Drawn(value, np.random.default_rng(0).normal(value, spread, 2000)), **bars)


def test_conditions_have_two_sides_and_p_values():
    sure, unsure, wrong = (condition(value, 0.05, low=0.5) for value in (0.9, 0.5, 0.1))
    assert sure.row("claim")["holds"] and not unsure.row("claim")["holds"] and not wrong.row("claim")["met"]
    assert sure.p_values(5)[0] < 0.001 < 0.99 < sure.p_values(5)[1]
    assert wrong.p_values(5)[1] < 0.001 < 0.99 < wrong.p_values(5)[0]
    assert all(0.4 < p < 0.6 for p in unsure.p_values(5))
    assert sure.p_values(30)[0] < sure.p_values(5)[0] < sure.p_values(3)[0], "fewer models, less certainty"
    between = condition(0.0, 0.01, low=-0.05, high=0.05)
    assert between.p_values(5)[0] < 0.01 and "above" in between.row("claim") and "below" in between.row("claim")
    nothing = Condition("x", Drawn(0.9, np.full(2000, np.nan)), 0.5)
    assert nothing.p_values(5) == (1.0, 1.0), "a figure without draws decides nothing"


def test_p_values_are_what_they_say_far_out_too():
    """Five models without an effect: of many repetitions a share p has a p value of p or less, at a level for one of many claims."""
    rng, found = np.random.default_rng(0), []
    for _ in range(4000):
        models = rng.normal(0, 1, 5)
        draws = models[rng.integers(5, size=(400, 5))].mean(axis=1)
        figure = widen(Drawn(float(models.mean()), draws), 5)
        found.append(Condition("x", figure, low=0.0).p_values(5)[0])
    for level in (0.025, 0.005):
        assert 0.5 * level < np.mean(np.array(found) <= level) < 1.6 * level


def test_a_value_weighs_models_as_its_draws_do():
    """Five seeds on three models: each model counts a third, in the value and in the mean of the draws."""
    rows = pd.DataFrame({"item": "a", "concept": "a", "arm": "x", "language": "en", "look": "real", "seed": range(5)})
    rows = rows.assign(lm_seed=[0, 0, 1, 1, 2], slots=[0.0, 0.0, 0.0, 0.0, 1.0])
    score = Sample(rows, 4000).score("x", "en", "slots")
    assert score.value == pytest.approx(1 / 3) and score.draws.mean() == pytest.approx(1 / 3, abs=0.02)


def test_verdicts_are_holms_over_all_claims_whether_they_have_run_or_not():
    """A p value of 0.002 is enough for one of ten claims, and not for one of nineteen."""
    known = {
        "claim": "C4",
        "seeds": 5,
        "models": 5,
        "split": "test",
        "effect": 0.1,
        "conditions": [condition(0.1, 0.03, low=0.0).row("claim")],
    }
    for p, said in ((0.0012, REPRODUCED), (0.002, NO_POWER)):
        row = known | {"p": {"for": p, "against": 1.0}}
        assert ledger.judge_rows({"C4": row})["C4"]["verdict"] == said
    assert ledger.judge_rows({"C4": known | {"models": 4}})["C4"]["verdict"] == PENDING
    assert ledger.judge_rows({"C4": known | {"split": "val"}})["C4"]["verdict"] == PENDING
