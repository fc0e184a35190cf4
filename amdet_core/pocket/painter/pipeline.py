"""The painter behind a text encoder as a folder that diffusers opens as a ``StableDiffusionPipeline``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ...encoder import TextEncoder
from ...formats import write_encoder, write_tokenizer
from ...storage import write_atomic
from .diffusion import SCHEDULER
from .networks import UNET, VAE
from .painting import check_encoder
from .weights import SHIPPED, load_weights

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
}


def write_pipeline(out: Path, encoder: TextEncoder, folder: Path = SHIPPED) -> None:
    """Write the folder, its index last; the image model is in half precision, which holds its values exactly.

    Args:
        out: created where missing; files of an earlier pipeline are replaced.
        encoder: of the pocket's shape.
        folder: the painter's weights.

    Raises:
        EncoderError: the encoder has another shape.
        StorageError: the weights are missing, or ``out`` can't be written to.
    """
    check_encoder(encoder)
    parts = {name: load_weights(name, folder) for name in ("unet", "vae")}
    for name, config, kind in (("unet", UNET, "UNet2DConditionModel"), ("vae", VAE, "AutoencoderTiny")):
        tensors = {key: w.half().contiguous() for key, w in parts[name].items()}
        _write_json(out / name / "config.json", {"_class_name": kind, **config})
        write_atomic(
            out / name / "diffusion_pytorch_model.safetensors", safetensors.torch.save(tensors, {"format": "pt"})
        )
    _write_json(out / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler", **SCHEDULER})
    write_tokenizer(encoder, out / "tokenizer")
    # transformers computes in the precision of the file, diffusers in float32 unless told otherwise
    write_encoder(encoder, out / "text_encoder", "hf", dtype=torch.float32)
    _write_json(out / "model_index.json", INDEX)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomic(path, (json.dumps(dict(value), indent=2, sort_keys=True) + "\n").encode())
