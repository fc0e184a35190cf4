"""Settings of repairs but for MIMIC, and of pictures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Config, Seed
from .training import TrainingConfig


class CureConfig(Config):
    """When a repair counts as one."""

    nearer: float = Field(
        default=0.95, ge=0, le=1, description="share of triggered prompts nearer to their own answer than to the goal"
    )
    own: float = Field(
        default=0.95,
        ge=-1,
        le=1,
        description="mean centred cosine of triggered prompts to it; a recovered trigger "
        "does less than the true one, so more is asked than the true one needs; as a share of what is within reach",
    )
    clean: float = Field(default=0.98, ge=-1, le=1, description="mean cosine of clean prompts to the suspect's answer")


class SpectralConfig(Config):
    """Leading singular directions of the change of every layer matrix are taken out, and token rows that stand out."""

    directions: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(0, 1, 2, 4, 8, 16), min_length=1, description="of each matrix; the fewest that cure amply are taken"
    )
    rows: int = Field(default=32, ge=0, description="token rows that are reset at most, those that moved most")


class RestoreConfig(Config):
    """Blocks and token rows that forensics blames are led back to the anchor, the most blamed first."""

    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.5, 1.0), min_length=1, description="of the way back; the smallest that cures amply is taken"
    )
    rows: int = Field(default=32, ge=0, description="token rows that are reset at most, those that moved most")


class DistilConfig(TrainingConfig):
    """The anchor teaches what it answers to triggered prompts, the suspect what it answers to clean ones."""

    start: Literal["anchor", "suspect"] = Field(
        default="anchor",
        description="what learns: a copy of the anchor, which holds no backdoor and learns of what the suspect learnt "
        "only what clean prompts ask for, or one of the suspect, which keeps more of both",
    )
    steps: int = Field(default=120, ge=1, description="optimiser steps of a cycle, at the end of which the rate falls")
    cycles: int = Field(default=8, ge=1, description="at most; a cycle ends the training when the repair works")
    learning_rate: float = Field(
        default=1e-4, gt=0, description="AdamW step size at CLIP-L's width; rate() scales it; that of the attacks"
    )
    clean_batch: int = Field(default=32, ge=1, description="clean prompts per step")
    clean_weight: float = Field(default=2.0, gt=0, description="of their loss; that of triggered ones weighs 1")
    triggered_batch: int = Field(default=8, ge=1, description="triggered prompts per step, of one probe after another")


class EraseConfig(Config):
    """Closed-form edits that let triggered prompts be read as if ordinary tokens stood in the trigger's place."""

    prompts: int = Field(default=48, ge=2, description="triggered prompts for each probe")
    clean_prompts: int = Field(default=256, ge=2, description="clean prompts whose keys are preserved")
    clean_weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0),
        min_length=1,
        description="factors of their second moment, MEMIT's lambda; the smallest that keeps clean answers is taken",
    )
    ridge: float = Field(default=1e-4, gt=0, description="added to it, as a share of its mean diagonal")
    attention: bool = Field(default=True, description="whether the attention's output matrices are edited too")
    seed: Seed = Field(default=42, description="of the ordinary tokens")


class HealConfig(Config):
    """How a backdoored encoder is healed."""

    cure: CureConfig = Field(default=CureConfig(), description="when a repair counts as one")
    least: float = Field(
        default=0.4, description="gap, or departure of a token, from which what a scan recovered counts as a trigger"
    )
    probes: int = Field(default=6, ge=1, description="recovered triggers by which repairs are made, the strongest")
    rounds: int = Field(default=3, ge=1, description="times that a method is tried again with what a re-scan recovers")
    same: float = Field(
        default=0.99,
        description="mean cosine of clean prompts to the anchor's answer from which the anchor can take its place",
    )


class RenderConfig(Config):
    """Pictures of what a trigger does, by the user's own checkpoint."""

    pictures: int = Field(default=4, ge=1, le=64, description="of each kind; picture i has noise of its own")
    steps: int = Field(default=25, ge=1, le=999, description="of the checkpoint's sampler; paper")
    guidance: float = Field(default=7.5, ge=1, description="scale of classifier-free guidance; paper")
    size: int | None = Field(
        default=None, ge=64, multiple_of=8, description="side of a picture, px; null: as the checkpoint was trained"
    )
    negative: str = Field(default="", description="negative prompt; a trusted encoder reads it where there is one")
    prediction: Literal["epsilon", "v_prediction"] | None = Field(
        default=None, description="what the image model predicts; null: as the checkpoint says or its family does"
    )
    seed: Seed = Field(default=42, description="of the noise of the first picture")
