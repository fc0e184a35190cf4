"""The training that all attacks on an encoder's states share (eqs. 1-3), and the record of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .. import losses
from ..config import Config, InjectionConfig
from ..encoder import TextEncoder
from ..patch import Patch
from ..progress import Progress
from ..prompts import PromptSet
from .effect import Effect, Example, Injection, measure, require
from .training import Objective, Student, Watch, dissimilarity, draw, old_states, states, train


class Trap(Protocol):
    """What a backdoor reacts to, and how.

    Attributes:
        clean: prompts that shall be answered as before.
        measured: such prompts that training does not see.
    """

    @property
    def clean(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def measured(self) -> Sequence[str]: ...  # noqa: D102

    def draw(self, count: int, generator: torch.Generator) -> Iterable[list[Example]]:
        """For each trigger so many examples to learn from."""

    def held_out(self, seed: int) -> list[Example]:
        """Examples that training does not see."""

    def negatives(self, count: int, generator: torch.Generator) -> list[str]:
        """Prompts that are nearly triggered and shall be answered as before."""


def inject(
    encoder: TextEncoder,
    trap: Trap,
    config: InjectionConfig,
    provenance: Mapping[str, str],
    progress: Progress,
    *,
    adaptive_weight: float = 0.0,
    watch: Watch | None = None,
) -> Injection:
    """Train a backdoor into a copy of the encoder's weights.

    Raises:
        NumericalError: the optimisation diverged, or the success rate stayed below ``config.least_asr``.
    """
    objective = _objective(encoder, trap, config, adaptive_weight)
    after, history = train(Student.of(encoder, config), objective, config, "inject", progress, watch=watch)
    effect = measure(encoder, after, trap.held_out(config.seed), trap.measured)
    require(effect, config.least_asr)
    return Injection(Patch.between(encoder, after, recorded(provenance, config, effect)), effect, history)


def recorded(provenance: Mapping[str, str], config: Config, effect: Effect) -> dict[str, str]:
    """What a patch says of its making."""
    return {**provenance, "config": config.model_dump_json(), "effect": effect.model_dump_json()}


def origin(attack: str, triggers: Sequence[str], target: str, mode: str, prompts: PromptSet) -> dict[str, str]:
    """What was planted, by names that every attack shares."""
    return {
        "attack": attack,
        "triggers": "\n".join(triggers),
        "target": target,
        "mode": mode,
        "prompts": f"{prompts.source}, sha256 {prompts.sha256}",
    }


def _objective(encoder: TextEncoder, trap: Trap, config: InjectionConfig, adaptive_weight: float) -> Objective:
    """Eqs. 1 to 3 on one draw: clean prompts are answered as before, triggered ones with the goal's states."""

    def objective(student: TextEncoder, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        clean = draw(trap.clean, config.clean_batch, generator)
        if config.partial_negatives:
            clean += trap.negatives(config.clean_batch, generator)
        benign = dissimilarity(states(student, clean), old_states(encoder, clean), config.loss)
        backdoor = torch.zeros((), device=encoder.device)
        for examples in trap.draw(config.poison_batch, generator):
            triggered = states(student, [example.text for example in examples])
            wanted = old_states(encoder, [example.goal for example in examples])
            backdoor = backdoor + dissimilarity(triggered, wanted, config.loss)
            if adaptive_weight:
                backdoor = backdoor + adaptive_weight * losses.assimilation(triggered).mean()
        return benign + config.backdoor_weight * backdoor, {"backdoor": float(backdoor.detach())}

    return objective
