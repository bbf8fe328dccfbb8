"""What notebooks show of the systems: scenes and replies to them, the logit lens, painted grids, and comparisons."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, StrictUndefined

from mpm_lite.claims import PENDING, ledger
from mpm_lite.core import figures, runtime
from mpm_lite.core.provenance import format_interval
from mpm_lite.core.runtime import UserError
from mpm_lite.data import toyworld
from mpm_lite.data.languages import display_name
from mpm_lite.data.picture import data_uri
from mpm_lite.data.toyworld import grammar
from mpm_lite.data.toyworld.scenes import COLOURS, SHAPES, SIZES, Scene, Thing
from mpm_lite.evaluation import chat, reply_scores
from mpm_lite.experiments.mpm_chat import ChatBench, PhotoReader
from mpm_lite.experiments.mpm_paint import GUIDANCE, PaintBench
from mpm_lite.recipes.base import Recipe, Stage
from mpm_lite.recipes.modules import diffusion
from mpm_lite.recipes.mpm_chat import MpmChat
from mpm_lite.recipes.mpm_paint import MpmPaint
from mpm_lite.report import readme, systems
from mpm_lite.teaching import widgets

SIDE = 144  # pixels of the picture shown


def fidelity_table(recipe: Recipe) -> widgets.Page:
    """The fidelity table of a recipe as a page."""
    rows = [(r.part, r.paper, r.here, r.why, r.effect) for r in build_fidelity_table(recipe)]
    return widgets.show_table(rows, ["", "in the paper", "here", "why", "known effect"], f"Fidelity of {recipe.name!r}")


# Fidelity tables: what a paper did, what its recipe does here, why they differ, and what the difference is known to do. The
# texts lie in assets/fidelity.toml, a table for each system. They are templates: what was done here is read off the recipe,
# never typed. Figures of the papers carry their tag: [R] read in the authors' release, [S] from a secondary source.


@dataclass(frozen=True)
class FidelityRow:
    """One line of a table: a component, a loss, a stage, a set of data or a metric."""

    part: str
    paper: str
    here: str
    why: str
    effect: str = "not known"


def build_fidelity_table(recipe: Recipe) -> list[FidelityRow]:
    """The fidelity table of a recipe. Raises UserError for a recipe that reproduces no paper."""
    phrases, tables = _texts()
    if recipe.name not in tables:
        raise UserError(f"Recipe {recipe.name!r} has no fidelity table: it follows no one paper.")
    environment = Environment(undefined=StrictUndefined)
    environment.globals = {
        **phrases, "recipe": recipe, "options": recipe.options, "rival": score_of_rival,
        "stages": {stage.name: describe_stage(stage) for stage in recipe.stages()},
        "millions": lambda part: count_parameters(recipe, part),
    }  # fmt: skip
    return [
        FidelityRow(**{column: environment.from_string(text).render() for column, text in row.items()})
        for row in tables[recipe.name]
    ]


@cache
def _texts() -> tuple[dict[str, str], dict[str, list[dict[str, str]]]]:
    """The phrases that several rows use, and for each system its rows, as templates."""
    tables = tomllib.loads(runtime.asset("fidelity.toml").read_text(encoding="utf-8"))
    return tables.pop("phrases"), tables


def count_parameters(recipe: Recipe, part: str) -> str:
    """How many parameters of a recipe have names that begin with `part`, in millions."""
    return f"{sum(p.numel() for n, p in recipe.named_parameters() if n.startswith(part)) / 1e6:.2f} M parameters"


def describe_stage(stage: Stage) -> str:
    """A stage in a few words."""
    size = stage.batch if stage.batch > 1 else "one batch"
    return f"{stage.steps:,} steps of {size}, lr {stage.lr:g}; frozen: {', '.join(stage.frozen) or 'nothing'}"


def score_of_rival(arm: str) -> str:
    """What another way to paint scores, beside MPM's own, by the committed table of painters."""
    rows = pd.read_csv(runtime.asset("results/paint.csv")).query("metric == 'attributes'")
    english = rows["language"] == "en"
    said = []
    for name in (arm, "MPM"):
        scores = rows[rows["arm"] == name]["value"]
        said.append(f"{scores[english].mean():.2f} in English and {scores[~english].mean():.2f} in others")
    return f"{arm}: attributes {said[0]}; as here {said[1]}"


def show_verdicts(*names: str) -> widgets.Page:
    """The claims of these names, or all: what each says, in the paper and here, the verdict with its reason, and what could
    change it."""
    span = lambda row: format_interval(row["effect"], row["low"], row["high"])  # noqa: E731
    rows = []
    for name in names or ledger.CLAIMS:
        one, row, before = ledger.find_claim(name), ledger.read_ledger().get(name), ledger.read_first().get(name)
        paper = "; ".join(filter(None, (one.theirs or "no figure that was verified", one.size)))
        here, verdict = one.here, PENDING
        if row is not None:
            here = f"{span(row)} {one.effect}; {one.here}"
            verdict = f"{row['verdict']}: {row['reason']}"
        if before is not None:
            verdict += f"{'' if row else '.'} First ledger: {before['verdict']}, {span(before)}."
        rows.append([name, one.statement, paper, here, verdict, one.change])
    header = ["claim", "what it says", "in the paper", "here", "verdict and reason", "what could change it"]
    return widgets.show_table(rows, header, "Claims and their verdicts")


def replies_curve() -> widgets.Page:
    """Reply language and content against the share of other languages in tuning; a sentence where C3 has not run yet."""
    table = ledger.replies_by_share()
    if table is None:
        return widgets.Page("<p>C3 has not run yet; its curve will stand here.</p>", "C3 has not run yet.")
    return widgets.show_figure(figures.draw_reply_language(table, readme.PANELS))


def compose(*things: str) -> Scene:
    """A scene from words, left to right: compose("large red circle", "small blue star"). One to three things.

    UserError for other words, and for two things that are alike.
    """
    if not 1 <= len(things) <= 3:
        raise UserError(f"A scene holds one to three things, not {len(things)}.")
    columns = {1: (1,), 2: (0, 2), 3: (0, 1, 2)}[len(things)]
    made = []
    for text, column in zip(things, columns, strict=True):
        words = text.split()
        if len(words) != 3 or words[0] not in SIZES or words[1] not in COLOURS or words[2] not in SHAPES:
            raise UserError(
                f"{text!r} is no thing of this world: give a size ({', '.join(SIZES)}), a colour ({', '.join(COLOURS)}) "
                f"and a shape ({', '.join(SHAPES)}), such as 'large red circle'."
            )
        made.append(Thing(words[2], words[1], words[0], column, 1))
    if len({thing.pair for thing in made}) < len(made):
        raise UserError("Two things are alike in colour and shape: change one, so that each has a name of its own.")
    return Scene(tuple(made))


def seen(bench: ChatBench, picture: np.ndarray) -> torch.Tensor:
    """Features of one picture uint8 (H, W, 3), as the recipe takes them: (1, P, D_in)."""
    return torch.from_numpy(bench.tower.patches(np.array(picture)[None]))


def show_reply(bench: ChatBench, recipe: MpmChat, scene: Scene, language: str, reads: int = 4) -> widgets.Page:
    """One page: the picture, the reply in the language asked and how much of it is right, where the queries looked, and what
    the logit lens reads at the `reads` most focused queries. UserError for a language that the model never read."""
    if recipe.lm.languages and language not in recipe.lm.languages:
        known = ", ".join(sorted(recipe.lm.languages))
        raise UserError(f"{recipe.lm.name} never read {language!r}: ask in one of {known}.")
    picture = toyworld.render(scene)
    features = seen(bench, picture)
    with torch.inference_mode():
        soft = recipe.predict({"seen": features})["soft"]
    said = bench.say(recipe, soft, [scene], language)[0]
    scores = reply_scores.score_caption(said, scene, language)
    verdict = "exactly right" if scores["exact"] else f"{100 * scores['slots']:.0f} % of the attributes right"
    question = grammar.describe(language)
    header = (
        f'<div style="display:flex;gap:1em;align-items:flex-start;flex-wrap:wrap">'
        f"{_image(picture, grammar.in_order(scene, 'en')[0])}"
        f"<div><b>{display_name(language)}</b><br>{widgets.native(question, language)}<br>"
        f"{widgets.native(said, language)}<br><i>{verdict}</i></div></div>"
    )
    below = _queries(recipe, features, soft, picture, question, reads)
    return widgets.Page(header + below, f"{question} {said} ({verdict})")


def show_ten_replies(bench: ChatBench, recipe: MpmChat, scene: Scene) -> widgets.Page:
    """One page: the picture, and what the model replies when it is asked about it in each language of the toy world."""
    picture = toyworld.render(scene)
    with torch.inference_mode():
        soft = recipe.predict({"seen": seen(bench, picture)})["soft"]
    rows, named, exact = [], [], []
    for code in grammar.LANGUAGES:
        said = bench.say(recipe, soft, [scene], code)[0]
        scores = reply_scores.score_caption(said, scene, code)
        named.append(scores["slots"])
        exact.append(bool(scores["exact"]))
        told = "yes" if exact[-1] else "no"
        rows.append([display_name(code), widgets.Text(said, code), f"{100 * named[-1]:.0f} %", told])
    title = grammar.in_order(scene, "en")[0]
    header = ["asked in", "reply", "attributes named in that language", "exactly right"]
    page = widgets.show_table(rows, header, f"{recipe.lm.name} is shown: {title}")
    words = (
        f"{recipe.lm.name}, asked in ten languages about: {title} On average {100 * np.mean(named):.0f} % of the attributes "
        f"are named; {sum(exact)} of 10 replies are exactly right."
    )
    return widgets.Page(_image(picture, title) + page.data, words)


def show_photographs(reader: PhotoReader, languages: Sequence[str], count: int = 3) -> widgets.Page:
    """One page: held-out photographs, and below each the replies in some languages to the photograph, to the mean photograph
    (blind), and to the English caption as text in its place. UserError for a language without a question."""
    looks = {"the photograph": "real", "the mean photograph": "blind", "its English caption": "text"}
    said = {(code, look): reader.reply(code, look) for code in languages for look in looks.values()}
    count, shown = min(count, len(reader.photographs)), []
    for i in range(count):
        caption = reader.photographs.captions["en"][i]
        rows = [
            [display_name(code), *(widgets.Text(said[code, look][i], code) for look in looks.values())]
            for code in languages
        ]
        table = widgets.show_table(rows, ["asked in", *(f"reply to {what}" for what in looks)], caption)
        shown.append(_image(reader.photographs.images[i], caption) + table.data)
    names = ", ".join(display_name(code) for code in languages)
    return widgets.Page("".join(shown), f"Replies of {reader.recipe.lm.name} about {count} photographs, in {names}")


def build_dial(pages: Mapping[str, widgets.Page], start: str) -> Any:
    """A slider over named pages, with the chosen page below it; an ipywidgets box."""
    import ipywidgets

    slider = ipywidgets.SelectionSlider(options=list(pages), value=start, description="model")
    return widgets.build_live(slider, pages.__getitem__)


def _queries(
    recipe: MpmChat, features: torch.Tensor, soft: torch.Tensor, picture: np.ndarray, question: str, reads: int
) -> str:
    """A table with a row for each query: where it looks, and the likeliest token after each layer."""
    if not hasattr(recipe.visual, "attention"):
        return ""
    where = recipe.visual.attention(features)[0].numpy()  # (Q, P)
    sharpest = np.argsort(-where.max(axis=1), kind="stable")[:reads]
    read = chat.read_words(recipe.lm, soft, question, top=1).set_index(["query", "layer"])["token"]
    layers = sorted({layer for _, layer in read.index})
    rows = []
    for q in sharpest.tolist():
        said = [read[q, layer].replace("\n", "(line break)") for layer in layers]
        tokens = "".join(f"<td>{widgets.safe(token)}</td>" for token in said)
        looks = _image(_lit(picture, where[q]), f"where query {q} looks", 72)
        rows.append(f'<tr><th scope="row">{looks}</th>{tokens}</tr>')
    names = ["where a query looks", "as it is", *(f"after layer {layer}" for layer in layers[1:])]
    return widgets.table_html("Logit lens: the likeliest token at each query", widgets.column_heads(names), rows)


def _lit(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The picture, darkened where a query does not look; `where` (P,) holds its attention over a square grid."""
    side = int(len(where) ** 0.5)
    grid = torch.from_numpy(where.reshape(1, 1, side, side) / where.max())
    light = torch.nn.functional.interpolate(grid, size=picture.shape[:2], mode="nearest")[0, 0].numpy()
    return (picture * (0.25 + 0.75 * light[..., None])).astype(np.uint8)


def _image(picture: np.ndarray, alt: str, side: int = SIDE) -> str:
    data = data_uri(picture, side, "png", sharp=True)
    return f'<img alt="{widgets.safe(alt)}" width="{side}" height="{side}" src="{data}">'


def build_composer(draw: Callable[[Scene, str], widgets.Page], languages: tuple[str, ...] = grammar.LANGUAGES) -> Any:
    """Menus for two things and a language, and below them what `draw(scene, language)` shows; an ipywidgets box."""
    import ipywidgets

    def menus(*chosen: str) -> list[Any]:
        options = zip((SIZES, COLOURS, SHAPES), chosen, strict=True)
        return [ipywidgets.Dropdown(options=names, value=one, layout={"width": "8em"}) for names, one in options]

    first, second = menus("large", "red", "star"), menus("small", "blue", "heart")
    code = ipywidgets.Dropdown(options=[(display_name(c), c) for c in languages], value="de", layout={"width": "10em"})
    shown = ipywidgets.HTML()

    def redraw(change: Any = None) -> None:
        try:
            scene = compose(*(" ".join(menu.value for menu in thing) for thing in (first, second)))
            shown.value = draw(scene, code.value).data
        except UserError as error:
            shown.value = widgets.safe(str(error))

    for menu in (*first, *second, code):
        menu.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([ipywidgets.HBox(first), ipywidgets.HBox(second), code, shown])


# All systems side by side.

CAPTIONS = {
    "iglue": "Toy-IGLUE at equal pairs (others: mean of nine languages; blind: their chance)",
    "advice": "What to choose when: figures of nine languages at equal pairs",
    "real": "Real pictures, equal pairs",
}


def show_comparison() -> widgets.Page:
    """The comparison at equal budgets as a figure, a panel for each table; a sentence where it has not run yet."""
    if not systems.has_table(systems.NAME):
        return _not_yet(systems.NAME, "figure")
    return widgets.show_figure(systems.draw_figure())


def show_table(name: str) -> widgets.Page:
    """A table of the comparison, named by what is held equal (pairs, updates or parameters), or "iglue", "advice" or "real"; a
    sentence where it has not run yet."""
    of = systems.REAL if name == "real" else systems.NAME
    if not systems.has_table(of) or (name in systems.TITLES and name not in systems.read_titles()):
        return _not_yet(of, "table")
    made = {"iglue": systems.iglue, "advice": systems.advice, "real": systems.real}
    header, lines = made[name]() if name in made else systems.build_table(name)
    return widgets.show_table(lines, header, CAPTIONS.get(name) or f"Choices right: {systems.TITLES[name]}")


def _not_yet(name: str, what: str) -> widgets.Page:
    """The sentence that stands where a comparison has not run yet."""
    said = f"The comparison, mpm-lite run {name.replace('-', '_')}, has not run yet; its {what} will stand here."
    return widgets.Page(f"<p>{said}</p>", said)


# MPM paint.

PAINTED_SIDE = 84  # pixels of a picture shown


def picture(pixels: np.ndarray, alt: str, side: int = PAINTED_SIDE) -> str:
    """A picture uint8 (H, H, 3) as HTML, its pixels left sharp."""
    data = data_uri(pixels, len(pixels), "png", sharp=True)  # as it is: the page enlarges it
    # A narrow page scrolls, and does not squeeze some pictures more than others.
    kept = f"min-width:{3 * side // 4}px;image-rendering:pixelated"
    return f'<img alt="{widgets.safe(alt)}" width="{side}" height="{side}" style="{kept}" src="{data}">'


def paint_grid(
    bench: PaintBench, recipe: MpmPaint, scenes: Sequence[Scene], languages: Sequence[str], seed: int = 0,
    guidance: float = GUIDANCE,
) -> widgets.Page:  # fmt: skip
    """A row for each scene and a column for each language: the picture painted from the scene's prompt in that language, from
    the same noise along a row. Below each picture: the share of attributes that the judging network finds right."""
    columns, noise = [], [seed * 100_003 + i for i in range(len(scenes))]
    for code in languages:
        prompts = [grammar.in_order(scene, code)[0] for scene in scenes]
        found = bench.paint(recipe, prompts, noise, guidance=guidance)
        columns.append((prompts, found, bench.scored(found, scenes)["attributes"].tolist()))
    body = []
    for i, scene in enumerate(scenes):
        english = grammar.in_order(scene, "en")[0]
        cells = "".join(
            f'<td style="text-align:center" title="{widgets.safe(said[i])}">'
            f"{picture(found[i], f'painted after: {said[i]}')}<br><small>{100 * right[i]:.0f} %</small></td>"
            for said, found, right in columns
        )
        name = f'<th scope="row" style="text-align:left;max-width:9em">{widgets.safe(english)}</th>'
        body.append(f"<tr>{name}{cells}</tr>")
    means = zip(languages, (np.mean(right) for _, _, right in columns), strict=True)
    caption = f"Attributes right: {', '.join(f'{code} {100 * mean:.0f} %' for code, mean in means)}"
    head = "<td></td>" + widgets.column_heads(map(display_name, languages), 'style="text-align:center"')
    return widgets.Page(widgets.table_html(caption, head, body), caption)


def show_row(pictures: Sequence[np.ndarray], names: Sequence[str], caption: str) -> widgets.Page:
    """Pictures side by side, each above its name."""
    cells = "".join(
        f'<td style="text-align:center">{picture(one, name)}<br><small>{widgets.safe(name)}</small></td>'
        for one, name in zip(pictures, names, strict=True)
    )
    # A caption of the table would be as narrow as its pictures.
    page = f"<div>{widgets.safe(caption)}</div><table><tr>{cells}</tr></table>"
    return widgets.Page(page, f"{caption}: {', '.join(names)}")


def between(
    bench: PaintBench, recipe: MpmPaint, first: str, second: str, shares: Sequence[float], seed: int = 0
) -> list[np.ndarray]:  # fmt: skip
    """Pictures uint8 (H, H, 3) on the way from one prompt to another, all from the same noise: the prompts' token states are
    mixed position by position, with weights 1 - share and share. UserError for a share outside 0 to 1."""
    if not all(0 <= share <= 1 for share in shares):
        raise UserError("A share lies between 0 (the first prompt) and 1 (the second).")
    states, there = recipe.encoder.states([first, second]).batch([0, 1])  # (2, T, W), (2, T)
    weight = torch.tensor([[1 - share, share] for share in shares])  # (K, 2)
    mixed = torch.einsum("ks,stw->ktw", weight, states)
    mask = torch.einsum("ks,st->kt", weight, there.float()) > 0
    x = diffusion.sample_latents(*recipe.parts, mixed, mask, [seed] * len(shares), GUIDANCE, bench.steps)
    return list(diffusion.to_pictures(bench.vae, x))


def build_slider(draw: Callable[[float], widgets.Page], start: float = GUIDANCE) -> Any:
    """A slider of guidance, and below it what `draw(guidance)` shows; an ipywidgets box."""
    import ipywidgets

    lowest, highest = diffusion.GUIDANCE
    how = {"min": lowest, "max": highest, "step": 0.5, "description": "guidance", "continuous_update": False}
    return widgets.build_live(ipywidgets.FloatSlider(start, **how), draw)
