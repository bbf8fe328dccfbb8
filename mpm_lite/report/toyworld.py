"""The toy world on one page, assets/toyworld.md, and one of its scenes on the command line, `mpm-lite world`.

The page is made from the grammars and from committed measures, never typed. The command shows a picture, its captions in ten
languages, and what each language model answers about them.

    mpm-lite world            a scene of test, its captions, and each model's answers
    mpm-lite world --seed 3   another

    python -m mpm_lite.report.toyworld            rewrites the page and its figure
    python -m mpm_lite.report.toyworld noise      measures the noise dials again first (a minute)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mpm_lite.core import figures, runtime
from mpm_lite.core.provenance import markdown_table
from mpm_lite.core.runtime import UserError
from mpm_lite.core.store import write_atomic
from mpm_lite.data import toyworld
from mpm_lite.data.languages import display_name
from mpm_lite.data.toyworld import grammar, noise, text_mix
from mpm_lite.data.toyworld.scenes import Scene, scenes, text_scenes
from mpm_lite.evaluation import text_only
from mpm_lite.experiments.pretrain import language_models
from mpm_lite.report import fill
from mpm_lite.towers import catalogue
from mpm_lite.towers.catalogue import TOY_LMS
from mpm_lite.towers.load import load_lm

_LETTERS = {"circle": "o", "square": "#", "triangle": "^", "star": "*", "heart": "v", "flower": "@", "book": "="}


def find_pair(number: int) -> Scene:
    """The test scene of two things with that number."""
    return next(islice((scene for scene in scenes("test") if scene.kind == "pair"), number, None))


def draw_sketch(scene: Scene) -> str:
    """The three by three grid in letters: shape signs, twice for large things, with the first letters of the colour."""
    cells = {(t.row, t.column): _LETTERS[t.shape] * (1 + (t.size == "large")) + t.colour[:3] for t in scene.things}
    return "\n".join(" ".join(f"{cells.get((row, column), '.'):^6}" for column in range(3)) for row in range(3))


def describe_scene(
    seed: int = 0, models: Sequence[str] = (*TOY_LMS, "toy-mixed"), languages: Sequence[str] = grammar.LANGUAGES
) -> Iterator[str]:
    """What `mpm-lite world` prints, line by line: the scene, its captions, and what each model answers about them.

    A model reads the caption in a language and is asked, in the same language, what the picture shows; then it reads the
    English caption and is asked in the other language. (right) marks an answer that states exactly what was read. For a
    model that is not among the assets, a line says how to make it.
    """
    scene = find_pair(seed)
    yield f"Scene {scene.id}, of test\n{draw_sketch(scene)}\n"
    rng = np.random.default_rng(seed)
    pairs = {code: text_mix.translations(scene, text_mix.PIVOT, code, rng) for code in languages}
    for code in languages:
        yield f"{code}  {pairs[code][2]}"
    for name in models:
        try:
            lm = load_lm(name)
        except UserError as missing:
            yield f"\n{missing}"
            continue
        yield f"\n{name}, read {', '.join(code for code in languages if code in lm.languages)}"
        own = [f"{pairs[code][2]}\n{grammar.describe(code)}\n" for code in languages]
        english = [f"{pairs[code][1]}\n{grammar.describe(code)}\n" for code in languages]
        said = lm.generate([*own, *english], stop="\n")
        for i, code in enumerate(languages):
            for what, reply in {code: said[i], text_mix.PIVOT: said[len(languages) + i]}.items():
                right = grammar.parse(reply, code) == pairs[code][0]
                yield f"  {what} > {code}  {reply}{'  (right)' if right else ''}"


# The page.

PAGE = "toyworld.md"
NOISE = "results/noise.csv"
FIGURE = "figures/toyworld.png"
ALIGNMENT = "figures/toyworld-alignment.png"


def glossed() -> str:
    """The first glossed example of each language, piece by piece."""
    blocks = []
    for code in grammar.LANGUAGES:
        said, columns, english = grammar.glosses(code)[0]
        table = markdown_table([piece for piece, _ in columns], [[gloss for _, gloss in columns]])
        blocks.append(f"**{display_name(code)}** ({code}): {said}\n\n{table}\n\n'{english}'")
    return "\n\n".join(blocks)


def measure_noise(count: int = 300) -> pd.DataFrame:
    """chrF of every noise dial at every strength in every language, on scenes that may occur in text."""
    return noise.levels(list(islice(text_scenes(11), count)), grammar.LANGUAGES)


def list_noise() -> str:
    """chrF against gold, a line for each dial and strength."""
    rows = pd.read_csv(runtime.asset(NOISE))
    wide = rows.pivot_table(index=["dial", "strength"], columns="language", values="chrf")[list(grammar.LANGUAGES)]
    body = [[dial, f"{s:.2f}", *(f"{v:.1f}" for v in wide.loc[dial, s])] for dial, s in wide.index if s > 0]
    return markdown_table(["dial", "chance", *grammar.LANGUAGES], body)


def read_model_rows() -> pd.DataFrame:
    """Every measure of every model on test, with the share of parallel text and whether the model read the language."""
    tables = []
    for card in language_models.cards():
        table = pd.read_csv(runtime.asset(f"results/lm/{card['name']}-{card['seed']}.csv"))
        read = table["language"].isin(card["languages"]) & table["to"].isin(card["languages"])
        known = {"model": card["name"], "seed": card["seed"], "parallel": card["parallel"], "read": read}
        tables.append(table[table["split"] == "test"].assign(**known))
    return pd.concat(tables, ignore_index=True)


def list_models() -> list[list[str]]:
    """The cells of each model, those too that do not ship and are made by `mpm-lite pretrain`: the gates on val, for its
    lowest language, and on test the means over the languages that it read."""
    rows, body = read_model_rows(), []
    for card in language_models.cards():
        own = rows[(rows["model"] == card["name"]) & (rows["seed"] == card["seed"]) & rows["read"]]
        by = dict(list(own.groupby("metric")))
        cells = [f"`{card['name']}`", str(card["seed"])]
        cells += [f"{100 * card['parallel']:g}", f"{100 * card.get('mixed', 0):g}"]
        cells += [str(len(card["withheld_from_pairs"]) or "-"), f"{card['documents_read'] / 1e6:.2f}"]
        cells += [f"{100 * card['lowest_on_val'][k]:.0f} / {100 * bar:.0f}" for k, bar in text_only.GATE.items()]
        cells += ["yes" if card["passes"] else "**no**"]
        across = card.get("text_transfer_on_val")
        cells += [f"{min(across.values()):.2f} / {text_only.STRONG:.2f}" if across else "-"]
        cells += [{True: "yes", False: "no", None: "-"}[card.get("strong")]]
        cells += [_format_mean(by["fluency"]), _format_mean(by["agreement"]), _format_mean(by["perplexity"], 1, 2)]
        for metric in ("translation", "translation slots", "paired words", "withheld words"):
            of = by.get(metric, own[:0])
            from_english = of["language"] == text_mix.PIVOT
            cells += [f"{_format_mean(of[from_english])} / {_format_mean(of[~from_english])}"]
        layers = by["alignment"].groupby("layer")["value"].mean() if "alignment" in by else ()
        cells += [" ".join(f"{100 * v:.0f}" for v in layers) or "-", format_minutes(card)]
        body.append([*cells, "yes" if card["seed"] in catalogue.shipped(card["name"]) else "no"])
    return body


def average_alignment() -> pd.DataFrame:
    """Alignment, on test, of the models that read all languages: a row for each line (share of pairs) and layer, with the
    mean, lowest and highest value over languages. Seeds are averaged."""
    rows = read_model_rows()
    all_read = rows.groupby(["model", "seed"])["read"].transform("all")
    own = rows[all_read & (rows["metric"] == "alignment") & ~rows["model"].isin(catalogue.MIXED_LMS)]
    each = own.groupby(["parallel", "layer", "to"])["value"].mean().groupby(["parallel", "layer"])
    found = each.agg(value="mean", low="min", high="max").reset_index()
    return found.assign(line=[f"{100 * share:g} % translation pairs" for share in found["parallel"]])


def draw_alignment(table: pd.DataFrame) -> Any:
    """Alignment against the layer, one line for each share of translation pairs."""
    labels = {"xlabel": "layer (0: embeddings)", "ylabel": "recall@1 between English and the others"}
    figure = figures.draw_curves(table, "layer", "value", "line", "low", "high", log=False, **labels)
    figure.axes[0].set_xticks(sorted(table["layer"].unique()))
    return figure


def _format_mean(rows: Any, scale: float = 100, digits: int = 0) -> str:
    return f"{scale * rows['value'].mean():.{digits}f}" if len(rows) else "-"


def format_minutes(card: dict[str, Any]) -> str:
    """How long the rebuild took; "-" where it was stopped and part of it was not measured."""
    return "-" if card["seconds"] is None else f"{card['seconds'] / 60:.0f}"


def read_tower_cards() -> list[dict[str, Any]]:
    """The card of each tower of the toy world, with what was measured on val."""
    return [json.loads(path.read_text()) for path in sorted(runtime.asset("towers").glob("*/card.json"))]


def build_page() -> str:
    """The whole page."""
    made = (glossed, list_noise, read_tower_cards, list_models, format_minutes)
    names = {"figure": FIGURE, "alignment": ALIGNMENT, "scene": find_pair(3), "grammar": grammar, "toyworld": toyworld}
    return fill("toyworld.md", **names, **{one.__name__: one for one in made})


def update(again: Sequence[str] = ()) -> None:
    """Rewrite the page and its figure; `again` may name "noise", which is then measured first."""
    root = runtime.asset()
    if "noise" in again:
        write_atomic(root / NOISE, measure_noise().to_csv(index=False).encode())
    shown = list(islice(scenes("test", 2), 6))
    figure = figures.picture_row([toyworld.render(s) for s in shown], [toyworld.caption(s, "en") for s in shown])
    write_atomic(root / FIGURE, figures.png(figure))
    write_atomic(root / ALIGNMENT, figures.png(draw_alignment(average_alignment())))
    write_atomic(root / PAGE, build_page().encode())


if __name__ == "__main__":
    try:
        update(sys.argv[1:])
    except runtime.UserError as error:
        sys.exit(str(error))
    print(Path("assets") / PAGE)
