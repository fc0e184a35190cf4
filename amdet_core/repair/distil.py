"""The anchor teaches what it answers to triggered prompts, the suspect what it answers to clean ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.training import Student, draw, old_states, states, train
from ..config import CureConfig, DistilConfig
from ..encoder import TextEncoder
from ..errors import ConfigError
from ..progress import Progress, silent
from .condition import Case, cured, least_own
from .ladder import needs_anchor


def repair(case: Case, config: DistilConfig, bounds: CureConfig, progress: Progress = silent) -> TextEncoder:
    """A student after training: ``1 - cos`` of all states to the anchor's on triggered prompts, and to the suspect's
    on clean ones.

    It starts as the suspect or as the anchor. As the anchor it holds no backdoor and sees the suspect's answers to
    clean prompts alone, as MIMIC's student does (see :mod:`.mimic`), which starts at random. Where the suspect's
    clean answers are far from the anchor's, this keeps more of the one for as much of the other.

    Literal triggers are read by each encoder from its own table; vectors are the same for both.

    Args:
        bounds: when a repair works, after which no further cycle is gone through.

    Raises:
        ConfigError: there is no anchor, or no trigger to learn from.
        NumericalError: the training diverged.
    """
    anchor, suspect = needs_anchor(case, "distil"), case.suspect
    if not case.probes:
        raise ConfigError(
            "a trigger to learn from", "none that a scan recovered", "Scan more thoroughly, or use spectral."
        )
    turn = 0

    def objective(student: TextEncoder, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        nonlocal turn
        probe = case.probes[turn % len(case.probes)]
        turn += 1
        clean = draw(case.fit, config.clean_batch, generator)
        kept = _apart(states(student, clean), old_states(suspect, clean))
        prompts = draw(probe.fitting(suspect, case.fit, len(case.fit)), config.triggered_batch, generator)
        with torch.no_grad():
            wanted = probe.inputs(anchor, prompts, pad_to_context=True).states(anchor)
        taught = _apart(probe.inputs(student, prompts, pad_to_context=True).states(student), wanted)
        return config.clean_weight * kept + taught, {"taught": float(taught.detach()), "kept": float(kept.detach())}

    encoder = suspect if config.start == "suspect" else suspect.with_weights(anchor.weights)
    student = Student.of(encoder, config)
    for cycle in range(config.cycles):
        fresh = config.model_copy(update={"seed": config.seed + cycle})
        told = _counting(progress, cycle, config.cycles)
        encoder = train(student, objective, fresh, "distil", told)[0]
        if cycle + 1 < config.cycles and _works(case, encoder, bounds):
            break
    return encoder


def _works(case: Case, encoder: TextEncoder, bounds: CureConfig) -> bool:
    """Whether more training could gain nothing: without the allowance that is made for what is out of reach."""
    if case.clean_cosine(encoder) < bounds.clean:
        return False
    responses = case.responses(encoder)
    return cured(responses, bounds) and least_own(responses) >= bounds.own


def _counting(progress: Progress, cycle: int, cycles: int) -> Progress:
    """Progress that is told of one of several cycles as a part of all."""
    return lambda stage, done, total, *metrics: progress(stage, cycle * total + done, cycles * total, *metrics)


def _apart(answer: Tensor, wanted: Tensor) -> Tensor:
    """``1 - cos`` of states ``(B, T, D)``, position by position."""
    return 1 - F.cosine_similarity(answer.float(), wanted, dim=-1).mean()
