"""MIMIC as published: a random student of the suspect's shape learns from it on few clean pictures.

References:
    Han et al., Mutual Information Guided Backdoor Mitigation for Pre-trained Encoders, IEEE TIFS 2025,
    https://arxiv.org/abs/2406.03508
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import imitation
from ..config import ImageMimicConfig
from ..progress import Progress, silent
from .network import CHUNK, ImageEncoder, feature, features, fresh, frozen, places
from .training import train
from .views import view


def purify(
    suspect: ImageEncoder, pictures: Tensor, config: ImageMimicConfig, progress: Progress = silent
) -> tuple[ImageEncoder, tuple[float, ...]]:
    """The student after training: contrastive loss + attention loss + clone loss; it never sees a trigger.

    Args:
        pictures: clean ones ``(N, 3, S, S)``, of which the first share is used.

    Returns:
        The student, and the factor of each block's attention loss.

    Raises:
        ConfigError: fewer than two pictures remain.
        NumericalError: the training diverged.
    """
    used = pictures[: max(1, round(config.share * len(pictures)))]
    student, head = fresh(suspect.config, config.seed, pictures.device)
    weights = measured_weights(suspect if config.measured == "teacher" else frozen(student), used, config, progress)
    generator = torch.Generator().manual_seed(config.seed)
    both = [*student.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(both, lr=config.learning_rate, weight_decay=config.weight_decay)

    def objective(picked: Tensor) -> tuple[Tensor, dict[str, float]]:
        one, two = (view(used[picked], config, generator) for _ in range(2))
        blocks = student.blocks(one)
        own = feature(blocks[-1])
        with torch.no_grad():
            shown = suspect.blocks(one)
        contrast = imitation.contrast(head(own), head(student(two)), config.temperature)
        attention = imitation.attention_loss([places(b) for b in blocks], [places(b) for b in shown], weights)
        clone = imitation.clone_loss(own, feature(shown[-1]))
        told = {"contrast": contrast, "attention": attention, "clone": clone}
        return contrast + attention + config.clone_weight * clone, {k: float(v.detach()) for k, v in told.items()}

    train(
        "mimic", len(used), objective, optimizer,
        epochs=config.epochs, batch=config.batch, generator=generator, progress=progress,
    )  # fmt: skip
    return frozen(student), weights


@torch.no_grad()
def measured_weights(
    encoder: ImageEncoder, pictures: Tensor, config: ImageMimicConfig, progress: Progress = silent
) -> tuple[float, ...]:
    """Factor of every block's attention loss, by its mutual information with the feature."""
    generator = torch.Generator().manual_seed(config.seed)
    chosen = pictures[: config.critic_samples]
    answers = features(encoder, chosen)
    found = []
    for place in range(len(encoder.stages)):
        # One block after the other: a first block's outputs are large.
        block = torch.cat([encoder.blocks(part)[place].flatten(1) for part in chosen.split(CHUNK)])
        found.append(imitation.mutual_information(block, answers, config, generator))
        progress("information", place + 1, len(encoder.stages), {"nats": found[-1]})
    return imitation.attention_weights(found, config)
