"""Recovered features as files: our own format, and a textual-inversion embedding for any prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from .errors import ConfigError, StorageError
from .records import Candidate

FORMAT = "amdet-feature-1"


@dataclass(frozen=True, eq=False)
class Feature:
    """A recovered implicit feature.

    Attributes:
        candidate: how it was found and what was measured.
        vectors: ``(K, D)`` token embeddings, without positions.
        target: ``(D,)``, mean pooled output with the feature, on held-out prompts.
    """

    candidate: Candidate
    vectors: Tensor
    target: Tensor


def feature_file(encoder: str, index: int) -> str:
    """Name of the file that holds a candidate's tensors."""
    return f"feature-{encoder}-{index}.safetensors"


def feature_bytes(feature: Feature) -> bytes:
    """A feature's tensors ``vectors`` and ``target`` as a safetensors file."""
    candidate = feature.candidate
    about = {
        "format": FORMAT,
        "encoder": candidate.encoder,
        "method": candidate.method,
        "seed": candidate.seed,
        "indicators": candidate.indicators,
    }
    return _save({"vectors": feature.vectors, "target": feature.target}, about)


def strongest(features: Iterable[Feature]) -> dict[str, Feature]:
    """Encoder -> its feature with the largest gap."""
    found: dict[str, Feature] = {}
    for feature in features:
        name = feature.candidate.encoder
        if name not in found or _strength(feature) > _strength(found[name]):
            found[name] = feature
    return found


def best(features: Iterable[Feature]) -> Feature:
    """The feature with the largest gap.

    Raises:
        ConfigError: there is none.
    """
    every = list(features)
    if not every:
        raise ConfigError("a recovered feature", "none", "Scan with an anchor, so that features can be searched.")
    return max(every, key=_strength)


def pseudo_trigger_bytes(features: Iterable[Feature]) -> bytes | None:
    """The strongest feature of every encoder as one textual-inversion file, or None without features.

    Keys are those that image hosts look for, ``clip_l`` and ``clip_g``: in ComfyUI the file works in any
    prompt as ``embedding:<name>``.
    """
    tensors = {embedding_key(name): feature.vectors for name, feature in strongest(features).items()}
    about = {
        "format": "textual-inversion",
        "warning": "pseudo-trigger recovered from a suspect text encoder, for testing only",
    }
    return _save(tensors, about) if tensors else None


def read_pseudo_triggers(path: Path) -> dict[str, Tensor]:
    """The vectors ``(K, D)`` of a textual-inversion file by the name of their encoder, clip_l or clip_g.

    Raises:
        StorageError: there is no such file, or it is damaged.
    """
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"the recovered features at {path}", " ".join(str(error).split()), "Scan again, with an anchor."
        ) from error


def embedding_key(encoder: str) -> str:
    """The key under which image hosts look for the vectors of an encoder."""
    return "clip_l" if encoder == "text_encoder" else encoder


def _strength(feature: Feature) -> float:
    gap = feature.candidate.indicators.get("gap")
    return -1.0 if gap is None else gap


def _save(tensors: dict[str, Tensor], about: Mapping[str, object]) -> bytes:
    # One metadata entry: with several, their order in the file would not be the same every time.
    plain = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    return bytes(save(plain, metadata={"amdet": json.dumps(about)}))
