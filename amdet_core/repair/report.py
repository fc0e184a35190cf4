"""A healing as one page of Markdown: what was found, what was done, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..errors import AmdetError
from .heal import Attempt, HealReport
from .kinds import Outcome

TITLES = {
    "nothing": "Nothing to heal",
    "replaced": "Replaced by the trusted encoder",
    "repaired": "Repaired",
    "failed": "Not repaired",
    "not judged": "Could not tell",
}
NOTHING = "Nothing was recovered, so there is nothing to repair; the encoder comes out as it was.\n"
UNJUDGED = "no trigger is known: whether a backdoor is gone was not measured"


def render_heal(*reports: HealReport) -> str:
    """The page, with a line end at its end; of several encoders of one target one after the other."""
    return "\n".join("\n".join(_lines(report)) + "\n" for report in reports)


def render_repairs(outcomes: Mapping[str, Outcome], untouched: Mapping[str, AmdetError]) -> str:
    """What single repairs achieved, by the names of the encoders, as Markdown; nothing was scanned.

    Args:
        untouched: encoders that were left as they are, and why.
    """
    pages = ["\n".join(_single(name, one)) for name, one in outcomes.items()]
    pages += [f"# Left as it is: {name}\n\n{reason}" for name, reason in untouched.items()]
    return "\n".join(f"{page}\n" for page in pages) or NOTHING


def _single(name: str, outcome: Outcome) -> Iterator[str]:
    action = ("repaired" if outcome.before.responses else "not judged") if outcome.works else "failed"
    yield f"# {TITLES[action]} ({outcome.method}): {name}\n"
    if action == "failed":
        wrong = "clean prompts are read otherwise than before" if outcome.cured else "a trigger still works"
        yield f"This repair does not work ({wrong}), so the encoder comes out as it was.\n"
    if not outcome.before.responses:
        yield f"{UNJUDGED[0].upper()}{UNJUDGED[1:]}.\n"
    yield from _table(outcome)


def _lines(report: HealReport) -> Iterator[str]:
    names = ", ".join([report.target.path, *(encoder.name for encoder in report.target.encoders)])
    yield f"# {TITLES[report.action]}: {names}\n"
    yield report.statement
    if report.advice:
        yield f"\n{report.advice}"
    yield f"\nThe scan before says {report.before.level.name.lower()} (policy {report.before.policy}):"
    yield from (f"- {reason}" for reason in report.before.reasons)
    if report.triggers:
        yield f"\nTriggers that it recovered: {', '.join(report.triggers)}."
    for attempt in report.attempts:
        yield from _attempt(attempt)
    yield "\nThe original is as it was."


def _attempt(attempt: Attempt) -> Iterator[str]:
    outcome, verdict = attempt.outcome, attempt.verdict
    scan = "no re-scan, as it did not work" if verdict is None else f"the re-scan says {verdict.level.name.lower()}"
    yield f"\n## {attempt.method}: {scan}\n"
    if outcome is None:
        yield attempt.error
        return
    yield from _table(outcome)


def _table(outcome: Outcome) -> Iterator[str]:
    yield "| | before | after |\n|---|---|---|"
    for name, before, after in _rows(outcome):
        yield f"| {name} | {before} | {after} |"


def _rows(outcome: Outcome) -> Iterator[tuple[str, str, str]]:
    before, after = outcome.before, outcome.after
    for one, other in zip(before.responses, after.responses, strict=True):
        text = one.trigger.replace("|", "\\|")
        yield f"{text}: nearer to their own answer", f"{one.nearer_to_own:.1%}", f"{other.nearer_to_own:.1%}"
        yield f"{text}: mean cosine to it", f"{one.own_cosine:.3f}", f"{other.own_cosine:.3f}"
        yield f"{text}: led to the suspect's answer", f"{one.asr:.1%}", f"{other.asr:.1%}"
        yield f"{text}: collapse beyond it", f"{one.gap:.3f}", f"{other.gap:.3f}"
    yield "clean prompts: cosine to the suspect's answer", f"{before.clean_cosine:.4f}", f"{after.clean_cosine:.4f}"
    if before.anchor_cosine is not None and after.anchor_cosine is not None:
        yield "clean prompts: cosine to the anchor's", f"{before.anchor_cosine:.4f}", f"{after.anchor_cosine:.4f}"
    yield "clean prompts found by their first words", f"{before.retrieval:.1%}", f"{after.retrieval:.1%}"
