"""What was done to the weights: an encoder against its anchor, tensor by tensor, token by token.

Everything here describes; nothing judges. A benign fine-tune, a LoRA and a taught concept leave the same
kinds of traces as a backdoor does, so the bounds below only choose words.

Rounding is not a change: where a suspect's tensor holds only values of a lower precision, it is compared
with the anchor's tensor rounded to that precision, if that is nearer. An untouched tensor of a float16
file is then unchanged although the anchor is kept in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from .encoder import POSITION_TABLE, PROJECTION, TOKEN_TABLE, TextEncoder
from .errors import EncoderError
from .forensics_words import Change, summary
from .memory import double
from .progress import Progress, silent
from .records import Evidence, Forensics, LayerChange, RowChange
from .tokenizer import ClipTokenizer

CASTS: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
"""Precisions lower than float32 in which encoders are stored."""

RANK_ENERGY = 0.99
"""The rank of a change is the number of directions that hold this share of its energy."""
LOW_RANK = 8
"""A rank is low up to this fraction (one eighth) of the matrix's smaller side."""
FEWEST = 8
"""Rows that must have moved before one can stand out among them."""


def compare(
    suspect: TextEncoder,
    anchor: TextEncoder,
    *,
    encoder: str = "text_encoder",
    rows: int = 32,
    progress: Progress = silent,
) -> Forensics:
    """Describe how a suspect's weights differ from those of its anchor.

    A tensor that is all zero in the anchor and not in the suspect has an infinite relative norm.

    Args:
        encoder: name of the encoder within its file.
        rows: most token rows that are listed, those that moved most.

    Raises:
        EncoderError: the anchor has other tensors than the suspect.
        NumericalError: either holds a weight that is NaN or infinite.
    """
    names = _shared(suspect, anchor)
    suspect, anchor = suspect.to("cpu"), anchor.to("cpu")
    suspect.check_finite()
    anchor.check_finite()
    changes: list[Change] = []
    moved: tuple[RowChange, ...] = ()
    count = 0
    for done, name in enumerate(names, start=1):
        ours, theirs = suspect.weights[name], anchor.weights[name]
        reference, cast = _reference(ours, theirs)
        delta = ours - reference
        changes.append(_change(name, delta, theirs, cast))
        if name == TOKEN_TABLE:
            moved, count = _rows(delta, theirs, suspect.tokenizer, rows)
        progress("forensics", done, len(names))
    finer = _finer(suspect, anchor, names) if any(change.changed for change in changes) else None
    return Forensics(
        encoder=encoder,
        summary=summary(changes, finer, moved, count),
        layers=tuple(change.layer for change in changes),
        rows=moved,
        rows_changed=count,
    )


def moved_tokens(suspect: TextEncoder, anchor: TextEncoder) -> list[int]:
    """Ids of the tokens whose row of the table moved, the one that moved most first.

    Raises:
        EncoderError: the anchor has other tensors than the suspect.
    """
    _shared(suspect, anchor)
    ours, theirs = (encoder.weights[TOKEN_TABLE].cpu() for encoder in (suspect, anchor))  # Apple's lack float64, float8
    ids, distances = _moved(ours - _reference(ours, theirs)[0])
    moved: list[int] = ids[distances.argsort(descending=True, stable=True)].tolist()
    return moved


def distance(a: TextEncoder, b: TextEncoder) -> float:
    """Frobenius norm of the difference over that of ``b``, over all tensors that both have but the text projection.

    Many files come without that one, and nearer they are not.

    Raises:
        EncoderError: the two have different tensors.
    """
    names = [name for name in _shared(a, b) if name != PROJECTION]
    a, b = a.to("cpu"), b.to("cpu")
    difference = sum(_norm(a.weights[name] - b.weights[name]) ** 2 for name in names)
    total = sum(_norm(b.weights[name]) ** 2 for name in names)
    return _ratio(math.sqrt(difference), math.sqrt(total))


def evidence(forensics: Forensics) -> tuple[Evidence, ...]:
    """The differences in numbers; spectra are averaged over the matrices that changed."""
    norms = [layer.relative_norm for layer in forensics.layers if math.isfinite(layer.relative_norm)]
    spectra = [layer for layer in forensics.layers if layer.top1_energy is not None]
    sigmas = [row.sigma for row in forensics.rows if math.isfinite(row.sigma)]

    def measured(
        name: str, value: float | None, n: int, unit: str, direction: Literal["higher", "none"] = "none"
    ) -> Evidence:
        return Evidence(name=name, value=value, unit=unit, direction=direction, n=n, encoder=forensics.encoder)

    return (
        measured("delta_norm", _mean(norms), len(norms), "share of norm"),
        measured("delta_top1_energy", _mean(x.top1_energy for x in spectra), len(spectra), "share of energy", "higher"),
        measured("delta_top8_energy", _mean(x.top8_energy for x in spectra), len(spectra), "share of energy", "higher"),
        measured("delta_effective_rank", _mean(x.effective_rank for x in spectra), len(spectra), "directions"),
        measured("token_rows_changed", float(forensics.rows_changed), forensics.rows_changed, "tokens"),
        measured("token_row_sigma", max(sigmas) if sigmas else None, forensics.rows_changed, "robust sigma", "higher"),
    )


# ------------------------------------------------------------------ measuring


def _shared(suspect: TextEncoder, anchor: TextEncoder) -> list[str]:
    """Names of the tensors that both have; the text projection may be missing or of another width."""
    if not suspect.spec.comparable(anchor.spec):
        ours, theirs = (
            f"{e.spec.summary}, {e.spec.heads} heads, MLP {e.spec.mlp_width}, "
            f"{'causal' if e.spec.causal else 'bidirectional'}"
            for e in (suspect, anchor)
        )
        raise EncoderError(
            expected=f"an anchor with the suspect's architecture ({ours})",
            found=f"another family or size ({theirs})",
            remedy="Choose the encoder that the suspect was made from.",
        )
    both = anchor.weights
    return [name for name, w in suspect.weights.items() if name in both and both[name].shape == w.shape]


def rounded(w: Tensor, cast: str) -> Tensor:
    """Values rounded to a lower precision of :data:`CASTS`, as float32."""
    return w.to(CASTS[cast]).to(torch.float32)


def _holds(w: Tensor, cast: str) -> bool:
    """Whether a precision can express every value; a few values settle it for most tensors."""
    few = w.flatten()[:4096]
    return torch.equal(rounded(few, cast), few) and torch.equal(rounded(w, cast), w)


def _reference(ours: Tensor, theirs: Tensor) -> tuple[Tensor, str | None]:
    """The anchor's tensor, rounded as the suspect's is where that brings the two closer together."""
    best: tuple[Tensor, str | None] = (theirs, None)
    nearest = _norm(ours - theirs)
    for cast in CASTS if nearest > 0 else ():
        if _holds(ours, cast):
            candidate = rounded(theirs, cast)
            # An overflow in the cast makes the norm NaN, which is nearer to nothing.
            if (norm := _norm(ours - candidate)) < nearest:
                best, nearest = (candidate, cast), norm
    return best


def _change(name: str, delta: Tensor, anchor: Tensor, cast: str | None) -> Change:
    norm = _norm(delta)
    relative = _ratio(norm, _norm(anchor))
    matrix = delta.dim() == 2 and name not in (TOKEN_TABLE, POSITION_TABLE)
    if not matrix or norm == 0:
        return Change(LayerChange(tensor=name, relative_norm=relative), cast, 0 if matrix else None, False)
    energy = _spectrum(delta)
    present = energy[energy > 0]
    layer = LayerChange(
        tensor=name,
        relative_norm=relative,
        top1_energy=float(energy[0]),
        top8_energy=float(energy[:8].sum()),
        effective_rank=float(torch.exp(-(present * present.log()).sum())),
    )
    rank = int((energy.cumsum(0) < RANK_ENERGY).sum()) + 1
    return Change(layer, cast, rank, rank <= min(delta.shape) // LOW_RANK)


def _spectrum(delta: Tensor) -> Tensor:
    """Shares of the squared singular values of ``(M, N)``, descending, from the smaller Gram matrix.

    In float64 the squaring costs no accuracy that matters for shares, and it is many times faster than
    singular values.
    """
    wide = double(delta if delta.shape[0] <= delta.shape[1] else delta.T)
    wide = wide / wide.abs().amax()
    energy: Tensor = torch.linalg.eigvalsh(wide @ wide.T).clamp_min(0).flip(0)
    return energy / energy.sum()


def _rows(delta: Tensor, anchor: Tensor, tokenizer: ClipTokenizer, limit: int) -> tuple[tuple[RowChange, ...], int]:
    """The token rows that moved most, and how many moved at all."""
    ids, distances = _moved(delta)
    usual = float(anchor.norm(dim=1).median())
    sigmas = _robust_z(distances)
    order = distances.argsort(descending=True, stable=True)[:limit]
    moved = [
        RowChange(
            text=_said(tokenizer, token),
            token=tokenizer.token(token) if token < len(tokenizer) else f"#{token}",
            token_id=token,
            distance=_ratio(float(distances[i]), usual),
            sigma=float(sigmas[i]),
        )
        for i, token in zip(order.tolist(), ids[order].tolist(), strict=True)
    ]
    return tuple(moved), len(ids)


def _said(tokenizer: ClipTokenizer, token: int) -> str:
    """What a token stands for; its number where it is none of CLIP's, its spelling where it is no whole character."""
    if token >= len(tokenizer):
        return f"#{token}"
    text = tokenizer.text([token])
    return tokenizer.token(token) if not text or "\ufffd" in text else text


def _moved(delta: Tensor) -> tuple[Tensor, Tensor]:
    """Ids ``(N,)`` of the rows of a table that moved, and how far each did."""
    ids = delta.ne(0).any(dim=1).nonzero().squeeze(1).cpu()
    return ids, double(delta.norm(dim=1).cpu()[ids])


def _robust_z(x: Tensor) -> Tensor:
    """Robust z-scores of ``(N,)``; NaN where there are too few to compare.

    References:
        Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993: median and MAD, and the mean
        absolute deviation where more than half of the values are equal.
    """
    if len(x) < FEWEST:
        return torch.full_like(x, math.nan)
    off = x - x.median()
    mad, mean = float(off.abs().median()), float(off.abs().mean())
    scale = 1.4826 * mad if mad > 0 else 1.2533 * mean
    return off / scale if scale > 0 else off


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


def _ratio(part: float, whole: float) -> float:
    if whole == 0:
        return math.inf if part > 0 else 0.0
    return part / whole


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _finer(suspect: TextEncoder, anchor: TextEncoder, names: Sequence[str]) -> str | None:
    """The precision at which the suspect rounds to the anchor, if there is one."""
    smallest_first = sorted(names, key=lambda name: anchor.weights[name].numel())
    for cast in CASTS:
        if all(torch.equal(rounded(suspect.weights[name], cast), anchor.weights[name]) for name in smallest_first):
            return cast
    return None
