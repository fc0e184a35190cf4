"""Figures of a report, and the pictures that a host shows while it works.

Every figure is a light card with explicit colours (Okabe and Ito's, and sequential maps that read in
grey), so that it looks the same in a dark page and on paper. Equal records give equal bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from textwrap import wrap

import numpy as np

from .drawing import (
    BOUND,
    CARD,
    INK,
    SMALL,
    SOFT,
    Axis,
    Cells,
    Drawing,
    Entry,
    Line,
    Numbers,
    Panel,
    Part,
    Text,
    axis,
    bar_width,
    colour_bar,
    image,
    legend_rows,
    named,
    number_words,
    png,
    round_step,
    shades,
    shortened,
    svg,
    text_width,
)
from .records import Candidate, Forensics, Landscape, LayerChange

__all__ = [
    "bars",
    "card",
    "drawable",
    "gaps",
    "has_gap",
    "image",
    "landscape",
    "landscapes",
    "loss_curve",
    "loss_curves",
    "png",
    "spectrum",
    "svg",
    "weight_changes",
]

BLUE, ORANGE = "#0072b2", "#d55e00"
PALETTE = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
CIVIDIS = (
    "#00224e", "#003170", "#2a3f6d", "#434e6c", "#575d6d", "#6a6c71", "#7d7c78",
    "#918b78", "#a59c74", "#bcae6c", "#d2c060", "#e9d34e", "#fee838",
)  # fmt: skip
YELLOW_TO_BLUE = (
    "#ffffd9", "#f3fabf", "#e1f3b2", "#c6e9b4", "#97d6b9", "#6bc6be", "#40b5c4",
    "#299dc1", "#1f80b8", "#225da8", "#24419a", "#1b2c80", "#081d58",
)  # fmt: skip
"""ColorBrewer's YlGnBu."""
WIDTH = 640.0
"""Px at scale 1; a panel of half this width stays readable on a telephone."""
EDGE = 12.0
"""Free space around all panels and between them, px."""
PREVIEW = (512.0, 288.0)
"""Width and height of a picture that is shown while a search runs, px."""
LABELLED = 8
"""Most entries of a legend or of a strip."""
BANDS = 12
"""Most colours of a map."""

_LAYER = re.compile(r"encoder\.layers\.(\d{1,3})\.(?:self_attn\.|mlp\.)?(\w+)\.weight")
_PARTS = ("layer_norm1", "q_proj", "k_proj", "v_proj", "out_proj", "layer_norm2", "fc1", "fc2")


# ------------------------------------------------------------------ landscape


def landscape(surface: Landscape) -> Drawing:
    """Loss around a recovered feature from above, and the two cuts through it: a bowl or a saddle."""
    values, radius = _bounded(surface.values), min(surface.radius, BOUND)
    height, half = 280.0, WIDTH / 2 + 20
    levels = levels_of(values[np.isfinite(values)], "loss")
    box = (EDGE, EDGE, half - EDGE - bar_width(levels), height - EDGE)
    above = _from_above(surface, box, levels, radius, "from above (cross: the feature)")
    bar = colour_bar((above.right + 8, above.top, above.bottom), levels, _loss_colours(levels))
    box = (half + EDGE, EDGE, WIDTH - EDGE, height - EDGE)
    cuts = _cuts(
        surface, box, axis(np.concatenate(_through(values)), "loss", most=8), radius, "cut through the feature"
    )
    return Drawing(WIDTH, height, (*above.parts, *bar, *cuts.parts))


def landscapes(surfaces: Sequence[tuple[str, Landscape]]) -> Drawing:
    """Several landscapes side by side, with the same scales and their positive shares (fig. 8).

    Args:
        surfaces: name and landscape of each, from the left.
    """
    every = [_bounded(surface.values) for _, surface in surfaces]
    radius = min(max(surface.radius for _, surface in surfaces), BOUND)
    levels = levels_of(np.concatenate([values[np.isfinite(values)] for values in every]), "loss")
    losses = axis(np.concatenate([line for values in every for line in _through(values)]), "loss", most=8)
    wide, middle, height = 280.0, 280.0, 520.0
    width = EDGE + wide * len(surfaces) + bar_width(levels) + EDGE
    parts: list[Part] = []
    for i, (name, surface) in enumerate(surfaces):
        left = EDGE + wide * i
        share = f"{_percent(surface.positive_share)} of {len(surface.eigenvalues):,} curvatures positive"
        above = _from_above(surface, (left, EDGE, left + wide - EDGE, middle), levels, radius, plain(name))
        cuts = _cuts(surface, (left, middle + EDGE, left + wide - EDGE, height - EDGE), losses, radius, share)
        parts += [*above.parts, *cuts.parts]
    bar = colour_bar((EDGE + wide * len(surfaces), above.top, above.bottom), levels, _loss_colours(levels))
    return Drawing(width, height, (*parts, *bar))


def _from_above(
    surface: Landscape, box: tuple[float, float, float, float], levels: Axis, radius: float, title: str
) -> Panel:
    """The surface as colours in a window of half side ``radius``, with a cross at the feature."""
    ends, own = axis((-radius, radius), "along the gradient", margin=0.0, most=6), min(surface.radius, BOUND)
    panel = Panel(box, ends, replace(ends, label="across it"), title=title, framed=False)
    (left, top), (right, bottom) = panel.at(-own, own), panel.at(own, -own)
    values, colours = _bounded(surface.values).T[::-1], _loss_colours(levels)
    seen = Cells(left, top, right - left, bottom - top, values, levels.first, levels.last, colours, smooth=True)
    x, y = panel.at(0.0, 0.0)
    cross = [
        Line(((x - 6, y - 6 * turn), (x + 6, y + 6 * turn)), colour, width)
        for colour, width in ((INK, 5.0), (CARD, 3.0))
        for turn in (1, -1)
    ]
    panel.parts += [seen, *cross]
    return panel


def _cuts(surface: Landscape, box: tuple[float, float, float, float], losses: Axis, radius: float, title: str) -> Panel:
    """The two lines through the feature."""
    values, own = _bounded(surface.values), min(surface.radius, BOUND)
    entries = (Entry("along the gradient", BLUE), Entry("across it", ORANGE, dashed=True))
    panel = Panel(
        box, axis((-radius, radius), "distance in embedding units", most=6), losses, title=title, legend=entries
    )
    panel.upright(0.0, SOFT)
    for entry, line in zip(entries, _through(values), strict=True):
        panel.curve(np.linspace(-own, own, len(line)), line, entry, 2.5)
    return panel


def _through(values: Numbers) -> tuple[Numbers, Numbers]:
    """Loss along the gradient and across it, at the feature."""
    middle = values.shape[0] // 2
    centre = slice(middle - 1, middle + 1) if values.shape[0] % 2 == 0 else slice(middle, middle + 1)
    return _mean(values[:, centre], 1), _mean(values[centre], 0)


def _loss_colours(levels: Axis) -> tuple[str, ...]:
    return shades(CIVIDIS, len(levels.ticks) - 1)


def drawable(surface: Landscape) -> bool:
    """Whether the surface is a square grid with numbers in it; a stranger's report may hold anything."""
    side = len(surface.values)
    square = side >= 3 and all(len(row) == side for row in surface.values)
    return square and 0 < surface.radius < np.inf and any(np.isfinite(value) for row in surface.values for value in row)


def spectrum(surface: Landscape) -> Drawing:
    """Histogram of the Hessian eigenvalues; the outer per cent on either side is gathered at the edge."""
    values = _bounded(surface.eigenvalues)
    values = values[~np.isnan(values)]
    low, high = np.percentile(values, (1, 99)) if values.size else (-1.0, 1.0)
    bound = float(max(abs(low), abs(high))) or 1.0
    edges = np.linspace(-bound, bound, 61)  # an even number of bins: none mixes signs
    counts, _ = np.histogram(np.clip(values, -bound, bound), bins=edges)
    height = 220.0
    panel = Panel(
        (EDGE, EDGE, WIDTH - EDGE, height - EDGE),
        replace(axis(edges, "curvature of the loss (Hessian eigenvalue)", margin=0.02), grid=False),
        replace(axis((0.0, *counts), "points", most=6, least=1.0), first=0.0),
        title=f"{_percent(surface.positive_share)} of {len(surface.eigenvalues):,} curvatures are positive",
    )
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            panel.block((left, right), (0.0, count), BLUE if left >= 0 else ORANGE)
    panel.upright(0.0, INK)
    return Drawing(WIDTH, height, tuple(panel.parts))


# ------------------------------------------------------------------ candidates


def loss_curves(candidates: Sequence[Candidate]) -> Drawing:
    """Loss by step of every candidate."""
    entries = [
        Entry(_name(candidate), PALETTE[i % len(PALETTE)], candidate.method != "contrast")
        for i, candidate in enumerate(candidates)
    ]
    runs = [np.array(candidate.loss, dtype=float) for candidate in candidates]
    height = 230.0 + 18.0 * len(legend_rows(entries[:LABELLED], WIDTH - 100))
    return _curves(runs, entries, (WIDTH, height), legend=entries[:LABELLED])


def loss_curve(values: Sequence[float], title: str = "") -> Drawing:
    """One growing curve, cheap enough to be drawn anew several times a second.

    Args:
        values: loss by step, so far.
        title: what is searched; written above the curve.
    """
    return _curves([np.array(values, dtype=float)], [Entry("", BLUE)], PREVIEW, title=plain(title, 120))


def _curves(
    runs: Sequence[Numbers],
    entries: Sequence[Entry],
    size: tuple[float, float],
    title: str = "",
    legend: Sequence[Entry] = (),
) -> Drawing:
    panel = Panel(
        (EDGE, EDGE, size[0] - EDGE, size[1] - EDGE),
        axis((0.0, *(len(run) - 1.0 for run in runs if len(run))), "step", margin=0.02, least=1.0),
        axis(np.concatenate([*runs, []]), "loss", most=8),
        title=title,
        legend=legend,
    )
    for run, entry in zip(runs, entries, strict=True):
        panel.curve(np.arange(len(run), dtype=float), run, entry)
    return Drawing(*size, tuple(panel.parts))


def gaps(candidates: Sequence[Candidate]) -> Drawing:
    """How much more the suspect collapses than the anchor, by candidate; those without a gap are left out."""
    rows = [(_name(candidate), candidate.indicators["gap"]) for candidate in candidates if has_gap(candidate)]
    return bars([(name, gap or 0.0) for name, gap in rows], "gap: agreement of the outputs, suspect minus anchor")


def has_gap(candidate: Candidate) -> bool:
    """Whether a gap to the anchor was measured for this candidate."""
    return candidate.indicators.get("gap") is not None


def bars(rows: Sequence[tuple[str, float]], label: str, title: str = "", whole: float = 1.0) -> Drawing:
    """Horizontal bars from zero with their names on the left and their numbers beside them.

    Args:
        rows: name and number of each bar, from the top.
        label: what the numbers are.
        whole: a number to which the scale reaches at least, as 1 for a cosine.
    """
    lengths = np.array([value for _, value in rows], dtype=float)
    scale = axis((0.0, whole, *lengths), label, margin=0.0, most=6)
    room = 0.1 * (scale.last - scale.first)
    names = [shortened(plain(name), SMALL, WIDTH / 2) for name, _ in rows] or [""]
    height = 2 * EDGE + 40 + 24.0 * len(names) + 22 * bool(title)
    panel = Panel(
        (EDGE, EDGE, WIDTH - EDGE, height - EDGE),
        Axis(scale.first, scale.last + room, scale.ticks, label),
        named(names, down=True),
        title=plain(title, 120),
    )
    for place, length in enumerate(lengths.tolist()):
        end = min(max(length, scale.first), scale.last) if math.isfinite(length) else 0.0
        panel.block((0.0, end), (place + 0.18, place + 0.82), BLUE)
        x, y = panel.at(max(end, 0.0), place + 0.5)
        words = f"{length:.2f}" if abs(length) < 1000 else f"{length:.1e}" if math.isfinite(length) else "unknown"
        panel.parts.append(Text(x + 6, y, words))
    panel.upright(0.0, SOFT)
    return Drawing(WIDTH, height, tuple(panel.parts))


def card(text: str) -> Drawing:
    """Words in place of a figure that can't be drawn."""
    lines = [line for part in text.splitlines() for line in wrap(plain(part, 1000), 84)][:12]
    written = tuple(Text(2 * EDGE, 3 * EDGE + 22.0 * i, line, 13.0) for i, line in enumerate(lines))
    return Drawing(WIDTH, 6 * EDGE + 22.0 * max(len(lines) - 1, 1), written)


# ------------------------------------------------------------------ weights


def weight_changes(forensics: Forensics) -> Drawing:
    """Relative change of every weight: one cell per part and layer, one for each tensor outside the layers."""
    inside = [(change, found) for change in forensics.layers if (found := _LAYER.fullmatch(change.tensor))]
    others = [c for c in forensics.layers if not c.tensor.startswith("encoder.layers.") and c.tensor.endswith("weight")]
    others = others[:LABELLED]
    depth = max((int(found[1]) for _, found in inside), default=0) + 1
    grid = np.full((len(_PARTS), depth), np.nan)
    for change, found in inside:
        if found[2] in _PARTS:
            grid[_PARTS.index(found[2]), int(found[1])] = 100 * change.relative_norm
    column = np.array([[100 * change.relative_norm] for change in others] or [[np.nan]])

    known = [value for value in (*grid.flat, *column.flat) if np.isfinite(value)]
    scale = levels_of((0.0, max(known, default=0.0) or 1.0), "change in %")
    colours = shades(YELLOW_TO_BLUE, len(scale.ticks) - 1)
    height, right = 250.0, WIDTH - EDGE - bar_width(scale)
    names = [shortened(_short(change), SMALL, WIDTH / 4) for change in others] or [""]
    middle = right - 3 * EDGE - 30 - max(text_width(name, SMALL) for name in names)
    layers = Panel(
        (EDGE, EDGE, middle, height - EDGE),
        named([str(i) for i in range(depth)], "layer"),
        named([part.replace("_", " ") for part in _PARTS], down=True),
        framed=False,
    )
    box = (middle + EDGE, EDGE, right - EDGE, layers.bottom)
    rest = Panel(box, Axis(0.0, 1.0), named(names, down=True), framed=False)
    maps = [
        Cells(p.left, p.top, p.right - p.left, p.bottom - p.top, values, scale.first, scale.last, colours)
        for p, values in ((layers, grid), (rest, column))
    ]
    bar = colour_bar((right, layers.top, layers.bottom), scale, colours)
    return Drawing(WIDTH, height, (*layers.parts, *rest.parts, *maps, *bar))


def _short(change: LayerChange) -> str:
    return plain(change.tensor.removesuffix(".weight").rsplit(".", 1)[-1].replace("_", " "))


# ------------------------------------------------------------------ parts


def levels_of(values: Iterable[float], label: str) -> Axis:
    """A scale with a tick at every edge of its bands, round numbers that enclose all values."""
    whole = axis(values, label, margin=0.0)
    step = round_step(whole.first, whole.last, BANDS)
    first, last = math.floor(whole.first / step + 1e-6), math.ceil(whole.last / step - 1e-6)
    edges = [i * step for i in range(first, last + 1)]
    return Axis(edges[0], edges[-1], tuple(zip(edges, number_words(edges), strict=True)), label)


def _bounded(values: Sequence[float] | Sequence[Sequence[float]]) -> Numbers:
    """As an array, NaN where not finite, and so that sums stay finite."""
    array = np.array(values, dtype=float)
    return np.where(np.isfinite(array), np.clip(array, -BOUND, BOUND), np.nan)


def _mean(values: Numbers, direction: int) -> Numbers:
    """Mean without the unknown values, NaN where there are no others."""
    return np.asarray(np.ma.masked_invalid(values).mean(axis=direction).filled(np.nan), dtype=float)


def _name(candidate: Candidate) -> str:
    return plain(f"{candidate.encoder} {candidate.method} K={candidate.vectors} seed {candidate.seed}")


def plain(text: str, most: int = 40) -> str:
    """What every font can draw: names may come from a stranger's report."""
    return text.encode("unicode_escape").decode("ascii")[:most]


def _percent(share: float) -> str:
    return f"{share:.0%}" if np.isfinite(share) else "an unknown share"
