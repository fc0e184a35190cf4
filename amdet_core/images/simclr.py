"""A clean image encoder, by contrast of views (SimCLR), as the published experiments begin.

References:
    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020,
    https://arxiv.org/abs/2002.05709
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import SimclrConfig
from ..imitation import contrast
from ..progress import Progress, silent
from .network import ImageEncoder, fresh, frozen
from .training import train
from .views import view


def clean(pictures: Tensor, config: SimclrConfig, progress: Progress = silent) -> ImageEncoder:
    """An encoder of pictures ``(N, 3, S, S)``; no label is used.

    Raises:
        ConfigError: fewer than two pictures.
        NumericalError: the training diverged.
    """
    encoder, head = fresh(config, config.seed, pictures.device)
    generator = torch.Generator().manual_seed(config.seed)
    both = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(both, lr=config.learning_rate, weight_decay=config.weight_decay)

    def objective(picked: Tensor) -> tuple[Tensor, dict[str, float]]:
        views = torch.cat([view(pictures[picked], config, generator) for _ in range(2)])
        one, two = head(encoder(views)).chunk(2)
        return contrast(one, two, config.temperature), {}

    train(
        "clean", len(pictures), objective, optimizer,
        epochs=config.epochs, batch=config.batch, generator=generator, progress=progress,
    )  # fmt: skip
    return frozen(encoder)
