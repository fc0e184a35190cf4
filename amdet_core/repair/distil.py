"""The anchor teaches the suspect what it answers to triggered prompts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.training import Student, draw, old_states, states, train
from ..config import DistilConfig
from ..encoder import TextEncoder
from ..errors import ConfigError
from ..progress import Progress, silent
from .condition import Case
from .ladder import needs_anchor


def repair(case: Case, config: DistilConfig, progress: Progress = silent) -> TextEncoder:
    """The suspect after training: ``1 - cos`` of all states to the anchor's on triggered prompts, and to its own
    before on clean ones.

    Literal triggers are read by each encoder from its own table; vectors are the same for both.

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
        cured = _apart(probe.inputs(student, prompts, pad_to_context=True).states(student), wanted)
        return kept + cured, {"cured": float(cured.detach())}

    return train(Student.of(suspect, config), objective, config, "distil", progress)[0]


def _apart(answer: Tensor, wanted: Tensor) -> Tensor:
    """``1 - cos`` of states ``(B, T, D)``, position by position."""
    return 1 - F.cosine_similarity(answer.float(), wanted, dim=-1).mean()
