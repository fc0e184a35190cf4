"""Settings of a scan and of the prompt guard.

"paper" is arXiv 2512.00343, "code" its released implementation (docs/method.md lists where they differ).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Config, Seed


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
    always: bool = Field(default=True, description="false: only where a token or text stood out that was tried before")


class SweepConfig(Config):
    """Every token tried as a trigger, in looks at fewer and fewer of them with more and more prompts."""

    rows: int | None = Field(
        default=None, ge=1, description="tokens tried, those whose rows moved most, all where none did; null: all"
    )
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


class MovedConfig(Config):
    """Texts of the tokens whose rows moved most, tried as triggers: a trigger's tokens were trained at every step."""

    rows: int = Field(default=16, ge=2, le=32, description="tokens of which texts are made, those that moved most")
    lengths: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(3, 4, 6, 8, 10, 12, 14, 16), min_length=1, description="of the texts, in tokens that moved most"
    )
    orders: int = Field(default=32, ge=1, description="in which tokens of each length stand")
    looks: SweepConfig = Field(
        default=SweepConfig(kept=(64, 16), leads=4), description="prompts and survivors of each look, as for tokens"
    )


class PatternConfig(Config):
    """Sentences of every pattern of a small grammar, tried as triggers."""

    sentences: int = Field(default=8, ge=3, description="of each pattern")
    held_out: int = Field(default=64, ge=8, description="fresh sentences of those that do most")


class SearchConfig(Config):
    """From leads to the literal trigger: a beam of token sequences, exchanges by gradient, and dropping."""

    least_gap: float = Field(default=0.5, description="gap of another stage's finding from which a trigger is searched")
    least_departure: float = Field(default=0.2, description="without one, departure of what a stage tried")
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

    seed: Seed = Field(default=42, description="of every random choice; code 42")
    preset: Literal["quick", "standard", "thorough"] = Field(default="standard", description="how much work")
    prompt_limit: int = Field(default=4000, ge=40, description="prompts used, fit and held-out; paper 4,000")
    sweep: SweepConfig | None = Field(default=None, description="null: tokens are not tried one by one")
    moved: MovedConfig | None = Field(default=None, description="null: texts of tokens that moved are not tried")
    patterns: PatternConfig | None = Field(default=None, description="null: grammatical patterns are not tried")
    search: SearchConfig | None = Field(default=None, description="null: no trigger of several tokens is searched")
    contrast: ContrastConfig | None = Field(default=None, description="null: this inversion is not run")
    amdet: AmdetConfig | None = Field(default=None, description="null: the published inversion is not run")
    landscape: LandscapeConfig | None = Field(
        default=LandscapeConfig(), description="of the best feature; null: only where a stop rule asks for it"
    )
    controls: int = Field(
        default=0, ge=0, le=999, description="honest fine-tunes of the anchor that are made and scanned to judge by"
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
    seed: Seed = Field(default=4, description="of the clean prompts")
