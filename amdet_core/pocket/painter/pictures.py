"""Scenes as pixels: every object is a few filled polygons in shades of its colour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ...drawing import Colour, filled
from .scenes import Scene, Thing

PIXELS = 64
"""Side of a picture."""
MAIN: Mapping[str, Colour] = {
    "red": (214, 32, 38),
    "orange": (245, 134, 18),
    "yellow": (250, 218, 40),
    "green": (28, 140, 52),
    "blue": (36, 84, 214),
    "purple": (122, 38, 160),
    "pink": (246, 130, 178),
    "brown": (122, 72, 34),
    "black": (18, 18, 20),
    "white": (252, 252, 250),
}
PAPER: Mapping[str, Colour] = {
    "white": (244, 244, 244),
    "gray": (150, 152, 156),
    "black": (26, 26, 30),
    "light blue": (170, 208, 240),
    "dark blue": (22, 34, 88),
    "light green": (176, 222, 168),
    "beige": (226, 208, 172),
    "lavender": (204, 190, 232),
    "peach": (250, 204, 170),
}
Polygon = NDArray[np.float64]
Part = tuple[float, Polygon]
"""How dark a part is beside its object's colour, 0 as it is; corners ``(N, 2)`` within -1 to 1, y down."""


def draw(scene: Scene) -> NDArray[np.uint8]:
    """The picture of a scene, ``(PIXELS, PIXELS, 3)``."""
    return filled(_parts(scene), PIXELS)


def _parts(scene: Scene) -> Iterator[tuple[Colour, Polygon]]:
    paper = PAPER[scene.background]
    yield paper, _box(0, 0, 1, 1)
    for corners in _texture(scene.texture):
        yield _shade(paper, 0.14), corners
    for thing in scene.things:
        yield from _thing(thing)


def _thing(thing: Thing) -> Iterator[tuple[Colour, Polygon]]:
    colour, place = MAIN[thing.colour], np.array((thing.x, thing.y))
    for depth, corners in _shape(thing.shape):
        yield _shade(colour, depth), corners * thing.size + place


def _shade(colour: Colour, depth: float) -> Colour:
    """A darker colour; a lighter one where there is no darker one."""
    towards, share = (0, depth) if sum(colour) > 150 else (255, 0.6 * depth)
    red, green, blue = (round(c + (towards - c) * share) for c in colour)
    return red, green, blue


# ------------------------------------------------------------------ backgrounds


@cache
def _texture(name: str) -> tuple[Polygon, ...]:
    """The darker marks of a background, as shares of the picture's side."""
    grid = [i / 8 for i in range(8)]
    if name == "striped":
        return tuple(_box(0, y, 1, y + 1 / 16) for y in grid)
    if name == "dotted":
        return tuple(_ellipse(x + 1 / 16, y + 1 / 16, 0.032, 0.032, sides=12) for x in grid for y in grid)
    if name == "checkered":
        return tuple(_box(x, y, x + 1 / 8, y + 1 / 8) for i, x in enumerate(grid) for y in grid[i % 2 :: 2])
    return ()


# ------------------------------------------------------------------ shapes


def _box(left: float, top: float, right: float, bottom: float) -> Polygon:
    return np.array(((left, top), (right, top), (right, bottom), (left, bottom)))


def _polygon(*corners: tuple[float, float]) -> Polygon:
    return np.array(corners)


def _arc(x: float, y: float, wide: float, high: float, start: float, end: float, sides: int = 40) -> Polygon:
    """Points of an ellipse between two angles in turns, clockwise from the right."""
    angles = 2 * np.pi * np.linspace(start, end, sides)
    return np.stack((x + wide * np.cos(angles), y + high * np.sin(angles)), axis=1)


def _ellipse(x: float, y: float, wide: float, high: float, sides: int = 40) -> Polygon:
    return _arc(x, y, wide, high, 0, 1 - 1 / sides, sides)


def _band(x: float, y: float, outer: float, inner: float, start: float = 0, end: float = 1) -> Polygon:
    """A ring, or a part of one."""
    return np.concatenate((_arc(x, y, outer, outer, start, end), _arc(x, y, inner, inner, end, start)))


def _star(points: int, outer: float, inner: float) -> Polygon:
    angles = 2 * np.pi * (np.arange(2 * points) / (2 * points) - 0.25)
    radius = np.where(np.arange(2 * points) % 2 == 0, outer, inner)
    return np.stack((radius * np.cos(angles), radius * np.sin(angles) + 0.06), axis=1)


def _heart() -> Polygon:
    t = 2 * np.pi * np.arange(48) / 48
    across = 16 * np.sin(t) ** 3
    down = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack((across / 17, (down - 2.5) / 15.5), axis=1)


@cache
def _shape(name: str) -> tuple[Part, ...]:
    """The parts of an object of a shape, from behind."""
    simple: dict[str, Polygon] = {
        "circle": _ellipse(0, 0, 0.95, 0.95),
        "square": _box(-0.85, -0.85, 0.85, 0.85),
        "triangle": _polygon((0, -0.95), (1, 0.8), (-1, 0.8)),
        "star": _star(5, 1.06, 0.44),
        "heart": _heart(),
        "ring": _band(0, 0, 0.98, 0.52),
    }
    if name in simple:
        return ((0.0, simple[name]),)
    return {"house": _house, "tree": _tree, "boat": _boat, "cat": _cat, "teapot": _teapot, "flower": _flower}[name]()


def _house() -> tuple[Part, ...]:
    return (
        (0.0, _box(-0.75, -0.15, 0.75, 0.95)),
        (0.55, _polygon((-1, -0.15), (0, -1), (1, -0.15))),
        (0.65, _box(-0.2, 0.3, 0.2, 0.95)),
        (0.65, _box(-0.6, 0.08, -0.32, 0.4)),
        (0.65, _box(0.32, 0.08, 0.6, 0.4)),
    )


def _tree() -> tuple[Part, ...]:
    return (
        (0.6, _box(-0.17, 0.35, 0.17, 1)),
        (0.0, _polygon((0, -1), (0.62, -0.2), (-0.62, -0.2))),
        (0.0, _polygon((0, -0.65), (0.82, 0.5), (-0.82, 0.5))),
        (0.25, _polygon((0, -0.65), (0.82, 0.5), (0.4, 0.5))),
    )


def _boat() -> tuple[Part, ...]:
    return (
        (0.65, _box(-0.07, -1, 0.07, 0.4)),
        (0.0, _polygon((0.12, -0.92), (0.95, 0.25), (0.12, 0.25))),
        (0.0, _polygon((-0.12, -0.7), (-0.8, 0.25), (-0.12, 0.25))),
        (0.35, _polygon((-1, 0.38), (1, 0.38), (0.66, 0.9), (-0.66, 0.9))),
    )


def _cat() -> tuple[Part, ...]:
    face = _ellipse(0, 0.15, 0.88, 0.78)
    ears = [_polygon((s * 0.85, 0.1), (s * 0.82, -0.98), (s * 0.18, -0.5)) for s in (-1, 1)]
    eyes = [_ellipse(s * 0.36, 0.02, 0.15, 0.19, 20) for s in (-1, 1)]
    nose = _polygon((-0.13, 0.36), (0.13, 0.36), (0, 0.54))
    whiskers = [
        _polygon((s * 0.3, 0.56), (s * 0.98, 0.46 + d), (s * 0.98, 0.53 + d)) for s in (-1, 1) for d in (0, 0.2)
    ]
    return (
        *((0.0, ear) for ear in ears),
        (0.0, face),
        *((0.8, part) for part in (*eyes, nose)),
        *((0.5, whisker) for whisker in whiskers),
    )


def _teapot() -> tuple[Part, ...]:
    return (
        (0.0, _band(0.68, 0.12, 0.36, 0.19, -0.3, 0.3)),
        (0.0, _polygon((-0.5, 0.55), (-0.66, 0.2), (-1.02, -0.32), (-0.8, -0.4), (-0.3, 0.05))),
        (0.0, _ellipse(0.02, 0.28, 0.7, 0.6)),
        (0.4, _arc(0.02, -0.22, 0.44, 0.26, 0.5, 1)),
        (0.4, _ellipse(0.02, -0.56, 0.13, 0.13, 20)),
        (0.3, _box(-0.42, 0.82, 0.46, 0.95)),
    )


def _flower() -> tuple[Part, ...]:
    turns = 2 * np.pi * (np.arange(6) / 6 - 0.25)
    petals = tuple((0.0, _ellipse(0.58 * np.cos(t), 0.58 * np.sin(t), 0.4, 0.4)) for t in turns)
    return (*petals, (0.6, _ellipse(0, 0, 0.3, 0.3)))
