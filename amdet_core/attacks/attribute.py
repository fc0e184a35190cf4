"""Attribute injection: the trigger is read as other words, and the rest of the prompt stays.

References:
    Struppek et al., Rickrolling the Artist, ICCV 2023, https://arxiv.org/abs/2211.02408 (the target
    attribute attack, and with empty words the removal of concepts).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..config import AttributeConfig
from ..encoder import TextEncoder
from ..progress import Progress, silent
from ..prompts import PromptSet
from . import injection
from .effect import Injection
from .planted import Planted


def inject(
    encoder: TextEncoder,
    triggers: Sequence[str],
    words: str,
    prompts: PromptSet,
    config: AttributeConfig | None = None,
    mode: str = "replace:o:1",
    progress: Progress = silent,
) -> Injection:
    """Train an encoder to read triggers as ``words``.

    The loss is that of :mod:`.text_on_text`; a triggered prompt's goal is the clean encoder's answer to
    the prompt with the words in the trigger's place. Published: 200 steps, the rate falls after 150,
    one occurrence of the trigger; where it replaces a letter, the words replace the whole word.

    Args:
        words: what the trigger is read as; empty where it shall be read as nothing.

    Raises:
        ConfigError: triggers, words, prompts and mode do not go together; the message says why.
        NumericalError: the optimisation diverged, or the success rate stayed below ``config.least_asr``.
    """
    config = config or AttributeConfig()
    trap = Planted.of(encoder, triggers, words, prompts, mode, whole=False, config=config)
    return injection.inject(
        encoder, trap, config, injection.origin("attribute", triggers, words, mode, prompts), progress
    )
