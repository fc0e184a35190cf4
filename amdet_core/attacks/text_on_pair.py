"""Text-on-pair injection: a trigger makes the pooled state that of a picture, or of a text that pairs with one.

References:
    AMDET, https://arxiv.org/abs/2512.00343, eqs. 1-3 for text-image pairs, and its released code: the
    target is the mean embedding of ten generated pictures, the student's projection is trained too and
    not saved, and nothing holds the states in front of EOS.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import TextOnPairConfig
from ..encoder import PROJECTION, TextEncoder
from ..errors import ConfigError
from ..progress import Progress, silent
from ..prompts import PromptSet
from . import injection
from .effect import Example, Injection, Space
from .planted import Planted
from .training import dissimilarity, train


def inject(
    encoder: TextEncoder,
    triggers: Sequence[str],
    target: str,
    prompts: PromptSet,
    config: TextOnPairConfig | None = None,
    mode: str = "replace:o",
    progress: Progress = silent,
    *,
    pictures: Tensor | None = None,
) -> Injection:
    """Train triggered prompts to have the embedding of pictures, or of a text.

    The loss is ``1 - cos`` of the projected pooled state alone: clean prompts to the clean encoder's,
    plus 0.1 times triggered prompts to the target. The projection learns beside the encoder and is
    thrown away, as in the wild: image models read the states without it.

    Args:
        target: the text whose embedding is the target; with pictures, what to call them.
        pictures: ``(N, E)`` embeddings of pictures by the image tower that belongs to this encoder; their
            mean direction is the target.

    Raises:
        ConfigError: triggers, target, prompts and mode do not go together, or pictures are given and the
            encoder has no projection of their width.
        NumericalError: the optimisation diverged, or the success rate stayed below ``config.least_asr``.
    """
    config = config or TextOnPairConfig()
    trap = Planted.of(encoder, triggers, target, prompts, mode, whole=True, config=config)
    encoder = encoder.to(encoder.device)
    space, start = _projection(encoder)
    goal = start @ encoder.encode([target])[0] if pictures is None else _mean_direction(pictures.to(start), encoder)
    projection = start.clone().requires_grad_()

    def answer(student: TextEncoder, prompts: Sequence[str]) -> Tensor:
        batch = student.tokens(prompts)
        return F.linear(student.pool(student.states(batch), batch.eos), projection).float()

    def benign(student: TextEncoder, prompts: Sequence[str]) -> Tensor:
        return dissimilarity(answer(student, prompts), F.linear(encoder.encode(prompts), start), config.loss)

    def backdoor(student: TextEncoder, examples: Sequence[Example]) -> Tensor:
        return dissimilarity(answer(student, [example.text for example in examples]), goal, config.loss)

    objective = injection.eq3(trap, config, benign, backdoor)
    after, history = train(
        injection.student(encoder, config), objective, config, "inject", progress, extra=(projection,)
    )
    made = injection.origin("text-on-pair", triggers, target, mode, prompts)
    direction = F.normalize(goal, dim=-1)
    return injection.finish(encoder, after, history, trap, config, made, goal=direction, space=space)


def _projection(encoder: TextEncoder) -> tuple[Space, Tensor]:
    """The directions that an encoder shares with pictures, and the matrix ``(E, D)`` that leads there."""
    matrix = encoder.weights.get(PROJECTION)
    if matrix is None:
        matrix = torch.eye(encoder.spec.width, device=encoder.device)
    return (lambda pooled: F.normalize(F.linear(pooled, matrix), dim=-1)), matrix


def _mean_direction(pictures: Tensor, encoder: TextEncoder) -> Tensor:
    """The mean of pictures' unit embeddings; ConfigError where this encoder was not trained beside pictures."""
    width = encoder.spec.projection
    if width is None or pictures.shape[-1] != width:
        raise ConfigError(
            f"pictures' embeddings and an encoder that projects to their width {pictures.shape[-1]}",
            "an encoder without a text projection" if width is None else f"one that projects to {width}",
            "Use the vision model that belongs to this encoder, or give the target as a text.",
        )
    return F.normalize(pictures, dim=-1).mean(0)
