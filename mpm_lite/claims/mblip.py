"""Claims C14, C15 and C16 of mBLIP (2307.06930), on the toy world: arms, controls, rules.

Everything here was committed before the runs that judge it. Pairs are new ones, of re-alignment; those of the English
Q-Former are told beside them. Captions are scored attribute by attribute: `slots` counts words of the language asked, `content`
those of any language; closed answers are scored by likelihood. Chance is the blind picture.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mpm_lite.claims import Condition, Found, load_claim
from mpm_lite.claims.mpm import BLOCK, OTHERS, STRONG, learned, mean_score, strong
from mpm_lite.data.toyworld import grammar
from mpm_lite.evaluation.stats import SEEN, Drawn, Sample, average_figures
from mpm_lite.experiments.mblip import SHARED, Realigning

ASKED = {**BLOCK, "count": 100, "looks": ("real", "blind")}
# On English val, attributes are right in 0.98 after as many updates with proportional shares, and with English alone.
LONG = {"english_options": {"steps": 1_200}, "generation_options": {"steps": 1_200}}
STEPS = {"steps": 1_000}
EVENLY = {"steps": 2_000}  # of C14, in ten languages evenly: English val is 0.89 after 1,000 steps, 0.98 after 2,000
SCHOOLING = 2_400  # steps of the English Q-Former before re-alignment: a random one gets them in re-alignment
FEW, MANY = 2_000, 8_000
TAIL, HEAD = ("sw", "hi"), ("de", "es", "fr")  # least and most of mC4 among the nine


def c14(s: Sample) -> Found:
    """How many new pairs a Q-Former needs that learned in English, and one that did not."""
    arms = [f"{start}, {n}" for start in ("english", "random") for n in (FEW, MANY)]
    more = ("projection alone", "random, 14000 in all")
    score = {arm: mean_score(s, arm, "slots", languages=grammar.LANGUAGES) for arm in (*arms, *more)}
    few = score[f"english, {FEW}"]
    saved = Condition(
        "attributes right, English Q-Former with 2,000 pairs minus a random one with 8,000",
        few - score[f"random, {MANY}"],
        0.0,
    )
    control = Condition(
        "the same, English Q-Former minus a random one, both with 2,000", few - score[f"random, {FEW}"], 0.05
    )
    details = {f"slots, ten languages: {arm.replace(', ', ' Q-Former, ')} pairs": score[arm] for arm in arms}
    details["projection alone, 2000 pairs"] = score["projection alone"]
    details["random Q-Former, as many pairs in all"] = score["random, 14000 in all"]
    details["Q-Former left as it is, minus one that learns"] = score["projection alone"] - few
    details["English Q-Former minus a random one with as many pairs in all"] = few - score["random, 14000 in all"]
    return Found([saved], [control], [learned(s, f"english, {MANY}", "slots")], strong(), details=details)


def c15(s: Sample) -> Found:
    """A translated mix beside English alone, at equal count: captions and closed answers."""
    said = mean_score(s, "mix", "content") - mean_score(s, "english", "content")
    slots = mean_score(s, "mix", "slots") - mean_score(s, "english", "slots")
    closed = mean_score(s, "mix", "answers") - mean_score(s, "english", "answers")
    blind = average_figures(
        s.score("mix", c, "slots", "blind") - s.score("english", c, "slots", "blind") for c in OTHERS
    )
    parts = [
        Condition("attributes named in the language asked, mix minus English alone", slots, 0.1),
        Condition("captions' gain minus that of closed answers", slots - closed, 0.0),
        Condition("attributes named in any language, mix minus English alone", said, -0.05),
    ]
    control = Condition("captions' gain minus what the mix gains blind", slots - blind, 0.05)
    sees = Condition("attributes above chance in English, mix", s.gain("mix", "en", "slots"), SEEN)
    details = {"closed answers": closed}
    for arm in ("mix", "english"):
        for metric in ("slots", "content", "reply_language", "answers", "cider_d"):
            details[f"{metric}, others, {arm}"] = mean_score(s, arm, metric)
            details[f"{metric}, English, {arm}"] = s.score(arm, "en", metric)
        details[f"answers, others, {arm}, blind"] = mean_score(s, arm, "answers", "blind")
    return Found(parts, [control], [learned(s, "english", "slots"), sees], strong(), details=details)


def c16(s: Sample) -> Found:
    """Sharing out the same number of examples as mC4 is, evenly, and between the two."""

    def gained(codes: tuple[str, ...]) -> Drawn:
        evenly, usual = (mean_score(s, rule, "slots", languages=codes) for rule in ("uniform", "proportional"))
        return evenly - usual

    tail, head = gained(TAIL), gained(HEAD)
    parts = [
        Condition("attributes right in sw and hi, evenly minus as mC4 is", tail, 0.05),
        Condition("attributes right in English, evenly minus as mC4 is", gained(("en",)), -0.05),
    ]
    control = Condition("what sw and hi gain minus what de, es and fr gain", tail - head, 0.0)
    details = {}
    for rule in ("proportional", "tempered", "uniform"):
        details[f"sw and hi, {rule}"] = mean_score(s, rule, "slots", languages=TAIL)
        details[f"others, {rule}"] = mean_score(s, rule, "slots")
        details[f"English, {rule}"] = s.score(rule, "en", "slots")
        details |= {f"{code}, {rule}": s.score(rule, code, "slots") for code in OTHERS}
    return Found(parts, [control], [learned(s, "proportional", "slots")], strong(), details=details)


def _arm(**given: Any) -> Realigning:
    return replace(SHARED, lm=STRONG, **LONG, **{"options": STEPS, **given})


_ALL_STEPS = {"steps": EVENLY["steps"] + SCHOOLING}
CLAIMS = {
    c.id: c
    for c in (
        load_claim(
            "C14",
            {
                **{f"english, {n}": _arm(pairs=n, options=EVENLY) for n in (FEW, MANY)},
                **{f"random, {n}": _arm(pairs=n, start="random", options=_ALL_STEPS) for n in (FEW, MANY)},
                "random, 14000 in all": _arm(pairs=14_000, english=10_000, start="random", options=_ALL_STEPS),
                "projection alone": _arm(pairs=FEW, options={**EVENLY, "learns": "projection"}),
            },
            c14,
            {**ASKED, "closed": 0, "looks": ("real",)},
        ),
        load_claim("C15", {"mix": _arm(), "english": _arm(languages=("en",))}, c15, ASKED),
        load_claim(
            "C16",
            {rule: _arm(rule=rule) for rule in ("uniform", "tempered", "proportional")},
            c16,
            {**ASKED, "closed": 0, "looks": ("real",)},
        ),
    )
}
