"""Vector drawings that become PNG, a Pillow image or an ``<svg>`` element. The only file that imports Pillow.

Lengths are in px at scale 1 from the top left corner. Text is ASCII: Pillow's own font has little more.
Equal drawings give equal bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont
    from PIL.Image import Image

Point: TypeAlias = tuple[float, float]
Numbers: TypeAlias = NDArray[np.float64]

INK, SOFT, GRID, CARD = "#22272e", "#8c959f", "#d8dee4", "#ffffff"
FONT = "Helvetica Neue, Helvetica, Arial, sans-serif"
"""Fonts of the SVG, about as wide as Pillow's."""
DASH = (6.0, 3.5)
"""Drawn and left out, px."""
SUPER = 3
"""Shapes are drawn this many times larger and reduced, which smooths their edges."""
OUTLINED = 64
"""Rows and columns to which a smooth grid is sampled before its outlines are traced."""


# ------------------------------------------------------------------ parts


@dataclass(frozen=True)
class Rectangle:
    """A filled rectangle."""

    left: float
    top: float
    width: float
    height: float
    fill: str


@dataclass(frozen=True)
class Line:
    """A line through two or more points."""

    points: tuple[Point, ...]
    colour: str
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True)
class Text:
    """One line of text; ``x`` is its start, middle or end, ``y`` the middle of its height."""

    x: float
    y: float
    text: str
    size: float = 11.0
    anchor: Literal["start", "middle", "end"] = "start"
    upward: bool = False
    colour: str = INK


@dataclass(frozen=True, eq=False)
class Cells:
    """Numbers as colours, unknown ones grey.

    Attributes:
        values: shape (rows, columns), the first row on top; NaN or infinite where not known.
        low: number at which the first colour begins.
        high: number at which the last colour ends.
        smooth: the numbers are samples of a surface from edge to edge, drawn as bands; else each is a cell.
    """

    left: float
    top: float
    width: float
    height: float
    values: Numbers
    low: float
    high: float
    colours: tuple[str, ...]
    smooth: bool = False

    @property
    def shares(self) -> Numbers:
        """The values as 0 (first colour) to 1 (last colour), NaN where not known; shape (rows, columns)."""
        known = np.where(np.isfinite(self.values), self.values, np.nan)
        return np.clip((known - self.low) / (self.high - self.low), 0.0, 1.0)

    def rectangles(self) -> Iterator[Rectangle]:
        """One for each known value, with a thin gap around."""
        rows, columns = self.values.shape
        high, wide = self.height / rows, self.width / columns
        gap = min(1.0, wide / 4, high / 4)
        for (row, column), share in np.ndenumerate(self.shares):
            if share == share:
                fill = self.colours[_band(float(share), len(self.colours))]
                yield Rectangle(self.left + column * wide, self.top + row * high, wide - gap, high - gap, fill)


Part: TypeAlias = Rectangle | Line | Text | Cells


@dataclass(frozen=True)
class Drawing:
    """Parts on a white card, later ones over earlier ones and text over all."""

    width: float
    height: float
    parts: tuple[Part, ...]


def shades(stops: tuple[str, ...], n: int) -> tuple[str, ...]:
    """``n`` colours spread evenly over a colour map that is given by some of its colours, as ``#rrggbb``."""
    known = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in stops], dtype=float)
    at = np.linspace(0, len(stops) - 1, n)
    mixed = np.stack([np.interp(at, range(len(stops)), channel) for channel in known.T], axis=1)
    return tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in np.rint(mixed).astype(int).tolist())


def text_width(text: str, size: float) -> float:
    """Room for a text in px, enough also for the wider fonts that show an SVG."""
    return 1.12 * size / 100 * _font(100).getlength(text)


def _band(share: float, n: int) -> int:
    return min(int(share * n), n - 1)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow comes with FreeType"
    return font


# ------------------------------------------------------------------ pixels


def png(drawing: Drawing, scale: float = 2.0) -> bytes:
    """A drawing as PNG, without time stamp."""
    out = io.BytesIO()
    image(drawing, scale).save(out, format="PNG")
    return out.getvalue()


def image(drawing: Drawing, scale: float = 1.0) -> Image:
    """A drawing as an RGB image of ``scale`` times its size."""
    from PIL import Image, ImageDraw

    width, height = round(drawing.width * scale), round(drawing.height * scale)
    canvas = Image.new("RGB", (width * SUPER, height * SUPER), CARD)
    pen = ImageDraw.Draw(canvas)
    for part in drawing.parts:
        if isinstance(part, Cells) and part.smooth:
            _fill(pen, part, GRID, scale * SUPER)
            canvas.paste(_bands(part, scale * SUPER), _corners(part, scale * SUPER)[:2])
        elif isinstance(part, Cells):
            _fill(pen, part, GRID, scale * SUPER)
            for cell in part.rectangles():
                _fill(pen, cell, cell.fill, scale * SUPER)
        elif isinstance(part, Rectangle):
            _fill(pen, part, part.fill, scale * SUPER)
        elif isinstance(part, Line):
            _stroke(pen, part, scale * SUPER)
    canvas = canvas.reduce(SUPER)
    for part in drawing.parts:
        if isinstance(part, Text):
            _write(canvas, part, scale)
    return canvas


def _corners(part: Rectangle | Cells, scale: float) -> tuple[int, int, int, int]:
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
            return _fill(pen, Rectangle(*ends, *size, line.colour), line.colour, scale)
    for points in _dashes(line.points) if line.dashed else [line.points]:
        pixels = [(x * scale, y * scale) for x, y in points]
        pen.line(pixels, fill=line.colour, width=round(line.width * scale), joint="curve")
    return None


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
    shares = _sampled(cells.shares, bottom - top, right - left)
    unknown = len(cells.colours)
    index = np.where(np.isnan(shares), unknown, np.minimum(shares * unknown, unknown - 1)).astype(np.uint8)
    bands = Image.fromarray(index)
    bands.putpalette(bytes.fromhex("".join((*cells.colours, GRID)).replace("#", "")))
    return bands.convert("RGB")


def _sampled(shares: Numbers, rows: int, columns: int) -> Numbers:
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


# ------------------------------------------------------------------ SVG


def svg(drawing: Drawing, name: str, label: str) -> str:
    """A drawing as an ``<svg>`` element to be put into a page.

    Args:
        name: its id, unique in the page: ASCII letters, digits and dashes.
        label: what it shows, for those who can't see it.
    """
    size = f"{_tenths(drawing.width)} {_tenths(drawing.height)}"
    parts = [p for p in drawing.parts if not isinstance(p, Text)] + [p for p in drawing.parts if isinstance(p, Text)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" id="{escape(name)}" viewBox="0 0 {size}" role="img" '
        f'aria-label="{escape(label)}" font-family="{FONT}" fill="none" stroke-linejoin="round">'
        f'<path fill="{CARD}" d="M0 0h{_tenths(drawing.width)}v{_tenths(drawing.height)}H0z"/>'
        + "".join(map(_element, parts))
        + "</svg>"
    )


def _element(part: Part) -> str:
    if isinstance(part, Rectangle):
        return f'<path fill="{part.fill}" d="{_box(part)}"/>'
    if isinstance(part, Line):
        dash = f' stroke-dasharray="{_tenths(DASH[0])} {_tenths(DASH[1])}"' if part.dashed else ""
        return f'<path stroke="{part.colour}" stroke-width="{_tenths(part.width)}"{dash} d="{_path(part.points)}"/>'
    if isinstance(part, Text):
        shown = f'font-size="{_tenths(part.size)}" fill="{part.colour}" text-anchor="{part.anchor}"'
        turn = f' transform="rotate(-90 {_tenths(part.x)} {_tenths(part.y)})"' if part.upward else ""
        at = f'x="{_tenths(part.x)}" y="{_tenths(part.y + 0.35 * part.size)}"'
        return f"<text {at} {shown}{turn}>{escape(part.text)}</text>"
    ground = _element(Rectangle(part.left, part.top, part.width, part.height, GRID))
    if part.smooth:
        return ground + "".join(_outlined(part))
    cells = sorted(part.rectangles(), key=lambda cell: cell.fill)
    boxes = ((fill, "".join(map(_box, same))) for fill, same in groupby(cells, key=lambda cell: cell.fill))
    return ground + "".join(f'<path fill="{fill}" d="{path}"/>' for fill, path in boxes)


def _outlined(cells: Cells) -> Iterator[str]:
    """Every band and those above it as one path, to be painted from the lowest to the highest."""
    shares = _sampled(cells.shares, OUTLINED, OUTLINED)
    size = (cells.width / (OUTLINED - 1), cells.height / (OUTLINED - 1))
    for i, colour in enumerate(cells.colours):
        loops = _outlines(shares, i / len(cells.colours))
        moved = [[(cells.left + x * size[0], cells.top + y * size[1]) for y, x in loop] for loop in loops]
        if moved:
            yield f'<path fill="{colour}" fill-rule="evenodd" d="{"".join(_path(loop) + "z" for loop in moved)}"/>'


def _outlines(values: Numbers, level: float) -> list[list[Point]]:
    """Closed lines around where a grid is at least ``level``, as (row, column), by marching squares."""
    at = {place: float(value) for place, value in np.ndenumerate(values)}
    corners = np.stack([values[:-1, :-1], values[:-1, 1:], values[1:, 1:], values[1:, :-1]])
    known = ~np.isnan(corners).any(axis=0) & (corners.max(axis=0, initial=-1.0, where=~np.isnan(corners)) >= level)
    border: dict[tuple[Point, Point], None] = {}
    for i, j in np.argwhere(known).tolist():
        ring: list[Point] = []
        square = ((i, j), (i, j + 1), (i + 1, j + 1), (i + 1, j))
        for a, b in zip(square, (*square[1:], square[0]), strict=True):
            if at[a] >= level:
                ring.append(a)
            if (at[a] >= level) != (at[b] >= level):
                low, high = min(a, b), max(a, b)  # the same point from either side
                t = (level - at[low]) / (at[high] - at[low])
                ring.append((low[0] + t * (high[0] - low[0]), low[1] + t * (high[1] - low[1])))
        for edge in zip(ring, (*ring[1:], ring[0]), strict=True):
            if edge[::-1] in border:  # shared with the square before: inside
                del border[edge[::-1]]
            elif edge[0] != edge[1]:
                border[edge] = None
    following: dict[Point, list[Point]] = {}
    for start, end in border:
        following.setdefault(start, []).append(end)
    loops: list[list[Point]] = []
    while following:
        loops.append([next(iter(following))])
        while (here := loops[-1][-1]) in following:
            loops[-1].append(following[here].pop())
            if not following[here]:
                del following[here]
    return loops


def _path(points: list[Point] | tuple[Point, ...]) -> str:
    """A path in tenths of a px, the finest that is seen, without points that lie on a straight line."""
    places = [(round(10 * x), round(10 * y)) for x, y in points]
    kept = places[:1]
    for here, after in zip(places[1:], [*places[2:], None], strict=True):
        (x0, y0), (x1, y1) = kept[-1], here
        if after is None or (x1 - x0) * (after[1] - y1) != (y1 - y0) * (after[0] - x1):
            kept.append(here)
    return "M" + "L".join(f"{_tenths(x / 10)} {_tenths(y / 10)}" for x, y in kept)


def _box(part: Rectangle) -> str:
    left, width = _tenths(part.left), _tenths(part.width)
    return f"M{left} {_tenths(part.top)}h{width}v{_tenths(part.height)}H{left}z"


def _tenths(value: float) -> str:
    return (
        f"{value:.1f}".removesuffix(".0").replace("-0", "0") if abs(value) < 0.05 else f"{value:.1f}".removesuffix(".0")
    )
