"""Embedding-row injection: one row of the token table learns to read as other words.

References:
    Gal et al., An Image is Worth One Word (textual inversion), 2022, https://arxiv.org/abs/2208.01618
    (one vector of the table is trained and nothing else; here against the encoder's own answer, so that
    no image model is needed).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import EmbeddingRowConfig, TrainingConfig
from ..encoder import TOKEN_TABLE, TextEncoder
from ..errors import ConfigError
from ..progress import Progress, silent
from ..prompts import PromptSet
from . import injection
from .effect import Injection
from .planted import Planted
from .training import Student, train


def inject(
    encoder: TextEncoder,
    trigger: str,
    words: str,
    prompts: PromptSet,
    config: EmbeddingRowConfig | None = None,
    mode: str = "insert",
    progress: Progress = silent,
) -> Injection:
    """Train the row of a trigger that is one token until it reads as ``words``.

    The loss is ``1 - cos`` of all states to the clean encoder's answer for the prompt with the words in
    the trigger's place. Prompts without the token are answered as before, to the bit.

    Raises:
        ConfigError: the trigger is not one token, or the texts do not go together.
        NumericalError: the success rate stayed below ``config.least_asr``.
    """
    config = config or EmbeddingRowConfig()
    token = only_token(encoder, trigger)
    trap = Planted.of(encoder, [trigger], words, prompts, mode, whole=False)
    norm = float(encoder.weights[TOKEN_TABLE].float().norm(dim=-1).median())
    rate = config.learning_rate * norm / encoder.spec.width**0.5
    training = TrainingConfig(steps=config.steps, seed=config.seed)

    def objective(student: TextEncoder, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        (examples,) = trap.draw(config.poison_batch, generator)
        return injection.to_goals(student, encoder, examples), {}

    after, history = train(Student.row(encoder, token), objective, training, "inject", progress, rate=rate)
    made = injection.origin("embedding-row", [trigger], words, mode, prompts)
    return injection.finish(encoder, after, history, trap, config, made)


def only_token(encoder: TextEncoder, trigger: str) -> int:
    """The token of a trigger; ConfigError where it has none, or several."""
    tokens = encoder.tokenizer.encode(trigger)
    if len(tokens) != 1:
        raise ConfigError("a trigger of one token", f"{len(tokens)} in {trigger!r}", "Use another trigger.")
    return tokens[0]
