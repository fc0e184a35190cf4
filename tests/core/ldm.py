"""The tensors of single-file checkpoints by name and shape, as Stable Diffusion's own code names them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from amdet_core.encoder import TextEncoder
from amdet_core.formats.layouts import to_open_clip

Shape = tuple[int, ...]
CHANNELS = 320
FAMILIES: Mapping[str, Mapping[str, object]] = {
    "sd1": {"levels": (1, 2, 4, 4), "depth": (1, 1, 1, 0), "middle": 1, "context": 768, "linear": False, "label": 0},
    "sdxl": {"levels": (1, 2, 4), "depth": (0, 2, 10), "middle": 10, "context": 2048, "linear": True, "label": 2816},
}


def unet(
    levels: tuple[int, ...], depth: tuple[int, ...], middle: int, context: int, linear: bool, label: int
) -> Iterator[tuple[str, Shape]]:
    """A UNet's tensors under ``model.diffusion_model``."""
    embedded = 4 * CHANNELS
    yield from _layer("time_embed.0", (embedded, CHANNELS))
    yield from _layer("time_embed.2", (embedded, embedded))
    if label:
        yield from _layer("label_emb.0.0", (embedded, label))
        yield from _layer("label_emb.0.2", (embedded, embedded))
    yield from _layer("input_blocks.0.0", (CHANNELS, 4, 3, 3))
    width, number, passed = CHANNELS, 1, [CHANNELS]
    for level, factor in enumerate(levels):
        for _ in range(2):
            yield from _residual(f"input_blocks.{number}.0", width, factor * CHANNELS, embedded)
            width = factor * CHANNELS
            yield from _transformer(f"input_blocks.{number}.1", width, depth[level], context, linear)
            passed.append(width)
            number += 1
        if level < len(levels) - 1:
            yield from _layer(f"input_blocks.{number}.0.op", (width, width, 3, 3))
            passed.append(width)
            number += 1
    yield from _residual("middle_block.0", width, width, embedded)
    yield from _transformer("middle_block.1", width, middle, context, linear)
    yield from _residual("middle_block.2", width, width, embedded)
    number = 0
    for level in reversed(range(len(levels))):
        for last in (False, False, True):
            own = levels[level] * CHANNELS
            yield from _residual(f"output_blocks.{number}.0", width + passed.pop(), own, embedded)
            width = own
            yield from _transformer(f"output_blocks.{number}.1", width, depth[level], context, linear)
            if last and level:
                yield from _layer(f"output_blocks.{number}.{2 if depth[level] else 1}.conv", (width, width, 3, 3))
            number += 1
    yield from _norm("out.0", CHANNELS)
    yield from _layer("out.2", (4, CHANNELS, 3, 3))


def vae() -> Iterator[tuple[str, Shape]]:
    """The VAE's tensors under ``first_stage_model``."""
    widths = (128, 256, 512, 512)
    yield from _layer("encoder.conv_in", (128, 3, 3, 3))
    before = 128
    for level, width in enumerate(widths):
        for block in range(2):
            yield from _convolutions(f"encoder.down.{level}.block.{block}", before, width)
            before = width
        if level < 3:
            yield from _layer(f"encoder.down.{level}.downsample.conv", (width, width, 3, 3))
    yield from _middle("encoder.mid", 512)
    yield from _norm("encoder.norm_out", 512)
    yield from _layer("encoder.conv_out", (8, 512, 3, 3))
    yield from _layer("quant_conv", (8, 8, 1, 1))
    yield from _layer("post_quant_conv", (4, 4, 1, 1))
    yield from _layer("decoder.conv_in", (512, 4, 3, 3))
    yield from _middle("decoder.mid", 512)
    before = 512
    for level in reversed(range(4)):
        for block in range(3):
            yield from _convolutions(f"decoder.up.{level}.block.{block}", before, widths[level])
            before = widths[level]
        if level:
            yield from _layer(f"decoder.up.{level}.upsample.conv", (before, before, 3, 3))
    yield from _norm("decoder.norm_out", 128)
    yield from _layer("decoder.conv_out", (3, 128, 3, 3))


def _layer(name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from _layer(name, (width,))


def _residual(name: str, before: int, after: int, embedded: int) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}.in_layers.0", before)
    yield from _layer(f"{name}.in_layers.2", (after, before, 3, 3))
    yield from _layer(f"{name}.emb_layers.1", (after, embedded))
    yield from _norm(f"{name}.out_layers.0", after)
    yield from _layer(f"{name}.out_layers.3", (after, after, 3, 3))
    if before != after:
        yield from _layer(f"{name}.skip_connection", (after, before, 1, 1))


def _transformer(name: str, width: int, depth: int, context: int, linear: bool) -> Iterator[tuple[str, Shape]]:
    if not depth:
        return
    around = (width, width) if linear else (width, width, 1, 1)
    yield from _norm(f"{name}.norm", width)
    yield from _layer(f"{name}.proj_in", around)
    for block in range(depth):
        inside = f"{name}.transformer_blocks.{block}"
        for attention, read in (("attn1", width), ("attn2", context)):
            yield f"{inside}.{attention}.to_q.weight", (width, width)
            yield f"{inside}.{attention}.to_k.weight", (width, read)
            yield f"{inside}.{attention}.to_v.weight", (width, read)
            yield from _layer(f"{inside}.{attention}.to_out.0", (width, width))
        yield from _layer(f"{inside}.ff.net.0.proj", (8 * width, width))
        yield from _layer(f"{inside}.ff.net.2", (width, 4 * width))
        for norm in ("norm1", "norm2", "norm3"):
            yield from _norm(f"{inside}.{norm}", width)
    yield from _layer(f"{name}.proj_out", around)


def _convolutions(name: str, before: int, after: int) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}.norm1", before)
    yield from _layer(f"{name}.conv1", (after, before, 3, 3))
    yield from _norm(f"{name}.norm2", after)
    yield from _layer(f"{name}.conv2", (after, after, 3, 3))
    if before != after:
        yield from _layer(f"{name}.nin_shortcut", (after, before, 1, 1))


def _middle(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from _convolutions(f"{name}.block_1", width, width)
    yield from _norm(f"{name}.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from _layer(f"{name}.attn_1.{part}", (width, width, 1, 1))
    yield from _convolutions(f"{name}.block_2", width, width)


# ------------------------------------------------------------------ a whole file


def write(path: Path, family: str, encoders: list[TextEncoder]) -> None:
    """A checkpoint in half precision: image model and VAE random, norms as they are before training."""
    pool = torch.randn(999_983, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()

    def filled(name: str, shape: Shape) -> Tensor:
        if len(shape) == 1:
            return (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=torch.float16)
        size = torch.Size(shape).numel()
        return pool.repeat(-(-size // len(pool)))[:size].reshape(shape)

    tensors = {f"model.diffusion_model.{n}": filled(n, s) for n, s in unet(**FAMILIES[family])}  # type: ignore[arg-type]
    tensors |= {f"first_stage_model.{n}": filled(n, s) for n, s in vae()}
    first = "cond_stage_model.transformer" if family == "sd1" else "conditioner.embedders.0.transformer"
    tensors |= {f"{first}.text_model.{name}": w.half() for name, w in encoders[0].weights.items()}
    for encoder in encoders[1:]:
        named = to_open_clip({name: w.half() for name, w in encoder.weights.items()})
        tensors |= {f"conditioner.embedders.1.model.{name}": w.contiguous() for name, w in named.items()}
    save_file(tensors, path)
