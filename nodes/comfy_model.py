"""ComfyUI's MODEL and VAE objects from the painter's weights; it recognises the VAE, and is told of the UNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ..amdet_core.errors import StorageError
from ..amdet_core.pocket.painter.networks import UNET

LATENTS = comfy.latent_formats.SD15


@dataclass(frozen=True)
class _Channels:
    """A level's channels, for the host that multiplies: its own multipliers must be integers."""

    count: int

    def __mul__(self, model_channels: int) -> int:
        return self.count

    __rmul__ = __mul__


class _Config(comfy.supported_models_base.BASE):
    """What the host finds out by itself for the models that it knows."""

    unet_extra_config = {"num_heads": UNET["attention_head_dim"], "num_head_channels": -1}  # noqa: RUF012
    sampling_settings: dict[str, Any] = {}  # noqa: RUF012
    latent_format = LATENTS
    memory_usage_factor = 1.0

    def model_type(self, state_dict: Any, prefix: str = "") -> Any:
        """It predicts velocities."""
        return comfy.model_base.ModelType.V_PREDICTION

    def clip_target(self, state_dict: Any = None) -> None:
        """The text encoder is loaded apart."""


def build_model(weights: Mapping[str, Tensor]) -> Any:
    """A MODEL from the UNet's weights under the names of diffusers.

    Raises:
        StorageError: tensors are missing or of another network.
    """
    settings = _settings()
    names = comfy.utils.unet_to_diffusers(settings)
    state = {names.get(name, name): weight for name, weight in weights.items()}
    config = _Config(settings)
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    cast = comfy.model_management.unet_manual_cast(torch.float32, device, config.supported_inference_dtypes)
    config.set_inference_dtype(torch.float32, cast)
    model = config.get_model(state, "", device=offload)
    patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = patcher_class(model, load_device=device, offload_device=offload)
    # Weights that are loaded while a model runs must not be copied into memory that the host has not set aside.
    dynamic = {"assign": True} if getattr(patcher, "is_dynamic", bool)() else {}
    try:
        model.diffusion_model.load_state_dict(state, strict=True, **dynamic)
    except RuntimeError as error:
        raise StorageError(
            "the tensors of the painter's UNet",
            " ".join(str(error).split())[:200],
            "The weights are of another release of amdet; make them again.",
        ) from error
    return patcher


def _settings() -> dict[str, Any]:
    """The UNet in the host's words: per level, and in the order from the first level down."""
    channels, layers = UNET["block_out_channels"], UNET["layers_per_block"]
    attends = [int(name.startswith("CrossAttn")) for name in UNET["down_block_types"]]
    return {
        "image_size": 32,
        "in_channels": UNET["in_channels"],
        "out_channels": UNET["out_channels"],
        "model_channels": channels[0],
        "num_res_blocks": [layers] * len(channels),
        "channel_mult": [_Channels(count) for count in channels],
        "transformer_depth": [depth for depth in attends for _ in range(layers)],
        "transformer_depth_output": [depth for depth in attends for _ in range(layers + 1)],
        "transformer_depth_middle": 1,
        "context_dim": UNET["cross_attention_dim"],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "adm_in_channels": None,
        "legacy": False,
    }


def build_vae(weights: Mapping[str, Tensor]) -> Any:
    """A VAE from the weights of an ``AutoencoderTiny`` under the names of diffusers."""
    state = {"vae_scale": torch.tensor(LATENTS().scale_factor), "vae_shift": torch.tensor(0.0)}
    for name, weight in weights.items():
        side, _, number, rest = name.split(".", 3)  # encoder.layers.3.conv.0.weight
        place = int(number) + (side == "decoder")  # there the host counts the clamp, which has no weights, too
        state[f"taesd_{side}.{place}.{rest}"] = weight
    return comfy.sd.VAE(sd=state)
