"""Figures of a report. The only file that imports matplotlib, inside its functions and without pyplot.

Every figure is a light card with explicit colours (Okabe and Ito's, and sequential maps that read in
grey), so that it looks the same in a dark page, on paper and under any matplotlib style. Equal records
give equal bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .records import Candidate, Forensics, Landscape, LayerChange

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID, CARD = "#22272e", "#d0d7de", "#ffffff"
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8c959f"
PALETTE = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
WIDTH = 7.2
"""Inches; a panel of half this width stays readable on a telephone."""
LABELLED = 8
"""Most entries of a legend or of a strip."""

_LAYER = re.compile(r"encoder\.layers\.(\d{1,3})\.(?:self_attn\.|mlp\.)?(\w+)\.weight")
_PARTS = ("layer_norm1", "q_proj", "k_proj", "v_proj", "out_proj", "layer_norm2", "fc1", "fc2")


# ------------------------------------------------------------------ landscape


def landscape(surface: Landscape) -> Figure:
    """Loss around a recovered feature from above, and the two cuts through it: a bowl or a saddle."""
    values = _finite(surface.values)
    figure, (above, cuts) = _figure(3.0, columns=2, widths=(1.15, 1.0))
    steps = np.linspace(-surface.radius, surface.radius, values.shape[0])
    filled = above.contourf(steps, steps, values.T, levels=12, cmap="cividis")
    above.plot(0, 0, marker="x", color=CARD, markersize=9, markeredgewidth=2.5)
    bar = figure.colorbar(filled, ax=above, label="loss")
    middle = values.shape[0] // 2
    centre = slice(middle - 1, middle + 1) if values.shape[0] % 2 == 0 else slice(middle, middle + 1)
    cuts.plot(steps, values[:, centre].mean(axis=1), color=BLUE, linewidth=2, label="along the gradient")
    cuts.plot(steps, values[centre].mean(axis=0), color=ORANGE, linewidth=2, linestyle="--", label="across it")
    cuts.axvline(0, color=GREY, linewidth=1)
    cuts.legend(fontsize=8, loc="best", **_LEGEND)
    _tidy(above, "seen from above (× the feature)", "along the gradient", "across it")
    _tidy(cuts, "cut through the feature", "distance in embedding units", "loss", grid="both")
    _tidy(bar.ax, "", "", "loss")
    return figure


def drawable(surface: Landscape) -> bool:
    """Whether the surface is a square grid with numbers in it; a stranger's report may hold anything."""
    side = len(surface.values)
    square = side >= 3 and all(len(row) == side for row in surface.values)
    return square and 0 < surface.radius < np.inf and any(np.isfinite(value) for row in surface.values for value in row)


def spectrum(surface: Landscape) -> Figure:
    """Histogram of the Hessian eigenvalues; the outer per cent on either side is gathered at the edge."""
    values = np.asarray([value for value in surface.eigenvalues if np.isfinite(value)], dtype=float)
    figure, (axes,) = _figure(2.6)
    low, high = np.percentile(values, (1, 99)) if values.size else (-1.0, 1.0)
    bound = float(max(abs(low), abs(high))) or 1.0
    edges = np.linspace(-bound, bound, 61)  # an even number of bins: none mixes signs
    counts, _ = np.histogram(np.clip(values, -bound, bound), bins=edges)
    colours = [BLUE if left >= 0 else ORANGE for left in edges[:-1]]
    axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=colours, linewidth=0)
    axes.axvline(0, color=INK, linewidth=1)
    title = f"{_percent(surface.positive_share)} of {len(surface.eigenvalues):,} curvatures are positive"
    _tidy(axes, title, "curvature of the loss (Hessian eigenvalue)", "points", grid="y")
    return figure


# ------------------------------------------------------------------ candidates


def loss_curves(candidates: Sequence[Candidate]) -> Figure:
    """Loss by step of every candidate."""
    figure, (axes,) = _figure(2.8)
    for i, candidate in enumerate(candidates):
        style = "-" if candidate.method == "contrast" else "--"
        axes.plot(
            np.asarray(candidate.loss, dtype=float),
            color=PALETTE[i % len(PALETTE)],
            linestyle=style,
            marker="o" if len(candidate.loss) == 1 else None,
            linewidth=1.5,
            label=_name(candidate) if i < LABELLED else None,
        )
    _legend(axes)
    _tidy(axes, "", "step", "loss", grid="both")
    return figure


def gaps(candidates: Sequence[Candidate]) -> Figure:
    """How much more the suspect collapses than the anchor, by candidate; those without a gap are left out."""
    measured = [(candidate, candidate.indicators["gap"]) for candidate in candidates if has_gap(candidate)]
    figure, (axes,) = _figure(0.8 + 0.28 * max(len(measured), 1))
    heights = [float(gap or 0.0) for _, gap in measured]
    places = range(len(measured))
    axes.barh(places, heights, height=0.65, color=BLUE)
    for place, height in zip(places, heights, strict=True):
        axes.text(max(height, 0.0) + 0.01, place, f"{height:.2f}", va="center", fontsize=8, color=INK)
    axes.set_yticks(places, [_name(candidate) for candidate, _ in measured], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(min((0.0, *heights)), 1.1)
    _tidy(axes, "", "gap: agreement of the outputs, suspect minus anchor", "", grid="x")
    return figure


def has_gap(candidate: Candidate) -> bool:
    """Whether a gap to the anchor was measured for this candidate."""
    return candidate.indicators.get("gap") is not None


# ------------------------------------------------------------------ weights


def weight_changes(forensics: Forensics) -> Figure:
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

    figure, (layers, rest) = _figure(2.7, columns=2, widths=(1.0, 0.09))
    _cells(layers, grid, top)
    shades = _cells(rest, column, top)
    layers.set_yticks(np.arange(len(_PARTS)) + 0.5, [part.replace("_", " ") for part in _PARTS])
    layers.set_xticks(np.arange(depth) + 0.5, [str(i) if _every(i, depth) else "" for i in range(depth)])
    rest.set_yticks(np.arange(len(column)) + 0.5, [_short(change) for change in others] or [""], parse_math=False)
    rest.set_xticks([])
    bar = figure.colorbar(shades, ax=(layers, rest), pad=0.02)
    assert bar.solids is not None, "the colour bar of a mesh has cells"
    bar.solids.set_rasterized(False)  # a picture inside the SVG would be refused by the page
    _tidy(layers, "", "layer", "")
    _tidy(rest, "", "", "")
    _tidy(bar.ax, "", "", "change in %")
    return figure


def _cells(axes: Axes, values: NDArray[Any], top: float) -> Any:
    from matplotlib import colormaps

    axes.set_facecolor(GRID)
    steps = colormaps["YlGnBu"].resampled(12)  # the colour bar of the SVG has a path for each
    shown = np.ma.masked_invalid(values)
    shades = axes.pcolormesh(shown, vmin=0, vmax=top, cmap=steps, edgecolors=CARD, linewidth=0.5)
    axes.invert_yaxis()
    return shades


def _every(layer: int, depth: int) -> bool:
    """Whether this layer's number is written, so that at most about a dozen are."""
    return layer % max(1, -(-depth // 12)) == 0


def _short(change: LayerChange) -> str:
    return _ascii(change.tensor.removesuffix(".weight").rsplit(".", 1)[-1].replace("_", " "))


# ------------------------------------------------------------------ output


def png(figure: Figure) -> bytes:
    """A figure as PNG at 160 dots per inch, without time stamp."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=160, facecolor=CARD, metadata={"Software": None})
    return out.getvalue()


def svg(figure: Figure, name: str, label: str) -> str:
    """A figure as an ``<svg>`` element to be put into a page.

    Args:
        name: prefix of its ids, unique in the page: ASCII letters, digits and dashes.
        label: what it shows, for those who can't see it.
    """
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", facecolor=CARD, metadata=nothing)
    text = re.sub(r"<!--.*?-->\s*", "", out.getvalue(), flags=re.DOTALL)
    text = re.sub(r'\bd="[^"]+"', _short_path, text[text.index("<svg") :])
    # matplotlib draws its ids at random; numbered in order of appearance they are stable.
    ids = dict.fromkeys(re.findall(r'\bid="([^"]+)"', text))
    names = {old: f"{name}-{i}" for i, old in enumerate(ids)}
    text = re.sub(r'(\bid="|href="#|url\(#)([^")]+)', lambda m: m[1] + names.get(m[2], m[2]), text)
    size = re.search(r'viewBox="[^"]+"', text)
    assert size is not None, "matplotlib writes a viewBox"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    opening = f'<svg {spaces} {size[0]} role="img" aria-label="{escape(label)}">'
    return opening + text[text.index(">") + 1 :].strip()


def _short_path(path: re.Match[str]) -> str:
    """A path in tenths of a point, the finest that is seen."""
    return re.sub(r"(\d\.\d)\d+", r"\1", path[0])


# ------------------------------------------------------------------ parts

_LEGEND: dict[str, Any] = {"labelcolor": INK, "facecolor": CARD, "edgecolor": GRID}


def _figure(height: float, columns: int = 1, widths: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), facecolor=CARD, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False, width_ratios=widths)
    return figure, list(axes[0])


def _tidy(axes: Axes, title: str, x: str, y: str, grid: str | None = None) -> None:
    """Labels and colours of one panel, none of them left to the host's style."""
    axes.set_title(title, fontsize=10, color=INK, loc="left", parse_math=False)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(colors=INK, labelsize=8, length=0 if grid is None else 3)
    axes.patch.set_facecolor(axes.patch.get_facecolor() if grid is None else CARD)
    axes.grid(visible=False)
    if grid is not None:
        axes.grid(visible=True, axis=grid, color=GRID, linewidth=0.6)  # type: ignore[arg-type]
        axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_color(GREY)
        spine.set_visible(side in ("left", "bottom") and grid is not None)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        for text in axes.legend(fontsize=8, loc="best", **_LEGEND).get_texts():
            text.set_parse_math(False)


def _name(candidate: Candidate) -> str:
    return _ascii(f"{candidate.encoder} {candidate.method} K={candidate.vectors} seed {candidate.seed}")


def _ascii(text: str) -> str:
    """What every font can draw: names may come from a stranger's report."""
    return text.encode("unicode_escape").decode("ascii")[:40]


def _percent(share: float) -> str:
    return f"{share:.0%}" if np.isfinite(share) else "an unknown share"


def _finite(rows: Sequence[Sequence[float]]) -> Any:
    return np.ma.masked_invalid(np.asarray(rows, dtype=float))
