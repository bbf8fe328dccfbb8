"""Drawings of the systems: what is frozen, what is trained, and from which language's data, as small SVG pictures.

`draw_system("mpm_chat")` draws one; `python -m mpm_lite.teaching.drawings` writes those of the README. Facts are those of the
papers (2308.12038, 2006.02635, 2206.11091, 2307.06930) and of mpm_lite.recipes; a test compares the marks with each recipe's
`stages()`. A mark is a word, an icon and a pattern as well as a colour.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from mpm_lite.core import runtime
from mpm_lite.core.runtime import unknown
from mpm_lite.core.store import write_atomic

WIDTH, BODY, SMALL, LINE = 640, 15, 13, 19  # of the picture, of both sizes of text, and from line to line, in pixels
GLYPH = 0.6  # the widest that a letter is on average, in parts of the size of its text; 1 for Chinese and Japanese
FROZEN, TRAINED, PLAIN = "frozen", "trained", "plain"
COMMITTED = {"pivot": "figures/pivot.svg", "all": "figures/systems.svg"}  # in assets

_STYLE = (
    ".mc{fill:#fbfbf8;stroke:#999}.mf{fill:#dcecf7;stroke:#00588a}.mt{fill:#fdebd9;stroke:#b34700;stroke-width:2.5}"
    ".mp{fill:#fff;stroke:#777}.mg{fill:none;stroke:#777;stroke-dasharray:5 4}.ml{fill:#e3f3ec;stroke:#00684c}"
    ".mF{fill:url(#m-frozen);stroke:#00588a}.mT{fill:url(#m-trained);stroke:#b34700}"
    ".ma{fill:none;stroke:#444;stroke-width:1.6}.mx{fill:#222}.mm{text-anchor:middle}.mb{font-weight:bold}.mi{font-size:13px}.ms{fill:#444;stroke:none}"
    "@media(prefers-color-scheme:dark){.mc{fill:#20242b;stroke:#888}.mf{fill:#16384f;stroke:#7cc4f0}"
    ".mt{fill:#4d2a10;stroke:#ffa65c}.mp{fill:#2b3038;stroke:#999}.mg{stroke:#999}.ml{fill:#143d30;stroke:#6fd3ae}"
    ".ma{stroke:#ccc}.mx{fill:#f2f2f2}.ms{fill:#ccc}}"
)
_ICONS = {  # drawn around (0, 0), 12 x 12 pixels: a snowflake and a pencil; a speech bubble right of it
    FROZEN: "M-6 0H6M-3-5.2L3 5.2M-3 5.2L3-5.2",
    TRAINED: "M-5 5L-4 1L3-6L6-3L-1 4ZM1-4L4-1",
    "language": "M9-6h13v9h-7l-3 4v-4h-3Z",
}


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
        hatch = (
            '<pattern id="m-trained" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        )
        hatch += '<path d="M0 0V6" stroke="#e0762f" stroke-width="5"/></pattern>'
        dots = '<pattern id="m-frozen" width="5" height="5" patternUnits="userSpaceOnUse">'
        dots += '<circle cx="2" cy="2" r="1.3" fill="#3d8fc4"/></pattern>'
        icons = "".join(f'<path id="m-{mark[0]}" class="ma" d="{way}"/>' for mark, way in _ICONS.items())
        key = f"mpm-{self.name}"
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH + 80}" '
        head += f'style="max-width:100%;height:auto" role="img" aria-labelledby="{key}-t {key}-d" '
        head += f'font-family="Helvetica,Arial,sans-serif" font-size="{BODY}">'
        told = f'<title id="{key}-t">{escape(self.title)}</title><desc id="{key}-d">{escape(self.said)}</desc>'
        ground = f'<rect class="mc" x=".5" y=".5" width="{WIDTH - 1}" height="{self.height - 1}" rx="10"/>'
        return "\n".join(
            [head, told, f"<style>{_STYLE}</style><defs>{hatch}{dots}{icons}</defs>", ground, *self.shapes, "</svg>\n"]
        )

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"{self.title}. {self.said}"

    def save(self, path: str | Path) -> Path:
        """Write the picture to an .svg file, and return where it lies."""
        write_atomic(Path(path), self.svg.encode())
        return Path(path)


def draw_pivot() -> SystemDrawing:
    """Two frozen towers, two trained heads, one space; English pairs only."""
    d = SystemDrawing(
        "pivot",
        "Two towers and the pivot",
        "A picture goes through a frozen image tower and a trained head; its English caption goes through a frozen "
        "multilingual text tower and a trained head. Both arrive in one space. Only English pairs are trained on. Other "
        "languages enter through the same text tower afterwards, and arrive at the same place.",
    )
    d.language(16, 30, "trained on English pairs only")
    d.box(16, 56, 128, 76, "a picture|of a red star")
    d.box(168, 56, 138, 76, "image tower", FROZEN, "alignment", "image tower")
    d.box(330, 56, 118, 76, "image head", TRAINED, "alignment", "image_head")
    d.box(16, 170, 128, 76, "English:|“a red star”")
    d.box(168, 160, 138, 96, "multilingual|text tower", FROZEN, "alignment", "text tower")
    d.box(330, 160, 118, 96, "text head", TRAINED, "alignment", "text_head")
    d.box(16, 290, 160, 76, "“红色的星星”|“nyota nyekundu”")
    d.language(200, 340, "any language it has read, without a picture")
    for y, x in ((94, 144), (94, 306), (208, 144), (208, 306)):
        d.arrow((x, y), (x + 24, y))
    d.arrow((176, 312), (237, 312), (237, 256), dashed=True)
    d.shapes.append('<ellipse class="mp" cx="550" cy="146" rx="76" ry="92"/>')
    d.arrow((448, 94), (496, 94))
    d.arrow((448, 208), (502, 208))
    d.label(550, 84, "one space", BODY, middle=True, bold=True)
    d.shapes.append('<path class="mt" d="M550 132l4 10h11l-9 7 4 11-10-7-10 7 4-11-9-7h11Z"/>')
    for x, y, code in ((512, 130, "en"), (578, 130, "zh"), (512, 176, "sw"), (578, 176, "de")):
        d.shapes.append(f'<circle class="mf" cx="{x}" cy="{y}" r="5"/>')
        d.label(x + 8, y + 4, code)
    d.label(550, 210, "one meaning,", middle=True)
    d.label(550, 226, "one place", middle=True)
    return d.finish()


def draw_contrastive() -> SystemDrawing:
    """The matrix of a batch: every picture against every caption."""
    d = SystemDrawing(
        "contrastive",
        "Contrastive learning: the matrix of a batch",
        "Four pictures give four image vectors, the rows; their four captions give four text vectors, the columns. Each "
        "cell is the cosine of a row and a column. Training raises the diagonal, where a picture meets its own caption, "
        "and lowers all the rest. Both towers are frozen and both heads are trained.",
    )
    d.language(16, 34, "English captions")
    d.box(230, 16, 180, 60, "text tower", FROZEN, "alignment", "text tower")
    d.box(434, 16, 180, 60, "text head", TRAINED, "alignment", "text_head")
    d.arrow((176, 34), (230, 34))
    d.arrow((410, 46), (434, 46))
    d.label(238, 106, "captions", BODY)
    d.arrow((512, 76), (512, 96))
    d.box(16, 128, 150, 60, "image tower", FROZEN, "alignment", "image tower")
    d.box(16, 214, 150, 60, "image head", TRAINED, "alignment", "image_head")
    d.label(91, 118, "pictures", BODY, middle=True)
    d.arrow((91, 188), (91, 214))
    d.arrow((166, 244), (270, 244))
    for i in range(4):
        d.label(350 + 80 * i, 114, f"t{i + 1}", BODY, middle=True, bold=True)
        d.label(282, 147 + 44 * i, f"v{i + 1}", BODY, bold=True)
        for j in range(4):
            x, y = 312 + 80 * j, 122 + 44 * i
            own = i == j
            d.shapes.append(f'<rect class="m{"l" if own else "p"}" x="{x}" y="{y}" width="76" height="40" rx="4"/>')
            d.label(x + 38, y + 25, f"v{i + 1}·t{j + 1}" + (" ✓" if own else ""), BODY, middle=True, bold=own)
    d.label(238, 326, "Loss: in each row and each column, the right")
    d.label(238, 344, "answer among four is the one with the tick.")
    return d.finish()


def draw_mpm_chat() -> SystemDrawing:
    """Two stages: captions teach the connector, then questions teach the language model, too."""
    d = SystemDrawing(
        "mpm_chat",
        "MPM chat, from image to text, in two stages",
        "A picture passes through an image tower and a connector, a resampler whose queries become soft tokens. A "
        "multilingual language model reads them before the question and replies. In stage 1, on English captions, only the "
        "connector is trained and the language model is frozen. In stage 2, on questions and replies, connector and "
        "language model are trained. The image tower is frozen here; the paper trains it, too.",
    )
    stages = (
        ("Stage 1: alignment", "English captions only", FROZEN, "alignment", "language model"),
        ("Stage 2: instruction tuning", "English, with some translations", TRAINED, "instruction tuning", "decoder"),
    )
    for i, (title, data, mark, stage, part) in enumerate(stages):
        y = 16 + 206 * i
        d.group(12, y, 616, 190, title)
        d.language(270, y + 18, data)
        d.box(24, y + 48, 72, 66, "picture")
        d.box(116, y + 48, 120, 66, "image tower", FROZEN, stage, "image tower")
        d.box(256, y + 42, 124, 78, "connector|(resampler)", TRAINED, stage, "visual")
        for x in (96, 236, 380):
            d.arrow((x, y + 81), (x + 20, y + 81))
        for k in range(4):
            d.shapes.append(f'<circle class="mt" cx="{412 + 17 * k}" cy="{y + 81}" r="6"/>')
        d.label(438, y + 108, "soft tokens", middle=True)
        d.arrow((472, y + 81), (490, y + 81))
        d.box(490, y + 42, 128, 78, "language|model", mark, stage, part)
        d.box(256, y + 136, 210, 40, "“What does it show?”")
        d.arrow((466, y + 156), (522, y + 156), (522, y + 120))
        d.arrow((580, y + 120), (580, y + 150))
        d.label(580, y + 168, "reply", BODY, middle=True)
    d.label(16, 436, "Loss: cross-entropy of the reply's tokens. Here the image tower is frozen;")
    d.label(16, 454, "the paper trains it, too. After stage 1, questions come in any language.")
    return d.finish()


def draw_mpm_paint() -> SystemDrawing:
    """A multilingual text model conditions the UNet through a bridge and cross-attention."""
    d = SystemDrawing(
        "mpm_paint",
        "MPM paint, from text to image",
        "A prompt goes through a frozen multilingual text model and a trained bridge into the cross-attention of a UNet, "
        "which is trained; the rest of the UNet is frozen. The UNet turns noise into a latent picture step by step, and a "
        "frozen decoder makes a picture of it. Training uses English pairs only; prompts may come in any language.",
    )
    stage = "re-alignment"
    d.language(16, 30, "trained on English pairs only")
    d.language(296, 30, "prompted in any language it read")
    d.box(16, 60, 146, 84, "prompt:|“red star”|“红色的星星”")
    d.box(192, 60, 166, 84, "multilingual|text model", FROZEN, stage, "prompt encoder")
    d.box(388, 60, 176, 84, "bridge:|linear, LayerNorm", TRAINED, stage, "now.bridge")
    d.arrow((162, 102), (192, 102))
    d.arrow((358, 102), (388, 102))
    d.box(16, 214, 76, 66, "noise")
    d.shapes.append('<rect class="mf" x="122" y="176" width="296" height="140" rx="6"/>')
    d.box(122, 176, 140, 140, "UNet:|all other|layers", FROZEN, stage, "the UNet but its cross-attention")
    d.box(272, 208, 138, 92, "cross-|attention", TRAINED, stage, "attn2")
    d.arrow((476, 144), (476, 162), (340, 162), (340, 208))
    d.label(486, 166, "keys and values", SMALL)
    d.arrow((92, 247), (122, 247))
    d.arrow((418, 247), (442, 247))
    d.box(442, 214, 98, 66, "decoder", FROZEN, stage, "autoencoder")
    d.arrow((540, 247), (558, 247))
    d.box(558, 214, 70, 66, "picture")
    d.arrow((430, 247), (430, 334), (107, 334), (107, 262), (122, 262), dashed=True)
    d.label(270, 352, "many steps, each with less noise", middle=True)
    return d.finish()


def draw_m3p() -> SystemDrawing:
    """One transformer over regions and words, and its four tasks."""
    d = SystemDrawing(
        "m3p",
        "M3P: one transformer over regions and words",
        "A frozen detector gives the regions of a picture. They stand before the words of a caption, some of which are "
        "replaced by a dictionary's translation: code-switching. One transformer, all of it trained, reads both. Four "
        "tasks train it: xMLM on text alone in many languages, and with a picture MC-MLM, MC-MRM and MC-VLM.",
    )
    stage = "pretraining"
    d.box(16, 16, 84, 66, "picture")
    d.box(120, 16, 130, 66, "detector", FROZEN, stage, "image tower")
    d.arrow((100, 49), (120, 49))
    d.arrow((250, 49), (300, 49))
    for i in range(3):
        d.box(300 + 50 * i, 30, 42, 38, f"r{i + 1}")
    d.label(452, 43, "image regions", BODY)
    d.language(16, 112, "English captions, code-switched")
    for x, w, word in ((300, 32, "a"), (338, 58, "rote"), (402, 56, "star")):
        d.box(x, 94, w, 36, word)
    d.label(466, 106, "German for “red”", SMALL)
    d.language(16, 158, "plain text in 100 languages")
    d.box(300, 140, 170, 36, "“eine neue Stadt”")
    d.shapes.append('<path class="ma" d="M442 49H610M458 112H610M470 158H610"/>')
    d.arrow((610, 49), (610, 200))
    d.box(16, 200, 608, 66, "one transformer, for regions and words alike", TRAINED, stage, "encoder")
    tasks = (
        ("xMLM", ("hidden words of", "text, no picture")),
        ("MC-MLM", ("hidden words of", "the caption")),
        ("MC-MRM", ("hidden regions", "of the picture")),
        ("MC-VLM", ("does caption", "match picture?")),
    )
    for i, (name, lines) in enumerate(tasks):
        x = 16 + 154 * i
        d.arrow((x + 73, 266), (x + 73, 288))
        d.box(x, 288, 146, 40, name)
        for k, line in enumerate(lines):
            d.label(x + 73, 346 + 17 * k, line, middle=True)
    d.label(16, 396, "MC: with a multilingual, code-switched caption. The four losses are summed.")
    return d.finish()


def draw_mla() -> SystemDrawing:
    """A frozen English CLIP; an embedding and acquirers for other languages; two stages."""
    d = SystemDrawing(
        "mla",
        "MLA: a frozen English CLIP acquires languages",
        "English text and pictures go through a frozen CLIP, so English stays what it was. Another language enters by an "
        "embedding of its own and passes a trained acquirer after each frozen layer. In stage 1, NLT, its sentence vector "
        "is drawn to that of the English translation; in stage 2, LE, to the vector of the picture.",
    )
    d.box(16, 24, 100, 66, "English|sentence")
    d.box(136, 24, 294, 66, "CLIP's embedding and layers", FROZEN, "transfer", "English text encoder")
    d.box(16, 150, 100, 80, "the same|in Swahili")
    d.box(134, 150, 104, 80, "its own|embedding", TRAINED, "transfer", "acquirers.enter")
    d.box(250, 150, 88, 80, "layer", FROZEN, "transfer", "English text encoder")
    d.box(350, 150, 98, 80, "acquirer", TRAINED, "transfer", "acquirers.of")
    d.box(16, 290, 100, 66, "picture")
    d.box(136, 290, 294, 66, "CLIP's image tower", FROZEN, "exposure", "image tower")
    d.label(352, 252, "repeated for each layer", middle=True)
    for y in (57, 190, 323):
        d.arrow((116, y), (136, y))
    d.arrow((238, 190), (250, 190))
    d.arrow((338, 190), (350, 190))
    for x, y in ((430, 57), (448, 190), (430, 323)):
        d.arrow((x, y), (464, y))
        d.shapes.append(f'<circle class="mp" cx="474" cy="{y}" r="9"/>')
    d.arrow((474, 181), (474, 68), dashed=True)
    d.arrow((474, 199), (474, 312), dashed=True)
    for y, head, lines in (
        (96, "Stage 1: NLT", ("squared error", "no picture")),
        (234, "Stage 2: LE", ("InfoNCE", "no English")),
    ):
        d.label(490, y, head, BODY, bold=True)
        for k, line in enumerate(lines):
            d.label(490, y + 20 + 17 * k, line)
    d.language(490, 156, "translations")
    d.language(490, 296, "its captions")
    d.label(490, 195, "sentence vector")
    d.label(490, 61, "English vector")
    d.label(490, 327, "image vector")
    return d.finish()


def draw_mblip() -> SystemDrawing:
    """A Q-Former from an English language model, aligned anew to a multilingual one."""
    d = SystemDrawing(
        "mblip",
        "mBLIP: an English Q-Former is re-aligned to a multilingual language model",
        "Before: BLIP-2 trains Q-Former and projection on English pairs with a frozen English language model. Warm-up: the "
        "projection alone is trained for a frozen multilingual language model, on translated captions. Re-alignment: "
        "Q-Former, projection and LoRA are trained on a translated mix of tasks. The image tower is always frozen.",
    )
    rows = (
        ("Before: BLIP-2", "English captions", "English", "generation", TRAINED),
        ("1. Warm-up", "captions translated into many languages", "multilingual", "warm-up", FROZEN),
        ("2. Re-alignment", "a mix of tasks, translated", "multilingual", "re-alignment", TRAINED),
    )
    for i, (title, data, kind, stage, mark) in enumerate(rows):
        y, last = 16 + 142 * i, i == 2
        d.group(12, y, 616, 176 if last else 130, title)
        d.language(200, y + 18, data)
        d.box(24, y + 44, 112, 74, "image|tower", FROZEN, stage, "image tower")
        d.box(158, y + 44, 112, 74, "Q-Former", mark, stage, "visual.qformer" if mark == TRAINED else "Q-Former")
        d.box(292, y + 44, 118, 74, "projection", TRAINED, stage, "visual.to_lm")
        part = "language model but its LoRA" if last else "language model"
        d.box(432, y + 44, 184, 74, f"{kind}|language model", FROZEN, stage, part)
        for x in (136, 270, 410):
            d.arrow((x, y + 81), (x + 22, y + 81))
        if last:
            d.box(432, y + 118, 184, 48, "+ LoRA", TRAINED, stage, "decoder")
    return d.finish()


def draw_all() -> SystemDrawing:
    """All four systems, one under the other."""
    d = SystemDrawing(
        "all",
        "Four ways to a multilingual model that sees",
        "MPM: a connector is trained on English pairs between a frozen image tower and a frozen multilingual language model. "
        "M3P: one transformer is trained whole, on code-switched English captions and text in 100 languages. MLA: an "
        "embedding and acquirers are trained in a frozen English CLIP, on translations and captions in each language. mBLIP: "
        "Q-Former, projection and LoRA are trained, on tasks translated into many languages.",
    )
    rows = (
        ("MPM", "English pairs only", (("image tower", FROZEN), ("connector", TRAINED), ("multilingual|language model", FROZEN))),
        ("M3P", "English captions, code-switched; text: 100 languages",
         (("detector", FROZEN), ("one transformer over|regions and words", TRAINED))),
        ("MLA", "translations, then captions in each language",
         (("English CLIP,|image and text", FROZEN), ("+ embedding|and acquirers", TRAINED))),
        ("mBLIP", "captions and tasks, translated into many languages",
         (("image tower", FROZEN), ("Q-Former and|projection", TRAINED), ("multilingual LM", FROZEN), ("+ LoRA", TRAINED))),
    )  # fmt: skip
    for i, (name, data, parts) in enumerate(rows):
        y = 16 + 134 * i
        d.group(12, y, 616, 124, name)
        d.language(92, y + 18, data)
        needs = [int(max(text_width(line) for line in text.split("|"))) + 19 for text, _ in parts]
        needs = [max(86, need) for need in needs]
        spare, x = (592 - sum(needs) - 18 * (len(parts) - 1)) // len(parts), 24
        for k, ((text, mark), need) in enumerate(zip(parts, needs, strict=True)):
            d.box(x, y + 40, need + spare, 74, text, mark)
            x += need + spare + 18
            if k < len(parts) - 1 and not parts[k + 1][0].startswith("+"):
                d.arrow((x - 18, y + 77), (x, y + 77))
    return d.finish()


SYSTEMS: dict[str, Callable[[], SystemDrawing]] = {
    "pivot": draw_pivot, "contrastive": draw_contrastive, "mpm_chat": draw_mpm_chat, "mpm_paint": draw_mpm_paint,
    "m3p": draw_m3p, "mla": draw_mla, "mblip": draw_mblip, "all": draw_all,
}  # fmt: skip


def draw_system(name: str) -> SystemDrawing:
    """The drawing of a system: one of SYSTEMS, such as "pivot", "mpm_chat" or "all". UserError for any other name."""
    if name not in SYSTEMS:
        raise unknown("drawing", name, SYSTEMS)
    return SYSTEMS[name]()


def update(names: Sequence[str] = tuple(COMMITTED), root: Path | None = None) -> None:
    """Write the committed drawings into `root`, by default the folder of assets."""
    for name in names:
        draw_system(name).save((root or runtime.asset()) / COMMITTED[name])


if __name__ == "__main__":
    update()
