"""What MIMIC lets a student imitate: losses, and mutual information by block. For any encoder that has blocks.

    B  inputs          P  places in an input (pixels of a map, tokens of a prompt)
    C  channels        E  width of an encoder's answer

References:
    Han et al., Mutual Information Guided Backdoor Mitigation for Pre-trained Encoders, IEEE TIFS 2025,
    https://arxiv.org/abs/2406.03508
    Belghazi et al., Mutual Information Neural Estimation, 2018, https://arxiv.org/abs/1801.04062
    Zagoruyko & Komodakis, Paying More Attention to Attention, 2016, https://arxiv.org/abs/1612.03928
    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020,
    https://arxiv.org/abs/2002.05709
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ImitationConfig

TINY = 1e-6
"""Added to the norm of an attention map; code."""


# ------------------------------------------------------------------ losses


def contrast(one: Tensor, two: Tensor, temperature: float) -> Tensor:
    """NT-Xent: each view finds the other of the same input among all other views of the batch.

    Args:
        one: ``(B, E)`` first views, of any length; ``two`` the second ones.
    """
    views = F.normalize(torch.cat((one, two)), dim=-1)
    scores = (views @ views.T / temperature).fill_diagonal_(-math.inf)
    return F.cross_entropy(scores, torch.arange(len(views), device=views.device).roll(len(one)))


def attention_map(block: Tensor) -> Tensor:
    """Where a block is active: the squares summed over its channels, as a vector of length 1.

    Args:
        block: ``(B, P, C)``.

    Returns:
        ``(B, P)``.
    """
    energy = block.square().sum(-1)
    length: Tensor = energy.norm(dim=-1, keepdim=True)
    return energy / (length + TINY)


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Mean square between attention maps, block by block, each with its weight; blocks are ``(B, P, C)``."""
    pairs = zip(weights, student, teacher, strict=True)
    terms = [weight * F.mse_loss(attention_map(own), attention_map(shown)) for weight, own, shown in pairs]
    return torch.stack(terms).sum()


def clone_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Minus the mean cosine of answers ``(*L, E)``."""
    return -F.cosine_similarity(student, teacher, dim=-1).mean()


# ------------------------------------------------------------------ mutual information


def attention_weights(information: Sequence[float], config: ImitationConfig) -> tuple[float, ...]:
    """``base + share * MI_i / sum of MI``; equal shares where nothing was measured (the code divides by zero)."""
    total = sum(information)
    shares = [one / total for one in information] if total > 0 else [1 / len(information)] * len(information)
    return tuple(config.attention_base + config.attention_share * share for share in shares)


def donsker_varadhan(joint: Tensor, apart: Tensor) -> Tensor:
    """The lower bound ``mean T(x, y) - log mean exp T(x, y')`` in nats, from a critic's answers ``(B,)``."""
    return joint.mean() - (apart.logsumexp(0) - math.log(len(apart)))


def mutual_information(x: Tensor, y: Tensor, config: ImitationConfig, generator: torch.Generator) -> float:
    """How much a block says of the encoder's answer: MINE's estimate in nats, 0 where it is negative or not finite.

    The bound is raised on the inputs that it is measured on, as published, so it grows with a critic's capacity:
    blocks are compared by it, nothing more.

    Args:
        x: ``(N, F)``, one block's output.
        y: ``(N, E)``, the answers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        critic = _critic(x.shape[1] + y.shape[1], config.critic_width).to(x.device)
    optimizer = torch.optim.Adam(critic.parameters(), lr=config.critic_rate, weight_decay=config.critic_decay)
    epochs = [_epoch(critic, optimizer, x, y, config.critic_batch, generator) for _ in range(config.critic_epochs)]
    last = [max(0.0, found) if math.isfinite(found) else 0.0 for found in epochs[-config.critic_last :]]
    return sum(last) / len(last)


def _critic(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1), nn.Flatten(0)
    )


@torch.enable_grad()
def _epoch(
    critic: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, batch: int, generator: torch.Generator
) -> float:
    """One pass over all inputs; the mean of the bound over its steps."""
    bounds = []
    for picked in torch.randperm(len(x), generator=generator).split(batch):
        own, shown = x[picked.to(x.device)], y[picked.to(y.device)]
        other = shown[torch.randperm(len(shown), generator=generator).to(shown.device)]
        bound = donsker_varadhan(critic(torch.cat((own, shown), 1)), critic(torch.cat((own, other), 1)))
        optimizer.zero_grad()
        (-bound).backward()
        optimizer.step()
        bounds.append(float(bound.detach()))
    return sum(bounds) / len(bounds)
