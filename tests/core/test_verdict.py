"""Judging synthetic evidence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import pytest

from amdet_core.errors import ConfigError
from amdet_core.policy import DEFAULT_POLICY, POLICIES, Condition, Finding, Policy, load_policy
from amdet_core.records import Evidence, Fault, Level
from amdet_core.verdict import decide, landscape_verdict, score

BOUNDS = Policy(
    name="bounds",
    description="one that judges by bounds alone",
    method="cascade",
    findings=(
        Finding(level=Level.BACKDOORED, reason="r", when=(Condition(evidence="gap_k1", op=">=", bound=0.55),)),
        Finding(
            level=Level.BACKDOORED,
            reason="s",
            when=(
                Condition(evidence="gap_k5", op=">=", bound=0.6),
                Condition(evidence="same_target_k5", op=">=", bound=0.9),
            ),
        ),
        Finding(level=Level.SUSPICIOUS, reason="t", when=(Condition(evidence="gap_k1", op=">=", bound=0.45),)),
    ),
    required=("gap_k1",),
    error_rate="not known",
)


BY_BOUNDS = {name: policy.model_copy(update={"calibrations": ()}) for name, policy in POLICIES.items()}
"""What the built-in policies say without what was learnt of honest encoders."""


def evidence(encoder: str = "clip_l", **values: float | None) -> list[Evidence]:
    return [
        Evidence(name=name, value=value, direction="higher", n=64, encoder=encoder) for name, value in values.items()
    ]


def fault(encoder: str = "clip_l") -> Fault:
    return Fault(stage="contrast", error="NumericalError", message="the loss is nan", encoder=encoder)


def past(condition: Condition, holds: bool) -> float:
    """A value just on the wanted side of a bound."""
    up = condition.op in (">", ">=")
    return condition.bound + (1e-3 if up == holds else -1e-3)


@pytest.mark.parametrize("policy", BY_BOUNDS.values(), ids=BY_BOUNDS)
def test_every_finding_can_be_reached_and_every_bound_matters(policy: Policy) -> None:
    quiet = {c.evidence: past(c, False) for finding in policy.findings for c in finding.when}
    quiet = {
        name: min(
            (past(c, False) for f in policy.findings for c in f.when if c.evidence == name and c.op in (">", ">=")),
            default=value,
        )
        for name, value in quiet.items()
    }
    assert decide(policy, evidence(**quiet), []).level == Level.CLEAN
    for finding in policy.findings:
        loud = quiet | {c.evidence: past(c, True) for c in finding.when}
        assert decide(policy, evidence(**loud), []).level == finding.level
        for condition in finding.when:
            short = loud | {condition.evidence: quiet[condition.evidence]}
            assert decide(policy, evidence(**short), []).level < finding.level


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_bounds_lie_within_what_can_be_measured(policy: Policy) -> None:
    for finding in policy.findings:
        for condition in finding.when:
            low, high = {"running_loss": (-7, 7), "sweep_sigma": (0, 1000)}.get(condition.evidence, (-1, 1))
            assert low < condition.bound < high


def test_with_any_fault_nothing_found_is_inconclusive() -> None:
    verdict = decide(BOUNDS, evidence(gap_k1=0.01), [fault()])
    assert verdict.level == Level.INCONCLUSIVE
    assert "loss is nan" in " ".join(verdict.reasons)


def test_a_fault_does_not_hide_a_finding() -> None:
    verdict = decide(BOUNDS, evidence(gap_k1=0.99), [fault()])
    assert verdict.level == Level.BACKDOORED
    assert "loss is nan" in " ".join(verdict.reasons)


@pytest.mark.parametrize("value", [None, "absent"])
def test_missing_evidence_is_inconclusive(value: str | None) -> None:
    items = evidence(delta_norm=0.1) if value == "absent" else evidence(gap_k1=None)
    assert decide(BOUNDS, items, []).level == Level.INCONCLUSIVE


def test_no_evidence_at_all_is_inconclusive() -> None:
    assert decide(BOUNDS, [], []).level == Level.INCONCLUSIVE


def test_identity_is_clean_and_says_so() -> None:
    verdict = decide(BOUNDS, evidence(identical_to_trusted=1), [])
    assert verdict.level == Level.CLEAN
    assert "trust" in verdict.statement


def test_clean_never_claims_safety() -> None:
    verdict = decide(BOUNDS, evidence(identical_to_trusted=0, gap_k1=0.01), [])
    assert verdict.level == Level.CLEAN
    assert "not a proof" in verdict.statement
    assert "64 held-out prompts. That" in verdict.statement


def test_the_worst_encoder_decides_and_is_named() -> None:
    items = evidence("clip_l", gap_k1=0.05) + evidence("clip_g", gap_k1=0.97)
    verdict = decide(BOUNDS, items, [])
    assert verdict.level == Level.BACKDOORED
    assert any(reason.startswith("clip_g:") for reason in verdict.reasons)
    half = decide(BOUNDS, evidence("clip_l", identical_to_trusted=1) + evidence("clip_g"), [fault("clip_g")])
    assert half.level == Level.INCONCLUSIVE
    assert half.levels == {"clip_l": Level.CLEAN, "clip_g": Level.INCONCLUSIVE}


def test_findings_ask_in_order_and_stop_at_the_first_that_fails() -> None:
    asked: list[str] = []

    def test(condition: Condition) -> bool:
        asked.append(condition.evidence)
        return condition.holds(-1.0)

    (finding,) = POLICIES["amdet-2025-code"].findings
    assert not finding.holds(test)
    assert asked == ["running_loss", "assimilation_share"]


def test_a_condition_is_settled_when_every_value_left_says_the_same() -> None:
    above, at_most = (Condition(evidence="x", op=op, bound=0.5) for op in (">", "<="))
    assert [above.settled(0.2, 0.5), above.settled(0.5, 0.6), above.settled(0.6, 1)] == [False, None, True]
    assert [at_most.settled(0.2, 0.5), at_most.settled(0.5, 0.6), at_most.settled(0.6, 1)] == [True, None, False]


def test_a_policy_file_is_read_back_and_a_damaged_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(POLICIES[DEFAULT_POLICY].model_dump_json())
    assert load_policy(str(path)) == POLICIES[DEFAULT_POLICY]
    path.write_text(json.dumps({"name": "x"}))
    with pytest.raises(
        ConfigError, match=r"expected a policy in .* found 5 error\(s\), first description: Field required"
    ):
        load_policy(str(path))
    with pytest.raises(ConfigError, match="amdet-2, amdet-2025-code"):
        load_policy("no-such-policy")


def test_the_landscape_speaks_as_the_paper_does() -> None:
    assert landscape_verdict(0.81).startswith("injected")
    assert landscape_verdict(0.80).startswith("natural")
    assert landscape_verdict(float("nan")).startswith("could not tell")


@pytest.mark.parametrize("policy", BY_BOUNDS.values(), ids=BY_BOUNDS)
def test_the_score_is_positive_exactly_when_a_finding_of_the_gravest_level_holds(policy: Policy) -> None:
    for finding in policy.findings:
        if finding.level != Level.BACKDOORED:
            continue
        loud = {c.evidence: past(c, True) for c in finding.when}
        assert score(policy, evidence(**loud)) == pytest.approx(1e-3)
        for condition in finding.when:
            short = loud | {condition.evidence: past(condition, False)}
            assert score(policy, evidence(**short)) == pytest.approx(-1e-3)


@pytest.mark.parametrize("op", [">", ">=", "<", "<="])
def test_a_value_at_the_bound_scores_as_the_condition_says(op: Literal[">", ">=", "<", "<="]) -> None:
    when = (Condition(evidence="x", op=op, bound=0.3),)
    finding = Finding(level=Level.BACKDOORED, reason="", when=when)
    policy = BOUNDS.model_copy(update={"findings": (finding,)})
    value = score(policy, evidence(x=0.3))
    assert value is not None
    assert (value > 0) == when[0].holds(0.3)
    assert value == pytest.approx(0)


def test_the_score_is_of_the_best_finding_and_of_its_weakest_condition() -> None:
    policy = BOUNDS
    assert score(policy, evidence(gap_k1=0.50)) == pytest.approx(-0.05)  # suspicious is not the gravest level
    values = {"gap_k1": 0.50, "literal_gap": 0.2, "gap_k5": 0.9, "same_target_k5": 0.95}
    assert score(policy, evidence(**values)) == pytest.approx(0.05)
    assert score(policy, evidence(gap_k5=0.9)) == -math.inf  # one half of a finding says nothing


def test_without_a_measurement_there_is_no_score_and_identity_ranks_lowest() -> None:
    policy = BOUNDS
    assert score(policy, []) is None
    assert score(policy, evidence(identical_to_trusted=0, delta_norm=0.1, gap_k1=None)) is None
    assert score(policy, evidence(identical_to_trusted=1)) == -math.inf


def test_the_score_of_several_encoders_is_the_highest() -> None:
    policy = BOUNDS
    items = evidence("clip_l", gap_k1=0.05) + evidence("clip_g", gap_k1=0.97) + evidence("clip_h", delta_norm=0.1)
    assert score(policy, items) == pytest.approx(0.42)
    assert score(policy, evidence("clip_l", identical_to_trusted=1) + evidence("clip_g", gap_k1=0.1)) == pytest.approx(
        -0.45
    )


def test_a_finding_of_the_level_inconclusive_is_never_clean() -> None:
    unsure = Finding(level=Level.INCONCLUSIVE, reason="u", when=(Condition(evidence="gap_k1", op=">=", bound=0.2),))
    policy = BOUNDS.model_copy(update={"findings": (*BOUNDS.findings, unsure), "required": ()})
    one = Evidence(name="gap_k1", value=0.3, direction="higher", n=64, encoder="clip_l")
    found = decide(policy, [one], [])
    assert found.level == Level.INCONCLUSIVE
    assert found.reasons[0].startswith("u (gap_k1 0.30")
