"""Axes: from data to px, with round ticks, grid lines, a title and a legend that never hides a curve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .parts import GRID, SOFT, Line, Numbers, Part, Point, Rectangle, Text
from .raster import text_width

SMALL, NORMAL, LARGE = 11.0, 12.0, 13.0
"""Sizes of the ticks, of the labels and of the titles, px."""
ROW = 18.0
"""Height of one row of the legend or of a label, px."""
BOUND = 1e300
"""Numbers beyond it are drawn at it, so that differences stay finite."""


@dataclass(frozen=True)
class Axis:
    """One direction of a plot.

    Attributes:
        first: data at its left or lower end.
        last: data at its right or upper end; smaller than ``first`` where numbers run the other way.
        ticks: data and words of each tick.
        grid: whether lines across the plot mark the ticks.
    """

    first: float
    last: float
    ticks: tuple[tuple[float, str], ...] = ()
    label: str = ""
    grid: bool = True


def axis(values: Iterable[float], label: str = "", *, most: int = 7, margin: float = 0.05, least: float = 0.0) -> Axis:
    """An axis on which all finite values have a place.

    Args:
        most: ticks at most.
        margin: room on either side as a share of the range.
        least: smallest step between ticks, as 1 for counts.
    """
    known = np.clip([value for value in values if math.isfinite(value)] or [0.0, 1.0], -BOUND, BOUND)
    low, high = float(known.min()), float(known.max())
    size = max(abs(low), abs(high))
    if high - low <= max(1e-6 * size, 1 / BOUND):  # all the same, but for rounding
        room = max(0.1 * size, least / 2) or 1.0
        low, high = low - room, high + room
    low, high = low - margin * (high - low), high + margin * (high - low)
    step = round_step(low, high, most, least)
    ticks = [i * step for i in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)]
    return Axis(low, high, tuple(zip(ticks, number_words(ticks), strict=True)), label)


def named(names: Sequence[str], label: str = "", *, down: bool = False) -> Axis:
    """An axis of equal places with a name each, the first on the left or, with ``down``, on top."""
    ticks = tuple((i + 0.5, name) for i, name in enumerate(names))
    return Axis(len(names) if down else 0.0, 0.0 if down else len(names), ticks, label, grid=False)


def round_step(low: float, high: float, most: int, least: float = 0.0) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that divides a range into at most ``most`` steps."""
    rough = max((high - low) / most, least)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def number_words(values: Sequence[float]) -> list[str]:
    """Evenly spaced numbers in words, all with the digits that tell them apart."""
    size = max(map(abs, values), default=0.0)
    step = abs(values[1] - values[0]) if len(values) > 1 else size
    if not size or 1e-3 <= size < 1e6:
        digits = max(0, -math.floor(math.log10(step) + 1e-6)) if step else 0
        return [f"{value + 0.0:,.{digits}f}" for value in values]
    digits = max(0, math.floor(math.log10(size)) - math.floor(math.log10(step) + 1e-6))
    words = [f"{value:#.{digits}e}".split("e") for value in values]
    return [f"{shown.rstrip('0').rstrip('.')}e{int(power)}" if float(shown) else "0" for shown, power in words]


def shortened(text: str, size: float, room: float) -> str:
    """As much of a text as fits into ``room`` px."""
    if text_width(text, size) <= room:
        return text
    while text and text_width(text + "...", size) > room:
        text = text[:-1]
    return text + "..."


# ------------------------------------------------------------------ legend


@dataclass(frozen=True)
class Entry:
    """One curve in a legend."""

    text: str
    colour: str
    dashed: bool = False


SWATCH = 30.0
"""Room for the piece of line in front of an entry, px."""


def legend_rows(entries: Iterable[Entry], width: float) -> list[list[Entry]]:
    """The entries in rows, each as full as it may be."""
    rows: list[list[Entry]] = []
    left = 0.0
    for entry in entries:
        entry = replace(entry, text=shortened(entry.text, SMALL, width - SWATCH))
        needed = _entry_width(entry)
        if not rows or left + needed > width + ROW:
            rows, left = [*rows, []], 0.0
        rows[-1].append(entry)
        left += needed
    return rows


def _entry_width(entry: Entry) -> float:
    return SWATCH + text_width(entry.text, SMALL) + ROW


# ------------------------------------------------------------------ one plot


class Panel:
    """A plot within a box; ``parts`` collects what is drawn.

    Args:
        box: left, top, right and bottom of all that belongs to it, px.
        framed: whether lines mark the left and the lower edge.
    """

    def __init__(
        self,
        box: tuple[float, float, float, float],
        x: Axis,
        y: Axis,
        *,
        title: str = "",
        legend: Sequence[Entry] = (),
        framed: bool = True,
    ) -> None:
        left, top, right, bottom = box
        self.parts: list[Part] = []
        self._x, self._y = x, y
        widest = max((text_width(word, SMALL) for _, word in y.ticks), default=0.0)
        self.left = round(left + ROW * bool(y.label) + widest + 7)
        self.right = round(right - (text_width(x.ticks[-1][1], SMALL) / 2 if x.ticks and x.grid else 0.0))
        rows = legend_rows(legend, right - self.left)
        self.top = round(top + (ROW + 4) * bool(title) + ROW * len(rows) + (6 if y.grid else 0))
        self.bottom = round(bottom - ROW * bool(x.ticks) - ROW * bool(x.label))
        if title:
            words = shortened(title, LARGE, right - self.left)
            self.parts.append(Text(self.left, top + ROW / 2, words, LARGE))
        self._legend(rows, top + (ROW + 4) * bool(title))
        self._ticks(framed)
        middle = (self.left + self.right) / 2
        if x.label:
            self.parts.append(Text(middle, bottom - ROW / 2, x.label, NORMAL, "middle"))
        if y.label:
            middle = (self.top + self.bottom) / 2
            self.parts.append(Text(left + ROW / 2, middle, y.label, NORMAL, "middle", upward=True))

    def at(self, x: float, y: float) -> Point:
        """The place of a pair of numbers, px."""
        across = (x - self._x.first) / (self._x.last - self._x.first)
        upward = (y - self._y.first) / (self._y.last - self._y.first)
        return self.left + across * (self.right - self.left), self.bottom - upward * (self.bottom - self.top)

    def curve(self, x: Numbers, y: Numbers, entry: Entry, width: float = 2.0) -> None:
        """A line through all finite numbers, open where one is missing; a dot where there is one alone."""
        y = np.where(np.isfinite(y), np.clip(y, -BOUND, BOUND), np.nan)
        gaps = np.flatnonzero(np.isnan(y))
        for piece in np.split(np.arange(len(y)), gaps):
            kept = _thinned(piece[~np.isnan(y[piece])], y, (self.right - self.left) // 2)
            points = [self.at(float(x[i]), float(y[i])) for i in kept]
            if len(points) == 1:
                self.dot(points[0], entry.colour)
            elif points:
                self.parts.append(Line(tuple(points), entry.colour, width, entry.dashed))

    def dot(self, place: Point, colour: str, size: float = 6.0) -> None:
        """A small square at a place in px."""
        self.parts.append(Rectangle(place[0] - size / 2, place[1] - size / 2, size, size, colour))

    def block(self, x: tuple[float, float], y: tuple[float, float], fill: str) -> None:
        """A rectangle between two numbers of either axis."""
        (x0, y0), (x1, y1) = self.at(x[0], y[0]), self.at(x[1], y[1])
        self.parts.append(Rectangle(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0), fill))

    def upright(self, x: float, colour: str) -> None:
        """A line across the plot at a number of the x axis."""
        place = _crisp(self.at(x, self._y.first)[0])
        self.parts.append(Line(((place, self.top), (place, self.bottom)), colour))

    def _ticks(self, framed: bool) -> None:
        across = [(_crisp(self.at(value, self._y.first)[0]), word) for value, word in self._x.ticks]
        upward = [(_crisp(self.at(self._x.first, value)[1]), word) for value, word in self._y.ticks]
        if self._x.grid:
            self.parts += [Line(((x, self.top), (x, self.bottom)), GRID) for x, _ in across]
        if self._y.grid:
            self.parts += [Line(((self.left, y), (self.right, y)), GRID) for y, _ in upward]
        if framed:
            left, bottom = _crisp(self.left), _crisp(self.bottom)
            self.parts.append(Line(((left, self.top), (left, self.bottom + 1)), SOFT))
            self.parts.append(Line(((self.left, bottom), (self.right, bottom)), SOFT))
        widest = max((text_width(word, SMALL) for _, word in across), default=0.0)
        for x, word in _spaced(across, widest + 8):
            self.parts.append(Text(x, self.bottom + ROW / 2 + 2, word, SMALL, "middle"))
        for y, word in _spaced(upward, SMALL + 2):
            self.parts.append(Text(self.left - 7, y, word, SMALL, "end"))

    def _legend(self, rows: list[list[Entry]], top: float) -> None:
        for i, row in enumerate(rows):
            left, y = float(self.left), _crisp(top + ROW * (i + 0.5))
            for entry in row:
                self.parts.append(Line(((left, y), (left + SWATCH - 7, y)), entry.colour, 2.0, entry.dashed))
                self.parts.append(Text(left + SWATCH, y, entry.text, SMALL))
                left += _entry_width(entry)


def colour_bar(place: tuple[float, float, float], scale: Axis, colours: Sequence[str]) -> list[Part]:
    """Colours from the lowest at the bottom up, with ticks on the right and the label beside them.

    Args:
        place: left, top and bottom, px; it is ``bar_width`` wide.
    """
    left, top, bottom = place
    width, height = 12.0, (bottom - top) / len(colours)
    parts: list[Part] = [
        Rectangle(left, bottom - (i + 1) * height, width, height, colour) for i, colour in enumerate(colours)
    ]
    ticks = [
        (bottom - (value - scale.first) / (scale.last - scale.first) * (bottom - top), word)
        for value, word in scale.ticks
    ]
    parts += [Text(left + width + 5, y, word, SMALL) for y, word in _spaced(ticks, SMALL + 4)]
    right = left + bar_width(scale)
    return [*parts, Text(right - ROW / 2, (top + bottom) / 2, scale.label, NORMAL, "middle", upward=True)]


def bar_width(scale: Axis) -> float:
    """Room for a colour bar with its ticks and its label, px."""
    return 12.0 + 5 + max((text_width(word, SMALL) for _, word in scale.ticks), default=0.0) + ROW


def _spaced(ticks: list[tuple[float, str]], room: float) -> list[tuple[float, str]]:
    """Every tick, or every second, third..., so that words of a size don't meet."""
    apart = abs(ticks[1][0] - ticks[0][0]) if len(ticks) > 1 else room
    return ticks[:: max(1, math.ceil(room / max(apart, 1e-3)))]


def _thinned(places: NDArray[np.intp], y: Numbers, width: int) -> NDArray[np.intp]:
    """The lowest and the highest point in each of ``width`` pieces of a long curve; all points of a short one."""
    if len(places) <= 4 * width:
        return places
    pieces = np.array_split(places, width)
    return np.unique([piece[pick(y[piece])] for piece in pieces for pick in (np.argmin, np.argmax)])


def _crisp(place: float) -> float:
    """The middle of a pixel, where a thin line is not blurred over two."""
    return math.floor(place) + 0.5
