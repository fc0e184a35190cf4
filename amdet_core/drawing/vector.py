"""Drawings as ``<svg>`` elements for a page. Equal drawings give equal text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby, pairwise

import numpy as np

from .parts import CARD, DASH, GRID, Cells, Drawing, Line, Numbers, Part, Picture, Point, Rectangle, Text
from .raster import SMALL_PICTURE, encoded, sampled

FONT = "Helvetica Neue, Helvetica, Arial, sans-serif"
"""About as wide as Pillow's own."""
OUTLINED = 64
"""Rows and columns to which a smooth grid is sampled before its outlines are traced."""


def svg(drawing: Drawing, label: str) -> str:
    """A drawing as an ``<svg>`` element to be put into a page.

    Args:
        label: what it shows, for those who can't see it.
    """
    size = f"{_tenths(drawing.width)} {_tenths(drawing.height)}"
    parts = [p for p in drawing.parts if not isinstance(p, Text)] + [p for p in drawing.parts if isinstance(p, Text)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img" '
        f'aria-label="{escape(label)}" font-family="{FONT}" fill="none" stroke-linejoin="round">'
        f'<path fill="{CARD}" d="M0 0h{_tenths(drawing.width)}v{_tenths(drawing.height)}H0z"/>'
        + "".join(map(_element, parts))
        + "</svg>"
    )


def _element(part: Part) -> str:
    if isinstance(part, Rectangle):
        return _filled(part.fill, _box(part))
    if isinstance(part, Line):
        dash = f' stroke-dasharray="{_tenths(DASH[0])} {_tenths(DASH[1])}"' if part.dashed else ""
        return f'<path stroke="{part.colour}" stroke-width="{_tenths(part.width)}"{dash} d="{_path(part.points)}"/>'
    if isinstance(part, Text):
        shown = f'font-size="{_tenths(part.size)}" fill="{part.colour}" text-anchor="{part.anchor}"'
        turn = f' transform="rotate(-90 {_tenths(part.x)} {_tenths(part.y)})"' if part.upward else ""
        at = f'x="{_tenths(part.x)}" y="{_tenths(part.y + 0.35 * part.size)}"'
        return f"<text {at} {shown}{turn}>{escape(part.text)}</text>"
    if isinstance(part, Picture):
        return _embedded(part)
    ground = _element(Rectangle(part.left, part.top, part.width, part.height, GRID))
    if part.smooth:
        return ground + "".join(_outlined(part))
    cells = sorted(part.rectangles(), key=lambda cell: cell.fill)
    boxes = ((fill, "".join(map(_box, same))) for fill, same in groupby(cells, key=lambda cell: cell.fill))
    lines = (CARD, "".join(map(_box, part.separators())))
    return ground + "".join(_filled(fill, path) for fill, path in (*boxes, lines) if path)


def _embedded(part: Picture) -> str:
    kind, data = encoded(part.pixels)
    sharp = ' style="image-rendering:pixelated"' if max(part.pixels.shape[:2]) <= SMALL_PICTURE else ""
    size = f'width="{_tenths(part.width)}" height="{_tenths(part.height)}"'
    box = f'x="{_tenths(part.left)}" y="{_tenths(part.top)}" {size}'
    return f'<image {box}{sharp} preserveAspectRatio="none" href="data:{kind},%{data.hex("%")}"/>'


def _outlined(cells: Cells) -> Iterator[str]:
    """Every band and those above it as one path, to be painted from the lowest to the highest."""
    shares = sampled(cells.shares, OUTLINED, OUTLINED)
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


def _path(points: Sequence[Point]) -> str:
    """A path in tenths of a px, the finest that is seen, without points on the way straight on."""
    places = [(round(10 * x), round(10 * y)) for x, y in points]
    kept = places[:1]
    for here, after in pairwise(places[1:]):
        before, ahead = (here[0] - kept[-1][0], here[1] - kept[-1][1]), (after[0] - here[0], after[1] - here[1])
        straight = before[0] * ahead[1] == before[1] * ahead[0]
        if not straight or before[0] * ahead[0] + before[1] * ahead[1] < 0:
            kept.append(here)
    return "M" + "L".join(f"{_tenths(x / 10)} {_tenths(y / 10)}" for x, y in [*kept, *places[1:][-1:]])


def _filled(fill: str, boxes: str) -> str:
    """Rectangles of a colour with sharp edges, so that the ground doesn't shine through where they touch."""
    return f'<path fill="{fill}" shape-rendering="crispEdges" d="{boxes}"/>'


def _box(part: Rectangle) -> str:
    left, width = _tenths(part.left), _tenths(part.width)
    return f"M{left} {_tenths(part.top)}h{width}v{_tenths(part.height)}H{left}z"


def _tenths(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")
