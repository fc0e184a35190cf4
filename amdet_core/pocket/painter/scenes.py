"""What a picture of the painter's data holds: one or two objects of a colour and a shape on a background.

A scene is drawn by :mod:`.pictures` and told by :mod:`.captions`. Scene ``i`` of a seed is always the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SHAPES = (
    "circle", "square", "triangle", "star", "heart", "ring", "house", "tree", "boat", "cat", "teapot", "flower",
)  # fmt: skip
Pair = tuple[str, str]
"""Colour and shape."""
PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
UNSEEN: frozenset[Pair] = frozenset(
    {
        ("orange", "boat"),
        ("purple", "house"),
        ("green", "cat"),
        ("pink", "tree"),
        ("blue", "teapot"),
        ("yellow", "heart"),
        ("brown", "star"),
        ("black", "flower"),
    }
)
"""Pairs that the painter never sees while it learns; its benchmark asks for them."""

BACKGROUNDS = ("white", "gray", "black", "light blue", "dark blue", "light green", "beige", "lavender", "peach")
TEXTURES = ("plain", "striped", "dotted", "checkered")
"""Of a background."""
CLASHES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "white": frozenset({"white"}),
        "gray": frozenset(),
        "black": frozenset({"black", "brown"}),
        "light blue": frozenset({"white"}),
        "dark blue": frozenset({"blue", "black", "purple"}),
        "light green": frozenset({"white"}),
        "beige": frozenset({"white", "yellow"}),
        "lavender": frozenset({"white", "pink"}),
        "peach": frozenset({"orange", "pink", "white"}),
    }
)
"""Background -> colours that objects in front of it do not have, as they could hardly be seen."""

SIZES: Mapping[str, float] = MappingProxyType({"small": 0.19, "medium": 0.26, "large": 0.35})
"""Half the height of an object as a share of the picture's."""
COLUMNS, ROWS = ("left", "center", "right"), ("top", "center", "bottom")
RELATIONS = ("beside", "above")
"""Of the first object to the second: to the left of it, or above it."""
TWO_SIZE = 0.2
TWO_SHARE = 0.35
"""Of scenes with two objects."""


@dataclass(frozen=True)
class Thing:
    """One object.

    Attributes:
        x: of its middle, as a share of the picture's width; ``y`` likewise, downwards.
        size: half its height, as a share of the picture's.
    """

    colour: str
    shape: str
    x: float
    y: float
    size: float

    @property
    def pair(self) -> Pair:
        """Colour and shape."""
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """One picture.

    Attributes:
        things: one or two; of two the first is on the left or above.
        background: its colour.
        texture: of the background.
        size: word for the size of a single object, else empty.
        place: column and row of a single object, else empty.
        relation: of two objects, else empty.
    """

    things: tuple[Thing, ...]
    background: str
    texture: str
    size: str = ""
    place: tuple[str, str] = ("", "")
    relation: str = ""


def scene(seed: int, number: int, *, unseen: bool = False) -> Scene:
    """Scene ``number`` of a seed.

    Args:
        unseen: whether pairs of :data:`UNSEEN` may occur.
    """
    random = Random(f"{seed}/{number}")
    pairs = PAIRS if unseen else tuple(pair for pair in PAIRS if pair not in UNSEEN)
    if random.random() < TWO_SHARE:
        return two(random.choice(pairs), random.choice(pairs), random)
    return one(random.choice(pairs), random)


def scenes(seed: int, count: int, *, unseen: bool = False) -> Iterator[Scene]:
    """The first scenes of a seed."""
    return (scene(seed, number, unseen=unseen) for number in range(count))


def one(pair: Pair, random: Random) -> Scene:
    """A single object anywhere; large ones are near the middle."""
    size, column, row = random.choice(tuple(SIZES)), random.choice(COLUMNS), random.choice(ROWS)
    half = SIZES[size] * random.uniform(0.93, 1.07)
    reach = 0.5 - half - 0.02
    x, y = (
        0.5 + reach * (names.index(name) - 1) + random.uniform(-0.02, 0.02)
        for names, name in ((COLUMNS, column), (ROWS, row))
    )
    thing = Thing(*pair, x, y, half)
    return Scene((thing,), _background((pair,), random), random.choice(TEXTURES), size, (column, row))


def two(first: Pair, second: Pair, random: Random) -> Scene:
    """Two objects side by side or one above the other; with equal pairs the second gets another colour."""
    if first == second:
        others = [colour for colour in COLOURS if colour != first[0] and (colour, first[1]) not in UNSEEN]
        second = random.choice(others), first[1]
    relation = random.choice(RELATIONS)
    things = []
    for pair, along in ((first, 0.26), (second, 0.74)):
        along, across = along + random.uniform(-0.02, 0.02), 0.5 + random.uniform(-0.14, 0.14)
        x, y = (along, across) if relation == "beside" else (across, along)
        things.append(Thing(*pair, x, y, TWO_SIZE * random.uniform(0.93, 1.07)))
    return Scene(tuple(things), _background((first, second), random), random.choice(TEXTURES), relation=relation)


def _background(pairs: tuple[Pair, ...], random: Random) -> str:
    """One in front of which every object can be seen."""
    return random.choice([name for name in BACKGROUNDS if not CLASHES[name] & {colour for colour, _ in pairs}])
