"""README, the handbook and the pages of results: templates of assets/templates, filled from the committed results.

`python -m mpm_lite.report.readme` writes them all and draws their figures; a test compares.
"""

from __future__ import annotations

import math
import posixpath
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import pandas as pd

from mpm_lite.claims import ladder, ledger
from mpm_lite.core import figures, runtime
from mpm_lite.core.provenance import card, has, markdown_table, percent, read, span
from mpm_lite.core.store import write_atomic
from mpm_lite.data.languages import display_name
from mpm_lite.evaluation.text_only import CELLS
from mpm_lite.experiments import experiment
from mpm_lite.experiments.pretrain import language_models
from mpm_lite.report import systems

SHOWN = ("en", "zh", "th", "ar", "de", "es", "ja", "ru", "hi", "vi", "el", "ka", "gu")
FIGURE = "figures/retention.png"
BENCH_FIGURE = "figures/bench-cpu.png"
SHOWN_OF_LADDER = ("t", "e", "retention")
LADDER_FIGURE, REPLY_FIGURE = "figures/ladder.png", "figures/reply-language.png"
PANELS = {"reply_language": "replies in the language asked", "content": "content, in any language"}
BENCH_ROWS = {"clip_loss": 4096, "siglip_loss": 4096, "linear_cross_entropy": 2048, "retrieval_ranks": 1000}  # n shown


def languages() -> str:
    """A few languages on the held-out stamps, both towers and the floor."""
    of = read("retention").query("test == 'stamps'").set_index(["text", "language"])
    rows = []
    for code in SHOWN:
        cells = [f"{display_name(code)} ({code})"]
        for text in ("use-m", "e5-small"):
            row = of.loc[(text, code)]
            rho = "" if code == "en" else f", rho {span(row['rho'], row['low'], row['high'])}"
            cells.append(f"{percent(row['score'])}{rho}" + ("" if code == "en" else f" ({row['cell']})"))
        rows.append([*cells, percent(of.loc[("minilm-en", code)]["score"]), percent(of.loc[("use-m", code)]["chance"])])
    return markdown_table(["query in", "`use-m`", "`e5-small`", "English-only floor", "chance"], rows)


def cells() -> str:
    """Mean retention by cell."""
    of = read("retention-cells").query("test == 'stamps'")
    rows = []
    for cell in CELLS:
        row = [cell]
        for text in ("use-m", "e5-small"):
            found = of[(of["text"] == text) & (of["cell"] == cell)]
            row.append(
                "-"
                if found.empty
                else f"{span(*found.iloc[0][['rho', 'low', 'high']])}, {found.iloc[0]['languages']} languages"
            )
        rows.append(row)
    return markdown_table(["the tower", "`use-m`", "`e5-small`"], rows)


def controls() -> str:
    """Every condition against chance, English and all other languages."""
    rows = []
    for row in read("controls").itertuples():
        gain = f"{percent(row.over_chance)} [{percent(row.low)}, {percent(row.high)}]"
        rows.append([f"`{row.text}`", row.condition, row.group, percent(row.score), percent(row.chance), gain])
    return markdown_table(["text tower", "training pairs", "queries", "R@10", "chance", "over chance"], rows)


def _worth(value: float, everything: int) -> str:
    return f"> {everything:,}" if math.isinf(value) else f"{value:,.0f}"


def exchange() -> str:
    """What English-only training is worth in in-language pairs."""
    rows = []
    names = {"english-same-pictures": "same pictures, as many English pairs", "english-everything": "all English pairs"}
    for row in read("exchange-rates").itertuples():
        n = row.all_in_language
        worth = f"{_worth(row.worth, n)} [{_worth(row.low, n)}, {_worth(row.high, n)}]"
        gain = f"{100 * row.gain_over_all_in_language:+.1f} [{100 * row.gain_low:+.1f}, {100 * row.gain_high:+.1f}]"
        rows.append([display_name(row.language), names[row.english_arm], f"{row.pairs:,}", worth, f"{n:,}", gain])
    return markdown_table(
        [
            "language",
            "English arm",
            "English pairs",
            "worth in in-language pairs",
            "in-language pairs there are",
            "points over training on them all",
        ],
        rows,
    )


def associations() -> str:
    """Correlations of alignment and retention and the difference in differences."""
    rows = [
        [row.text, row.what, str(row.languages), str(row.families), span(row.value, row.low, row.high)]
        for row in read("associations").itertuples()
    ]
    return markdown_table(["text tower", "what", "languages", "families", "value"], rows)


def markdown() -> str:
    """The block on real pictures."""
    told = card("retention")
    stamps = read("retention").query("test == 'stamps'")["n"].max()
    seeds = f"{len(told['seeds'])} seeds"
    return "\n\n".join(
        [
            f"R@10 in percent: is the asked picture among the first ten of {stamps} held-out stamps? Heads trained on English captions only, {seeds}; rho is retention; in brackets how the tower stands to the language.",
            languages(),
            "Mean retention by what the tower read, fixed before any run (*read*; *relative read*: another language of its branch; *no relative read*; *unreadable pieces*: at least 5 % of its pieces are unknown to the tokenizer):",
            cells(),
            f"![Scatter of retention against the text tower's own alignment, one point a language, one panel a tower.](assets/{FIGURE})",
            "Does retention follow the tower's own alignment (translation recall@1 among training captions, no picture involved)? Spearman's rho, intervals by drawing language families:",
            associations(),
            "What could have sunk it:",
            controls(),
            "And what English-only training is worth, where people did caption the same pictures in the language (human translations: in-language, not native):",
            exchange(),
            f"Made by `python -m mpm_lite.report.readme` from [assets/results](assets/results), run at commit `{told['commit']}` with seeds {told['seeds'][0]}-{told['seeds'][-1]}.",
        ]
    )


def reads(card: dict[str, Any]) -> str:
    """What a toy language model read, in a few words from its card."""
    if card["languages"] == ["en"]:
        text = "English only"
    else:
        text = f"{100 * card['parallel']:.0f} % translation pairs"
        text += ", none of which holds three of the words" if card["parallel"] and card.get("withheld") != 0 else ""
        text += f", {100 * card['mixed']:.0f} % of discourse in two languages" if card.get("mixed") else ""
    return f"{text}; {card['parameters'] / 1e6:.1f} M parameters, {card['documents_read'] / 1e6:.1f} M documents"


def ladder_alt() -> str:
    """What the figure of the ladder shows, in a sentence."""
    return str(ladder_figure().mpm_alt)


@lru_cache(maxsize=1)
def ladder_figure() -> Any:
    """The figure of the ladder, drawn once: two pages and its file want it."""
    return figures.ladder(read("ladder"), ladder.METRICS, ladder.towers())


def ladder_markdown() -> str:
    """The block on the ladder: the figure, what the models say together, and a line a model."""
    if not has("ladder"):
        return "Not run yet."
    scores, models, told = read("ladder"), read("ladder-models"), card("ladder")
    cards = {(one["name"], one["seed"]): one for one in language_models.cards()}
    words = scores[scores["metric"] == "slots"]
    rows = []
    for (name, seed), of in words.groupby(["lm", "lm_seed"]):
        of = of.set_index("figure")
        figures_of = [
            span(*of.loc[what, ["value", "low", "high"]]) if what in of.index else "-" for what in SHOWN_OF_LADDER
        ]
        answers = scores[(scores["metric"] == "answers") & (scores["lm"] == name) & (scores["lm_seed"] == seed)]
        answers = answers.set_index("figure")
        kept = "retention" in answers.index
        figures_of.append(span(*answers.loc["retention", ["value", "low", "high"]]) if kept else "-")
        strength = float(of["value"].get("t", 0.0))
        rows.append((strength, [f"`{name}:{seed}`", reads(cards[name, seed]), *figures_of]))
    by_strength = [row for _, row in sorted(rows)]
    across = [
        # Models that all stand in one order leave nothing to draw: their correlation has no interval.
        [
            ladder.METRICS[row.metric],
            row.figure,
            span(row.value, row.low, row.high) if row.low < row.high else f"{row.value:.2f}",
            str(row.models),
        ]
        for row in models.itertuples()
    ]
    e = words[words["figure"] == "e"].assign(
        mixed=lambda of: [cards[one].get("mixed", 0) > 0 for one in zip(of["lm"], of["lm_seed"], strict=True)]
    )
    by_text = e.groupby("mixed")["value"].agg(["mean", "size"])
    return "\n\n".join(
        [
            f"![{ladder_alt()}](assets/{LADDER_FIGURE})",
            "Each point is a language model that read text only, with the same connector before it, which learned to see from English captions only. *Text transfer t*: an English caption stands as text in the picture's place; how much of what it tells the model in English it also tells it in the other languages? *Pivot efficiency e*: does a picture serve the other languages as well as that caption does? *Retention* is their product. The papers' premise is a language model with t near 1; their hypothesis is that e is near 1.",
            "Over all models (*retention against t* is Spearman's rank correlation; intervals from resampling models):",
            markdown_table(["score", "figure", "value", "models"], across),
            "*Closed questions* are short questions with a factual answer, decided by likelihood. *One of ten captions*: is the picture's own caption the likeliest of ten? *Words of captions*: how many of the picture's attributes a free reply names. *Captions exactly right*: whether the reply says exactly what the picture shows; this score was added after the first run on test, from the same rows.",
            "Closed questions come out as the papers say: retention follows t, and e is near 1 or above it. Captions behave differently: there, e depends on the language model too, and for captions that have to be exactly right it is low even in the strongest model, which names the right attributes and then often mixes up which thing has which. "
            f"For the words of captions it is {by_text.loc[False, 'mean']:.2f} on average over the {by_text.loc[False, 'size']} language models that read translation pairs alone, and {by_text.loc[True, 'mean']:.2f} over the {by_text.loc[True, 'size']} that also read conversations in two languages. (t can be above 1: a blind reply names fewer right words in the other languages than in English, so there is more to gain.)",
            f"By language model, from weak to strong: t, e and retention of the words of captions, and retention of closed questions (mean of nine languages, {scores['n'].max()} test pictures; intervals from resampling pictures; '-' where the ratio would be one of noise):",
            markdown_table(
                ["language model", "what it read", *SHOWN_OF_LADDER, "retention, closed questions"], by_strength
            ),
            f"Made by `mpm-lite run ladder` at commit `{told['commit']}`.",
        ]
    )


def claims_markdown() -> str:
    """The block on claims: the ledger, a line a claim."""
    lines = []
    for row in ledger.table().itertuples():
        one = ledger.claim(row.claim)
        ran = row.seeds > 0
        effect = f"{span(row.effect, row.low, row.high)} ({one.effect})" if ran else f"- ({one.effect})"
        # Adding nothing makes minus nought nought.
        control = f"{round(row.control_effect, 2) + 0.0:.2f} ({one.control})" if ran else f"- ({one.control})"
        lines.append([row.claim, one.statement, one.theirs or "-", effect, control, str(row.seeds), row.verdict])
    names = [f"{name}.py" for name in ("mpm", "m3p", "mla", "mblip")]
    files = ", ".join(f"[`{name}`](mpm_lite/claims/{name})" for name in names)
    shown, known = [], ledger.read()
    if "C3" in known:
        shown.append(
            f"![Lines of reply language and content against the share of other languages in tuning.](assets/{REPLY_FIGURE})"
        )
    return "\n\n".join(
        [
            *shown,
            markdown_table(
                ["claim", "of the paper", "its figure", "here: effect [95 %]", "control", "seeds", "verdict"], lines
            ),
            *disputed(known),
            f"Rules, arms and controls: {files}, committed before the runs. Under {experiment.SEEDS} seeds a claim is pending. `mpm-lite claims run C1` runs one; this table is made by `python -m mpm_lite.report.readme`.",
        ]
    )


def disputed(known: dict[str, dict[str, Any]]) -> list[str]:
    """Where others disagree, and the answer of the ledger; nothing where no claim has run that decides one."""
    ran = [one for one in ledger.DISPUTES if one.claim in known]
    if not ran:
        return []
    lines = []
    for one in ran:
        row = known[one.claim]
        here = f"**{ledger.answer(one, row)}**: {span(*ledger.interval(one, row))} ({one.said}; bar {one.bar:g}; {one.claim})"
        lines.append([one.question, one.yes, one.no, here])
    return [
        "Where others disagree, and what the ledger's figures say:",
        markdown_table(["question", "yes", "no", "here"], lines),
    ]


def names_markdown() -> str:
    """The block on names: held-out emoji and stamps, a line a set and language."""
    if not (runtime.asset("results") / "names.csv").exists():
        return "Not run yet."
    of, told = read("names"), card("names")
    lines = []
    for (one, language), rows in of.groupby(["set", "language"], sort=False):
        by = rows.set_index("metric")
        choice = by.loc["choice"]
        cells = [one, f"{display_name(language)} ({language})", str(int(choice["n"]))]
        cells += [percent(choice[look]) for look in ("real", "shuffled", "blind", "nearest")]
        cells += ["-" if language == "en" else span(choice["rho"], choice["rho_low"], choice["rho_high"])]
        lines.append([*cells, percent(by.loc["exact", "real"]), percent(by.loc["chrf", "real"]), percent(by.loc["chrf", "nearest"])])  # fmt: skip
    header = ["set", "asked in", "n", "right of ten", "another's picture", "blind", "nearest picture's name", "rho", "exact", "chrF", "chrF, nearest"]  # fmt: skip
    return "\n\n".join(
        [
            f"A language model of ours read names of things in fourteen languages, as text; a connector then learned {told['pairs']:,} English names of training pictures. Percent; held-out pictures, whose concepts no training picture shows; {len(told['seeds'])} seeds, each a language model and a connector. *Right of ten*: the right name is the likeliest of ten in that language.",
            markdown_table(header, lines),
            f"Made by `python -m mpm_lite.report.readme` from [assets/results](assets/results), run at commit `{told['commit']}`: `{told['command']}`.",
        ]
    )


def bench_rows() -> pd.DataFrame:
    """Every committed benchmark row, all machines."""
    files = sorted(runtime.asset("bench").glob("*.csv"))
    return pd.concat([pd.read_csv(file, keep_default_na=False, na_values=["", "nan"]) for file in files])


def bench() -> str:
    """Time, memory and error of the ops beside the naive form and peers, one line a shape and provider."""
    rows = bench_rows()
    lines = []
    whole = rows[(rows["direction"] == "forward+backward") | (rows["op"] == "retrieval_ranks")]
    whole = whole[(whole["threads"] == 0) | (whole["n"] == whole["op"].map(BENCH_ROWS))]  # of a CPU one size an op
    for (hardware, op), of in whole.groupby(["hardware", "op"], sort=False):
        for (n, m, d, dtype), shape in of.groupby(["n", "m", "d", "dtype"], sort=False):
            naive = shape[shape["provider"] == "naive"]
            for row in shape.itertuples():
                times = naive["ms"].iloc[0] / row.ms if len(naive) else math.nan
                error = row.loss_error if op == "retrieval_ranks" else row.grad_error
                lines.append(
                    [
                        op,
                        f"{n:,} x {m:,} x {d} {dtype}",
                        row.provider,
                        f"{row.ms:,.0f} [{row.p20:,.0f}, {row.p80:,.0f}]",
                    ]
                    + [f"{times:.2f}", f"{row.peak_mb:,.0f}", f"{error:.0e}", hardware]
                )
    header = [
        "op",
        "shape",
        "provider",
        "ms [p20, p80]",
        "speed over naive",
        "MB beside inputs and gradients",
        "error",
        "on",
    ]
    return markdown_table(header, lines)


def bench_markdown() -> str:
    """The block on speed and memory."""
    rows = bench_rows()
    cards = rows[~rows["hardware"].str.contains("(", regex=False)]["hardware"].unique().tolist()
    first = rows.iloc[0]
    gpu = "On a GPU: not measured. No row is estimated."
    if cards:
        of = rows[rows["hardware"].isin(cards)]
        there, missing = list(dict.fromkeys(of["op"])), [op for op in BENCH_ROWS if op not in set(of["op"])]
        gpu = f"On {' and '.join(cards)}, torch {' and '.join(dict.fromkeys(of['torch']))}: medians of {of['rounds'].max()} runs of {', '.join(there)}."
        gpu += f" Not measured there: {', '.join(missing)}." if missing else ""
    return "\n\n".join(
        [
            f"Forward and gradients (ranks: forward), on a CPU in float32, medians of {first['rounds']} runs in turns, torch {first['torch']}, {first['threads']} threads. The error is the relative error of the worse gradient against float64 on the same inputs; for ranks the share of queries whose rank differs. {gpu}",
            bench(),
            f"![Time and memory of each op against its size, ours and the naive form, on logarithmic axes.](assets/{BENCH_FIGURE})",
            "Made by `python -m mpm_lite.report.readme` from [assets/bench](assets/bench); `mpm-lite bench --out assets/bench` measures your machine. All sizes, and the forward alone, are in the rows.",
        ]
    )


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


def paint_markdown() -> str:
    """The block on painting."""
    return rivals_markdown() + "\n\n" + emoji_markdown()


def numbers() -> dict[str, Any]:
    """The three numbers of the README: retention on real pictures, of the strongest language model, and of its control."""
    cell = read("retention-cells").query("test == 'stamps' and text == 'use-m' and cell == 'read'").iloc[0]
    scores = read("ladder").query("metric == 'answers'").set_index(["figure", "lm", "lm_seed"])
    scores = scores[["value", "low", "high"]].sort_index()
    strength = scores.loc["t", "value"]
    weakest = ("toy-noparallel", 0)
    return {
        "read_languages": int(cell["languages"]),
        "read": span(*cell[["rho", "low", "high"]]),
        "strongest": span(*scores.loc[("retention", *strength.idxmax())]),
        "control": span(*scores.loc[("retention", *weakest)]),
    }


BLOCKS = {
    "retention": markdown,
    "ladder": ladder_markdown,
    "claims": claims_markdown,
    "systems": systems.markdown,
    "names": names_markdown,
    "paint": paint_markdown,
    "speed": bench_markdown,
    "numbers": numbers,
    "ladder_alt": ladder_alt,
}
TEMPLATES = "templates"  # among the assets; a page is called as its template
HANDBOOK = "assets/handbook.md"
PAGES = {"README.md": "README.md", HANDBOOK: "handbook.md"} | {
    f"assets/results/{name}.md": f"{name}.md" for name in BLOCKS if name not in ("numbers", "ladder_alt")
}


def render(page: str) -> str:
    """The text of one of PAGES: its template with the blocks that it names, and links as seen from its folder. In templates and
    blocks, links are as seen from the top folder."""
    # StrictUndefined: a block that nobody makes is a mistake, and no empty place.
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    template = (runtime.asset(TEMPLATES) / PAGES[page]).read_text(encoding="utf-8")
    named = set(jinja2.meta.find_undeclared_variables(environment.parse(template)))
    text = environment.from_string(template).render({name: BLOCKS[name]() for name in named})
    folder = posixpath.dirname(page) or "."
    local = lambda found: f"]({posixpath.relpath(found[1], folder)})"  # noqa: E731
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", local, text)


def claim_figures() -> dict[str, Any]:
    """The figures that come from the ledger, those whose claims have run."""
    replies, drawn = ledger.replies_by_share(), {}
    if has("ladder"):
        drawn[LADDER_FIGURE] = ladder_figure()
    drawn |= {} if replies is None else {REPLY_FIGURE: figures.reply_language(replies, PANELS)}
    return drawn | ({systems.FIGURE: systems.figure()} if has(systems.NAME) else {})


def update(root: Path) -> None:
    """Write all pages below `root`, the top folder, and draw their figures."""
    for page in PAGES:
        write_atomic(root / page, render(page).encode())
    of = read("retention").query("test == 'stamps' and text != 'minilm-en' and language != 'en'")
    drawn = {
        FIGURE: figures.retention_against_alignment(of[of["counts"] & of["alignment"].notna()]),
        BENCH_FIGURE: figures.time_and_memory(bench_rows().query("hardware.str.contains('CPU|Processor', regex=True)")),
    } | claim_figures()
    for name, figure in drawn.items():
        path = runtime.asset() / name
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    update(Path())
