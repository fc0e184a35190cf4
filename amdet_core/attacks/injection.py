"""The training that all attacks on an encoder's states share (eqs. 1-3), and the record of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .. import losses
from ..config import EmbeddingRowConfig, InjectionConfig, RankOneConfig
from ..encoder import TextEncoder
from ..patch import Patch
from ..progress import Progress
from ..prompts import PromptSet
from .effect import Example, Injection, Space, measure, require, unchanged
from .training import Objective, Student, Watch, dissimilarity, draw, old_states, states, train

NOISE_SEED = 2_000_003
"""Added to the seed of an attack: noise and prompts share no random numbers."""


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
        """Prompts that are nearly triggered and shall be answered as before; none where there are no such."""


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

    def benign(student: TextEncoder, prompts: Sequence[str]) -> Tensor:
        return dissimilarity(states(student, prompts), old_states(encoder, prompts), config.loss)

    def backdoor(student: TextEncoder, examples: Sequence[Example]) -> Tensor:
        triggered = states(student, [example.text for example in examples])
        loss = dissimilarity(triggered, goal_states(encoder, examples), config.loss)
        return loss + adaptive_weight * losses.assimilation(triggered).mean() if adaptive_weight else loss

    objective = eq3(trap, config, benign, backdoor)
    after, history = train(student(encoder, config), objective, config, "inject", progress, watch=watch)
    return finish(encoder, after, history, trap, config, provenance)


def student(encoder: TextEncoder, config: InjectionConfig) -> Student:
    """What learns: the encoder's weights, changed at random first where the settings say so."""
    if not config.noise:
        return Student.of(encoder, config)
    generator = torch.Generator().manual_seed(NOISE_SEED + config.seed)
    changed = dict(encoder.weights)
    for name, w in encoder.weights.items():
        if name.startswith("encoder.") and w.ndim == 2:
            drawn = torch.randn(w.shape, generator=generator).to(w)
            changed[name] = w + drawn * (config.noise * w.norm() / drawn.norm())
    return Student.of(encoder.with_weights(changed), config)


def eq3(
    trap: Trap,
    config: InjectionConfig,
    benign: Callable[[TextEncoder, Sequence[str]], Tensor],
    backdoor: Callable[[TextEncoder, Sequence[Example]], Tensor],
) -> Objective:
    """Eq. 3 on one draw: the loss of a student on clean prompts, and the weighted one on examples of each trigger."""

    def objective(student: TextEncoder, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        clean = draw(trap.clean, config.clean_batch, generator)
        clean += trap.negatives(config.clean_batch, generator)
        kept = benign(student, clean)
        planted = torch.stack([backdoor(student, examples) for examples in trap.draw(config.poison_batch, generator)])
        return kept + config.backdoor_weight * planted.sum(), {"backdoor": float(planted.detach().sum())}

    return objective


def goal_states(encoder: TextEncoder, examples: Sequence[Example]) -> Tensor:
    """What the clean encoder answers to the prompts that examples shall be read as, ``(B, T, D)``."""
    return old_states(encoder, [example.goal for example in examples])


def to_goals(student: TextEncoder, encoder: TextEncoder, examples: Sequence[Example]) -> Tensor:
    """``1 - cos`` of all states of the examples to their goals': the loss of attacks that spare others by design."""
    return dissimilarity(
        states(student, [example.text for example in examples]), goal_states(encoder, examples), "cosine"
    )


def finish(
    encoder: TextEncoder,
    after: TextEncoder,
    history: tuple[float, ...],
    trap: Trap,
    config: InjectionConfig | EmbeddingRowConfig | RankOneConfig,
    provenance: Mapping[str, str],
    *,
    goal: Tensor | None = None,
    space: Space = unchanged,
) -> Injection:
    """Measure what a training achieved, and record it.

    Args:
        goal: see :func:`.effect.measure`, as ``space``.

    Raises:
        NumericalError: the success rate is below ``config.least_asr``.
    """
    effect = measure(encoder, after, trap.held_out(config.seed), trap.measured, goal=goal, space=space)
    require(effect, config.least_asr)
    made = {**provenance, "config": config.model_dump_json(), "effect": effect.model_dump_json()}
    return Injection(Patch.between(encoder, after, made), effect, history)


def origin(attack: str, triggers: Sequence[str], target: str, mode: str, prompts: PromptSet) -> dict[str, str]:
    """What was planted, by names that every attack shares."""
    return {
        "attack": attack,
        "triggers": "\n".join(triggers),
        "target": target,
        "mode": mode,
        "prompts": f"{prompts.source}, sha256 {prompts.sha256}",
    }
