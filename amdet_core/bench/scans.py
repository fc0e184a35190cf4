"""Scanning one model of a zoo, and what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from ..attacks import Placement
from ..errors import AmdetError, EncoderError
from ..jobs import Job, run_job
from ..records import Level, Trigger
from ..report.words import strongest
from ..storage import record_json
from ..tokenizer import WORD_END, clip_tokenizer
from ..verdict import load_policy, score
from ..zoo.labels import Label
from .results import ModelResult


def scan_model(task: tuple[Label, Job]) -> ModelResult:
    """Scan one model as a user would; an error that is raised on purpose becomes part of the result."""
    label, job = task
    started = time.perf_counter()
    row = ModelResult(
        model=label.model,
        label=label.label,
        kind=label.kind,
        group=label.group,
        fingerprint=label.fingerprint,
        level="error",
        recovered=recovered(label, None),
        seconds=0.0,
    )
    try:
        row = row.model_copy(update=_found(label, job))
    except AmdetError as error:
        row = row.model_copy(update={"error": str(error)})
    row = row.model_copy(update={"seconds": time.perf_counter() - started})
    # Rounded as it will be in the file, so that a run that was resumed gives the same metrics.
    return ModelResult.model_validate_json(record_json(row))


def _found(label: Label, job: Job) -> dict[str, object]:
    """The fields of a model's result that its scan fills."""
    place = Placement.parse(label.mode).putting(label.triggers[0], job.seed) if _is_text(label) else None
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
        "score": score(load_policy(job.policy), report.evidence),
        "flagged": report.verdict.level >= Level.SUSPICIOUS,
        "evidence": {f"{e.encoder}: {e.name}" if several else e.name: e.value for e in report.evidence},
        "trigger": report.trigger and report.trigger.text,
        "recovered": recovered(label, report.trigger),
        "sim": candidate and candidate.indicators.get("fidelity"),
        "error": "; ".join(f"{fault.stage}: {fault.message}" for fault in report.faults) or None,
    }


def _is_text(label: Label) -> bool:
    """Whether the trigger is a text that can be put into a prompt."""
    return bool(label.mode and label.triggers)


def recovered(label: Label, reported: Trigger | None) -> Literal["exact", "part", "none"] | None:
    """How much of a true trigger a scan reports.

    Compared are tokens, so letter case does not count, nor whether a token ends a word.

    Returns:
        ``exact``: the text of one of the triggers; ``part``: one of its tokens at least; None where the
        model is not backdoored or its trigger is no text.
    """
    if label.label != "backdoored" or not _is_text(label):
        return None
    if reported is None:
        return "none"
    tokenizer = clip_tokenizer()
    triggers = [tokenizer.encode(trigger) for trigger in label.triggers]
    if tokenizer.text(reported.token_ids) in [tokenizer.text(ids) for ids in triggers]:
        return "exact"
    named, true = _spellings(reported.token_ids), _spellings([i for ids in triggers for i in ids])
    return "part" if named & true else "none"


def _spellings(ids: Sequence[int]) -> set[str]:
    return {clip_tokenizer().token(i).removesuffix(WORD_END) for i in ids}
