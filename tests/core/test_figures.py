from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from amdet_core import figures
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


def cells(forensics: Forensics) -> list[np.ma.MaskedArray]:
    return [axes.collections[0].get_array() for axes in figures.weight_changes(forensics).axes[:2]]


def test_importing_figures_does_not_import_matplotlib() -> None:
    code = "import sys, amdet_core.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rendering_leaves_pyplot_and_the_settings_alone() -> None:
    code = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy()\n"
        "from amdet_core import figures\n"
        "from amdet_core.records import Landscape\n"
        "rows = ((1, 2, 3), (2, 0, 2), (3, 2, 1))\n"
        "s = Landscape(radius=1, values=rows, eigenvalues=(1,), positive_share=1, prompts=1)\n"
        "figures.png(figures.landscape(s)); figures.svg(figures.spectrum(s), 'a', 'b')\n"
        "sys.exit('matplotlib.pyplot' in sys.modules or matplotlib.rcParams != before)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_landscape_cuts_go_through_the_feature() -> None:
    _, cuts, *_ = figures.landscape(bowl()).axes
    along = np.asarray(cuts.lines[0].get_ydata())
    assert along.argmin() == 5
    assert along.min() == pytest.approx(0.0)
    assert along.max() == pytest.approx(1.0)


def test_landscape_axes_match_their_labels() -> None:
    steps = np.linspace(-1, 1, 11)
    rows = tuple((float(step),) * 11 for step in steps)  # changes along the gradient only
    slope = Landscape(radius=1, values=rows, eigenvalues=(0.0,), positive_share=0.0, prompts=1)
    above, cuts, *_ = figures.landscape(slope).axes
    along, across = (np.asarray(line.get_ydata()) for line in cuts.lines[:2])
    assert np.ptp(along) == pytest.approx(2.0) and np.ptp(across) == pytest.approx(0.0)
    assert above.get_xlabel() == "along the gradient"


def test_landscape_with_holes_and_a_flat_one_are_drawn() -> None:
    assert figures.png(figures.landscape(bowl(hole=NAN)))
    flat = Landscape(radius=1, values=((1.0,) * 5,) * 5, eigenvalues=(0.0,) * 9, positive_share=0.0, prompts=1)
    assert figures.png(figures.landscape(flat)) and figures.png(figures.spectrum(flat))


def test_spectrum_counts_every_finite_eigenvalue_and_never_mixes_signs() -> None:
    surface = bowl().model_copy(update={"eigenvalues": (-3.0, -1e-9, 1e-9, 0.5, 900.0, NAN)})
    (axes,) = figures.spectrum(surface).axes
    assert sum(bar.get_height() for bar in axes.patches) == 5
    below = sum(bar.get_height() for bar in axes.patches if bar.get_x() + bar.get_width() <= 1e-12)
    assert below == 2
    assert "75% of 6" in axes.get_title(loc="left")


def test_spectrum_without_eigenvalues_is_empty() -> None:
    empty = bowl().model_copy(update={"eigenvalues": (), "positive_share": NAN})
    assert figures.png(figures.spectrum(empty))


def test_loss_curves_name_at_most_eight_runs() -> None:
    (axes,) = figures.loss_curves([candidate()] * 20).axes
    assert len(axes.lines) == 20
    assert len(axes.get_legend().get_texts()) == 8


def test_gaps_leave_out_candidates_without_one() -> None:
    (axes,) = figures.gaps([candidate(gap=0.9), candidate(gap=None), candidate(gap=-0.1)]).axes
    assert [bar.get_width() for bar in axes.patches] == [0.9, -0.1]


def test_weight_changes_put_each_tensor_in_its_cell_in_per_cent() -> None:
    layers, rest = cells(changes((QUERY, 0.02), ("final_layer_norm.weight", 0.01)))
    assert layers[1, 1] == pytest.approx(2.0)
    assert layers.count() == 1
    assert rest[0, 0] == pytest.approx(1.0)


@pytest.mark.parametrize("forensics", [changes(), changes((QUERY, INF), ("final_layer_norm.weight", NAN))])
def test_weight_changes_without_a_known_number_are_drawn_grey(forensics: Forensics) -> None:
    assert all(array.count() == 0 for array in cells(forensics))
    assert figures.png(figures.weight_changes(forensics))


def test_strangers_names_are_drawn_as_they_are() -> None:
    name = "$\\frac{<b>名\x00"
    assert figures.svg(figures.loss_curves([candidate(name), candidate(name)]), "a", "b")
    assert figures.svg(figures.gaps([candidate(name)]), "a", "b")
    assert figures.svg(figures.weight_changes(changes((name + ".weight", 0.1))), "a", "b")


def test_svg_is_one_small_well_formed_element_without_pictures() -> None:
    text = figures.svg(figures.weight_changes(changes((QUERY, 0.02))), "weights", 'a "label" & more')
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and root.get("aria-label") == 'a "label" & more'
    assert not [element for element in root.iter() if element.tag.endswith(("image", "metadata", "script"))]
    assert len(text) < 60_000 and "<!--" not in text


def test_svg_ids_begin_with_the_name_and_references_hold() -> None:
    text = figures.svg(figures.landscape(bowl()), "one", "")
    ids = {element.get("id") for element in ElementTree.fromstring(text).iter()} - {None}
    assert ids and all(str(name).startswith("one-") for name in ids)
    used = {part.split('"')[0] for part in text.split('href="#')[1:]}
    used |= {part.split(")")[0] for part in text.split("url(#")[1:]}
    assert used and used <= ids


def test_glyphs_keep_their_scale_when_paths_are_shortened() -> None:
    assert "scale(0.015625)" in figures.svg(figures.landscape(bowl()), "one", "")


def test_figures_are_the_same_every_time() -> None:
    assert figures.png(figures.landscape(bowl())) == figures.png(figures.landscape(bowl()))
    assert figures.svg(figures.landscape(bowl()), "a", "b") == figures.svg(figures.landscape(bowl()), "a", "b")


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
