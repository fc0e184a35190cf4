"""Pictures of filled polygons as pixels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .raster import SUPER

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


def filled(parts: Iterable[tuple[Colour, NDArray[np.float64]]], pixels: int) -> NDArray[np.uint8]:
    """Polygons painted one over the other on white, with smooth edges.

    Args:
        parts: colour and corners ``(N, 2)``, x to the right and y down, as shares of the picture's side.
        pixels: the picture's side.

    Returns:
        ``(pixels, pixels, 3)``.
    """
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (pixels * SUPER, pixels * SUPER), (255, 255, 255))
    pen = ImageDraw.Draw(canvas)
    for colour, corners in parts:
        pen.polygon((corners * (pixels * SUPER) - 0.5).ravel().tolist(), fill=colour)
    return np.asarray(canvas.reduce(SUPER))
