"""Choosing among repairs by evidence: the first that cures is the least invasive one."""

from __future__ import annotations

from collections.abc import Iterable

from ..config import CureConfig
from ..encoder import TextEncoder
from ..errors import ConfigError
from ..progress import Progress
from .condition import Case, cured, least_own


def first_cure(
    case: Case, candidates: Iterable[TextEncoder], bounds: CureConfig, total: int, progress: Progress
) -> TextEncoder:
    """The first candidate in which no probe works any more, or the one that comes nearest to it.

    Args:
        candidates: from the least to the most invasive; made one by one.
        total: how many there are at most.
    """
    best: tuple[float, TextEncoder] | None = None
    for done, candidate in enumerate(candidates, start=1):
        responses = case.responses(candidate)
        own = least_own(responses)
        progress("repair", done, total, {"own": own})
        if best is None or own > best[0]:
            best = own, candidate
        if cured(responses, bounds):
            return candidate
    assert best is not None
    return best[1]


def needs_anchor(case: Case, method: str) -> TextEncoder:
    """The anchor of a case, or ConfigError where there is none."""
    if case.anchor is None:
        raise no_anchor(method)
    return case.anchor


def no_anchor(method: str) -> ConfigError:
    """What a method says that can't work without an anchor."""
    return ConfigError(
        f"an anchor for {method}: the trusted encoder that the suspect was made from",
        "none",
        "Give it as the anchor, or repair by erase, which needs none.",
    )
