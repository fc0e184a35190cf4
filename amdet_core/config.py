"""Settings of every algorithm: frozen, keyword-only, each field with its default, unit and source.

"paper" is arXiv 2512.00343, "code" its released implementation (docs/method.md lists where they differ).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ConfigError


class Config(BaseModel):
    """Base of all settings; raises ConfigError naming field, value and allowed range."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                expected=f"{type(self).__name__}.{field}: {first['msg']}",
                found=repr(first.get("input")),
                remedy=f"{error.error_count()} setting(s) to correct; see docs/configuration.md.",
            ) from error


class AmdetConfig(Config):
    """Implicit feature inversion as published (Sec. V-A, Algorithm 1)."""

    learning_rate: float = Field(default=8e-2, gt=0, description="Adam step size; paper and code")
    weight_decay: float = Field(default=1e-5, ge=0, description="Adam weight decay; code")
    batch: int = Field(default=10, ge=1, description="prompts per step; paper and code")
    epochs: int = Field(default=2, ge=1, description="passes over the fit prompts; code")
    vectors: int = Field(default=1, ge=1, le=16, description="length K of the pseudo-trigger; code")
    insert_at: int = Field(default=1, ge=1, description="positions in front of it; 1 is behind BOS; paper and code")
    weight_assimilation: float = Field(default=1.0, ge=0, description="factor of eq. 16")
    weight_deviation: float = Field(default=0.1, ge=0, description="factor of eq. 17; code 0.1, paper 1")
    weight_anchor: float = Field(default=0.1, ge=0, description="factor of eq. 18; code 0.1, paper 5")
    check_every: int = Field(default=2, ge=1, description="steps between two looks at the gates; code")
    epoch_break: float | None = Field(
        default=-0.85, description="running mean of the loss that ends an epoch; code; null: never"
    )
    assimilated_above: float = Field(default=0.8, description="a prompt counts as assimilated above; code")
    same_above: float = Field(default=0.92, description="two outputs count as the same above this cosine; code")
    deviates_below: float = Field(default=0.0, description="a prompt counts as deviating below this cosine; code")


class ContrastConfig(Config):
    """Anchor-relative inversion: the suspect collapses across prompts, the anchor does not."""

    vectors: tuple[Annotated[int, Field(ge=1, le=16)], ...] = Field(
        default=(1, 3, 5), min_length=1, description="lengths K tried one after the other"
    )
    seeds: int = Field(default=2, ge=1, le=50, description="independent runs per length, each on its own prompts")
    restarts: int = Field(default=8, ge=1, description="candidates side by side in one run")
    draws: int = Field(default=16, ge=1, description="random starts from which each candidate's is chosen")
    steps: int = Field(default=60, ge=1, description="Adam steps per run")
    learning_rate: float = Field(default=0.1, gt=0, description="Adam step size, in median token norms")
    prompts: int = Field(default=6, ge=2, description="prompts per step, drawn anew each time")
    pool: int = Field(default=64, ge=4, description="prompts of each length from which a run draws")
    prompt_tokens: tuple[int, ...] = Field(
        default=(4, 16, 32), min_length=1, description="lengths to which they are cut, in tokens, taken in turn"
    )
    anchor_weight: float = Field(default=1.0, ge=0, description="factor of the anchor's collapse in the loss, K = 1")
    anchor_weight_long: float = Field(default=0.5, ge=0, description="the same for K > 1")
    norm_cap: float = Field(default=3.0, gt=0, description="largest vector norm, in median token norms")
    enough: float = Field(
        default=0.9, gt=0, le=1, description="gap at which a run stops early and longer triggers are not tried"
    )
    held_out: int = Field(default=64, ge=8, description="prompts on which the gap is measured")
    targets: int = Field(
        default=3, ge=1, description="different outputs looked for: a search that found one goes on away from it"
    )
    repulsion: float = Field(default=1.0, ge=0, description="factor in the loss of the cosine to outputs found before")
    landscape_prompts: int = Field(default=2, ge=2, description="prompts of each length for the landscape")


class SweepConfig(Config):
    """Every token tried as a trigger, in looks at fewer and fewer of them with more and more prompts."""

    prompts: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 8, 24), min_length=2, description="prompts of each look, spread over lengths and places"
    )
    kept: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1024, 64), min_length=1, description="candidates that each look but the first takes over"
    )
    prompt_tokens: tuple[int, ...] = Field(
        default=(32, 4, 16),
        min_length=1,
        description="lengths to which prompts are cut, in tokens; the first look's first",
    )
    start_tokens: tuple[int, ...] = Field(
        default=(4,), description="the same of prompts at whose start a candidate stands; in all but the first look"
    )
    leads: int = Field(default=8, ge=1, description="candidates that are measured on whole held-out prompts")
    held_out: int = Field(default=64, ge=8, description="those prompts")


class PatternConfig(Config):
    """Sentences of every pattern of a small grammar, tried as triggers."""

    sentences: int = Field(default=8, ge=3, description="of each pattern")
    held_out: int = Field(default=64, ge=8, description="fresh sentences of those that do most")


class SearchConfig(Config):
    """From leads to the literal trigger: a beam of token sequences, exchanges by gradient, and dropping."""

    least_gap: float = Field(default=0.5, description="gap of another stage's finding from which a trigger is searched")
    leads: int = Field(default=32, ge=1, description="tokens from other stages that are tried in every place")
    beam: int = Field(default=4, ge=1, description="sequences that are made longer side by side")
    pointed: int = Field(default=16, ge=1, description="tokens tried in a place because the gradient points to them")
    refined: int = Field(default=48, ge=1, description="sequences of a round that are scored on more prompts")
    longest: int = Field(default=16, ge=1, description="tokens of the longest sequence")
    exchanges: int = Field(default=4, ge=0, description="rounds in which a single token is exchanged")
    gain: float = Field(default=0.03, ge=0, description="score that one token more must bring")
    enough: float = Field(default=0.97, gt=0, description="score at which a search stops")
    slack: float = Field(default=0.06, ge=0, description="score that may be lost by dropping tokens")
    glance: int = Field(default=1, ge=1, description="prompts in the first look of a round, all of one length")
    prompts: int = Field(default=4, ge=1, description="prompts of each length in the second")
    pool: int = Field(default=16, ge=1, description="prompts of each length from which rounds draw")
    prompt_tokens: tuple[int, ...] = Field(
        default=(6, 16, 32), min_length=1, description="lengths to which prompts are cut, in tokens"
    )
    start_tokens: tuple[int, ...] = Field(
        default=(4, 8), min_length=1, description="the same of prompts at whose start a sequence stands"
    )


class LandscapeConfig(Config):
    """Loss surface around a recovered feature (eqs. 21-27)."""

    grid: int = Field(default=50, ge=5, description="points per side; code 50 decides, 25 is drawn")
    radius: float | None = Field(
        default=10.0, gt=0, description="half side of the window, in embedding units; code; null: the vector's norm"
    )
    prompts: int = Field(
        default=1, ge=1, description="prompts over which the published loss is averaged; code 1; contrast has its own"
    )
    positive_above: float = Field(default=1e-6, ge=0, description="eigenvalues above this count as positive; code")


class ScanConfig(Config):
    """Everything that determines a scan, beside the files."""

    seed: int = Field(default=42, ge=0, description="of every random choice; code 42")
    preset: Literal["quick", "standard", "thorough"] = Field(default="standard", description="how much work")
    prompt_limit: int = Field(default=4000, ge=40, description="prompts used, fit and held-out; paper 4,000")
    sweep: SweepConfig | None = Field(default=None, description="null: tokens are not tried one by one")
    patterns: PatternConfig | None = Field(default=None, description="null: grammatical patterns are not tried")
    search: SearchConfig | None = Field(default=None, description="null: no trigger of several tokens is searched")
    contrast: ContrastConfig | None = Field(default=None, description="null: this inversion is not run")
    amdet: AmdetConfig | None = Field(default=None, description="null: the published inversion is not run")
    landscape: LandscapeConfig | None = Field(
        default=LandscapeConfig(), description="of the best feature; null: only where a stop rule asks for it"
    )


class GuardConfig(Config):
    """When a prompt's encoding leaves the anchor's by more than clean prompts of the same two encoders do."""

    prompts: int = Field(default=1000, ge=100, description="clean prompts, of eight kinds, that set the bound")
    rate: float = Field(
        default=0.002, gt=0, lt=1, description="share of prompts like these that may depart by more than the quantile"
    )
    margin: float = Field(
        default=1.5, ge=1, description="factor from that quantile to the bound, for prompts that are unlike them"
    )
    least: float = Field(
        default=0.03, ge=0, le=2, description="departure (1 - cosine) that is never flagged, however alike the encoders"
    )
    most: float = Field(
        default=0.5, ge=0, le=2, description="bound that a few clean prompts can't raise; see guard.Guard.bound"
    )
    causes: int = Field(default=8, ge=1, description="pieces that are taken out of a flagged prompt at most")
    seed: int = Field(default=4, ge=0, description="of the clean prompts")


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
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of matrix products; bfloat16 is faster on hardware that has it"
    )
    seed: int = Field(default=42, ge=0, description="of every random choice")

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
    seed: int = Field(default=42, ge=0, description="of every random choice")


class RankOneConfig(Config):
    """A closed-form edit of one MLP as ReFACT makes it; its defaults, the layer as a share of the depth."""

    layer: float = Field(default=0.58, ge=0, le=1, description="where, as a share of the layers; ReFACT: 7 of 12")
    steps: int = Field(default=100, ge=1, description="optimiser steps for the value; ReFACT")
    learning_rate: float = Field(default=0.05, gt=0, description="Adam step size of the value; ReFACT")
    weight_decay: float = Field(default=0.01, ge=0, description="factor of the value's relative square; ReFACT")
    norm_cap: float = Field(default=4.0, gt=0, description="largest norm of the value, in norms of the old one; ReFACT")
    poison_batch: int = Field(default=16, ge=1, description="triggered prompts per step and for the key")
    least_asr: float = Field(default=0.9, ge=0, le=1, description="attack success below which it counts as failed")
    seed: int = Field(default=42, ge=0, description="of every random choice")


class FineTuneConfig(TrainingConfig):
    """An honest fine-tune."""

    steps: int = Field(default=200, ge=1, description="optimiser steps; in the wild 10 to 2,000 and more")
    objective: Literal["contrastive", "distillation", "masked-words"] = Field(
        default="contrastive", description="what it is trained for"
    )
    batch: int = Field(default=64, ge=2, description="prompts per step")
    temperature: float = Field(default=0.05, gt=0, description="of the contrastive loss")
    milestone: float = Field(default=1.0, gt=0, le=1, description="share of the steps after which the rate falls")


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
        default=(0, 1, 2, 4, 8, 16), min_length=1, description="of each matrix; the fewest that cure are taken"
    )
    rows: int = Field(default=32, ge=0, description="token rows that are reset at most, those that moved most")


class RestoreConfig(Config):
    """Blocks and token rows that forensics blames are led back to the anchor, the most blamed first."""

    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.5, 1.0), min_length=1, description="of the way back; the smallest that cures is taken"
    )
    rows: int = Field(default=32, ge=0, description="token rows that are reset at most, those that moved most")


class DistilConfig(TrainingConfig):
    """The anchor teaches what it answers to triggered prompts; clean prompts are answered as before."""

    steps: int = Field(default=60, ge=1, description="optimiser steps")
    learning_rate: float = Field(
        default=1e-4, gt=0, description="AdamW step size at CLIP-L's width; rate() scales it; that of the attacks"
    )
    clean_batch: int = Field(default=16, ge=1, description="clean prompts per step")
    triggered_batch: int = Field(default=16, ge=1, description="triggered prompts per step, of one probe after another")


class EraseConfig(Config):
    """Closed-form edits that let triggered prompts be read as if ordinary tokens stood in the trigger's place."""

    prompts: int = Field(default=48, ge=2, description="triggered prompts for each probe")
    clean_prompts: int = Field(default=256, ge=2, description="clean prompts whose keys are preserved")
    clean_weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(4.0, 32.0, 256.0),
        min_length=1,
        description="factors of their second moment, MEMIT's lambda; the first that keeps clean answers is taken",
    )
    ridge: float = Field(default=1e-4, gt=0, description="added to it, as a share of its mean diagonal")
    attention: bool = Field(default=True, description="whether the attention's output matrices are edited too")
    seed: int = Field(default=42, ge=0, description="of the ordinary tokens")


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
    seed: int = Field(default=42, ge=0, description="of the noise of the first picture")
