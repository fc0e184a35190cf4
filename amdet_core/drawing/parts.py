"""What a drawing is made of. Lengths are in px at scale 1 from the top left corner; text is ASCII.

Pillow's own font has little more than ASCII.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Point: TypeAlias = tuple[float, float]
Numbers: TypeAlias = NDArray[np.float64]

INK, SOFT, GRID, CARD = "#22272e", "#8c959f", "#d8dee4", "#ffffff"
DASH = (6.0, 3.5)
"""Drawn and left out of a dashed line, px."""


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
        """One for each known value."""
        rows, columns = self.values.shape
        high, wide = self.height / rows, self.width / columns
        for (row, column), share in np.ndenumerate(self.shares):
            if not np.isnan(share):
                fill = self.colours[_band(float(share), len(self.colours))]
                yield Rectangle(self.left + column * wide, self.top + row * high, wide, high, fill)

    def separators(self) -> Iterator[Rectangle]:
        """White lines between the rows and between the columns."""
        rows, columns = self.values.shape
        high, wide = self.height / rows, self.width / columns
        gap = min(1.0, wide / 4, high / 4)
        for row in range(1, rows):
            yield Rectangle(self.left, self.top + row * high - gap / 2, self.width, gap, CARD)
        for column in range(1, columns):
            yield Rectangle(self.left + column * wide - gap / 2, self.top, gap, self.height, CARD)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture made of pixels ``(H, W, 3)``, stretched to its place; small ones stay sharp."""

    left: float
    top: float
    width: float
    height: float
    pixels: NDArray[np.uint8]


Part: TypeAlias = Rectangle | Line | Text | Cells | Picture


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


def _band(share: float, n: int) -> int:
    return min(int(share * n), n - 1)
