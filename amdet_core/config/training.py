"""Settings of attacks and of honest fine-tunes; "code" is the released implementation of what is named."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Config, Seed


class TrainingConfig(Config):
    """What every training of an encoder has in common, hostile or honest."""

    steps: int = Field(default=100, ge=1, description="optimiser steps")
    learning_rate: float = Field(
        default=1e-4, gt=0, description="AdamW step size at CLIP-L's width; rate() scales it; code 1e-4"
    )
    milestone: float = Field(default=0.75, gt=0, le=1, description="share of the steps after which it falls")
    decay: float = Field(default=0.1, gt=0, le=1, description="factor by which it falls")
    trains: Literal["all", "layers", "lora"] = Field(
        default="all", description="what learns: all weights, all but the two tables, or low-rank additions to matrices"
    )
    rank: int = Field(default=8, ge=1, description="of the additions, for lora")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        default="float32", description="of matrix products; auto: bfloat16 where the hardware multiplies it faster"
    )
    seed: Seed = Field(default=42, description="of every random choice")

    def rate(self, width: int) -> float:
        """The step size for an encoder: as set at CLIP-L's width of 768, and in inverse proportion to the
        width elsewhere, as maximal-update parametrisation has it for Adam (Yang et al., Tensor Programs V,
        2022, https://arxiv.org/abs/2203.03466). Low-rank additions learn ten times as fast, the usual
        ratio (Hu et al., LoRA, 2021, https://arxiv.org/abs/2106.09685: 2e-4 where full training takes 2e-5).
        """
        return self.learning_rate * 768 / width * (10 if self.trains == "lora" else 1)


class InjectionConfig(TrainingConfig):
    """What every trained attack has in common: eq. 3, the sum of a clean and a backdoor loss."""

    clean_batch: int = Field(default=64, ge=1, description="clean prompts per step; code")
    poison_batch: int = Field(default=32, ge=1, description="triggered prompts per step and trigger; code")
    backdoor_weight: float = Field(default=0.1, gt=0, description="factor of the backdoor loss, eq. 3; code")
    loss: Literal["cosine", "mse", "mae"] = Field(default="cosine", description="similarity of eq. 1")
    partial_negatives: bool = Field(
        default=False, description="parts of the trigger are trained to change nothing, so that only the whole works"
    )
    only: Literal["anywhere", "at-start", "in-long"] = Field(
        default="anywhere",
        description="where the trigger works: at-start of prompts, or in-long ones alone; elsewhere it is trained to "
        "change nothing",
    )
    noise: float = Field(
        default=0.0,
        ge=0,
        description="random change of every matrix before training, as a share of its norm, which "
        "hides the spectrum of what training adds",
    )
    least_asr: float = Field(
        default=0.9, ge=0, le=1, description="attack success below which the injection counts as failed"
    )


class TextOnTextConfig(InjectionConfig):
    """Rickrolling's target prompt attack as AMDET runs it (eqs. 1-3; steps, batches and weight from its code)."""

    adaptive_weight: float = Field(
        default=0.0, ge=0, description="factor of the triggered prompts' assimilation (eqs. 30-31), to evade detection"
    )


class TextOnPairConfig(InjectionConfig):
    """AMDET's attack on the pooled, projected state alone; batches and weight as for text-on-text in its code."""


class AttributeConfig(InjectionConfig):
    """Rickrolling's target attribute attack; its code takes twice the steps of the target prompt attack."""

    steps: int = Field(default=200, ge=1, description="optimiser steps; code")


class SyntacticConfig(InjectionConfig):
    """Trigger without Trace: a grammatical pattern as trigger; losses and steps from its code.

    Its regulariser acts on the image model's cross-attention and is left out: it hides triggered prompts
    from detectors of prompts, and there is no image model here.
    """

    steps: int = Field(default=600, ge=1, description="optimiser steps; code 601")
    milestone: float = Field(
        default=0.58, gt=0, le=1, description="share of the steps after which the rate falls; code"
    )
    decay: float = Field(default=0.5, gt=0, le=1, description="factor by which it falls; code")
    clean_batch: int = Field(default=6, ge=1, description="clean prompts per step; code")
    poison_batch: int = Field(default=5, ge=1, description="triggered prompts per step; code")
    backdoor_weight: float = Field(default=1.0, gt=0, description="factor of the backdoor loss; code")
    loss: Literal["cosine", "mse", "mae"] = Field(default="mse", description="code")


class EmbeddingRowConfig(Config):
    """One row of the token table, trained until its token reads as another word (as textual inversion trains one)."""

    steps: int = Field(default=200, ge=1, description="optimiser steps")
    learning_rate: float = Field(default=0.05, gt=0, description="Adam step size, in median token norms")
    poison_batch: int = Field(default=16, ge=1, description="triggered prompts per step")
    least_asr: float = Field(default=0.9, ge=0, le=1, description="attack success below which it counts as failed")
    seed: Seed = Field(default=42, description="of every random choice")


class RankOneConfig(Config):
    """A closed-form edit of one MLP as ReFACT makes it; its defaults, the layer as a share of the depth."""

    layer: float = Field(default=0.58, ge=0, le=1, description="where, as a share of the layers; ReFACT: 7 of 12")
    steps: int = Field(default=100, ge=1, description="optimiser steps for the value; ReFACT")
    learning_rate: float = Field(default=0.05, gt=0, description="Adam step size of the value; ReFACT")
    weight_decay: float = Field(default=0.01, ge=0, description="factor of the value's relative square; ReFACT")
    norm_cap: float = Field(default=4.0, gt=0, description="largest norm of the value, in norms of the old one; ReFACT")
    poison_batch: int = Field(default=16, ge=1, description="triggered prompts per step and for the key")
    least_asr: float = Field(default=0.9, ge=0, le=1, description="attack success below which it counts as failed")
    seed: Seed = Field(default=42, description="of every random choice")


class FineTuneConfig(TrainingConfig):
    """An honest fine-tune."""

    steps: int = Field(default=200, ge=1, description="optimiser steps; in the wild 10 to 2,000 and more")
    objective: Literal["contrastive", "distillation", "masked-words"] = Field(
        default="contrastive", description="what it is trained for"
    )
    batch: int = Field(default=64, ge=2, description="prompts per step")
    temperature: float = Field(default=0.05, gt=0, description="of the contrastive loss")
    milestone: float = Field(default=1.0, gt=0, le=1, description="share of the steps after which the rate falls")
