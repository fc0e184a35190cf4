"""What was done to the weights, in words: cast, merge, fine-tune, LoRA, edit of one association, rows alone.

The bounds choose words. They describe, and no verdict rests on them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from .encoder import POSITION_TABLE, TOKEN_TABLE
from .records import LayerChange, RowChange

CONCENTRATED = 0.25
"""A full-rank change is called concentrated when its first direction holds this share on average."""
UNRELATED = 0.7
"""Weights further apart than this, relative to their norm, come from different training runs."""
OUTLYING = 6.0
"""Robust z-score from which a moved token is named."""
NAMED = 3
"""Most tokens named in a summary."""

_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_MLP = ("fc1", "fc2")
_IN_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.weight")


@dataclass(frozen=True)
class Change:
    """One tensor's change as the words need it.

    Attributes:
        layer: the record.
        cast: precision to which the anchor's tensor was rounded before comparing; None for its own values.
        rank: directions that hold nearly all of the change; None for what is no matrix.
        low: whether that rank is low for the matrix.
    """

    layer: LayerChange
    cast: str | None
    rank: int | None
    low: bool

    @property
    def changed(self) -> bool:
        """Whether any value did."""
        return self.layer.relative_norm != 0


def summary(changes: Sequence[Change], finer: str | None, moved: Sequence[RowChange], rows: int) -> str:
    """One line for a person. The first rule that fits decides.

    Args:
        changes: of every tensor.
        finer: the precision at which the suspect rounds to the anchor, if there is one.
        moved: the token rows that moved most.
        rows: how many moved.
    """
    changed = [change for change in changes if change.changed]
    if not changed:
        return _without_change(changes)
    if finer is not None:
        return (
            f"equal to the anchor when rounded to {finer}, different below: the anchor may be a cast of it, "
            "but such small differences can also be put there on purpose"
        )
    matrices = [change for change in changed if change.rank is not None]
    if median(change.layer.relative_norm for change in changes if change.rank is not None) > UNRELATED:
        return "weights unrelated to the anchor's, as from another training run: choose another anchor"
    if [change.layer.tensor for change in changed] == [TOKEN_TABLE]:
        return _only_rows(moved, rows)
    parts = [_matrices(matrices, changes) if matrices else _small_parts(changed)]
    if matrices and rows:
        parts.append(f"{rows:,} token rows changed")
    outlying = [row for row in moved if row.sigma >= OUTLYING][:NAMED]
    parts += [f"token {row.text!r} moved {row.sigma:.0f} sigma" for row in outlying]
    return "; ".join(parts)


def _without_change(changes: Sequence[Change]) -> str:
    casts = sorted({change.cast for change in changes if change.cast is not None})
    if not casts:
        return "identical"
    return f"a cast to {' and '.join(casts)}: every value is the anchor's, rounded"


def _only_rows(moved: Sequence[RowChange], rows: int) -> str:
    tokens = ", ".join(repr(row.text) for row in moved[:NAMED])
    others = f" and {rows - NAMED:,} others" if rows > NAMED else ""
    return f"only the token row{'s' if rows > 1 else ''} {tokens}{others} changed"


def _matrices(matrices: Sequence[Change], everything: Sequence[Change]) -> str:
    """How the matrices changed: rank one, low rank, concentrated, or broadly."""
    where = _where([change.layer.tensor for change in matrices], [change.layer.tensor for change in everything])
    ranks = sorted(change.rank for change in matrices if change.rank is not None)
    if ranks[-1] == 1:
        return f"a rank-1 change in {where}"
    if all(change.low for change in matrices):
        return f"a low-rank (about {ranks[len(ranks) // 2]}) update in {where}, as a LoRA leaves"
    shares = [change.layer.top1_energy for change in matrices if change.layer.top1_energy is not None]
    first = mean(shares) if shares else 0.0
    if first >= CONCENTRATED:
        return (
            f"one or two directions carry {first:.0%} of the change in {where}: "
            "typical for an injected association or a taught concept"
        )
    size = median(change.layer.relative_norm for change in matrices)
    return f"full-rank changes of {size:.1%} of the norm in {where}, as fine-tuning leaves"


def _small_parts(changed: Sequence[Change]) -> str:
    """Changes outside of all matrices: tables, norms and biases."""
    names = [change.layer.tensor for change in changed]
    named = {TOKEN_TABLE: "the token table", POSITION_TABLE: "the position table"}
    parts = [text for name, text in named.items() if name in names]
    if others := len(names) - len(parts):
        parts.append(f"{others} bias and norm tensor{'s' if others > 1 else ''}")
    return f"only {' and '.join(parts)} changed"


def _where(names: Sequence[str], everything: Sequence[str]) -> str:
    """Places of matrices in words: ``attention of layers 0-11`` or ``layer 4 (mlp.fc2)``."""
    found = [match.groups() for name in names if (match := _IN_LAYER.fullmatch(name))]
    outside = [name for name in names if not _IN_LAYER.fullmatch(name)]
    if not found:
        return " and ".join(outside)
    layers = sorted({int(layer) for layer, _ in found})
    depth = len({match[1] for name in everything if (match := _IN_LAYER.fullmatch(name))})
    kinds = sorted({part for _, part in found})
    if len(layers) == 1 and len(kinds) == 1:
        inside = f"layer {layers[0]} ({kinds[0]})"
    else:
        which = "all layers" if len(layers) == depth else f"layer{'s' if len(layers) > 1 else ''} {_spans(layers)}"
        inside = f"{_kind(kinds)}{which}"
    return " and ".join([inside, *outside])


def _kind(parts: Sequence[str]) -> str:
    tails = {part.rpartition(".")[2] for part in parts}
    if len(parts) == 1:
        return f"{parts[0]} of "
    if tails <= set(_ATTENTION):
        return "attention of "
    return "the MLP of " if tails <= set(_MLP) else ""


def _spans(numbers: Sequence[int]) -> str:
    """``0, 1, 2`` as ``0-2``, and ``0, 2, 5`` as it is."""
    together = len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1
    return f"{numbers[0]}-{numbers[-1]}" if together else ", ".join(str(number) for number in numbers)
