"""What notebooks on MPM paint show: a grid of prompts and languages, a slider of guidance, the way between two prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mpm_lite import paint
from mpm_lite.data import grammar
from mpm_lite.data.languages import display_name
from mpm_lite.data.picture import data_uri
from mpm_lite.data.scenes import Scene
from mpm_lite.painting import GUIDANCE, Bench
from mpm_lite.recipes.mpm_paint import MpmPaint
from mpm_lite.runtime import UserError
from mpm_lite.teaching import widgets

SIDE = 84  # pixels of a picture shown


def picture(pixels: np.ndarray, alt: str, side: int = SIDE) -> str:
    """A picture uint8 (H, H, 3) as HTML, its pixels left sharp."""
    data = data_uri(pixels, len(pixels), "png", sharp=True)  # as it is: the page enlarges it
    # A narrow page scrolls, and does not squeeze some pictures more than others.
    kept = f"min-width:{3 * side // 4}px;image-rendering:pixelated"
    return f'<img alt="{widgets.safe(alt)}" width="{side}" height="{side}" style="{kept}" src="{data}">'


def grid(
    bench: Bench, recipe: MpmPaint, scenes: Sequence[Scene], languages: Sequence[str], seed: int = 0,
    guidance: float = GUIDANCE,
) -> widgets.Page:  # fmt: skip
    """A row a scene, a column a language: what is painted after its prompt there, from the same noise along a row. Below
    each picture: the attributes that are right, read by the network that judges."""
    columns, noise = [], [seed * 100_003 + i for i in range(len(scenes))]
    for code in languages:
        prompts = [grammar.in_order(scene, code)[0] for scene in scenes]
        found = bench.paint(recipe, prompts, noise, guidance=guidance)
        columns.append((prompts, found, bench.scored(found, scenes)["attributes"].tolist()))
    head = "".join(
        f'<th scope="col" style="text-align:center">{widgets.safe(display_name(code))}</th>' for code in languages
    )
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
    mean = ", ".join(
        f"{code} {100 * np.mean(right):.0f} %" for code, (_, _, right) in zip(languages, columns, strict=True)
    )
    caption = f"Attributes right: {mean}"
    table = f'<table><caption style="text-align:left">{widgets.safe(caption)}</caption>'
    return widgets.Page(
        f"{table}<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>", caption
    )


def row(pictures: Sequence[np.ndarray], names: Sequence[str], caption: str) -> widgets.Page:
    """Pictures side by side, each above its name."""
    cells = "".join(
        f'<td style="text-align:center">{picture(one, name)}<br><small>{widgets.safe(name)}</small></td>'
        for one, name in zip(pictures, names, strict=True)
    )
    top = f'<caption style="text-align:left">{widgets.safe(caption)}</caption>'
    return widgets.Page(f"<table>{top}<tr>{cells}</tr></table>", f"{caption}: {', '.join(names)}")


def between(
    bench: Bench, recipe: MpmPaint, first: str, second: str, shares: Sequence[float], seed: int = 0
) -> list[np.ndarray]:  # fmt: skip
    """Pictures uint8 (H, H, 3) on the way from one prompt to another, all from one noise: token states are mixed in their
    order, (1 - share) of the first prompt's and share of the second's. UserError for a share outside 0 to 1."""
    if not all(0 <= share <= 1 for share in shares):
        raise UserError("A share lies between 0 (the first prompt) and 1 (the second).")
    states, there = recipe.encoder.states([first, second]).batch([0, 1])  # (2, T, W), (2, T)
    weight = torch.tensor([[1 - share, share] for share in shares])  # (K, 2)
    mixed = torch.einsum("ks,stw->ktw", weight, states)
    mask = torch.einsum("ks,st->kt", weight, there.float()) > 0
    x = paint.sample(*recipe.parts, mixed, mask, [seed] * len(shares), GUIDANCE, bench.steps)
    return list(paint.to_pictures(bench.vae, x))


def slider(draw: Callable[[float], widgets.Page], start: float = GUIDANCE) -> Any:
    """A slider of guidance, and below it what `draw(guidance)` shows; an ipywidgets box."""
    import ipywidgets

    lowest, highest = paint.GUIDANCE
    menu = ipywidgets.FloatSlider(
        start, min=lowest, max=highest, step=0.5, description="guidance", continuous_update=False
    )
    shown = ipywidgets.HTML(value=draw(start).data)

    def redraw(change: dict[str, Any]) -> None:
        shown.value = draw(change["new"]).data

    menu.observe(redraw, names="value")
    return ipywidgets.VBox([menu, shown])
