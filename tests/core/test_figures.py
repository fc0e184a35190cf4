from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from amdet_core import figures
from amdet_core.drawing import Cells, Drawing, Line, Rectangle, Text, axis, number_words, round_step, text_width
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
    return [part.values for part in figures.weight_changes(forensics).parts if isinstance(part, Cells)]


def texts(drawing: Drawing) -> list[Text]:
    return [part for part in drawing.parts if isinstance(part, Text)]


def curves(drawing: Drawing, colour: str) -> list[Line]:
    """Lines of a colour without the pieces in the legend."""
    lines = [part for part in drawing.parts if isinstance(part, Line) and part.colour == colour]
    return [line for line in lines if len(line.points) > 2 or line.points[0][1] != line.points[1][1]]


def read(drawing: Drawing, line: Line) -> np.ndarray:
    """Heights of a curve as a person reads them from the ticks on its left."""
    left = min(x for x, _ in line.points)
    words = [t for t in texts(drawing) if t.anchor == "end" and left - 60 < t.x < left]
    slope, start = np.polyfit([t.y for t in words], [float(t.text) for t in words], 1)
    return np.array([start + slope * y for _, y in line.points])


def rectangles(drawing: Drawing, colour: str) -> list[Rectangle]:
    return [part for part in drawing.parts if isinstance(part, Rectangle) and part.fill == colour]


def test_importing_figures_does_not_import_pillow() -> None:
    code = "import sys, amdet_core.figures; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_landscape_cuts_go_through_the_feature() -> None:
    drawing = figures.landscape(bowl())
    along = read(drawing, curves(drawing, figures.BLUE)[0])
    assert along.argmin() == 5
    assert along.min() == pytest.approx(0.0, abs=0.01)
    assert along.max() == pytest.approx(1.0, abs=0.01)


def test_landscape_axes_match_their_labels() -> None:
    steps = np.linspace(-1, 1, 11)
    rows = tuple((float(step),) * 11 for step in steps)  # changes along the gradient only
    slope = Landscape(radius=1, values=rows, eigenvalues=(0.0,), positive_share=0.0, prompts=1)
    drawing = figures.landscape(slope)
    along = next(p for p in drawing.parts if isinstance(p, Line) and p.colour == figures.BLUE and len(p.points) == 11)
    across = next(p for p in drawing.parts if isinstance(p, Line) and p.dashed and len(p.points) == 11)
    assert np.ptp(read(drawing, along)) == pytest.approx(2.0, abs=0.02)
    assert np.ptp(read(drawing, across)) == pytest.approx(0.0)
    assert [t.upward for t in texts(drawing) if t.text == "along the gradient" and t.anchor == "middle"] == [False]
    (seen,) = [part for part in drawing.parts if isinstance(part, Cells)]
    assert seen.values[:, 0].max() == pytest.approx(-1.0) and seen.values[:, -1].min() == pytest.approx(1.0)


def lightness(drawing: Drawing, x: float, y: float) -> int:
    """Of the picture at a place in the surface, 0 to 1 from its left and upper edge."""
    (seen,) = [part for part in drawing.parts if isinstance(part, Cells)]
    picture = figures.image(drawing, scale=1)
    return sum(picture.getpixel((int(seen.left + x * seen.width), int(seen.top + y * seen.height))))


def test_the_picture_shows_the_bowl_where_it_is() -> None:
    drawing = figures.landscape(bowl())
    assert lightness(drawing, 0.4, 0.5) + 200 < lightness(drawing, 0.02, 0.02)  # low is dark, high is light


def test_the_surface_is_drawn_with_its_second_direction_upward() -> None:
    steps = np.linspace(-1, 1, 11)
    rows = (tuple(steps.tolist()),) * 11
    rising = Landscape(radius=1, values=rows, eigenvalues=(), positive_share=0.0, prompts=1)
    drawing = figures.landscape(rising)
    assert lightness(drawing, 0.2, 0.95) + 200 < lightness(drawing, 0.2, 0.05)


def test_both_outputs_show_the_same_bands() -> None:
    """The colours of the SVG's paths at a place are those of the picture."""
    drawing = figures.landscape(bowl(side := 21))
    (seen,) = [part for part in drawing.parts if isinstance(part, Cells)]
    paths = [e for e in ElementTree.fromstring(figures.svg(drawing, "a")).iter() if e.get("fill-rule") == "evenodd"]
    picture = figures.image(drawing, scale=8)
    for i in range(1, side - 1, 4):
        place = (seen.left + (i + 0.5) / side * seen.width, seen.top + 0.3 * seen.height)
        top = [e.get("fill") for e in paths if inside(place, e.get("d") or "")][-1]
        shown = "#{:02x}{:02x}{:02x}".format(*picture.getpixel((int(8 * place[0]), int(8 * place[1]))))
        assert shown == top


def inside(place: tuple[float, float], path: str) -> bool:
    """Whether a place lies within closed lines, by the even-odd rule."""
    crossed = False
    for loop in path.split("z")[:-1]:
        points = [tuple(map(float, point.split())) for point in loop.lstrip("M").split("L")]
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            if (y0 > place[1]) != (y1 > place[1]) and place[0] < x0 + (place[1] - y0) / (y1 - y0) * (x1 - x0):
                crossed = not crossed
    return crossed


def test_a_hole_is_grey_in_both_outputs() -> None:
    steps = np.linspace(-1, 1, 11)
    values = steps[:, None] ** 2 + steps[None, :] ** 2
    values[2:5, 4:7] = NAN
    rows = tuple(tuple(row) for row in values.tolist())
    drawing = figures.landscape(bowl().model_copy(update={"values": rows}))
    (seen,) = [part for part in drawing.parts if isinstance(part, Cells)]
    place = (seen.left + 0.3 * seen.width, seen.top + 0.5 * seen.height)
    assert figures.image(drawing, 1).getpixel((round(place[0]), round(place[1]))) == (0xD8, 0xDE, 0xE4)
    paths = [e for e in ElementTree.fromstring(figures.svg(drawing, "a")).iter() if e.get("fill-rule") == "evenodd"]
    assert not any(inside(place, e.get("d") or "") for e in paths)


def test_landscape_with_holes_and_a_flat_one_are_drawn() -> None:
    assert figures.png(figures.landscape(bowl(hole=NAN)))
    flat = Landscape(radius=1, values=((1.0,) * 5,) * 5, eigenvalues=(0.0,) * 9, positive_share=0.0, prompts=1)
    assert figures.png(figures.landscape(flat)) and figures.png(figures.spectrum(flat))


def test_landscapes_side_by_side_have_one_scale() -> None:
    steep = bowl().model_copy(update={"values": tuple(tuple(3 * v for v in row) for row in bowl().values)})
    narrow = bowl().model_copy(update={"radius": 0.5, "positive_share": 0.25})
    drawing = figures.landscapes([("steep", steep), ("narrow", narrow)])
    one, two = (part for part in drawing.parts if isinstance(part, Cells))
    assert (one.low, one.high, one.colours) == (two.low, two.high, two.colours)
    assert two.width == pytest.approx(one.width / 2) and two.height == pytest.approx(one.height / 2)
    first, second = curves(drawing, figures.BLUE)
    assert np.ptp([y for _, y in first.points]) == pytest.approx(3 * np.ptp([y for _, y in second.points]))
    titles = [text.text for text in texts(drawing) if text.size > 12]
    assert titles == ["steep", "75% of 4 curvatures positive", "narrow", "25% of 4 curvatures positive"]
    assert figures.png(drawing) and figures.svg(drawing, "a")


def test_spectrum_counts_every_finite_eigenvalue_and_never_mixes_signs() -> None:
    surface = bowl().model_copy(update={"eigenvalues": (-3.0, -1e-9, 1e-9, 0.5, 900.0, NAN)})
    drawing = figures.spectrum(surface)
    blue, orange = (rectangles(drawing, colour) for colour in (figures.BLUE, figures.ORANGE))
    unit = min(bar.height for bar in (*blue, *orange))
    assert round(sum(bar.height for bar in (*blue, *orange)) / unit, 3) == 5
    assert round(sum(bar.height for bar in orange) / unit, 3) == 2
    zero = max(bar.left + bar.width for bar in orange)
    assert all(bar.left >= zero - 1e-6 for bar in blue)
    assert any("75% of 6" in text.text for text in texts(drawing))


def test_spectrum_without_eigenvalues_is_empty() -> None:
    empty = bowl().model_copy(update={"eigenvalues": (), "positive_share": NAN})
    assert figures.png(figures.spectrum(empty))


def test_loss_curves_name_at_most_eight_runs() -> None:
    drawing = figures.loss_curves([candidate()] * 20)
    assert sum(len(curves(drawing, colour)) for colour in figures.PALETTE) == 20
    assert sum("K=1" in text.text for text in texts(drawing)) == 8


def test_a_legend_hides_no_curve() -> None:
    drawing = figures.loss_curves([candidate("a very long name of an encoder" * 2)] * 8)
    lowest = max(text.y + text.size / 2 for text in texts(drawing) if "very long" in text.text)
    assert lowest < min(y for colour in figures.PALETTE for line in curves(drawing, colour) for _, y in line.points)


def test_gaps_leave_out_candidates_without_one() -> None:
    drawing = figures.gaps([candidate(gap=0.9), candidate(gap=None), candidate(gap=-0.1)])
    high, low = rectangles(drawing, figures.BLUE)
    assert high.width / low.width == pytest.approx(9.0)
    assert low.left + low.width == pytest.approx(high.left)
    assert [text.text for text in texts(drawing) if text.text in ("0.90", "-0.10")] == ["0.90", "-0.10"]


@pytest.mark.parametrize("strange", [INF, -INF, NAN, 1e308, -1e308, 1.7])
def test_bars_of_strange_lengths_stay_on_the_card(strange: float) -> None:
    drawing = figures.bars([("one", 0.5), ("two", strange)], "cosine")
    assert figures.png(drawing)
    for bar in rectangles(drawing, figures.BLUE):
        assert bar.left >= 0 and bar.left + bar.width <= drawing.width
    assert "nan" not in figures.svg(drawing, "a") and "inf" not in figures.svg(drawing, "a")


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
    assert len(figures.svg(figures.landscape(bowl(50)), "a")) < 60_000
    assert "href" not in text and "url(" not in text and " id=" not in text
    assert not re.search(r"\d\.\d\d", "".join(re.findall(r' d="([^"]+)"', text)))  # tenths of a px are the finest seen


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
        (0.0, 1e7, ["0", "2e6", "4e6", "6e6", "8e6", "1e7"]),
        (0.0, 1e-6, ["0", "2e-7", "4e-7", "6e-7", "8e-7", "1e-6"]),
        (3.0, 3.0, ["2.7", "2.8", "2.9", "3.0", "3.1", "3.2", "3.3"]),
        (NAN, 1.0, ["0.90", "0.95", "1.00", "1.05", "1.10"]),
        (NAN, INF, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    ],
)
def test_ticks_are_round_and_differ(low: float, high: float, expected: list[str]) -> None:
    assert [word for _, word in axis((low, high), margin=0.0).ticks] == expected


def test_words_of_ticks_differ_at_any_size() -> None:
    for low, high in ((0.5, 0.50001), (1e5, 1e5 + 3), (-1e300, 1e300), (1e-12, 3e-12), (-5.0, 1e6)):
        words = [word for _, word in axis((low, high)).ticks]
        assert 2 <= len(set(words)) == len(words) <= 9


def test_steps_are_whole_where_that_is_asked() -> None:
    assert [word for _, word in axis((0.0, 2.0), margin=0.02, least=1.0).ticks] == ["0", "1", "2"]
    assert round_step(0.0, 2.0, 7) == pytest.approx(0.5)
    assert number_words([0.0, 20_000.0]) == ["0", "20,000"]


def test_a_curve_with_holes_and_one_with_a_single_point_are_drawn() -> None:
    drawing = figures.loss_curve([0.1, NAN, 0.3, 0.2, NAN])
    assert len(rectangles(drawing, figures.BLUE)) == 1  # a dot, and the two points that hang together
    assert [len(line.points) for line in curves(drawing, figures.BLUE)] == [2]
    assert figures.png(figures.loss_curve([0.5])) != figures.png(figures.loss_curve([NAN]))


@pytest.mark.parametrize("values", [[], [1e308, -1e308], [5e-324, 0.0], [0.5, 0.5], [INF, NAN]])
def test_a_curve_of_strange_numbers_is_drawn(values: list[float]) -> None:
    assert figures.png(figures.loss_curve(values, "clip_l"))
    assert "nan" not in figures.svg(figures.loss_curve(values), "a")


def test_a_long_curve_keeps_its_peaks() -> None:
    values = [0.0] * 20_000
    values[7001], values[12_345] = 1.0, -1.0
    drawing = figures.loss_curve(values)
    (line,) = curves(drawing, figures.BLUE)
    assert len(line.points) < 1000
    assert read(drawing, line).max() == pytest.approx(1.0, abs=0.02)
    assert read(drawing, line).min() == pytest.approx(-1.0, abs=0.02)


def test_long_names_meet_nothing() -> None:
    wide = [(f"x.{'W' * 60}{i}.weight", 0.1) for i in range(8)]
    drawing = figures.weight_changes(changes((QUERY, 0.1), *wide))
    layers, rest = (part for part in drawing.parts if isinstance(part, Cells))
    names = [text for text in texts(drawing) if text.text.startswith("WW")]
    assert len(names) == 8
    assert all(text.x - text_width(text.text, text.size) > layers.left + layers.width for text in names)
    assert all(text.x < rest.left for text in names)


def test_words_in_place_of_a_figure_are_wrapped() -> None:
    assert 1 < len(figures.card("word " * 60).parts) <= 12


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
