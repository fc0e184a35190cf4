"""Honest controls: fine-tunes of the user's own anchor, scanned as the suspect is.

How far honest encoders go in every kind of evidence was learnt on a small encoder. For another one that is known only
where honest changes of it were scanned, and none is at hand but those that can be made: by several objectives, of all
weights or a part of them, until clean prompts are read as differently from the anchor as the suspect reads them.
Weights say less: those of an encoder that was trained to stay as it was but for a trigger move far while what it says
does not.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from types import MappingProxyType

from .attacks import benign
from .config import FineTuneConfig, ScanConfig
from .encoder import TextEncoder
from .errors import AmdetError
from .findings import Findings, Subject
from .memory import OUT_OF_MEMORY
from .policy import CONTROLS_DRIFT, Policy
from .progress import Progress, silent
from .prompts import PromptSet
from .records import Control, Fault
from .scan import scan
from .scan import stages as of_scan
from .tails import Side, drift

STAGE = "controls"
"""Their name in timings and faults."""
HOW = tuple(product(("all", "lora", "layers"), ("contrastive", "distillation", "masked-words")))
"""What learns, and for what: taken in turn."""
SHARES = (1.0, 0.5, 1.5)
"""How far controls drift, as multiples of the suspect's drift: one after each round of :data:`HOW`."""
DRIFT_PROMPTS, HALVINGS = 128, 7
"""Clean prompts on which drift is measured, and how often the share of a change that drifts as far is narrowed down."""
TRAINING = FineTuneConfig(steps=60, batch=16, learning_rate=2e-5, precision="auto")
"""The first try at every control."""
TRIES = 3
"""Trainings of one control, each faster than the one before, until it drifts as far as wanted."""
FASTER = 10.0
"""Most by which the next try is faster than the one before."""


def stages(config: ScanConfig, encoders: int = 1) -> dict[str, int]:
    """How often each control, made and scanned, will report to ``progress``."""
    runs = encoders * (1 + sum(of_scan(_settings(config)).values()))
    return {_title(number, config.controls): runs for number in range(config.controls)}


def scan_controls(
    subject: Subject, prompts: PromptSet, config: ScanConfig, policy: Policy, found: Findings, *, progress: Progress
) -> None:
    """Make and scan ``config.controls`` controls of a subject that has an anchor, where it is not the anchor itself.

    Args:
        found: takes the controls, and a fault for each way in which some could not be made or scanned.
    """
    if not config.controls or subject.anchor is None or subject.identical:
        return
    started = time.perf_counter()
    texts = prompts.split()[0].prompts[:DRIFT_PROMPTS]
    apart = drift(Side.of(subject.suspect, texts), Side.of(subject.anchor, texts))
    failed = defaultdict[tuple[str, str], list[str]](list)
    for number in range(config.controls):
        told = _told(progress, _title(number, config.controls))
        try:
            encoder, made_by = control(subject.anchor, apart, number, prompts, config.seed, told)
            scanned = scan(replace(subject, suspect=encoder), prompts, _settings(config), policy, progress=told)
        except (AmdetError, RuntimeError) as why:
            failed[type(why).__name__, str(why)].append(str(number + 1))
            continue
        for fault in scanned.faults:
            failed[fault.error, f"{fault.stage}: {fault.message}"].append(str(number + 1))
        evidence = {one.name: one.value for one in scanned.evidence}
        found.controls.append(Control(encoder=subject.name, made_by=made_by, evidence=evidence))
    for (error, message), numbers in failed.items():
        said = f"honest control {', '.join(numbers)} of {config.controls}: {message}"
        found.faults.append(Fault(stage=STAGE, error=error, message=said, encoder=subject.name))
    found.timings[STAGE] = time.perf_counter() - started


def control(
    anchor: TextEncoder, apart: float, number: int, prompts: PromptSet, seed: int, progress: Progress = silent
) -> tuple[TextEncoder, str]:
    """One honest fine-tune of the anchor, and in words how it was made.

    It is trained until it drifts as far as it should, and taken back where it went farther: half-way to the anchor is
    what a merge with it is. Where there is no room to train what should learn, low-rank additions do.

    Args:
        apart: drift of the suspect.
        number: of the control; it decides what learns, for what, and how far.

    Raises:
        ConfigError: too few prompts.
        NumericalError: the training diverged.
        torch.OutOfMemoryError: there is no room for those either.
    """
    trains, objective = HOW[number % len(HOW)]
    wanted = min(CONTROLS_DRIFT, apart * SHARES[number // len(HOW) % len(SHARES)])
    settings = TRAINING.model_copy(update={"trains": trains, "objective": objective, "seed": seed + 1 + number})
    texts = prompts.split()[0].prompts[:DRIFT_PROMPTS]
    tuned, reached, before = anchor, 0.0, Side.of(anchor, texts)
    for _ in range(TRIES):
        try:
            tuned = benign.fine_tune(anchor, prompts, settings, progress).apply(anchor)
        except OUT_OF_MEMORY:
            if settings.trains == "lora":
                raise
            settings = settings.model_copy(update={"trains": "lora"})
            continue
        reached = drift(Side.of(tuned, texts), before)
        if reached >= wanted:
            break
        faster = settings.learning_rate * min(FASTER, 1.5 * math.sqrt(wanted / max(reached, 1e-12)))
        settings = settings.model_copy(update={"learning_rate": faster})
    share = 1.0
    if reached > wanted:

        def near(share: float) -> bool:
            return drift(Side.of(benign.merge(anchor, tuned, share), texts), before) <= wanted

        share = _narrowed(near)
    kept = f", {share:.0%} of its change" if share < 1 else ""
    return benign.merge(anchor, tuned, share), f"{objective} fine-tune of {_WHAT[settings.trains]}{kept}"


def _narrowed(near: Callable[[float], bool]) -> float:
    """The largest share of a change that is near, to one part in so many halves."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if near(middle) else (low, middle)
    return low or high


_WHAT = {"all": "all weights", "layers": "all layers", "lora": "low-rank additions"}


def _settings(config: ScanConfig) -> ScanConfig:
    """How a control is scanned: as the suspect, without what no policy weighs."""
    return config.model_copy(update={"controls": 0, "landscape": None})


def _title(number: int, of: int) -> str:
    return f"control {number + 1} of {of}"


def _told(progress: Progress, title: str) -> Callable[..., None]:
    """Progress that gives all stages of one control its title."""

    def told(_: str, done: int, total: int, metrics: Mapping[str, float] = MappingProxyType({}), /) -> None:
        progress(title, done, total, metrics)

    return told
