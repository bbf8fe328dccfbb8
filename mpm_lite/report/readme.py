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
RIVAL_METRICS = {"attributes": "attributes", "bound": "bound", "r_precision": "R-precision", "fid": "FID"}
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


def list_translators(means: pd.DataFrame) -> str:
    """A line for each test, translator and pivot: R@10 in percent behind the translator, of the pivot, the difference, and the
    bounds: untranslated and translated perfectly."""

    def percent(row: pd.Series, name: str = "score", low: str = "low", high: str = "high", sign: str = "") -> str:
        value, *bounds = (format(100 * row[column], f"{sign}.1f") for column in (name, low, high))
        return f"{value} [{', '.join(bounds)}]"

    lines = []
    for (test, translator, text), of in means.groupby(["test", "translator", "read_by"], sort=False):
        rows = of.set_index("arm")
        own = rows.loc[translator]
        over = percent(own, "over_pivot", "over_low", "over_high", "+")
        arms = [percent(rows.loc[arm]) for arm in (translator, f"pivot, {text}", "untranslated", "perfect")]
        lines.append([test, translator, f"`{text}`", str(own["languages"]), *arms[:2], over, *arms[2:]])
    header = ["test", "translator", "pivot's tower", "languages", "translated", "pivot", "translated over pivot"]
    return markdown_table([*header, "untranslated", "perfect"], lines)


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


def list_bench_rows(rows: pd.DataFrame) -> str:
    """Time, memory and error of the ops beside the naive form and peers: a line for each shape and provider."""
    lines = []
    whole = rows[(rows["direction"] == "forward+backward") | (rows["op"] == "retrieval_ranks")]
    whole = whole[(whole["threads"] == 0) | (whole["n"] == whole["op"].map(BENCH_ROWS))]  # of a CPU one size an op
    for (hardware, op), of in whole.groupby(["hardware", "op"], sort=False):
        for (n, m, d, dtype), shape in of.groupby(["n", "m", "d", "dtype"], sort=False):
            naive = shape[shape["provider"] == "naive"]
            for row in shape.itertuples():
                times = naive["ms"].iloc[0] / row.ms if len(naive) else math.nan
                error = row.loss_error if op == "retrieval_ranks" else row.grad_error
                spent = f"{row.ms:,.0f} [{row.p20:,.0f}, {row.p80:,.0f}]"
                cells = [op, f"{n:,} x {m:,} x {d} {dtype}", row.provider, spent]
                lines.append([*cells, f"{times:.2f}", f"{row.peak_mb:,.0f}", f"{error:.0e}", hardware, str(row.rounds)])
    header = ["op", "shape", "provider", "ms [p20, p80]", "speed over naive"]
    return markdown_table([*header, "MB beside inputs and gradients", "error", "on", "runs"], lines)


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


# Rows of a chunk when the GPU rows were made, and the bandwidth of that card in TB/s.
ROWS_THEN, BANDWIDTH = {"clip_loss": 1024, "siglip_loss": 512}, MACHINES["h100"][2]


def list_taller_chunks(rows: pd.DataFrame) -> str:
    """What taller chunks should save, by arithmetic alone: each chunk adds M x D gradients to a sum in float32, 8 bytes each."""
    lines = []
    for row in rows[rows["op"].isin(ROWS_THEN) & rows["hardware"].str.contains("NVIDIA")].itertuples():
        ours = row.provider == f"mpm_lite {'triton' if row.op == 'clip_loss' else 'chunked'}"
        if not ours or row.direction == "forward":
            continue
        now = explain(row.op, N=row.n, D=row.d, machine="h100").rows
        moved = [8e-9 * -(-row.n // height) * row.m * row.d for height in (ROWS_THEN[row.op], now)]  # GB
        saved = (moved[0] - moved[1]) / BANDWIDTH
        chunks, traffic = f"{ROWS_THEN[row.op]:,} to {now:,}", f"{moved[0]:.1f} to {moved[1]:.1f}"
        shape, measured = f"{row.n:,} x {row.m:,} x {row.d}", f"{row.ms:.1f}"
        lines.append(
            [row.op, shape, measured, chunks, traffic, f"{saved:.1f}", f"{row.ms - saved:.1f}", "not measured"]
        )
    header = ["op", "shape", "ms then", "rows of a chunk", "GB added", "ms saved", "expected ms", "ms now"]
    return markdown_table(header, lines)


def list_cards(rows: pd.DataFrame) -> str:
    """How InfoNCE over many pairs would go on several cards, simulated from the row of one card."""
    row = rows[(rows["op"] == "clip_loss") & (rows["provider"] == "mpm_lite triton") & (rows["d"] == 512)]
    row = row[row["direction"] == "forward+backward"].iloc[0]
    lines = []
    for pairs in (32_768, 1_048_576):
        for cards, gigabytes in ((1, math.inf), (8, 450), (64, 50)):
            found = distributed.simulate(pairs, cards, row.d, row.ms / (row.n * row.m), gigabytes)
            link = "" if cards == 1 else f"{gigabytes:,} GB/s"
            cells = [f"{pairs:,}", str(cards), link, f"{pairs // cards:,}"]
            cells += [f"{found[k]:,.1f}" for k in ("compute_ms", "send_ms", "together_ms", "apart_ms")]
            lines.append(
                [*cells, f"{found['sent_gb']:.2f}", f"{found['held_gb']:.2f}", f"{4e-9 * pairs**2 / cards:,.1f}"]
            )
    header = ["pairs", "cards", "link", "pairs a card", "computing, ms", "sending, ms", "at once, ms", "in turn, ms"]
    return markdown_table([*header, "GB sent", "GB held", "GB of logits, naive"], lines)


# Painting.


def list_rivals(rows: pd.DataFrame) -> str:
    """A line for each painter: its scores in English, and their means over the nine other languages."""
    where = rows["language"].map(lambda code: "English" if code == "en" else "others")
    kept = rows[rows["metric"].isin(RIVAL_METRICS)].assign(where=where)
    by = kept.groupby(["arm", "metric", "where"])[["value", "chance"]].mean()
    lines = []
    for arm in dict.fromkeys(kept["arm"]):
        cells = [arm]
        for metric in RIVAL_METRICS:
            digits = 1 if metric == "fid" else 2
            cells += [f"{by.loc[(arm, metric, where), 'value']:.{digits}f}" for where in ("English", "others")]
        cells.insert(3, f"{by.loc[(arm, 'attributes', 'others'), 'chance']:.2f}")
        lines.append(cells)
    header = [cell for name in RIVAL_METRICS.values() for cell in (f"{name}, English", "others")]
    return markdown_table(["painter", *header[:2], "their chance", *header[2:]], lines)


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
NAMES |= {made.__name__: made for made in (hundred_languages, draw_transfer, unlisted_languages, list_translators)}
NAMES |= {made.__name__: made for made in (bench_rows, list_bench_rows, describe_gpu_rows, list_rivals)}
NAMES |= {made.__name__: made for made in (list_taller_chunks, list_cards)} | {"BANDWIDTH": BANDWIDTH}


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
