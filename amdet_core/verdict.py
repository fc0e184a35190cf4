"""Judging: from evidence to a verdict, by a policy. Pure, and without torch.

``amdet judge`` applies a policy to an old report.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from .calibration import Calibration, Measure, Term
from .policy import CONTROLS, CONTROLS_DRIFT, DRIFT, IDENTITY, POLICIES, Condition, Finding, Policy
from .records import RUNS, Control, Evidence, Fault, Level, Verdict

MOST = 3
"""Terms of a score that a reason names, the farthest first."""
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
    against = _Against.several([one.null for one in judged if one.null is not None])
    return Verdict(
        level=level,
        reasons=tuple(reasons) or ("no text encoder was measured",),
        policy=policy.name,
        statement=_statement(level, policy, evidence) + _calibrated_to(against),
        levels={name: one.level for name, one in zip(names, judged, strict=True)},
        p_value=against and against.p_value,
        rate=against and against.rate,
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
            margin = calibration.margin(calibration.score(terms))
            if policy.beyond(values.get):
                margin = min(margin, max(finding.margin(values.get) for finding in policy.overriding))
            margins.append(margin)
        return max((margin for margin in margins if margin > -math.inf), default=None)
    findings = policy.overriding
    if all(values.get(condition.evidence) is None for finding in findings for condition in finding.when):
        return None
    return max(finding.margin(values.get) for finding in findings)


class _Against(NamedTuple):
    """How often honest encoders of a family score as high, and how many of them are flagged at most."""

    p_value: float
    rate: float
    family: str

    @classmethod
    def several(cls, encoders: Sequence[_Against]) -> _Against | None:
        """Of a target by all its encoders: each may be flagged by chance, and the one that goes farthest counts.

        References:
            Bonferroni's correction: the smallest p-value times the number of tests.
        """
        if not encoders:
            return None
        least, count = min(encoders), len(encoders)
        return cls(min(1.0, count * least.p_value), min(1.0, sum(one.rate for one in encoders)), least.family)


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

    known = policy.calibrated(value)
    judged = _by_bounds(policy.findings, value) if known is None else _by_honest(policy, *known, value)
    if judged.level > Level.INCONCLUSIVE:
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
        return judged._replace(level=Level.INCONCLUSIVE, reasons=failed + judged.reasons)
    if known is not None or judged.level > Level.CLEAN:
        return judged
    asked = dict.fromkeys(condition.evidence for finding in policy.findings for condition in finding.when)
    values = [f"{name} {value(name):.2f}" for name in asked if value(name) is not None]
    return _Judged(Level.CLEAN, [f"nothing crossed the policy's bounds ({', '.join(values)})"])


def _by_bounds(findings: Iterable[Finding], measure: Measure) -> _Judged:
    """The gravest level of some findings, and those that justify it."""

    def holds(condition: Condition) -> bool:
        measured = measure(condition.evidence)
        return measured is not None and condition.holds(measured)

    found = [finding for finding in findings if finding.level > Level.CLEAN and finding.holds(holds)]
    level = max((finding.level for finding in found), default=Level.CLEAN)
    return _Judged(level, [_reason(finding, measure) for finding in found if finding.level == level])


def _by_honest(policy: Policy, calibration: Calibration, terms: Mapping[Term, float], measure: Measure) -> _Judged:
    """Suspicious where an encoder goes further than honest ones do, and what findings say.

    Where it drifts farther than any of them, it may go further for that alone: only the gravest findings say enough.
    """
    reached = calibration.score(terms)
    if not calibration.flags(reached):
        judged = _by_bounds(policy.beside, measure)
    elif policy.beyond(measure):
        judged = _by_bounds((*policy.beside, *policy.overriding), measure)
        reasons = [*judged.reasons, _drifted(policy, calibration, measure)]
        return judged._replace(level=max(judged.level, Level.INCONCLUSIVE), reasons=reasons)
    else:
        judged = _by_bounds(policy.findings, measure)
        judged = judged._replace(level=max(judged.level, Level.SUSPICIOUS))
    p_value = calibration.p_value(reached)
    reasons = [*judged.reasons, _compared(calibration, terms, p_value)]
    return judged._replace(reasons=reasons, null=_Against(p_value, calibration.stated_rate, calibration.family))


def _drifted(policy: Policy, calibration: Calibration, measure: Measure) -> str:
    """Why honest encoders say nothing of one."""
    made = (
        "" if calibration.family == CONTROLS else f", or use the preset thorough (for a drift up to {CONTROLS_DRIFT})"
    )
    return (
        f"it goes further than {calibration.family}, but reads clean prompts more unlike its anchor than they do "
        f"(drift {measure(DRIFT):.2f}, theirs up to {policy.drift:.2f}), and how far honest ones go then is not known: "
        f"compare it with a nearer anchor, such as the encoder that it was made from{made}"
    )


def _compared_with(names: Collection[str], evidence: Sequence[Evidence]) -> str:
    """What encoders were held against: an anchor each, or nothing but themselves."""
    alone = {e.encoder for e in evidence if e.alone}
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


def _reason(finding: Finding, measure: Measure) -> str:
    bounds = ", ".join(f"{c.evidence} {measure(c.evidence):.2f} {c.op} {c.bound:g}" for c in finding.when)
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
