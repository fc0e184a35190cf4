"""ComfyUI's CLIP objects to encoders and back.

What is read is what the graph computes: the weights with every LoRA and merge applied, and clip skip. The
CLIP that is read stays as it is, down to the bit; what comes back is always a clone or a new object.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sdxl_clip
import torch
from torch import Tensor, nn

from ..amdet_core.encoder import PROJECTION, TextEncoder, expected_shapes
from ..amdet_core.errors import EncoderError, NumericalError
from ..amdet_core.findings import Subject
from ..amdet_core.formats import FoundEncoder, OpenedTarget
from ..amdet_core.patch import Patch
from ..amdet_core.records import EncoderSpec
from ..amdet_core.tokenizer import clip_tokenizer

LAYOUT = "graph"
TEXT_MODEL = "transformer.text_model."
STANDARD = {(768, 12), (1024, 24), (1280, 32)}
"""Width and layers that the host knows without a config."""
WITHOUT_LAST = (1024, 23)
"""The same of files without the layer that Stable Diffusion 2 does not use; the host expects it all the same."""
SMALL_LAYERS = 22
"""The host takes an encoder with more layers for CLIP-H or CLIP-G."""
LARGEST = 1e4
"""No weight of a trained CLIP comes near; uninitialised memory does."""


# ------------------------------------------------------------------ reading


def size(clip: Any) -> int:
    """Bytes of its CLIP text encoders' weights in float32."""
    towers = filter(_is_clip, model(clip).children())
    return 4 * sum(w.numel() for tower in towers for w in tower.parameters())


def count(clip: Any) -> int:
    """How many CLIP text encoders it has."""
    return sum(_is_clip(tower) for tower in model(clip).children())


def read(clip: Any, label: str, *, projected: bool = False) -> OpenedTarget:
    """Every CLIP text encoder of a CLIP object, as the graph uses it.

    Args:
        label: where it comes from, for the report.
        projected: with every text projection that was loaded; otherwise with those alone through which an image
            model reads the pooled output. The host has one always, with chance values where a file had none.

    Raises:
        EncoderError: it has none, or what it computes can't be read from its weights.
        NumericalError: weights were never loaded.
    """
    towers = dict(model(clip).named_children())
    _refuse_what_weights_do_not_show(clip)
    text = {name: tower for name, tower in towers.items() if _is_clip(tower)}
    others = tuple(
        f"{name} ({type(tower.transformer).__name__}): no CLIP text encoder; nothing is said about it"
        for name, tower in towers.items()
        if hasattr(tower, "transformer") and name not in text
    )
    if not text:
        raise EncoderError(
            "a CLIP text encoder in the CLIP object",
            "; ".join(others) or type(clip.cond_stage_model).__name__,
            "Only CLIP's text encoders (SD1, SD2, SDXL, and those inside SD3 and Flux) can be scanned.",
        )
    encoders = tuple(_found(clip, name, tower, projected) for name, tower in text.items())
    return OpenedTarget(Path(label), (), encoders, others, 0)


def subject(clip: Any, anchor: Any, name: str, device: torch.device) -> Subject:
    """One encoder of a CLIP and the same of its anchor, as the graph uses them.

    Raises:
        EncoderError: one of the two has no such encoder.
    """
    return paired(read(clip, name), read(anchor, name), name, device)


def paired(opened: OpenedTarget, anchor: OpenedTarget, name: str, device: torch.device) -> Subject:
    """The same of CLIPs that were read.

    Raises:
        EncoderError: one of the two has no such encoder, or the anchor's has other sizes.
    """
    sides = []
    for one in (opened, anchor):
        found = {one.name: one for one in one.encoders}
        if name not in found:
            raise EncoderError(f"a CLIP with {name}", ", ".join(found), "Connect CLIPs of the same kind.")
        sides.append(found[name])
    suspect, trusted = sides
    if not trusted.encoder.spec.contains(suspect.reachable().spec):
        raise EncoderError(
            f"an anchor with {name} of the same sizes ({suspect.encoder.spec.summary})",
            trusted.encoder.spec.summary,
            "Connect CLIPs of the same kind.",
        )
    return Subject(name, suspect.in_use().to(device), suspect.in_use(trusted.encoder).to(device))


def state(clip: Any) -> Hashable:
    """Equal as long as a CLIP computes the same; holds nothing of it in memory."""
    return weakref.ref(clip.patcher.model), clip.patcher.patches_uuid, repr(clip.layer_idx)


def model(clip: Any) -> Any:
    """The host's module with all its encoders; EncoderError where a checkpoint had none."""
    if clip is None:
        raise EncoderError(
            "a CLIP",
            "nothing: the checkpoint that was loaded holds no text encoder",
            "Connect Load CLIP or DualCLIPLoader.",
        )
    return clip.cond_stage_model


def _is_clip(tower: nn.Module) -> bool:
    return isinstance(getattr(tower, "transformer", None), comfy.clip_model.CLIPTextModel)


def _refuse_what_weights_do_not_show(clip: Any) -> None:
    patcher = clip.patcher
    replaced = [name for name in getattr(patcher, "object_patches", {}) if "transformer" in name]
    changes = {
        "a LoRA that is applied in bypass mode": getattr(patcher, "injections", None),
        "hooks that change weights by schedule": getattr(patcher, "forced_hooks", None),
        "replaced modules": replaced,
    }
    for what, there in changes.items():
        if there:
            raise EncoderError(
                "a CLIP whose weights say all that it computes",
                what,
                "Connect the CLIP in front of it, or apply the change with the ordinary Load LoRA.",
            )


def picture_embeddings(clip_vision: Any, images: Tensor) -> Tensor:
    """Embeddings ``(N, E)`` of an IMAGE by a CLIP_VISION, fit for training."""
    embeds = clip_vision.encode_image(images)["image_embeds"]
    with torch.inference_mode(False):
        return embeds.detach().to("cpu", torch.float32).clone()


def _found(clip: Any, name: str, tower: Any, projected: bool) -> FoundEncoder:
    text = tower.transformer.text_model
    first = text.encoder.layers[0]
    prefix = f"{name}.{TEXT_MODEL}"
    keys = [key for key in clip.patcher.model.state_dict() if key.startswith(prefix)]
    tokenizer = clip_tokenizer()
    with torch.inference_mode(False), torch.no_grad():
        weights = {key.removeprefix(prefix): _effective(clip.patcher, key) for key in keys}
        counts = projected or _projection_counts(clip.cond_stage_model, name)
        projection = _projection(clip.patcher, f"{name}.transformer.{PROJECTION}") if counts else None
    if projection is not None:
        weights[PROJECTION] = projection
    pad, end = tower.special_tokens["pad"], tower.special_tokens["end"]
    spec = EncoderSpec(
        width=text.embeddings.token_embedding.weight.shape[1],
        layers=len(text.encoder.layers),
        heads=first.self_attn.heads,
        mlp_width=weights["encoder.layers.0.mlp.fc1.weight"].shape[0],
        vocabulary=text.embeddings.token_embedding.weight.shape[0],
        positions=text.embeddings.position_embedding.weight.shape[0],
        activation=_activation(first.mlp.activation),
        pad_id=None if pad == end else pad,
        projection=None if projection is None else projection.shape[0],
        norm_eps=text.final_layer_norm.eps,
    )
    encoder = TextEncoder(spec, {key: weights[key] for key in expected_shapes(spec) if key in weights}, tokenizer)
    encoder = _loaded(name, tower, encoder)
    used = _used_layers(clip.layer_idx, spec.layers)
    skip: tuple[str, ...] = ()
    if used is not None and _pooled_counts(clip.cond_stage_model, name):
        skip = (f"clip skip: tokens are read after layer {used} of {spec.layers}; all are scanned, as prompts are "
                "read through the pooled output too, which is the last one's",)  # fmt: skip
        used = None
    elif used is not None:
        skip = (f"clip skip: layers 1 to {used} of {spec.layers} are used and scanned",)
    lora = sum(key in clip.patcher.patches for key in keys)
    patched = (f"{lora} of {len(keys)} tensors with LoRAs, merges or patches applied",) if lora else ()
    dtype = str(text.encoder.layers[0].mlp.fc1.weight.dtype).removeprefix("torch.")
    return FoundEncoder(name, encoder, dtype, LAYOUT, skip + patched, used)


def _pooled_counts(model: nn.Module, name: str) -> bool:
    """Whether an image model is given the pooled output of an encoder, which no clip skip changes.

    Stable Diffusion 1 and 2 are given none, XL that of CLIP-G alone; others those of all their CLIP encoders.
    """
    alone = sum(hasattr(tower, "transformer") for tower in model.children()) == 1
    return name == "clip_g" or not (alone or isinstance(model, comfy.sdxl_clip.SDXLClipModel))


def _projection_counts(model: nn.Module, name: str) -> bool:
    """Whether an image model reads the pooled output of an encoder through its text projection."""
    return _pooled_counts(model, name) and bool(getattr(model, name).return_projected_pooled)


def _projection(patcher: Any, key: str) -> Tensor | None:
    """A text projection; None where the encoder came without one.

    The host has one always. Where a file had none, it holds what lay in that memory, and :func:`build` puts the
    identity there.
    """
    weight = _effective(patcher, key)
    trained = bool(weight.any(-1).all()) and bool(weight.abs().max() <= LARGEST)
    return weight if trained and not torch.equal(weight, torch.eye(*weight.shape)) else None


def _effective(patcher: Any, key: str) -> Tensor:
    """One weight in float32 as it is when it computes: dequantised, with every patch; a copy on the CPU."""
    weight, _, convert = comfy.model_patcher.get_key_weight(patcher.model, key)
    if key in patcher.backup:  # another clone is loaded into the shared module
        weight = patcher.backup[key].weight
    if key in patcher.hook_backup:
        weight = patcher.hook_backup[key][0]
    weight = weight.to(torch.float32, copy=True)
    weight = weight if convert is None else convert(weight, inplace=True)
    weight = weight.dequantize() if hasattr(weight, "dequantize") and type(weight) is not Tensor else weight
    patches = patcher.patches.get(key)
    weight = comfy.lora.calculate_weight(patches, weight, key) if patches else weight
    return weight.detach().to("cpu", torch.float32)


def _loaded(name: str, tower: Any, encoder: TextEncoder) -> TextEncoder:
    """The encoder without a last layer that was never loaded, where the host takes the state in front of it.

    Official files of Stable Diffusion 2 have 23 layers, as nothing reads the 24th.

    Raises:
        NumericalError: the host left other tensors as it found the memory: it only logs missing ones.
    """
    bad = [
        key
        for key, w in encoder.weights.items()
        if not (w.abs().max() <= LARGEST) or (key.endswith("weight") and not bool(w.any()))
    ]
    if not bad:
        return encoder
    last = encoder.spec.layers - 1
    if tower.layer_idx in (-2, last - 1) and all(key.startswith(f"encoder.layers.{last}.") for key in bad):
        return encoder.first_layers(last)
    raise NumericalError(
        f"trained numbers in every tensor of {name}",
        f"NaN, zeros or values beyond {LARGEST:g} in {len(bad)} of {len(encoder.weights)} tensors, first {bad[0]}",
        "ComfyUI did not find them in the file ('clip missing' in its log). Use Load Text Encoder (AMDET), "
        "which reads every key layout and refuses incomplete files.",
    )


def _activation(function: Any) -> str:
    """Name of a tower's activation; the host keeps functions, and two of them can't be told apart by name."""
    probe = torch.linspace(-3, 3, 13)
    values = {name: one(probe) for name, one in comfy.clip_model.ACTIVATIONS.items()}
    name = min(values, key=lambda one: float((values[one] - function(probe)).abs().max()))
    return {"gelu_pytorch_tanh": "gelu_tanh"}.get(name, name)


def _used_layers(layer_idx: int | list[int] | None, layers: int) -> int | None:
    """Layers in front of the state that a set clip skip takes; None for all."""
    if not isinstance(layer_idx, int) or abs(layer_idx) > layers or layer_idx in (-1, layers - 1):
        return None
    return layer_idx + 1 + (layers if layer_idx < 0 else 0)


# ------------------------------------------------------------------ writing


def patched(clip: Any, patches: Mapping[str, Patch]) -> Any:
    """A clone with patches by encoder name added on top of everything that it has.

    Raises:
        EncoderError: it has no such tensors.
    """
    deltas = {
        f"{name}.{'transformer.' if key == PROJECTION else TEXT_MODEL}{key}": ("diff", (delta,))
        for name, patch in patches.items()
        for key, delta in patch.deltas.items()
    }
    clone = clip.clone()
    refused = deltas.keys() - set(clone.add_patches(deltas, 1.0))
    if refused:
        raise EncoderError(
            "a CLIP with the patched tensors", f"none of the name {min(refused)}", "Patch the CLIP that was read."
        )
    return clone


def with_encoders_of(clip: Any, anchor: Any) -> Any:
    """A clone whose CLIP text encoders have an anchor's weights; clip skip and other encoders stay as they are.

    Raises:
        EncoderError: the anchor lacks one of them or its text projection, or it has other sizes there.
    """
    trusted = {one.name: one.encoder for one in read(anchor, "anchor", projected=True).encoders}
    patches = {}
    for one in read(clip, "clip", projected=True).encoders:
        if one.name not in trusted:
            raise EncoderError(f"an anchor with {one.name}", ", ".join(trusted), "Connect CLIPs of the same kind.")
        other = one.reachable(trusted[one.name])
        if PROJECTION in one.encoder.weights.keys() - other.weights and _projection_counts(model(clip), one.name):
            raise EncoderError(
                f"an anchor with the text projection of {one.name}, through which the image model reads",
                "one without",
                "Connect a CLIP whose file holds it, as checkpoints and official encoders do.",
            )
        patches[one.name] = Patch.between(one.reachable(), other)
    return patched(clip, patches)


def build(found: Sequence[FoundEncoder], embeddings: Sequence[str]) -> Any:
    """A new CLIP object from encoders that were read from a file: SD1, SD2, SDXL or SD3, or of any small size.

    Args:
        embeddings: folders with textual-inversion files.

    Raises:
        EncoderError: the host has no CLIP object for these encoders.
    """
    known = all((one.encoder.spec.width, one.encoder.spec.layers) in {*STANDARD, WITHOUT_LAST} for one in found)
    small = len(found) == 1 and found[0].encoder.spec.layers <= SMALL_LAYERS
    if not (small or (known and len(found) <= 2)):
        sizes = "; ".join(f"{one.name} ({one.encoder.spec.summary})" for one in found)
        remedy = "Load them one by one." if len(found) > 1 else "Scan the file with the command line: amdet scan."
        raise EncoderError("encoders that ComfyUI combines to one CLIP", sizes, remedy)
    ordered = sorted(found, key=lambda one: one.encoder.spec.width)
    sd3 = any(one.layout == "sd3" for one in found)
    return comfy.sd.load_text_encoder_state_dicts(
        [_state_dict(one.reachable()) for one in ordered],
        embedding_directory=list(embeddings),
        clip_type=comfy.sd.CLIPType.SD3 if sd3 else comfy.sd.CLIPType.STABLE_DIFFUSION,
        model_options={} if known else {"model_config": _config(ordered[0].encoder.spec)},
    )


def _state_dict(encoder: TextEncoder) -> dict[str, Tensor]:
    """Names that the host expects, and what it would leave undefined: a missing projection as the identity, a last
    layer that nothing reads as zeros.
    """
    weights = {f"text_model.{key}": w for key, w in encoder.weights.items() if key != PROJECTION}
    if (encoder.spec.width, encoder.spec.layers) == WITHOUT_LAST:
        first, last = "text_model.encoder.layers.0.", f"text_model.encoder.layers.{encoder.spec.layers}."
        layer = {key: w for key, w in weights.items() if key.startswith(first)}
        weights |= {key.replace(first, last): torch.zeros_like(w) for key, w in layer.items()}
    return weights | {PROJECTION: encoder.weights.get(PROJECTION, torch.eye(encoder.spec.width))}


def _config(spec: EncoderSpec) -> dict[str, Any]:
    return {
        "num_hidden_layers": spec.layers,
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp_width,
        "num_attention_heads": spec.heads,
        "hidden_act": {"gelu_tanh": "gelu_pytorch_tanh"}.get(spec.activation, spec.activation),
    }
