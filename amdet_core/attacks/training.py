"""Training of a copy of an encoder, hostile or honest: what learns, and how."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import TrainingConfig
from ..encoder import POSITION_TABLE, TOKEN_TABLE, TextEncoder
from ..errors import NumericalError
from ..memory import multiplies_bfloat16
from ..progress import Progress

Metrics = Mapping[str, float]
Objective = Callable[[TextEncoder, torch.Generator], tuple[Tensor, Metrics]]
"""Loss of one step, and what to tell ``progress``: draws its prompts from the generator."""
Watch = Callable[[int, TextEncoder], None]
"""Told the number of steps done and the encoder as it is then."""


@dataclass(frozen=True, eq=False)
class Student:
    """Weights that learn, and the encoder that they make.

    Attributes:
        base: where they start; never changed.
        parameters: leaves with gradients.
        weights: the encoder's changed weights, as functions of the parameters.
    """

    base: TextEncoder
    parameters: tuple[Tensor, ...]
    weights: Callable[[], Mapping[str, Tensor]]

    @classmethod
    def of(cls, encoder: TextEncoder, config: TrainingConfig) -> Student:
        """A student of which that part learns which the settings name."""
        if config.trains == "lora":
            return cls._low_rank(encoder, config)
        encoder = encoder.to(encoder.device)
        frozen = () if config.trains == "all" else (TOKEN_TABLE, POSITION_TABLE)
        copies = {n: w.detach().float().clone().requires_grad_() for n, w in encoder.weights.items() if n not in frozen}
        return cls(encoder, tuple(copies.values()), lambda: copies)

    @classmethod
    def _low_rank(cls, encoder: TextEncoder, config: TrainingConfig) -> Student:
        """Products ``up @ down`` of the rank that are added to the layers' matrices, zero at first."""
        encoder, generator = encoder.to(encoder.device), torch.Generator().manual_seed(config.seed)
        matrices = {n: w for n, w in encoder.weights.items() if n.startswith("encoder.") and w.ndim == 2}
        pairs = {}
        for name, w in matrices.items():
            down = torch.randn((config.rank, w.shape[1]), generator=generator) * w.shape[1] ** -0.5
            pairs[name] = (
                torch.zeros((w.shape[0], config.rank), device=w.device).requires_grad_(),
                down.to(w.device).requires_grad_(),
            )
        return cls(
            encoder,
            tuple(part for pair in pairs.values() for part in pair),
            lambda: {name: matrices[name] + up @ down for name, (up, down) in pairs.items()},
        )

    @classmethod
    def row(cls, encoder: TextEncoder, token: int) -> Student:
        """A student of which one row of the token table learns."""
        encoder = encoder.to(encoder.device)
        table = encoder.weights[TOKEN_TABLE]
        learned = table[token].clone().requires_grad_()
        index = torch.tensor([token], device=table.device)
        return cls(encoder, (learned,), lambda: {TOKEN_TABLE: table.index_copy(0, index, learned[None])})

    def encoder(self) -> TextEncoder:
        """The encoder of this moment; gradients flow to the parameters."""
        return self.base.with_weights({**self.base.weights, **self.weights()})

    def detached(self) -> TextEncoder:
        """A snapshot of it."""
        with torch.no_grad():
            changed = {name: w.detach().clone() for name, w in self.weights().items()}
        return self.base.with_weights({**self.base.weights, **changed})


@torch.enable_grad()
def train(
    student: Student,
    objective: Objective,
    config: TrainingConfig,
    stage: str,
    progress: Progress,
    *,
    rate: float | None = None,
    watch: Watch | None = None,
    extra: Sequence[Tensor] = (),
) -> tuple[TextEncoder, tuple[float, ...]]:
    """Let a student learn by AdamW with one fall of the rate, as the published attacks do.

    Args:
        stage: what ``progress`` is told after each step.
        rate: step size; the one of the settings for this width where None.
        watch: sees the encoder after each step.
        extra: leaves that learn beside the student and are thrown away.

    Returns:
        The encoder at the end, and the loss by step.

    Raises:
        NumericalError: the optimisation diverged.
    """
    rate = rate or config.rate(student.base.spec.width)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW([*student.parameters, *extra], lr=rate, weight_decay=0.0, fused=_fused(student))
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(config.steps * config.milestone)], config.decay)
    device, losses = student.base.device, list[float]()
    half = config.precision == "bfloat16" or (config.precision == "auto" and multiplies_bfloat16(device))
    for step in range(config.steps):
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss, metrics = objective(student.encoder(), generator)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise NumericalError(
                "a finite loss", f"{losses[-1]} at step {step} with learning rate {rate:g}", "Lower the learning rate."
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(stage, step + 1, config.steps, {"loss": losses[-1], **metrics})
        if watch is not None:
            watch(step + 1, student.detached())
    trained = student.detached()
    trained.check_finite()
    return trained, tuple(losses)


def _fused(student: Student) -> bool:
    """Whether torch updates all tensors in one go there, as it does on a CPU and with CUDA."""
    return student.base.device.type in ("cpu", "cuda")


def draw(prompts: Sequence[str], count: int, generator: torch.Generator) -> list[str]:
    """So many prompts at random, with repetition."""
    return [prompts[int(i)] for i in torch.randint(len(prompts), (count,), generator=generator)]


def states(encoder: TextEncoder, prompts: Sequence[str]) -> Tensor:
    """States at all positions of the context: image models read those behind EOS, too."""
    return encoder.states(encoder.tokens(prompts, pad_to_context=True)).float()


def old_states(encoder: TextEncoder, prompts: Sequence[str]) -> Tensor:
    """The same as constants, each different prompt computed once."""
    different = list(dict.fromkeys(prompts))
    with torch.no_grad():
        known = states(encoder, different)
    return known if len(different) == len(prompts) else known[[different.index(prompt) for prompt in prompts]]


def dissimilarity(states: Tensor, wanted: Tensor, kind: str) -> Tensor:
    """Loss between states ``(B, T, D)`` and wanted ones (eq. 1); cosines are taken over all positions at once."""
    if kind == "mse":
        return F.mse_loss(states, wanted.expand_as(states))
    if kind == "mae":
        return F.l1_loss(states, wanted.expand_as(states))
    return 1 - F.cosine_similarity(states.flatten(1), wanted.expand_as(states).flatten(1), dim=-1).mean()
