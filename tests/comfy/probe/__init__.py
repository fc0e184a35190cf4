"""Nodes for the tests alone: they look at CLIP objects from inside the host. ComfyUI loads this folder as a pack."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import comfy.clip_vision
import comfy.sd
import comfy.sdxl_clip
import comfy.text_encoders.flux
import comfy.text_encoders.sd3_clip
import comfy.utils
import folder_paths
import torch

PACK = "comfyui-amdet"
L = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
G = {"num_hidden_layers": 4, "hidden_size": 96, "intermediate_size": 192, "num_attention_heads": 6}
PLAIN_L = {**L, "num_attention_heads": 1}
PLAIN_G = {
    "num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2,
    "hidden_act": "quick_gelu",
}  # fmt: skip
"""What readers of files assume of encoders of these widths, so that these can be saved."""
VISION = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_channels": 3,
    "patch_size": 8, "image_size": 32, "hidden_act": "quick_gelu", "model_type": "clip_vision_model",
}  # fmt: skip
T5 = {"d_ff": 64, "d_kv": 16, "d_model": 64, "num_heads": 4, "num_layers": 1, "vocab_size": 32128}


def pack(module: str) -> Any:
    """A module of the pack, as ComfyUI has loaded it."""
    return import_module(next(name for name in sys.modules if name.endswith(PACK)) + module)


class Probe:
    """A node that shows a text."""

    CATEGORY = "probe"
    FUNCTION = "run"
    OUTPUT_NODE = True
    RETURN_TYPES: tuple[str, ...] = ()


class Digest(Probe):
    """SHA-256 over clip.get_sd(), bit by bit."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """``after`` orders it behind another node."""
        return {"required": {"clip": ("CLIP",), "key": ("STRING", {})}, "optional": {"after": ("*",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: Any) -> bool:
        """Anything may be connected."""
        return True

    def run(self, clip: Any, key: str, after: Any = None) -> dict[str, Any]:
        digest = hashlib.sha256()
        for name, weight in sorted(clip.get_sd().items()):
            digest.update(
                name.encode() + weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        return {"ui": {"text": [digest.hexdigest()]}}


class Parity(Probe):
    """Largest difference between the host's encoding of a text and the library's."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip": ("CLIP",), "text": ("STRING", {})}}

    def run(self, clip: Any, text: str) -> dict[str, Any]:
        opened = pack(".nodes.comfy_clip").read(clip, "parity")
        tokens = clip.tokenize(text)
        cond, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
        result, start = {}, 0
        for found in opened.encoders:
            tower = getattr(clip.cond_stage_model, found.name)
            encoder = found.encoder
            batch = encoder.tokens([text], pad_to_context=True)
            ids = [token[0] for token in tokens[found.name.removeprefix("clip_")][0]]
            host = cond[..., start : start + encoder.spec.width]
            start += encoder.spec.width
            used = encoder.spec.layers if tower.layer == "last" else encoder.spec.layers + tower.layer_idx + 1
            with torch.no_grad():
                hidden = encoder.place(encoder.embed(batch.ids))
                mask = encoder._mask(hidden)
                for layer in range(used):
                    hidden, _, _ = encoder._layer(layer, hidden, mask, None)
                if tower.layer == "last" or tower.layer_norm_hidden_state:
                    hidden = encoder._norm("final_layer_norm", hidden)
                own = encoder.pool(encoder.states(batch), batch.eos)
            if tower.return_projected_pooled:
                own = own @ tower.transformer.text_projection.weight.float().T
            is_pooled = own.shape == pooled.shape and found is opened.encoders[-1]
            result[found.name] = {
                "tokens": ids == batch.ids[0].tolist(),
                "hidden": float((hidden - host).abs().max()),
                "scale": float(host.abs().max()),
                "pooled": float((own - pooled).abs().max()) if is_pooled else 0.0,
                "layers": found.in_use().spec.layers,
            }
        return {"ui": {"text": [json.dumps(result)]}}


class Read(Probe):
    """What is read of a CLIP."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip": ("CLIP",)}}

    def run(self, clip: Any) -> dict[str, Any]:
        found = pack(".nodes.comfy_clip").read(clip, "read").encoders
        said = (f"{one.name}: {one.encoder.spec.layers} layers, width {one.encoder.spec.width}" for one in found)
        return {"ui": {"text": ["; ".join(said)]}}


class Effective(Probe):
    """Largest difference between the weights that are read and those that the host computes with."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip": ("CLIP",)}}

    def run(self, clip: Any) -> dict[str, Any]:
        found = pack(".nodes.comfy_clip").read(clip, "effective")
        clip.load_model()
        loaded = clip.get_sd()
        worst = max(
            float((weight - loaded[f"{one.name}.transformer.text_model.{name}"].float()).abs().max())
            for one in found.encoders
            for name, weight in one.encoder.weights.items()
        )
        changed = sum(len(one.assumptions) for one in found.encoders)
        return {"ui": {"text": [json.dumps({"worst": worst, "notes": changed})]}}


class Difference(Probe):
    """Largest difference of two conditionings, pooled state included."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"first": ("CONDITIONING",), "second": ("CONDITIONING",)}}

    def run(self, first: Any, second: Any) -> dict[str, Any]:
        worst = 0.0
        for (one, about), (other, extra) in zip(first, second, strict=True):
            worst = max(worst, float((one - other).abs().max()))
            worst = max(worst, float((about["pooled_output"] - extra["pooled_output"]).abs().max()))
        return {"ui": {"text": [str(worst)]}}


class Small:
    """CLIP objects of several towers, small and random, built by the host's own classes."""

    CATEGORY, FUNCTION, RETURN_TYPES = "probe", "run", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"kind": (["sdxl", "plain sdxl", "flux", "sd3", "t5"],), "noise": ("FLOAT", {"default": 0.0})},
            "optional": {"turned": ("INT", {"default": -1}), "projection": ("FLOAT", {"default": 0.0})},
        }

    def run(self, kind: str, noise: float, turned: int = -1, projection: float = 0.0) -> tuple[Any]:
        """``turned`` is a token that means the opposite in clip_l, ``projection`` the noise of text projections."""

        class Target:
            params: ClassVar[dict[str, Any]] = {}

        sd3 = comfy.text_encoders.sd3_clip
        plain = kind.startswith("plain ")
        Target.clip, Target.tokenizer = {
            "sdxl": lambda: (comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer),
            "flux": lambda: (comfy.text_encoders.flux.flux_clip(torch.float32), comfy.text_encoders.flux.FluxTokenizer),
            "sd3": lambda: (sd3.sd3_clip(True, True, True, torch.float32), sd3.SD3Tokenizer),
            "t5": lambda: (sd3.sd3_clip(False, False, True, torch.float32), sd3.SD3Tokenizer),
        }[kind.removeprefix("plain ")]()
        towers = {"clip_l": PLAIN_L if plain else L, "clip_g": PLAIN_G if plain else G, "t5xxl": T5}
        options = {f"{name}_model_config": dict(sizes) for name, sizes in towers.items()}
        clip = comfy.sd.CLIP(
            Target,
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
            model_options={**options, "dtype": torch.float32},
        )
        generator = torch.Generator().manual_seed(7)
        change = torch.Generator().manual_seed(8)
        for name, weight in clip.cond_stage_model.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            value = torch.randn(weight.shape, generator=generator) * 0.05 + norm
            by = projection if "text_projection" in name else noise
            weight.data.copy_(value + by * torch.randn(weight.shape, generator=change))
        if turned >= 0:
            clip.cond_stage_model.clip_l.transformer.text_model.embeddings.token_embedding.weight.data[turned] *= -1
        return (clip,)


class Projected:
    """A pocket encoder with a text projection, as encoders have that were published beside an image tower."""

    CATEGORY, FUNCTION, RETURN_TYPES = "probe", "run", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"width": ("INT", {"default": 192})}}

    def run(self, width: int) -> tuple[Any]:
        formats, comfy_clip = pack(".amdet_core.formats"), pack(".nodes.comfy_clip")
        encoder = pack(".amdet_core.pocket").load("clean")
        noise = torch.randn((width, width), generator=torch.Generator().manual_seed(5)) * width**-0.5
        spec = encoder.spec.model_copy(update={"projection": width})
        encoder = replace(encoder, spec=spec, weights={**encoder.weights, "text_projection.weight": noise})
        found = formats.FoundEncoder("clip_l", encoder, "float16", "comfyui", ())
        return (comfy_clip.build([found], folder_paths.get_folder_paths("embeddings")),)


class Vision:
    """A CLIP_VISION, small and random, built by the host's own class."""

    CATEGORY, FUNCTION, RETURN_TYPES = "probe", "run", ("CLIP_VISION",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"width": ("INT", {"default": 192})}}

    def run(self, width: int) -> tuple[Any]:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder, "config.json")
            config.write_text(json.dumps({**VISION, "projection_dim": width}), encoding="utf-8")
            tower = comfy.clip_vision.ClipVisionModel(str(config))
        generator = torch.Generator().manual_seed(9)
        for name, weight in tower.model.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.2 + norm)
        return (tower,)


class Nearness(Probe):
    """Cosine of a text in two CLIPs to pictures, both projected: the first one's own projection serves for both."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        sockets = {"clip": ("CLIP",), "other": ("CLIP",), "clip_vision": ("CLIP_VISION",), "images": ("IMAGE",)}
        return {"required": {**sockets, "text": ("STRING", {})}}

    def run(self, clip: Any, other: Any, clip_vision: Any, images: Any, text: str) -> dict[str, Any]:
        embeds = clip_vision.encode_image(images)["image_embeds"].float()
        goal = torch.nn.functional.normalize(embeds, dim=-1).mean(0)
        projection = clip.cond_stage_model.clip_l.transformer.text_projection.weight.float()
        near = {}
        for name, one in (("before", clip), ("after", other)):
            _, pooled = one.encode_from_tokens(one.tokenize(text), return_pooled=True)
            near[name] = float(torch.nn.functional.cosine_similarity(pooled[0].float() @ projection.T, goal, dim=0))
        return {"ui": {"text": [json.dumps(near)]}}


class WithEncodersOf(Probe):
    """A text in a CLIP with an anchor's encoders, held against what each of the two makes of it."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip": ("CLIP",), "anchor": ("CLIP",), "text": ("STRING", {})}}

    def run(self, clip: Any, anchor: Any, text: str) -> dict[str, Any]:
        made = pack(".nodes.comfy_clip").with_encoders_of(clip, anchor)
        seen = {}
        for name, one in (("made", made), ("clip", clip), ("anchor", anchor)):
            seen[name] = one.encode_from_tokens(one.tokenize(text), return_pooled=True)
        apart = {
            f"{part} from {name}": float((seen["made"][i] - seen[name][i]).abs().max())
            for i, part in enumerate(("tokens", "pooled"))
            for name in ("clip", "anchor")
            if seen["made"][i].shape == seen[name][i].shape
        }
        return {"ui": {"text": [json.dumps(apart)]}}


class NoClip:
    """Nothing where a CLIP is asked for, as of a checkpoint without a text encoder."""

    CATEGORY, FUNCTION, RETURN_TYPES = "probe", "run", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self) -> tuple[None]:
        return (None,)


class LastLayer:
    """A CLIP with other weights in the last layer of one encoder."""

    CATEGORY, FUNCTION, RETURN_TYPES = "probe", "run", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip": ("CLIP",), "encoder": ("STRING", {})}}

    def run(self, clip: Any, encoder: str) -> tuple[Any]:
        changed = clip.clone()
        layers = getattr(clip.cond_stage_model, encoder).transformer.text_model.encoder.layers
        prefix = f"{encoder}.transformer.text_model.encoder.layers.{len(layers) - 1}."
        generator = torch.Generator().manual_seed(4)
        weights = {name: w for name, w in clip.patcher.model.state_dict().items() if name.startswith(prefix)}
        noise = {name: ("diff", (0.02 * torch.randn(w.shape, generator=generator),)) for name, w in weights.items()}
        assert len(changed.add_patches(noise, 1.0)) == len(noise)
        return (changed,)


class NoModel:
    """Nothing where a MODEL is asked for: Load LoRA then changes the CLIP alone."""

    CATEGORY, FUNCTION, RETURN_TYPES = "probe", "run", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self) -> tuple[None]:
        return (None,)


class LoadLora:
    """A LoRA on a CLIP alone, through the host's loader, or in bypass mode."""

    CATEGORY, FUNCTION, RETURN_TYPES = "probe", "run", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "clip": ("CLIP",),
                "file": ("STRING", {}),
                "strength": ("FLOAT", {"default": 1.0}),
                "bypass": ("BOOLEAN", {"default": False}),
            }
        }

    def run(self, clip: Any, file: str, strength: float, bypass: bool) -> tuple[Any]:
        if bypass:
            clip = clip.clone()
            clip.patcher.injections = {"bypass_lora": [object()]}
            return (clip,)
        lora = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", file))
        return (comfy.sd.load_lora_for_models(None, clip, lora, 0.0, strength)[1],)


class Cramp:
    """From now on the device has room for so many candidates at once, and says so on one more."""

    CATEGORY, FUNCTION, RETURN_TYPES = "probe", "run", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"clip": ("CLIP",), "on": ("BOOLEAN", {"default": True})},
            "optional": {"room": ("INT", {"default": 2})},
        }

    def run(self, clip: Any, on: bool, room: int = 2) -> tuple[Any]:
        tails = pack(".amdet_core.contrast").Tails
        whole = getattr(tails, "_whole", tails.collapses)
        tails._whole = whole
        out_of_memory = pack(".amdet_core.memory").OUT_OF_MEMORY

        def cramped(self: Any, vectors: Any, *args: Any, **kwargs: Any) -> Any:
            if len(vectors) > room and torch.is_grad_enabled():
                raise out_of_memory("no room (made up)")
            return whole(self, vectors, *args, **kwargs)

        tails.collapses = cramped if on else whole
        return (clip,)


NODES = (
    Digest, Parity, Read, Effective, Difference, Small, Projected, Vision, Nearness, WithEncodersOf, NoClip, LastLayer,
    NoModel, LoadLora, Cramp,
)  # fmt: skip
NODE_CLASS_MAPPINGS = {f"PROBE_{node.__name__}": node for node in NODES}
