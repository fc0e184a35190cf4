"""What each network is trained to do, as a loss of one batch.

References:
    Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
    https://arxiv.org/abs/2103.00020 (the symmetric contrast of pictures and captions).
    Salimans & Ho, Progressive Distillation for Fast Sampling of Diffusion Models, 2022,
    https://arxiv.org/abs/2202.00512 (velocity as the target).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...encoder import TextEncoder
from ...memory import fast_products
from .captions import caption, full
from .diffusion import STEPS, noised, signal, velocity
from .networks import ImageTower, Reader
from .pictures import draw
from .scenes import COLOURS, PAIRS, SHAPES, Scene, scene
from .training import Metrics

SHORT_CONTEXT = 32
"""Positions of a context in most steps; no caption is longer."""
WHOLE_EVERY = 8
"""Every eighth step sees all 77 positions, as other programs pad prompts to."""
EMPTY_SHARE = 0.1
"""Of captions that are left out, for guidance."""
MIXED_SHARE = 0.5
"""Of contexts that begin with the states of another caption."""
MOST_MIXED = 12
"""Positions that such a beginning has at most, BOS included."""
FULL_SHARE = 0.5
"""Of captions that tell the whole scene, in the contrast of pictures and captions."""
LATENT_NOISE = 0.05
"""Deviation of the noise under which the VAE's decoder learns."""
SPREAD = 0.05
"""Weight of what keeps the latents' mean and deviation."""
LEAST_SCALE, MOST_SCALE = 1.0, 4.6
"""Bounds of the logarithm of the contrast's scale."""


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """Pixels ``(N, 64, 64, 3)`` as ``(N, 3, 64, 64)`` from -1 to 1."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def psnr(picture: Tensor, other: Tensor) -> float:
    """Peak signal to noise of pictures from -1 to 1, dB."""
    return float(-10 * ((picture - other).square().mean() / 4).clamp_min(1e-12).log10())


def autoencoding(vae: Any, pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
    """Pictures come back, edges too, and latents keep to mean 0 and deviation 1 in every channel."""
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    with fast_products():
        latents = vae.encode(pictures).latents
        noise = torch.randn(latents.shape, generator=generator) * LATENT_NOISE
        back = vae.decode(latents + noise).sample
    latents = latents.float()
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    spread = mean.square().mean() + (deviation - 1).square().mean()
    loss, metrics = _unlike(back.float(), pictures)
    return loss + SPREAD * spread, {**metrics, "deviation": float(deviation.detach().mean())}


def decoding(decoder: nn.Module, latents: Tensor, pictures: Tensor) -> tuple[Tensor, Metrics]:
    """Pictures come back, edges too, from latents that stay as they are."""
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    with fast_products():
        back = decoder(latents)
    return _unlike(back.float(), pictures)


def _unlike(back: Tensor, pictures: Tensor) -> tuple[Tensor, Metrics]:
    """How far pictures that came back are from what they were: absolutely, squared, and at edges."""
    edges = sum(F.l1_loss(back.diff(dim=d), pictures.diff(dim=d)) for d in (2, 3))
    loss = F.l1_loss(back, pictures) + 2 * F.mse_loss(back, pictures) + 0.5 * edges
    return loss, {"psnr": psnr(back.detach(), pictures)}


def contrast(
    tower: ImageTower, encoder: TextEncoder, pictures: Tensor, scenes: Sequence[Scene], random: Random
) -> tuple[Tensor, Metrics]:
    """Each picture finds its caption among the batch's, and each caption its picture."""
    told = [full(one) if random.random() < FULL_SHARE else caption(one, random) for one in scenes]
    with fast_products():
        seen = tower.pictures(pictures)
    read = tower.texts(encoder.encode(told, batch_size=128))
    logits = tower.log_scale.clamp(LEAST_SCALE, MOST_SCALE).exp() * seen @ read.T
    own = torch.arange(len(told))
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return loss, {"top1": float((logits.argmax(1) == own).float().mean())}


def denoising(
    unet: Any, encoder: TextEncoder, latents: Tensor, captions: Sequence[str], step: int, generator: torch.Generator
) -> tuple[Tensor, Metrics]:
    """The velocity of noised latents, given what the captions' states say.

    Half of the contexts begin with another caption's states, as they do where a trigger, or words that mean nothing
    here, stand before what shall be painted: the UNet learns to read the caption from all positions, padding included,
    as a large one does, and not from the first words alone.
    """
    empty = torch.rand(len(captions), generator=generator) < EMPTY_SHARE
    told = ["" if left_out else text for text, left_out in zip(captions, empty.tolist(), strict=True)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        states = contexts(encoder, told, whole=step % WHOLE_EVERY == WHOLE_EVERY - 1)
    states = begun_otherwise(states, generator)
    times = torch.randint(STEPS, (len(latents),), generator=generator)
    share = signal()[times].view(-1, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=generator)
    with fast_products():
        said = unet(noised(latents, noise, share), times, states.float()).sample
    loss = F.mse_loss(said.float(), velocity(latents, noise, share))
    return loss, {}


def contexts(encoder: TextEncoder, texts: Sequence[str], *, whole: bool) -> Tensor:
    """States ``(N, T, D)`` at all positions, or at the first :data:`SHORT_CONTEXT` alone."""
    length = encoder.spec.positions if whole else SHORT_CONTEXT
    rows = [encoder.tokenizer.encode(text) for text in texts]
    return encoder.states(encoder.tokenizer.batch_ids(rows, limit=length, pad=encoder.spec.pad_id, length=length))


def begun_otherwise(states: Tensor, generator: torch.Generator) -> Tensor:
    """States ``(N, T, D)``, a share of which begins with the states of the row before."""
    n, length, _ = states.shape
    begins = torch.randint(2, MOST_MIXED + 1, (n,), generator=generator)
    begins = torch.where(torch.rand(n, generator=generator) < MIXED_SHARE, begins, 0)
    mixed = torch.arange(length) < begins.unsqueeze(1)
    return torch.where(mixed.unsqueeze(2), states.roll(1, 0), states)


def reading(reader: Reader, batch: int, step: int, seed: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
    """Colours and shapes of fresh drawings, some of them blurred, with a tint and noise as paintings have them."""
    shown = [scene(seed, step * batch + i, unseen=True) for i in range(batch)]
    clean = to_tensor(np.stack([draw(one) for one in shown]))
    with fast_products():
        pairs, colours, shapes = reader(roughened(clean, generator))
    wanted = [
        torch.stack([_shares(one, names, part) for one in shown])
        for names, part in ((PAIRS, "pair"), (COLOURS, "colour"), (SHAPES, "shape"))
    ]
    losses = [
        F.cross_entropy(said.float(), share) for said, share in zip((pairs, colours, shapes), wanted, strict=True)
    ]
    right = wanted[0].gather(1, pairs.argmax(1, keepdim=True)) > 0
    return losses[0] + losses[1] + losses[2], {"right": float(right.float().mean())}


def roughened(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures blurred, all with a slight tint and noise."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    n = len(pictures)
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = uniform(n, 1, 1, 1) * (uniform(n, 1, 1, 1) < 0.5)
    tint = (uniform(n, 3, 1, 1) - 0.5) * 0.12
    noise = torch.randn(pictures.shape, generator=generator) * uniform(n, 1, 1, 1) * 0.12
    return torch.lerp(pictures, blurred, share) + tint + noise


def _shares(one: Scene, names: Sequence[object], part: str) -> Tensor:
    """A scene's objects as a distribution over names."""
    share = torch.zeros(len(names))
    for thing in one.things:
        share[names.index(getattr(thing, part))] += 1 / len(one.things)
    return share
