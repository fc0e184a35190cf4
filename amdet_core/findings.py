"""What is scanned, and what the stages of a scan have found about it so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .config import SearchConfig
from .contrast import Collapse
from .encoder import TextEncoder
from .evidence import Tried
from .features import Feature
from .records import Candidate, Control, Evidence, Fault, Forensics, Patterns, Sweep, Trigger

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

    @property
    def taught(self) -> frozenset[str]:
        """Spellings of the tokens of those phrases."""
        tokenizer = self.suspect.tokenizer
        return frozenset(tokenizer.spelling(token) for phrase in self.declared for token in tokenizer.encode(phrase))


@dataclass(eq=False)
class Findings:
    """What the stages found about one encoder; filled stage by stage.

    Attributes:
        features: recovered features in the order in which they were found.
        swept: tokens and characters that stood out when all were tried, measured on held-out prompts.
        texts: of tokens whose rows moved, and what is left of the best without the tokens that it does not need; or
            of a scan of the encoder without a part, where there is no anchor.
        goals: what the features do to held-out prompts.
    """

    evidence: list[Evidence] = field(default_factory=list)
    features: list[Feature] = field(default_factory=list)
    swept: list[Tried] = field(default_factory=list)
    texts: list[Tried] = field(default_factory=list)
    goals: list[Collapse] = field(default_factory=list)
    sweep: Sweep | None = None
    patterns: Patterns | None = None
    forensics: Forensics | None = None
    triggers: list[Trigger] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def tried(self) -> list[Tried]:
        """All that was tried as it is and measured on held-out prompts."""
        return [*self.swept, *self.texts]

    @property
    def candidates(self) -> list[Candidate]:
        """Records of the features."""
        return [feature.candidate for feature in self.features]

    def targets(self, settings: SearchConfig) -> list[Collapse]:
        """The strongest finding of every different output to which prompts are led, the strongest first.

        Where no two prompts are led to one output, those of tokens that lead far from the anchor's: beside one that
        takes prompts over they would be the outputs of its parts.

        Args:
            settings: how strong a finding has to be to count.
        """
        found = [*self.goals, *(tried.collapse for tried in self.tried)]
        goals = [goal for goal in found if goal.gap >= settings.least_gap] or [
            tried.collapse for tried in self.tried if tried.departure >= settings.least_departure and not tried.declared
        ]
        kept: list[Collapse] = []
        for goal in sorted(goals, key=lambda goal: -goal.gap):
            if different(goal, kept):
                kept.append(goal)
        return kept


def different(goal: Collapse, others: Sequence[Collapse]) -> bool:
    """Whether a finding leads prompts elsewhere than all others do."""
    return all(float(goal.target @ one.target) < SAME_TARGET for one in others)
