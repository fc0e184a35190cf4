"""Policies: how to judge, as data. Pure, and without torch.

A policy says which inversion it needs, which findings raise which level, which evidence must be there before nothing
found may be called clean, and how far honest encoders go.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from .calibration import DIGITS, Calibration, Measure, Term
from .errors import ConfigError
from .records import Control, Level, LevelName, Record
from .storage import read_record

DRIFT = "drift"
"""Evidence of how differently clean prompts are read: of what drifts farther than they, honest encoders say little."""
IDENTITY = "identical_to_trusted"
"""Evidence that ends a scan: 1 when all weights that prompts reach equal a trusted encoder's."""
FEWEST_CONTROLS = 9
"""Honest controls from which a suspect is judged by them: fewer could not vouch for a rate below one in ten."""
CONTROLS = "honest fine-tunes of its own anchor, made for this scan"
"""That family of honest encoders, in words."""
CONTROLS_DRIFT = 0.45
"""Drift that none of them exceeds; chosen: strong merges of the zoo `honest` go to 0.41."""
FARTHER = 1.25
"""Times as far as any honest encoder, beyond which they say nothing: controls made to drift as a suspect does may fall
short of it by a fifth."""

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


class Condition(Record):
    """A bound on one quantity."""

    evidence: str
    op: Literal[">", ">=", "<", "<="]
    bound: float

    def holds(self, value: float) -> bool:
        """Whether a value lies on the wanted side of the bound."""
        return _OPERATORS[self.op](value, self.bound)

    def margin(self, value: float) -> float:
        """How far on the wanted side of the bound, in units of the quantity; positive exactly where it holds."""
        distance = value - self.bound if self.op in (">", ">=") else self.bound - value
        return distance or (math.ulp(0.0) if self.holds(value) else 0.0)

    def settled(self, low: float, high: float) -> bool | None:
        """Whether it holds for every value from ``low`` to ``high``; None where that depends on the value."""
        holds = self.holds(low)
        return holds if holds == self.holds(high) else None

    def __str__(self) -> str:
        return f"{self.evidence} {self.op} {self.bound:g}"


class Finding(Record):
    """Conditions that together, in this order, justify a level."""

    level: LevelName
    reason: str
    when: tuple[Condition, ...] = Field(min_length=1)

    def holds(self, test: Callable[[Condition], bool]) -> bool:
        """Whether all conditions pass a test; stops at the first that does not, and tests nothing behind it."""
        return all(test(condition) for condition in self.when)

    def margin(self, measure: Callable[[str], float | None]) -> float:
        """The smallest margin of its conditions, minus infinity where one was not measured."""
        values = [(condition, measure(condition.evidence)) for condition in self.when]
        return min(-math.inf if value is None else condition.margin(value) for condition, value in values)


class Policy(Record):
    """A named, versioned way to judge.

    With a calibration an encoder is flagged where it goes further than honest ones do; findings of what the
    calibration weighs say how gravely, and why. Other findings flag by themselves.
    """

    name: str
    description: str
    method: Literal["cascade", "amdet-code", "amdet-paper"] = Field(description="inversion that it judges")
    findings: tuple[Finding, ...]
    required: tuple[str, ...] = Field(description="evidence without which nothing found means inconclusive")
    literal_gap: float = Field(default=0.3, description="a text with at least this gap is named as the trigger")
    literal_departure: float = Field(
        default=0.11, description="without one, a token with at least this departure, times `spread`, is"
    )
    error_rate: str = Field(description="what is known about its false positives, in one sentence")
    calibrations: tuple[Calibration, ...] = Field(
        default=(), description="the one that takes most evidence first; the first of which all is there counts"
    )
    drift: float | None = Field(
        default=None,
        description=f"how far those honest encoders drift; of what drifts {FARTHER} times as far they say nothing",
    )

    def calibrated(self, measure: Measure) -> tuple[Calibration, dict[Term, float]] | None:
        """The calibration that counts for what was measured, and the value of each of its terms."""
        for calibration in self.calibrations:
            if calibration.null and (values := calibration.values(measure)) is not None:
                return calibration, values
        return None

    def held_against(self, controls: Sequence[Control], encoder: str) -> Policy:
        """The same, with what honest controls of an encoder's own anchor reach where there are enough of them."""
        measures = [control.evidence.get for control in controls if control.encoder == encoder]
        if len(measures) < FEWEST_CONTROLS:
            return self
        alarms = sum(any(one.margin(measure) > 0 for one in self.beside) for measure in measures)
        fitted = (
            Calibration.learnt(one.terms, [[measure] for measure in measures], CONTROLS, one.rate).model_copy(
                update={"alarms": alarms}
            )
            for one in self.calibrations
        )
        if known := tuple(one for one in fitted if len(one.null) >= FEWEST_CONTROLS):
            return self.model_copy(update={"calibrations": known, "drift": farthest(measures)})
        return self

    @property
    def weighs(self) -> tuple[str, ...]:
        """Names of all evidence that it asks for."""
        asked = [condition.evidence for finding in self.findings for condition in finding.when]
        return tuple(dict.fromkeys([*asked, *(name for one in self.calibrations for name in sorted(one.evidence))]))

    @property
    def beside(self) -> tuple[Finding, ...]:
        """The findings that flag by themselves: of nothing that a calibration weighs."""
        weighed = {term.evidence for one in self.calibrations for term in one.terms}
        return tuple(one for one in self.findings if weighed.isdisjoint(when.evidence for when in one.when))

    @property
    def overriding(self) -> tuple[Finding, ...]:
        """The findings of its gravest level: they say enough where no honest encoder is known to compare with."""
        gravest = max((finding.level for finding in self.findings), default=Level.CLEAN)
        return tuple(finding for finding in self.findings if finding.level == gravest)

    def beyond(self, measure: Measure) -> bool:
        """Whether an encoder drifts so much farther than any honest one that the policy knows that they say nothing."""
        drift = measure(DRIFT)
        return self.drift is not None and drift is not None and drift > FARTHER * self.drift


def _built_in() -> dict[str, Policy]:
    """The policies that ship with the library, the default one first."""
    policies = [Policy.model_validate_json(file.read_bytes()) for file in BUILT_IN.glob("*.json")]
    return {policy.name: policy for policy in sorted(policies, key=lambda p: (p.name != DEFAULT_POLICY, p.name))}


BUILT_IN = Path(__file__).with_name("policies")
DEFAULT_POLICY = "amdet-2"
POLICIES = _built_in()


def farthest(honest: Iterable[Measure]) -> float | None:
    """The largest drift of some honest encoders, rounded up to what is kept; None where none was measured."""
    drifts = [drift for measure in honest if (drift := measure(DRIFT)) is not None]
    return math.ceil(max(drifts) * 10**DIGITS) / 10**DIGITS if drifts else None


PUBLISHED = ("amdet-code", "amdet-paper")
"""Methods of policies that stop the published inversion by their own findings."""


def load_policy(name: str) -> Policy:
    """A built-in policy by name, or one from a JSON file.

    Raises:
        ConfigError: there is neither, or the file is not a policy.
        StorageError: the file can't be read.
    """
    if name in POLICIES:
        return POLICIES[name]
    path = Path(name)
    if not path.is_file():
        raise ConfigError(
            expected=f"one of {', '.join(POLICIES)}, or a policy file",
            found=repr(name),
            remedy=f"See docs/policies.md; the files of the built-in ones are in {BUILT_IN}.",
        )
    return read_record(path, Policy, "a policy", "See docs/policies.md for its fields.")
