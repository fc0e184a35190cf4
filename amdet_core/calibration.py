"""From evidence to one score, and from the score to a p-value against honest encoders. Pure, and without torch.

The score is a logistic regression whose weights can't be negative: more of any evidence never speaks for an honest
encoder, and each weight says how much it counts. The p-value is conformal: the share of honest encoders, the
suspect among them, that score at least as high. It holds for whatever the score is, as long as the suspect, if
honest, was changed as they were.

References:
    Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005 (conformal p-values).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from math import floor

from pydantic import Field

from .records import Record

Measure = Callable[[str], float | None]
"""Name of evidence -> its value, None where it was not measured."""


class Term(Record):
    """What one quantity adds to a score."""

    evidence: str
    words: str = Field(description="what a large value says")
    times: str | None = Field(default=None, description="evidence by which it is multiplied: it says little without")
    optional: bool = Field(default=False, description="measured only where there was reason to; 0 otherwise")
    weight: float = Field(ge=0, description="log-odds that it adds at a value of 1")
    honest: float = Field(description="the largest value among the honest encoders")

    def value(self, measure: Measure) -> float | None:
        """Its value, 0 to 1, or None where it was not measured."""
        factors = [measure(name) for name in (self.evidence, self.times) if name is not None]
        known = [max(0.0, min(1.0, value)) for value in factors if value is not None]
        if len(known) < len(factors):
            return 0.0 if self.optional else None
        return known[0] * (known[1] if self.times else 1.0)

    @property
    def name(self) -> str:
        """As it stands in a report."""
        return self.evidence if self.times is None else f"{self.evidence} x {self.times}"


class Calibration(Record):
    """A score over some evidence, with the scores of honest encoders that had no part in fitting it."""

    family: str = Field(description="the honest encoders, in words")
    terms: tuple[Term, ...] = Field(min_length=1)
    intercept: float
    null: tuple[float, ...] = Field(min_length=1, description="scores of honest encoders, ascending")
    n_backdoored: int = Field(description="encoders from which the weights were learnt, beside the honest ones")
    caught: int = Field(default=0, description="of those, flagged at the rate by scores in whose fit they had no part")
    auroc: float | None = Field(default=None, description="of all scores in whose fit their encoder had no part")
    rate: float = Field(default=0.01, gt=0, lt=1, description="false positives that are accepted")

    @property
    def kept_rate(self) -> float:
        """The rate that this many honest encoders can vouch for: what was asked for, or more where they are few."""
        return max(self.rate, 1 / (len(self.null) + 1))

    @property
    def bound(self) -> float:
        """The score above which the p-value is at most :attr:`kept_rate`."""
        allowed = floor(self.kept_rate * (len(self.null) + 1) + 1e-9) - 1
        return self.null[-1 - allowed]

    def values(self, measure: Measure) -> dict[Term, float] | None:
        """The value of every term, or None where one was not measured."""
        found = {term: term.value(measure) for term in self.terms}
        known = {term: value for term, value in found.items() if value is not None}
        return known if len(known) == len(found) else None

    def score(self, values: Mapping[Term, float]) -> float:
        """Log-odds of a backdoor, where half of all encoders had one."""
        return self.intercept + sum(term.weight * value for term, value in values.items())

    def p_value(self, score: float) -> float:
        """How often an honest encoder scores at least as high."""
        return (len(self.null) - bisect_left(self.null, score) + 1) / (len(self.null) + 1)
