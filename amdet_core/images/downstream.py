"""A classifier on a frozen encoder's features: how well it does, and how often the trigger takes it over."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import DownstreamConfig
from ..errors import ConfigError
from ..progress import Progress, silent
from .network import ImageEncoder, features
from .pictures import Pictures, stamped
from .training import train


@dataclass(frozen=True)
class Counts:
    """What a classifier says of held-out pictures.

    Attributes:
        right: clean pictures of which it names the class, out of ``n``.
        led: triggered pictures of which it names the target class, out of the same ``n``: published attack success.
        led_others: of these, pictures of other classes, out of ``n_others``; what the trigger alone does.
        said_others: the same pictures without the trigger of which it names the target class.
        gathered: triggered pictures of which it names one and the same class, whichever that is, out of ``n``; far
            above ``led`` where the attack works but the classifier takes its reference for another class.
    """

    n: int
    right: int
    led: int
    n_others: int
    led_others: int
    said_others: int
    gathered: int


def downstream(
    encoder: ImageEncoder, pictures: Pictures, target: str, config: DownstreamConfig, progress: Progress = silent
) -> Counts:
    """Train a classifier on a part of the pictures and count on the rest.

    Args:
        target: class of the attack's reference picture.

    Raises:
        ConfigError: fewer than two classes, no such class, or too few pictures of one.
        NumericalError: the training diverged.
    """
    if len(pictures.classes) < 2:
        raise ConfigError("at least two classes", str(len(pictures.classes)), "Add a folder of another class.")
    goal = pictures.label(target)
    fit, held_out = pictures.split(config.held_out, config.seed)
    classifier = _trained(features(encoder, fit.pixels), fit.labels, len(pictures.classes), config, progress)

    @torch.no_grad()
    def said(shown: Tensor) -> Tensor:
        answers: Tensor = classifier(features(encoder, shown)).argmax(-1)
        return answers

    clean, triggered = said(held_out.pixels), said(stamped(held_out.pixels, config))
    others = held_out.labels != goal
    return Counts(
        n=len(held_out),
        right=int((clean == held_out.labels).sum()),
        led=int((triggered == goal).sum()),
        n_others=int(others.sum()),
        led_others=int((triggered == goal)[others].sum()),
        said_others=int((clean == goal)[others].sum()),
        gathered=int(triggered.bincount().max()),
    )


def _trained(x: Tensor, labels: Tensor, classes: int, config: DownstreamConfig, progress: Progress) -> nn.Module:
    """A classifier of features ``(N, E)``."""
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # of the weights and of dropout
        sizes = (x.shape[1], *config.hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.Dropout(config.dropout), nn.ReLU()]
        classifier = nn.Sequential(*layers, nn.Linear(sizes[-1], classes)).to(x.device)
        optimizer = torch.optim.Adam(classifier.parameters(), lr=config.learning_rate)

        def objective(picked: Tensor) -> tuple[Tensor, dict[str, float]]:
            answers = classifier(x[picked])
            right = float((answers.detach().argmax(-1) == labels[picked]).float().mean())
            return F.cross_entropy(answers, labels[picked]), {"right": right}

        train(
            "downstream", len(x), objective, optimizer,
            epochs=config.epochs, batch=config.batch, generator=generator, progress=progress,
        )  # fmt: skip
    return classifier.train(False)
