from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from amdet_core import figures
from amdet_core.drawing import Area, Box, Line, Words, marks, ticks
from amdet_core.records import Candidate, Forensics, Landscape, LayerChange

NAN, INF = float("nan"), float("inf")


def bowl(grid: int = 11, hole: float = 0.0) -> Landscape:
    steps = np.linspace(-1, 1, grid)
    values = steps[:, None] ** 2 + steps[None, :] ** 2
    values[0, 0] += hole
    rows = tuple(tuple(row) for row in values.tolist())
    return Landscape(radius=1, values=rows, eigenvalues=(-0.5, 1.0, 2.0, 2.5), positive_share=0.75, prompts=1)


def candidate(encoder: str = "clip_l", gap: float | None = 0.9, loss: tuple[float, ...] = (0.2, -0.5)) -> Candidate:
    return Candidate(encoder=encoder, method="contrast", vectors=1, seed=7, steps=2, loss=loss, indicators={"gap": gap})


def changes(*values: tuple[str, float]) -> Forensics:
    layers = tuple(LayerChange(tensor=tensor, relative_norm=norm) for tensor, norm in values)
    return Forensics(encoder="clip_l", summary="", layers=layers, rows=(), rows_changed=0)


QUERY = "encoder.layers.1.self_attn.q_proj.weight"


def cells(forensics: Forensics) -> list[np.ndarray]:
    """Numbers of the layers and of the rest, first row first."""
    return [panel.items[0].values[::-1] for panel in figures.weight_changes(forensics).panels[:2]]


def test_importing_figures_does_not_import_pillow() -> None:
    code = "import sys, amdet_core.figures; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_landscape_cuts_go_through_the_feature() -> None:
    *_, cuts = figures.landscape(bowl()).panels
    along = cuts.curves[0].y
    assert along.argmin() == 5
    assert along.min() == pytest.approx(0.0)
    assert along.max() == pytest.approx(1.0)


def test_landscape_axes_match_their_labels() -> None:
    steps = np.linspace(-1, 1, 11)
    rows = tuple((float(step),) * 11 for step in steps)  # changes along the gradient only
    slope = Landscape(radius=1, values=rows, eigenvalues=(0.0,), positive_share=0.0, prompts=1)
    above, _, cuts = figures.landscape(slope).panels
    along, across = (curve.y for curve in cuts.curves)
    assert np.ptp(along) == pytest.approx(2.0) and np.ptp(across) == pytest.approx(0.0)
    assert above.xlabel == "along the gradient"
    left, right = above.items[0].values[:, 0], above.items[0].values[:, -1]
    assert left.max() == pytest.approx(-1.0) and right.min() == pytest.approx(1.0)


def test_the_picture_shows_the_bowl_where_it_is() -> None:
    picture = np.asarray(figures.image(figures.landscape(bowl()), scale=1)).astype(int)
    left, top, width, height = (round(value) for value in figures.landscape(bowl()).panels[0].place)
    middle = picture[top + height // 2, left + width // 2 - 30]
    corner = picture[top + 4, left + 4]
    assert middle.sum() + 200 < corner.sum()  # low is dark, high is light


def test_landscape_with_holes_and_a_flat_one_are_drawn() -> None:
    assert figures.png(figures.landscape(bowl(hole=NAN)))
    flat = Landscape(radius=1, values=((1.0,) * 5,) * 5, eigenvalues=(0.0,) * 9, positive_share=0.0, prompts=1)
    assert figures.png(figures.landscape(flat)) and figures.png(figures.spectrum(flat))


def test_spectrum_counts_every_finite_eigenvalue_and_never_mixes_signs() -> None:
    surface = bowl().model_copy(update={"eigenvalues": (-3.0, -1e-9, 1e-9, 0.5, 900.0, NAN)})
    (panel,) = figures.spectrum(surface).panels
    assert sum(bar.top for bar in panel.items) == 5
    assert sum(bar.top for bar in panel.items if bar.right <= 1e-12) == 2
    assert "75% of 6" in panel.title


def test_spectrum_without_eigenvalues_is_empty() -> None:
    empty = bowl().model_copy(update={"eigenvalues": (), "positive_share": NAN})
    assert figures.png(figures.spectrum(empty))


def test_loss_curves_name_at_most_eight_runs() -> None:
    (panel,) = figures.loss_curves([candidate()] * 20).panels
    assert len(panel.curves) == 20
    assert sum(bool(curve.label) for curve in panel.curves) == 8


def test_gaps_leave_out_candidates_without_one() -> None:
    (panel,) = figures.gaps([candidate(gap=0.9), candidate(gap=None), candidate(gap=-0.1)]).panels
    boxes = [item for item in panel.items if isinstance(item, Box)]
    assert [(box.left, box.right) for box in boxes] == [(0.0, 0.9), (-0.1, 0.0)]
    assert [item.text for item in panel.items if isinstance(item, Words)] == ["0.90", "-0.10"]


def test_weight_changes_put_each_tensor_in_its_cell_in_per_cent() -> None:
    layers, rest = cells(changes((QUERY, 0.02), ("final_layer_norm.weight", 0.01)))
    assert layers[1, 1] == pytest.approx(2.0)
    assert np.isfinite(layers).sum() == 1
    assert rest[0, 0] == pytest.approx(1.0)


@pytest.mark.parametrize("forensics", [changes(), changes((QUERY, INF), ("final_layer_norm.weight", NAN))])
def test_weight_changes_without_a_known_number_are_drawn_grey(forensics: Forensics) -> None:
    assert all(not np.isfinite(array).any() for array in cells(forensics))
    assert figures.png(figures.weight_changes(forensics))


def test_strangers_names_are_drawn_as_they_are() -> None:
    name = "$\\frac{<b>名\x00"
    assert figures.svg(figures.loss_curves([candidate(name), candidate(name)]), "a")
    assert figures.svg(figures.gaps([candidate(name)]), "a")
    assert figures.svg(figures.weight_changes(changes((name + ".weight", 0.1))), "a")


def test_svg_is_one_small_well_formed_element_without_pictures() -> None:
    text = figures.svg(figures.weight_changes(changes((QUERY, 0.02))), 'a "label" & more')
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and root.get("aria-label") == 'a "label" & more'
    assert not [element for element in root.iter() if element.tag.endswith(("image", "metadata", "script"))]
    assert len(text) < 60_000 and "<!--" not in text


def test_figures_are_the_same_every_time() -> None:
    assert figures.png(figures.landscape(bowl())) == figures.png(figures.landscape(bowl()))
    assert figures.svg(figures.landscape(bowl()), "a") == figures.svg(figures.landscape(bowl()), "a")
    assert figures.png(figures.loss_curves([candidate()])) == figures.png(figures.loss_curves([candidate()]))


def test_a_name_is_written_out_and_can_not_be_markup() -> None:
    text = figures.svg(figures.gaps([candidate("<script>x</script>")]), "a")
    written = [element.text for element in ElementTree.fromstring(text).iter() if element.tag.endswith("text")]
    assert "<script>x</script> contrast K=1 seed 7" in written
    assert "<script" not in text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-0.95, -0.2, ["-0.8", "-0.6", "-0.4", "-0.2"]),
        (0.5, 0.5004, ["0.5000", "0.5001", "0.5002", "0.5003", "0.5004"]),
        (-12.0, 12.0, ["-10", "-5", "0", "5", "10"]),
        (0.0, 1e7, ["0.0e+00", "2.0e+06", "4.0e+06", "6.0e+06", "8.0e+06", "1.0e+07"]),
        (3.0, 3.0, ["3"]),
        (NAN, 1.0, []),
    ],
)
def test_ticks_are_round_and_differ(low: float, high: float, expected: list[str]) -> None:
    assert [label for _, label in ticks(low, high)] == expected


def test_a_curve_with_holes_and_one_with_a_single_point_are_drawn() -> None:
    holes = [mark for mark in marks(figures.loss_curve([0.1, NAN, 0.3, 0.2, NAN])) if mark.colour == figures.BLUE]
    assert [type(mark) for mark in holes] == [Area, Line]  # a dot, and the two points that hang together
    assert figures.png(figures.loss_curve([0.5])) != figures.png(figures.loss_curve([NAN]))


def test_words_in_place_of_a_figure_are_wrapped() -> None:
    (panel,) = figures.card("word " * 60).panels
    assert 1 < len(panel.items) <= 12


@pytest.mark.parametrize(
    ("values", "radius", "expected"),
    [
        (((1.0, 1.0, 1.0),) * 3, 1.0, True),
        (((1.0, 1.0, 1.0),) * 3, NAN, False),
        (((NAN, NAN, NAN),) * 3, 1.0, False),
        (((1.0, 1.0),) * 3, 1.0, False),
        ((), 1.0, False),
    ],
)
def test_only_square_surfaces_with_numbers_are_drawable(
    values: tuple[tuple[float, ...], ...], radius: float, expected: bool
) -> None:
    surface = Landscape(radius=radius, values=values, eigenvalues=(), positive_share=0.0, prompts=1)
    assert figures.drawable(surface) is expected
