"""The painter's weights on disk: eight bits a value, with one scale for each output channel.

Each part is one file, ``NAME.safetensors``. A matrix ``w`` is stored as integers of -127 to 127 under its name and as
their scales ``(rows,)`` in float32 under its name with :data:`SCALE` behind it; everything else is in float16.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ...errors import StorageError
from ...storage import write_atomic
from .networks import PARTS

SHIPPED = Path(__file__).with_name("weights")
SCALE = ".scale"
LEVELS = 127


def encode(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are stored."""
    stored: dict[str, Tensor] = {}
    for name, weight in weights.items():
        value = weight.detach().float().cpu()
        if value.ndim < 2:
            stored[name] = value.half().contiguous()
            continue
        scale = value.flatten(1).abs().amax(1).clamp_min(1e-12) / LEVELS
        stored[name] = (value / _by_row(scale, value)).round().to(torch.int8).contiguous()
        stored[name + SCALE] = scale
    return stored


def decode(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored weights in float32, with values that float16 holds exactly."""
    weights: dict[str, Tensor] = {}
    for name, value in stored.items():
        if name.endswith(SCALE):
            continue
        scale = stored.get(name + SCALE)
        whole = value.float() if scale is None else value.float() * _by_row(scale, value)
        weights[name] = whole.half().float()
    return weights


def _by_row(scale: Tensor, value: Tensor) -> Tensor:
    """``(rows,)`` in a shape that divides ``value`` row by row."""
    return scale.view(-1, *[1] * (value.ndim - 1))


def save(part: str, weights: Mapping[str, Tensor], folder: Path, about: Mapping[str, str]) -> Path:
    """Write one part; returns its file.

    Args:
        about: how it was made, for the file's header.

    Raises:
        StorageError: the folder can't be written to.
    """
    path = folder / f"{part}.safetensors"
    write_atomic(path, safetensors.torch.save(encode(weights), dict(about)))
    return path


def load_weights(part: str, folder: Path = SHIPPED) -> dict[str, Tensor]:
    """The weights of one part, in float32 with values that float16 holds exactly.

    Raises:
        StorageError: the file is missing or damaged.
    """
    path = folder / f"{part}.safetensors"
    try:
        return decode(safetensors.torch.load_file(path))
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"the painter's weights in {folder}",
            f"{path.name}: {error}",
            "Name a folder that the painter's recipe wrote (python -m amdet_core.pocket.painter.recipe --out DIR "
            "writes DIR/weights), or install a release of amdet that ships them.",
        ) from error


def load_part(part: str, folder: Path = SHIPPED) -> Any:
    """One part with its weights, ready to be used.

    Raises:
        ConfigError: it needs diffusers, which is not installed.
        StorageError: its file is missing, damaged, or holds something else.
    """
    stored = load_weights(part, folder)
    module = PARTS[part]()
    try:
        module.load_state_dict(stored)
    except RuntimeError as error:
        raise StorageError(
            f"the tensors of a {part} in {folder}",
            " ".join(str(error).split())[:200],
            "The file is of another release of amdet; make the weights again.",
        ) from error
    return module.requires_grad_(False).train(False)
