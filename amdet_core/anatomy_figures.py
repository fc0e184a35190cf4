"""Figures of what a trigger does inside an encoder; the numbers are those of :mod:`.anatomy`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .anatomy import Assimilation, Attention, AttentionMap, AttentionShares, Evolution, Setting, TokenSample
from .drawing import (
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
    Rectangle,
    Text,
    axis,
    bar_width,
    colour_bar,
    legend_rows,
    named,
    shades,
    shortened,
    text_width,
)
from .figures import EDGE, PALETTE, YELLOW_TO_BLUE, levels_of, plain

WIDTH = 720.0
"""Px at scale 1."""
HEAD = 26.0
"""Room for the line that says what was measured, px."""
BINS = 30
BLUE, ORANGE, GREEN, PINK, YELLOW = PALETTE[:5]
COLOURS = {
    "benign": BLUE,
    "triggered": ORANGE,
    "triggered, anchor": GREEN,
    "short": PINK,
    "target": INK,
}
WORDS = {
    "benign": "benign prompts",
    "triggered": "with the trigger",
    "triggered, anchor": "with the trigger, in the anchor",
    "short": "short benign prompts",
    "target": "the target",
}
KINDS = ("BOS", "trigger", "other words", "EOS, padding")


def heading(setting: Setting, of: str = "n =") -> str:
    """What was measured, in one line of ASCII; ``of`` stands before the number of prompts."""
    versus = f", anchor {setting.anchor}" if setting.anchor else ""
    trigger = f"trigger {visible(setting.trigger)}, mode {setting.mode}"
    return plain(f"{setting.encoder}{versus}, {trigger}, {of} {setting.n} prompts", 150)


def visible(text: str) -> str:
    """A text with every character outside printable ASCII as its code point."""
    return "".join(c if " " <= c <= "~" else f"U+{ord(c):04X}" for c in text)


# ------------------------------------------------------------------ assimilation


def assimilation(measured: Assimilation) -> Drawing:
    """Histograms of the assimilation (fig. 2), and beside them how it follows the length of the prompt."""
    height, middle = 340.0, WIDTH / 2
    samples = {sample.group: sample for sample in measured.samples}
    shown = [samples[group] for group in ("benign", "triggered", "triggered, anchor") if group in samples]
    values = [number for sample in measured.samples for number in sample.assimilation]
    edges = np.linspace(np.floor(20 * min(0.95, *values)) / 20, 1.0, BINS + 1)
    box = (EDGE, EDGE + HEAD, middle - EDGE, height - EDGE)
    left = _histogram(box, edges, shown)

    dots = [samples[group] for group in ("benign", "triggered", "short")]
    longest = max(count for sample in measured.samples for count in sample.tokens)
    entries = [Entry(WORDS[group], COLOURS[group]) for group in samples if group != "triggered, anchor"]
    right = Panel(
        (middle + EDGE, EDGE + HEAD, WIDTH - EDGE, height - EDGE),
        axis((0.0, longest), "tokens of the prompt", least=1.0),
        axis((edges[0], 1.0), "assimilation", margin=0.0),
        title=f"... and length: r = {measured.length_correlation:.2f}, benign prompts",
        legend=entries,
    )
    for sample in dots:
        for count, value in zip(sample.tokens, sample.assimilation, strict=True):
            right.dot(right.at(count, value), COLOURS[sample.group], 3.5)
    if target := samples.get("target"):
        x, y = right.at(target.tokens[0], target.assimilation[0])
        for colour, width in ((CARD, 4.0), (INK, 2.0)):
            right.parts += [Line(((x - 5, y - 5 * turn), (x + 5, y + 5 * turn)), colour, width) for turn in (1, -1)]
    return sheet(height, heading(measured.setting), (*left.parts, *right.parts))


def _histogram(box: tuple[float, float, float, float], edges: Numbers, samples: Sequence[TokenSample]) -> Panel:
    """Overlaid histograms in per cent: in each bin the lower bar stands in front, outlines are never hidden."""
    heights = [100 * np.histogram(s.assimilation, edges)[0] / len(s.assimilation) for s in samples]
    panel = Panel(
        box,
        axis((edges[0], edges[-1]), "mean pairwise cosine of a prompt's tokens", margin=0.0, most=6),
        Axis(0.0, *_top(heights)),
        title="Assimilation",
        legend=[Entry(WORDS[s.group], COLOURS[s.group]) for s in samples],
    )
    tints = [shades((CARD, COLOURS[s.group]), 5)[1] for s in samples]
    for i, span in enumerate(pairwise(edges)):
        for tall, tint in sorted(((row[i], tint) for row, tint in zip(heights, tints, strict=True)), reverse=True):
            if tall:
                panel.block(span, (0.0, tall), tint)
    for sample, row in zip(samples, heights, strict=True):
        steps = np.concatenate([[0.0], np.repeat(row, 2), [0.0]])
        nothing = np.convolve(steps, np.ones(3), "same") == 0
        steps[nothing] = np.nan  # no line along the axis
        panel.curve(np.repeat(edges, 2), steps, Entry("", COLOURS[sample.group]), 1.5)
    return panel


def _top(heights: Sequence[Numbers]) -> tuple[float, tuple[tuple[float, str], ...], str]:
    """End, ticks and label of an axis of per cent that begins at 0."""
    scale = axis((0.0, float(np.max(heights)) * 1.05), "prompts in %", margin=0.0, most=6)
    return scale.last, scale.ticks, scale.label


# ------------------------------------------------------------------ attention


def attention_maps(measured: Attention) -> Drawing:
    """Attention within one prompt without and with the trigger (fig. 3); grey is what a position can't see."""
    # BOS sees nothing but itself under a causal mask: its 1 would say nothing and take the colours from the others.
    scale = levels_of((0.0, *(max(row) for shown in measured.maps for row in shown.values[1:])), "attention")
    colours = shades(YELLOW_TO_BLUE, len(scale.ticks) - 1)
    wide = 300.0
    below = 10 + max(text_width(_token(word), SMALL) for shown in measured.maps for word in shown.tokens)
    height = EDGE + HEAD + wide + below + EDGE
    parts: list[Part] = []
    for i, shown in enumerate(measured.maps):
        left = EDGE + (wide + EDGE) * i
        parts += _map(shown, (left, EDGE + HEAD, left + wide, height - EDGE), below, scale, colours)
    right = EDGE + (wide + EDGE) * len(measured.maps)
    parts += colour_bar((right, EDGE + HEAD + 22, height - EDGE - below), scale, colours)
    words = f"{heading(measured.setting, 'one of')}, {_layers(measured.layer)}; rows attend to columns"
    return sheet(height, words, parts, right + bar_width(scale) + EDGE)


def _map(
    shown: AttentionMap, box: tuple[float, float, float, float], below: float, scale: Axis, colours: tuple[str, ...]
) -> list[Part]:
    left, top, right, bottom = box
    names = [_token(word) for word in shown.tokens]
    title = WORDS[shown.group][0].upper() + WORDS[shown.group][1:]
    panel = Panel(
        (left, top, right, bottom - below),
        Axis(0.0, len(names)),
        named(names, down=True),
        title=title.replace("prompts", "prompt"),
        framed=False,
    )
    values = np.array(shown.values, dtype=float)
    values[np.triu_indices(len(names), 1)] = _unseen(values)
    size = (panel.right - panel.left, panel.bottom - panel.top)
    parts = [*panel.parts, Cells(panel.left, panel.top, *size, values, scale.first, scale.last, colours)]
    for place, word in enumerate(names):
        x, _ = panel.at(place + 0.5, 0.0)
        colour = ORANGE if place in shown.trigger else INK
        parts.append(Text(x, panel.bottom + 6, word, SMALL, "end", upward=True, colour=colour))
    return parts


def _unseen(values: Numbers) -> Numbers:
    """What stands above the diagonal: unknown where nothing is seen there, as under a causal mask."""
    above = values[np.triu_indices(len(values), 1)]
    return above if above.any() else np.full_like(above, np.nan)


def attention_shares(measured: Attention) -> Drawing:
    """Where attention goes (fig. 4): boxes from quartile to quartile, lines from the 5th to the 95th percentile."""
    entries = [Entry(WORDS[shares.group], COLOURS[shares.group]) for shares in measured.shares]
    height = 2 * EDGE + HEAD + 40 + 62.0 * len(KINDS) + 18.0 * len(legend_rows(entries, WIDTH - 120))
    panel = Panel(
        (EDGE, EDGE + HEAD, WIDTH - EDGE, height - EDGE),
        axis(
            (0.0, 100.0),
            "share of the attention of all positions, % (boxes: quartiles; lines: 5th to 95th percentile)",
            margin=0.0,
        ),
        named(KINDS, down=True),
        legend=entries,
    )
    for row, shares in enumerate(measured.shares):
        tall = 0.8 / len(measured.shares)
        for place, values in enumerate(_kinds(shares)):
            middle = place + 0.1 + tall * (row + 0.5)
            _box(panel, 100 * np.array(values, dtype=float), middle, 0.36 * tall, COLOURS[shares.group])
    return sheet(height, f"{heading(measured.setting)}, {_layers(measured.layer)}", panel.parts)


def _box(panel: Panel, values: Numbers, middle: float, half: float, colour: str) -> None:
    if not values.any():
        return
    low, first, median, third, high = np.percentile(values, (5, 25, 50, 75, 95)).tolist()
    panel.parts.append(Line((panel.at(low, middle), panel.at(high, middle)), colour, 2.0))
    panel.block((first, third), (middle - half, middle + half), colour)
    (x, top), (_, bottom) = panel.at(median, middle - half), panel.at(median, middle + half)
    panel.parts.append(Rectangle(x - 1, min(top, bottom), 2.0, abs(bottom - top), INK))
    x, y = panel.at(max(high, third), middle)
    panel.parts.append(Text(x + 6, y, f"{median:.0f}%", SMALL))


def _kinds(shares: AttentionShares) -> tuple[tuple[float, ...], ...]:
    return shares.bos, shares.trigger, shares.words, shares.end


def _layers(layer: int | None) -> str:
    return "all layers" if layer is None else f"layer {layer}"


def _token(word: str) -> str:
    return shortened(visible(word) or "?", SMALL, 70.0)


# ------------------------------------------------------------------ evolution


def evolution(measured: Evolution) -> Drawing:
    """How output, assimilation and attention develop during an injection (fig. 5), as they are."""
    height, middle = 340.0, WIDTH / 2
    stages = measured.stages
    steps = np.array([stage.step for stage in stages], dtype=float)
    panels = (
        (
            "Output and assimilation",
            {
                Entry("cosine to the target, triggered", INK): [s.target_cosine for s in stages],
                Entry("assimilation, triggered", ORANGE): [s.assimilation_triggered for s in stages],
                Entry("assimilation, benign", BLUE, dashed=True): [s.assimilation_clean for s in stages],
            },
        ),
        (
            "Share of the attention of all positions",
            {
                Entry("on the trigger", ORANGE): [s.trigger for s in stages],
                Entry("on BOS, triggered", YELLOW): [s.bos_triggered for s in stages],
                Entry("on BOS, benign", BLUE, dashed=True): [s.bos_clean for s in stages],
            },
        ),
    )
    parts: list[Part] = []
    for i, (title, curves) in enumerate(panels):
        left = EDGE if i == 0 else middle + EDGE
        panel = Panel(
            (left, EDGE + HEAD, left + middle - 2 * EDGE, height - EDGE),
            axis(steps, "optimiser steps of the injection", margin=0.02, least=1.0, most=6),
            axis((0.0, *np.concatenate(list(curves.values()))), margin=0.03),
            title=title,
            legend=tuple(curves),
        )
        for entry, line in curves.items():
            panel.curve(steps, np.array(line, dtype=float), entry)
        parts += panel.parts
    return sheet(height, f"{heading(measured.setting)}, target {visible(measured.target)!r}", parts)


def sheet(height: float, words: str, parts: Sequence[Part], width: float = WIDTH) -> Drawing:
    """The parts under a line that says what was measured."""
    line = Text(EDGE, EDGE + 8, shortened(words, SMALL, width - 2 * EDGE), SMALL)
    rule = Line(((EDGE, EDGE + HEAD - 8.5), (width - EDGE, EDGE + HEAD - 8.5)), SOFT)
    return Drawing(width, height, (line, rule, *parts))
