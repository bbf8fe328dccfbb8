"""Drawings of the systems: what is frozen, what is trained, and from which language's data, as small SVG pictures.

`draw_system("mpm_chat")` draws one; `python -m mpm_lite.teaching.drawings` writes those of the README. Facts are those of the
papers (2308.12038, 2006.02635, 2206.11091, 2307.06930) and of mpm_lite.recipes; a test compares the marks with each recipe's
`stages()`. A mark is a word, an icon and a pattern as well as a colour.
"""

from __future__ import annotations

import tomllib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from mpm_lite.core import runtime
from mpm_lite.core.runtime import unknown
from mpm_lite.core.store import write_atomic
from mpm_lite.report import fill

WIDTH, BODY, SMALL, LINE = 640, 15, 13, 19  # of the picture, of both sizes of text, and from line to line, in pixels
GLYPH = 0.6  # the widest that a letter is on average, in parts of the size of its text; 1 for Chinese and Japanese
FROZEN, TRAINED, PLAIN = "frozen", "trained", "plain"
COMMITTED = {"pivot": "figures/pivot.svg", "all": "figures/systems.svg"}  # in assets


def text_width(text: str, size: int = BODY) -> float:
    """The most pixels that a line of text takes, whatever sans-serif font draws it."""
    return sum(size * (1.0 if unicodedata.east_asian_width(c) in "WF" else GLYPH) for c in text)


@dataclass(frozen=True)
class Box:
    """A part of a system, from (x, y), w wide and h high, with what it is called, a line for each item of `lines`.

    `mark` says whether it is frozen or trained. `stage` and `part` name it as `Recipe.stages()` does.
    """

    x: int
    y: int
    w: int
    h: int
    lines: tuple[str, ...]
    mark: str = PLAIN
    stage: str = ""
    part: str = ""


@dataclass(frozen=True)
class Label:
    """A line of text; x is where it starts, or its middle. The box in which it has to stay is `room`: x, y, w, h."""

    x: int
    y: int
    text: str
    size: int = SMALL
    middle: bool = False
    bold: bool = False
    room: tuple[int, int, int, int] | None = None

    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom, in pixels."""
        wide = text_width(self.text, self.size)
        left = self.x - wide / 2 if self.middle else self.x
        return left, self.y - 0.8 * self.size, left + wide, self.y + 0.25 * self.size


@dataclass
class SystemDrawing:
    """A picture of a system. A notebook shows it; `save` writes it; `svg` is its text."""

    name: str
    title: str
    said: str  # the alternative text: what the picture shows, in sentences
    height: int = 0
    boxes: list[Box] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)

    def box(
        self, x: int, y: int, w: int, h: int, text: str, mark: str = PLAIN, stage: str = "", part: str = ""
    ) -> None:
        """Add a part. Lines of `text` are parted by '|'. A marked part gets a strip with a pattern, an icon and its word."""
        lines = tuple(text.split("|"))
        self.boxes.append(Box(x, y, w, h, lines, mark, stage, part))
        self.shapes.append(f'<rect class="m{mark[0]}" x="{x}" y="{y}" width="{w}" height="{h}" rx="6"/>')
        strip = 0 if mark == PLAIN else 9
        if strip:
            self.shapes.append(
                f'<rect class="m{mark[0].upper()}" x="{x}" y="{y}" width="{strip}" height="{h}" rx="3"/>'
            )
        center = x + (w + strip) // 2
        top = y + (h - LINE * (len(lines) + bool(strip))) // 2 + 15
        room = (x + strip, y, w - strip, h)
        for i, line in enumerate(lines):
            self.label(center, top + LINE * i, line, BODY, middle=True, room=room)
        if strip:
            below = top + LINE * len(lines)
            self.icon(center - 28, below - 5, mark)
            self.label(center + 8, below, mark, SMALL, middle=True, bold=True, room=room)

    def icon(self, x: int, y: int, mark: str) -> None:
        """Add a snowflake or a pencil around a point."""
        self.shapes.append(f'<use href="#m-{mark[0]}" x="{x}" y="{y}"/>')

    def label(self, x: int, y: int, text: str, size: int = SMALL, **how: object) -> None:
        """Add a line of text; `how` are fields of Label."""
        found = Label(x, y, text, size, **how)  # type: ignore[arg-type]
        self.labels.append(found)
        marks = {" mm": found.middle, " mb": found.bold, " mi": size == SMALL}
        kind = "mx" + "".join(mark for mark, on in marks.items() if on)
        self.shapes.append(f'<text class="{kind}" x="{x}" y="{y}">{escape(text, quote=False)}</text>')

    def arrow(self, *points: tuple[int, int], dashed: bool = False) -> None:
        """Add an arrow through points, with its head at the last."""
        (x, y), (bx, by) = points[-1], points[-2]
        way = "M" + "L".join(f"{px} {py}" for px, py in points) + ("" if not dashed else '" stroke-dasharray="4 3')
        ux, uy = ((x > bx) - (x < bx), 0) if by == y else (0, (y > by) - (y < by))
        head = f"M{x} {y}L{x - 8 * ux - 4 * uy} {y - 8 * uy - 4 * ux}L{x - 8 * ux + 4 * uy} {y - 8 * uy + 4 * ux}Z"
        self.shapes.append(f'<path class="ma" d="{way}"/><path class="ms" d="{head}"/>')

    def group(self, x: int, y: int, w: int, h: int, title: str) -> None:
        """Add a frame around several parts, with its title inside, at the top left."""
        self.shapes.append(f'<rect class="mg" x="{x}" y="{y}" width="{w}" height="{h}" rx="8"/>')
        self.label(x + 12, y + 22, title, BODY, bold=True, room=(x, y, w, h))

    def language(self, x: int, y: int, text: str) -> None:
        """Add a flag with a speech bubble that says in which language data comes; its left middle lies at (x, y)."""
        w = int(text_width(text, SMALL)) + 36
        self.shapes.append(f'<rect class="ml" x="{x}" y="{y - 12}" width="{w}" height="24" rx="12"/>')
        self.shapes.append(f'<use href="#m-l" x="{x}" y="{y}"/>')
        self.label(x + 28, y + 5, text, SMALL, room=(x, y - 12, w, 24))

    def shape(self, svg: str) -> None:
        """Add a shape that is drawn as it is."""
        self.shapes.append(svg)

    def finish(self) -> SystemDrawing:
        """Add the legend and fix the height."""
        y = 16 + max(b.y + b.h for b in self.boxes)
        y = max(y, int(16 + max(label.bounds()[3] for label in self.labels)))
        self.shapes.append(f'<path class="mp" d="M16 {y + 4}H{WIDTH - 16}"/>')
        for x, mark in ((16, FROZEN), (228, TRAINED)):
            self.shapes.append(f'<rect class="m{mark[0].upper()}" x="{x}" y="{y + 16}" width="14" height="18" rx="3"/>')
            self.icon(x + 27, y + 25, mark)
        self.label(61, y + 30, "frozen: stays as it is")
        self.label(273, y + 30, "trained: learns")
        self.language(416, y + 25, "language of the data")
        self.height = y + 50
        return self

    @property
    def svg(self) -> str:
        """The picture as the text of an SVG file, with title, description and its own light or dark ground."""
        return fill("drawing.svg", d=self, width=WIDTH, size=BODY, escape=escape)

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"{self.title}. {self.said}"

    def save(self, path: str | Path) -> Path:
        """Write the picture to an .svg file, and return where it lies."""
        write_atomic(Path(path), self.svg.encode())
        return Path(path)


# Every drawing: its title, what it shows in sentences, and the calls that draw it, with the fields of Label behind them.
SYSTEMS: dict[str, dict[str, Any]] = tomllib.loads(fill("drawings.toml"))


def draw_system(name: str) -> SystemDrawing:
    """The drawing of a system: one of SYSTEMS, such as "pivot", "mpm_chat" or "all". UserError for any other name."""
    if name not in SYSTEMS:
        raise unknown("drawing", name, SYSTEMS)
    drawing = SystemDrawing(name, SYSTEMS[name]["title"], SYSTEMS[name]["said"])
    for what, *given in SYSTEMS[name]["parts"]:
        how = given.pop() if isinstance(given[-1], dict) else {}
        getattr(drawing, what)(*given, **how)
    return drawing.finish()


def update(names: Sequence[str] = tuple(COMMITTED), root: Path | None = None) -> None:
    """Write the committed drawings into `root`, by default the folder of assets."""
    for name in names:
        draw_system(name).save((root or runtime.asset()) / COMMITTED[name])


if __name__ == "__main__":
    update()
