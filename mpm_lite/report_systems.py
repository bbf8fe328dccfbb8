"""README's block on the four systems and their rivals, from the committed comparison."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mpm_lite import figures
from mpm_lite.report_tables import card, has, markdown_table, read, span

MARKS = ("<!-- systems -->", "<!-- /systems -->")
FIGURE = "figures/head-to-head.png"
NAME, BUDGETS, REAL = "head-to-head", "head-to-head-budgets", "head-to-head-real"
TITLES = {"pairs": "equal pairs", "updates": "equal updates too", "parameters": "equal parameters"}
IGLUE = {"retrieval": "retrieval", "true": "true or false", "either": "true of either", "english": "answers in English"}


def titles() -> dict[str, str]:
    """The tables that have run, and what each is called."""
    return {name: title for name, title in TITLES.items() if name in card(NAME)["tables"]}


def joined(metric: str = "choice", language: str = "others") -> pd.DataFrame:
    """A line a table and system: a score with its interval, beside what the system cost and read."""
    scores = read(NAME).query("metric == @metric and language == @language")
    return scores.merge(read(BUDGETS), on=["table", "system"])


def table(name: str) -> str:
    """One of the three tables, best first."""
    english = joined(language="en").query("table == @name").set_index("system")["value"]
    header = ["system", "nine languages", "English", "blind", "updates", "learn at a time", "PFLOP", "pairs not English",
              "texts read", "translations read"]  # fmt: skip
    lines = []
    for row in joined().query("table == @name").sort_values("value", ascending=False).itertuples():
        counts = [f"{n:,}" for n in (row.updates, row.trainable)]
        read_too = [f"{n:,}" for n in (row.abroad, row.sentences, row.translations)]
        scores = [span(row.value, row.low, row.high), f"{english[row.system]:.2f}", f"{row.chance:.2f}"]
        lines.append([row.system, *scores, *counts, f"{1e-15 * row.flops:.2f}", *read_too])
    return markdown_table(header, lines)


def iglue() -> str:
    """Toy-IGLUE, at equal pairs: a line a system, English beside the nine others' mean and chance."""
    rows, lines = read(NAME).query("table == 'pairs'").set_index(["system", "metric", "language"]), []
    for system in rows.index.unique("system"):
        cells = [system]
        for metric in IGLUE:
            if (system, metric, "en") not in rows.index:
                cells.append("-")
                continue
            english, others = (rows.loc[(system, metric, code)] for code in ("en", "others"))
            cells.append(f"{english.value:.2f}, {others.value:.2f} ({others.chance:.2f})")
        lines.append(cells)
    return markdown_table(["system", *IGLUE.values()], lines)


def real() -> str:
    """On real pictures: a line a system."""
    if not has(REAL):
        return "On real pictures, `mpm-lite run head_to_head_real`, they have not been compared yet."
    told, rows, lines = card(REAL), read(REAL), []
    for system, of in rows.groupby("system", sort=False):
        by = of.set_index(["metric", "language"])
        cells = [system]
        for metric in ("recall", "choice"):
            if (metric, "others") not in by.index:  # M3P scores pairs: it has no vectors to retrieve by
                cells += ["-", "-", "-"]
                continue
            english, others = by.loc[(metric, "en"), "value"], by.loc[(metric, "others")]
            cells += [f"{english:.2f}", span(others.value, others.low, others.high), f"{others.chance:.2f}"]
        lines.append([*cells, f"{int(of['trainable'].iloc[0]):,}", f"{1e-15 * of['flops'].iloc[0]:.2f}"])
    header = ["system", "R@10, English", "others", "blind", "one of ten, English", "others", "blind", "learn at a time", "PFLOP"]  # fmt: skip
    count = len(set(rows["language"]) - {"en", "others"})
    return "\n\n".join([
        f"On real pictures: {told['pictures']:,} of emoji, stamps and clip art with one caption each, {len(told['seeds'])} seeds, held-out stamps asked about in English and {count} other languages. *Translate-test* is a perfect translator, *untranslated* none.",
        markdown_table(header, lines),
        f"Run at commit `{told['commit']}`: `{told['command']}`.",
    ])  # fmt: skip


def markdown() -> str:
    """The block between README's marks on the systems."""
    return toys() + "\n\n" + real()


def toys() -> str:
    """On the toy world: figure, three tables, toy-IGLUE."""
    if not has(NAME):
        return "The comparison, `mpm-lite run head_to_head`, has not run yet."
    told = card(NAME)
    parts = [
        f"Which of ten captions belongs to the picture: choices right on test, {len(told['seeds'])} seeds, {told['pairs']:,} image-caption pairs each.",
        f"![{figure().mpm_alt}](assets/{FIGURE})",
    ]  # fmt: skip
    for name, title in titles().items():
        parts += [f"*{title[0].upper()}{title[1:]}:*", table(name)]
    parts += [
        "*Toy-IGLUE, at equal pairs (English, mean of the nine others, chance of those):*",
        iglue(),
        f"Run at commit `{told['commit']}`: `{told['command']}`.",
    ]
    return "\n\n".join(parts)


def figure() -> Any:
    """The comparison as a figure."""
    return figures.head_to_head(joined(), titles())
