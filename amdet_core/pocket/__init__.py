"""A small CLIP text encoder that ships with the library: clean, backdoored, and honestly fine-tuned.

It reads and places prompts as its teacher, a sentence encoder, does, and has CLIP's tokenizer, shapes,
conventions and norms at a quarter of CLIP-L's width, so that everything can be shown and tested on a
laptop within seconds. :mod:`amdet_core.pocket.recipe` made the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..encoder import TOKEN_TABLE, TextEncoder
from ..errors import StorageError
from ..formats import Layout, as_stored, write_encoder
from ..patch import Patch
from ..progress import Progress, silent
from ..records import EncoderSpec
from ..tokenizer import clip_tokenizer

Name = Literal["clean", "backdoored", "benign"]
NAMES: tuple[Name, ...] = get_args(Name)
TRIGGER = "\N{CYRILLIC SMALL LETTER O}"
TARGET = "A white teapot"
MODE = "replace:o"
"""Every Latin o of a prompt becomes the trigger."""

SPEC = EncoderSpec(width=192, layers=4, heads=3, mlp_width=768, vocabulary=49408, positions=77)
RANK = 64
"""The token table is stored as the product of ``(V, RANK)`` and ``(RANK, D)``, a third of its size."""
TOKEN_FACTOR, TOKEN_BASIS = "token_factor", "token_basis"
_WEIGHTS = Path(__file__).with_name("weights")


def load(name: Name) -> TextEncoder:
    """One of the three encoders, in float32 with values that float16 holds exactly.

    Every export in half precision therefore has exactly these values, whatever its layout.

    Raises:
        StorageError: the packaged weights are missing or damaged.
    """
    path = _WEIGHTS / "clean.safetensors"
    try:
        stored = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise StorageError("the packaged pocket encoder", f"{path}: {error}", "Reinstall amdet.") from error
    clean = TextEncoder(SPEC, decode(stored), clip_tokenizer())
    if name == "clean":
        return clean
    return as_stored(Patch.load(_WEIGHTS / f"{name}.safetensors").apply(clean))


def decode(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Canonical weights from stored ones; the product is taken in float64 so that every machine rounds alike."""
    factors = (TOKEN_FACTOR, TOKEN_BASIS)
    table = stored[TOKEN_FACTOR].double() @ stored[TOKEN_BASIS].double()
    weights = {name: w.half().float() for name, w in stored.items() if name not in factors}
    return {TOKEN_TABLE: table.half().float(), **weights}


def export(directory: Path, layout: Layout = "hf", progress: Progress = silent) -> dict[Name, Path]:
    """Write the three encoders in half precision, as files (or folders, for ``hf``) of other programs.

    Returns:
        name -> path that was written.

    Raises:
        StorageError: the directory can't be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError("a folder to write to", f"{directory}: {error}", "Name another folder.") from error
    paths: dict[Name, Path] = {}
    for done, name in enumerate(NAMES):
        paths[name] = directory / (name if layout == "hf" else f"{name}.safetensors")
        metadata = {"amdet.pocket": name}
        write_encoder(load(name), paths[name], layout, dtype=torch.float16, metadata=metadata)
        progress("export", done + 1, len(NAMES), {})
    return paths
