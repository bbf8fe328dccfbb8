"""README's figures and tables, made from the committed ledger: `python -m mpm_lite.report` rewrites them, a test compares."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from mpm_lite import claims, disputes, figures, ladder, pretrain, report_paint, report_systems, runtime
from mpm_lite.alignment import CELLS
from mpm_lite.data.languages import display_name
from mpm_lite.report_tables import card, has, markdown_table, percent, read, span
from mpm_lite.runtime import UserError

MARKS = ("<!-- ledger -->", "<!-- /ledger -->")
NAME_MARKS = ("<!-- names -->", "<!-- /names -->")
LADDER_MARKS = ("<!-- ladder -->", "<!-- /ladder -->")
CLAIM_MARKS = ("<!-- claims -->", "<!-- /claims -->")
BENCH_MARKS = ("<!-- bench -->", "<!-- /bench -->")
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
    """The whole block between README's marks."""
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
            f"Made by `python -m mpm_lite.report` from [assets/results](assets/results), run at commit `{told['commit']}` with seeds {told['seeds'][0]}-{told['seeds'][-1]}.",
        ]
    )


def reads(card: dict[str, Any]) -> str:
    """What a toy language model read, in a few words from its card."""
    if card["languages"] == ["en"]:
        text = "English only"
    else:
        text = f"{100 * card['parallel']:.0f} % translation pairs"
        text += ", three words in none of them" if card["parallel"] and card.get("withheld") != 0 else ""
        text += f", {100 * card['mixed']:.0f} % of discourse in two languages" if card.get("mixed") else ""
    return f"{text}; {card['parameters'] / 1e6:.1f} M parameters, {card['documents_read'] / 1e6:.1f} M documents"


def ladder_markdown() -> str:
    """The block between README's ladder marks: the figure, what the models say together, and a line a model."""
    if not has("ladder"):
        return "Not run yet."
    scores, models, told = read("ladder"), read("ladder-models"), card("ladder")
    cards = {(one["name"], one["seed"]): one for one in pretrain.cards()}
    words = scores[scores["metric"] == "slots"]
    rows = []
    for (name, seed), of in words.groupby(["lm", "lm_seed"]):
        of = of.set_index("figure")
        figures_of = [
            span(*of.loc[what, ["value", "low", "high"]]) if what in of.index else "-" for what in SHOWN_OF_LADDER
        ]
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
            f"![{figures.ladder(scores, ladder.METRICS, ladder.towers()).mpm_alt}](assets/{LADDER_FIGURE})",
            "Each point is a language model that read text only, with the same connector before it, which learned to see from English captions only. *Text transfer t*: an English caption stands as text in the picture's place; how much of what it tells the model in English it also tells it in the other languages? *Pivot efficiency e*: does a picture serve the other languages as well as that caption does? *Retention* is their product. The papers' premise is a language model with t near 1; their hypothesis is that e is near 1.",
            "Over all models (intervals from drawing models):",
            markdown_table(["score", "figure", "value", "models"], across),
            "Closed questions come out as the papers say: retention follows t, and e is about 1 in strong and weak language models alike. Captions do not: there, e depends on the language model too. "
            f"For the words of captions it is {by_text.loc[False, 'mean']:.2f} on average over the {by_text.loc[False, 'size']} language models that read translation pairs alone, and {by_text.loc[True, 'mean']:.2f} over the {by_text.loc[True, 'size']} that also read conversations in two languages. (t can be above 1: a blind reply names fewer right words in the other languages than in English, so there is more to gain.)",
            f"Words of captions, by language model, from weak to strong (mean of nine languages, {scores['n'].max()} test pictures; intervals from drawing pictures; '-' where the ratio would be one of noise):",
            markdown_table(["language model", "what it read", *SHOWN_OF_LADDER], by_strength),
            f"Made by `mpm-lite run ladder` at commit `{told['commit']}`.",
        ]
    )


def claims_markdown() -> str:
    """The block between README's claim marks: the ledger, a line a claim."""
    lines = []
    for row in claims.table().itertuples():
        one = claims.claim(row.claim)
        ran = row.seeds > 0
        effect = f"{span(row.effect, row.low, row.high)} ({one.effect})" if ran else f"- ({one.effect})"
        # Adding nothing makes minus nought nought.
        control = f"{round(row.control_effect, 2) + 0.0:.2f} ({one.control})" if ran else f"- ({one.control})"
        lines.append([row.claim, one.statement, one.theirs or "-", effect, control, str(row.seeds), row.verdict])
    names = [f"claims_{name}.py" for name in ("chat", "paint", "m3p", "mla", "mblip")]
    files = ", ".join(f"[`{name}`](mpm_lite/{name})" for name in names)
    shown, known = [], claims.read()
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
            f"Rules, arms and controls: {files}, committed before the runs. Under {claims.SEEDS} seeds a claim is pending. `mpm-lite claims run C1` runs one; this table is made by `python -m mpm_lite.report`.",
        ]
    )


def disputed(known: dict[str, dict[str, Any]]) -> list[str]:
    """Where others disagree, and the answer of the ledger; nothing where no claim has run that decides one."""
    ran = [one for one in disputes.DISPUTES if one.claim in known]
    if not ran:
        return []
    lines = []
    for one in ran:
        row = known[one.claim]
        here = f"**{disputes.answer(one, row)}**: {span(*disputes.interval(one, row))} ({one.said}; bar {one.bar:g}; {one.claim})"
        lines.append([one.question, one.yes, one.no, here])
    return [
        "Where others disagree, and what the ledger's figures say:",
        markdown_table(["question", "yes", "no", "here"], lines),
    ]


def names_markdown() -> str:
    """The block between README's marks on names: held-out emoji and stamps, a line a set and language."""
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
            f"Made by `python -m mpm_lite.report` from [assets/results](assets/results), run at commit `{told['commit']}`: `{told['command']}`.",
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
    """The block between README's bench marks."""
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
            "Made by `python -m mpm_lite.report` from [assets/bench](assets/bench); `mpm-lite bench --out assets/bench` measures your machine. All sizes, and the forward alone, are in the rows.",
        ]
    )


def blocks() -> list[tuple[tuple[str, str], str]]:
    """README's marks and what stands between them."""
    return [
        (MARKS, markdown()),
        (LADDER_MARKS, ladder_markdown()),
        (CLAIM_MARKS, claims_markdown()),
        (NAME_MARKS, names_markdown()),
        (report_paint.MARKS, report_paint.markdown()),
        (report_systems.MARKS, report_systems.markdown()),
        (BENCH_MARKS, bench_markdown()),
    ]


def claim_figures() -> dict[str, Any]:
    """The figures that come from the ledger, those whose claims have run."""
    replies, drawn = claims.replies_by_share(), {}
    if has("ladder"):
        drawn[LADDER_FIGURE] = figures.ladder(read("ladder"), ladder.METRICS, ladder.towers())
    drawn |= {} if replies is None else {REPLY_FIGURE: figures.reply_language(replies, PANELS)}
    return drawn | ({report_systems.FIGURE: report_systems.figure()} if has(report_systems.NAME) else {})


def update(readme: Path) -> None:
    """Rewrite the blocks in README.md and draw their figures."""
    text = readme.read_text(encoding="utf-8")
    for marks, block in blocks():
        if any(mark not in text for mark in marks):
            raise UserError(f"{readme} lacks the marks {marks[0]} and {marks[1]}.")
        before, rest = text.split(marks[0])
        text = f"{before}{marks[0]}\n{block}\n{marks[1]}{rest.split(marks[1])[1]}"
    readme.write_text(text, encoding="utf-8")
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
    update(Path("README.md"))
