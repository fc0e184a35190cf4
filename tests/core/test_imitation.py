"""MIMIC's losses and weights against plain formulas, and its estimate of mutual information against cases known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from amdet_core import imitation
from amdet_core.config import ImitationConfig

QUICK = ImitationConfig(critic_epochs=30, critic_last=5, critic_width=32, critic_rate=1e-2)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_contrast_is_nt_xent() -> None:
    one, two, temperature = drawn(3, 5), drawn(3, 5, seed=1), 0.5
    views = [*one, *two]
    terms = []
    for i in range(6):
        like = [math.exp(float(F.cosine_similarity(views[i], views[j], dim=0)) / temperature) for j in range(6)]
        terms.append(-math.log(like[(i + 3) % 6] / (sum(like) - like[i])))
    assert float(imitation.contrast(one, two, temperature)) == pytest.approx(sum(terms) / 6, rel=1e-5)


def test_an_attention_map_is_the_squares_by_place_at_length_one() -> None:
    found = imitation.attention_map(torch.tensor([[[1.0, 2.0], [0.0, 0.0], [2.0, 4.0]]]))
    assert found[0].tolist() == pytest.approx([5 / math.sqrt(425), 0, 20 / math.sqrt(425)], abs=1e-6)


def test_attention_losses_are_weighted_block_by_block() -> None:
    students, teachers = (drawn(2, 4, 3), drawn(2, 6, 5, seed=1)), (drawn(2, 4, 3, seed=2), drawn(2, 6, 5, seed=3))
    expected = 0.0
    for weight, own, shown in zip((2.0, 7.0), students, teachers, strict=True):
        a, b = imitation.attention_map(own), imitation.attention_map(shown)
        expected += weight * float(((a - b) ** 2).sum()) / a.numel()
    assert float(imitation.attention_loss(students, teachers, (2.0, 7.0))) == pytest.approx(expected, rel=1e-5)
    assert float(imitation.attention_loss(students, students, (2.0, 7.0))) == 0


def test_the_clone_loss_is_minus_the_mean_cosine() -> None:
    assert float(imitation.clone_loss(torch.eye(2), torch.tensor([[3.0, 0.0], [1.0, 0.0]]))) == pytest.approx(-0.5)


def test_weights_are_a_base_and_a_share() -> None:
    assert imitation.attention_weights([1.0, 3.0], ImitationConfig()) == (3500.0, 8500.0)
    assert imitation.attention_weights([0.0, 0.0], ImitationConfig()) == (6000.0, 6000.0)


def test_the_bound_is_that_of_donsker_and_varadhan() -> None:
    joint, apart = drawn(5), drawn(5, seed=1)
    expected = sum(joint.tolist()) / 5 - math.log(sum(math.exp(t) for t in apart.tolist()) / 5)
    assert float(imitation.donsker_varadhan(joint, apart)) == pytest.approx(expected, rel=1e-5)


def test_what_depends_informs_more_than_what_does_not() -> None:
    y = drawn(256, 2)
    tied, loose = (
        imitation.mutual_information(x, y, QUICK, torch.Generator().manual_seed(0)) for x in (y, drawn(256, 2, seed=1))
    )
    assert tied > 0.8
    assert tied > loose + 0.5
    assert loose >= 0


def test_an_estimate_that_is_not_finite_counts_as_none() -> None:
    x = torch.full((8, 2), math.nan)
    assert imitation.mutual_information(x, drawn(8, 2), QUICK, torch.Generator().manual_seed(0)) == 0


def test_estimates_are_the_same_of_a_seed_and_leave_global_chance_alone() -> None:
    x, y = drawn(32, 3), drawn(32, 2, seed=1)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two = (imitation.mutual_information(x, y, QUICK, torch.Generator().manual_seed(0)) for _ in range(2))
    assert one == two
    assert torch.equal(before, torch.random.get_rng_state())
