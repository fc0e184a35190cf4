"""One training run: AdamW, a cosine schedule, averaged weights, and a checkpoint from which a killed run goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import NumericalError
from ...progress import Progress, silent

CHECKPOINT_SECONDS = 60.0
CLIP_NORM = 1.0

Metrics = Mapping[str, float]
Loss = Callable[[nn.Module, int, torch.Generator], tuple[Tensor, Metrics]]
"""Module, step and a generator of this step's own -> loss and live numbers."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast.

    Attributes:
        steps: over all runs.
        rate: highest step size of AdamW; it rises over ``warmup`` steps and falls to zero as a cosine.
        decay: weight decay of matrices.
        average: share of the old average that a step keeps (EMA).
    """

    steps: int
    rate: float
    warmup: int = 150
    decay: float = 1e-3
    average: float = 0.998
    betas: tuple[float, float] = (0.9, 0.99)


class Training:
    """A module that learns, resumable.

    Attributes:
        step: steps that have been taken over all runs.

    Args:
        name: of the stage, for progress.
        module: is trained in place.
        loss: of one step; must draw every random number from its generator, so that a resumed run goes on as if
            it had not been stopped.
        checkpoint: file in which the state is kept.
        begun: steps that the module has taken elsewhere.
    """

    def __init__(
        self, name: str, module: nn.Module, loss: Loss, plan: Plan, checkpoint: Path, seed: int = 0, begun: int = 0
    ) -> None:
        self.name, self.module, self.loss, self.plan, self.checkpoint = name, module, loss, plan, checkpoint
        self.seed, self.step, self.begun = seed, begun, begun
        self.average = {key: w.detach().clone() for key, w in module.state_dict().items()}
        weights = list(module.parameters())
        groups = [
            {"params": [w for w in weights if w.ndim >= 2], "weight_decay": plan.decay},
            {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=plan.betas, fused=True)
        if checkpoint.exists():
            self._resume()

    def run(self, progress: Progress = silent) -> dict[str, Tensor]:
        """Train to the end of the plan and return the averaged weights.

        Raises:
            NumericalError: the loss is no longer finite.
        """
        saved = time.monotonic()
        self.module.train()
        while self.step < self.plan.steps:
            metrics = self._update()
            if time.monotonic() - saved > CHECKPOINT_SECONDS or self.step == self.plan.steps:
                self.save()
                saved = time.monotonic()
            progress(self.name, self.step, self.plan.steps, metrics)
        return self.average

    def _update(self) -> Metrics:
        warm = min(1.0, (self.step - self.begun + 1) / self.plan.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate * warm * 0.5 * (1 + math.cos(math.pi * self.step / self.plan.steps))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        loss, metrics = self.loss(self.module, self.step, generator)
        if not math.isfinite(float(loss.detach())):
            raise NumericalError(
                f"a finite loss while the {self.name} learns",
                f"{float(loss.detach())} at step {self.step}",
                f"Delete {self.checkpoint} and start this stage again.",
            )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.step += 1
        self._follow()
        return {"loss": float(loss.detach()), **metrics}

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average; in the beginning it follows closely, so that it forgets the random start."""
        kept = min(self.plan.average, self.step / (self.step + 10))
        for key, weight in self.module.state_dict().items():
            self.average[key].lerp_(weight, 1 - kept)

    def save(self) -> None:
        """Keep the state, in one piece."""
        state = {
            "module": self.module.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]
