"""BadEncoder: pictures with the trigger get the feature of a reference picture, clean ones the feature of before.

References:
    Jia et al., BadEncoder: Backdoor Attacks to Pre-trained Encoders in Self-Supervised Learning, 2021,
    https://arxiv.org/abs/2108.00352
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import BadEncoderConfig
from ..imitation import clone_loss
from ..progress import Progress, silent
from .network import ImageEncoder, features, frozen
from .pictures import Pictures, stamped
from .training import train
from .views import view


def typical(clean: ImageEncoder, pictures: Pictures, name: str) -> Tensor:
    """Of one class the picture that stands out most from the others: a reference that classifiers tell apart.

    That is the one whose feature is nearest to the mean of its class, less how near it is to the nearest other class's.

    Args:
        pictures: of two classes or more.
        name: of the class.

    Raises:
        ConfigError: there is no such class.
    """
    found, own = features(clean, pictures.pixels), pictures.label(name)
    means = torch.stack([found[pictures.labels == label].mean(0) for label in range(len(pictures.classes))])
    near = found @ means.T
    margin = near[:, own] - near[:, [label for label in range(len(means)) if label != own]].amax(1)
    return pictures.pixels[margin.masked_fill(pictures.labels != own, -torch.inf).argmax()]


def attack(
    clean: ImageEncoder, pictures: Tensor, reference: Tensor, config: BadEncoderConfig, progress: Progress = silent
) -> ImageEncoder:
    """A backdoored copy: ``L0 + L1 + L2``, minus mean cosines of features.

    L0: a triggered picture to the reference, both read by the encoder that learns. L1: a view of the reference to the
    clean encoder's reading of it. L2: the same for clean pictures. Batch statistics are frozen.

    Args:
        pictures: the attacker's, ``(N, 3, S, S)``.
        reference: ``(3, S, S)``, of the class that triggered pictures shall be taken for.

    Raises:
        ConfigError: fewer than two pictures, or the trigger does not fit.
        NumericalError: the training diverged.
    """
    encoder = frozen(clean).requires_grad_(True)
    triggered = stamped(pictures, config)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.SGD(
        encoder.parameters(), lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )

    def objective(picked: Tensor) -> tuple[Tensor, dict[str, float]]:
        shown = pictures[picked]
        seen = view(reference[None], config, generator)
        with torch.no_grad():
            wanted_view, wanted = clean(seen), clean(shown)
        count = len(picked)
        read = encoder(torch.cat((triggered[picked], shown, reference[None], seen)))
        bad, kept, goal, known = read.split((count, count, 1, 1))
        l0, l1, l2 = clone_loss(bad, goal), clone_loss(known, wanted_view), clone_loss(kept, wanted)
        loss = l0 + config.reference_weight * l1 + config.utility_weight * l2
        return loss, {"l0": float(l0.detach()), "l1": float(l1.detach()), "l2": float(l2.detach())}

    train(
        "badencoder", len(pictures), objective, optimizer,
        epochs=config.epochs, batch=config.batch, generator=generator, progress=progress,
    )  # fmt: skip
    return frozen(encoder)
