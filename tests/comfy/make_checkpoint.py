"""Run by ComfyUI's python in its folder: a tiny random SD1.5 checkpoint that CheckpointLoaderSimple accepts.

``python make_checkpoint.py OUT ENCODER``: UNet and TAESD are small and random, the text encoder is that of a file.
"""

from __future__ import annotations

import sys

out, encoder = sys.argv[1:3]
sys.argv = [*sys.argv[:1], "--cpu"]
sys.path.insert(0, ".")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.modules.diffusionmodules.openaimodel as unet  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.taesd.taesd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402

generator = torch.Generator().manual_seed(0)
model = unet.UNetModel(
    image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[1], channel_mult=[1],
    transformer_depth=[1], transformer_depth_output=[1, 1], transformer_depth_middle=1, context_dim=768,
    use_spatial_transformer=True, use_linear_in_transformer=False, num_heads=8, legacy=False,
    operations=comfy.ops.disable_weight_init, dtype=torch.float32, device="cpu",
)  # fmt: skip


def filled(name: str, weight: torch.Tensor) -> torch.Tensor:
    if "norm" in name or name.endswith(("in_layers.0.weight", "out_layers.0.weight", "out.0.weight")):
        return torch.ones(weight.shape) if name.endswith("weight") else torch.zeros(weight.shape)
    if weight.ndim == 1:
        return torch.zeros(weight.shape)
    return torch.randn(weight.shape, generator=generator) * 0.02


sd = {f"model.diffusion_model.{name}": filled(name, w).half() for name, w in model.state_dict().items()}
PREFIX, LAST = "first_stage_model.", "first_stage_model.taesd_decoder."
for name, w in comfy.taesd.taesd.TAESD(latent_channels=4).state_dict().items():
    if name.startswith("taesd_"):  # He's initialisation
        noise = torch.randn(w.shape, generator=generator) if w.ndim > 1 else torch.zeros(w.shape)
        sd[PREFIX + name] = noise * (2 / w[0].numel()) ** 0.5 if w.ndim > 1 else noise
last = max(int(name.split(".")[2]) for name in sd if name.startswith(LAST))
sd[f"{LAST}{last}.weight"] *= 0.02  # pale pictures instead of black and white ones
sd[f"{LAST}{last}.bias"] = torch.full((3,), 0.5)
sd[f"{PREFIX}vae_scale"], sd[f"{PREFIX}vae_shift"] = torch.tensor(1.0), torch.tensor(0.0)
for name, w in comfy.utils.load_torch_file(encoder).items():
    sd[f"cond_stage_model.transformer.{name}"] = w
comfy.utils.save_torch_file({name: w.contiguous() for name, w in sd.items()}, out)
