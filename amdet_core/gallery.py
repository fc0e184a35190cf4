"""Pictures side by side: a row for each prompt, a column for each way to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .drawing import SOFT, Drawing, Part, Picture, Text, shortened
from .figures import plain

CELL, GAP, HEADING, CAPTION = 176.0, 10.0, 26.0, 20.0
TEXT = 11.0
MOST = 300
"""Characters of a caption, at most."""

Pictures = NDArray[np.uint8]
"""``(N, H, W, 3)``."""


def gallery(columns: Mapping[str, Pictures], captions: Sequence[str]) -> Drawing:
    """A labelled grid.

    Args:
        columns: heading -> N pictures.
        captions: of the N rows.
    """
    rows = len(captions)
    room = len(columns) * (CELL + GAP) - GAP
    parts: list[Part] = []
    for column, (heading, pictures) in enumerate(columns.items()):
        left = GAP + column * (CELL + GAP)
        parts.append(
            Text(left + CELL / 2, GAP + HEADING / 2, shortened(plain(heading, MOST), TEXT, CELL), TEXT, "middle")
        )
        for row in range(rows):
            top = GAP + HEADING + row * (CELL + CAPTION)
            parts.append(Picture(left, top, CELL, CELL, pictures[row]))
    for row, caption in enumerate(captions):
        middle = GAP + HEADING + row * (CELL + CAPTION) + CELL + CAPTION / 2
        parts.append(Text(GAP, middle, shortened(plain(caption, MOST), TEXT, room), TEXT, colour=SOFT))
    return Drawing(room + 2 * GAP, GAP + HEADING + rows * (CELL + CAPTION), tuple(parts))
