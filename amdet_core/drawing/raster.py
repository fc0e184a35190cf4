"""Drawings as pixels, by Pillow. Equal drawings give equal bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .parts import CARD, DASH, GRID, Cells, Drawing, Line, Numbers, Picture, Point, Rectangle, Text

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont
    from PIL.Image import Image

SUPER = 3
"""Shapes are drawn this many times larger and reduced, which smooths their edges."""
SMALL_PICTURE = 128
"""Pixels up to which a side of a picture counts as small: it is enlarged without smoothing."""


def png(drawing: Drawing, scale: float = 2.0) -> bytes:
    """A drawing as PNG, without time stamp."""
    out = io.BytesIO()
    image(drawing, scale).save(out, format="PNG")
    return out.getvalue()


def image(drawing: Drawing, scale: float = 2.0) -> Image:
    """A drawing as an RGB image of ``scale`` times its size."""
    from PIL import Image, ImageDraw

    width, height = round(drawing.width * scale), round(drawing.height * scale)
    canvas = Image.new("RGB", (width * SUPER, height * SUPER), CARD)
    pen = ImageDraw.Draw(canvas)
    for part in drawing.parts:
        if isinstance(part, Cells) and part.smooth:
            canvas.paste(_bands(part, scale * SUPER), _corners(part, scale * SUPER)[:2])
        elif isinstance(part, Cells):
            _fill(pen, part, GRID, scale * SUPER)
            for cell in (*part.rectangles(), *part.separators()):
                _fill(pen, cell, cell.fill, scale * SUPER)
        elif isinstance(part, Rectangle):
            _fill(pen, part, part.fill, scale * SUPER)
        elif isinstance(part, Line):
            _stroke(pen, part, scale * SUPER)
    canvas = canvas.reduce(SUPER)
    for part in drawing.parts:
        if isinstance(part, Text):
            _write(canvas, part, scale)
        elif isinstance(part, Picture):
            canvas.paste(_stretched(part, scale), _corners(part, scale)[:2])
    return canvas


def encoded(pixels: NDArray[np.uint8]) -> tuple[str, bytes]:
    """A picture ``(H, W, 3)`` as a file, and its media type: PNG for small ones, else JPEG."""
    from PIL import Image

    out, small = io.BytesIO(), max(pixels.shape[:2]) <= SMALL_PICTURE
    Image.fromarray(pixels).save(out, **{"format": "PNG"} if small else {"format": "JPEG", "quality": 90})
    return "image/png" if small else "image/jpeg", out.getvalue()


def _stretched(part: Picture, scale: float) -> Image:
    from PIL import Image

    left, top, right, bottom = _corners(part, scale)
    small = max(part.pixels.shape[:2]) <= SMALL_PICTURE
    method = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return Image.fromarray(part.pixels).resize((right - left, bottom - top), method)


def _corners(part: Rectangle | Cells | Picture, scale: float) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in pixels; rectangles that touch share no pixel."""
    right, bottom = part.left + part.width, part.top + part.height
    return round(part.left * scale), round(part.top * scale), round(right * scale), round(bottom * scale)


def _fill(pen: ImageDraw.ImageDraw, part: Rectangle | Cells, colour: str, scale: float) -> None:
    left, top, right, bottom = _corners(part, scale)
    if right > left and bottom > top:
        pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)


def _stroke(pen: ImageDraw.ImageDraw, line: Line, scale: float) -> None:
    if len(line.points) == 2 and not line.dashed:
        (x0, y0), (x1, y1) = line.points
        if x0 == x1 or y0 == y1:  # Pillow would put a line of even width half a pixel off
            half = line.width / 2
            ends = (min(x0, x1) - half * (x0 == x1), min(y0, y1) - half * (y0 == y1))
            size = (max(abs(x1 - x0), line.width * (x0 == x1)), max(abs(y1 - y0), line.width * (y0 == y1)))
            _fill(pen, Rectangle(*ends, *size, line.colour), line.colour, scale)
            return
    for points in _dashes(line.points) if line.dashed else [line.points]:
        pixels = [(x * scale, y * scale) for x, y in points]
        pen.line(pixels, fill=line.colour, width=round(line.width * scale), joint="curve")


def _dashes(points: tuple[Point, ...]) -> Iterator[list[Point]]:
    """The drawn pieces of a dashed line."""
    places = np.array(points)
    along = np.concatenate([[0.0], np.hypot(*np.diff(places, axis=0).T).cumsum()])
    for start in np.arange(0.0, along[-1], sum(DASH)):
        end = min(start + DASH[0], along[-1])
        stops = [start, *along[(along > start) & (along < end)], end]
        yield [(float(np.interp(s, along, places[:, 0])), float(np.interp(s, along, places[:, 1]))) for s in stops]


def _write(canvas: Image, text: Text, scale: float) -> None:
    from PIL import Image, ImageDraw

    font = _font(max(1, round(text.size * scale)))
    base = 0.35 * text.size * scale  # from the middle of the height to the base line
    anchor = {"start": "ls", "middle": "ms", "end": "rs"}[text.anchor]
    if not text.upward:
        ImageDraw.Draw(canvas).text(
            (text.x * scale, text.y * scale + base), text.text, fill=text.colour, font=font, anchor=anchor
        )
        return
    width, height = math.ceil(font.getlength(text.text)) + 2, math.ceil(2 * text.size * scale)
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).text((1, height / 2 + base), text.text, fill=255, font=font, anchor="ls")
    mask = mask.transpose(Image.Transpose.ROTATE_90)
    shift = {"start": width, "middle": width / 2, "end": 0.0}[text.anchor]
    canvas.paste(text.colour, (round(text.x * scale - height / 2), round(text.y * scale - shift)), mask)


def _bands(cells: Cells, scale: float) -> Image:
    from PIL import Image

    left, top, right, bottom = _corners(cells, scale)
    shares = sampled(cells.shares, bottom - top, right - left)
    unknown = len(cells.colours)
    index = np.where(np.isnan(shares), unknown, np.minimum(shares * unknown, unknown - 1)).astype(np.uint8)
    bands = Image.fromarray(index)
    bands.putpalette(bytes.fromhex("".join((*cells.colours, GRID)).replace("#", "")))
    return bands.convert("RGB")


def sampled(shares: Numbers, rows: int, columns: int) -> Numbers:
    """A surface on another grid with the same edges; unknown within a square that has an unknown corner."""
    from PIL import Image

    def spread(values: NDArray[Any], method: Image.Resampling) -> Numbers:
        high, wide = values.shape
        # Pillow takes values as the middles of pixels; the box puts the outermost ones onto the edges.
        x, y = max(0.0, 0.5 - 0.5 * (wide - 1) / (columns - 1)), max(0.0, 0.5 - 0.5 * (high - 1) / (rows - 1))
        picture = Image.fromarray(values.astype(np.float32))
        return np.asarray(picture.resize((columns, rows), method, box=(x, y, wide - x, high - y)), dtype=float)

    known = ~np.isnan(shares)
    if known.all():
        return np.clip(spread(shares, Image.Resampling.BICUBIC), 0.0, 1.0)
    smooth = np.clip(spread(np.where(known, shares, 0.0), Image.Resampling.BILINEAR), 0.0, 1.0)
    return np.where(spread(known, Image.Resampling.BILINEAR) > 0.999, smooth, np.nan)


def text_width(text: str, size: float) -> float:
    """Room for a text in px, enough also for the wider fonts that show an SVG."""
    return 1.12 * size / 100 * _font(100).getlength(text)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow comes with FreeType"
    return font
