"""README's block on painting: what else could paint from prompts in other languages, and emoji after their names."""

from __future__ import annotations

import pandas as pd

from mpm_lite.data.languages import display_name
from mpm_lite.report_tables import card, has, markdown_table, read, span

MARKS = ("<!-- paint -->", "<!-- /paint -->")
RIVAL_METRICS = {"attributes": "attributes", "bound": "bound", "r_precision": "R-precision", "fid": "FID"}


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """The rivals' scores in English, and their means over the nine others: a row an arm, columns (metric, where)."""
    where = rows["language"].map(lambda code: "English" if code == "en" else "others")
    kept = rows[rows["metric"].isin(RIVAL_METRICS)].assign(where=where)
    order = list(dict.fromkeys(kept["arm"]))
    found = kept.groupby(["arm", "metric", "where"])[["value", "chance"]].mean().unstack(["metric", "where"])
    return found.loc[order]


def rivals_markdown() -> str:
    """A line a rival."""
    if not has("paint"):
        return "What else could paint, `mpm-lite run mpm_paint_rivals`, has not run yet."
    by, told, lines = means(read("paint")), card("paint"), []
    for arm in by.index:
        cells = [arm]
        for metric in RIVAL_METRICS:
            digits = 1 if metric == "fid" else 2
            cells += [f"{by.loc[arm, ('value', metric, where)]:.{digits}f}" for where in ("English", "others")]
        cells.insert(3, f"{by.loc[arm, ('chance', 'attributes', 'others')]:.2f}")
        lines.append(cells)
    header = ["painter"]
    for metric, name in RIVAL_METRICS.items():
        header += [f"{name}, English", "others"]
        header += ["their chance"] if metric == "attributes" else []
    return "\n\n".join([
        f"What else could paint: {len(told['seeds'])} seeds, test scenes, means of nine languages. Every painter began as the one that learned with the English encoder, unless it says *from scratch*, and learned from English prompts unless it says otherwise. Chance is what another scene's prompt scores; a lower FID is better.",
        markdown_table(header, lines),
        f"Run at commit `{told['commit']}`: `{told['command']}`; every language, metric and interval is in [assets/results/paint.csv](assets/results/paint.csv).",
    ])  # fmt: skip


def emoji_markdown() -> str:
    """A line an encoder, sort and language."""
    if not has("emoji"):
        return "Emoji, `mpm-lite run mpm_paint_emoji`, have not been painted yet."
    rows, told, lines = read("emoji"), card("emoji"), []
    for language in dict.fromkeys(rows["language"]):
        cells = [f"{display_name(language)} ({language})"]
        for sort in ("learned", "held out"):
            for encoder in dict.fromkeys(rows["encoder"]):
                one = rows[(rows["language"] == language) & (rows["sort"] == sort) & (rows["encoder"] == encoder)].iloc[
                    0
                ]
                cells.append(span(one.value, one.low, one.high))
        lines.append(cells)
    encoders = list(dict.fromkeys(rows["encoder"]))
    header = ["prompted in", *(f"{sort}, {encoder}" for sort in ("learned", "held out") for encoder in encoders)]
    first = rows[(rows["language"] == "en") & (rows["encoder"] == encoders[0])].set_index("sort")
    ceilings = "; ".join(f"{sort}: drawings {of.drawn:.2f}, decoded {of.decoded:.2f}, after another's name {of.wrong:.2f}" for sort, of in first.iterrows())  # fmt: skip
    return "\n\n".join([
        f"Emoji of {told['options']['pixels']} pixels, painted after their names: {told['pairs']} English names learned, {len(told['seeds'])} seeds of re-alignment. R-precision: the painted emoji's own English name is the nearest of a hundred, to a judge of its own (chance 0.01). What the judge says else, in English, of *{ceilings}*.",
        markdown_table(header, lines),
        f"Re-aligned in {told['options']['re-aligned']['steps']:,} steps, the painter finds what it learned in English in {_learned(rows, 'e5-small')} with `e5-small`, and in {_learned(rows, 'minilm-en')} with `minilm-en`, whose states it was pretrained on: where the first is low, the other languages say little of transfer.",
        f"Run at commit `{told['commit']}`: `{told['command']}`.",
    ])  # fmt: skip


def _learned(rows: pd.DataFrame, encoder: str) -> str:
    """What a painter finds of the English names that it learned."""
    of = rows.query("encoder == @encoder and sort == 'learned' and language == 'en'").iloc[0]
    return f"{of.value:.2f}"


def markdown() -> str:
    """The block between README's marks on painting."""
    return rivals_markdown() + "\n\n" + emoji_markdown()
