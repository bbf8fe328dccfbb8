"""README, the handbook and the pages of results, filled in from the committed results.

The words, and the tables that only list committed rows, are in assets/templates; what has to be computed first is here.
`python -m mpm_lite.report.readme` writes all pages and draws their figures; a test compares.
"""

from __future__ import annotations

import math
import posixpath
import re
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from mpm_lite.claims import ladder, ledger
from mpm_lite.core import figures, runtime
from mpm_lite.core.provenance import format_interval, has_table, markdown_table, read_table
from mpm_lite.core.store import write_atomic
from mpm_lite.evaluation.text_only import CELLS
from mpm_lite.experiments import experiment
from mpm_lite.experiments.pretrain import language_models
from mpm_lite.ops import distributed
from mpm_lite.ops.plan import MACHINES, explain
from mpm_lite.report import classroom, fill, systems

SHOWN = ("en", "zh", "th", "ar", "de", "es", "ja", "ru", "hi", "vi", "el", "ka", "gu")
FIGURE, TRANSFER_FIGURE = "figures/retention.png", "figures/text-transfer.png"
BENCH_FIGURE = "figures/bench-cpu.png"
LADDER_FIGURE, REPLY_FIGURE = "figures/ladder.png", "figures/reply-language.png"
PANELS = {"reply_language": "replies in the language asked", "content": "content, in any language"}
BENCH_ROWS = {"clip_loss": 4096, "siglip_loss": 4096, "linear_cross_entropy": 2048, "retrieval_ranks": 1000}  # n shown
INTERVAL = ["value", "low", "high"]


def find_numbers() -> dict[str, Any]:
    """The numbers of the README: retention on real pictures, of the strongest language model, and of its control."""
    cell = read_table("retention-cells").query("test == 'stamps' and text == 'use-m' and cell == 'read'").iloc[0]
    scores = (
        read_table("ladder").query("metric == 'answers'").set_index(["figure", "lm", "lm_seed"])[INTERVAL].sort_index()
    )
    strongest = scores.loc["t", "value"].idxmax()
    return {
        "read_languages": int(cell["languages"]),
        "read": format_interval(*cell[["rho", "low", "high"]]),
        "strongest": format_interval(*scores.loc[("retention", *strongest)]),
        "control": format_interval(*scores.loc[("retention", "toy-noparallel", 0)]),
    }


# A hundred languages.


def hundred_languages() -> pd.DataFrame:
    """The rows of both towers on emoji, in all languages but English, that count."""
    return read_table("retention").query("test == 'emoji' and text != 'minilm-en' and language != 'en' and counts")


@lru_cache(maxsize=1)
def draw_transfer() -> Any:
    """Retention against text transfer, a point a language, drawn once."""
    return figures.retention_against(hundred_languages(), "t")


def unlisted_languages(text: str) -> pd.DataFrame:
    """Languages that a tower's makers do not list, and that it aligns with English better than a quarter of those they list:
    language, family, alignment, rho. Either the list is incomplete, or a relative was read, or the words are loan words."""
    of = hundred_languages().query("text == @text")
    usual = of[of["cell"] == "read"]["alignment"].quantile(0.25)
    return of[(of["cell"] != "read") & (of["alignment"] >= usual)].sort_values("alignment", ascending=False)


# The ladder of language models.


@lru_cache(maxsize=1)
def draw_ladder() -> Any:
    """The figure of the ladder, drawn once: two pages and its file want it."""
    return figures.draw_ladder(read_table("ladder"), ladder.METRICS, ladder.tower_points())


@lru_cache(maxsize=1)
def read_model_cards() -> dict[tuple[str, int], dict[str, Any]]:
    """The card of each toy language model, by its name and seed."""
    return {(card["name"], card["seed"]): card for card in language_models.cards()}


def describe_reading(card: dict[str, Any]) -> str:
    """What a toy language model read, in a few words from its card."""
    if card["languages"] == ["en"]:
        text = "English only"
    else:
        text = f"{100 * card['parallel']:.0f} % translation pairs"
        text += ", none of which holds three of the words" if card["parallel"] and card.get("withheld") != 0 else ""
        text += f", {100 * card['mixed']:.0f} % of discourse in two languages" if card.get("mixed") else ""
    return f"{text}; {card['parameters'] / 1e6:.1f} M parameters, {card['documents_read'] / 1e6:.1f} M documents"


def list_models(scores: pd.DataFrame) -> str:
    """A line for each language model, from weak to strong: t, e and retention, '-' for a ratio that would be noise."""
    by = scores.set_index(["metric", "lm", "lm_seed", "figure"])[INTERVAL].sort_index()
    shown = [("slots", "t"), ("slots", "e"), ("slots", "retention"), ("answers", "retention")]
    rows = []
    for name, seed in scores[scores["metric"] == "slots"].groupby(["lm", "lm_seed"]).groups:
        asked = [(metric, name, seed, figure) for metric, figure in shown]
        values = [format_interval(*by.loc[one]) if one in by.index else "-" for one in asked]
        strength = float(by["value"].get(asked[0], 0.0))
        rows.append((strength, [f"`{name}:{seed}`", describe_reading(read_model_cards()[name, seed]), *values]))
    header = ["language model", "what it read", "t", "e", "retention", "retention, closed questions"]
    return markdown_table(header, [row for _, row in sorted(rows)])


def list_connectors(scores: pd.DataFrame) -> str:
    """A line for each connector and score: English, the mean of nine languages, what it adds to the paper's connector, and e."""
    by = scores.set_index(["connector", "metric", "figure"])[INTERVAL].sort_index()
    lines = []
    for metric, said in ladder.METRICS.items():
        for name in dict.fromkeys(scores["connector"]):
            asked = [(name, metric, figure) for figure in ("English", "others", "others, over the paper's", "e")]
            lines.append([said, name, *(format_interval(*by.loc[one]) if one in by.index else "-" for one in asked)])
    return markdown_table(["score", "connector", "English", "nine languages", "over the paper's", "e"], lines)


def average_efficiency(scores: pd.DataFrame) -> pd.DataFrame:
    """Pivot efficiency of the words of captions: its mean over the models that read conversations in two languages
    (True) and those that did not (False), and how many models those are."""
    e = scores[(scores["metric"] == "slots") & (scores["figure"] == "e")]
    mixed = [read_model_cards()[model].get("mixed", 0) > 0 for model in zip(e["lm"], e["lm_seed"], strict=True)]
    return e.groupby(pd.Series(mixed, index=e.index))["value"].agg(mean="mean", models="size")


# Speed and memory.


def bench_rows() -> pd.DataFrame:
    """Every committed benchmark row, all machines."""
    files = sorted(runtime.asset("bench").glob("*.csv"))
    return pd.concat([pd.read_csv(file, keep_default_na=False, na_values=["", "nan"]) for file in files])


def describe_gpu_rows(rows: pd.DataFrame) -> str:
    """A sentence on what was measured on a GPU, and on what was not."""
    of = rows[~rows["hardware"].str.contains("(", regex=False)]
    if of.empty:
        return "On a GPU: not measured. No row is estimated."
    cards, versions, ops = (list(dict.fromkeys(of[column])) for column in ("hardware", "torch", "op"))
    missing = [op for op in BENCH_ROWS if op not in ops]
    said = f"On {' and '.join(cards)}, torch {' and '.join(versions)}: medians of {of['rounds'].min()} to {of['rounds'].max()} runs"
    said += f" on {of['date'].max()}, in bfloat16."
    whole = of[of["direction"] == "forward+backward"].set_index(["op", "n", "m", "d"])
    ours = whole[whole["provider"].str.startswith("mpm_lite")].groupby(level=[0, 1, 2, 3])["ms"].min()
    compiled = whole.loc[whole["provider"] == "torch compile", "ms"]
    slower = (ours / compiled).dropna().groupby(level=0).agg(["min", "max"])
    said += " The faster of our forms took, in times of what `torch.compile` of the naive form took, "
    said += ", ".join(f"{low:.2f} to {high:.2f} for {op}" for op, low, high in slower.itertuples()) + "."
    return said + (f" Not measured there: {', '.join(missing)}." if missing else "")


# The pages.

HANDBOOK = "assets/handbook.md"
RESULTS = ("retention", "ladder", "claims", "systems", "paint", "speed")
# Each page and its template.
PAGES = {"README.md": "README.md", HANDBOOK: "handbook.md"}
PAGES |= {f"assets/{name}.md": f"{name}.md" for name in ("instructor_guide", "scope")}
PAGES |= {f"assets/results/{name}.md": f"{name}.md" for name in RESULTS}
# What templates may name, beside what every template may: constants, modules, and the functions above.
NAMES = {"SHOWN": SHOWN, "CELLS": CELLS, "SEEDS": experiment.SEEDS, "infinity": math.inf}
NAMES |= {"ladder": ladder, "ledger": ledger, "systems": systems}
of_course = (classroom.read_lessons, classroom.read_plans)
NAMES |= {made.__name__: partial(made, runtime.asset().parent / "notebooks") for made in of_course}
NAMES |= {made.__name__: made for made in (find_numbers, draw_ladder, list_models, list_connectors, average_efficiency)}
NAMES |= {made.__name__: made for made in (hundred_languages, draw_transfer, unlisted_languages)}
NAMES |= {made.__name__: made for made in (bench_rows, describe_gpu_rows, distributed.simulate, explain)}
NAMES |= {"BENCH_ROWS": BENCH_ROWS, "MACHINES": MACHINES}


def render_page(page: str) -> str:
    """The text of one of PAGES. In templates and in what they call, links are as seen from the top folder; in the page, as
    seen from the page's own."""
    folder = posixpath.dirname(page) or "."
    local = lambda found: f"]({posixpath.relpath(found[1], folder)})"  # noqa: E731
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", local, fill(PAGES[page], **NAMES))


def claim_figures() -> dict[str, Any]:
    """The figures that come from the ledger, those whose claims have run."""
    replies, drawn = ledger.replies_by_share(), {}
    if has_table("ladder"):
        drawn[LADDER_FIGURE] = draw_ladder()
    if replies is not None:
        drawn[REPLY_FIGURE] = figures.draw_reply_language(replies, PANELS)
    if has_table(systems.NAME):
        drawn[systems.FIGURE] = systems.draw_figure()
    return drawn


def update(root: Path) -> None:
    """Write all pages below `root`, the top folder, and draw their figures."""
    for page in PAGES:
        write_atomic(root / page, render_page(page).encode())
    of = read_table("retention").query("test == 'stamps' and text != 'minilm-en' and language != 'en'")
    drawn = {
        FIGURE: figures.retention_against(of[of["counts"] & of["alignment"].notna()]),
        TRANSFER_FIGURE: draw_transfer(),
        BENCH_FIGURE: figures.time_and_memory(bench_rows().query("hardware.str.contains('CPU|Processor', regex=True)")),
    } | claim_figures()
    for name, figure in drawn.items():
        write_atomic(runtime.asset() / name, figures.png(figure))


if __name__ == "__main__":
    update(Path())
