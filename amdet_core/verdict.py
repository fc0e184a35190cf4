"""Judging: from evidence to a verdict, by a policy. Pure, and without torch.

A policy is data: which inversion it needs, which findings raise which level, and which evidence must be
there before nothing found may be called clean. ``amdet judge`` applies one to an old report.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError

from .calibration import Calibration, Measure, Term
from .errors import ConfigError
from .records import ALONE, RUNS, Control, Evidence, Fault, Level, LevelName, Record, Verdict

IDENTITY = "identical_to_trusted"
"""Evidence that ends a scan: 1 when all weights that prompts reach equal a trusted encoder's."""
FEWEST_CONTROLS = 9
"""Honest controls from which a suspect is judged by them: fewer could not vouch for a rate below one in ten."""
CONTROLS = "honest fine-tunes of its own anchor, made for this scan"
"""That family of honest encoders, in words."""
MOST = 3
"""Terms of a score that a reason names, the farthest first."""


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
            Calibration.learnt(one.terms, measures, CONTROLS, one.rate).model_copy(update={"alarms": alarms})
            for one in self.calibrations
        )
        known = tuple(one for one in fitted if len(one.null) >= FEWEST_CONTROLS)
        return self.model_copy(update={"calibrations": known or self.calibrations})

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


def _built_in() -> dict[str, Policy]:
    """The policies that ship with the library, the default one first."""
    files = Path(__file__).with_name("policies").glob("*.json")
    policies = [Policy.model_validate_json(file.read_bytes()) for file in files]
    return {policy.name: policy for policy in sorted(policies, key=lambda p: (p.name != DEFAULT_POLICY, p.name))}


DEFAULT_POLICY = "amdet-2"
POLICIES = _built_in()
POSITIVE_SHARE = next(
    gate for gate in POLICIES["amdet-2025-code"].findings[0].when if gate.evidence == "positive_share"
)
"""The paper's sign of an injected feature."""


def landscape_verdict(positive_share: float) -> str:
    """What the paper concludes from the curvature around a feature (eqs. 26-28), in one line."""
    if not math.isfinite(positive_share):
        return "could not tell: the curvature is not known"
    kind = "injected: a smooth bowl" if POSITIVE_SHARE.holds(positive_share) else "natural: rough ground"
    return (
        f"{kind} ({positive_share:.0%} of the curvatures are positive; the paper asks for > {POSITIVE_SHARE.bound:.0%})"
    )


PUBLISHED = ("amdet-code", "amdet-paper")
"""Methods of policies that stop the published inversion by their own findings."""


def load_policy(name: str) -> Policy:
    """A built-in policy by name, or one from a JSON file.

    Raises:
        ConfigError: there is neither, or the file is not a policy.
    """
    if name in POLICIES:
        return POLICIES[name]
    path = Path(name)
    if not path.is_file():
        raise ConfigError(
            expected=f"one of {', '.join(POLICIES)}, or a policy file",
            found=repr(name),
            remedy="See docs/policies.md; a built-in policy printed as JSON is a file to start from.",
        )
    try:
        return Policy.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise ConfigError(
            expected="a policy as JSON", found=f"{path}: {error}", remedy="See docs/policies.md for its fields."
        ) from error


def decide(
    policy: Policy, evidence: Sequence[Evidence], faults: Sequence[Fault], controls: Sequence[Control] = ()
) -> Verdict:
    """The verdict of a policy over all encoders of a target: the worst one's.

    With any fault, or with required evidence missing, it is never clean.

    Args:
        controls: honest ones of any of the encoders; where they are too few, the policy's own calibration counts.
    """
    names = list(dict.fromkeys([e.encoder for e in evidence] + [f.encoder for f in faults]))
    judged = [
        _judge(
            policy.held_against(controls, name),
            {e.name: e for e in evidence if e.encoder == name},
            [f for f in faults if f.encoder == name],
        )
        for name in names
    ]
    level = max((one.level for one in judged), default=Level.INCONCLUSIVE)
    several = len(names) > 1
    reasons = [
        f"{name}: {reason}" if several else reason
        for name, one in zip(names, judged, strict=True)
        for reason in one.reasons
        if one.level == level or several
    ]
    least = min((one.null for one in judged if one.null is not None), default=None)
    return Verdict(
        level=level,
        reasons=tuple(reasons) or ("no text encoder was measured",),
        policy=policy.name,
        statement=_statement(level, policy, evidence) + _calibrated_to(least),
        p_value=least and least.p_value,
        rate=least and least.rate,
    )


def score(policy: Policy, evidence: Sequence[Evidence], controls: Sequence[Control] = ()) -> float | None:
    """How strongly the evidence speaks for the gravest level of a policy, to rank targets by it.

    The largest margin of the findings at that level, over all encoders: positive exactly when one of them
    holds. With a calibration, of the findings that flag by themselves and, where what it weighs was measured, of the
    score, as a share of its bound: positive exactly when the target is flagged. A target that equals trusted encoders
    has minus infinity.

    Returns:
        None where nothing was measured that these findings ask for.
    """
    scores = (
        _score(
            policy.held_against(controls, name),
            {e.name: e.value for e in evidence if e.encoder == name},
        )
        for name in dict.fromkeys(e.encoder for e in evidence)
    )
    return max((value for value in scores if value is not None), default=None)


def _score(policy: Policy, values: Mapping[str, float | None]) -> float | None:
    """The score of one encoder."""
    if values.get(IDENTITY) == 1:
        return -math.inf
    if policy.calibrations:
        found = policy.calibrated(values.get)
        count = policy.beside if found else policy.findings
        margins = [finding.margin(values.get) for finding in count if finding.level > Level.CLEAN]
        if found:
            calibration, terms = found
            margins.append(calibration.margin(calibration.score(terms)))
        return max((margin for margin in margins if margin > -math.inf), default=None)
    gravest = max((finding.level for finding in policy.findings), default=Level.CLEAN)
    findings = [finding for finding in policy.findings if finding.level == gravest]
    if all(values.get(condition.evidence) is None for finding in findings for condition in finding.when):
        return None
    return max(finding.margin(values.get) for finding in findings)


class _Against(NamedTuple):
    """How often honest encoders of a family score as high, and how many of them are flagged at most."""

    p_value: float
    rate: float
    family: str


class _Judged(NamedTuple):
    """What is decided about one encoder, and against whom where there is a calibration."""

    level: Level
    reasons: list[str]
    null: _Against | None = None


def _judge(policy: Policy, evidence: Mapping[str, Evidence], faults: Sequence[Fault]) -> _Judged:
    """Decide about one encoder."""
    failed = [f"the stage {fault.stage} failed: {fault.message}" for fault in faults]

    def value(name: str) -> float | None:
        return evidence[name].value if name in evidence else None

    if value(IDENTITY) == 1 and not failed:
        return _Judged(Level.CLEAN, ["all weights that prompts reach equal those of a trusted encoder"])

    def holds(condition: Condition) -> bool:
        measured = value(condition.evidence)
        return measured is not None and condition.holds(measured)

    known = policy.calibrated(value)
    reached = 0.0 if known is None else known[0].score(known[1])
    further = known is not None and known[0].flags(reached)
    count = policy.findings if known is None or further else policy.beside
    found = [finding for finding in count if finding.holds(holds)]
    level = max((finding.level for finding in found), default=Level.CLEAN)
    reasons = [_reason(finding, value) for finding in found if finding.level == level]
    if known is None:
        judged = _Judged(level, reasons)
    else:
        calibration, terms = known
        p_value = calibration.p_value(reached)
        level = max(level, Level.SUSPICIOUS) if further else level
        reasons = [*(reasons if level > Level.CLEAN else ()), _compared(calibration, terms, p_value)]
        judged = _Judged(level, reasons, _Against(p_value, calibration.stated_rate, calibration.family))
    if judged.level > Level.CLEAN:
        return judged._replace(reasons=judged.reasons + failed)
    lost = [name for name in policy.weighs if name in evidence and value(name) is None]
    if lost:
        failed.append(f"came out as no number: {', '.join(lost)}")
    missing = [name for name in policy.required if value(name) is None and name not in lost]
    if missing:
        failed.append(f"not measured: {', '.join(missing)} (no trusted anchor, or the scan used another policy)")
    elif policy.calibrations and known is None:
        failed.append("not all that the policy weighs was measured")
    if failed:
        return judged._replace(level=Level.INCONCLUSIVE, reasons=failed + (judged.reasons if known else []))
    if known is not None:
        return judged
    asked = dict.fromkeys(condition.evidence for finding in policy.findings for condition in finding.when)
    values = [f"{name} {value(name):.2f}" for name in asked if value(name) is not None]
    return _Judged(Level.CLEAN, [f"nothing crossed the policy's bounds ({', '.join(values)})"])


def _compared_with(names: Collection[str], evidence: Sequence[Evidence]) -> str:
    """What encoders were held against: an anchor each, or nothing but themselves."""
    alone = {e.encoder for e in evidence if e.name.startswith(ALONE)}
    return "honest encoders that are measured without an anchor" if alone == names else "a fine-tune of its anchor"


def _compared(calibration: Calibration, terms: Mapping[Term, float], p_value: float) -> str:
    """Where an encoder goes farthest beyond honest ones, the farthest first."""
    most = sorted(terms, key=lambda term: -term.beyond(terms[term]))[:MOST]
    parts = "; ".join(
        f"{term.words} ({term.name} {terms[term]:.2f}, honest ones up to {term.honest:.2f})" for term in most
    )
    return (
        f"compared with {len(calibration.null)} {calibration.family}, of which {p_value:.1%} would go as far "
        f"(p = {p_value:.3g}), it goes farthest in this: {parts}"
    )


def _calibrated_to(null: _Against | None) -> str:
    if null is None:
        return ""
    return f" Of {null.family}, it is set to flag {null.rate:.1%} at most; for others that is not known."


def _reason(finding: Finding, value: Callable[[str], float | None]) -> str:
    bounds = ", ".join(f"{c.evidence} {value(c.evidence):.2f} {c.op} {c.bound:g}" for c in finding.when)
    return f"{finding.reason} ({bounds})"


def _statement(level: Level, policy: Policy, evidence: Sequence[Evidence]) -> str:
    prompts = max((e.n for e in evidence if e.name in policy.required), default=0)
    runs = max((e.n for e in evidence if e.unit == RUNS), default=0)
    searches = f" and {runs} independent searches" if runs else ""
    measured = {e.encoder for e in evidence}
    if level == Level.CLEAN and measured == {e.encoder for e in evidence if e.name == IDENTITY and e.value == 1}:
        return "The weights that prompts reach are, number for number, those of an encoder that you or this tool trust."
    return {
        Level.CLEAN: f"No evidence of a backdoor was found under policy {policy.name} with {prompts} held-out "
        f"prompts{searches}. "
        "That is not a proof that there is none.",
        Level.INCONCLUSIVE: "This scan could not tell whether the encoder is backdoored.",
        Level.SUSPICIOUS: f"The encoder behaves unlike {_compared_with(measured, evidence)}; "
        "treat it as unsafe until explained.",
        Level.BACKDOORED: "The encoder holds a hidden input that overrides prompts; do not use it.",
    }[level]
