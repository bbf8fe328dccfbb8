"""Where later studies disagree with the four papers, or with each other, and on which side the ledger's figures are.

A dispute is a question, who answers it how with which figure, and the figure of the ledger and the bar that decide it: above
the bar, with the whole interval, the answer here is yes; below, no; else it stays open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Dispute:
    """`figure` is what the ledger calls it, "" for the claim's effect. Figures of others stand with their tag."""

    claim: str
    question: str
    yes: str
    no: str
    figure: str
    said: str  # what that figure is, in a few words
    bar: float


_REPLIES = "LLaVA 1.5 answers Chinese questions in Chinese after English tuning (its issue 238) [R]"
_ENGLISH = (
    "VisCPM: understood, and answered in English [R]; Centurio: 0.2-6.2 % of captions in the language asked for [S]"
)
DISPUTES = (
    Dispute(
        claim="C5",
        question="Beside English pairs, do pairs in other languages help those languages much?",
        yes="Centurio (Phi-3.5, SigLIP): half of pretraining in other languages takes five groups of languages from 19.3-34.5 to 22.8-39.5 [S]; Pangea: best at 40 % English, a sharp drop at 100 % [S]",
        no="VisCPM: native and translated Chinese pairs on top take Chinese chat from 86.3 to 88.2 [R]",
        figure="",
        said="slots right in nine languages, their pairs on top of English ones",
        bar=0.05,
    ),
    Dispute(
        claim="C15",
        question="Do closed answers in other languages need tuning data in them?",
        yes="mBLIP, whose mix translates questions' answers too [R]",
        no="Centurio: 33.0-42.9 with English alone, 36.1-42.7 with 100 languages [S]",
        figure="closed answers",
        said="closed answers right in nine languages, translated mix over English alone",
        bar=0.05,
    ),
    Dispute(
        claim="C2",
        question="Tuned on English alone and asked in another language, does a model reply in it?",
        yes=_REPLIES,
        no=_ENGLISH,
        figure="",
        said="replies in the language asked, mean of nine languages, questions in that language",
        bar=0.5,
    ),
    Dispute(
        claim="C15",
        question="And asked in English for a caption in another language?",
        yes=_REPLIES,
        no=_ENGLISH,
        figure="reply_language, others, english",
        said="captions in the language asked for, mean of nine languages",
        bar=0.5,
    ),
)  # fmt: skip


def interval(one: Dispute, row: Mapping[str, Any]) -> tuple[float, float, float]:
    """The figure that decides a dispute, in a claim's row of the ledger: value, low, high."""
    if not one.figure:
        return row["effect"], row["low"], row["high"]
    value, low, high = row["details"][one.figure]
    return value, low, high


def answer(one: Dispute, row: Mapping[str, Any]) -> str:
    """yes, no or open."""
    _, low, high = interval(one, row)
    return "yes" if low >= one.bar else "no" if high < one.bar else "open"


def told(one: Dispute, row: Mapping[str, Any]) -> str:
    """A dispute in a line: question, both sides, and the answer here."""
    value, low, high = interval(one, row)
    return f"disputed: {one.question} Yes: {one.yes}. No: {one.no}. Here {answer(one, row)}: {value:.2f} [{low:.2f}, {high:.2f}] {one.said} (bar {one.bar:g})."
