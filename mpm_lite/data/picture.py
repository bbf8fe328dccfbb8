"""Pictures from files, SVG or bitmap, as square uint8 arrays on white."""

from __future__ import annotations

import base64
import gzip
import io
import multiprocessing
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mpm_lite.core.runtime import UserError

SIZE = 256
# Part of the key of cached features: raise the number whenever a change here changes a pixel.
RENDER = (
    "render-2: drawn at 360 px; resvg 96 dpi without system fonts, or PIL; white; cropped; 4 % margin; Lanczos; 256 px"
)

_DRAW = 360  # pixels; wide enough that most drawings, after cutting borders, need not be drawn again
_ROOM = SIZE * (1 - 2 * 0.04)  # pixels for the drawing, with a margin of 4 % on each side
_WHITE = 250


def svg_text(path: Path) -> str:
    """The text of an SVG file, gzipped or not."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    return data.decode("utf-8", "replace")


def draw(path: Path) -> np.ndarray:
    """The picture as uint8 (256, 256, 3): on white, blank borders cut off, padded to a square.

    Borders are cut off because many drawings are as small as a stamp in the corner of an A4 page. A blank picture stays whole.
    Raises UserError if the file cannot be drawn.
    """
    try:
        image = _svg(path) if path.name.endswith((".svg", ".svg.gz", ".svgz")) else _bitmap(path)
    except (ValueError, OSError) as error:
        raise UserError(f"The picture {path.name} cannot be drawn: {error}.") from error
    return np.asarray(_square(image))


def photo(data: bytes | Path) -> np.ndarray:
    """A photograph of any mode and rotation as uint8 (256, 256, 3): upright, nothing cut off, padded to a square on white.

    Grey values of 16 bits are scaled to 8 bits, and floats from 0 to 1 to 0 to 255. Raises UserError for a picture that cannot
    be decoded, and for one whose numbers have no known scale: other floats, and whole numbers of 32 bits.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as file:
            kind = file.format
            image = ImageOps.exif_transpose(file)
            if image.mode == "F" or image.mode.startswith("I"):
                image = Image.fromarray(_grey(np.asarray(image), image.mode, kind))
            image = image.convert("RGBA")
    except UserError:
        raise
    except Exception as error:  # a damaged file makes its decoder raise errors of many kinds
        raise UserError(f"A picture cannot be decoded: {str(error) or type(error).__name__}.") from error
    return np.asarray(_padded(_on_white(image), SIZE))


def _on_white(image: Image.Image) -> Image.Image:
    """An RGBA image as RGB, with white behind what is transparent."""
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _grey(values: np.ndarray, mode: str, kind: str | None) -> np.ndarray:
    """Grey values of more than 8 bits as uint8 (H, W); PIL itself would cut them off at 255."""
    if mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            low, high = values.min(), values.max()
            raise UserError(
                f"A picture of floats has values from {low:g} to {high:g}, outside 0 to 1: save it with 8 or 16 bits."
            )
        return np.round(values * 255).astype(np.uint8)
    # In these two formats, whole numbers have at most 16 bits, whatever mode PIL reads them in.
    if mode == "I" and kind not in ("PNG", "PPM"):
        raise UserError(
            "A picture has whole numbers of 32 bits, and what is white in it is not known: save it with 8 or 16 bits."
        )
    return (values.astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)


def draw_many(paths: Sequence[Path]) -> np.ndarray:
    """The pictures of many files, uint8 (N, 256, 256, 3), drawn on all cores if the system can fork."""
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, len(paths) // 16)
    if workers < 2 or sys.platform != "linux":
        return np.stack([draw(path) for path in paths])
    # The child processes only draw and do not call torch, so its threads need not survive the fork.
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        return np.stack(pool.map(draw, paths, chunksize=8))


def data_uri(picture: np.ndarray, side: int, kind: str = "webp", sharp: bool = False) -> str:
    """A picture uint8 (H, W, 3) as a data URI of side x side pixels: "webp" is small, "png" exact; `sharp` keeps pixels square."""
    buffer, how = io.BytesIO(), Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS
    Image.fromarray(picture).resize((side, side), how).save(buffer, kind.upper(), quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _svg(path: Path) -> Image.Image:
    """An SVG as a PIL RGB image whose drawing is at least about as long as the room for it in the square."""
    text = svg_text(path)
    image = _resvg(text, _DRAW)
    box = _box(image)
    if box is None:
        return image
    long = max(box[2] - box[0], box[3] - box[1])
    if long < _ROOM:  # a small drawing on a large page: draw it again, larger, instead of blowing pixels up
        image = _resvg(text, min(16 * SIZE, round(image.width * 1.25 * SIZE / long)))
    return image


def _resvg(text: str, width: int) -> Image.Image:
    import resvg_py

    # dpi must be given: without it, resvg_py takes 0 dots per inch, and a page measured in mm or pt has no size.
    # A drawing without any size gets `width`. System fonts are off, so that every machine draws the same pixels.
    options = {"width": width, "dpi": 96.0, "background": "#ffffff", "skip_system_fonts": True}
    try:
        png = resvg_py.svg_to_bytes(svg_string=text, **options)
    except ValueError as error:
        if "parse" in str(error).lower() or re.search(r"<!ENTITY|xlink:href=\"(?!data:|#)", text) is None:
            raise
        png = resvg_py.svg_to_bytes(svg_string=re.sub(r"xlink:href=\"(?!data:|#)[^\"]*\"", "", text), **options)
    return Image.open(io.BytesIO(png)).convert("RGB")


def _bitmap(path: Path) -> Image.Image:
    """A bitmap as a PIL RGB image on white."""
    with Image.open(path) as file:
        return _on_white(file.convert("RGBA"))


def _box(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The bounding box of what is not white; None for a blank picture."""
    return image.convert("L").point(lambda value: 255 * (value < _WHITE)).getbbox()


def _square(image: Image.Image) -> Image.Image:
    box = _box(image)
    return _padded(image, SIZE) if box is None else _padded(image.crop(box), round(_ROOM))


def _padded(image: Image.Image, room: int) -> Image.Image:
    """The picture in the middle of a white square, its longer side `room` pixels long, its shorter side at least one."""
    scale = room / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGB", (SIZE, SIZE), (255, 255, 255))
    square.paste(image, ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2))
    return square
