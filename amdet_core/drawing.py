"""Small charts as data.

A :class:`Drawing` is a card with panels; a panel has axes and holds curves, boxes, cells and words in the units
of its data. :func:`marks` turns it into lines, areas and texts in pixels; ``canvas`` writes those as PNG or SVG.
ComfyUI has no plotting library, and none may be installed into it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

INK, GRID, CARD, GREY = "#22272e", "#d0d7de", "#ffffff", "#8c959f"
SMALL, NORMAL, LARGE = 11.0, 12.0, 13.5
"""Sizes of text in pixels at scale 1."""
LETTER = 0.52
"""Width of an average letter over the size of the text."""

Array = NDArray[np.float64]
Ticks = Sequence[tuple[float, str]]


# ------------------------------------------------------------------ what can be drawn


@dataclass(frozen=True, eq=False)
class Curve:
    """A line through points; it is interrupted where a value is not finite. A single point is a dot."""

    x: Array
    y: Array
    colour: str
    label: str = ""
    dashed: bool = False
    width: float = 2.0


@dataclass(frozen=True)
class Box:
    """A filled rectangle between two corners."""

    left: float
    bottom: float
    right: float
    top: float
    colour: str


@dataclass(frozen=True, eq=False)
class Cells:
    """A grid of numbers as colours, its first row at the bottom; grey where a number is not finite.

    Attributes:
        values: ``(rows, columns)``.
        extent: left, bottom, right, top.
        low: number of the first colour.
        high: number of the last one.
        gap: pixels between the cells.
    """

    values: Array
    extent: tuple[float, float, float, float]
    low: float
    high: float
    palette: tuple[str, ...]
    gap: float = 0.0


@dataclass(frozen=True)
class Words:
    """A text at a place."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"] = "start"
    colour: str = INK
    size: float = SMALL


@dataclass(frozen=True, eq=False)
class Panel:
    """Axes with what they hold.

    Attributes:
        place: left, top, width and height of the area between the axes, in pixels.
        xlim: limits of x.
        ylim: limits of y, the lower one first.
        items: drawn in their order.
        xticks: places and labels; round numbers where None.
        grid: the axes whose ticks have lines across the panel.
        bare: cells alone, without frame lines and tick marks.
        right: the y axis stands at the right.
    """

    place: tuple[float, float, float, float]
    xlim: tuple[float, float]
    ylim: tuple[float, float]
    items: tuple[Curve | Box | Cells | Words, ...]
    title: str = ""
    xlabel: str = ""
    ylabel: str = ""
    xticks: Ticks | None = None
    yticks: Ticks | None = None
    grid: Literal["", "x", "y", "both"] = ""
    bare: bool = False
    right: bool = False
    rule: float | None = None

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a place in data units."""
        left, top, width, height = self.place
        across = (x - self.xlim[0]) / ((self.xlim[1] - self.xlim[0]) or 1.0)
        up = (y - self.ylim[0]) / ((self.ylim[1] - self.ylim[0]) or 1.0)
        return left + width * across, top + height * (1 - up)

    @property
    def curves(self) -> list[Curve]:
        """Its curves."""
        return [item for item in self.items if isinstance(item, Curve)]


@dataclass(frozen=True)
class Drawing:
    """A card of so many pixels at scale 1."""

    width: float
    height: float
    panels: tuple[Panel, ...]


def ticks(low: float, high: float, most: int = 6) -> list[tuple[float, str]]:
    """Round numbers within limits, with labels that tell them apart."""
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return [(low, f"{low:.3g}")] if math.isfinite(low) else []
    rough = (high - low) / max(most, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-6)
    places = [i * step for i in range(first, first + most + 2) if i * step <= high + 1e-6 * step]
    if max(abs(low), abs(high)) >= 1e5 or step < 1e-4:
        return [(place, f"{place:.1e}") for place in places]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += round(step * 10**digits, 6) % 1 > 0  # steps of 2.5
    return [(place, f"{place + 0.0:.{digits}f}") for place in places]


# ------------------------------------------------------------------ lines, areas and texts in pixels


@dataclass(frozen=True)
class Line:
    """A line through points."""

    points: tuple[tuple[float, float], ...]
    colour: str
    width: float
    dashed: bool = False


@dataclass(frozen=True)
class Area:
    """Rectangles of one colour: left, top, right, bottom."""

    boxes: tuple[tuple[float, float, float, float], ...]
    colour: str


@dataclass(frozen=True)
class Text:
    """A text whose base line begins, is centred or ends at a place."""

    x: float
    y: float
    text: str
    size: float
    colour: str
    anchor: Literal["start", "middle", "end"]
    upright: bool = False


Mark = Line | Area | Text


def marks(drawing: Drawing) -> Iterator[Mark]:
    """Everything that is drawn, in its order, in pixels at scale 1."""
    yield Area(((0, 0, drawing.width, drawing.height),), CARD)
    for panel in drawing.panels:
        yield from _axes(panel)
        for item in panel.items:
            yield from _item(panel, item)
        yield from _legend(panel)


def _axes(panel: Panel) -> Iterator[Mark]:
    left, top, width, height = panel.place
    bottom, right = top + height, left + width
    across = ticks(*panel.xlim, max(2, round(width / 70))) if panel.xticks is None else panel.xticks
    up = ticks(*panel.ylim, max(2, round(height / 40))) if panel.yticks is None else panel.yticks
    for x, label in across:
        place, _ = panel.at(x, panel.ylim[0])
        if panel.grid in ("x", "both"):
            yield Line(((place, top), (place, bottom)), GRID, 0.8)
        yield Text(place, bottom + 16, label, SMALL, INK, "middle")
    for y, label in up:
        _, place = panel.at(panel.xlim[0], y)
        if panel.grid in ("y", "both"):
            yield Line(((left, place), (right, place)), GRID, 0.8)
        edge, anchor = (right + 6, "start") if panel.right else (left - 6, "end")
        yield Text(edge, place + 4, label, SMALL, INK, "start" if anchor == "start" else "end")
    if not panel.bare:
        yield Line(((left, top), (left, bottom), (right, bottom)), GREY, 1.0)
    if panel.rule is not None:
        place, _ = panel.at(panel.rule, panel.ylim[0])
        yield Line(((place, top), (place, bottom)), GREY, 1.2)
    yield Text(left, top - 9, panel.title, LARGE, INK, "start")
    yield Text(left + width / 2, bottom + 34, panel.xlabel, NORMAL, INK, "middle")
    widest = max((len(label) for _, label in up), default=0) * LETTER * SMALL
    beside = right + widest + 22 if panel.right else left - widest - 14
    yield Text(beside, top + height / 2, panel.ylabel, NORMAL, INK, "middle", upright=True)


def _item(panel: Panel, item: Curve | Box | Cells | Words) -> Iterator[Mark]:
    if isinstance(item, Curve):
        yield from _curve(panel, item)
    elif isinstance(item, Box):
        (left, bottom), (right, top) = panel.at(item.left, item.bottom), panel.at(item.right, item.top)
        yield Area(((min(left, right), min(top, bottom), max(left, right), max(top, bottom)),), item.colour)
    elif isinstance(item, Words):
        x, y = panel.at(item.x, item.y)
        yield Text(x, y + item.size / 3, item.text, item.size, item.colour, item.anchor)
    else:
        yield from _cells(panel, item)


def _curve(panel: Panel, curve: Curve) -> Iterator[Mark]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(curve.x, curve.y, strict=True):
        if math.isfinite(x) and math.isfinite(y):
            pieces[-1].append(panel.at(float(x), float(y)))
        elif pieces[-1]:
            pieces.append([])
    for piece in pieces:
        if len(piece) == 1:
            x, y = piece[0]
            yield Area(((x - 2.5, y - 2.5, x + 2.5, y + 2.5),), curve.colour)
        elif piece:
            yield Line(tuple(piece), curve.colour, curve.width, curve.dashed)


def _cells(panel: Panel, cells: Cells) -> Iterator[Mark]:
    """One area for each colour: runs of equal cells in a row are one rectangle."""
    left, bottom, right, top = cells.extent
    rows, columns = cells.values.shape
    shades = shade(cells.values, cells.low, cells.high, len(cells.palette))
    boxes: dict[int, list[tuple[float, float, float, float]]] = {}
    for row in range(rows):
        starts = [0, *(np.flatnonzero(np.diff(shades[row])) + 1).tolist()] if not cells.gap else range(columns)
        ends = [*list(starts)[1:], columns]
        y0, y1 = bottom + (top - bottom) * row / rows, bottom + (top - bottom) * (row + 1) / rows
        for start, end in zip(starts, ends, strict=True):
            x0, x1 = left + (right - left) * start / columns, left + (right - left) * end / columns
            (a, b), (c, d) = panel.at(x0, y1), panel.at(x1, y0)
            box = (min(a, c), min(b, d), max(a, c) - cells.gap, max(b, d) - cells.gap)
            boxes.setdefault(int(shades[row, start]), []).append(box)
    for index in sorted(boxes):
        yield Area(tuple(boxes[index]), GRID if index < 0 else cells.palette[index])


def shade(values: Array, low: float, high: float, count: int) -> NDArray[np.int64]:
    """Index of each number's colour among ``count``; -1 where it is not finite."""
    known = np.isfinite(values)
    share = (np.where(known, values, low) - low) / ((high - low) or 1.0)
    return np.where(known, np.clip((share * count).astype(np.int64), 0, count - 1), -1)


def _legend(panel: Panel) -> Iterator[Mark]:
    """Names of the curves in the corner where they hide least."""
    named = [curve for curve in panel.curves if curve.label]
    if not named:
        return
    left, top, width, height = panel.place
    wide = 44 + max(len(curve.label) for curve in named) * LETTER * SMALL
    tall = 8 + 17 * len(named)
    points = [panel.at(float(x), float(y)) for c in panel.curves for x, y in zip(c.x, c.y, strict=True)]
    corners = [(x, y) for y in (top + 6, top + height - tall - 6) for x in (left + 8, left + width - wide - 8)]

    def hidden(corner: tuple[float, float]) -> int:
        x0, y0 = corner
        return sum(x0 - 4 <= x <= x0 + wide + 4 and y0 - 4 <= y <= y0 + tall + 4 for x, y in points)

    x0, y0 = min(corners, key=hidden)
    yield Area(((x0, y0, x0 + wide, y0 + tall),), CARD)
    frame = ((x0, y0), (x0 + wide, y0), (x0 + wide, y0 + tall), (x0, y0 + tall), (x0, y0))
    yield Line(frame, GRID, 1.0)
    for i, curve in enumerate(named):
        y = y0 + 13 + 17 * i
        yield Line(((x0 + 8, y), (x0 + 32, y)), curve.colour, curve.width, curve.dashed)
        yield Text(x0 + 38, y + 4, curve.label, SMALL, INK, "start")
