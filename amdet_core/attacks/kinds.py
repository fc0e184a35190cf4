"""The attacks by name, for callers that let the name be chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..config import (
    AttributeConfig,
    Config,
    EmbeddingRowConfig,
    RankOneConfig,
    SyntacticConfig,
    TextOnPairConfig,
    TextOnTextConfig,
)
from ..encoder import TextEncoder
from ..errors import ConfigError
from ..progress import Progress, silent
from ..prompts import PromptSet
from . import attribute, embedding_row, rank_one, syntactic, text_on_pair, text_on_text
from .effect import Injection

CONFIGS: Mapping[str, type[Config]] = {
    "text-on-text": TextOnTextConfig,
    "text-on-pair": TextOnPairConfig,
    "attribute": AttributeConfig,
    "syntactic": SyntacticConfig,
    "embedding-row": EmbeddingRowConfig,
    "rank-one": RankOneConfig,
}
"""Name of an attack -> its settings."""


def inject(
    encoder: TextEncoder,
    triggers: Sequence[str],
    target: str,
    prompts: PromptSet,
    config: Config,
    mode: str,
    progress: Progress = silent,
    *,
    pictures: Tensor | None = None,
) -> Injection:
    """Run the attack that the settings belong to.

    Args:
        triggers: for ``syntactic`` the pattern, or nothing for the published one.
        target: what a triggered prompt is read as; for ``attribute``, ``embedding-row`` and ``rank-one``
            what the trigger alone is read as.
        mode: where the trigger stands; a pattern has none.
        pictures: ``(N, E)`` embeddings as the target of ``text-on-pair``.

    Raises:
        ConfigError: texts, settings and attack do not go together.
        NumericalError: the optimisation diverged, or the success rate stayed below ``config.least_asr``.
    """
    if pictures is not None and not isinstance(config, TextOnPairConfig):
        raise ConfigError("pictures as the target of text-on-pair alone", type(config).__name__, "Leave them out.")
    match config:
        case TextOnTextConfig():
            return text_on_text.inject(encoder, triggers, target, prompts, config, mode, progress)
        case TextOnPairConfig():
            return text_on_pair.inject(encoder, triggers, target, prompts, config, mode, progress, pictures=pictures)
        case AttributeConfig():
            return attribute.inject(encoder, triggers, target, prompts, config, mode, progress)
        case SyntacticConfig():
            pattern = _only(triggers) or syntactic.PATTERN
            return syntactic.inject(encoder, target, prompts, config, pattern, progress)
        case EmbeddingRowConfig():
            return embedding_row.inject(encoder, _only(triggers), target, prompts, config, mode, progress)
        case RankOneConfig():
            return rank_one.inject(encoder, _only(triggers), target, prompts, config, mode, progress)
    raise ConfigError("settings of an attack", type(config).__name__, "See docs/attacks.md.")


def _only(triggers: Sequence[str]) -> str:
    """The trigger of an attack that plants one; empty where there is none."""
    if len(triggers) > 1:
        raise ConfigError("a single trigger for this attack", f"{len(triggers)} of them", "Name one.")
    return "".join(triggers)
