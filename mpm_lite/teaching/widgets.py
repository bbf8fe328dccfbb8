"""What notebooks show: figures with alt text, tables in native script, and a picture gallery searched in any language.

Everything here returns `Page`, static HTML with a plain-text stand-in, so that a committed notebook shows it without a
kernel and a screen reader can read it. What is live (`live`, `search_box`) is drawn by the same pure functions.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from IPython.display import HTML

from mpm_lite.core import figures
from mpm_lite.core.runtime import UserError
from mpm_lite.data import CaptionSet
from mpm_lite.data.languages import display_name
from mpm_lite.data.picture import data_uri
from mpm_lite.towers.feature_cache import image_features

SIDE = 64  # pixels of a thumbnail
LEFT = 'style="text-align:left"'


class Page(HTML):
    """Static HTML for a notebook; its plain text says in words what it shows."""

    def __init__(self, data: str, words: str) -> None:
        super().__init__(data)
        self.words = words

    def __repr__(self) -> str:
        return self.words


def show_figure(drawn: Any, alt: str | None = None, dpi: int = 90) -> Page:
    """A matplotlib figure as an image with alt text: `alt`, else what the house's figures leave in `figure.mpm_alt`.

    The description stands below the picture too. The figure is closed. Raises UserError where it has no description.
    """
    import matplotlib.pyplot as plt

    words = alt or getattr(drawn, "mpm_alt", "")
    if not words:
        raise UserError("A figure needs a sentence that describes it: pass alt=, or use figures.describe(it, text).")
    data = base64.b64encode(figures.png(drawn, dpi=dpi)).decode()
    plt.close(drawn)
    image = f'<img alt="{safe(words)}" src="data:image/png;base64,{data}" style="max-width:100%">'
    return Page(f'<figure style="margin:0">{image}<figcaption>{safe(words)}</figcaption></figure>', words)


def safe(text: str) -> str:
    """Text escaped for HTML, quotes included."""
    return html.escape(text, quote=True)


@dataclass(frozen=True)
class Text:
    """A cell of a table that is written in a language of its own: its text and its BCP 47 code."""

    text: str
    language: str


def native(text: str, language: str) -> str:
    """Text as HTML that says which language it is and lets its script choose the direction."""
    return f'<span lang="{safe(language)}" dir="auto">{safe(text)}</span>'


def show_table(rows: Iterable[Sequence[Any]], header: Sequence[str], caption: str) -> Page:
    """A plain HTML table with a caption. Cells: text, numbers, or `Text` for native script; the first names the row."""
    body, short, long = [], *(f'style="text-align:left;{how}"' for how in ("white-space:nowrap", "min-width:10em"))
    for row in rows:
        first, *rest = (native(c.text, c.language) if isinstance(c, Text) else safe(str(c)) for c in row)
        cells = "".join(f"<td {long if len(cell) > 24 else short}>{cell}</td>" for cell in rest)
        body.append(f'<tr><th scope="row" {short}>{first}</th>{cells}</tr>')
    return Page(table_html(caption, column_heads(header), body), f"{caption} ({len(body)} rows)")


def column_heads(names: Iterable[str], style: str = LEFT) -> str:
    """The cells of a table's head."""
    return "".join(f'<th scope="col" {style}>{safe(name)}</th>' for name in names)


def table_html(caption: str, head: str, rows: Iterable[str]) -> str:
    """A table from its caption, the cells of its head, and its rows, the last two as HTML."""
    top = f"<caption {LEFT}>{safe(caption)}</caption><thead><tr>{head}</tr></thead>"
    return f"<table>{top}<tbody>{''.join(rows)}</tbody></table>"


@dataclass(frozen=True)
class Hits:
    """One query and the numbers of the pictures found for it, best first."""

    language: str
    query: str
    pictures: list[int]


class Search:
    """Trained heads and a held-out gallery, ready to be asked in any language.

    recipe: heads that were trained (`result.models[0]`). The gallery must hold only pictures whose licence lets a
    notebook show them (emoji and clip art, never stamps); anything else raises UserError.
    """

    def __init__(self, recipe: Any, text_tower: Any, image_tower: Any, captions: CaptionSet) -> None:
        closed = [part.name for part, _ in captions.parts if not part.open_licence]
        if closed:
            raise UserError(f"Pictures of {', '.join(closed)} may not be shown in a notebook: use emoji and clipart.")
        self.recipe, self.text_tower, self.captions = recipe, text_tower, captions
        self.pictures = self._predict("image", torch.from_numpy(image_features(captions, image_tower).copy()))  # (N, D)

    def _predict(self, key: str, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            on = next(self.recipe.parameters()).device
            return self.recipe.predict({key: x.to(on)})[key].cpu()

    def scores(self, queries: list[str]) -> torch.Tensor:
        """Similarity of every query to every picture, (Q, N)."""
        return self._predict("text", torch.from_numpy(self.text_tower.encode(queries))) @ self.pictures.T

    def __call__(self, queries: dict[str, str], top: int = 6) -> list[Hits]:
        """The `top` pictures for each query; queries: {BCP 47 code: text}."""
        order = self.scores(list(queries.values())).argsort(dim=1, descending=True, stable=True)[:, :top].tolist()
        return [Hits(code, text, row) for (code, text), row in zip(queries.items(), order, strict=True)]


def show_gallery(captions: CaptionSet, found: list[Hits], asked: Collection[str] = (), side: int = SIDE) -> Page:
    """A row of pictures for each query, best first. Pictures whose English name is in `asked` are ringed and marked ✓."""
    names = captions.captions["en"]
    data = {i: data_uri(captions.images[i], side) for row in found for i in row.pictures}
    body = []
    for row in found:
        who = f"{display_name(row.language)} ({row.language})" if row.language else "Free text"
        query = native(row.query, row.language or "und")
        cells = [f'<th scope="row" {LEFT}>{safe(who)}<br>{query}</th>']
        for i in row.pictures:
            right = names[i].casefold() in {name.casefold() for name in asked}
            cells.append(_cell(names[i], data[i], right, side))
        body.append(f"<tr>{''.join(cells)}</tr>")
    firsts = "; ".join(f"{row.language or 'free text'}: {names[row.pictures[0]]}" for row in found)
    return Page(f"<table>{''.join(body)}</table>", f"Best picture for each query. {firsts}")


def _cell(name: str, data: str, right: bool, side: int) -> str:
    ring = "outline:3px solid #009E73;" if right else ""
    alt = safe(f"{name} (the one asked for)" if right else name)
    image = f'<img alt="{alt}" width="{side}" height="{side}" src="{data}" style="background:#fff;{ring}">'
    style = f"text-align:center;vertical-align:top;max-width:{side + 24}px"
    return f'<td style="{style}">{image}<br><small>{"✓ " if right else ""}{safe(name)}</small></td>'


def build_search_box(draw: Callable[[str], Page], start: str) -> Any:
    """A text field that calls `draw(query)` when Enter is pressed; an ipywidgets box."""
    import ipywidgets

    return build_live(ipywidgets.Text(value=start, description="Query", continuous_update=False), draw)


def build_live(control: Any, draw: Callable[[Any], Page]) -> Any:
    """A control of ipywidgets with the page `draw(value)` below it, drawn again whenever the value changes (not to blank)."""
    import ipywidgets

    shown = ipywidgets.HTML(value=draw(control.value).data)

    def redraw(change: dict[str, Any]) -> None:
        if str(change["new"]).strip():
            shown.value = draw(change["new"]).data

    control.observe(redraw, names="value")
    return ipywidgets.VBox([control, shown])
