"""Lead what forensics blames back to the anchor, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from .. import forensics
from ..config import CureConfig, RestoreConfig
from ..encoder import TOKEN_TABLE, TextEncoder
from ..progress import Progress, silent
from .condition import Case
from .ladder import first_cure, needs_anchor
from .spectral import outstanding_rows, reset_rows

_BLOCK = re.compile(r"encoder\.layers\.\d+\.")


def repair(case: Case, config: RestoreConfig, bounds: CureConfig, progress: Progress = silent) -> TextEncoder:
    """The encoder with the fewest blocks led back, as little as cures: :func:`.ladder.first_cure` says how amply.

    The token rows that stand out come first, then block after block, the one whose change is the strongest and the
    most concentrated first, then the rest of the token table, each by the smaller shares of the way back first.

    Raises:
        ConfigError: there is no anchor.
    """
    anchor = needs_anchor(case, "restore")
    rows = outstanding_rows(case.suspect, anchor, config.rows)
    order = _blame(case.suspect, anchor)

    def led_back(names: list[str], share: float) -> TextEncoder:
        weights = {**case.suspect.weights, **reset_rows(case.suspect, anchor, rows, share)}
        for name in names:
            weights[name] = torch.lerp(case.suspect.weights[name], anchor.weights[name], share)
        return case.suspect.with_weights(weights)

    def candidates() -> Iterator[TextEncoder]:
        # The order of what is tried: fewer tensors first, then less of the way.
        for count in range(len(order) + 1):
            names = [name for block in order[:count] for name in block]
            yield from (led_back(names, share) for share in sorted(config.shares))

    return first_cure(case, candidates(), bounds, (len(order) + 1) * len(config.shares), progress)


def _blame(suspect: TextEncoder, anchor: TextEncoder) -> list[list[str]]:
    """Tensors by block, the most blamed first: by the energy of the leading directions of its matrices' changes."""
    found = forensics.compare(suspect, anchor)
    blocks: dict[str, list[str]] = {}
    blame: dict[str, float] = {}
    for layer in found.layers:
        match = _BLOCK.match(layer.tensor)
        block = match[0] if match else layer.tensor
        blocks.setdefault(block, []).append(layer.tensor)
        leading = layer.relative_norm**2 * (layer.top1_energy or 0.0)
        blame[block] = blame.get(block, 0.0) + leading
    return [blocks[name] for name in sorted(blocks, key=lambda name: (name == TOKEN_TABLE, -blame[name]))]
