"""The loss surface around a recovered feature, under the loss by which it was found.

A scan looks at it as it goes; a later look, or a finer one, needs the feature and its two encoders alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import contrast, inversion
from . import tails as carriers
from .config import AmdetConfig, ContrastConfig, LandscapeConfig, ScanConfig
from .encoder import POSITION_TABLE, TextEncoder
from .errors import ConfigError
from .features import Feature
from .findings import Subject
from .landscape import landscape
from .progress import Progress, silent
from .prompts import PromptSet
from .records import Landscape
from .tails import Side, Tails

LANDSCAPE_SEED, TAILS_SEED = 1_000_003, 2_000_003
"""Added to the seed of a scan, so that no two stages share random numbers; see also :mod:`.pipeline`."""


def surround(
    subject: Subject, feature: Feature, prompts: PromptSet, config: ScanConfig, progress: Progress = silent
) -> Landscape:
    """The loss surface around a recovered feature, under the loss by which it was found.

    Args:
        subject: the encoders between which it was found; an anchor is needed.
        config: of the scan that found it; its ``landscape`` says how finely to look. Where it has none of a published
            method, a feature of one is looked at with the weights of the paper's code.

    Raises:
        ConfigError: there is no anchor, or the feature is of another width.
    """
    width = subject.suspect.spec.width
    if subject.anchor is None or feature.vectors.shape[-1] != width:
        raise ConfigError(
            f"an anchor, and a feature of {subject.name} with {width} dimensions",
            "no anchor" if subject.anchor is None else f"a feature with {feature.vectors.shape[-1]}",
            "Connect the encoders with which the feature was recovered.",
        )
    suspect, vectors = subject.suspect, feature.vectors.to(subject.suspect.device)
    fit, held_out = (part.prompts for part in prompts.first(config.prompt_limit).split())
    if feature.candidate.method == "contrast":
        sides = Side.of(suspect, fit, progress), Side.of(subject.anchor, fit, progress)
        return surface(cut_tails(sides, fit, config.contrast or ContrastConfig(), config), vectors, config, progress)
    published = config.amdet or AmdetConfig(vectors=len(vectors))
    pair = inversion.Pair(suspect, subject.anchor, published)
    placed = vectors + position_rows(suspect, published)
    around = config.landscape or LandscapeConfig()
    return pair.landscape(placed, held_out, around, generator(config, LANDSCAPE_SEED), progress)


def generator(config: ScanConfig, offset: int) -> torch.Generator:
    """Random numbers of one stage of a scan; ``offset`` tells the stages apart."""
    return torch.Generator().manual_seed(config.seed + offset)


def cut_tails(
    sides: tuple[Side, Side],
    prompts: Sequence[str],
    settings: ContrastConfig,
    config: ScanConfig,
) -> list[Tails]:
    """The few cut prompts on which landscapes are drawn."""
    drawing = generator(config, TAILS_SEED)
    return carriers.cut_prompts(*sides, prompts, settings.prompt_tokens, settings.landscape_prompts, drawing)


def surface(tails: Sequence[Tails], vectors: Tensor, config: ScanConfig, progress: Progress) -> Landscape:
    """The contrast around vectors ``(K, D)``."""
    around = (config.landscape or LandscapeConfig()).model_copy(update={"prompts": sum(map(len, tails))})
    drawing = generator(config, LANDSCAPE_SEED)
    return landscape(lambda points: -contrast.gaps(tails, points), vectors, around, drawing, progress)


def position_rows(encoder: TextEncoder, settings: AmdetConfig) -> Tensor:
    """What placed vectors ``(K, D)`` are more than embeddings that work in any prompt."""
    return encoder.weights[POSITION_TABLE][settings.insert_at : settings.insert_at + settings.vectors]
