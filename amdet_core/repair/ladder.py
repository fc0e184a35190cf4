"""Choosing among repairs by evidence: the least invasive one that cures, and amply where that costs little."""

from __future__ import annotations

from collections.abc import Iterable

from ..config import CureConfig
from ..encoder import TextEncoder
from ..errors import ConfigError
from ..progress import Progress
from .condition import Case, cured, least_own

AMPLE = 0.98
"""Mean cosine to their own answer, of what is within reach, from which triggered prompts leave nothing to wish for."""


def first_cure(
    case: Case, candidates: Iterable[TextEncoder], bounds: CureConfig, total: int, progress: Progress
) -> TextEncoder:
    """The first candidate that cures amply, where clean answers allow it; else the first in which no probe works any
    more, or the one that comes nearest to it.

    A recovered trigger does less than the true one: what just cures the first may leave much of the second, and often
    a little more takes out nearly all of both.

    Args:
        candidates: from the least to the most invasive; made one by one.
        total: how many there are at most.
    """
    best: tuple[float, TextEncoder] | None = None
    cure: TextEncoder | None = None
    for done, candidate in enumerate(candidates, start=1):
        if cure is not None and case.clean_cosine(candidate) < bounds.clean:
            break
        responses = case.responses(candidate)
        own = least_own(responses)
        progress("repair", done, total, {"own": own})
        if best is None or own > best[0]:
            best = own, candidate
        if cured(responses, bounds):
            cure = cure or candidate
            if cured(responses, bounds.model_copy(update={"own": max(bounds.own, AMPLE)})):
                return candidate
    assert best is not None
    return cure or best[1]


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
