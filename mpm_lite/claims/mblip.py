"""Claims C14, C15 and C16 of mBLIP (2307.06930), on the toy world: arms, controls, rules.

Everything here was committed before the runs that judge it. Pairs are new ones, of re-alignment; those of the English
Q-Former are told beside them. Captions are scored attribute by attribute, whatever language they are in, and reply language
apart; closed answers by likelihood. Chance is the blind picture.
"""

from __future__ import annotations

from dataclasses import replace

from mpm_lite.claims import load_claim
from mpm_lite.claims.mpm import OTHERS, mean_score
from mpm_lite.data.toyworld import grammar
from mpm_lite.evaluation.stats import Found, Sample, above, average_figures, both
from mpm_lite.experiments.mblip import SHARED

COUNT = 100  # pictures of test
ASKED = {"count": COUNT, "looks": ("real", "blind")}
PAIRS = (500, 2_000, 8_000)
FEW, MANY = 2_000, 8_000
TAIL, UNREAD = ("sw", "hi"), ("sw", "hi")  # least of mC4 among the nine; and what `toy-unseen` never read


def c14(s: Sample) -> Found:
    """How many new pairs a Q-Former needs that learned in English, and one that did not."""
    every = grammar.LANGUAGES
    score = {
        (start, n): mean_score(s, f"{start}, {n}", "slots", languages=every)
        for start in ("english", "random")
        for n in PAIRS
    }
    saved = (score["english", FEW] - score["random", MANY]).interval
    still = (mean_score(s, "projection alone", "slots", languages=every) - score["english", FEW]).interval
    details = {f"slots, ten languages: {start} Q-Former, {n} pairs": of.interval for (start, n), of in score.items()}
    details[f"projection alone, {FEW} pairs"] = mean_score(s, "projection alone", "slots", languages=every).interval
    details["random Q-Former, as many pairs in all"] = mean_score(s, "random, 14000", "slots", languages=every).interval
    details[f"English Q-Former, {MANY} over {FEW} pairs"] = (score["english", MANY] - score["english", FEW]).interval
    return Found(saved, still, still.high < 0.05, above(saved, 0.0), details)


def c15(s: Sample) -> Found:
    """A translated mix beside English alone, at equal count: captions and closed answers."""
    said = mean_score(s, "mix", "slots") - mean_score(s, "english", "slots")
    closed = mean_score(s, "mix", "answers") - mean_score(s, "english", "answers")
    reply = (mean_score(s, "mix", "reply_language") - mean_score(s, "english", "reply_language")).interval
    blind = average_figures(
        s.score("mix", code, "slots", "blind") - s.score("english", code, "slots", "blind") for code in OTHERS
    )
    details = {"closed answers": closed.interval, "reply language": reply}
    for arm in ("mix", "english"):
        for metric in ("slots", "content", "reply_language", "answers", "cider_d"):
            details[f"{metric}, others, {arm}"] = mean_score(s, arm, metric).interval
            details[f"{metric}, English, {arm}"] = s.score(arm, "en", metric).interval
    details |= {
        f"slots, others, translated with noise {n}": mean_score(s, f"noise {n}", "slots").interval
        for n in (0.0, 0.2, 0.4)
    }
    apart = (said - closed).interval
    verdicts = [above(said.interval, 0.1), above(apart, 0.0)]
    return Found(said.interval, blind.interval, blind.interval.high < said.interval.low, both(verdicts), details)


def c16(s: Sample) -> Found:
    """Sharing out the same number of examples as mC4 is, evenly, and between the two."""
    tail = (
        mean_score(s, "uniform", "slots", languages=TAIL) - mean_score(s, "proportional", "slots", languages=TAIL)
    ).interval
    english = (s.score("uniform", "en", "slots") - s.score("proportional", "en", "slots")).interval
    unread = (
        mean_score(s, "unread, uniform", "slots", languages=UNREAD)
        - mean_score(s, "unread, proportional", "slots", languages=UNREAD)
    ).interval
    details = {"English, uniform over proportional": english}
    for rule in ("proportional", "tempered", "uniform"):
        details[f"sw and hi, {rule}"] = mean_score(s, rule, "slots", languages=TAIL).interval
        details[f"others, {rule}"] = mean_score(s, rule, "slots").interval
        details[f"English, {rule}"] = s.score(rule, "en", "slots").interval
        details |= {f"{code}, {rule}": s.score(rule, code, "slots").interval for code in OTHERS}
    verdicts = [above(tail, 0.05), above(english, -0.05)]
    return Found(tail, unread, unread.high < tail.low, both(verdicts), details)


CLAIMS = {
    c.id: c
    for c in (
        load_claim(
            "C14",
            arms={
                **{f"english, {n}": replace(SHARED, pairs=n) for n in PAIRS},
                **{f"random, {n}": replace(SHARED, pairs=n, start="random") for n in PAIRS},
                # As many pairs in all as the English Q-Former at FEW saw, and as many steps: those of BLIP-2's two stages too.
                "random, 14000": replace(
                    SHARED, pairs=14_000, english=10_000, start="random", options={"steps": 1_700}
                ),
                "projection alone": replace(SHARED, pairs=FEW, options={"learns": "projection"}),
            },
            judge=c14,
            asked={**ASKED, "closed": 0, "looks": ("real",)},
        ),
        load_claim(
            "C15",
            arms={
                "mix": SHARED,
                "english": replace(SHARED, languages=("en",)),
                **{f"noise {n}": replace(SHARED, noise=n) for n in (0.0, 0.2, 0.4)},
            },
            judge=c15,
            asked=ASKED,
        ),
        load_claim(
            "C16",
            arms={
                **{rule: replace(SHARED, rule=rule) for rule in ("uniform", "tempered", "proportional")},
                **{
                    f"unread, {rule}": replace(SHARED, rule=rule, lm="toy-unseen")
                    for rule in ("uniform", "proportional")
                },
            },
            judge=c16,
            asked={**ASKED, "closed": 0, "looks": ("real",)},
        ),
    )
}
