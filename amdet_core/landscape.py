"""The loss surface around a recovered feature, and what its curvature says (eqs. 21-27).

An injected feature sits in a smooth bowl, a natural one on an irregular surface: the share of positive
Hessian eigenvalues tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .config import LandscapeConfig
from .memory import Batches
from .progress import Progress, silent
from .records import Landscape

Loss = Callable[[Tensor], Tensor]
"""Loss of candidates: ``(R, K, D)`` -> ``(R,)``."""

CHUNK = 50
"""Grid points that run side by side."""


def landscape(
    loss: Loss, vectors: Tensor, config: LandscapeConfig, generator: torch.Generator, progress: Progress = silent
) -> Landscape:
    """Loss on a plane through ``vectors`` and the eigenvalues of its interior Hessians.

    The first axis is the unit negative gradient, the second a random direction orthogonal to it.

    Args:
        loss: mean loss over the prompts for each candidate.
        vectors: ``(K, D)``, the recovered feature.
        generator: source of the second axis; a CPU generator.

    References:
        Li et al., Visualizing the Loss Landscape of Neural Nets, 2018, https://arxiv.org/abs/1712.09913
    """
    first, second = _axes(loss, vectors, generator)
    radius = config.radius or float(vectors.norm())
    steps = torch.linspace(-radius, radius, config.grid, dtype=vectors.dtype, device=vectors.device)
    alpha, beta = torch.meshgrid(steps, steps, indexing="ij")
    points = torch.stack((alpha.flatten(), beta.flatten()), -1)

    def losses(part: slice) -> Tensor:
        chunk = points[part, :, None, None]
        values = loss(vectors + chunk[:, 0] * first + chunk[:, 1] * second)
        progress("landscape", part.stop, len(points))
        return values

    with torch.no_grad():
        values = Batches(CHUNK).map(losses, len(points))
    surface = torch.cat(values).view(config.grid, config.grid).cpu().double()
    eigenvalues = hessian_eigenvalues(surface, 2 * radius / (config.grid - 1))
    return Landscape(
        radius=radius,
        values=tuple(tuple(row) for row in surface.tolist()),
        eigenvalues=tuple(eigenvalues.sort().values.tolist()),
        positive_share=float((eigenvalues > config.positive_above).double().mean()),
        prompts=config.prompts,
    )


def hessian_eigenvalues(surface: Tensor, spacing: float) -> Tensor:
    """Eigenvalues of the 2x2 Hessian at every interior grid point, by central differences (eqs. 22-26).

    Args:
        surface: ``(N, N)`` loss values.
        spacing: distance of two grid points.

    Returns:
        ``(2 * (N - 2)**2,)``.
    """
    centre = surface[1:-1, 1:-1]
    aa = (surface[2:, 1:-1] - 2 * centre + surface[:-2, 1:-1]) / spacing**2
    bb = (surface[1:-1, 2:] - 2 * centre + surface[1:-1, :-2]) / spacing**2
    ab = (surface[2:, 2:] - surface[2:, :-2] - surface[:-2, 2:] + surface[:-2, :-2]) / (4 * spacing**2)
    hessian = torch.stack((torch.stack((aa, ab), -1), torch.stack((ab, bb), -1)), -2)
    eigenvalues: Tensor = torch.linalg.eigvalsh(hessian)
    return eigenvalues.flatten()


def _axes(loss: Loss, vectors: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Unit negative gradient, and a random unit direction orthogonal to it, both ``(K, D)``."""
    point = vectors.detach().clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(point.unsqueeze(0)).sum(), point)
    noise = torch.randn(vectors.shape, generator=generator).to(vectors)
    first = -gradient if bool(gradient.any()) else torch.randn(vectors.shape, generator=generator).to(vectors)
    first = first / first.norm()
    second = noise - (noise * first).sum() * first
    return first, second / second.norm()
