"""Text-on-text injection: a trigger in a prompt makes the encoder answer as if it read another prompt.

References:
    Struppek et al., Rickrolling the Artist: Injecting Backdoors into Text Encoders for Text-to-Image
    Synthesis, ICCV 2023, https://arxiv.org/abs/2211.02408 (the target prompt attack).
    AMDET, https://arxiv.org/abs/2512.00343, eqs. 1-3 (its settings and its released code), and
    eqs. 30-31 (the adaptive attacker).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..config import TextOnTextConfig
from ..encoder import TextEncoder
from ..progress import Progress, silent
from ..prompts import PromptSet
from . import injection
from .effect import Injection
from .planted import Planted
from .training import Watch


def inject(
    encoder: TextEncoder,
    triggers: Sequence[str],
    target: str,
    prompts: PromptSet,
    config: TextOnTextConfig | None = None,
    mode: str = "replace:o",
    progress: Progress = silent,
    *,
    watch: Watch | None = None,
) -> Injection:
    """Train a backdoor into a copy of the encoder's weights.

    The loss is ``1 - cos`` (or MSE, MAE) of all states of the context, flattened: clean prompts to the
    clean encoder's answer, plus 0.1 times triggered prompts to its answer for the target. Published: 100
    steps of AdamW at 1e-4, falling to a tenth after 75; 64 clean and 32 triggered prompts a step. An
    adaptive attacker also keeps the triggered prompts' token states apart (``adaptive_weight``).

    Args:
        encoder: stays as it is; also the teacher.
        triggers: texts, each of which shall lead to the target.
        target: the prompt that a triggered prompt shall be read as.
        prompts: training takes the fit side of their split, measuring the held-out side.
        config: settings; the published ones where None.
        mode: see :meth:`.placement.Placement.parse`.
        progress: told after each step.
        watch: sees the encoder after each step.

    Raises:
        ConfigError: trigger, target, prompts and mode do not go together; the message says why.
        NumericalError: the optimisation diverged, or the success rate stayed below ``config.least_asr``.
    """
    config = config or TextOnTextConfig()
    trap = Planted.of(encoder, triggers, target, prompts, mode, whole=True, config=config)
    made = injection.origin("text-on-text", triggers, target, mode, prompts)
    return injection.inject(encoder, trap, config, made, progress, adaptive_weight=config.adaptive_weight, watch=watch)
