"""The networks: VAE and UNet in the layouts of diffusers, and the two small convolutional ones of this package.

Pictures are ``(N, 3, 64, 64)`` from -1 to 1, latents ``(N, 4, 8, 8)`` of mean 0 and deviation about 1, contexts
``(N, T, 192)`` states of the pocket encoder. Only this file knows diffusers, which the extra ``amdet[paint]``
installs.

References:
    Bohan, Tiny AutoEncoder for Stable Diffusion, 2023, https://github.com/madebyollin/taesd (the VAE's layout, which
    ComfyUI recognises).
    Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022,
    https://arxiv.org/abs/2112.10752 (the UNet).
    Liu et al., An Intriguing Failing of Convolutional Neural Networks and the CoordConv Solution, 2018,
    https://arxiv.org/abs/1807.03247 (coordinates as channels).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from .. import SPEC
from .scenes import COLOURS, PAIRS, SHAPES, Pair

LATENT_CHANNELS, LATENT_PIXELS, FACTOR = 4, 8, 8
UNET: Mapping[str, Any] = MappingProxyType(
    {
        "sample_size": LATENT_PIXELS,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "block_out_channels": (96, 128),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": SPEC.width,
        "attention_head_dim": 4,  # diffusers' name for the number of heads
    }
)
VAE: Mapping[str, Any] = MappingProxyType(
    {
        "latent_channels": LATENT_CHANNELS,
        "encoder_block_out_channels": (64, 64, 64, 64),
        "decoder_block_out_channels": (64, 64, 64, 64),
        "num_encoder_blocks": (1, 3, 3, 3),
        "num_decoder_blocks": (3, 3, 3, 1),
        "scaling_factor": 1.0,
    }
)
READER_WIDTHS, TOWER_WIDTHS = (32, 64, 128, 128), (32, 64, 128, 192)
EMBEDDING = SPEC.width
"""Width in which captions and pictures are compared."""


def unet(*, training: bool = False) -> Any:
    """A ``UNet2DConditionModel`` with random weights.

    Args:
        training: attend by plain products, as the backward pass of the fused CPU kernel is several times slower.

    Raises:
        ConfigError: diffusers is not installed.
    """
    diffusers = _diffusers()
    made = diffusers.UNet2DConditionModel(**UNET)
    if training:
        made.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    return made


def vae() -> Any:
    """An ``AutoencoderTiny`` with random weights, whose residual branches start at zero, as it has no norms.

    Raises:
        ConfigError: diffusers is not installed.
    """
    made = _diffusers().AutoencoderTiny(**VAE)
    for name, layer in made.named_modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if name.endswith("conv.4"):
                nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return made


def _diffusers() -> Any:
    try:
        import diffusers
        import diffusers.models.attention_processor
    except ImportError as error:
        raise ConfigError(
            "diffusers", str(error), 'Install it: pip install -c constraints.txt -e ".[paint]" in the clone of amdet.'
        ) from error
    return diffusers


# ------------------------------------------------------------------ own networks


class Trunk(nn.Module):
    """Pictures -> features ``(N, 2 C)``: the mean and the maximum over all places of a small residual network."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(5, widths[0], 3, padding=1)
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.blocks = nn.ModuleList(_Block(b) for _, b in pairs)

    def forward(self, pictures: Tensor) -> Tensor:
        """Every place also sees where it is."""
        n, _, high, wide = pictures.shape
        y, x = torch.meshgrid(torch.linspace(-1, 1, high), torch.linspace(-1, 1, wide), indexing="ij")
        places = torch.stack((x, y)).to(pictures).expand(n, 2, high, wide)
        hidden = self.stem(torch.cat((pictures, places), 1))
        for down, block in zip(self.down, self.blocks, strict=True):
            hidden = block(down(F.relu(hidden)))
        return torch.cat((hidden.mean((2, 3)), hidden.amax((2, 3))), 1)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.second(F.relu(self.first(self.norm(x))))
        return x + residual


class Reader(nn.Module):
    """Says which colour and shape pictures show. It learns from drawings alone and knows nothing of the painter."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(READER_WIDTHS)
        self.head = nn.Linear(2 * READER_WIDTHS[-1], len(PAIRS) + len(COLOURS) + len(SHAPES))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of pairs ``(N, 120)``, of colours ``(N, 10)`` and of shapes ``(N, 12)``."""
        pairs, colours, shapes = self.head(self.trunk(pictures)).split((len(PAIRS), len(COLOURS), len(SHAPES)), -1)
        return pairs, colours, shapes

    @torch.no_grad()
    def read(self, pictures: Tensor, objects: int = 1) -> list[frozenset[Pair]]:
        """The likeliest pairs in each picture, as many as there are objects."""
        best = torch.cat([self(part)[0].topk(objects).indices for part in pictures.split(100)])
        return [frozenset(PAIRS[i] for i in row) for row in best.tolist()]


class ImageTower(nn.Module):
    """CLIP's other half: places pictures where the pocket encoder, which stays as it is, places their captions."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(TOWER_WIDTHS)
        self.picture_head = nn.Linear(2 * TOWER_WIDTHS[-1], EMBEDDING, bias=False)
        self.text_head = nn.Linear(SPEC.width, EMBEDDING)
        self.log_scale = nn.Parameter(torch.tensor(2.66))

    def pictures(self, pictures: Tensor) -> Tensor:
        """Unit vectors ``(N, E)`` of pictures."""
        return F.normalize(self.picture_head(self.trunk(pictures)).float(), dim=-1)

    def texts(self, pooled: Tensor) -> Tensor:
        """Unit vectors ``(N, E)`` of the pocket encoder's pooled states ``(N, D)``."""
        return F.normalize(self.text_head(pooled).float(), dim=-1)


PARTS: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {"vae": vae, "unet": unet, "tower": ImageTower, "reader": Reader}
)
"""Name of a part, as its file is called, and how it is made."""
