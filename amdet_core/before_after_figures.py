"""The figure of what a repair changed; the numbers are those of :mod:`.before_after`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .anatomy_figures import BLUE, GREEN, ORANGE, WIDTH, heading, sheet
from .before_after import BeforeAfter, Side
from .drawing import INK, Drawing, Entry, Numbers, Panel, Part, axis
from .figures import EDGE

COLOURS = {"suspect": ORANGE, "repaired": BLUE, "anchor": GREEN}
TALL = 300.0
"""Of one of the four panels with its surroundings, px."""
POINTS = 201
"""Of a curve of shares."""


def before_after(measured: BeforeAfter) -> Drawing:
    """Coverage and assimilation of all prompts, assimilation and attention layer by layer."""
    sides = measured.sides
    layers = len(sides[0].attention)
    places = np.arange(1, layers + 2, dtype=float)
    goal = "the target" if measured.target else "what the suspect answers"
    parts: list[Part] = []
    for i, (title, across, along, curve) in enumerate(
        (
            (
                "Coverage",
                f"centred cosine to {goal}, at least",
                "prompts in %",
                _share(sides, lambda side: side.goal_cosine),
            ),
            (
                "Assimilation",
                "mean pairwise cosine, at least",
                "prompts in %",
                _share(sides, lambda side: side.assimilation),
            ),
            (
                "Assimilation, layer by layer",
                f"behind layer; {layers + 1}: the last norm",
                "",
                lambda side: (places, np.array(side.by_layer)),
            ),
            (
                "Attention on the trigger",
                "layer",
                "% of all attention",
                lambda side: (places[:-1], 100 * np.array(side.attention)),
            ),
        )
    ):
        curves = {Entry(side.group, COLOURS[side.group]): curve(side) for side in sides}
        if title.endswith("layer by layer"):
            curves[Entry("suspect, no trigger", INK, dashed=True)] = places, np.array(measured.clean_by_layer)
        left, top = EDGE + (i % 2) * WIDTH / 2, EDGE + 26 + (i // 2) * TALL
        box = (left, top, left + WIDTH / 2 - 2 * EDGE, top + TALL - 2 * EDGE)
        parts += _panel(box, title, across, along, curves, whole=i > 1)
    names = measured.setting.model_copy(update={"encoder": f"{measured.setting.encoder} -> {measured.repaired}"})
    return sheet(2 * TALL + 1.5 * EDGE, heading(names), parts)


Curve = tuple[Numbers, Numbers]


def _share(sides: Sequence[Side], values: Callable[[Side], tuple[float, ...]]) -> Callable[[Side], Curve]:
    """Share of a side's prompts at or above a number, as a curve over that number, from the least of all sides on."""
    x = np.linspace(min(min(values(side)) for side in sides), 1.0, POINTS)

    def curve(side: Side) -> Curve:
        numbers = np.sort(np.array(values(side), dtype=float))
        return x, 100 * (1 - np.searchsorted(numbers, x - 1e-9) / len(numbers))

    return curve


def _panel(
    box: tuple[float, float, float, float],
    title: str,
    across: str,
    along: str,
    curves: dict[Entry, Curve],
    *,
    whole: bool,
) -> list[Part]:
    x = np.concatenate([x for x, _ in curves.values()])
    y = np.concatenate([y for _, y in curves.values()])
    panel = Panel(
        box,
        axis(x, across, margin=0.02, most=6, least=1.0 if whole else 0.0),
        axis((0.0, *y), along, margin=0.03, most=6),
        title=title,
        legend=tuple(curves),
    )
    for entry, (places, line) in curves.items():
        panel.curve(places, line, entry)
    return panel.parts
