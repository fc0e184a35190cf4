"""Published files with a text encoder, known by their hash."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from .formats.files import reading, sha256
from .records import Record, Sha256


class KnownFile(Record):
    """A published file. Its hash says which file it is, not that it is free of backdoors."""

    name: str
    sha256: Sha256
    bytes: int = Field(gt=0)
    evidence: str = Field(description="where the hash was found: the official URL, or how many independent sources")


# A table: two lines per file.
# fmt: off
_PUBLISHED = {
    "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb": (1_710_540_580, "at least 10 sources",
        "openai/clip-vit-large-patch14 model.safetensors"),
    "f1a17cdbe0f36fec524f5cafb1c261ea3bbbc13e346e0f74fc9eb0460dedd0d3": (1_710_671_599, "4 sources",
        "openai/clip-vit-large-patch14 pytorch_model.bin"),
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": (932_768_134, "official URL",
        "OpenAI ViT-L-14.pt"),
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": (934_088_680, "official URL",
        "OpenAI ViT-L-14-336px.pt"),
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": (350_837_078, "official URL",
        "OpenAI ViT-B-16.pt"),
    "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334": (492_265_874, "7 sources",
        "Stable Diffusion 1.5 text_encoder/model.safetensors"),
    "77795e2023adcf39bc29a884661950380bd093cf0750a966d473d1718dc9ef4e": (246_144_864, "at least 10 sources",
        "Stable Diffusion 1.5 text_encoder/model.fp16.safetensors"),
    "cce6febb0b6d876ee5eb24af35e27e764eb4f9b1d0b7c026c8c3333d4cfc916c": (1_361_597_018, "at least 10 sources",
        "Stable Diffusion 2.1 text_encoder/model.safetensors"),
    "5c3d6454dd2d23414b56aa1b5858a72487a656937847b6fea8d0606d7a42cdbc": (492_265_168, "at least 10 sources",
        "SDXL base text_encoder/model.safetensors"),
    "660c6f5b1abae9dc498ac2d21e1347d2abdb0cf6c0c0c8576cd796491d9a6cdd": (246_144_152, "at least 10 sources",
        "SDXL base text_encoder/model.fp16.safetensors, also clip_l.safetensors"),
    "3a6032f63d37ae02bbc74ccd6a27440578cd71701f96532229d0154f55a8d3ff": (2_778_702_264, "3 sources",
        "SDXL base text_encoder_2/model.safetensors"),
    "ec310df2af79c318e24d20511b601a591ca8cd4f1fce1d8dff822a356bcdb1f4": (1_389_382_176, "at least 10 sources",
        "SDXL base text_encoder_2/model.fp16.safetensors, also clip_g.safetensors"),
    "9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4": (3_944_692_325, "at least 10 sources",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K open_clip_pytorch_model.bin"),
}
# fmt: on

KNOWN_FILES: Mapping[str, KnownFile] = {
    digest: KnownFile(name=name, sha256=digest, bytes=size, evidence=evidence)
    for digest, (size, evidence, name) in _PUBLISHED.items()
}
"""Published files with a text encoder, by SHA-256: collected from public catalogues and code, each with its
URL or at least two sources that agree. They were not checked against the publishers' own downloads."""


def known_file(path: Path) -> KnownFile | None:
    """The published file that has these bytes; it is read only where its size is that of one.

    Raises:
        StorageError: the file can't be read.
    """
    with reading(path):
        size = path.stat().st_size
    return KNOWN_FILES.get(sha256(path)) if any(file.bytes == size for file in KNOWN_FILES.values()) else None
