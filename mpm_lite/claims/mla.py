"""Claims C11, C12, C13 of MLA (2206.11091) and C17, on the toy world: arms, controls, rules.

Everything here was committed before the runs that judge it. The task is the choice among ten captions; chance is the blind
picture. Acquirers' embeddings start from masked text alone, as multilingual BERT's did: no translation was read before Native
Language Transfer. That English stays as it is, bit by bit, and that a language which comes later touches no other, are tests of
the code, and no evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpm_lite.claims import Condition, Found, load_claim
from mpm_lite.claims.mpm import BLOCK, OTHERS, learned, mean_gain, mean_rho, mean_score
from mpm_lite.evaluation.stats import Sample
from mpm_lite.experiments.mla import SHORT_ENGLISH, Acquiring
from mpm_lite.experiments.rivals import Pairing

ASKED = {**BLOCK, "looks": ("real", "blind")}
LATER = ("hi", "sw", "tr")
FIRST = tuple(code for code in OTHERS if code not in LATER)
SENTENCES = 4_000  # translations of a language, and captioned pictures
STEPS = {"transfer_steps": 400, "exposure_steps": 80}
# C11 in 1,800 steps left its arms at the top, too: 0.99 with acquirers and with the embedding alone (seeds 40 to 44, other pictures).
# By the look below, 192 are the most steps at which at most 0.95 of choices are right; the rule asks for 0.84 of English.
SOME = {"transfer_steps": 160, "exposure_steps": 32}
# C12 in 480 steps left every arm at the top, and told nothing (seeds 40 to 44, other pictures). On val, in nine languages and with
# seed 7, transfer alone is right in 0.13, 0.32, 0.67, 0.94 of choices after 24, 48, 96, 192 steps: 96 are the most at which at most
# 0.8 are right.
FEW = {"transfer_steps": 80, "exposure_steps": 16}
TOGETHER = sum(FEW.values())
# As many steps a language for nine languages that learn together as for one that comes later.
NINE = {name: len(OTHERS) * steps for name, steps in STEPS.items()}
NOISES = (0.05, 0.1)


def _mla(options: Mapping[str, Any] | None = None, **given: Any) -> Acquiring:
    """An arm of MLA with the dials that all share."""
    dials = STEPS | dict(options or {})
    return Acquiring(
        parallel=SENTENCES, pairs=SENTENCES, table="masked text", english_options=SHORT_ENGLISH, options=dials, **given
    )


def c11(s: Sample) -> Found:
    """Acquirers beside a frozen English model."""
    arms = ("acquirers", "embedding alone", "whole text encoder")
    score = {arm: mean_score(s, arm, "choice") for arm in arms}
    rho = Condition("retention of choices in nine languages", mean_rho(s, "acquirers", "choice"), 0.84)
    over = Condition(
        "choices right, acquirers minus the embedding alone", score["acquirers"] - score["embedding alone"], 0.0
    )
    details = {f"rho of {code}": s.rho("acquirers", code, "choice") for code in OTHERS}
    details |= {f"others, {arm}": of for arm, of in score.items()}
    details |= {f"English, {arm}": s.score(arm, "en", "choice") for arm in arms}
    return Found([rho], [over], [learned(s, "acquirers", "choice")], details=details)


def c12(s: Sample) -> Found:
    """Two stages beside each of them alone, at equal steps."""
    arms = ("both", "transfer alone", "exposure alone", "reversed", "shuffled")
    score = {arm: mean_score(s, arm, "choice") for arm in arms}
    gain = {arm: mean_gain(s, arm, "choice") for arm in ("both", "transfer alone", "shuffled")}
    parts = [
        Condition(f"choices right, both stages minus {arm}", score["both"] - score[arm], 0.0)
        for arm in ("transfer alone", "exposure alone")
    ]
    share = gain["transfer alone"] / gain["both"]
    parts.append(Condition("share of the gain that transfer alone gives", share, 0.5))
    control = Condition("choices right above chance, every translation another's", gain["shuffled"], high=0.1)
    details = {f"others, {arm}": of for arm, of in score.items()}
    return Found(parts, [control], [learned(s, "both", "choice")], details=details)


def c13(s: Sample) -> Found:
    """Languages that come later, one by one, beside the same ones learned with all others."""
    late = mean_rho(s, "later", "choice", LATER) - mean_rho(s, "together", "choice", LATER)
    lost = mean_score(s, "shared, first", "choice", languages=FIRST) - mean_score(
        s, "shared, later", "choice", languages=FIRST
    )
    own = mean_score(s, "first", "choice", languages=FIRST) - mean_score(s, "later", "choice", languages=FIRST)
    effect = Condition("retention of hi, sw and tr, added later minus learned together", late, -0.05)
    control = Condition("what six languages lose when three are added to shared acquirers", lost, 0.0)
    known = Condition("retention of hi, sw and tr, learned together", mean_rho(s, "together", "choice", LATER), 0.5)
    details = {"what six languages lose, acquirers of their own": own}
    for arm in ("later", "together", "shared, later"):
        details[f"hi, sw and tr, {arm}"] = mean_score(s, arm, "choice", languages=LATER)
    return Found([effect], [control, known], [learned(s, "together", "choice")], details=details)


def c17(s: Sample) -> Found:
    """English pairs on a multilingual encoder beside an English model behind a translator."""
    pivot, perfect = mean_score(s, "pivot", "choice"), mean_score(s, "translated 0.0", "choice")
    over = Condition(
        "choices right in nine languages, minus those behind a translator that makes mistakes",
        pivot - mean_score(s, "translated 0.05", "choice"),
        0.0,
    )
    control = Condition(
        "a translator without mistakes, minus English", perfect - s.score("translated 0.0", "en", "choice"), -0.05, 0.05
    )
    details = {"others, pivot": pivot, "English, pivot": s.score("pivot", "en", "choice")}
    details |= {
        f"others, translated with noise {n}": mean_score(s, f"translated {n}", "choice") for n in (0.0, *NOISES)
    }
    return Found([over], [control], [learned(s, arm, "choice") for arm in ("pivot", "translated 0.0")], details=details)


CLAIMS = {
    c.id: c
    for c in (
        load_claim(
            "C11",
            {
                "acquirers": _mla(SOME),
                "embedding alone": _mla(SOME | {"learns": "embedding"}),
                "whole text encoder": _mla(SOME | {"learns": "text encoder"}),
            },
            c11,
            {**ASKED, "first": 400},
        ),
        load_claim(
            "C12",
            {
                "both": _mla(FEW),
                "transfer alone": _mla({"order": "transfer", "transfer_steps": TOGETHER}),
                # Alone, it learns as fast as transfer does: at its usual rate, a tenth of that, it could hardly begin.
                "exposure alone": _mla({"order": "exposure", "exposure_steps": TOGETHER, "exposure_lr": 2e-3}),
                "reversed": _mla(FEW | {"order": "exposure transfer"}),
                "shuffled": _mla(FEW, shuffled=True),
            },
            c12,
            {**ASKED, "first": 400},
        ),
        load_claim(
            "C13",
            {
                "later": _mla(languages=FIRST, then=LATER),
                "first": _mla(languages=FIRST),
                "together": _mla(NINE),
                "shared, later": _mla({"shared": True}, languages=FIRST, then=LATER),
                "shared, first": _mla({"shared": True}, languages=FIRST),
            },
            c13,
            ASKED,
        ),
        load_claim(
            "C17",
            {"pivot": Pairing("pivot", options=SHORT_ENGLISH)}
            | {f"translated {n}": Pairing("translate-test", noise=n, options=SHORT_ENGLISH) for n in (0.0, *NOISES)},
            c17,
            ASKED,
        ),
    )
}
