"""A hypothesis is registered before it runs, never changed afterwards, and judged by its own rule; its control can sink it."""

import json
from dataclasses import replace

import pytest
from test_experiment import made_experiment, world  # noqa: F401

import mpm_lite as mpm
from mpm_lite.core.runtime import UserError
from mpm_lite.evaluation.stats import Interval
from mpm_lite.experiments.hypothesis import above, below, within


def made(**change):
    given = {
        "statement": "few steps find little",
        "base": made_experiment(seeds=3, steps=60, test=("made", ["en", "de", "fi"])),
        "arms": {
            "long": {},
            "short": {"steps": 1},
            "other": {"batch": 32},
        },
        "effect": ("short", "long"),
        "control": ("other", "long"),
        "languages": ("en", "de"),
        "measure": "score",
        "predicts": "below",
        "bar": -0.05,
        "control_bar": 0.2,
    }
    return mpm.Hypothesis(**(given | change))


def test_registered_then_run_then_judged(world):  # noqa: F811
    one = made()
    with pytest.raises(UserError, match="not registered in .* call register"):
        one.run(world / "h")
    path = one.register(world / "h")
    told = path.read_text()
    assert json.loads(told)["hypothesis"]["bar"] == -0.05
    found = one.run(world / "h")
    assert (
        found.verdict == "for" and found.effect.high < -0.05 and list(found.arms["name"]) == ["long", "short", "other"]
    )
    assert "short" in found.plot("score").mpm_alt and set(found.results.items["arm"]) == {"long", "short", "other"}
    assert one.register(world / "h") == path and path.read_text() == told  # registering twice changes nothing
    changed = replace(one, bar=-0.5)
    with pytest.raises(UserError, match="holds another hypothesis"):
        changed.register(world / "h")
    with pytest.raises(UserError, match="not registered"):
        changed.run(world / "h")
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        one.run(world / "h")


def test_the_control_can_sink_it_and_the_rule_can_refute_it(world):  # noqa: F811
    found = made().judge(results := {name: e.run(progress=False) for name, e in made().experiments.items()})
    assert made(control=("short", "long")).judge(results).verdict == "control failed"
    assert made(effect=("long", "short")).judge(results).verdict == "against"
    assert made(effect=("long", "short"), predicts="above", bar=0.05).judge(results).verdict == "for"
    assert made(effect=("long", "long"), predicts="within", bar=0.05).judge(results).verdict == "for"
    assert made(bar=found.effect.value).judge(results).verdict == "undecided"


def test_what_is_not_a_hypothesis_is_one_sentence(world):  # noqa: F811
    for wrong, said in (
        ({"effect": ("shorter", "long")}, "Did you mean 'short'"),
        ({"measure": "recall"}, "Unknown measure"),
        ({"effect": ("short",)}, "difference of two arms"),
        ({"bar": "0.1"}, "is not a number"),
        ({"predicts": "abov"}, "Did you mean 'above'"),
        ({"base": made_experiment(seeds=2)}, "wants 3 at least"),
        ({"arms": {"long": {}, "short": {"step": 1}, "other": {}}}, "Did you mean 'steps'"),
    ):
        with pytest.raises(UserError, match=said):
            made(**wrong)


def test_rules_of_a_hypothesis_have_three_outcomes():
    i = Interval(0.5, 0.4, 0.6)
    assert [above(i, bar) for bar in (0.3, 0.5, 0.7)] == ["for", "undecided", "against"]
    assert [below(i, bar) for bar in (0.7, 0.5, 0.3)] == ["for", "undecided", "against"]
    assert [within(i, margin) for margin in (0.7, 0.5, 0.3)] == ["for", "undecided", "against"]
