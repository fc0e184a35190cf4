"""Curvature on surfaces whose Hessian is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amdet_core.config import LandscapeConfig
from amdet_core.landscape import hessian_eigenvalues, landscape


def grid(a: float, b: float, ab: float, n: int = 9, radius: float = 2.0) -> tuple[Tensor, float]:
    x = torch.linspace(-radius, radius, n, dtype=torch.float64)
    u, v = torch.meshgrid(x, x, indexing="ij")
    return a / 2 * u**2 + b / 2 * v**2 + ab * u * v + 3 * u - v, 2 * radius / (n - 1)


@pytest.mark.parametrize(("a", "b", "ab"), [(2.0, 5.0, 0.0), (1.0, 1.0, 0.5), (-3.0, 4.0, 1.0)])
def test_eigenvalues_of_a_quadratic_are_exact(a: float, b: float, ab: float) -> None:
    surface, spacing = grid(a, b, ab)
    expected = torch.linalg.eigvalsh(torch.tensor([[a, ab], [ab, b]], dtype=torch.float64))
    found = hessian_eigenvalues(surface, spacing).view(-1, 2)
    torch.testing.assert_close(found, expected.expand(49, 2))


def scan(loss: object, **settings: object) -> float:
    config = LandscapeConfig(**{"grid": 11, "radius": 1.0, **settings})
    start = torch.full((1, 6), 0.3)
    return landscape(loss, start, config, torch.Generator().manual_seed(0)).positive_share  # type: ignore[arg-type]


def test_a_bowl_is_all_positive_and_a_hill_has_no_positive_curvature() -> None:
    def bowl(v: Tensor) -> Tensor:
        return v.square().sum((-2, -1))

    assert scan(bowl) == 1.0
    assert scan(lambda v: -bowl(v)) == 0.0


def test_a_flat_surface_has_no_positive_curvature_and_does_not_fail() -> None:
    assert scan(lambda v: 0 * v.sum((-2, -1))) == 0.0


def test_same_seed_gives_the_same_surface_and_radius_defaults_to_the_vectors_norm() -> None:
    def loss(v: Tensor) -> Tensor:
        return v.sin().sum((-2, -1))

    config = LandscapeConfig(grid=7, radius=None)
    start = torch.full((1, 4), 0.5)
    first, second = (landscape(loss, start, config, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first == second
    assert first.radius == pytest.approx(1.0)
    assert len(first.eigenvalues) == 2 * 5 * 5
