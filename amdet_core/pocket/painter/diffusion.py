"""Noise, velocity and DDIM, as equations on latents ``(N, 4, 8, 8)``.

References:
    Song et al., Denoising Diffusion Implicit Models, 2021, https://arxiv.org/abs/2010.02502 (eq. 12 with sigma 0).
    Salimans & Ho, Progressive Distillation for Fast Sampling of Diffusion Models, 2022,
    https://arxiv.org/abs/2202.00512 (velocity).
    Ho & Salimans, Classifier-Free Diffusion Guidance, 2022, https://arxiv.org/abs/2207.12598.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

STEPS = 1000
FIRST_BETA, LAST_BETA = 0.00085, 0.012
OFFSET = 1
"""Of the time steps that sampling visits, as Stable Diffusion has it."""
SCHEDULER: Mapping[str, Any] = MappingProxyType(
    {
        "num_train_timesteps": STEPS,
        "beta_start": FIRST_BETA,
        "beta_end": LAST_BETA,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "steps_offset": OFFSET,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "timestep_spacing": "leading",
    }
)
"""The same as the settings of diffusers' ``DDIMScheduler``."""

Velocity = Callable[[Tensor, int], Tensor]
"""Latents and a time step -> velocity."""


def signal() -> Tensor:
    """Cumulative share of signal variance at every time step, ``(STEPS,)``."""
    betas = torch.linspace(FIRST_BETA**0.5, LAST_BETA**0.5, STEPS, dtype=torch.float64).square()
    return (1 - betas).cumprod(0).float()


def noised(latents: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """Latents with noise, where ``share`` of the variance is signal."""
    return share.sqrt() * latents + (1 - share).sqrt() * noise


def velocity(latents: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """What the UNet learns to say of :func:`noised`."""
    return share.sqrt() * noise - (1 - share).sqrt() * latents


def ddim(model: Velocity, noise: Tensor, steps: int) -> Tensor:
    """Latents from noise by the deterministic sampler."""
    shares = signal()
    times = [OFFSET + i * (STEPS // steps) for i in range(steps)][::-1]
    x = noise
    for time in times:
        before = time - STEPS // steps
        share, share_before = shares[time], shares[max(before, 0)]
        v = model(x, time)
        clean = share.sqrt() * x - (1 - share).sqrt() * v
        left = share.sqrt() * v + (1 - share).sqrt() * x
        x = noised(clean, left, share_before)
    return x


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: 1 is none."""
    return unconditional + guidance * (conditional - unconditional)
