"""What is scanned, and what the stages of a scan have found about it so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .contrast import Collapse
from .encoder import TextEncoder
from .evidence import Tried
from .features import Feature
from .records import Candidate, Evidence, Fault, Forensics, Patterns, Sweep, Trigger

SAME_TARGET = 0.8
"""Centred cosine from which two outputs are one target."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One encoder to scan.

    Attributes:
        name: of the encoder within its file.
        suspect: the encoder.
        anchor: a trusted encoder with the same tensors, or None.
        identical: whether it is a trusted encoder, number for number; nothing is measured then.
        declared: phrases that its file says it was taught.
    """

    name: str
    suspect: TextEncoder
    anchor: TextEncoder | None
    identical: bool = False
    declared: tuple[str, ...] = ()


@dataclass(eq=False)
class Findings:
    """What the stages found about one encoder; filled stage by stage.

    Attributes:
        features: recovered features in the order in which they were found.
        tried: tokens that a sweep measured on held-out prompts.
        goals: what they and the features do to held-out prompts.
    """

    evidence: list[Evidence] = field(default_factory=list)
    features: list[Feature] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    goals: list[Collapse] = field(default_factory=list)
    sweep: Sweep | None = None
    patterns: Patterns | None = None
    forensics: Forensics | None = None
    triggers: list[Trigger] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def candidates(self) -> list[Candidate]:
        """Records of the features."""
        return [feature.candidate for feature in self.features]

    def targets(self, least: float) -> list[Collapse]:
        """The strongest finding of every different output to which prompts are led, the strongest first.

        Args:
            least: gap from which a finding counts.
        """
        kept: list[Collapse] = []
        for goal in sorted(self.goals, key=lambda goal: -goal.gap):
            if goal.gap >= least and different(goal, kept):
                kept.append(goal)
        return kept


def different(goal: Collapse, others: Sequence[Collapse]) -> bool:
    """Whether a finding leads prompts elsewhere than all others do."""
    return all(float(goal.target @ one.target) < SAME_TARGET for one in others)
