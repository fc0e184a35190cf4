"""The stages of a scan; each measures one encoder and leaves evidence, features or a trigger.

They know nothing about attacks, files or hosts. Randomness comes from the seed in the config alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from . import contrast, evidence, forensics, inversion
from . import patterns as grammar
from . import sweep as token_sweep
from . import tails as carriers
from .calibration import share
from .concepts import likenesses, likenesses_of
from .config import (
    AmdetConfig,
    ContrastConfig,
    LandscapeConfig,
    MovedConfig,
    PatternConfig,
    ScanConfig,
    SearchConfig,
    SweepConfig,
)  # fmt: skip
from .contrast import Collapse, Found
from .encoder import TextEncoder
from .evidence import Interval, Tried
from .features import Feature
from .findings import Findings, Subject, different
from .literal import MOST, Ids, Texts, distinct
from .policy import PUBLISHED, Policy
from .progress import Progress
from .records import Candidate, Landscape, Place
from .surface import cut_tails, position_rows, surface
from .sweep import Swept
from .tails import Side

CONTRAST_PROMPTS = 64
"""Held-out prompts for what is measured of a published feature beside the published indicators."""
SWEEP_SEED, SEARCH_SEED, PATTERNS_SEED, MOVED_SEED, RESET_SEED = 3_000_017, 4_000_037, 5_000_011, 6_000_011, 7_000_003
"""Added to the seed of a scan, so that no two stages share random numbers; see also :mod:`.surface`."""
SAME = 0.05
"""Gaps at the end of long prompts and of any that differ by less are the same."""
FEWEST_LONG = 8
"""Long held-out prompts without which nothing is measured on them alone."""
MOVED_LEADS = 32
"""Tokens whose rows moved most from which a search for a text begins."""
READ_OTHERWISE = "the token or character that leads this encoder farthest from its anchor"
"""How a trigger was found that does not make outputs alike, in words."""
FURTHER, RESET = "further targets", "without the first MLP"
"""What progress is told while a search goes on away from what it found, and of a suspect that lacks a part."""
Run = tuple[Collapse, Found, int]
"""What vectors do to held-out prompts, the vectors, and the seed of the run that found them."""
SEEDS_PER_SCAN, SEEDS_PER_LENGTH = 1000, 50
"""So far apart that scans of neighbouring seeds, and lengths within one, share no run."""


@dataclass(frozen=True, eq=False)
class Stages:
    """The stages of one scan: what they need, and where they put what they find."""

    subject: Subject
    fit: Sequence[str]
    held_out: Sequence[str]
    config: ScanConfig
    policy: Policy
    place_trigger: Callable[[str], str] | None
    progress: Progress
    found: Findings

    @cached_property
    def sides(self) -> tuple[Side, Side]:
        """Suspect and anchor with their centres; without an anchor the suspect, deaf, in its place."""
        suspect, anchor = Side.of(self.suspect, self.fit, self.progress), self.subject.anchor
        return suspect, replace(suspect, deaf=True) if anchor is None else Side.of(anchor, self.fit, self.progress)

    @cached_property
    def moved_tokens(self) -> list[int]:
        """Tokens whose row of the table moved, of those that a prompt can hold, the one that moved most first."""
        if self.subject.anchor is None:
            return []
        possible = {ids[0] for ids in token_sweep.single_tokens(self.suspect)}
        return [token for token in forensics.moved_tokens(self.suspect, self.subject.anchor) if token in possible]

    @property
    def suspect(self) -> TextEncoder:
        """The encoder that is scanned."""
        return self.subject.suspect

    def forensics(self, anchor: TextEncoder) -> None:
        """Difference of the weights to the anchor's."""
        found = forensics.compare(self.suspect, anchor, encoder=self.subject.name, progress=self.progress)
        self.found.forensics = found
        self.found.evidence += forensics.evidence(found)

    def spread(self) -> None:
        """How far apart clean prompts are read, against the anchor, and how differently."""
        name = self.subject.name
        self.found.evidence += [evidence.spread(*self.sides, name), evidence.drift(*self.sides, name)]

    def sweep(self, settings: SweepConfig) -> None:
        """Tokens and every character, tried as triggers."""
        encoder = self.suspect
        moved = [] if settings.rows is None else self.moved_tokens[: settings.rows]
        tokens = tuple((token,) for token in moved) or token_sweep.single_tokens(encoder)
        candidates = tokens + token_sweep.characters(encoder.tokenizer)
        seed = self.config.seed + SWEEP_SEED
        swept = self._swept(candidates, settings, seed)
        leads = self._measured_leads(swept, settings)
        self.found.swept += leads
        self.found.evidence += evidence.of_sweep(leads, self.subject.name)
        self.found.sweep = evidence.sweep_record(swept, leads, encoder.tokenizer, self.subject.name)

    def moved(self, settings: MovedConfig) -> None:
        """Texts of the tokens whose rows moved most, tried as triggers; what the best one needs is kept as well."""
        tokens = self.moved_tokens[: settings.rows]
        if len(tokens) < min(settings.lengths):
            return
        looks, seed = settings.looks, self.config.seed + MOVED_SEED
        swept = self._swept(token_sweep.texts(tokens, settings, seed), looks, seed)
        leads = self._measured_leads(swept, looks)
        needed = token_sweep.shortened(*self.sides, self.fit, swept, looks, seed=seed)
        self.found.texts += [*leads, *self._measured_leads(needed, looks)]
        self.found.evidence += evidence.of_leads("moved", leads, self.subject.name)

    def reset(self, sweep: SweepConfig, contrast: ContrastConfig, search: SearchConfig) -> None:
        """Texts that take prompts over in the suspect without its first MLP, tried on the suspect as it is.

        Most outputs to which an honest encoder can be led need that MLP, and stand before a planted one where there is
        no anchor that shares them; most of what was planted by training stands without it.
        """
        rest = replace(self.subject, suspect=self.suspect.without_mlp(0))
        config = self.config.model_copy(update={"landscape": None})  # nobody looks at the copy's
        other = replace(self, subject=rest, config=config, progress=self._telling(RESET), found=Findings())
        other.sweep(sweep)
        other.contrast(contrast)
        other.search(search)
        looks, texts = MovedConfig().looks, tuple(trigger.token_ids for trigger in other.found.triggers)
        if texts:
            self.found.texts += self._measured_leads(self._swept(texts, looks, self.config.seed + RESET_SEED), looks)

    def _swept(self, candidates: Sequence[tuple[int, ...]], settings: SweepConfig, seed: int) -> Swept:
        """Candidates in looks at fewer and fewer of them."""
        swept = token_sweep.sweep(*self.sides, self.fit, candidates, settings, seed=seed, progress=self.progress)
        if len(self._prompts("long", settings.held_out)) < FEWEST_LONG:  # nothing can be said of them alone
            swept = replace(swept, places=tuple("end" if place == "long" else place for place in swept.places))
        return swept

    def _measured_leads(self, swept: Swept, settings: SweepConfig) -> list[Tried]:
        """Those that stand out, on held-out prompts."""
        return evidence.tried(
            *self.sides,
            swept,
            lambda place: self._prompts(place, settings.held_out),
            settings.leads,
            self.subject.taught,
        )

    def patterns(self, settings: PatternConfig) -> None:
        """Sentences of many grammatical patterns, tried as triggers."""
        seed = self.config.seed + PATTERNS_SEED
        tried = grammar.try_patterns(*self.sides, settings, seed=seed, progress=self.progress)
        self.found.evidence += evidence.of_patterns(tried, self.subject.name)
        self.found.patterns = evidence.pattern_record(tried, self.subject.name)

    def search(self, settings: SearchConfig) -> None:
        """The literal trigger of every output to which another stage found prompts to be led.

        Those texts count that lead most prompts there, or that of the strongest output where none does: a backdoor has
        weaker outputs beside its target, to which its parts point. Where there is none, it is the token that reads
        as something else than in the anchor.
        """

        def name(ids: Ids, collapse: Collapse, found_by: str, success: tuple[float, Interval] | None) -> None:
            made = evidence.trigger(self.suspect.tokenizer, ids, collapse, found_by, self.subject.name, success)
            self.found.triggers.append(made)

        if goals := self.found.targets(settings):
            texts = self._texts(settings)
            found = [texts.towards(goal) for goal in goals]
            best = max(found, key=lambda text: text.collapse.gap)
            self.found.evidence.append(evidence.gap("literal_gap", best.collapse, self.subject.name))
            self.found.evidence.append(evidence.literal_success(best.success, best.collapse.n, self.subject.name))
            for text in distinct([text for text in found if text.success[0] >= MOST] or found[:1]):
                if text.collapse.gap >= self.policy.literal_gap:
                    name(text.ids, text.collapse, text.found_by, text.success)
        if not self.found.triggers and (read := self._read_otherwise()) is not None:
            name(read.ids, read.collapse, READ_OTHERWISE, None)

    def _read_otherwise(self) -> Tried | None:
        """The token or character that leads farthest from the anchor, where that is farther than in honest encoders."""
        if self.subject.anchor is None:
            return None
        spread = share(carriers.spread(*self.sides))
        able = [one for one in self.found.swept if not one.declared]
        far = [one for one in able if spread * one.departure >= self.policy.literal_departure]
        return max(far, key=lambda one: one.departure, default=None)

    def _texts(self, settings: SearchConfig) -> Texts:
        """What the stages so far have to offer to a search for a text."""
        return Texts(
            self.sides,
            self.fit,
            self._prompts,
            self._leads(),
            self.found.tried,
            settings,
            self.config.seed + SEARCH_SEED,
            self.policy.literal_gap,
            self.progress,
        )

    def _leads(self) -> list[int]:
        """Tokens from which a trigger may be made, the most promising first."""
        near = [evidence.nearest_tokens(self.suspect, f.vectors, 4).flatten().tolist() for f in self.found.features]
        singles = sorted((t for t in self.found.swept if len(t.ids) == 1), key=lambda t: -t.departure)
        tokens = (token for row in near for token in row)
        return list(dict.fromkeys([*(lead.ids[0] for lead in singles), *self.moved_tokens[:MOVED_LEADS], *tokens]))

    def contrast(self, settings: ContrastConfig) -> None:
        """Anchor-relative inversion of every length, and away from what it found."""
        if not settings.always and not self.found.targets(self.config.search or SearchConfig()):
            return
        for count in settings.vectors:
            if self._one_length(settings, count) >= settings.enough:
                break
        if self.config.search is not None:
            self._further(settings, count, self.config.search)

    def _further(self, settings: ContrastConfig, count: int, search: SearchConfig) -> None:
        """Other outputs to which as many vectors lead, until there is none."""
        progress = self._telling(FURTHER)
        seed = self._first_seed(count) + settings.seeds
        while 0 < len(known := self.found.targets(search)) < settings.targets:
            away = [goal.target for goal in known]
            run = contrast.invert(*self.sides, self.fit, count, settings, seed=seed, away=away, progress=progress)
            collapse = self._measured(run, settings.held_out)
            if collapse.gap < search.least_gap or not different(collapse, known):
                break
            self._keep_best(settings, [(collapse, run, seed)])
            seed += 1

    def _telling(self, stage: str) -> Progress:
        """Progress that is told of one stage, whatever others its work consists of."""
        return lambda _, *done: self.progress(stage, *done)

    def _first_seed(self, count: int) -> int:
        return SEEDS_PER_SCAN * self.config.seed + SEEDS_PER_LENGTH * count

    def _one_length(self, settings: ContrastConfig, count: int) -> float:
        """The gap of the best of several seeds on held-out prompts."""
        runs: list[Run] = []
        first = self._first_seed(count)
        for seed in range(first, first + settings.seeds):
            run = contrast.invert(*self.sides, self.fit, count, settings, seed=seed, progress=self.progress)
            runs.append((self._measured(run, settings.held_out), run, seed))
        collapse = self._keep_best(settings, runs)
        self.found.evidence.append(evidence.gap(f"gap_k{count}", collapse, self.subject.name))
        if len(runs) > 1:
            targets = torch.stack([measured.target for measured, _, _ in runs])
            self.found.evidence.append(evidence.same_target(f"same_target_k{count}", targets, self.subject.name))
        return collapse.gap

    def _keep_best(self, settings: ContrastConfig, runs: Sequence[Run]) -> Collapse:
        """Record the best of several runs with its landscape."""
        collapse, best, seed = max(runs, key=lambda run: run[0].gap)
        self.found.goals.append(collapse)
        indicators = {
            "gap": collapse.gap,
            "suspect_collapse": collapse.suspect,
            "anchor_collapse": collapse.anchor,
            "smallest_gap_of_seeds": min(run[0].gap for run in runs),
        }
        around = None
        if self.config.landscape is not None:
            tails = cut_tails(self.sides, self.fit, settings, self.config)
            around = surface(tails, best.vectors, self.config, self.progress)
            indicators["positive_share"] = around.positive_share
        held_out = self._prompts(collapse.place, settings.held_out)
        self._keep("contrast", best.vectors, seed, best.loss, indicators, around, held_out, at=collapse.place)
        return collapse

    def _measured(self, run: Found, count: int) -> Collapse:
        """What vectors do at the end of held-out prompts, or of long ones alone where that is clearly more."""
        places: tuple[Place, ...] = ("end", "long")
        held_out = {place: self._prompts(place, count) for place in places}
        end, *long = (
            contrast.measure(*self.sides, prompts, run.vectors, place=place)
            for place, prompts in held_out.items()
            if place == "end" or len(prompts) >= FEWEST_LONG
        )
        return next((collapse for collapse in long if collapse.gap > end.gap + SAME), end)

    def _prompts(self, place: Place, count: int) -> list[str]:
        """Held-out prompts in which a trigger can stand in a place."""
        return carriers.fitting(self.suspect, self.held_out, place, count)

    def published(self, settings: AmdetConfig, anchor: TextEncoder) -> None:
        """The inversion as published; its stop rule is the policy's, where the policy is one of the paper's."""
        gates = self.policy.findings if self.policy.method in PUBLISHED else ()
        result = inversion.invert(
            self.suspect,
            anchor,
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
            result.vectors - position_rows(self.suspect, settings),
            self.config.seed,
            result.loss,
            result.indicators,
            result.landscape,
            self.held_out[:CONTRAST_PROMPTS],
            fidelity_at=settings.insert_at,
        )

    def name_outputs(self, least: float) -> None:
        """What the outputs of the features that stand out look like, in words, and tokens that read otherwise."""
        for i, feature in enumerate(self.found.features):
            gap = feature.candidate.indicators.get("gap")
            if gap is None or gap >= least:
                self.progress("names", i, len(self.found.features), {})
                named = {"looks_like": likenesses(self.suspect, feature.target)}
                self.found.features[i] = replace(feature, candidate=feature.candidate.model_copy(update=named))
        for i, trigger in enumerate(self.found.triggers):
            if trigger.found_by == READ_OTHERWISE:
                named = {"looks_like": likenesses_of(self.suspect, trigger.text)}
                self.found.triggers[i] = trigger.model_copy(update=named)

    def _keep(
        self,
        method: Literal["contrast", "amdet"],
        vectors: Tensor,
        seed: int,
        loss: tuple[float, ...],
        indicators: Mapping[str, float],
        around: Landscape | None,
        held_out: Sequence[str],
        fidelity_at: int | None = None,
        at: Place = "end",
    ) -> None:
        """Record a candidate with its tensors and, where the trigger is known, its fidelity."""
        known = {}
        place = self.place_trigger
        if place is not None and (carried := [prompt for prompt in held_out if place(prompt) != prompt]):
            known["fidelity"] = evidence.fidelity(self.suspect, carried, place, vectors, fidelity_at, at)
        near = evidence.nearest_tokens(self.suspect, vectors, 1)[:, 0].tolist()
        candidate = Candidate(
            encoder=self.subject.name,
            method=method,
            vectors=len(vectors),
            place=at,
            seed=seed,
            steps=len(loss),
            loss=loss,
            indicators={**indicators, **known},
            nearest_tokens=tuple(self.suspect.tokenizer.text([token]) for token in near),
            landscape=around,
        )
        target = carriers.outputs(self.suspect, held_out, vectors, at).mean(0)
        self.found.features.append(Feature(candidate, vectors, target))
