"""Drawings as pictures to try things out with: one object each, its shape is the class."""

from __future__ import annotations

from random import Random

import torch
from PIL import Image

from ..pocket.painter.pictures import draw
from ..pocket.painter.scenes import COLOURS, SHAPES, Scene, one
from ..progress import Progress, silent
from .pictures import Pictures, to_tensor


def drawn(count: int, seed: int, progress: Progress = silent) -> Pictures:
    """So many drawings, every class as often as any other, in turn; those of a seed are always the same."""
    classes = tuple(sorted(SHAPES))
    pixels = []
    for number in range(count):
        scene = _large(classes[number % len(classes)], Random(f"pictures {seed}/{number}"))
        pixels.append(to_tensor(Image.fromarray(draw(scene))))
        progress("draw", number + 1, count)
    labels = torch.arange(count) % len(classes)
    return Pictures(torch.stack(pixels), labels, classes)


def _large(shape: str, random: Random) -> Scene:
    """A large object of any colour on any background."""
    while (scene := one((random.choice(COLOURS), shape), random)).size != "large":
        pass
    return scene
