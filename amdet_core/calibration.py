"""From evidence to one score, and from the score to a p-value against honest encoders. Pure, and without torch.

The score is how many times as far as any honest encoder the suspect goes, in whatever it goes farthest. Honest
encoders alone are learnt from: an attack of which nobody has thought may show in one quantity only, and needs no
example. The p-value is conformal: the share of honest encoders, the suspect among them, that score at least as high,
each measured by the others. It holds as long as the suspect, if honest, was changed as they were.

References:
    Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005 (conformal p-values).
    Laxhammar and Falkman, Conformal Anomaly Detection, 2010.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import floor, prod

from pydantic import Field

from .records import Record

Measure = Callable[[str], float | None]
"""Name of evidence -> its value, None where it was not measured."""


def share(ratio: float) -> float:
    """What a ratio of two encoders says, whichever of them stands above: itself up to one, beyond it its inverse."""
    return ratio if ratio <= 1 else 1 / ratio


class Term(Record):
    """One quantity in which an encoder can stand out."""

    evidence: str
    words: str = Field(description="what a large value says")
    times: tuple[str, ...] = Field(
        default=(),
        description="shares, or ratios of which the `share` counts, by which it is multiplied: it says little without",
    )
    less: tuple[str, ...] = Field(
        default=(), description="evidence of which 1 minus the value multiplies it, once for each time that it is named"
    )
    optional: bool = Field(default=False, description="measured only where there was reason to; 0 otherwise")
    least: float = Field(default=0.05, gt=0, description="below it a value is noise, however small honest ones are")
    honest: float = Field(default=0.0, description="the largest value among the honest encoders")

    def value(self, measure: Measure) -> float | None:
        """Its value, 0 to 1, or None where it was not measured."""
        known = {name: value for name in self.asks if (value := measure(name)) is not None}
        if len(known) < len(self.asks):
            return 0.0 if self.optional else None
        factors = [known[self.evidence], *(share(known[name]) for name in self.times)]
        factors += [1 - known[name] for name in self.less]
        return prod(max(0.0, min(1.0, factor)) for factor in factors)

    def beyond(self, value: float) -> float:
        """How many times as far as honest encoders a value goes."""
        return value / max(self.honest, self.least)

    @property
    def name(self) -> str:
        """As it stands in a report."""
        lessened = (f"(1 - {name})" + (f"^{n}" if n > 1 else "") for name, n in Counter(self.less).items())
        return " x ".join((*self._factors, *lessened))

    @property
    def asks(self) -> set[str]:
        """Names of all evidence that it asks for."""
        return {*self._factors, *self.less}

    @property
    def _factors(self) -> tuple[str, ...]:
        return (self.evidence, *self.times)


SHORT = 1.25
"""How many times as far as the farthest honest encoder is too far, where they are too few for the rate asked for."""
DIGITS = 4
"""Decimals of what honest encoders reach that are kept."""
LEAST_BOUND = 1e-6
"""In place of a bound of zero, which honest encoders without any evidence would give."""


class Calibration(Record):
    """A score over some evidence, with the scores of honest encoders, each measured by the others."""

    family: str = Field(description="the honest encoders, in words")
    terms: tuple[Term, ...] = Field(min_length=1)
    null: tuple[float, ...] = Field(default=(), description="scores of honest encoders, ascending; none: not learnt")
    rate: float = Field(default=0.01, gt=0, lt=1, description="false positives that are accepted")
    alarms: int = Field(default=0, description="of those honest encoders, flagged by bounds on what it does not weigh")
    caught: int = Field(default=0, description="backdoored encoders that are flagged")
    n_backdoored: int = Field(default=0, description="of so many that were scanned; the score does not know them")

    @classmethod
    def learnt(
        cls, terms: Sequence[Term], honest: Sequence[Sequence[Measure]], family: str, rate: float
    ) -> Calibration:
        """How far honest encoders go in every term, and the score of each by the others.

        An encoder counts once, by the farthest that it went in any of its scans. Scans of which not all was measured
        have no part; where fewer than two encoders are left, nothing is learnt.

        Args:
            terms: evidence to be judged by; what they say of honest encoders does not count.
            honest: the scans of each encoder.
            family: the honest encoders, in words.
        """
        blank = cls(family=family, terms=tuple(terms), rate=rate)
        scans = ([values for one in encoder if (values := blank.values(one)) is not None] for encoder in honest)
        known = [[max(one[term] for one in found) for term in terms] for found in scans if found]
        if len(known) < 2:
            return blank
        null = []
        for i, own in enumerate(known):
            others = _reached(terms, known[:i] + known[i + 1 :])
            null.append(round(blank.score(dict(zip(others, own, strict=True))), DIGITS))
        return blank.model_copy(update={"terms": _reached(terms, known), "null": tuple(sorted(null))})

    @property
    def evidence(self) -> set[str]:
        """Names of all that it asks for."""
        return set().union(*(term.asks for term in self.terms))

    @property
    def kept_rate(self) -> float:
        """The rate that this many honest encoders can vouch for: what was asked for, or more where they are few."""
        return max(self.rate, 1 / (len(self.null) + 1))

    @property
    def stated_rate(self) -> float:
        """The false positives to expect at most, those by bounds on other evidence among them."""
        return self.kept_rate + self.alarms / (len(self.null) + 1)

    @property
    def bound(self) -> float:
        """The score above which an encoder is flagged; its p-value is at most :attr:`kept_rate` there."""
        allowed = floor(self.kept_rate * (len(self.null) + 1) + 1e-9) - 1
        return self.null[-1 - allowed] * (SHORT if self.kept_rate > self.rate else 1)

    def values(self, measure: Measure) -> dict[Term, float] | None:
        """The value of every term, or None where one was not measured."""
        found = {term: term.value(measure) for term in self.terms}
        known = {term: value for term, value in found.items() if value is not None}
        return known if len(known) == len(found) else None

    def score(self, values: Mapping[Term, float]) -> float:
        """How many times as far as any honest encoder it goes, where it goes farthest."""
        return max(term.beyond(value) for term, value in values.items())

    def margin(self, score: float) -> float:
        """How far a score lies above the bound, as a share of it; negative below it."""
        return score / max(self.bound, LEAST_BOUND) - 1

    def p_value(self, score: float) -> float:
        """How often an honest encoder scores at least as high."""
        return (len(self.null) - bisect_left(self.null, score) + 1) / (len(self.null) + 1)

    def flags(self, score: float) -> bool:
        """Whether honest encoders score as high no oftener than is accepted."""
        return self.margin(score) > 0


def _reached(terms: Sequence[Term], honest: Sequence[Sequence[float]]) -> tuple[Term, ...]:
    """The terms with the largest values of honest encoders."""
    largest = map(max, zip(*honest, strict=True))
    return tuple(
        term.model_copy(update={"honest": round(value, DIGITS)}) for term, value in zip(terms, largest, strict=True)
    )
