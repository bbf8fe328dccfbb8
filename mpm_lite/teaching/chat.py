"""What notebooks on MPM chat show: a scene composed by hand, the reply, where the queries looked, what the lens read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from mpm_lite import captioning, claims, figures, lens, report
from mpm_lite.chat import Bench
from mpm_lite.data import grammar, toyworld
from mpm_lite.data.languages import display_name
from mpm_lite.data.picture import data_uri
from mpm_lite.data.scenes import COLOURS, SHAPES, SIZES, Scene, Thing
from mpm_lite.recipes import fidelity
from mpm_lite.recipes.base import Recipe
from mpm_lite.recipes.mpm_chat import MpmChat
from mpm_lite.runtime import UserError
from mpm_lite.teaching import widgets

SIDE = 144  # pixels of the picture shown


def fidelity_table(recipe: Recipe) -> widgets.Page:
    """The fidelity table of a recipe as a page."""
    rows = [(r.part, r.paper, r.here, r.why, r.effect) for r in fidelity.table(recipe)]
    return widgets.table(rows, ["", "in the paper", "here", "why", "known effect"], f"Fidelity of {recipe.name!r}")


def replies_curve() -> widgets.Page:
    """Reply language and content against the share of other languages in tuning, from the ledger; a sentence till then."""
    table = claims.replies_by_share()
    if table is None:
        return widgets.Page("<p>C3 has not run yet; its curve will stand here.</p>", "C3 has not run yet.")
    return widgets.figure(figures.reply_language(table, report.PANELS))


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


def seen(bench: Bench, picture: np.ndarray) -> torch.Tensor:
    """Features of one picture uint8 (H, W, 3), as the recipe takes them: (1, P, D_in)."""
    return torch.from_numpy(bench.tower.patches(np.array(picture)[None]))


def look(bench: Bench, recipe: MpmChat, scene: Scene, language: str, reads: int = 4) -> widgets.Page:
    """One page: the picture, the reply in the asked language and what is right in it, where the queries looked, and what
    the lens reads at the `reads` queries that look most sharply. UserError for a language the model never read."""
    if recipe.lm.languages and language not in recipe.lm.languages:
        known = ", ".join(sorted(recipe.lm.languages))
        raise UserError(f"{recipe.lm.name} never read {language!r}: ask in one of {known}.")
    picture = toyworld.render(scene)
    features = seen(bench, picture)
    with torch.inference_mode():
        soft = recipe.predict({"seen": features})["soft"]
    said = bench.say(recipe, soft, [scene], language)[0]
    scores = captioning.caption_scores(said, scene, language)
    verdict = "exactly right" if scores["exact"] else f"{100 * scores['slots']:.0f} % of the attributes right"
    question = grammar.describe(language)
    header = (
        f'<div style="display:flex;gap:1em;align-items:flex-start;flex-wrap:wrap">'
        f"{_image(picture, grammar.in_order(scene, 'en')[0])}"
        f"<div><b>{display_name(language)}</b><br>{widgets.native(question, language)}<br>"
        f"{widgets.native(said, language)}<br><i>{verdict}</i></div></div>"
    )
    return widgets.Page(
        header + _queries(recipe, features, soft, picture, question, reads), f"{question} {said} ({verdict})"
    )


def ten_replies(bench: Bench, recipe: MpmChat, scene: Scene) -> widgets.Page:
    """One page: the picture, and what the model replies when it is asked about it in each language of the toy world."""
    picture = toyworld.render(scene)
    with torch.inference_mode():
        soft = recipe.predict({"seen": seen(bench, picture)})["soft"]
    rows, right = [], []
    for code in grammar.LANGUAGES:
        said = bench.say(recipe, soft, [scene], code)[0]
        right.append(captioning.caption_scores(said, scene, code)["slots"])
        rows.append([display_name(code), widgets.Text(said, code), f"{100 * right[-1]:.0f} %"])
    title = grammar.in_order(scene, "en")[0]
    page = widgets.table(rows, ["asked in", "reply", "right in that language"], f"{recipe.lm.name} is shown: {title}")
    words = f"{recipe.lm.name}, asked in ten languages about: {title} On average {100 * np.mean(right):.0f} % right."
    return widgets.Page(_image(picture, title) + page.data, words)


def dial(pages: Mapping[str, widgets.Page], start: str) -> Any:
    """A slider over named pages, with the chosen page below it; an ipywidgets box."""
    import ipywidgets

    slider = ipywidgets.SelectionSlider(options=list(pages), value=start, description="model")
    shown = ipywidgets.HTML(value=pages[start].data)

    def redraw(change: dict[str, Any]) -> None:
        shown.value = pages[change["new"]].data

    slider.observe(redraw, names="value")
    return ipywidgets.VBox([slider, shown])


def _queries(
    recipe: MpmChat, features: torch.Tensor, soft: torch.Tensor, picture: np.ndarray, question: str, reads: int
) -> str:
    """A table: where a query looked, and the likeliest token behind each layer."""
    if not hasattr(recipe.visual, "attention"):
        return ""
    where = recipe.visual.attention(features)[0].numpy()  # (Q, P)
    sharpest = np.argsort(-where.max(axis=1), kind="stable")[:reads]
    read = lens.words(recipe.lm, soft, question, top=1).set_index(["query", "layer"])["token"]
    layers = sorted({layer for _, layer in read.index})
    rows = []
    for q in sharpest.tolist():
        said = [read[q, layer].replace("\n", "(line break)") for layer in layers]
        tokens = "".join(f"<td>{widgets.safe(token)}</td>" for token in said)
        rows.append(
            f'<tr><th scope="row">{_image(_lit(picture, where[q]), f"where query {q} looks", 72)}</th>{tokens}</tr>'
        )
    names = ["where a query looks", "as it is", *(f"behind layer {layer}" for layer in layers[1:])]
    head = "".join(f'<th scope="col" style="text-align:left">{name}</th>' for name in names)
    caption = "Logit lens: the likeliest token at each query"
    return f'<table><caption style="text-align:left">{caption}</caption><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _lit(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The picture, dark where a query does not look; `where` (P,) over a square grid."""
    side = int(len(where) ** 0.5)
    grid = torch.from_numpy(where.reshape(1, 1, side, side) / where.max())
    light = torch.nn.functional.interpolate(grid, size=picture.shape[:2], mode="nearest")[0, 0].numpy()
    return (picture * (0.25 + 0.75 * light[..., None])).astype(np.uint8)


def _image(picture: np.ndarray, alt: str, side: int = SIDE) -> str:
    data = data_uri(picture, side, "png", sharp=True)
    return f'<img alt="{widgets.safe(alt)}" width="{side}" height="{side}" src="{data}">'


def composer(draw: Callable[[Scene, str], widgets.Page], languages: tuple[str, ...] = grammar.LANGUAGES) -> Any:
    """Menus for two things and a language, and below them what `draw(scene, language)` shows; an ipywidgets box."""
    import ipywidgets

    first, second = (
        [
            ipywidgets.Dropdown(options=names, value=value, layout={"width": "8em"})
            for names, value in zip((SIZES, COLOURS, SHAPES), chosen, strict=True)
        ]
        for chosen in (("large", "red", "star"), ("small", "blue", "heart"))
    )
    code = ipywidgets.Dropdown(options=[(display_name(c), c) for c in languages], value="de", layout={"width": "10em"})
    shown = ipywidgets.HTML()

    def redraw(change: Any = None) -> None:
        try:
            scene = compose(*(" ".join(menu.value for menu in row) for row in (first, second)))
            shown.value = draw(scene, code.value).data
        except UserError as error:
            shown.value = widgets.safe(str(error))

    for menu in (*first, *second, code):
        menu.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([ipywidgets.HBox(first), ipywidgets.HBox(second), code, shown])
