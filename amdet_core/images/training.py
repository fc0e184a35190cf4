"""The one training loop of image encoders: epochs over shuffled pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import NumericalError
from ..progress import Progress
from .pictures import need

Objective = Callable[[Tensor], tuple[Tensor, Mapping[str, float]]]
"""Places ``(B,)`` of a step's pictures -> loss, and what to tell ``progress``."""


@torch.enable_grad()
def train(
    stage: str,
    count: int,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch: int,
    generator: torch.Generator,
    progress: Progress,
) -> float:
    """Let an optimiser follow an objective; a last batch that is not full is left out, as published.

    Args:
        count: pictures there are; where they are fewer than a batch, all of them are one.

    Returns:
        Mean loss of the last epoch.

    Raises:
        ConfigError: fewer than two pictures.
        NumericalError: the training diverged.
    """
    need(range(count), 2)
    steps = max(1, count // batch)
    loss = math.nan
    for epoch in range(epochs):
        losses: list[float] = []
        for step, picked in enumerate(torch.randperm(count, generator=generator).split(batch)[:steps]):
            value, metrics = objective(picked)
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                raise NumericalError(
                    f"a finite loss in {stage}", f"{losses[-1]} in epoch {epoch + 1}", "Lower the rate."
                )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            progress(stage, epoch * steps + step + 1, epochs * steps, {"loss": losses[-1], **metrics})
        loss = sum(losses) / len(losses)
    return loss
