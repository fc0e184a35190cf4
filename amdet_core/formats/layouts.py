"""Key layouts of CLIP text encoders: where the encoders of a file are, and the names of their tensors.

There are two styles of names, ``hf`` (transformers, one tensor per projection) and ``open_clip`` (fused
query, key and value; the text projection transposed). Every layout is one style behind a prefix, so an
encoder is found by the name of its token table, whatever stands in front.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..encoder import POOLED_HEAD, POSITION_TABLE, PROJECTION, TOKEN_TABLE
from ..errors import EncoderError
from ..layers import FINAL_NORM

Style = Literal["hf", "open_clip"]
POSITION_REST = "embeddings.position_embedding_res"
"""LongCLIP's second position table; a source name that becomes part of POSITION_TABLE."""
LONG_CLIP_KEPT = 20
"""Rows that LongCLIP keeps from CLIP's own position table (Zhang et al., 2024, arXiv 2403.15378)."""
SHORT_POSITIONS = 77
"""Positions of every other CLIP; a second table beside so few is not LongCLIP's, and programs would ignore it."""

STEMS: Mapping[Style, tuple[str, ...]] = {
    "hf": ("embeddings.", "encoder.", "final_layer_norm."),
    "open_clip": ("token_embedding", "positional_embedding", "transformer.", "ln_final.", "text_projection"),
}

SLOTS: tuple[tuple[str, str, str | None], ...] = (
    (r"cond_stage_model\.transformer\.(text_model\.)?$", "sd1", None),
    (r"cond_stage_model\.model\.$", "sd2", None),
    (r"conditioner\.embedders\.\d+\.transformer\.(text_model\.)?$", "sdxl", "clip_l"),
    (r"conditioner\.embedders\.\d+\.model\.$", "sdxl", "clip_g"),
    (r"text_encoders\.clip_l\.(transformer\.)?(text_model\.)?$", "sd3", "clip_l"),
    (r"text_encoders\.clip_g\.(transformer\.)?(text_model\.)?$", "sd3", "clip_g"),
    (r"(^|\.)clip_l\.(transformer\.)?(text_model\.)?$", "comfyui", "clip_l"),
    (r"(^|\.)clip_g\.(transformer\.)?(text_model\.)?$", "comfyui", "clip_g"),
    (r"(^|\.)clip_h\.(transformer\.)?(text_model\.)?$", "comfyui", "clip_h"),
)
"""Prefix -> layout and, where the layout has one place per encoder, the encoder's name."""

_HF_PART = re.compile(
    r"encoder\.layers\.\d+\.(layer_norm[12]|self_attn\.[qkv]_proj|self_attn\.out_proj|mlp\.fc[12])\.(weight|bias)"
)
_OPEN_CLIP_PART = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_TABLES = {TOKEN_TABLE: "token_embedding.weight", POSITION_TABLE: "positional_embedding"}
_TABLES |= {f"{FINAL_NORM}.{kind}": f"ln_final.{kind}" for kind in ("weight", "bias")}
_BLOCK = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"}
_BLOCK |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
_BLOCK_NAMES = {f"{new}.{kind}": f"{old}.{kind}" for old, new in _BLOCK.items() for kind in ("weight", "bias")}
_TABLE_NAMES = {new: old for old, new in _TABLES.items()}


@dataclass(frozen=True)
class Location:
    """One text encoder inside a file.

    Attributes:
        prefix: what stands in front of its names.
        style: of its names.
        layout: where it lies: hf, open_clip, comfyui, sd1, sd2, sdxl or sd3.
        slot: its name, where the layout gives one.
        keys: key in the file -> canonical name, or ``canonical|qkv`` and ``canonical|t`` for what is fused
            or transposed.
        siglip: it has a head or a bias behind its projection, as only SigLIP's towers have.
    """

    prefix: str
    style: Style
    layout: str
    slot: str | None
    keys: Mapping[str, str]
    siglip: bool

    @property
    def stems(self) -> tuple[str, ...]:
        """What the names of its own tensors start with; anything else that starts so changes what it computes."""
        return tuple(self.prefix + stem for stem in STEMS[self.style])

    @property
    def root(self) -> str:
        """Prefix of the subtree that belongs to this encoder alone; empty for the whole file."""
        return self.prefix.removesuffix("text_model.").removesuffix("transformer.")


def locate(keys: Iterable[str]) -> list[Location]:
    """All CLIP-like text encoders among the keys of a file, in the order of their prefixes."""
    every = frozenset(keys)
    places: set[tuple[str, Style]] = set()
    for key in every:
        prefix = key.removesuffix("token_embedding.weight")
        if prefix == key or (prefix and not prefix.endswith(".")):
            continue
        is_hf = prefix == "embeddings." or prefix.endswith(".embeddings.")
        places.add((prefix.removesuffix("embeddings."), "hf") if is_hf else (prefix, "open_clip"))
    return [_location(every, prefix, style) for prefix, style in sorted(places)]


def _location(every: frozenset[str], prefix: str, style: Style) -> Location:
    name_of = hf_name if style == "hf" else open_clip_name
    found = {key: name_of(key.removeprefix(prefix)) for key in every if key.startswith(prefix)}
    keys = {key: name for key, name in found.items() if name is not None}
    for parent in _parents(prefix):
        for key, name in (
            (f"{parent}text_projection.weight", PROJECTION),
            (f"{parent}text_projection", f"{PROJECTION}|t"),
        ):
            if key in every and not any(value.startswith(PROJECTION) for value in keys.values()):
                keys[key] = name
    only_siglip = [f"{prefix}{POOLED_HEAD}.{kind}" for kind in ("weight", "bias")] if style == "hf" else []
    only_siglip += [f"{parent}text_projection.bias" for parent in _parents(prefix)]
    extra = {key: key for key in only_siglip if key in every}
    layout, slot = next(
        ((layout, slot) for pattern, layout, slot in SLOTS if re.search(pattern, prefix)), (style, None)
    )
    return Location(prefix, style, layout, slot, keys | extra, bool(extra))


def _parents(prefix: str) -> list[str]:
    """The places where a text projection may lie: with the encoder, or one or two wrappers outside."""
    outside = prefix.removesuffix("text_model.")
    return list(dict.fromkeys((prefix, outside, outside.removesuffix("transformer."))))


def hf_name(name: str) -> str | None:
    """Canonical name of a transformers name without prefix; None where it is no tensor of an encoder."""
    if name in (POSITION_REST, f"{POSITION_REST}.weight"):
        return POSITION_REST
    return name if name in _TABLES or _HF_PART.fullmatch(name) else None


def open_clip_name(name: str) -> str | None:
    """Canonical name of an open_clip name without prefix; None where it is no tensor of an encoder."""
    if name == "positional_embedding_res":
        return POSITION_REST
    block = _OPEN_CLIP_PART.fullmatch(name)
    if block is None:
        return _TABLE_NAMES.get(name)
    layer, part = block.groups()
    if part in ("attn.in_proj_weight", "attn.in_proj_bias"):
        return f"encoder.layers.{layer}.self_attn.{part.removeprefix('attn.in_proj_')}|qkv"
    return f"encoder.layers.{layer}.{_BLOCK_NAMES[part]}" if part in _BLOCK_NAMES else None


def pieces(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Canonical tensors that one tensor of a file holds, as views of it."""
    plain, _, how = name.partition("|")
    if how == "t":
        return [(plain, tensor.t() if tensor.ndim == 2 else tensor)]
    if how == "qkv":
        layer, _, kind = plain.rpartition(".")
        parts = tensor.chunk(3) if tensor.ndim else ()
        return [(f"{layer}.{part}_proj.{kind}", view) for part, view in zip("qkv", parts, strict=False)]
    return [(plain, tensor)]


def merge_positions(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """LongCLIP's two position tables as the one that its forward pass adds; other encoders as they are.

    Raises:
        EncoderError: the two tables differ in shape or are as short as other CLIPs'.
    """
    if POSITION_REST not in weights:
        return weights
    rest, table = weights[POSITION_REST], weights.get(POSITION_TABLE)
    if table is None or table.shape != rest.shape or table.ndim != 2 or len(table) <= SHORT_POSITIONS:
        raise EncoderError(
            expected=f"LongCLIP's two position tables of one shape, longer than {SHORT_POSITIONS}",
            found=f"{None if table is None else tuple(table.shape)} and {tuple(rest.shape)}",
            remedy="The file mixes two models or is damaged; download it again.",
        )
    whole = torch.cat((table[:LONG_CLIP_KEPT], rest[LONG_CLIP_KEPT:]))
    return {name: w for name, w in weights.items() if name != POSITION_REST} | {POSITION_TABLE: whole}


def to_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Canonical weights under open_clip's names: query, key and value fused, the projection transposed."""
    out: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if name == PROJECTION:
            out["text_projection"] = tensor.t()
        elif layer is None:
            out[_TABLES[name]] = tensor
        else:
            number, part, kind = layer.groups()
            block = f"transformer.resblocks.{number}"
            if part in _BLOCK:
                out[f"{block}.{_BLOCK[part]}.{kind}"] = tensor
            elif part == "self_attn.q_proj":
                attention = f"encoder.layers.{number}.self_attn"
                out[f"{block}.attn.in_proj_{kind}"] = torch.cat(
                    [weights[f"{attention}.{letter}_proj.{kind}"] for letter in "qkv"]
                )
    return out
