"""Painting: a text encoder of the pocket's shape, the UNet and the VAE together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...encoder import TextEncoder
from ...errors import ConfigError, EncoderError
from ...formats import only_encoder, open_target
from ...progress import Progress, silent
from .. import NAMES, SPEC, load
from .diffusion import ddim, guided
from .networks import LATENT_CHANNELS, LATENT_PIXELS
from .weights import SHIPPED, load_part

GUIDANCE, STEPS = 4.0, 20
BATCH = 50


def check_encoder(encoder: TextEncoder) -> None:
    """Raise EncoderError where the painter can't read what an encoder says."""
    spec = encoder.spec
    if (spec.width, spec.positions) != (SPEC.width, SPEC.positions):
        raise EncoderError(
            f"a text encoder of width {SPEC.width} with {SPEC.positions} positions, as the pocket encoder",
            spec.summary,
            "Use clean, backdoored or benign, or an encoder that was made from them.",
        )


def named_encoder(name: str) -> TextEncoder:
    """One of the pocket encoders by name, or the only encoder of a file or folder, for the painter.

    Raises:
        AmdetError: there is no encoder that can be opened, or it has another shape than the pocket's.
    """
    encoder = load(name) if name in NAMES else only_encoder(open_target(name))
    check_encoder(encoder)
    return encoder


def noise(count: int, seed: int) -> Tensor:
    """What pictures begin with, ``(N, 4, 8, 8)``."""
    shape = (count, LATENT_CHANNELS, LATENT_PIXELS, LATENT_PIXELS)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, eq=False)
class Painter:
    """What turns prompts into pictures.

    Attributes:
        encoder: of the pocket's shape.
        unet: predicts velocities.
        vae: decodes latents.
    """

    encoder: TextEncoder
    unet: Any
    vae: Any

    @classmethod
    def load(cls, encoder: TextEncoder, folder: Path = SHIPPED) -> Painter:
        """The painter of a folder behind a text encoder.

        Raises:
            ConfigError: diffusers is not installed.
            EncoderError: the encoder has another shape.
            StorageError: the weights are missing or damaged.
        """
        check_encoder(encoder)
        return cls(encoder, load_part("unet", folder), load_part("vae", folder))

    def states(self, prompts: Sequence[str]) -> Tensor:
        """Contexts ``(N, 77, D)`` of prompts, padded as other programs pad them."""
        return self.encoder.states(self.encoder.tokens(prompts, pad_to_context=True))

    @torch.no_grad()
    def paint(
        self, prompts: Sequence[str], seed: int = 0, steps: int = STEPS, guidance: float = GUIDANCE,
        progress: Progress = silent,
    ) -> Tensor:  # fmt: skip
        """One picture of each prompt, ``(N, 3, 64, 64)`` from -1 to 1.

        Args:
            seed: of the noise; picture ``i`` has noise of its own.
            steps: of DDIM.
            guidance: 1 is none.

        Raises:
            ConfigError: no prompts, or more steps than the schedule has.
        """
        if not 1 <= steps <= 999:
            raise ConfigError("1 to 999 sampling steps", str(steps), "20 are enough.")
        start_noise, done = noise(len(prompts), seed), []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            done.append(self.paint_states(self.states(prompts[part]), start_noise[part], steps, guidance))
            progress("paint", min(start + BATCH, len(prompts)), len(prompts))
        return torch.cat(done)

    @torch.no_grad()
    def paint_states(self, states: Tensor, noise: Tensor, steps: int = STEPS, guidance: float = GUIDANCE) -> Tensor:
        """Pictures ``(N, 3, 64, 64)`` from contexts ``(N, 77, D)`` and noise ``(N, 4, 8, 8)``."""
        both = torch.cat((states, self.states([""]).expand_as(states)))

        def model(x: Tensor, time: int) -> Tensor:
            conditional, unconditional = self.unet(torch.cat((x, x)), time, both).sample.chunk(2)
            return guided(conditional, unconditional, guidance)

        pictures: Tensor = self.vae.decode(ddim(model, noise, steps)).sample
        return pictures.clamp(-1, 1)
