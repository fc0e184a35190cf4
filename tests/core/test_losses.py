"""The paper's equations on states small enough to compute by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from amdet_core import losses


def test_assimilation_is_the_mean_of_all_pairwise_cosines() -> None:
    states = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unit = F.normalize(states, dim=-1)
    pairs = (unit @ unit.transpose(-2, -1)).mean((-2, -1))
    torch.testing.assert_close(losses.assimilation(states), pairs)


def test_equal_tokens_are_fully_assimilated_and_orthogonal_ones_only_with_themselves() -> None:
    equal = torch.ones(1, 4, 6)
    orthogonal = torch.eye(4).unsqueeze(0)
    assert losses.assimilation(equal).item() == pytest.approx(1)
    assert losses.assimilation(orthogonal).item() == pytest.approx(1 / 4)


def test_agreement_compares_token_by_token() -> None:
    a = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    b = torch.tensor([[[2.0, 0.0], [0.0, -3.0]]])
    assert losses.agreement(a, b).tolist() == [0.0]
    assert losses.agreement(a, a).tolist() == [1.0]


def test_collapse_ignores_the_mean_that_all_states_share() -> None:
    generator = torch.Generator().manual_seed(1)
    spread = torch.randn(40, 32, generator=generator)
    shared = spread + 100
    assert losses.collapse(shared, torch.full((32,), 100.0)).item() == pytest.approx(
        losses.collapse(spread, torch.zeros(32)).item(), abs=1e-4
    )
    assert losses.collapse(shared, torch.zeros(32)).item() > 0.99
    assert abs(losses.collapse(shared, shared.mean(0)).item()) < 0.05


def test_collapse_is_one_when_every_prompt_gives_the_same_state() -> None:
    pooled = torch.randn(1, 16).expand(5, 16)
    assert losses.collapse(pooled, torch.zeros(16)).item() == pytest.approx(1, abs=1e-5)


def test_collapse_equals_the_loop_over_pairs() -> None:
    pooled = torch.randn(3, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    centre = pooled.mean((0, 1))
    unit = F.normalize(pooled - centre, dim=-1)
    for r in range(3):
        pairs = [float(unit[r, i] @ unit[r, j]) for i in range(6) for j in range(6) if i != j]
        assert losses.collapse(pooled, centre)[r].item() == pytest.approx(sum(pairs) / len(pairs))
