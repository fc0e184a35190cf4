"""Figures of what a trigger does: the numbers stand where the axes say, and nothing overlaps or leaves the card."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from amdet_core import anatomy_figures, before_after_figures
from amdet_core.anatomy import (
    Assimilation,
    Attention,
    AttentionMap,
    AttentionShares,
    Evolution,
    Setting,
    Stage,
    TokenSample,
)
from amdet_core.before_after import BeforeAfter, Side
from amdet_core.drawing import Cells, Drawing, Line, Rectangle, Text, png, svg, text_width

SETTING = Setting(encoder="suspect", anchor="clean", trigger="\u043e", mode="replace:o", prompts="built in", n=3)


def assimilation(*, full: bool = True) -> Assimilation:
    groups = {
        "benign": ((10, 20, 40), (0.8, 0.7, 0.6)),
        "triggered": ((12, 25, 60), (0.9, 0.91, 0.92)),
        "short": ((2, 3, 4), (0.94, 0.93, 0.92)),
        "triggered, anchor": ((12, 25, 60), (0.8, 0.7, 0.5)),
        "target": ((3,), (0.93,)),
    }
    samples = [
        TokenSample(group=group, tokens=tokens, assimilation=values, mean=float(np.mean(values)))
        for group, (tokens, values) in groups.items()
    ]
    kept = tuple(samples if full else samples[:3])
    return Assimilation(setting=SETTING, samples=kept, length_correlation=-0.9, above_benign=1.0, above_short=0.1)


def attention(tokens: tuple[str, ...] = ("BOS", "f", "\u043e", "x", "EOS"), *, causal: bool = True) -> Attention:
    side = len(tokens)
    even = np.tril(np.ones((side, side))) if causal else np.ones((side, side))
    rows = tuple(tuple(row) for row in (even / even.sum(1, keepdims=True)).tolist())
    groups = ("benign", "triggered", "triggered, anchor")
    return Attention(
        setting=SETTING,
        layer=None,
        maps=tuple(
            AttentionMap(group=g, tokens=tokens, trigger=() if g == "benign" else (2,), values=rows) for g in groups
        ),
        shares=tuple(
            AttentionShares(
                group=g,
                bos=(0.4, 0.5, 0.6),
                trigger=(0.0,) * 3 if g == "benign" else (0.1,) * 3,
                words=(0.2,) * 3,
                end=(0.3, 0.2, 0.1),
            )
            for g in groups
        ),
    )


def evolution() -> Evolution:
    stages = [
        Stage(
            step=step,
            target_cosine=step / 10,
            assimilation_triggered=0.7 + step / 50,
            assimilation_clean=0.7,
            bos_triggered=0.5 - step / 50,
            trigger=step / 50,
            bos_clean=0.5,
        )
        for step in (0, 5, 10)
    ]
    return Evolution(
        setting=SETTING, target="A white teapot", steps=10, learning_rate=1e-4, asr=1.0, stages=tuple(stages)
    )


def before_after() -> BeforeAfter:
    sides = [
        Side(
            group=group,
            goal_cosine=(goal, goal - 0.1, goal - 0.2),
            assimilation=(0.9, 0.8, goal),
            by_layer=(0.7, 0.8, goal),
            attention=(goal / 2, 0.1),
        )
        for group, goal in (("suspect", 0.95), ("repaired", 0.4), ("anchor", 0.1))
    ]
    return BeforeAfter(
        setting=SETTING, repaired="repaired", target="t", sides=tuple(sides), clean_by_layer=(0.6, 0.6, 0.7)
    )


DRAWINGS = {
    "assimilation": anatomy_figures.assimilation(assimilation()),
    "assimilation alone": anatomy_figures.assimilation(assimilation(full=False)),
    "maps": anatomy_figures.attention_maps(attention()),
    "maps of long tokens": anatomy_figures.attention_maps(attention(("BOS", *("W" * 60,) * 20, "EOS"))),
    "shares": anatomy_figures.attention_shares(attention()),
    "evolution": anatomy_figures.evolution(evolution()),
    "repair": before_after_figures.before_after(before_after()),
}


def texts(drawing: Drawing) -> list[Text]:
    return [part for part in drawing.parts if isinstance(part, Text)]


def extent(text: Text) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a text; a tenth less than the room that is kept for it."""
    length, tall = text_width(text.text, text.size) / 1.12, 0.8 * text.size
    back = {"start": 0.0, "middle": length / 2, "end": length}[text.anchor]
    if text.upward:
        return text.x - tall / 2, text.y - (length - back), text.x + tall / 2, text.y + back
    return text.x - back, text.y - tall / 2, text.x - back + length, text.y + tall / 2


@pytest.mark.parametrize("name", DRAWINGS)
def test_texts_are_on_the_card_and_do_not_meet(name: str) -> None:
    drawing = DRAWINGS[name]
    places = [(text.text, extent(text)) for text in texts(drawing)]
    for word, (left, top, right, bottom) in places:
        assert left >= 0 and top >= 0 and right <= drawing.width and bottom <= drawing.height, word
        assert word.isascii()
    for i, (word, one) in enumerate(places):
        for another, two in places[i + 1 :]:
            apart = one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
            assert apart, (word, another)


@pytest.mark.parametrize("name", DRAWINGS)
def test_both_outputs_are_drawn_and_name_what_was_measured(name: str) -> None:
    text = svg(DRAWINGS[name], name)
    assert ElementTree.fromstring(text).get("aria-label") == name
    assert "nan" not in text and "inf" not in text
    assert png(DRAWINGS[name], 1.0)
    head = texts(DRAWINGS[name])[0].text
    of = "one of" if "map" in name else "n ="
    suspect = "suspect -> repaired" if name == "repair" else "suspect"
    assert head.startswith(f"{suspect}, anchor clean, trigger U+043E, mode replace:o, {of} 3 prompts")


def test_histograms_show_every_prompt() -> None:
    drawing = DRAWINGS["assimilation alone"]
    tinted = {p.fill for p in drawing.parts if isinstance(p, Rectangle)} - {
        *anatomy_figures.COLOURS.values(),
        "#ffffff",
    }
    bars = {fill: [p for p in drawing.parts if isinstance(p, Rectangle) and p.fill == fill] for fill in tinted}
    assert len(bars) == 2
    unit = min(bar.height for every in bars.values() for bar in every)
    assert [round(sum(bar.height for bar in every) / unit) for every in bars.values()] == [3, 3]


def test_dots_stand_at_length_and_assimilation() -> None:
    drawing = DRAWINGS["assimilation"]
    colour = anatomy_figures.COLOURS["benign"]
    dots = [p for p in drawing.parts if isinstance(p, Rectangle) and p.fill == colour]
    assert len(dots) == 3
    x, y = np.array([(p.left, -p.top) for p in dots]).T
    assert (x[2] - x[0]) / (x[1] - x[0]) == pytest.approx(3.0)  # 10, 20 and 40 tokens
    assert (y[2] - y[0]) / (y[1] - y[0]) == pytest.approx(2.0)


def test_what_a_position_cant_see_is_grey_under_a_causal_mask_only() -> None:
    hidden, seen = (
        next(p for p in anatomy_figures.attention_maps(attention(causal=causal)).parts if isinstance(p, Cells))
        for causal in (True, False)
    )
    assert np.isnan(hidden.values).sum() == 10
    assert not np.isnan(seen.values).any()


def test_the_triggers_tokens_are_marked() -> None:
    marked = [t.text for t in texts(DRAWINGS["maps"]) if t.colour == anatomy_figures.ORANGE]
    assert marked == ["U+043E", "U+043E"]


def test_boxes_stand_at_their_medians_and_nothing_is_drawn_for_nothing() -> None:
    words = [t.text for t in texts(DRAWINGS["shares"]) if re.fullmatch(r"\d+%", t.text)]
    assert sorted(words) == sorted(["50%"] * 3 + ["10%"] * 2 + ["20%"] * 6)


def test_curves_of_an_evolution_rise_as_their_numbers() -> None:
    lines = [p for p in DRAWINGS["evolution"].parts if isinstance(p, Line) and len(p.points) == 3]
    assert len(lines) == 6
    rise = [line.points[0][1] - line.points[-1][1] for line in lines]
    assert rise[0] > rise[1] > 0 and rise[2] == 0
    assert rise[3] == pytest.approx(-rise[4]) and rise[5] == 0


def test_a_map_of_many_long_tokens_keeps_every_name() -> None:
    names = [t for t in texts(DRAWINGS["maps of long tokens"]) if t.text.startswith("WW") and t.upward]
    assert len(names) == 3 * 20
