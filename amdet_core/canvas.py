"""Drawings as PNG and as SVG; the only file that imports Pillow."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

from .drawing import CARD, Area, Drawing, Line, Text, marks

if TYPE_CHECKING:
    from PIL.Image import Image

SMOOTH = 2
"""Shapes are drawn so many times larger and reduced; text is not."""


# ------------------------------------------------------------------ PNG


def image(drawing: Drawing, scale: float = 2.0) -> Image:
    """The drawing as a picture of ``scale`` times its size."""
    from PIL import Image, ImageDraw

    size = (round(drawing.width * scale), round(drawing.height * scale))
    large = Image.new("RGB", (size[0] * SMOOTH, size[1] * SMOOTH), CARD)
    brush, factor = ImageDraw.Draw(large), scale * SMOOTH
    texts = []
    for mark in marks(drawing):
        if isinstance(mark, Area):
            for left, top, right, bottom in mark.boxes:
                corners = [round(value * factor) for value in (left, top, right, bottom)]
                if corners[2] > corners[0] and corners[3] > corners[1]:
                    brush.rectangle((corners[0], corners[1], corners[2] - 1, corners[3] - 1), fill=mark.colour)
        elif isinstance(mark, Line):
            for piece in _dashes(mark.points) if mark.dashed else (mark.points,):
                points = [(x * factor, y * factor) for x, y in piece]
                brush.line(points, fill=mark.colour, width=max(1, round(mark.width * factor)), joint="curve")
        elif mark.text:
            texts.append(mark)
    picture = large.reduce(SMOOTH)
    for text in texts:
        _write(picture, text, scale)
    return picture


def _write(picture: Image, mark: Text, scale: float) -> None:
    from PIL import Image, ImageDraw

    font, anchor = _font(mark.size * scale), {"start": "ls", "middle": "ms", "end": "rs"}[mark.anchor]
    if not mark.upright:
        ImageDraw.Draw(picture).text((mark.x * scale, mark.y * scale), mark.text, mark.colour, font, anchor)
        return
    wide, tall = math.ceil(font.getlength(mark.text)) + 4, round(mark.size * scale * 1.6)
    label = Image.new("L", (wide, tall), 0)
    ImageDraw.Draw(label).text((wide / 2, tall * 0.75), mark.text, 255, font, "ms")
    turned = label.rotate(90, expand=True)
    where = (round(mark.x * scale - tall * 0.75), round(mark.y * scale - wide / 2))
    picture.paste(mark.colour, (*where, where[0] + turned.width, where[1] + turned.height), turned)


@cache
def _font(size: float) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _dashes(points: Sequence[tuple[float, float]], on: float = 7.0, off: float = 4.0) -> Iterator[tuple[Any, ...]]:
    """Pieces of a line, in pixels at scale 1."""
    phase, piece = 0.0, [points[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length, done = math.hypot(x1 - x0, y1 - y0), 0.0
        while length - done > 1e-9:
            drawn = phase < on
            step = min(length - done, (on if drawn else on + off) - phase)
            done, phase = done + step, phase + step
            place = (x0 + (x1 - x0) * done / length, y0 + (y1 - y0) * done / length)
            if drawn:
                piece.append(place)
            if drawn and phase >= on - 1e-9:
                yield tuple(piece)
            if phase >= on + off - 1e-9:
                phase, piece = 0.0, [place]
    if phase < on and len(piece) > 1:
        yield tuple(piece)


def png(drawing: Drawing, scale: float = 2.0) -> bytes:
    """The drawing as PNG; equal drawings give equal bytes."""
    out = io.BytesIO()
    image(drawing, scale).save(out, "PNG")
    return out.getvalue()


# ------------------------------------------------------------------ SVG


def svg(drawing: Drawing, label: str) -> str:
    """The drawing as an ``<svg>`` element to be put into a page.

    Args:
        label: what it shows, for those who can't see it.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {drawing.width:g} {drawing.height:g}" role="img" '
        f'aria-label="{escape(label)}" font-family="system-ui, sans-serif">'
    ]
    for mark in marks(drawing):
        if isinstance(mark, Area):
            path = "".join(f"M{_n(a)} {_n(b)}H{_n(c)}V{_n(d)}H{_n(a)}z" for a, b, c, d in mark.boxes)
            parts.append(f'<path fill="{mark.colour}" d="{path}"/>')
        elif isinstance(mark, Line):
            points = " ".join(f"{_n(x)},{_n(y)}" for x, y in mark.points)
            dash = ' stroke-dasharray="7 4"' if mark.dashed else ""
            parts.append(
                f'<polyline fill="none" stroke="{mark.colour}" stroke-width="{mark.width:g}"{dash} points="{points}"/>'
            )
        elif mark.text:
            turned = f' transform="rotate(-90 {_n(mark.x)} {_n(mark.y)})"' if mark.upright else ""
            parts.append(
                f'<text x="{_n(mark.x)}" y="{_n(mark.y)}" font-size="{mark.size:g}" fill="{mark.colour}" '
                f'text-anchor="{mark.anchor}"{turned}>{escape(mark.text)}</text>'
            )
    return "".join([*parts, "</svg>"])


def _n(value: float) -> str:
    """Tenths of a pixel, the finest that is seen."""
    return f"{value:.1f}".removesuffix(".0")
