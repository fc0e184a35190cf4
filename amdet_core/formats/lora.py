"""Write changes of an encoder's matrices as a LoRA file that other programs load on top of the original.

References:
    Hu et al., LoRA, 2021, https://arxiv.org/abs/2106.09685; key names of kohya's sd-scripts and of PEFT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor

from ..errors import ConfigError
from ..memory import double
from ..patch import Patch
from ..storage import write_atomic

LoraLayout = Literal["kohya", "peft"]
LOST = 1e-2
"""Largest relative error with which a matrix may be stored; half precision alone costs a tenth of it."""
PREFIXES = {"clip_l": "lora_te", "text_encoder": "lora_te", "clip_g": "lora_te2", "clip_h": "lora_te"}


def write_lora(
    patch: Patch,
    path: Path,
    layout: LoraLayout,
    *,
    rank: int,
    encoder: str = "text_encoder",
    of_several: bool = False,
    projected: bool = False,
) -> None:
    """Factor a patch and write it.

    Args:
        patch: differences of layer matrices alone.
        path: of the file; of the folder for ``peft``, which gets adapter_config.json and its weights, with the module
            names of transformers 5.
        layout: ``kohya`` is what ComfyUI and most interfaces load.
        rank: of every product at most; alpha is the same, so a loader's scale is 1.
        encoder: the encoder's name in its checkpoint.
        of_several: whether the checkpoint has several encoders, as SDXL's; kohya then counts them.
        projected: whether the encoder has a text projection: transformers' class for these has other module names.

    Raises:
        ConfigError: the patch changes other tensors than layer matrices, or has a higher rank.
        StorageError: the place can't be written to.
    """
    pairs = {name.removesuffix(".weight"): _factors(name, delta, rank) for name, delta in patch.deltas.items()}
    if layout == "peft":
        pairs = {f"text_model.{name}" if projected else name: pair for name, pair in pairs.items()}
        largest = max((len(down) for _, down in pairs.values()), default=rank)
        config = {
            "peft_type": "LORA",
            "r": largest,
            "lora_alpha": largest,
            "target_modules": sorted(pairs),
            "bias": "none",
        }
        tensors = {
            f"base_model.model.{name}.lora_{part}.weight": factor
            for name, (up, down) in pairs.items()
            for part, factor in (("A", down), ("B", up))
        }
        _save(path / "adapter_model.safetensors", tensors, patch.provenance)
        write_atomic(path / "adapter_config.json", (json.dumps(config, indent=2) + "\n").encode())
        return
    prefix = PREFIXES.get(encoder, "lora_te")
    prefix = "lora_te1" if of_several and prefix == "lora_te" else prefix
    tensors = {}
    for name, (up, down) in pairs.items():
        key = f"{prefix}_text_model_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
        tensors[f"{key}.alpha"] = torch.tensor(float(len(down)))
    _save(path, tensors, patch.provenance)


def _factors(name: str, delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors ``(M, rank)`` and ``(rank, N)`` of a difference, of equal size each."""
    if not name.startswith("encoder.layers.") or delta.ndim != 2:
        raise ConfigError(
            "changes of layer matrices alone, which a LoRA can hold",
            f"a change of {name}",
            "Only matrices of layers fit into a LoRA: write the whole encoder or its differences.",
        )
    u, s, v = torch.linalg.svd(double(delta), full_matrices=False)
    lost = float(s[rank:].norm() / s.norm()) if bool(s.any()) else 0.0
    if lost > LOST:
        raise ConfigError(
            f"changes of rank {rank} at most", f"{lost:.0%} of the change of {name} beyond it", "Ask for a higher rank."
        )
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).half().contiguous(), (root[:, None] * v[:rank]).half().contiguous()


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    write_atomic(path, safetensors.torch.save(dict(tensors), {"format": "pt", **metadata}))
