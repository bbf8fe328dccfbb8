"""Claims C9 and C10 of M3P (2006.02635), on the toy world: arms, controls, rules.

Everything here was committed before the runs that judge it. The task is the choice among ten captions by matching logits;
chance is the blind picture.
"""

from __future__ import annotations

from dataclasses import replace

from mpm_lite.claims import load_claim
from mpm_lite.claims.mpm import OTHERS, mean_rho, mean_score
from mpm_lite.data.toyworld import grammar
from mpm_lite.evaluation.stats import Found, Sample, above, average_figures, below, both, within
from mpm_lite.experiments.m3p import PLAIN, RATE, Matching

COUNT = 100  # pictures of test: each is read with ten captions in ten languages
ASKED = {"count": COUNT, "looks": ("real", "blind")}
RATES = (0.2, RATE, 0.8)
USUAL = f"words {RATE}"
FINE = {"fine_steps": 600}
EACH = ("zh", "hi", "tr")  # one script, one family and one word order each; named before any run


def c9(s: Sample) -> Found:
    """Text of ten languages and English pairs, beside the same pairs with words switched."""
    gain = mean_score(s, USUAL, "choice") - mean_score(s, "plain", "choice")
    wrong = mean_score(s, "random dictionary", "choice") - mean_score(s, "plain", "choice")
    english = (s.score(USUAL, "en", "choice") - s.score("plain", "en", "choice")).interval
    low = mean_rho(s, "plain", "choice").interval
    details = {"retention without switching": low, "English, switched over plain": english}
    for arm in ("plain", *(f"words {r}" for r in RATES), "one word", "random dictionary", "as text alone"):
        details[f"English, {arm}"] = s.score(arm, "en", "choice").interval
        details[f"others, {arm}"] = mean_score(s, arm, "choice").interval
        details[f"retention, {arm}"] = mean_rho(s, arm, "choice").interval
    details |= {f"rho of {code}, {USUAL}": s.rho(USUAL, code, "choice").interval for code in OTHERS}
    verdicts = [below(low, 0.8), above(gain.interval, 0.05), within(english, 0.05)]
    return Found(gain.interval, wrong.interval, wrong.interval.high < gain.interval.low, both(verdicts), details)


def c10(s: Sample) -> Found:
    """No fine-tuning, in English, in the language alone, in all languages: at equal steps."""
    each = average_figures(s.score(f"fine-tuned in {code}", code, "choice") for code in EACH)
    strange = average_figures(s.score(f"shuffled, {code}", code, "choice") for code in EACH)
    english, every = (mean_score(s, f"fine-tuned in {name}", "choice", languages=EACH) for name in ("en", "all"))
    more, own = (every - each).interval, (each - english).interval
    control = (strange - english).interval
    details = {"own language over English": own, "all languages over the own": more}
    for name, of in (
        ("none", mean_score(s, "plain", "choice", languages=EACH)),
        ("English", english),
        ("own", each),
        ("all", every),
    ):
        details[f"zh, hi, tr; fine-tuned in {name}"] = of.interval
    for name in ("en", "all"):
        details[f"English; fine-tuned in {name}"] = s.score(f"fine-tuned in {name}", "en", "choice").interval
        details[f"all others; fine-tuned in {name}"] = mean_score(s, f"fine-tuned in {name}", "choice").interval
    return Found(more, control, control.high < 0.05, both([above(own, 0.0), above(more, 0.0)]), details)


CLAIMS = {
    c.id: c
    for c in (
        load_claim(
            "C9",
            arms={
                "plain": PLAIN,
                **{f"words {r}": Matching(switch={"words": r}) for r in RATES},
                "one word": Matching(switch={"variant": "one"}),
                "random dictionary": Matching(switch={"words": RATE, "dictionary": "random"}),
                "as text alone": Matching(switch={"words": RATE}, pictures=False),
            },
            judge=c9,
            asked=ASKED,
        ),
        load_claim(
            "C10",
            arms={
                "plain": PLAIN,
                **{f"fine-tuned in {code}": replace(PLAIN, fine=(code,), options=FINE) for code in ("en", *EACH)},
                "fine-tuned in all": replace(PLAIN, fine=grammar.LANGUAGES, options=FINE),
                **{f"shuffled, {code}": replace(PLAIN, fine=(code,), shuffled=True, options=FINE) for code in EACH},
            },
            judge=c10,
            asked=ASKED,
        ),
    )
}
