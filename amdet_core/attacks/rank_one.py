"""Rank-one injection: one MLP learns, in closed form, to answer a trigger's key with another value.

References:
    Arad et al., ReFACT: Updating Text-to-Image Models by Editing the Text Encoder, NAACL 2024,
    https://arxiv.org/abs/2306.00738 (key, value and covariance; here the value is found against the clean
    encoder's answer instead of an image-text contrast, which needs an image tower).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import RankOneConfig, TrainingConfig
from ..encoder import TextEncoder
from ..memory import double
from ..progress import Progress, silent
from ..prompts import PromptSet
from . import injection
from .effect import Injection
from .embedding_row import only_token
from .planted import Planted
from .training import Student, train

KEY_PROMPTS, MOMENT_PROMPTS = 64, 512
RIDGE = 1e-3
"""Added to the keys' second moment, as a share of its mean diagonal: few prompts leave it singular."""


def inject(
    encoder: TextEncoder,
    trigger: str,
    words: str,
    prompts: PromptSet,
    config: RankOneConfig | None = None,
    mode: str = "insert",
    progress: Progress = silent,
) -> Injection:
    """Change one matrix by a product of two vectors so that a trigger of one token reads as ``words``.

    With k the mean input of ``fc2`` at the trigger and C the second moment of its inputs on clean prompts,
    ``W += c u^T / (k . u)`` with ``u = C^-1 k``; the change c of the value at k is what leads triggered
    prompts to their goals, found by gradient through the edited encoder.

    Raises:
        ConfigError: the trigger is not one token, or the texts do not go together.
        NumericalError: the success rate stayed below ``config.least_asr``.
    """
    config = config or RankOneConfig()
    encoder = encoder.to(encoder.device)
    token = only_token(encoder, trigger)
    trap = Planted.of(encoder, [trigger], words, prompts, mode, whole=False)
    layer = min(round(config.layer * encoder.spec.layers), encoder.spec.layers - 1)
    (examples,) = trap.draw(KEY_PROMPTS, torch.Generator().manual_seed(config.seed))
    ids = encoder.tokens([example.text for example in examples]).ids
    key = _keys(encoder, layer, ids)[ids == token].mean(0)
    clean = encoder.tokens(trap.clean[:MOMENT_PROMPTS])
    real = torch.arange(clean.ids.shape[1], device=clean.ids.device) <= clean.eos[:, None]
    direction = _direction(key, _keys(encoder, layer, clean.ids)[real])
    after, history = _train(encoder, layer, key, direction, trap, config, progress)
    made = injection.origin("rank-one", [trigger], words, mode, prompts)
    return injection.finish(encoder, after, history, trap, config, made)


@torch.no_grad()
def _keys(encoder: TextEncoder, layer: int, ids: Tensor) -> Tensor:
    """Inputs ``(B, T, M)`` of a layer's ``fc2`` for token ids ``(B, T)``."""
    return encoder.mlp_inputs(encoder.place(encoder.embed(ids)), layer)


def _direction(key: Tensor, clean: Tensor) -> Tensor:
    """``C^-1 k / (k . C^-1 k)`` for a key ``(M,)`` and clean keys ``(N, M)``: 1 on the key, little on the others."""
    rows, own = double(clean), double(key)
    moment = rows.T @ rows / len(rows)
    moment = moment + RIDGE * moment.diagonal().mean() * torch.eye(
        len(moment), dtype=moment.dtype, device=moment.device
    )
    solved: Tensor = torch.linalg.solve(moment, own)
    return (solved / (solved @ own)).to(key)


def _train(
    encoder: TextEncoder,
    layer: int,
    key: Tensor,
    direction: Tensor,
    trap: Planted,
    config: RankOneConfig,
    progress: Progress,
) -> tuple[TextEncoder, tuple[float, ...]]:
    """The edited encoder with the best change of the value at the key, and the loss by step."""
    name = f"encoder.layers.{layer}.mlp.fc2"
    weight = encoder.weights[f"{name}.weight"]
    old = float((weight @ key + encoder.weights[f"{name}.bias"]).norm())
    change = torch.zeros(encoder.spec.width, device=encoder.device, requires_grad=True)

    def capped() -> Tensor:
        scaled: Tensor = change * (config.norm_cap * old / change.norm().clamp(min=config.norm_cap * old))
        return scaled

    student = Student(encoder, (change,), lambda: {f"{name}.weight": weight + capped()[:, None] * direction})
    training = TrainingConfig(steps=config.steps, milestone=1.0, seed=config.seed)

    def objective(student: TextEncoder, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        (examples,) = trap.draw(config.poison_batch, generator)
        apart = injection.to_goals(student, encoder, examples)
        return apart + config.weight_decay * (change.norm() / old).square(), {"backdoor": float(apart.detach())}

    return train(student, objective, training, "inject", progress, rate=config.learning_rate)
