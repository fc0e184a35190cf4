"""The one composition of a scan: every stage yields evidence or a fault, the policy decides at the end.

It knows nothing about attacks, files or hosts. Each stage is a function of frozen inputs; randomness
comes from the seed in the config alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from . import contrast, evidence, forensics, inversion
from .config import AmdetConfig, ContrastConfig, LandscapeConfig, ScanConfig
from .contrast import Collapse, Found, Side, Tails
from .encoder import POSITION_TABLE, TextEncoder
from .errors import AmdetError, ConfigError
from .features import Feature
from .landscape import landscape
from .progress import Progress, silent
from .prompts import PromptSet
from .records import Candidate, Evidence, Fault, Forensics, Landscape, Trigger
from .verdict import Policy

CONTRAST_PROMPTS = 64
"""Held-out prompts for what is measured of a published feature beside the published indicators."""
LANDSCAPE_SEED, TAILS_SEED = 1_000_003, 2_000_003
"""Added to the seed of a scan, so that no two stages share random numbers."""
FEWEST_HELD_OUT = 4
"""Prompts without which nothing is measured."""
SEEDS_PER_SCAN, SEEDS_PER_LENGTH = 1000, 50
"""So far apart that scans of neighbouring seeds, and lengths within one, share no run."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One encoder to scan.

    Attributes:
        name: of the encoder within its file.
        suspect: the encoder.
        anchor: a trusted encoder with the same tensors, or None.
        identical: whether it is a trusted encoder, number for number; nothing is measured then.
    """

    name: str
    suspect: TextEncoder
    anchor: TextEncoder | None
    identical: bool = False


@dataclass(eq=False)
class Findings:
    """What the stages found about one encoder; filled stage by stage.

    Attributes:
        features: recovered features in the order in which they were found.
    """

    evidence: list[Evidence] = field(default_factory=list)
    features: list[Feature] = field(default_factory=list)
    forensics: Forensics | None = None
    trigger: Trigger | None = None
    faults: list[Fault] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def candidates(self) -> list[Candidate]:
        """Records of the features."""
        return [feature.candidate for feature in self.features]


def plan(policy: Policy, preset: str, seed: int) -> ScanConfig:
    """The settings of a preset for a policy.

    A policy of the paper runs the published schedule; the preset quick looks at its gates every 20 steps
    instead of every 2, which is what takes the time on a CPU.

    Raises:
        ConfigError: the preset is not known, or the seed is negative.
    """
    if policy.method != "contrast":
        every = 20 if preset == "quick" else 2
        published = AmdetConfig(check_every=every)
        if policy.method == "amdet-paper":
            published = AmdetConfig(check_every=every, weight_deviation=1.0, weight_anchor=5.0, epoch_break=None)
        return ScanConfig(seed=seed, preset=preset, amdet=published)
    around = LandscapeConfig(grid=19, radius=None)
    if preset == "quick":
        return ScanConfig(seed=seed, preset=preset, contrast=ContrastConfig(vectors=(1,), seeds=1), landscape=around)
    if preset == "thorough":
        return ScanConfig(
            seed=seed, preset=preset, contrast=ContrastConfig(seeds=4), amdet=AmdetConfig(), landscape=around
        )
    return ScanConfig(seed=seed, preset=preset, contrast=ContrastConfig(vectors=(1, 5)), landscape=around)


def stages(config: ScanConfig, encoders: int = 1) -> dict[str, int]:
    """How often each stage of a scan will report to ``progress``; a search that succeeds early runs fewer."""
    plan = {"forensics": 1}
    if config.contrast is not None:
        plan |= {"encode": 2, "landscape": len(config.contrast.vectors), "literal trigger": 1}
        plan |= {f"contrast k={count}": config.contrast.seeds for count in config.contrast.vectors}
    if config.amdet is not None:
        plan["inversion"] = 1
    return {stage: encoders * runs for stage, runs in plan.items()}


def scan(
    subject: Subject,
    prompts: PromptSet,
    config: ScanConfig,
    policy: Policy,
    *,
    place_trigger: Callable[[str], str] | None = None,
    progress: Progress = silent,
) -> Findings:
    """Measure one encoder.

    An encoder that equals a trusted one is answered by that proof alone. Without an anchor nothing can
    be compared and no inversion runs; the policy then can't call it clean.

    Args:
        place_trigger: puts a known trigger into a prompt, to measure the fidelity of what was recovered
            (eq. 29); never used for anything else.

    Raises:
        ConfigError: too few prompts were held out.
    """
    found = Findings()
    tensors = len(subject.suspect.weights)
    found.evidence.append(evidence.identity(subject.identical, subject.name, tensors))
    if subject.identical or subject.anchor is None:
        return found
    fit, held_out = (part.prompts for part in prompts.first(config.prompt_limit).split())
    if len(held_out) < FEWEST_HELD_OUT:
        raise ConfigError(
            f"at least {FEWEST_HELD_OUT} prompts to measure on (a fifth of them, chosen by their text)",
            f"{len(held_out)} of {len(prompts)} from {prompts.source}",
            "Give more prompts; a few hundred typical ones are enough.",
        )
    stages = _Stages(subject, subject.anchor, fit, held_out, config, policy, place_trigger, progress, found)
    with _stage(found, subject.name, "forensics"):
        stages.forensics()
    if config.contrast is not None:
        with _stage(found, subject.name, "contrast"):
            stages.contrast(config.contrast)
    if config.amdet is not None:
        with _stage(found, subject.name, "inversion"):
            stages.published(config.amdet)
    return found


def surround(
    subject: Subject, feature: Feature, prompts: PromptSet, config: ScanConfig, progress: Progress = silent
) -> Landscape:
    """The loss surface around a recovered feature, under the loss by which it was found.

    Args:
        subject: the encoders between which it was found; an anchor is needed.
        config: of the scan that found it; its ``landscape`` says how finely to look.

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
        return _surface(_tails(sides, fit, config.contrast or ContrastConfig(), config), vectors, config, progress)
    published = config.amdet or AmdetConfig(vectors=len(vectors))
    pair = inversion.Pair(suspect, subject.anchor, published)
    placed = vectors + _position_rows(suspect, published)
    around = config.landscape or LandscapeConfig()
    return pair.landscape(placed, held_out, around, _generator(config, LANDSCAPE_SEED), progress)


def _generator(config: ScanConfig, offset: int) -> torch.Generator:
    return torch.Generator().manual_seed(config.seed + offset)


def _tails(
    sides: tuple[Side, Side], prompts: Sequence[str], settings: ContrastConfig, config: ScanConfig
) -> list[Tails]:
    """The few cut prompts on which landscapes are drawn and tokens are tried."""
    generator = _generator(config, TAILS_SEED)
    return contrast.cut_prompts(*sides, prompts, settings.prompt_tokens, settings.lead_prompts, generator)


def _surface(tails: Sequence[Tails], vectors: Tensor, config: ScanConfig, progress: Progress) -> Landscape:
    """The contrast around vectors ``(K, D)``."""
    around = (config.landscape or LandscapeConfig()).model_copy(update={"prompts": sum(map(len, tails))})
    generator = _generator(config, LANDSCAPE_SEED)
    return landscape(lambda points: -contrast.gaps(tails, points), vectors, around, generator, progress)


def _position_rows(encoder: TextEncoder, settings: AmdetConfig) -> Tensor:
    """What placed vectors ``(K, D)`` are more than embeddings that work in any prompt."""
    return encoder.weights[POSITION_TABLE][settings.insert_at : settings.insert_at + settings.vectors]


@contextmanager
def _stage(found: Findings, encoder: str, stage: str) -> Iterator[None]:
    """Time a stage, and record an error that it raises on purpose or that torch raises as a fault."""
    started = time.perf_counter()
    try:
        yield
    except (AmdetError, RuntimeError) as error:
        found.faults.append(Fault(stage=stage, error=type(error).__name__, message=str(error), encoder=encoder))
    found.timings[stage] = time.perf_counter() - started


@dataclass(frozen=True, eq=False)
class _Stages:
    """What all stages of one scan need, and where they put what they find."""

    subject: Subject
    anchor: TextEncoder
    fit: Sequence[str]
    held_out: Sequence[str]
    config: ScanConfig
    policy: Policy
    place_trigger: Callable[[str], str] | None
    progress: Progress
    found: Findings

    @property
    def suspect(self) -> TextEncoder:
        return self.subject.suspect

    def forensics(self) -> None:
        """Difference of the weights to the anchor's."""
        found = forensics.compare(self.suspect, self.anchor, encoder=self.subject.name, progress=self.progress)
        self.found.forensics = found
        self.found.evidence += forensics.evidence(found)

    def contrast(self, settings: ContrastConfig) -> None:
        """Anchor-relative inversion of every length, then real tokens as literal triggers."""
        sides = Side.of(self.suspect, self.fit, self.progress), Side.of(self.anchor, self.fit, self.progress)
        held_out = self.held_out[: settings.held_out]
        tails = _tails(sides, self.fit, settings, self.config)
        for count in settings.vectors:
            if self._one_length(settings, sides, tails, held_out, count) >= settings.enough:
                break
        if settings.literal_leads:
            self._literal(settings, sides, tails, held_out)

    def _one_length(
        self,
        settings: ContrastConfig,
        sides: tuple[Side, Side],
        tails: Sequence[Tails],
        held_out: Sequence[str],
        count: int,
    ) -> float:
        """The gap of the best of several seeds on held-out prompts, recorded with its landscape."""
        runs: list[tuple[Collapse, Found, int]] = []
        first = SEEDS_PER_SCAN * self.config.seed + SEEDS_PER_LENGTH * count
        for seed in range(first, first + settings.seeds):
            run = contrast.invert(*sides, self.fit, count, settings, seed=seed, progress=self.progress)
            runs.append((contrast.measure(*sides, held_out, run.vectors), run, seed))
        collapse, best, seed = max(runs, key=lambda run: run[0].gap)
        targets = torch.stack([measured.target for measured, _, _ in runs])
        indicators = {
            "gap": collapse.gap,
            "suspect_collapse": collapse.suspect,
            "anchor_collapse": collapse.anchor,
            "smallest_gap_of_seeds": min(run[0].gap for run in runs),
        }
        surface = None
        if self.config.landscape is not None:
            surface = _surface(tails, best.vectors, self.config, self.progress)
            indicators["positive_share"] = surface.positive_share
        self.found.evidence.append(evidence.gap(f"gap_k{count}", collapse, self.subject.name))
        if len(runs) > 1:
            self.found.evidence.append(evidence.same_target(f"same_target_k{count}", targets, self.subject.name))
        self._keep("contrast", best.vectors, seed, best.loss, indicators, surface, held_out)
        return collapse.gap

    def _literal(
        self, settings: ContrastConfig, sides: tuple[Side, Side], tails: Sequence[Tails], held_out: Sequence[str]
    ) -> None:
        """Try real tokens: those nearest to the features, and those whose row of the table moved."""
        vectors = torch.cat([feature.vectors for feature in self.found.features])
        near = evidence.nearest_tokens(self.suspect, vectors, settings.literal_leads).flatten().tolist()
        rows = self.found.forensics.rows if self.found.forensics else ()
        moved = [row.token_id for row in rows if row.token_id < len(self.suspect.tokenizer)]
        leads = list(dict.fromkeys(near + moved))
        token, collapse = evidence.best_token(*sides, tails, held_out, leads, self.progress)
        self.found.evidence.append(evidence.gap("literal_gap", collapse, self.subject.name))
        if collapse.gap >= self.policy.literal_gap:
            by = "a neighbour of the recovered feature" if token in near else "a row of the token table that moved"
            self.found.trigger = evidence.trigger(self.suspect.tokenizer, [token], collapse, by, self.subject.name)

    def published(self, settings: AmdetConfig) -> None:
        """The inversion as published; its stop rule is the policy's, where the policy is one of the paper's."""
        gates = self.policy.findings if self.policy.method != "contrast" else ()
        result = inversion.invert(
            self.suspect,
            self.anchor,
            self.fit,
            self.held_out,
            settings,
            self.config.landscape if gates and self.config.landscape else LandscapeConfig(grid=25),
            seed=self.config.seed,
            accept=lambda holds: any(finding.holds(holds) for finding in gates),
            progress=self.progress,
        )
        self.found.evidence += evidence.published(result.indicators, len(self.held_out), self.subject.name)
        self._keep(
            "amdet",
            result.vectors - _position_rows(self.suspect, settings),
            self.config.seed,
            result.loss,
            result.indicators,
            result.landscape,
            self.held_out[:CONTRAST_PROMPTS],
            fidelity_at=settings.insert_at,
        )

    def _keep(
        self,
        method: Literal["contrast", "amdet"],
        vectors: Tensor,
        seed: int,
        loss: tuple[float, ...],
        indicators: Mapping[str, float],
        surface: Landscape | None,
        held_out: Sequence[str],
        fidelity_at: int | None = None,
    ) -> None:
        """Record a candidate with its tensors and, where the trigger is known, its fidelity."""
        known = {}
        if self.place_trigger is not None:
            known["fidelity"] = evidence.fidelity(self.suspect, held_out, self.place_trigger, vectors, fidelity_at)
        near = evidence.nearest_tokens(self.suspect, vectors, 1)[:, 0].tolist()
        candidate = Candidate(
            encoder=self.subject.name,
            method=method,
            vectors=len(vectors),
            seed=seed,
            steps=len(loss),
            loss=loss,
            indicators={**indicators, **known},
            nearest_tokens=tuple(self.suspect.tokenizer.text([token]) for token in near),
            landscape=surface,
        )
        target = contrast.outputs(self.suspect, held_out, vectors).mean(0)
        self.found.features.append(Feature(candidate, vectors, target))
