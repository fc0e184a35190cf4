"""Scenes in words: the same picture is told in many ways, shortly or in full."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from types import MappingProxyType

from .scenes import Pair, Scene

SHAPE_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "circle": ("circle", "disc", "round spot"),
        "square": ("square", "box"),
        "triangle": ("triangle",),
        "star": ("star",),
        "heart": ("heart",),
        "ring": ("ring", "hoop", "donut"),
        "house": ("house", "cottage", "home"),
        "tree": ("tree", "fir tree", "pine tree"),
        "boat": ("boat", "sailing boat", "sailboat", "ship"),
        "cat": ("cat", "cat face", "kitten"),
        "teapot": ("teapot", "tea pot"),
        "flower": ("flower", "blossom"),
    }
)
"""Shape -> its names, the plainest first."""
SIZE_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"small": ("small", "little", "tiny"), "medium": ("medium-sized",), "large": ("large", "big", "huge")}
)
PREFIXES = (
    "", "", "", "", "a photo of ", "a picture of ", "a drawing of ", "a painting of ", "an image of ",
    "an illustration of ", "clip art of ", "an icon of ", "a cartoon of ", "a render of ", "a close-up of ",
)  # fmt: skip
ENDINGS = (
    "",
    "",
    "",
    "",
    "",
    "",
    ", simple shapes",
    ", flat colors",
    ", digital art",
    ", high quality",
    ", minimalist",
)
BESIDE = (
    ("{0} to the left of {1}", False), ("{0} left of {1}", False), ("{1} to the right of {0}", False),
    ("{0} next to {1}", True), ("{0} beside {1}", True), ("{0} and {1}", True), ("{0} and {1} side by side", True),
)  # fmt: skip
ABOVE = (
    ("{0} above {1}", False), ("{0} over {1}", False), ("{1} below {0}", False), ("{1} under {0}", False),
    ("{0} and {1}", True), ("{0} with {1} below it", False), ("{0} on top of {1}", False),
)  # fmt: skip
"""Phrases, and whether the two objects may change places in them."""
UNNAMED_SHARE = 0.06
"""Of captions of one object, those that leave its colour or its shape open."""


def caption(scene: Scene, random: Random, *, unnamed: float = UNNAMED_SHARE) -> str:
    """One of many captions of a scene; what it leaves out may be anything.

    Args:
        unnamed: of captions of one object, the share that leaves its colour or its shape open.
    """
    middle = _one(scene, random, unnamed) if len(scene.things) == 1 else _two(scene, random)
    ground = _background(scene, random) if random.random() < 0.45 else ""
    return f"{random.choice(PREFIXES)}{middle}{ground}{random.choice(ENDINGS)}"


def full(scene: Scene) -> str:
    """The caption that tells all of a scene, in the plainest words."""
    names = [f"{thing.colour} {SHAPE_WORDS[thing.shape][0]}" for thing in scene.things]
    if len(names) == 1:
        middle = f"{article(f'{scene.size} {names[0]}')} {_place(scene.place)}"
    else:
        form = "{0} to the left of {1}" if scene.relation == "beside" else "{0} above {1}"
        middle = form.format(*map(article, names))
    return f"{middle} on {article(f'{scene.texture} {scene.background} background')}"


def plain(*pairs: Pair) -> str:
    """One or two objects and nothing else: "a red boat and a blue star"."""
    return " and ".join(article(f"{colour} {SHAPE_WORDS[shape][0]}") for colour, shape in pairs)


def article(noun: str) -> str:
    """The noun with a or an."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _one(scene: Scene, random: Random, unnamed: float) -> str:
    (thing,) = scene.things
    colour, shape, open_part = thing.colour, _name(thing.shape, random), random.random()
    if open_part < unnamed / 2:
        noun = shape
    elif open_part < unnamed:
        noun = f"{colour} {random.choice(('shape', 'object', 'thing'))}"
    else:
        noun = f"{colour} {shape}"
    if random.random() < 0.4:
        noun = f"{random.choice(SIZE_WORDS[scene.size])} {noun}"
    named = random.choice((article(noun), article(noun), article(noun), f"the {noun}", noun, f"one {noun}"))
    return f"{named} {_place(scene.place)}" if random.random() < 0.35 else named


def _two(scene: Scene, random: Random) -> str:
    nouns = [article(f"{thing.colour} {_name(thing.shape, random)}") for thing in scene.things]
    form, symmetric = random.choice(BESIDE if scene.relation == "beside" else ABOVE)
    if symmetric and random.random() < 0.5:
        nouns.reverse()
    return form.format(*nouns)


def _name(shape: str, random: Random) -> str:
    """The plainest name half of the time."""
    names = SHAPE_WORDS[shape]
    return names[0] if random.random() < 0.5 else random.choice(names)


def _place(place: tuple[str, str]) -> str:
    column, row = place
    if place == ("center", "center"):
        return "in the center"
    if "center" in place:
        side = row if column == "center" else column
        return f"at the {side}" if side == row else f"on the {side}"
    return f"in the {row} {column} corner"


def _background(scene: Scene, random: Random) -> str:
    texture = f"{scene.texture} " if scene.texture != "plain" or random.random() < 0.3 else ""
    ground = f"{texture}{scene.background} background"
    return random.choice((f" on {article(ground)}", f", {ground}", f" in front of {article(ground)}"))
