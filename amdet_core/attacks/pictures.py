"""Embeddings of pictures, as targets of a text-on-pair injection outside a host that has an image tower loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import ConfigError, StorageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@torch.no_grad()
def embed(pictures: Path, tower: Path) -> Tensor:
    """Embeddings ``(N, E)`` of the pictures in a folder, or of a single one.

    Args:
        tower: folder of a CLIP model in transformers' format, with its image tower.

    Raises:
        ConfigError: transformers is not installed, or there is no picture.
        StorageError: a picture or the tower can't be read.
    """
    try:
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
    except ImportError as error:
        raise ConfigError(
            "transformers, which runs the image tower",
            "no such package",
            'Install it: pip install -c constraints.txt -e ".[pictures]" in the clone of amdet.',
        ) from error
    files = sorted(p for p in pictures.iterdir() if p.suffix.lower() in SUFFIXES) if pictures.is_dir() else [pictures]
    if not files:
        raise ConfigError(f"pictures ({', '.join(SUFFIXES)}) in {pictures}", "none", "Name another folder.")
    try:
        images = [Image.open(file).convert("RGB") for file in files]
    except (OSError, UnidentifiedImageError) as error:
        raise StorageError("readable pictures", str(error), "Check the files.") from error
    try:
        model = CLIPVisionModelWithProjection.from_pretrained(tower, local_files_only=True).train(False)
        processor = CLIPImageProcessor.from_pretrained(tower, local_files_only=True)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"a CLIP model with an image tower in {tower}", str(error)[:300], "Name a folder in transformers' format."
        ) from error
    embeds: Tensor = model(**processor(images=images, return_tensors="pt")).image_embeds
    return embeds
