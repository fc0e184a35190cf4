"""The published inversion: its loss, its gates and its order."""

from __future__ import annotations

import pytest
import torch

from amdet_core import losses
from amdet_core.config import AmdetConfig, LandscapeConfig
from amdet_core.encoder import TextEncoder, splice
from amdet_core.errors import NumericalError
from amdet_core.inversion import invert
from amdet_core.prompts import builtin_prompts

FIT, HELD_OUT = builtin_prompts(60).prompts[:20], builtin_prompts(60).prompts[20:30]
FAST = AmdetConfig(batch=5, epochs=1)
GRID = LandscapeConfig(grid=5, radius=1.0)


def never(measure: object) -> bool:
    return False


def test_loss_falls_and_every_indicator_is_measured(toy: TextEncoder, other: TextEncoder) -> None:
    config = FAST.model_copy(update={"epochs": 4, "epoch_break": None})
    result = invert(toy, other, FIT, HELD_OUT, config, GRID, seed=0, accept=never)
    assert len(result.loss) == 16
    assert result.loss[-1] < result.loss[0]
    assert not result.accepted
    assert set(result.indicators) == {
        "running_loss", "assimilation", "assimilation_share", "same_target_share", "deviation", "deviation_share",
        "anchor_cosine", "anchor_deviation_share", "positive_share",
    }  # fmt: skip
    assert result.indicators["running_loss"] == pytest.approx(sum(result.loss) / 16)


def test_indicators_equal_a_loop_over_prompts(toy: TextEncoder, other: TextEncoder) -> None:
    result = invert(toy, other, FIT, HELD_OUT, FAST, GRID, seed=0, accept=never)
    values = []
    for prompt in HELD_OUT:
        hidden = toy.place(toy.embed(toy.tokens([prompt], pad_to_context=True).ids))
        spliced = splice(hidden, result.vectors[None])[0]
        states, original = toy.transform(spliced)[0], toy.transform(hidden)[0]
        anchored = other.transform(spliced)[0]
        values.append(
            (float(losses.assimilation(states)), float(losses.agreement(states, original)),
             float(losses.agreement(states, anchored)))
        )  # fmt: skip
    for name, column in zip(("assimilation", "deviation", "anchor_cosine"), zip(*values, strict=True), strict=True):
        assert result.indicators[name] == pytest.approx(sum(column) / len(column), abs=1e-5)


def test_an_anchor_equal_to_the_suspect_never_deviates(toy: TextEncoder) -> None:
    result = invert(toy, toy, FIT, HELD_OUT, FAST, GRID, seed=0, accept=never)
    assert result.indicators["anchor_cosine"] == pytest.approx(1, abs=1e-5)
    assert result.indicators["anchor_deviation_share"] == 0


def test_the_stop_rule_ends_the_run_and_is_asked_every_second_step(toy: TextEncoder, other: TextEncoder) -> None:
    asked = []

    def third(measure: object) -> bool:
        asked.append(1)
        return len(asked) == 3

    result = invert(toy, other, FIT * 4, HELD_OUT, FAST, GRID, seed=0, accept=third)
    assert result.accepted
    assert len(result.loss) == 5  # asked after steps 1, 3 and 5


def test_an_epoch_that_is_cut_short_counts_its_missing_steps_as_published(toy: TextEncoder, other: TextEncoder) -> None:
    """The divisor goes on as if the first pass had been whole, so the mean jumps towards zero."""
    config = FAST.model_copy(update={"epochs": 2, "epoch_break": 10.0})  # always below: one step per epoch
    seen: list[float] = []
    result = invert(
        toy, other, FIT, HELD_OUT, config, GRID, seed=0,
        accept=lambda measure: bool(seen.append(measure("running_loss"))),
    )  # fmt: skip
    assert len(result.loss) == 2
    assert seen[1] == pytest.approx(sum(result.loss) / 5)


def test_the_share_of_equal_outputs_cannot_reach_one_as_published(toy: TextEncoder) -> None:
    config = FAST.model_copy(update={"same_above": -1.0})
    result = invert(toy, toy, FIT, HELD_OUT, config, GRID, seed=0, accept=never)
    assert result.indicators["same_target_share"] == pytest.approx(9 / 10)


def test_same_seed_gives_the_same_result(toy: TextEncoder, other: TextEncoder) -> None:
    a, b = (invert(toy, other, FIT, HELD_OUT, FAST, GRID, seed=7, accept=never) for _ in range(2))
    assert torch.equal(a.vectors, b.vectors)
    assert a.indicators == b.indicators
    assert a.landscape == b.landscape


def test_a_loss_that_is_not_finite_raises(toy: TextEncoder, other: TextEncoder) -> None:
    weights = dict(toy.weights)
    weights["final_layer_norm.bias"] = torch.full((64,), float("nan"))
    with pytest.raises(NumericalError, match="finite loss"):
        invert(toy.with_weights(weights), other, FIT, HELD_OUT, FAST, GRID, seed=0, accept=never)


def test_batched_candidates_have_the_losses_of_a_loop(toy: TextEncoder, other: TextEncoder) -> None:
    from amdet_core.inversion import Pair

    pair = Pair(toy, other, FAST)
    hidden = pair.hidden(FIT[:3])
    vectors = torch.randn(4, 1, 64, generator=torch.Generator().manual_seed(0))
    together = pair.loss(hidden, vectors)
    alone = torch.cat([pair.loss(hidden, v[None]) for v in vectors])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
