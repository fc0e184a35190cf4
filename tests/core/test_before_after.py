"""What a repair changed: measured on encoders whose answers are known, and drawn as it is."""

from __future__ import annotations

import numpy as np
import pytest

from amdet_core import before_after_figures, losses, pocket
from amdet_core.anatomy import Pairs, Setting, attention_shares
from amdet_core.before_after import BeforeAfter, Side, before_after
from amdet_core.before_after_figures import COLOURS
from amdet_core.drawing import Line
from amdet_core.encoder import TextEncoder
from amdet_core.prompts import builtin_prompts

PAIRS = 12


@pytest.fixture(scope="module")
def encoders() -> dict[str, TextEncoder]:
    """A repair that is perfect: it put the anchor in the suspect's place."""
    return {"suspect": pocket.load("backdoored"), "repaired": pocket.load("clean"), "anchor": pocket.load("clean")}


@pytest.fixture(scope="module")
def pairs(encoders: dict[str, TextEncoder]) -> Pairs:
    prompts = builtin_prompts(200).prompts
    return Pairs.of(encoders["suspect"], prompts, pocket.TRIGGER, lambda text: text.replace("o", pocket.TRIGGER), PAIRS)


def measured(encoders: dict[str, TextEncoder], pairs: Pairs, target: str | None = pocket.TARGET) -> BeforeAfter:
    setting = Setting(encoder="suspect", trigger=pairs.trigger, mode=pocket.MODE, prompts="built in", n=PAIRS)
    return before_after(setting, "repaired", encoders, pairs, target)


def test_the_trigger_leads_the_suspect_alone_to_the_target(encoders: dict[str, TextEncoder], pairs: Pairs) -> None:
    suspect, repaired, anchor = measured(encoders, pairs).sides
    assert min(suspect.goal_cosine) > 0.9 > 0.6 > max(repaired.goal_cosine)
    assert repaired.model_copy(update={"group": "anchor"}) == anchor


def test_layers_and_attention_are_those_of_the_encoder(encoders: dict[str, TextEncoder], pairs: Pairs) -> None:
    found = measured(encoders, pairs)
    suspect, encoder = found.sides[0], encoders["suspect"]
    states = encoder.states(encoder.tokens(pairs.triggered, pad_to_context=True))
    assert suspect.assimilation == pytest.approx(losses.assimilation(states).tolist(), abs=1e-5)
    assert len(suspect.by_layer) == len(found.clean_by_layer) == encoder.spec.layers + 1
    assert suspect.by_layer[-1] == pytest.approx(np.mean(suspect.assimilation), abs=1e-5)
    shares = [
        np.mean(attention_shares(encoder, pairs.triggered, pairs.trigger, layer=layer + 1).trigger)
        for layer in range(encoder.spec.layers)
    ]
    assert suspect.attention == pytest.approx(shares, abs=1e-5)


def test_without_a_target_the_goal_is_what_the_suspect_answers(encoders: dict[str, TextEncoder], pairs: Pairs) -> None:
    two = {group: one for group, one in encoders.items() if group != "anchor"}
    found = measured(two, pairs, None)
    assert [side.group for side in found.sides] == ["suspect", "repaired"]
    assert min(found.sides[0].goal_cosine) > 0.9 > max(found.sides[1].goal_cosine)


def test_curves_are_shares_of_prompts_at_or_above() -> None:
    side = Side(group="suspect", goal_cosine=(0.5, 1.0), assimilation=(0.9, 0.9), by_layer=(0.8, 0.9), attention=(0.3,))
    other = side.model_copy(update={"group": "repaired", "goal_cosine": (0.0, 0.0)})
    setting = Setting(encoder="suspect", trigger="x", mode="prefix", prompts="built in", n=2)
    made = BeforeAfter(setting=setting, repaired="r", target=None, sides=(side, other), clean_by_layer=(0.7, 0.7))
    drawing = before_after_figures.before_after(made)
    coverage = next(
        part
        for part in drawing.parts
        if isinstance(part, Line) and part.colour == COLOURS["suspect"] and len(part.points) > 5
    )
    heights = sorted({round(y, 3) for _, y in coverage.points})
    assert len(heights) == 2, "all prompts up to 0.5, half of them up to 1"
