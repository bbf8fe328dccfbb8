"""The block on the four systems and their rivals, from the committed comparison."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mpm_lite.core import figures
from mpm_lite.core.provenance import format_interval, has_table, markdown_table, read_card, read_table  # noqa: F401

FIGURE = "figures/head-to-head.png"
NAME, BUDGETS, REAL = "head-to-head", "head-to-head-budgets", "head-to-head-real"
TITLES = {
    "pairs": "equal pairs",
    "updates": "equal updates too",
    "parameters": "equal parameters",
    "text": "one text for all",
}
IGLUE = {"retrieval": "retrieval", "true": "true or false", "english": "answers in English"}

# What you have beside English pairs, what you want it for, and which system to take.
ADVICE = (
    (
        "sentences translated from English, and a few captions in each language",
        "choosing, matching, retrieving; English stays as it is",
        "MLA",
    ),
    ("translated sentences, and a text encoder of many languages", "the same, with one text encoder", "teacher"),
    ("translated captions", "the same, with one text encoder", "translate-train"),
    (
        "a text encoder that has read many languages, and translations",
        "the same, in every language that it has read",
        "pivot",
    ),
    ("a translator whenever it is asked", "the same, from an English model alone", "translate-test"),
    ("a language model of many languages", "captions and answers in words", "MPM"),
    (
        "a language model of many languages, and translated captions",
        "captions and answers, in the language of the question",
        "mBLIP",
    ),
    ("a dictionary", "choosing and matching, a little", "M3P"),
)


def read_titles() -> dict[str, str]:
    """The tables that have run, each with its title."""
    return {name: title for name, title in TITLES.items() if name in read_card(NAME)["tables"]}


def join_budgets(metric: str = "choice", language: str = "others") -> pd.DataFrame:
    """A row for each table and system: a score with its interval, beside what the system cost and read."""
    scores = read_table(NAME).query("metric == @metric and language == @language")
    return scores.merge(read_table(BUDGETS), on=["table", "system"])


Table = tuple[list[str], list[list[str]]]  # a header, and lines


def build_table(name: str) -> Table:
    """One of the three tables, best first."""
    english = join_budgets(language="en").query("table == @name").set_index("system")["value"]
    header = ["system", "nine languages", "English", "blind", "updates", "trainable at once", "TFLOP", "pairs not English",
              "texts read", "translations read"]  # fmt: skip
    lines = []
    for row in join_budgets().query("table == @name").sort_values("value", ascending=False).itertuples():
        counts = [f"{n:,}" for n in (row.updates, row.trainable)]
        read_too = [f"{n:,}" for n in (row.abroad, row.sentences, row.translations)]
        scores = [format_interval(row.value, row.low, row.high), f"{english[row.system]:.2f}", f"{row.chance:.2f}"]
        lines.append([row.system, *scores, *counts, f"{1e-12 * row.flops:.0f}", *read_too])
    return header, lines


def iglue() -> Table:
    """Toy-IGLUE, at equal pairs: a line for each system; for each task English, the mean of the nine others, and their chance."""
    rows, lines = read_table(NAME).query("table == 'pairs'").set_index(["system", "metric", "language"]), []
    for system in rows.index.unique("system"):
        cells = [system]
        for metric in IGLUE:
            if (system, metric, "en") not in rows.index:
                cells += ["-", "-", "-"]
                continue
            english, others = (rows.loc[(system, metric, code)] for code in ("en", "others"))
            cells += [f"{score:.2f}" for score in (english.value, others.value, others.chance)]
        lines.append(cells)
    return ["system", *(f"{task}{of}" for task in IGLUE.values() for of in (": English", ": others", ": blind"))], lines


def real() -> Table:
    """The comparison on real pictures: a line for each system."""
    lines = []
    for system, of in read_table(REAL).groupby("system", sort=False):
        by = of.set_index(["metric", "language"])
        # Here it reads what people wrote in English; on the toy world its translator makes mistakes.
        cells = ["translate-test, perfect" if system == "translate-test" else system]
        for metric in ("recall", "choice"):
            if (metric, "others") not in by.index:  # M3P scores pairs: it has no vectors to retrieve by
                cells += ["-", "-", "-"]
                continue
            english, others = by.loc[(metric, "en"), "value"], by.loc[(metric, "others")]
            cells += [f"{english:.2f}", format_interval(others.value, others.low, others.high), f"{others.chance:.2f}"]
        lines.append([*cells, f"{int(of['trainable'].iloc[0]):,}", f"{1e-12 * of['flops'].iloc[0]:,.0f}"])
    header = ["system", "R@10, English", "others", "blind", "one of ten, English", "others", "blind", "trainable at once", "TFLOP"]  # fmt: skip
    return header, lines


def advice() -> Table:
    """What to choose when: a line for each situation, with the scores of its system at equal pairs, best first."""
    scores = {
        metric: join_budgets(metric).query("table == 'pairs'").set_index("system") for metric in ("choice", "retrieval")
    }
    lines = []
    for given, purpose, system in sorted(ADVICE, key=lambda one: -scores["choice"]["value"][one[-1]]):
        reached = [f"{of['value'][system]:.2f}" for of in scores.values()]
        lines.append([system, given, purpose, *reached])
    return ["take", "if beside English pairs you have", "for", "choices right, nine languages", "retrieval"], lines


def draw_figure() -> Any:
    """The comparison as a figure."""
    return figures.draw_head_to_head(join_budgets(), read_titles())
