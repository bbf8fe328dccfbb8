"""The house style, and the few figures that recur. Each takes a table and returns the figure.

They are accessible: the colours are safe for colour-blind readers, and each comes with a marker or hatch of its own;
axes carry language codes, never native script, which many fonts lack. The alt text is in `figure.mpm_alt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mpm_lite.core import runtime

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]  # Okabe and Ito
MARKERS = ["o", "s", "^", "D", "v", "P"]
HATCHES = ["", "//", "..", "xx", "\\\\", "++"]


def house() -> Any:
    """matplotlib.pyplot in the house style."""
    import matplotlib.pyplot as plt

    plt.style.use(runtime.asset("figures/house.mplstyle"))
    return plt


def describe(figure: Any, text: str) -> Any:
    """Attach alt text to a figure and return it."""
    figure.mpm_alt = text
    return figure


def png(figure: Any, **how: Any) -> bytes:
    """A figure as PNG in at most 128 colours, less than half the size of all of them; `how` goes to matplotlib's savefig."""
    import io

    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None}, **how)
    image = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def _line(i: int) -> dict[str, Any]:
    """How the i-th line of a figure looks."""
    return {"color": COLOURS[i % 6], "marker": MARKERS[i % 6], "ls": ["-", "--", "-.", ":"][i % 4]}


def _intervals(axis: Any, x: Any, y: Any, low: Any, high: Any, colour: str, alpha: float) -> None:
    """Vertical bars from low to high through the points (x, y): numbers, or columns of them."""
    error = np.clip([y - low, high - y], 0, None).reshape(2, -1)
    axis.errorbar(x, y, yerr=error, fmt="none", ecolor=colour, alpha=alpha, lw=1)


def language_bars(table: pd.DataFrame, columns: str = "text", order: list[str] | None = None, title: str = "") -> Any:
    """Grouped bars of `value` by language with the line of chance; each value of `columns` has its own colour, and a line of
    its own where their chances differ.

    table: the rows of one metric (language, value, chance and `columns`). Bars are means over seeds, whiskers their spread.
    """
    plt = house()
    names = list(dict.fromkeys(table[columns]))
    of = table.groupby(["language", columns])["value"]
    mean, spread = (x.unstack(columns).reindex(columns=names) for x in (of.mean(), (of.max() - of.min()) / 2))
    order = order or mean.mean(axis=1).sort_values(ascending=False).index.tolist()
    figure, axis = plt.subplots(figsize=(max(6.5, 0.3 * len(order) * max(1, len(names) / 2)), 3.4))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        where = np.arange(len(order)) + (i - (len(names) - 1) / 2) * width
        look = {"color": COLOURS[i % 6], "hatch": HATCHES[i % 6], "edgecolor": "white", "error_kw": {"lw": 0.8}}
        axis.bar(where, mean[name].reindex(order), width, yerr=spread[name].reindex(order), label=name, **look)
    chance = table.groupby(["language", columns])["chance"].mean().unstack(columns).reindex(order)[names]
    alike = (chance.max(axis=1) - chance.min(axis=1)).max() < 0.02
    lines = {"chance": (chance.mean(axis=1), "black")} if alike else {}
    lines = lines or {f"chance, {name}": (chance[name], COLOURS[i % 6]) for i, name in enumerate(names)}
    for label, (level, colour) in lines.items():
        axis.step(np.arange(len(order)), level, where="mid", color=colour, lw=1.2, ls="--", label=label)
    axis.set_xticks(np.arange(len(order)), order, rotation=90 if len(order) > 16 else 0)
    axis.set(ylabel="score (share of queries)", xlabel="language of the query (BCP 47)", title=title, ylim=(0, None))
    axis.grid(axis="x", visible=False)
    # Below the axes: inside, it would hide bars.
    figure.legend(ncols=min(4, len(names) + len(lines)), loc="outside lower center", fontsize=8)
    ends = [(name, mean[name].reindex(order)) for name in names]
    told = "; ".join(f"{name} {of.min():.2f} ({of.idxmin()}) to {of.max():.2f} ({of.idxmax()})" for name, of in ends)
    return describe(figure, f"Bars of the score in {len(order)} languages: {told}. Dashed lines are chance.")


CELLS = {"read": "o", "relative read": "^", "no relative read": "s", "unreadable pieces": "X"}


PREMISES = {
    "alignment": ("alignment", "alignment: translation recall@1, text only"),
    "t": ("text transfer", "text transfer t: the caption finds its English translation"),
}


def retention_against(table: pd.DataFrame, premise: str = "alignment") -> Any:
    """A panel for each text tower, a point for each language: what text alone shows on x ("alignment", or text transfer "t"), rho
    with its interval on y, marker by cell. Of points that lie together, one is named.

    table: language, text, `premise`, rho, low, high, cell.
    """
    plt = house()
    name, label = PREMISES[premise]
    towers = list(dict.fromkeys(table["text"]))
    figure, axes = plt.subplots(1, len(towers), figsize=(4.9 * len(towers), 4.1), sharey=True, squeeze=False)
    for axis, tower in zip(axes[0], towers, strict=True):
        rows = table[table["text"] == tower]
        for i, (cell, marker) in enumerate(CELLS.items()):
            of = rows[rows["cell"] == cell]
            if of.empty:
                continue
            _intervals(axis, of[premise], of["rho"], of["low"], of["high"], COLOURS[i], 0.25)
            look = {"marker": marker, "s": 34, "color": COLOURS[i], "edgecolor": "white", "lw": 0.5, "zorder": 3}
            axis.scatter(of[premise], of["rho"], label=f"{cell} ({len(of)})", **look)
        named: list[tuple[float, float]] = []
        for language, x, y in rows[["language", premise, "rho"]].itertuples(index=False):
            if all(abs(x - a) > 0.045 or abs(y - b) > 0.04 for a, b in named):
                axis.annotate(language, (x, y), fontsize=7, xytext=(3, 2), textcoords="offset points")
                named.append((x, y))
        axis.axhline(0, color="black", ls="--", lw=1)
        if premise == "t":
            axis.plot([0, 1], [0, 1], color="black", lw=1, ls=":", label="retention = t (e = 1)")
        axis.set(title=tower, xlabel=label)
        axis.legend(loc="upper left", fontsize=8)
    axes[0, 0].set_ylabel("retention rho (R@10 over chance, English = 1)")
    told = [
        f"{tower} {rows[premise].rank().corr(rows['rho'].rank()):.2f} over {len(rows)} languages"
        for tower, rows in table.groupby("text", sort=False)
    ]
    alt = f"Scatter of retention against the text tower's own {name}; rank correlation: {', '.join(told)}."
    return describe(figure, alt)


def draw_ladder(table: pd.DataFrame, named: dict[str, str], towers: pd.DataFrame | None = None) -> Any:
    """Retention and pivot efficiency against text transfer: a panel for each metric, a point with its interval for each
    language model.

    table: lm, lm_seed, metric, figure ("retention", "t", "e"), value, low, high. `named`: what each metric is called.
    towers: text, t, rho, low, high of real towers, drawn into the panel of "choice", or into the last one.
    """
    plt = house()
    figure, axes = plt.subplots(1, len(named), figsize=(3.3 * len(named), 4.1), sharey=True, squeeze=False)
    top, right = 1.35, max(1.12, table[table["figure"] == "t"]["value"].max() + 0.04)
    for axis, (metric, name) in zip(axes[0], named.items(), strict=True):
        rows = table[table["metric"] == metric].set_index(["figure", "lm", "lm_seed"])[["value", "low", "high"]]
        there = {figure for figure, *_ in rows.index}
        axis.plot([0, 1], [0, 1], color="black", lw=1, ls=":", label="retention = t (e = 1)")
        axis.axhline(1, color="black", lw=0.7, alpha=0.5)
        for i, (what, label) in enumerate((("retention", "retention"), ("e", "pivot efficiency e"))):
            if what not in there or "t" not in there:
                continue
            of = rows.loc["t"].join(rows.loc[what], lsuffix="_t", how="inner")
            top = max(top, of["value"].max() + 0.05)
            _intervals(axis, of["value_t"], of["value"], of["low"], of["high"], COLOURS[i], 0.3)
            look = {"marker": "os"[i], "s": 30, "edgecolor": "white", "lw": 0.5, "zorder": 3}
            axis.scatter(of["value_t"], of["value"], color=COLOURS[i], label=label, **look)
        # Where the papers' statement lies: a strong language model, and hardly anything lost.
        axis.fill_between([0.9, 1.1], 0.9, 1.1, color="grey", alpha=0.2, lw=0, label="what the papers state")
        models = rows.loc["t"].index.nunique() if "t" in there else 0
        axis.set(title=f"{name} ({models} models)", xlabel="text transfer t")
        axis.set(xlim=(-0.05, right), ylim=(-0.05, top))
    if towers is not None:
        panel = list(named).index("choice") if "choice" in named else -1  # they, too, choose among candidates
        axis, label = axes[0, panel], "two real towers (t: their own alignment)"
        _intervals(axis, towers["t"], towers["rho"], towers["low"], towers["high"], "black", 0.4)
        axis.scatter(towers["t"], towers["rho"], marker="*", s=90, color="black", zorder=3, label=label)
        for row in towers.itertuples():
            axis.annotate(row.text, (row.t, row.rho), fontsize=8, xytext=(6, -9), textcoords="offset points")
    # Below the panels: inside, it would hide points.
    handles = {name: handle for axis in axes[0] for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=5, fontsize=8)
    axes[0, 0].set_ylabel("share of what English gains")
    means = table[table["figure"] == "e"].groupby("metric")["value"].mean()
    told = "Mean e: " + ", ".join(f"{named[m]} {v:.2f}" for m, v in means.items() if m in named)
    models = len(table[["lm", "lm_seed"]].drop_duplicates())
    return describe(figure, f"Retention and pivot efficiency against text transfer, {models} language models. {told}.")


def draw_curves(
    table: pd.DataFrame, x: str, y: str, lines: str, low: str | None = None, high: str | None = None, log: bool = True,
    **labels: str,
) -> Any:  # fmt: skip
    """Lines of y against x, one for each value of `lines`, with a band from low to high where those are given.

    Where x holds names instead of numbers, they stand in the order in which they come, and `log` has to be off.
    """
    plt, numbers = house(), pd.api.types.is_numeric_dtype(table[x])
    figure, axis = plt.subplots(figsize=(6.5, 3.8))
    for i, (name, rows) in enumerate(table.groupby(lines, sort=False)):
        rows = rows.sort_values(x) if numbers else rows
        axis.plot(rows[x], rows[y], label=str(name), **_line(i))
        if low and high:
            axis.fill_between(rows[x], rows[low], rows[high], color=COLOURS[i % 6], alpha=0.13, lw=0)
    if log:
        axis.set_xscale("log")
        ticks = sorted(table[x].unique())
        axis.set_xticks(ticks, [f"{t:,.0f}" for t in ticks], fontsize=8)
        axis.minorticks_off()
    axis.set(**({"xlabel": x, "ylabel": y} | labels))
    axis.legend()
    values, names = (table.sort_values(x) if numbers else table)[y], ", ".join(map(str, table[lines].unique()))
    told = f"from {values.iloc[0]:.2f} at the left to {values.iloc[-1]:.2f} at the right."
    return describe(figure, f"Lines of {labels.get('ylabel', y)} against {labels.get('xlabel', x)} for {names}; {told}")


def draw_reply_language(table: pd.DataFrame, panels: dict[str, str]) -> Any:
    """A panel for each metric, and in it a line for each kind of added data, against the share of it in tuning.

    table: share (0 to 1), added, metric, value, low, high; panels: metric -> what its axis says.
    """
    plt = house()
    figure, axes = plt.subplots(1, len(panels), figsize=(4.3 * len(panels), 3.6), sharex=True, squeeze=False)
    told = []
    for axis, (metric, said) in zip(axes[0], panels.items(), strict=True):
        for i, (added, of) in enumerate(table[table["metric"] == metric].groupby("added", sort=False)):
            of = of.sort_values("share")
            axis.plot(100 * of["share"], of["value"], label=added, **_line(i) | {"ls": ["-", "--"][i % 2]})
            axis.fill_between(100 * of["share"], of["low"], of["high"], color=COLOURS[i], alpha=0.15, lw=0)
        axis.set(xlabel="exchanges in other languages, % of tuning", ylabel=said, ylim=(0, 1.02))
    axes[0, 0].legend(fontsize=8)
    for (metric, added), of in table.groupby(["metric", "added"], sort=False):
        ends = of.sort_values("share")["value"]
        told.append(f"{metric}, {added}: {ends.iloc[0]:.2f} at none, {ends.iloc[-1]:.2f} at most")
    return describe(figure, f"Lines against the share of tuning data in other languages. {'; '.join(told)}.")


def draw_head_to_head(
    table: pd.DataFrame, panels: dict[str, str], score: str = "choices right, mean of nine languages"
) -> Any:
    """Panels side by side, each with a named point for every system: its score in other languages against its trainable
    parameters. Points that would cover each other are moved a little to the side. The larger the share of a system's pairs that
    are not English, the larger its point; a legend below says so, and that the dashed line is chance.

    table: table (a panel's name), system, trainable, pairs, abroad, value, low, high, chance; panels: name -> title.
    """
    plt, n = house(), len(panels)
    figure, axes = plt.subplots(1, n, figsize=(max(4.3 * n, 6.0), 4.4), sharex=True, sharey=True, squeeze=False)
    axes[0, 0].set_ylabel(score)
    names, told = list(dict.fromkeys(table["system"])), []
    for axis, (name, title) in zip(axes[0], panels.items(), strict=True):
        of = table[table["table"] == name].sort_values("value")
        aside, heights = _aside(of), of["value"].to_numpy(copy=True)
        for left in (True, False):  # labels of points that moved to the left stand on the left
            heights[(aside < 1) == left] = _apart(of["value"][(aside < 1) == left], 0.062)
        for row, by, height in zip(of.itertuples(), aside, heights, strict=True):
            x, beside = row.trainable * by, {"ha": "right"} if by < 1 else {"ha": "left"}
            i = names.index(row.system)
            _intervals(axis, x, row.value, row.low, row.high, COLOURS[i % 6], 0.6)
            axis.scatter(x, row.value, s=_size(row.abroad / row.pairs), marker=MARKERS[i % 6], zorder=3,
                         color=COLOURS[i % 6], edgecolor="black" if i < 6 else "white", lw=0.6)  # fmt: skip
            line = {"arrowstyle": "-", "color": "0.5", "lw": 0.6, "shrinkA": 0, "shrinkB": 4}
            beside |= {"xytext": (row.trainable * (0.78 if by < 1 else 1.28), height), "va": "center", "fontsize": 8}
            axis.annotate(row.system, (x, row.value), arrowprops=line, **beside)
        axis.axhline(of["chance"].mean(), color="black", ls="--", lw=1)
        axis.set(xscale="log", xlabel="trainable parameters", title=title, ylim=(0, 1.12))
        low, high = table["trainable"].min(), table["trainable"].max()
        axis.set_xlim(0.75 * low, 2.2 * high)
        ticks = [m * 10**k for k in range(9) for m in (1, 2, 5) if 0.75 * low <= m * 10**k <= 2.2 * high]
        axis.set_xticks(ticks, [f"{t / 1e6:g} M" for t in ticks], fontsize=8)
        axis.minorticks_off()
        told.append(f"{title}: " + ", ".join(f"{row.system} {row.value:.2f}" for row in of[::-1].itertuples()))
    handles = [plt.Line2D([], [], color="black", ls="--", lw=1, label="chance: the same without the picture")]
    if table["abroad"].any():
        said = {0.0: "all pairs English", 0.5: "half of the pairs not English", 0.9: "nine in ten pairs not English"}
        handles += [
            plt.Line2D([], [], color="0.6", marker="o", ls="", ms=_size(share) ** 0.5, label=text)
            for share, text in said.items()
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) if n > 1 else 2)
    moved = "Points that would cover each other are moved a little to the side."
    return describe(figure, f"Score in other languages against trainable parameters. {'; '.join(told)}. {moved}")


def _size(share: float) -> float:
    """The area of a point, in square points, by the share of a system's pairs that are not English."""
    return 30 + 110 * share


def _aside(of: pd.DataFrame, near: float = 0.06) -> np.ndarray:
    """Factors by which points, in ascending order, move to the left and right where they would cover the one below: those of a
    similar number of parameters (a tenth more or less) whose values differ by less than `near`."""
    across, values = np.log(of["trainable"].to_numpy(float)), of["value"].to_numpy()
    found, side = np.ones(len(of)), 0
    for k in range(1, len(of)):
        side = side + 1 if values[k] - values[k - 1] < near and abs(across[k] - across[k - 1]) < 0.1 else 0
        found[k] = (1.0, 1.1, 0.91)[side % 3]
    return found


def _apart(heights: pd.Series, gap: float) -> np.ndarray:
    """Heights in ascending order, moved apart so that labels do not cover each other: neighbours share what is missing."""
    found = heights.to_numpy(copy=True)
    for _ in range(100):
        found += np.diff(np.clip(gap - np.diff(found), 0, None) / -2, prepend=0, append=0)  # half up, half down
    return found


def draw_intervals(table: pd.DataFrame, xlabel: str, title: str = "") -> Any:
    """Each row of the table as a line, from the top: a value as a point, its interval as a bar, its figure beside it.

    table: name, value, low, high; where there is a column `group`, each group has a colour and a marker.
    """
    plt = house()
    figure, axis = plt.subplots(figsize=(7.0, 0.9 + 0.33 * len(table)))
    lines = table.assign(y=range(len(table)))
    groups = list(lines.groupby("group", sort=False)) if "group" in table else [("", lines)]
    for (group, of), colour, marker in zip(groups, COLOURS, MARKERS, strict=False):
        axis.hlines(of["y"], of["low"], of["high"], color=colour, lw=2.5, alpha=0.5)
        axis.plot(of["value"], of["y"], marker, color=colour, ms=6, label=group)
    for row in lines.itertuples():
        beside = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        axis.annotate(f"{row.value:.2f}", (row.high, row.y), **beside)
    axis.set_yticks(range(len(table)), list(table["name"]))
    axis.set(ylim=(len(table) - 0.5, -0.5), xlabel=xlabel, title=title)
    axis.margins(x=0.12)
    axis.grid(axis="y", visible=False)
    if len(groups) > 1:
        axis.legend(frameon=False, fontsize=9)
    spans = [f" [{row.low:.2f}, {row.high:.2f}]" if row.low < row.high else "" for row in table.itertuples()]
    said = ", ".join(f"{row.name} {row.value:.2f}{span}" for row, span in zip(table.itertuples(), spans, strict=True))
    return describe(figure, f"Points with their intervals, {xlabel}: {said}.")


def time_and_memory(rows: pd.DataFrame) -> Any:
    """Benchmark rows as panels, a column for each op: above milliseconds, below megabytes, against size, log-log.

    `rows` are those of assets/bench: op, n, m, direction, provider, ms, p20, p80, peak_mb. The size is n * m, the
    number of entries in the matrix that the naive form builds.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    plt, providers = house(), ("mpm_lite chunked", "naive")
    whole = rows[(rows["direction"] == "forward+backward") | (rows["op"] == "retrieval_ranks")]
    whole = whole.assign(size=whole["n"].astype(float) * whole["m"])
    ops = list(dict.fromkeys(whole["op"]))
    figure, axes = plt.subplots(2, len(ops), figsize=(2.6 * len(ops), 5), squeeze=False)
    for column, op in enumerate(ops):
        for i, provider in enumerate(providers):
            of = whole[(whole["op"] == op) & (whole["provider"] == provider)].sort_values("size")
            axes[0, column].plot(of["size"], of["ms"], label=provider, **_line(i))
            axes[0, column].fill_between(of["size"], of["p20"], of["p80"], color=COLOURS[i % 6], alpha=0.15, lw=0)
            axes[1, column].plot(of["size"], of["peak_mb"], label=provider, **_line(i))
        axes[0, column].set_title(op, fontsize=9)
        for axis in axes[:, column]:
            axis.set(xscale="log", yscale="log")
            for side in (axis.xaxis, axis.yaxis):
                side.set_major_locator(LogLocator(subs=(1, 3)))
                side.set_major_formatter(EngFormatter(sep=""))
                side.set_minor_formatter(NullFormatter())
            axis.tick_params(labelsize=7)
        axes[1, column].set_xlabel("matrix entries", fontsize=8)
    axes[0, 0].set_ylabel("ms")
    axes[1, 0].set_ylabel("MB beside inputs, gradients", fontsize=8)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(providers))
    said = f"Time and memory against size on logarithmic axes for {', '.join(ops)}: {', '.join(providers)}."
    return describe(figure, said)


def picture_row(pictures: Sequence[np.ndarray], captions: Sequence[str], columns: int = 3) -> Any:
    """Pictures uint8 (H, W, 3) in rows, each above its caption."""
    import textwrap

    plt = house()
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 3.0 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, caption in zip(axes.flat, pictures, captions, strict=False):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(textwrap.fill(caption, 30), fontsize=8, y=-0.05, va="top")
    return describe(figure, "Pictures with captions: " + " | ".join(captions))
