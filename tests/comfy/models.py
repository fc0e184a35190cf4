"""Files for the host's models folders, made by the tests: small ones for behaviour, full-size ones for loading."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch
from safetensors.torch import save_file

from amdet_core import pocket
from amdet_core.encoder import TextEncoder
from amdet_core.formats import write_encoder
from amdet_core.records import EncoderSpec

from ..conftest import random_encoder
from . import host

CLIP_L = EncoderSpec(width=768, layers=12, heads=12, mlp_width=3072, vocabulary=49408, positions=77)


def lora(path: Path, before: TextEncoder, after: TextEncoder, rank: int) -> Path:
    """The leading directions of a change to the layers' matrices, as a kohya LoRA file."""
    tensors = {}
    for name, weight in before.weights.items():
        if not name.startswith("encoder.layers.") or weight.ndim != 2:
            continue
        u, s, v = torch.linalg.svd(after.weights[name].float() - weight.float(), full_matrices=False)
        key = f"lora_te_text_model_{name.removesuffix('.weight').replace('.', '_')}"
        tensors[f"{key}.lora_up.weight"] = (u[:, :rank] * s[:rank]).contiguous()
        tensors[f"{key}.lora_down.weight"] = v[:rank].contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def backdoor_lora(path: Path) -> Path:
    """The pocket's backdoor as a LoRA of rank 16."""
    return lora(path, pocket.load("clean"), pocket.load("backdoored"), 16)


def changed(encoder: TextEncoder, scale: float, seed: int) -> TextEncoder:
    """Noise on every weight: an unrelated, harmless change."""
    generator = torch.Generator().manual_seed(seed)
    return encoder.with_weights(
        {name: w + scale * torch.randn(w.shape, generator=generator) for name, w in encoder.weights.items()}
    )


def full_size(folder: Path) -> dict[str, Path]:
    """A CLIP-L of true shape with random weights, a near relative, and a checkpoint with the relative in it."""
    text, checkpoints = folder / "text_encoders", folder / "checkpoints"
    for part in (text, checkpoints):
        part.mkdir(parents=True, exist_ok=True)
    official = random_encoder(CLIP_L, scale=0.03)
    paths = {"official": text / "clip_l.safetensors", "suspect": text / "suspect.safetensors"}
    write_encoder(official, paths["official"], "comfyui")
    write_encoder(changed(official, 0.003, 1), paths["suspect"], "comfyui")
    paths["checkpoint"] = checkpoints / "v1-5-pruned-emaonly-fp16.safetensors"
    comfy = host.comfy_folder()
    assert comfy is not None
    script = Path(__file__).with_name("make_checkpoint.py")
    python = host.comfy_python(comfy)
    subprocess.run([str(python), str(script), str(paths["checkpoint"]), str(paths["suspect"])], cwd=comfy, check=True)
    return paths
