"""Sizes and conventions of an encoder: from its tensors, from its config.json, and what has to be assumed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..encoder import POSITION_TABLE, PROJECTION, TOKEN_TABLE
from ..errors import EncoderError
from ..records import EncoderSpec
from ..tokenizer import ClipTokenizer

NAMES = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
"""Width -> name of the encoder in image models; every other width is plain ``text_encoder``."""
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
HEAD_WIDTH = 64
"""Width of a head in every published CLIP text encoder."""
LEGACY_EOS = 2
"""``eos_token_id`` of configs older than July 2023; transformers then takes the highest token id."""
NORM_EPS = 1e-5

Config = Mapping[str, object]
Shapes = Mapping[str, tuple[int, ...]]


def text_config(raw: Config) -> Config:
    """The text encoder's part of a config.json of transformers or an open_clip_config.json."""
    model = raw.get("model_cfg")
    if isinstance(model, Mapping):
        text = model.get("text_cfg")
        text = text if isinstance(text, Mapping) else {}
        names = {"width": "hidden_size", "heads": "num_attention_heads", "layers": "num_hidden_layers"}
        names |= {"context_length": "max_position_embeddings", "vocab_size": "vocab_size"}
        config: dict[str, object] = {new: text[old] for old, new in names.items() if old in text}
        return config | {"hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu", "pad_token_id": 0}
    if not isinstance(raw.get("text_config"), Mapping):
        return raw
    merged: dict[str, object] = {}
    for name in ("text_config", "text_config_dict"):
        part = raw.get(name)
        merged |= part if isinstance(part, dict) else {}
    merged.pop("projection_dim", None)  # a model of both towers projects to the width that it names itself
    return merged | ({"projection_dim": raw["projection_dim"]} if "projection_dim" in raw else {})


def deduce(
    shapes: Shapes,
    tokenizer: ClipTokenizer,
    *,
    slot: str | None = None,
    fused: bool = False,
    config: Config | None = None,
) -> tuple[EncoderSpec, tuple[str, ...]]:
    """Spec of the encoder with these tensors, and what neither tensors nor config say.

    Args:
        shapes: canonical name -> shape.
        tokenizer: the one that prompts will be read with.
        slot: the encoder's name where its place in a checkpoint gives one.
        fused: the file has open_clip's names.
        config: the text encoder's config, where there is one; it wins over every assumption.

    Raises:
        EncoderError: tensors are missing or of impossible shape, or the config contradicts them.
    """
    sizes = _sizes(shapes)
    config = config or {}
    assumed: list[str] = []
    name = slot or NAMES.get(sizes["width"], "text_encoder")
    by_open_clip = name in ("clip_g", "clip_h") or sizes["width"] > 768
    _agree(config, sizes, shapes)
    spec = EncoderSpec.model_validate(
        sizes
        | {
            "heads": _heads(config, sizes["width"], assumed),
            "activation": _activation(config, by_open_clip, assumed),
            "pooling": _pooling(config, fused, tokenizer, assumed),
            "pad_id": _pad(config, by_open_clip, tokenizer, assumed),
            "projection": shapes[PROJECTION][0] if PROJECTION in shapes else None,
            "norm_eps": _norm_eps(config, assumed),
        }
    )
    if len(tokenizer) > spec.vocabulary:
        raise _refused(f"a row for each of the tokenizer's {len(tokenizer):,} tokens", f"{spec.vocabulary:,} rows")
    if len(tokenizer) < spec.vocabulary:
        assumed.append(f"{spec.vocabulary - len(tokenizer)} token rows behind CLIP's vocabulary are never used")
    return spec, tuple(assumed)


def _sizes(shapes: Shapes) -> dict[str, int]:
    """Width, layers, MLP width, vocabulary and positions."""
    first = "encoder.layers.0.mlp.fc1.weight"
    missing = [name for name in (TOKEN_TABLE, POSITION_TABLE, first) if name not in shapes]
    if missing:
        raise _refused("token table, position table and layers", f"no {', no '.join(missing)}")
    empty = [name for name, shape in shapes.items() if 0 in shape]
    flat = [name for name in (TOKEN_TABLE, POSITION_TABLE, first) if len(shapes[name]) != 2]
    if empty or flat:
        raise _refused("tensors of a text encoder", f"the shape {shapes[(empty + flat)[0]]} of {(empty + flat)[0]}")
    if PROJECTION in shapes and len(shapes[PROJECTION]) != 2:
        raise _refused("a text projection of two dimensions", f"the shape {shapes[PROJECTION]}")
    numbers = {match[1] for name in shapes if (match := re.match(r"encoder\.layers\.(\d+)\.", name))}
    if numbers != {str(layer) for layer in range(len(numbers))}:
        raise _refused(f"layers 0 to {len(numbers) - 1}", f"layers {sorted(numbers)[:40]}")
    vocabulary, width = shapes[TOKEN_TABLE]
    sizes = {"width": width, "vocabulary": vocabulary, "positions": shapes[POSITION_TABLE][0]}
    return sizes | {"layers": len(numbers), "mlp_width": shapes[first][0]}


def _agree(config: Config, sizes: Mapping[str, int], shapes: Shapes) -> None:
    """Raise EncoderError when the config describes other tensors."""
    model_type = config.get("model_type", "clip")
    if "clip" not in str(model_type):
        raise _contradiction("model_type", model_type, "CLIP's tensors")
    names = {"hidden_size": "width", "num_hidden_layers": "layers", "intermediate_size": "mlp_width"}
    names |= {"vocab_size": "vocabulary", "max_position_embeddings": "positions"}
    for key, size in names.items():
        if config.get(key, sizes[size]) != sizes[size]:
            raise _contradiction(key, config[key], sizes[size])
    if PROJECTION in shapes and "projection_dim" in config and config["projection_dim"] != shapes[PROJECTION][0]:
        raise _contradiction("projection_dim", config["projection_dim"], shapes[PROJECTION][0])


def _heads(config: Config, width: int, assumed: list[str]) -> int:
    heads = config.get("num_attention_heads")
    if heads is None:
        if width % HEAD_WIDTH:
            raise _refused(f"a width that is a multiple of {HEAD_WIDTH}, or a config.json with the heads", str(width))
        heads = width // HEAD_WIDTH
        assumed.append(f"{heads} attention heads: {HEAD_WIDTH} dimensions each, as in every published CLIP")
    if type(heads) is not int or heads < 1 or width % heads:
        raise _refused(f"a number of heads that divides the width {width}", repr(heads))
    return heads


def _activation(config: Config, by_open_clip: bool, assumed: list[str]) -> str:
    name = config.get("hidden_act")
    if name is None:
        name = "gelu" if by_open_clip else "quick_gelu"
        assumed.append(f"activation {name}: as in {'OpenCLIP' if by_open_clip else 'OpenAI'}'s encoders of this width")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise _refused(f"one of the activations {', '.join(ACTIVATIONS)}", repr(name))
    return ACTIVATIONS[name]


def _pooling(config: Config, fused: bool, tokenizer: ClipTokenizer, assumed: list[str]) -> str:
    eos = config.get("eos_token_id")
    if eos is None:
        assumed.append("pooled state at the end-of-text token")
        return "eos-argmax" if fused else "eos-id"
    if eos == LEGACY_EOS:
        return "eos-argmax"
    if eos != tokenizer.eos_id:
        raise _refused(f"eos_token_id {tokenizer.eos_id} or {LEGACY_EOS} in config.json", repr(eos))
    return "eos-id"


def _pad(config: Config, by_open_clip: bool, tokenizer: ClipTokenizer, assumed: list[str]) -> int | None:
    """Padding token, None for the EOS token; configs often say 1, which no tokenizer of CLIP pads with."""
    pad = config.get("pad_token_id")
    if pad in (0, tokenizer.eos_id):
        return 0 if pad == 0 else None
    assumed.append(
        f"padding with token {0 if by_open_clip else tokenizer.eos_id}, which cannot change the pooled state"
    )
    return 0 if by_open_clip else None


def _norm_eps(config: Config, assumed: list[str]) -> float:
    eps = config.get("layer_norm_eps")
    if eps is None:
        assumed.append(f"layer norm epsilon {NORM_EPS:g}")
        return NORM_EPS
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise _refused("a layer_norm_eps between 0 and 1", repr(eps))
    return eps


def _refused(expected: str, found: str) -> EncoderError:
    return EncoderError(expected, found, "The file is incomplete or of another architecture; download it again.")


def _contradiction(key: str, said: object, measured: object) -> EncoderError:
    return EncoderError(
        expected="a config.json that describes the tensors beside it",
        found=f"{key} {said!r} in config.json and {measured!r} in the tensors",
        remedy="The folder mixes two models; download it again.",
    )
