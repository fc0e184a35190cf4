"""Random views of pictures, a whole batch at once: what SimCLR takes for the same thing seen twice.

Sizes and chances are those of the released code of BadEncoder and MIMIC. Deviations: the steps of the colour change
come in one order, and hue turns in YIQ.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import ViewConfig

RATIO = 4 / 3
"""Largest ratio of a view's sides."""
JITTER, HUE = 0.4, 0.1
"""Change of brightness, contrast and saturation, as a share; of hue, in turns."""
JITTERED, GREY = 0.8, 0.2
"""Share of views whose colours change, and without colours."""
LUMA = (0.299, 0.587, 0.114)
TO_YIQ = (LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def view(pictures: Tensor, config: ViewConfig, generator: torch.Generator) -> Tensor:
    """A view of each picture ``(B, 3, S, S)`` from 0 to 1: a part of it, mirrored or not, in other colours."""
    return _recoloured(_cropped(pictures, config.crop, generator), generator)


def _cropped(pictures: Tensor, least: float, generator: torch.Generator) -> Tensor:
    count = len(pictures)
    area, ratio, across, down, side = torch.rand((5, count), generator=generator)
    area, ratio = least + (1 - least) * area, ((2 * ratio - 1) * math.log(RATIO)).exp()
    wide, high = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    zero, mirrored = torch.zeros(count), torch.where(side < 0.5, -1.0, 1.0)
    rows = (
        torch.stack((wide * mirrored, zero, (2 * across - 1) * (1 - wide)), 1),
        torch.stack((zero, high, (2 * down - 1) * (1 - high)), 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False).to(pictures.device)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _recoloured(pictures: Tensor, generator: torch.Generator) -> Tensor:
    lots = torch.rand((6, len(pictures), 1, 1, 1), generator=generator).to(pictures.device)
    bright, contrast, saturation = 1 + JITTER * (2 * lots[:3] - 1)
    changed = (pictures * bright).clamp(0, 1)
    changed = torch.lerp(_grey(changed).mean((2, 3), keepdim=True), changed, contrast).clamp(0, 1)
    changed = torch.lerp(_grey(changed), changed, saturation).clamp(0, 1)
    changed = _turned(changed, HUE * (2 * lots[3].flatten() - 1)).clamp(0, 1)
    out = torch.where(lots[4] < JITTERED, changed, pictures)
    return torch.where(lots[5] < GREY, _grey(out).expand_as(out), out)


def _grey(pictures: Tensor) -> Tensor:
    return (pictures * torch.tensor(LUMA, device=pictures.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _turned(pictures: Tensor, turns: Tensor) -> Tensor:
    """Other hues, ``(B,)`` turns of the colour circle away."""
    angle = 2 * math.pi * turns
    zero, one, cos, sin = torch.zeros_like(angle), torch.ones_like(angle), angle.cos(), angle.sin()
    rows = ((one, zero, zero), (zero, cos, -sin), (zero, sin, cos))
    turn = torch.stack([torch.stack(row, 1) for row in rows], 1)
    to = torch.tensor(TO_YIQ, device=pictures.device)
    return torch.einsum("bij,bjhw->bihw", torch.linalg.inv(to) @ turn @ to, pictures)
