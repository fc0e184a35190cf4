"""Figures of a report as drawings, with explicit colours (Okabe and Ito's, and sequential maps that read in grey).

Equal records give equal bytes, and the same card looks alike in a dark page, on paper and in a graph.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import wrap

import numpy as np

from .canvas import image, png, svg
from .drawing import CARD, Array, Box, Cells, Curve, Drawing, Panel, Words, ticks
from .records import Candidate, Forensics, Landscape, LayerChange

__all__ = [
    "bars", "card", "drawable", "gaps", "has_gap", "image", "landscape", "loss_curve", "loss_curves", "png",
    "spectrum", "svg", "weight_changes",
]  # fmt: skip

BLUE, ORANGE = "#0072b2", "#d55e00"
PALETTE = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
CIVIDIS = (
    "#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
)  # fmt: skip
YELLOW_GREEN_BLUE = (
    "#ffffd9", "#f1fabb", "#d6efb3", "#abdeb7", "#74c9bd", "#43b4c4", "#2499c1", "#2073b2", "#234ba0", "#19296c",
)  # fmt: skip
"""Ten colours each of the maps cividis and YlGnBu."""
WIDTH = 690.0
"""Pixels; a panel of half this width stays readable on a telephone."""
LABELLED = 8
"""Most entries of a legend or of a strip."""
BANDS = 12
FINE = 144
"""Cells along each side of a drawn landscape, whatever its grid."""

_LAYER = re.compile(r"encoder\.layers\.(\d{1,3})\.(?:self_attn\.|mlp\.)?(\w+)\.weight")
_PARTS = ("layer_norm1", "q_proj", "k_proj", "v_proj", "out_proj", "layer_norm2", "fc1", "fc2")


# ------------------------------------------------------------------ landscape


def landscape(surface: Landscape) -> Drawing:
    """Loss around a recovered feature from above, and the two cuts through it: a bowl or a saddle."""
    values = np.asarray(surface.values, dtype=float)
    radius, side = surface.radius, len(values)
    steps = np.linspace(-radius, radius, side)
    low, high = _range(values)
    colours = _blend(CIVIDIS, BANDS)
    inner = (-radius, radius)
    above = Panel(
        (62, 32, 258, 236),
        inner,
        inner,
        (
            Cells(_finer(values.T), (-radius, -radius, radius, radius), low, high, colours),
            *_cross(radius * 0.05),
        ),
        title="seen from above (x: the feature)",
        xlabel="along the gradient",
        ylabel="across it",
        bare=True,
    )
    scale = Panel(
        (332, 32, 11, 236),
        (0, 1),
        (low, high),
        (Cells(np.linspace(low, high, BANDS)[:, None], (0, low, 1, high), low, high, colours),),
        xticks=(),
        yticks=ticks(low, high, 6),
        ylabel="loss",
        bare=True,
        right=True,
    )
    middle = side // 2
    centre = slice(middle - 1, middle + 1) if side % 2 == 0 else slice(middle, middle + 1)
    along, across = values[:, centre].mean(axis=1), values[centre].mean(axis=0)
    cuts = Panel(
        (464, 32, 210, 236),
        inner,
        _padded(_range(np.stack((along, across)))),
        (
            Curve(steps, along, BLUE, "along the gradient"),
            Curve(steps, across, ORANGE, "across it", dashed=True),
        ),
        title="cut through the feature",
        xlabel="distance in embedding units",
        ylabel="loss",
        grid="both",
        rule=0.0,
    )
    return Drawing(WIDTH, 316, (above, scale, cuts))


def drawable(surface: Landscape) -> bool:
    """Whether the surface is a square grid with numbers in it; a stranger's report may hold anything."""
    side = len(surface.values)
    square = side >= 3 and all(len(row) == side for row in surface.values)
    return square and 0 < surface.radius < np.inf and any(np.isfinite(value) for row in surface.values for value in row)


def spectrum(surface: Landscape) -> Drawing:
    """Histogram of the Hessian eigenvalues; the outer per cent on either side is gathered at the edge."""
    values = np.asarray([value for value in surface.eigenvalues if np.isfinite(value)], dtype=float)
    low, high = np.percentile(values, (1, 99)) if values.size else (-1.0, 1.0)
    bound = float(max(abs(low), abs(high))) or 1.0
    edges = np.linspace(-bound, bound, 61)  # an even number of bins: none mixes signs
    counts, _ = np.histogram(np.clip(values, -bound, bound), bins=edges)
    boxes = [
        Box(float(left), 0.0, float(right), float(count), BLUE if left >= 0 else ORANGE)
        for left, right, count in zip(edges, edges[1:], counts, strict=False)
        if count
    ]
    panel = Panel(
        (62, 32, 612, 180),
        (-bound, bound),
        (0.0, float(max(counts.max(), 1)) * 1.05),
        tuple(boxes),
        title=f"{_percent(surface.positive_share)} of {len(surface.eigenvalues):,} curvatures are positive",
        xlabel="curvature of the loss (Hessian eigenvalue)",
        ylabel="points",
        grid="y",
        rule=0.0,
    )
    return Drawing(WIDTH, 258, (panel,))


# ------------------------------------------------------------------ candidates


def loss_curves(candidates: Sequence[Candidate]) -> Drawing:
    """Loss by step of every candidate."""
    curves = []
    for i, candidate in enumerate(candidates):
        loss = np.asarray(candidate.loss, dtype=float)
        name = _name(candidate) if i < LABELLED else ""
        dashed = candidate.method != "contrast"
        curves.append(Curve(np.arange(len(loss), dtype=float), loss, PALETTE[i % len(PALETTE)], name, dashed, 1.6))
    return Drawing(WIDTH, 270, (_history(curves, (62, 18, 612, 206)),))


def loss_curve(values: Sequence[float], title: str = "") -> Drawing:
    """One growing curve, quick enough to be drawn while it grows."""
    y = np.asarray(values, dtype=float)
    curve = Curve(np.arange(len(y), dtype=float), y, BLUE)
    return Drawing(480, 300, (_history([curve], (62, 34, 400, 218), title),))


def _history(curves: Sequence[Curve], place: tuple[float, float, float, float], title: str = "") -> Panel:
    last = max((len(curve.x) for curve in curves), default=1) - 1
    every = np.concatenate([curve.y for curve in curves]) if curves else np.zeros(1)
    return Panel(
        place,
        (0.0, float(max(last, 1))),
        _padded(_range(every)),
        tuple(curves),
        title=_ascii(title),
        xlabel="step",
        ylabel="loss" if not title else "",
        grid="both",
    )


def gaps(candidates: Sequence[Candidate]) -> Drawing:
    """How much more the suspect collapses than the anchor, by candidate; those without a gap are left out."""
    rows = [
        (_name(candidate), float(candidate.indicators["gap"] or 0.0)) for candidate in candidates if has_gap(candidate)
    ]
    return bars(rows, "gap: agreement of the outputs, suspect minus anchor")


def bars(rows: Sequence[tuple[str, float]], label: str) -> Drawing:
    """Named numbers up to 1 as horizontal bars, the first at the top."""
    count = max(len(rows), 1)
    names = [(count - 0.5 - i, _ascii(name)) for i, (name, _) in enumerate(rows)]
    items: list[Box | Words] = []
    for (place, _), (_, value) in zip(names, rows, strict=True):
        items.append(Box(min(value, 0.0), place - 0.33, max(value, 0.0), place + 0.33, BLUE))
        items.append(Words(max(value, 0.0) + 0.012, place, f"{value:.2f}"))
    margin = min(40 + 6.4 * max((len(name) for _, name in names), default=0), 300.0)
    panel = Panel(
        (margin, 12, WIDTH - margin - 16, 28.0 * count),
        (min(0.0, *(value for _, value in rows), 0.0), 1.1),
        (0.0, float(count)),
        tuple(items),
        yticks=names,
        xlabel=label,
        grid="x",
    )
    return Drawing(WIDTH, 28.0 * count + 60, (panel,))


def has_gap(candidate: Candidate) -> bool:
    """Whether a gap to the anchor was measured for this candidate."""
    return candidate.indicators.get("gap") is not None


def card(text: str) -> Drawing:
    """Words in place of a figure that can't be drawn."""
    lines = [line for part in text.splitlines() for line in wrap(part, 80)][:12]
    items = tuple(Words(0.0, float(-i), line, size=13.0) for i, line in enumerate(lines))
    height = 22.0 * max(len(lines) - 1, 1)
    panel = Panel(
        (28, 40, WIDTH - 56, height), (0, 1), (-max(len(lines) - 1.0, 1.0), 0.0), items, xticks=(), yticks=(), bare=True
    )
    return Drawing(WIDTH, height + 80, (panel,))


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
    top = max(known, default=0.0) or 1.0
    layers = _strip((86, 14, 300, 208), grid, top, [part.replace("_", " ") for part in _PARTS])
    rest = _strip((536, 14, 30, 208), column, top, [_short(change) for change in others] or [""])
    numbers = [(i + 0.5, str(i)) for i in range(depth) if i % max(1, -(-depth // 12)) == 0]
    scale = np.linspace(0, top, len(YELLOW_GREEN_BLUE))[:, None]
    bar = Panel(
        (590, 14, 11, 208),
        (0, 1),
        (0, top),
        (Cells(scale, (0, 0, 1, top), 0, top, YELLOW_GREEN_BLUE),),
        xticks=(),
        ylabel="change in %",
        bare=True,
        right=True,
    )
    shown = Panel(
        layers.place,
        layers.xlim,
        layers.ylim,
        layers.items,
        xticks=numbers,
        yticks=layers.yticks,
        xlabel="layer",
        bare=True,
    )
    return Drawing(WIDTH, 268, (shown, rest, bar))


def _strip(place: tuple[float, float, float, float], values: Array, top: float, names: Sequence[str]) -> Panel:
    """Cells with a name for each row, the first at the top."""
    rows, columns = values.shape
    cells = Cells(values[::-1], (0, 0, columns, rows), 0, top, YELLOW_GREEN_BLUE, gap=0.8)
    places = [(rows - 0.5 - i, name) for i, name in enumerate(names)]
    return Panel(place, (0, columns), (0, rows), (cells,), xticks=(), yticks=places, bare=True)


def _short(change: LayerChange) -> str:
    return _ascii(change.tensor.removesuffix(".weight").rsplit(".", 1)[-1].replace("_", " "))


# ------------------------------------------------------------------ parts


def _cross(size: float) -> tuple[Curve, Curve]:
    line = np.array([-size, size])
    return Curve(line, line, CARD, width=3.0), Curve(line, -line, CARD, width=3.0)


def _finer(values: Array) -> Array:
    """The grid with more points between its own, linearly; a hole stays one."""
    side = len(values)
    if side >= FINE:
        return values
    places, known = np.linspace(0, side - 1, FINE), np.arange(side)
    rows = np.stack([np.interp(places, known, row) for row in values])
    return np.stack([np.interp(places, known, column) for column in rows.T]).T


def _blend(colours: Sequence[str], count: int) -> tuple[str, ...]:
    """``count`` colours at even distances along a map."""
    stops = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours], dtype=float)
    places = np.linspace(0, len(stops) - 1, count)
    mixed = np.stack([np.interp(places, np.arange(len(stops)), channel) for channel in stops.T], axis=1)
    return tuple("#{:02x}{:02x}{:02x}".format(*(round(value) for value in row)) for row in mixed.tolist())


def _range(values: Array) -> tuple[float, float]:
    """Lowest and highest finite number; one unit apart where there are no two."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _padded(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def _name(candidate: Candidate) -> str:
    return _ascii(f"{candidate.encoder} {candidate.method} K={candidate.vectors} seed {candidate.seed}")


def _ascii(text: str) -> str:
    """What every font can draw: names may come from a stranger's report."""
    return text.encode("unicode_escape").decode("ascii")[:40]


def _percent(share: float) -> str:
    return f"{share:.0%}" if np.isfinite(share) else "an unknown share"
