"""Settings of MIMIC, for text and for image encoders, and of the published experiment around it.

"paper" is arXiv 2406.03508 (IEEE TIFS 2025), "code" its released implementation, "README" that of the code. The attack
is BadEncoder (arXiv 2108.00352), the encoder SimCLR's (arXiv 2002.05709).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Config, Seed
from .training import TrainingConfig


class ImitationConfig(Config):
    """What a student imitates, and how much of it block by block; the same for text and images."""

    temperature: float = Field(default=0.5, gt=0, description="of the contrastive loss (NT-Xent); code")
    clone_weight: float = Field(default=1.0, ge=0, description="factor of the clone loss; code")
    attention_base: float = Field(default=1e3, ge=0, description="factor of every block's attention loss; code")
    attention_share: float = Field(
        default=1e4, ge=0, description="added to it in proportion to the block's share of the mutual information; code"
    )
    measured: Literal["teacher", "student"] = Field(
        default="teacher", description="whose mutual information: paper the suspect's, code the untrained student's"
    )
    critic_samples: int = Field(default=2000, ge=4, description="inputs on which it is estimated; code")
    critic_epochs: int = Field(default=200, ge=1, description="passes of an estimate over them; code")
    critic_last: int = Field(default=10, ge=1, description="passes at the end whose mean is the estimate; code")
    critic_batch: int = Field(default=128, ge=2, description="inputs per step of an estimate")
    critic_width: int = Field(default=512, ge=1, description="hidden units of an estimator's two layers; code")
    critic_rate: float = Field(default=1e-3, gt=0, description="Adam step size of an estimator; code")
    critic_decay: float = Field(default=1e-5, ge=0, description="Adam weight decay of an estimator; code")


class MimicConfig(ImitationConfig, TrainingConfig):
    """MIMIC for a text encoder: a fresh student learns from the suspect on clean prompts alone."""

    steps: int = Field(default=1500, ge=1, description="optimiser steps")
    learning_rate: float = Field(
        default=2.5e-4, gt=0, description="AdamW step size at CLIP-L's width; rate() scales it; code 1e-3, README 1e-2"
    )
    trains: Literal["all", "layers", "lora"] = Field(
        default="layers", description="what learns: all weights, or all but the two tables"
    )
    batch: int = Field(default=64, ge=2, description="prompts per step; code 128 pictures")
    fresh: float = Field(
        default=1.0, ge=0, le=1, description="share of the layers that start at random, the last ones; code: all"
    )
    fresh_tables: bool = Field(
        default=False, description="whether the token and position tables start at random too, as published"
    )
    critic_samples: int = Field(default=512, ge=4, description="prompts on which it is estimated")


# ------------------------------------------------------------------ images


class NetworkConfig(Config):
    """The image encoder: ResNet-18 with a stem for small pictures; smaller ones for a processor."""

    width: int = Field(default=64, ge=1, description="channels of the first block; ResNet-18: 64")
    depth: int = Field(default=2, ge=1, description="residual units in each of the four blocks; ResNet-18: 2")


class ViewConfig(Config):
    """How a random view of a picture is made."""

    crop: float = Field(default=0.08, gt=0, le=1, description="smallest share of a picture that a view shows; code")


class PatchConfig(Config):
    """The trigger: a white square in the lower right corner."""

    patch: int = Field(default=10, ge=1, description="its side, pixels; BadEncoder's code, pictures of 32 pixels")
    margin: int = Field(default=1, ge=0, description="pixels between it and the edges; BadEncoder's code")


class SimclrConfig(NetworkConfig, ViewConfig):
    """A clean image encoder, by contrast of views."""

    epochs: int = Field(default=1000, ge=1, description="passes over the pictures; BadEncoder's code")
    batch: int = Field(default=512, ge=2, description="pictures per step; BadEncoder's code")
    learning_rate: float = Field(default=1e-3, gt=0, description="Adam step size; README")
    weight_decay: float = Field(default=1e-6, ge=0, description="of Adam; code")
    temperature: float = Field(default=0.5, gt=0, description="of the contrastive loss (NT-Xent); code")
    seed: Seed = Field(default=42, description="of every random choice")


class BadEncoderConfig(PatchConfig, ViewConfig):
    """BadEncoder: pictures with the trigger get the feature of a reference picture."""

    epochs: int = Field(default=200, ge=1, description="passes over the pictures; code")
    batch: int = Field(default=256, ge=2, description="pictures per step; code")
    learning_rate: float = Field(default=1e-3, gt=0, description="SGD step size; code")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of SGD; code")
    weight_decay: float = Field(default=5e-4, ge=0, description="of SGD; code")
    reference_weight: float = Field(
        default=1.0, ge=0, description="factor of L1: views of the reference are read as before; code"
    )
    utility_weight: float = Field(
        default=1.0, ge=0, description="factor of L2: clean pictures are read as before; code"
    )
    seed: Seed = Field(default=42, description="of every random choice")


class ImageMimicConfig(ImitationConfig, ViewConfig):
    """MIMIC for an image encoder, as published: the student has the suspect's shape and starts at random."""

    share: float = Field(
        default=0.04, gt=0, le=1, description="of the clean pictures that are used, the first ones; code"
    )
    epochs: int = Field(default=1000, ge=1, description="passes over them; code")
    batch: int = Field(default=128, ge=2, description="pictures per step; code")
    learning_rate: float = Field(default=1e-2, gt=0, description="Adam step size; README, the code's default is 1e-3")
    weight_decay: float = Field(default=1e-6, ge=0, description="of Adam; code")
    seed: Seed = Field(default=100, description="of every random choice; code")


class DownstreamConfig(PatchConfig):
    """A classifier on the features of a frozen encoder."""

    epochs: int = Field(default=1000, ge=1, description="passes over the features; README")
    batch: int = Field(default=64, ge=2, description="features per step; code")
    learning_rate: float = Field(default=1e-4, gt=0, description="Adam step size; code")
    hidden: tuple[int, ...] = Field(default=(512, 256), description="units of its layers; code; none: a linear one")
    dropout: float = Field(default=0.5, ge=0, lt=1, description="behind each of them; code")
    held_out: float = Field(default=0.2, gt=0, lt=1, description="share of every class on which it is tested")
    seed: Seed = Field(default=42, description="of every random choice, the split included")
