"""Vector drawings: one description, drawn by Pillow as pixels and written as SVG."""

from .axes import (
    BOUND,
    SMALL,
    Axis,
    Entry,
    Panel,
    axis,
    bar_width,
    colour_bar,
    legend_rows,
    named,
    number_words,
    round_step,
    shortened,
)
from .parts import CARD, GRID, INK, SOFT, Cells, Drawing, Line, Numbers, Part, Picture, Rectangle, Text, shades
from .polygons import Colour, filled
from .raster import image, png, text_width
from .vector import svg

__all__ = [
    "BOUND",
    "CARD",
    "GRID",
    "INK",
    "SMALL",
    "SOFT",
    "Axis",
    "Cells",
    "Colour",
    "Drawing",
    "Entry",
    "Line",
    "Numbers",
    "Panel",
    "Part",
    "Picture",
    "Rectangle",
    "Text",
    "axis",
    "bar_width",
    "colour_bar",
    "filled",
    "image",
    "legend_rows",
    "named",
    "number_words",
    "png",
    "round_step",
    "shades",
    "shortened",
    "svg",
    "text_width",
]
