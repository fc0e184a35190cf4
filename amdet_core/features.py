"""Recovered features as files: our own format, and a textual-inversion embedding for any prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from safetensors.torch import save
from torch import Tensor

from .records import Candidate

FORMAT = "amdet-feature-1"


def feature_file(encoder: str, index: int) -> str:
    """Name of the file that holds a candidate's tensors."""
    return f"feature-{encoder}-{index}.safetensors"


def feature_bytes(candidate: Candidate, vectors: Tensor, target: Tensor) -> bytes:
    """A candidate's tensors: ``vectors`` ``(K, D)`` as token embeddings without positions, and
    ``target`` ``(D,)``, the mean pooled output that they cause.
    """
    about = {
        "format": FORMAT,
        "encoder": candidate.encoder,
        "method": candidate.method,
        "seed": candidate.seed,
        "indicators": candidate.indicators,
    }
    return _save({"vectors": vectors, "target": target}, about)


def pseudo_trigger_bytes(features: Sequence[tuple[Candidate, Tensor]]) -> bytes | None:
    """The strongest feature of every encoder as one textual-inversion file, or None without features.

    Keys are those that image hosts look for, ``clip_l`` and ``clip_g``: in ComfyUI the file works in any
    prompt as ``embedding:<name>``.
    """
    best: dict[str, tuple[Candidate, Tensor]] = {}
    for candidate, vectors in features:
        if candidate.encoder not in best or _strength(candidate) > _strength(best[candidate.encoder][0]):
            best[candidate.encoder] = (candidate, vectors)
    tensors = {_embedding_key(name): vectors for name, (_, vectors) in best.items()}
    about = {
        "format": "textual-inversion",
        "warning": "pseudo-trigger recovered from a suspect text encoder, for testing only",
    }
    return _save(tensors, about) if tensors else None


def _strength(candidate: Candidate) -> float:
    gap = candidate.indicators.get("gap")
    return -1.0 if gap is None else gap


def _embedding_key(encoder: str) -> str:
    return "clip_l" if encoder == "text_encoder" else encoder


def _save(tensors: dict[str, Tensor], about: Mapping[str, object]) -> bytes:
    # One metadata entry: with several, their order in the file would not be the same every time.
    plain = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    return bytes(save(plain, metadata={"amdet": json.dumps(about)}))
