"""Scanning one model of a zoo, and what is kept of it."""

from __future__ import annotations

from pathlib import Path

from ..attacks import Placement
from ..errors import EncoderError
from ..jobs import Job, run_job
from ..policy import Policy, load_policy
from ..records import Evidence, Fault, Level
from ..report.words import strongest
from ..verdict import decide, score
from ..zoo.labels import Label
from .models import timed
from .results import ModelResult
from .triggers import is_text, recovered, tokens


def scan_model(task: tuple[Label, Job, Path]) -> ModelResult:
    """Scan one model as a user would; an error that is raised on purpose becomes part of the result.

    Args:
        task: its label, the scan, and the zoo's base, which the scan need not know.
    """
    label, job, base = task
    row = ModelResult(
        model=label.model,
        label=label.label,
        kind=label.kind,
        group=label.group,
        fingerprint=label.fingerprint,
        level="error",
        recovered=recovered(label, None, job.target, base),
        trigger_tokens=tokens(label),
        seconds=0.0,
    )
    return timed(row, lambda: _found(label, job, base))


def _found(label: Label, job: Job, base: Path) -> dict[str, object]:
    """The fields of a model's result that its scan fills."""
    place = Placement.parse(label.mode).putting(label.triggers[0], job.seed) if is_text(label) else None
    report = run_job(job, place_trigger=place).report
    values = [encoder.fingerprint for encoder in report.target.encoders]
    if label.fingerprint not in values:
        raise EncoderError(
            f"the model that its label speaks of ({label.fingerprint[:12]})",
            ", ".join(value[:12] for value in values),
            "Build the zoo again.",
        )
    several = len(values) > 1
    candidate = strongest(report)
    return {
        "level": report.verdict.level.name.lower(),
        "score": score(load_policy(job.policy), report.evidence, report.controls),
        "flagged": report.verdict.level >= Level.SUSPICIOUS,
        "controls": report.controls,
        "evidence": {f"{e.encoder}: {e.name}" if several else e.name: e.value for e in report.evidence},
        "stages": {stage: seconds for stage, seconds in report.timings.items() if stage != "total"},
        "trigger": report.trigger and report.trigger.text,
        "recovered": recovered(label, report.trigger, job.target, base),
        "sim": candidate and candidate.indicators.get("fidelity"),
        "error": "; ".join(f"{fault.stage}: {fault.message}" for fault in report.faults) or None,
    }


def judged(row: ModelResult, policy: Policy) -> ModelResult:
    """A scan that was kept, with the level and score that a policy gives to what it measured."""
    if row.level == "error":
        return row
    named = [(*key.rpartition(": "), value) for key, value in row.evidence.items()]
    evidence = [Evidence(encoder=of, name=name, value=value, direction="none", n=0) for of, _, name, value in named]
    measured = dict.fromkeys(e.encoder for e in evidence) if row.error else ()
    faults = [Fault(stage="scan", error="AmdetError", message=str(row.error), encoder=of) for of in measured]
    level = decide(policy, evidence, faults, row.controls).level
    news = {
        "level": level.name.lower(),
        "score": score(policy, evidence, row.controls),
        "flagged": level >= Level.SUSPICIOUS,
    }
    return row.model_copy(update=news)
