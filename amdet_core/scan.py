"""The one composition of a scan: every stage yields evidence or a fault, the policy decides at the end.

It knows nothing about attacks, files or hosts; the stages themselves are in :mod:`.pipeline`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from . import evidence
from .config import (
    AmdetConfig,
    ContrastConfig,
    LandscapeConfig,
    MovedConfig,
    PatternConfig,
    ScanConfig,
    SearchConfig,
    SweepConfig,
)
from .errors import AmdetError, ConfigError
from .findings import Findings, Subject
from .pipeline import FURTHER, Stages
from .policy import IDENTITY, PUBLISHED, Policy
from .progress import Progress, silent
from .prompts import PromptSet
from .records import Fault

LOOKS = ("sweep", "sweep, look 2", "sweep, look 3")
"""What progress is told of each look of a sweep."""
CONTROLS = 19
"""Honest fine-tunes that the preset thorough judges by: as many as one false positive in 20 can be told with."""
FEWEST_HELD_OUT = 4
"""Prompts without which nothing is measured."""


def plan(policy: Policy, preset: str, seed: int) -> ScanConfig:
    """The settings of a preset for a policy.

    The preset quick tries tokens, texts and patterns, fewer of them than the others, and inverts one vector where
    a token or text stands out: inversions are most of the work. The preset thorough also judges by honest controls.
    A policy of the paper runs the published schedule; the preset quick looks at its gates every 20 steps
    instead of every 2, which is what takes the time on a CPU.

    Raises:
        ConfigError: the preset is not known, or the seed is negative.
    """
    if policy.method in PUBLISHED:
        every = 20 if preset == "quick" else 2
        published = AmdetConfig(check_every=every)
        if policy.method == "amdet-paper":
            published = AmdetConfig(check_every=every, weight_deviation=1.0, weight_anchor=5.0, epoch_break=None)
        return ScanConfig(seed=seed, preset=preset, amdet=published)
    search, around = SearchConfig(), LandscapeConfig(grid=19, radius=None)
    if preset == "quick":
        return ScanConfig(
            seed=seed,
            preset=preset,
            sweep=SweepConfig(rows=1024, kept=(256, 32), leads=4),
            moved=MovedConfig(),
            patterns=PatternConfig(),
            contrast=ContrastConfig(vectors=(1,), seeds=1, always=False),
            search=search,
            landscape=around,
        )
    return ScanConfig(
        seed=seed,
        preset=preset,
        sweep=SweepConfig(),
        moved=MovedConfig(),
        patterns=PatternConfig(),
        contrast=ContrastConfig(seeds=4) if preset == "thorough" else ContrastConfig(vectors=(1, 5)),
        search=search,
        landscape=around,
        controls=CONTROLS if preset == "thorough" else 0,
    )


def stages(config: ScanConfig, encoders: int = 1) -> dict[str, int]:
    """How often each stage of a scan will report to ``progress``; a search that succeeds early runs fewer."""
    plan = {"forensics": 1}
    if config.sweep is not None or config.contrast is not None:
        plan["encode"] = 2
    if config.patterns is not None:
        plan["patterns"] = 6
    for sweep in (config.sweep, config.moved and config.moved.looks):
        for stage in LOOKS if sweep is not None else ():
            plan[stage] = plan.get(stage, 0) + 1
    if config.search is not None:
        plan["trigger search"] = 1
    if config.contrast is not None:
        plan["landscape"] = len(config.contrast.vectors)
        plan |= {f"contrast k={count}": config.contrast.seeds for count in config.contrast.vectors}
        if config.search is not None:
            plan[FURTHER] = config.contrast.targets - 1
    if config.amdet is not None:
        plan["inversion"] = 1
    plan["names"] = 1
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

    An encoder that equals a trusted one is answered by that proof alone. Without an anchor the suspect is compared
    with itself without a trigger; what is measured so has names of its own.

    Args:
        place_trigger: puts a known trigger into a prompt, to measure the fidelity of what was recovered
            (eq. 29); never used for anything else.

    Raises:
        ConfigError: too few prompts were held out.
    """
    found = Findings()
    tensors = len(subject.suspect.weights)
    found.evidence.append(evidence.identity(subject.identical, subject.name, tensors))
    if subject.identical or (subject.anchor is None and config.sweep is None and config.contrast is None):
        return found
    fit, held_out = (part.prompts for part in prompts.first(config.prompt_limit).split())
    if len(held_out) < FEWEST_HELD_OUT:
        raise ConfigError(
            f"at least {FEWEST_HELD_OUT} prompts to measure on (a fifth of them, chosen by their text)",
            f"{len(held_out)} of {len(prompts)} from {prompts.source}",
            "Give more prompts; a few hundred typical ones are enough.",
        )
    stages, anchor = Stages(subject, fit, held_out, config, policy, place_trigger, progress, found), subject.anchor
    plan: list[tuple[str, Callable[[], None]]] = []
    if anchor is not None:
        plan.append(("forensics", partial(stages.forensics, anchor)))
    if anchor is not None and config.contrast is not None:
        plan.append(("spread", stages.spread))
    if config.sweep is not None:
        plan.append(("sweep", partial(stages.sweep, config.sweep)))
    if config.moved is not None and anchor is not None:
        plan.append(("moved", partial(stages.moved, config.moved)))
    if config.patterns is not None and anchor is not None:
        plan.append(("patterns", partial(stages.patterns, config.patterns)))
    if config.contrast is not None:
        plan.append(("contrast", partial(stages.contrast, config.contrast)))
    if config.sweep and config.contrast and config.contrast.always and config.search and anchor is None:
        plan.append(("reset", partial(stages.reset, config.sweep, config.contrast, config.search)))
    if config.search is not None:
        plan.append(("search", partial(stages.search, config.search)))
    if config.amdet is not None and anchor is not None:
        plan.append(("inversion", partial(stages.published, config.amdet, anchor)))
    plan.append(("names", partial(stages.name_outputs, (config.search or SearchConfig()).least_gap)))
    for name, stage in plan:
        with timed(found, subject.name, name):
            stage()
    if anchor is None:
        found.evidence = [one if one.name == IDENTITY else evidence.alone(one) for one in found.evidence]
    return found


@contextmanager
def timed(found: Findings, encoder: str, stage: str) -> Iterator[None]:
    """Time a stage, and record an error that it raises on purpose or that torch raises as a fault."""
    started = time.perf_counter()
    try:
        yield
    except (AmdetError, RuntimeError) as error:
        found.faults.append(Fault(stage=stage, error=type(error).__name__, message=str(error), encoder=encoder))
    found.timings[stage] = time.perf_counter() - started
