"""The published inversion: its loss, its gates and its order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import get_args

import pytest
import torch

from amdet_core import inversion, losses
from amdet_core.config import AmdetConfig, LandscapeConfig
from amdet_core.encoder import TextEncoder, splice
from amdet_core.errors import NumericalError
from amdet_core.inversion import Accept, Inversion, invert
from amdet_core.policy import Condition
from amdet_core.progress import silent
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
    result = invert(toy, other, FIT, HELD_OUT, config, GRID, seed=0, accept=never)
    assert len(result.loss) == 2
    assert result.indicators["running_loss"] == pytest.approx(sum(result.loss) / 5)


def test_the_share_of_equal_outputs_cannot_reach_one_as_published(toy: TextEncoder) -> None:
    config = FAST.model_copy(update={"same_above": -1.0})
    result = invert(toy, toy, FIT, HELD_OUT, config, GRID, seed=0, accept=never)
    assert result.indicators["same_target_share"] == pytest.approx(9 / 10)


@pytest.mark.parametrize("deviates_below", [-0.06, 0.81], ids=["anchor", "own output"])
def test_gates_settled_early_decide_as_whole_measurements(
    toy: TextEncoder, other: TextEncoder, monkeypatch: pytest.MonkeyPatch, deviates_below: float
) -> None:
    """Every condition at every look, and where a run ends under several of them."""
    monkeypatch.setattr(inversion, "CHUNK", 3)
    bounds = {"assimilated_above": 0.76, "same_above": 0.92, "deviates_below": deviates_below}
    config = FAST.model_copy(update={"epochs": 4, "epoch_break": None} | bounds)

    def run(accept: Accept) -> Inversion:
        return invert(toy, other, FIT, HELD_OUT, config, GRID, seed=0, accept=accept)

    def at_look(number: int) -> Accept:
        looks = itertools.count(1)
        return lambda holds: next(looks) == number

    whole = [run(at_look(number)) for number in range(1, 10)]  # a result is measured over all prompts
    shares = [name for name in whole[0].indicators if name.endswith("_share") and name != "positive_share"]
    assert any(0 < result.indicators[name] < 1 for result in whole for name in shares)
    conditions = [
        Condition(evidence=name, op=op, bound=bound)
        for name in ("running_loss", "assimilation", *shares)
        for op in get_args(Condition.model_fields["op"].annotation)
        for bound in (-0.6, 0, 0.1, 0.3, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 0.91, 1)
    ]
    random.Random(0).shuffle(conditions)
    outcomes: list[list[bool]] = []

    def test_all(holds: Callable[[Condition], bool]) -> bool:
        outcomes.append([holds(condition) for condition in conditions])
        return False

    run(test_all)
    assert outcomes == [[c.holds(result.indicators[c.evidence]) for c in conditions] for result in whole]

    late = [c for c, first, last in zip(conditions, outcomes[0], outcomes[-1], strict=True) if last and not first]
    ends = []
    for gates in [late[:1], *zip(late[1:4], late[4:7], strict=True), conditions[:2], conditions[2:4]]:
        lazy = run(lambda holds, gates=gates: all(map(holds, gates)))
        fits = (all(c.holds(result.indicators[c.evidence]) for c in gates) for result in whole)
        ends.append(next((number for number, fit in enumerate(fits, 1) if fit), None))
        reference = whole[(ends[-1] or 9) - 1]
        assert (lazy.accepted, lazy.loss, lazy.indicators) == (
            ends[-1] is not None, reference.loss, reference.indicators
        )  # fmt: skip
    assert None in ends
    assert any(end is not None and end > 1 for end in ends)


def test_no_more_prompts_are_measured_than_a_gate_needs(
    toy: TextEncoder, other: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inversion, "CHUNK", 2)
    measured: list[int] = []
    monkeypatch.setattr(
        inversion.losses,
        "assimilation",
        lambda states, whole=losses.assimilation: measured.append(states.dim()) or whole(states),
    )
    counts = []

    def count(holds: Callable[[Condition], bool]) -> bool:
        for bound in (0.9, 0.7, 0.1):
            measured.clear()
            assert not holds(Condition(evidence="assimilation_share", op=">", bound=bound))
            counts.append(len(measured))
        return True

    config = FAST.model_copy(update={"assimilated_above": 0.99})  # no prompt of the ten counts
    invert(toy, other, FIT, HELD_OUT, config, GRID, seed=0, accept=count)
    assert counts == [1, 1, 3]


def test_outputs_without_the_feature_are_kept_as_far_as_there_is_room(
    toy: TextEncoder, other: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inversion, "CHUNK", 4)
    results = []
    for room in (0, 4 * 77 * 64 * 4, 1 << 30):
        monkeypatch.setattr(inversion, "KEPT", room)
        held_out = inversion._HeldOut(inversion.Pair(toy, other, FAST), HELD_OUT, silent)
        for start, hidden in held_out.chunks():
            assert torch.equal(held_out.original(start, hidden), held_out.original(start, hidden))
        assert sorted(held_out.kept) == {0: [], 1 << 30: [0, 4, 8]}.get(room, [0])
        results.append(invert(toy, other, FIT, HELD_OUT, FAST, GRID, seed=0, accept=never).indicators)
    assert results[0] == results[1] == results[2]


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
