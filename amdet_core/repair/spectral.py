"""Take the leading singular directions of the weights' change out of an encoder.

An injected association is written along few directions of each matrix, an honest fine-tune along many: without
its first directions the change says nothing of the trigger any more and keeps most of the rest. A token reads the
token table through a single row, so rows are to this table what directions are to a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .. import forensics
from ..config import CureConfig, SpectralConfig
from ..encoder import TOKEN_TABLE, TextEncoder
from ..forensics_words import OUTLYING
from ..memory import double
from ..progress import Progress, silent
from .condition import Case
from .ladder import first_cure, needs_anchor


def repair(case: Case, config: SpectralConfig, bounds: CureConfig, progress: Progress = silent) -> TextEncoder:
    """The encoder without the fewest directions whose loss cures it amply, as :func:`.ladder.first_cure` says.

    Raises:
        ConfigError: there is no anchor.
    """
    anchor = needs_anchor(case, "spectral")
    suspect = case.suspect
    rows = outstanding_rows(suspect, anchor, config.rows)
    factors = {name: _factors(suspect.weights[name] - w, max(config.directions)) for name, w in _matrices(anchor)}

    def without(directions: int) -> TextEncoder:
        changed = {
            name: suspect.weights[name] - up[:, :directions] @ down[:directions] for name, (up, down) in factors.items()
        }
        return suspect.with_weights({**suspect.weights, **changed, **reset_rows(suspect, anchor, rows)})

    return first_cure(case, (without(count) for count in config.directions), bounds, len(config.directions), progress)


def outstanding_rows(suspect: TextEncoder, anchor: TextEncoder, most: int) -> list[int]:
    """Tokens whose rows stand out among those that moved, up to ``most``; all of them where few moved."""
    found = forensics.compare(suspect, anchor, rows=most)
    few = found.rows_changed < forensics.FEWEST
    return [row.token_id for row in found.rows if few or row.sigma >= OUTLYING]


def reset_rows(suspect: TextEncoder, anchor: TextEncoder, rows: list[int], share: float = 1.0) -> Mapping[str, Tensor]:
    """The token table with rows led back to the anchor's."""
    if not rows:
        return {}
    table = suspect.weights[TOKEN_TABLE].clone()
    table[rows] = torch.lerp(table[rows], anchor.weights[TOKEN_TABLE][rows], share)
    return {TOKEN_TABLE: table}


def _matrices(encoder: TextEncoder) -> list[tuple[str, Tensor]]:
    return [(name, w) for name, w in encoder.weights.items() if name.startswith("encoder.") and w.ndim == 2]


def _factors(delta: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The leading part of a difference ``(M, N)`` as a product of ``(M, count)`` and ``(count, N)``."""
    u, s, v = torch.linalg.svd(double(delta), full_matrices=False)
    return (u[:, :count] * s[:count]).to(delta), v[:count].to(delta)
