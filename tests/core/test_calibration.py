"""Scores, p-values against honest encoders, and how they are learnt."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path
from random import Random

import pytest

from amdet_core.bench import ModelResult, by_model, calibrate, calibrate_policy, read_detection
from amdet_core.calibration import Calibration, Term
from amdet_core.errors import ConfigError
from amdet_core.policy import CONTROLS, FEWEST_CONTROLS, POLICIES, Condition, Finding, Policy
from amdet_core.records import Control, Evidence, Fault, Level
from amdet_core.verdict import decide, score

GAP = Term(evidence="sweep_gap", words="a token takes over")
AWAY = Term(evidence="sweep_departure", words="a token departs")
AGREED = Term(evidence="gap_k5", times=("same_target_k5",), words="vectors take over")
TEXT = Term(evidence="literal_gap", words="a text takes over", optional=True)
KNOWN = Calibration(
    family="fine-tunes of a toy",
    terms=(GAP.model_copy(update={"honest": 0.2}), TEXT),
    null=tuple(i / 198 for i in range(199)),
)
TEXT_FOUND = {"literal_gap": 0.9, "literal_success": 0.9}
CALIBRATED = Policy.model_validate(
    {**POLICIES["amdet-2"].model_dump(), "calibrations": (KNOWN,), "required": ("sweep_gap",)}
)


def evidence_of(encoder: str, **values: float | None) -> list[Evidence]:
    return [
        Evidence(name=name, value=value, direction="higher", n=64, encoder=encoder) for name, value in values.items()
    ]


def evidence(**values: float | None) -> list[Evidence]:
    return evidence_of("clip_l", **values)


def row(number: int, label: str, **values: float) -> ModelResult:
    return ModelResult(
        model=f"m{number}", label=label, kind="x", group="x", fingerprint="0", seconds=1.0, level="clean",
        recovered=None, evidence=values,
    )  # fmt: skip


def zoo(seed: int = 0, honest: int = 120) -> list[ModelResult]:
    """Half of the backdoors show in one way, half in another; honest models in neither."""
    random = Random(seed)
    rows = [
        row(i, "backdoored", sweep_gap=0.8 * (i % 2) + random.random() / 5, sweep_departure=random.random() / 5 + 0.3)
        for i in range(40)
    ]
    return rows + [
        row(i, "benign", sweep_gap=random.random() / 5, sweep_departure=random.random() / 5) for i in range(honest)
    ]


def each(rows: Iterable[ModelResult]) -> list[list[ModelResult]]:
    """Every row as the one scan of a model."""
    return [[one] for one in rows]


# ------------------------------------------------------------------ scores


def test_a_term_is_its_value_between_0_and_1() -> None:
    assert GAP.value({"sweep_gap": 0.4}.get) == 0.4
    assert GAP.value({"sweep_gap": -0.4}.get) == 0
    assert GAP.value({"sweep_gap": 1.4}.get) == 1
    assert GAP.value({}.get) is None
    assert TEXT.value({}.get) == 0


def test_a_term_that_needs_another_is_their_product() -> None:
    assert AGREED.value({"gap_k5": 0.8, "same_target_k5": 0.5}.get) == pytest.approx(0.4)
    assert AGREED.value({"gap_k5": 0.8, "same_target_k5": -0.5}.get) == 0
    assert AGREED.value({"gap_k5": 0.8}.get) is None


def test_a_takeover_counts_by_the_spread_that_is_left_whichever_of_the_two_encoders_has_less() -> None:
    spread = GAP.model_copy(update={"times": ("spread",)})
    assert spread.value({"sweep_gap": 0.8, "spread": 0.5}.get) == pytest.approx(0.4)
    assert spread.value({"sweep_gap": 0.8, "spread": 1.0}.get) == pytest.approx(0.8)
    assert spread.value({"sweep_gap": 0.8, "spread": 1.6}.get) == pytest.approx(0.5)
    assert spread.value({"sweep_gap": 0.8, "spread": 0.0}.get) == 0
    assert spread.value({"sweep_gap": 0.8}.get) is None
    assert spread.name == "sweep_gap x spread"


def test_a_takeover_counts_less_the_farther_clean_prompts_drift_by_as_many_powers_as_are_named() -> None:
    once, twice = (GAP.model_copy(update={"less": ("drift",) * n}) for n in (1, 2))
    assert once.value({"sweep_gap": 0.8, "drift": 0.25}.get) == pytest.approx(0.6)
    assert twice.value({"sweep_gap": 0.8, "drift": 0.25}.get) == pytest.approx(0.45)
    assert twice.value({"sweep_gap": 0.8, "drift": 1.5}.get) == 0
    assert twice.value({"sweep_gap": 0.8}.get) is None
    assert (once.name, twice.name) == ("sweep_gap x (1 - drift)", "sweep_gap x (1 - drift)^2")
    assert KNOWN.model_copy(update={"terms": (twice,)}).evidence == {"sweep_gap", "drift"}


def test_a_bound_on_what_a_calibration_multiplies_by_flags_by_itself() -> None:
    term = GAP.model_copy(update={"times": ("spread",), "honest": 0.2})
    policy = CALIBRATED.model_copy(update={"calibrations": (KNOWN.model_copy(update={"terms": (term,)}),)})
    wide, narrow = (decide(policy, evidence(sweep_gap=0.1, spread=spread), ()) for spread in (0.9, 0.1))
    assert wide.level == Level.CLEAN
    assert narrow.level == Level.SUSPICIOUS and "nearly the same" in narrow.reasons[0]


def test_the_p_value_counts_honest_encoders_that_score_as_high() -> None:
    assert KNOWN.p_value(99) == 1 / 200
    assert KNOWN.p_value(KNOWN.null[-1]) == 2 / 200
    assert KNOWN.p_value(-99) == 1


def test_what_lies_above_the_bound_is_what_keeps_to_the_rate() -> None:
    for value in (*KNOWN.null, KNOWN.null[-1] + 1e-9, KNOWN.null[-2] + 1e-9):
        assert (value > KNOWN.bound) == (KNOWN.p_value(value) <= KNOWN.kept_rate)


def test_few_honest_encoders_vouch_for_a_higher_rate_only() -> None:
    few = KNOWN.model_copy(update={"null": (0.0, 1.0, 2.0)})
    assert few.kept_rate == 0.25
    assert few.bound == 2.5, "a quarter beyond the farthest"
    assert [few.flags(score) for score in (2.1, 2.5, 2.6)] == [False, False, True]
    enough = KNOWN.model_copy(update={"null": (0.0, 1.0, 2.0), "rate": 0.25})
    assert enough.bound == 2.0


def test_p_values_of_honest_encoders_are_spread_evenly() -> None:
    random = Random(1)
    null = Calibration.model_validate(
        {**KNOWN.model_dump(), "null": tuple(sorted(random.gauss(0, 1) for _ in range(199)))}
    )
    flagged = sum(null.p_value(random.gauss(0, 1)) <= 0.05 for _ in range(4000)) / 4000
    assert 0.02 < flagged < 0.09


# ------------------------------------------------------------------ verdicts


def test_a_score_that_honest_encoders_do_not_reach_flags_and_findings_say_how_gravely() -> None:
    taken = decide(CALIBRATED, evidence(sweep_gap=0.9, **TEXT_FOUND), [])
    assert taken.level == Level.BACKDOORED
    assert taken.p_value == 1 / 200
    assert taken.rate == 0.01
    assert taken.statement.endswith(
        "Of fine-tunes of a toy, it is set to flag 1.0% at most; for others that is not known."
    )
    assert "a token takes over (sweep_gap 0.90, honest ones up to 0.20)" in taken.reasons[-1]
    for unsure in ({}, {"literal_gap": 0.9, "literal_success": 0.1}, {"literal_gap": 0.1, "literal_success": 0.9}):
        odd = decide(CALIBRATED, evidence(sweep_gap=0.3, **unsure), [])
        assert odd.level == Level.SUSPICIOUS


def test_a_bound_on_what_is_weighed_flags_nothing_that_honest_encoders_reach_and_others_flag_by_themselves() -> None:
    honest = KNOWN.model_copy(update={"terms": tuple(one.model_copy(update={"honest": 0.9}) for one in (GAP, TEXT))})
    policy = CALIBRATED.model_copy(update={"calibrations": (honest,)})
    found = {"literal_gap": 0.8, "literal_success": 0.9}
    below = evidence(sweep_gap=0.1, **found)  # over the bound of a finding, and not as far as honest ones go
    assert decide(policy, below, []).level == Level.CLEAN
    assert (score(policy, below) or 0.0) < 0
    beside = evidence(sweep_gap=0.1, spread=0.1)
    assert decide(policy, beside, []).level == Level.SUSPICIOUS
    assert score(policy, beside) == pytest.approx(0.1)


QUIET = {
    **dict.fromkeys(("sweep_gap", "sweep_departure", "pattern_gap", "pattern_departure"), 0.02),
    "moved_gap": 0.3, "gap_k1": 0.4, "same_target_k1": 0.95, "drift": 0.05,
}  # fmt: skip
"""What the default policy weighs, as an honest fine-tune has it; without its `spread` and its text."""


def test_a_text_that_leads_many_prompts_is_not_enough_and_one_that_overrides_them_is_at_any_spread() -> None:
    policy = POLICIES["amdet-2"]
    tags = evidence(**QUIET, spread=0.82, literal_gap=0.57, literal_success=0.61)
    assert decide(policy, tags, []).level == Level.CLEAN
    for spread in (0.3, 0.82):
        taken = evidence(**QUIET, spread=spread, literal_gap=0.95, literal_success=1.0)
        assert decide(policy, taken, []).level == Level.BACKDOORED


def test_below_what_the_gravest_finding_asks_of_a_text_its_gap_and_share_are_noise() -> None:
    policy = POLICIES["amdet-2"]
    (finding,) = (one for one in policy.findings if any(when.evidence == "literal_success" for when in one.when))
    terms = [one for known in policy.calibrations for one in known.terms if "literal_success" in one.times]
    assert len(terms) == len(policy.calibrations)
    assert {term.least for term in terms} == {prod(when.bound for when in finding.when)}


@pytest.mark.parametrize("lost", ["sweep_gap", "literal_gap", "same_target_k1"])
def test_what_came_out_as_no_number_is_never_clean(lost: str) -> None:
    policy = POLICIES["amdet-2"]
    values = {name: 0.01 for name in policy.weighs if not name.startswith("alone")} | {"spread": 1.0}
    assert decide(policy, evidence(**values), []).level == Level.CLEAN
    found = decide(policy, evidence(**values | {lost: None}), [])
    assert found.level == Level.INCONCLUSIVE
    assert f"no number: {lost}" in found.reasons[0]


def test_a_score_within_those_of_honest_encoders_is_clean_and_says_how_high() -> None:
    found = decide(CALIBRATED, evidence(sweep_gap=0.1), [])
    assert found.level == Level.CLEAN
    assert found.p_value == pytest.approx(0.5, abs=0.01)
    assert "199 fine-tunes of a toy" in found.reasons[0]


def test_of_several_encoders_each_may_be_flagged_by_chance() -> None:
    one = evidence(sweep_gap=0.17)
    found, alone = decide(CALIBRATED, [*one, *evidence_of("clip_g", sweep_gap=0.1)], []), decide(CALIBRATED, one, [])
    assert found.p_value == pytest.approx(2 * alone.p_value) and found.rate == pytest.approx(2 * alone.rate)
    assert "flag 2.0% at most" in found.statement
    many = [item for i in range(9) for item in evidence_of(f"encoder {i}", sweep_gap=0.1)]
    assert decide(CALIBRATED, many, []).p_value == 1
    same = evidence_of("clip_g", identical_to_trusted=1)
    assert decide(CALIBRATED, [*one, *same], []).p_value == alone.p_value


def test_without_the_evidence_or_with_a_fault_it_is_never_clean() -> None:
    assert decide(CALIBRATED, evidence(literal_gap=0.1), []).level == Level.INCONCLUSIVE
    fault = Fault(stage="sweep", error="X", message="broke", encoder="clip_l")
    assert decide(CALIBRATED, evidence(sweep_gap=0.1), [fault]).level == Level.INCONCLUSIVE
    assert decide(CALIBRATED, evidence(sweep_gap=0.9, **TEXT_FOUND), [fault]).level == Level.BACKDOORED


def test_the_score_of_a_calibrated_policy_is_positive_exactly_when_it_flags() -> None:
    for gap in (0.0, 0.1, 0.19, 0.2, 0.21, 0.9):
        margin = score(CALIBRATED, evidence(sweep_gap=gap))
        assert margin is not None
        assert (margin > 0) == (decide(CALIBRATED, evidence(sweep_gap=gap), []).level > Level.CLEAN)
    assert score(CALIBRATED, evidence(pattern_gap=0.9)) is None
    assert score(CALIBRATED, evidence(**TEXT_FOUND)) == pytest.approx(0.15), "by the bounds of a finding alone"


FAR = CALIBRATED.model_copy(update={"drift": 0.2})
"""One that knows how far its honest encoders drift."""


def test_what_drifts_farther_than_honest_encoders_cannot_be_compared_with_them() -> None:
    odd = evidence(sweep_gap=0.3, drift=0.26)
    found = decide(FAR, odd, [])
    assert found.level == Level.INCONCLUSIVE
    assert found.p_value is found.rate is None
    assert "(drift 0.26, theirs up to 0.20)" in found.reasons[0] and "nearer anchor" in found.reasons[0]
    for near in (evidence(sweep_gap=0.3, drift=0.25), evidence(sweep_gap=0.3)):
        assert decide(FAR, near, []).level == Level.SUSPICIOUS
    assert decide(CALIBRATED, odd, []).level == Level.SUSPICIOUS, "it does not know how far they drift"


def test_what_overrides_prompts_is_a_backdoor_however_far_it_drifts() -> None:
    found = decide(FAR, evidence(sweep_gap=0.9, drift=0.9, **TEXT_FOUND), [])
    assert found.level == Level.BACKDOORED
    assert found.p_value is None, "no honest encoder is known that could be compared"
    beside = decide(FAR, evidence(sweep_gap=0.3, drift=0.9, spread=0.1), [])
    assert beside.level == Level.SUSPICIOUS


def test_what_goes_no_further_than_honest_encoders_is_clean_although_it_drifts_farther() -> None:
    found = decide(FAR, evidence(sweep_gap=0.1, drift=0.9), [])
    assert found.level == Level.CLEAN
    assert found.p_value == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("text", [{}, TEXT_FOUND, {"literal_gap": 0.9, "literal_success": 0.1}])
@pytest.mark.parametrize("gap", [0.0, 0.19, 0.21, 0.9])
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_the_score_is_positive_exactly_when_it_flags_what_drifted_far_too(
    text: dict[str, float], gap: float, spread: float
) -> None:
    odd = evidence(sweep_gap=gap, drift=0.9, spread=spread, **text)
    margin = score(FAR, odd)
    assert margin is not None
    assert (margin > 0) == (decide(FAR, odd, []).level > Level.INCONCLUSIVE)


def test_a_null_without_any_evidence_ranks_what_has_some() -> None:
    nothing = KNOWN.model_copy(update={"null": (0.0,) * 199})
    assert nothing.margin(0.0) < 0 < nothing.margin(0.01) < nothing.margin(0.5)


# ------------------------------------------------------------------ learning


def test_what_honest_models_reach_is_learnt_and_both_ways_of_showing_count() -> None:
    fitted = calibrate(each(zoo()), [GAP, AWAY], "toys")
    assert [term.honest for term in fitted.terms] == pytest.approx([0.2, 0.2], abs=0.02)
    assert len(fitted.null) == 120
    assert fitted.caught == fitted.n_backdoored == 40
    assert list(fitted.null) == sorted(fitted.null)
    assert sum(score > 1 for score in fitted.null) <= 2  # one for each term: each is measured by the others
    for one in zoo(seed=7)[:40]:
        values = fitted.values(one.evidence.get)
        assert values is not None
        assert fitted.p_value(fitted.score(values)) <= 0.01


def test_an_attack_that_shows_in_one_quantity_alone_needs_no_example() -> None:
    honest = [one for one in zoo() if one.label == "benign"]
    fitted = calibrate(each(honest), [GAP, AWAY], "toys")
    assert fitted.n_backdoored == 0
    assert fitted.score({fitted.terms[0]: 0.05, fitted.terms[1]: 0.5}) > fitted.bound


def test_what_is_tiny_is_noise_even_where_honest_models_have_none() -> None:
    still = [row(i, "benign", sweep_gap=0.0) for i in range(120)]
    fitted = calibrate(each(still), [GAP], "toys")
    assert fitted.score({fitted.terms[0]: 0.04}) < 1
    assert fitted.score({fitted.terms[0]: 0.5}) == pytest.approx(10)


def test_honest_models_that_cross_bounds_raise_the_stated_rate() -> None:
    when = (Condition(evidence="sweep_gap", op=">=", bound=0.15),)
    finding = Finding(level=Level.SUSPICIOUS, reason="", when=when)
    fitted = calibrate(each(zoo()), [GAP], "toys", 0.01, [finding])
    crossing = sum((one.evidence["sweep_gap"] or 0) >= 0.15 for one in zoo() if one.label == "benign")
    assert fitted.alarms == crossing > 0
    assert fitted.stated_rate == pytest.approx(0.01 + crossing / 121)


def test_the_null_knows_nothing_of_the_model_that_it_scores() -> None:
    """With evidence that is pure noise for each model, no honest model is told apart."""
    random = Random(3)
    noise = [row(i, "backdoored" if i < 60 else "benign", sweep_gap=random.random()) for i in range(180)]
    fitted = calibrate(each(noise), [GAP], "toys")
    p_values = [
        fitted.p_value(fitted.score(values))
        for one in noise[:60]
        if (values := fitted.values(one.evidence.get)) is not None
    ]
    assert sum(p <= 0.05 for p in p_values) <= 9
    assert fitted.caught <= 3


def test_a_calibration_that_was_not_learnt_judges_nothing() -> None:
    blank = CALIBRATED.model_copy(update={"calibrations": (KNOWN.model_copy(update={"null": ()}),)})
    assert blank.calibrated({"sweep_gap": 0.9}.get) is None


def test_scans_without_an_anchor_are_learnt_from_apart() -> None:
    lone = [
        row(i, "benign" if i % 2 else "backdoored", alone_sweep_gap=0.1 if i % 2 else 0.9, alone_sweep_departure=0.9)
        for i in range(40)
    ]
    alone = Calibration(family="?", terms=(GAP.model_copy(update={"evidence": "alone_sweep_gap"}),))
    blank = CALIBRATED.model_copy(
        update={"calibrations": (KNOWN.model_copy(update={"null": (), "terms": (GAP,)}), alone), "findings": ()}
    )
    first, second = calibrate_policy(blank, each([*zoo(), *lone]), "toys").calibrations
    assert (len(first.null), first.n_backdoored) == (120, 40)
    assert (len(second.null), second.n_backdoored, second.caught) == (20, 20, 20)
    kept = calibrate_policy(blank, each(zoo()), "toys").calibrations
    assert kept[1] == alone, "nothing was measured of it"
    with pytest.raises(ConfigError, match="results that measure"):
        calibrate_policy(blank, each([row(1, "benign", other=0.5)]), "toys")


def test_without_an_anchor_what_stands_out_is_suspicious_and_the_rest_is_not_called_clean() -> None:
    alone = KNOWN.model_copy(update={"terms": (GAP.model_copy(update={"evidence": "alone_sweep_gap", "honest": 0.2}),)})
    policy = CALIBRATED.model_copy(update={"calibrations": (KNOWN, alone)})
    found = decide(policy, evidence(alone_sweep_gap=0.9), [])
    assert found.level == Level.SUSPICIOUS
    assert "measured without an anchor" in found.statement
    assert "fine-tune of its anchor" in decide(policy, evidence(sweep_gap=0.3), []).statement
    assert decide(policy, evidence(alone_sweep_gap=0.01), []).level == Level.INCONCLUSIVE


def test_a_row_counts_for_every_calibration_of_which_it_has_all() -> None:
    less = Calibration(family="?", terms=(GAP,))
    more = Calibration(family="?", terms=(GAP, AWAY))
    blank = CALIBRATED.model_copy(update={"calibrations": (more, less)})
    quick = [row(i, "benign", sweep_gap=0.3) for i in range(15)]
    first, second = calibrate_policy(blank, each([*zoo(), *quick]), "toys").calibrations
    assert (len(first.null), len(second.null)) == (120, 135)


def test_scans_of_one_model_count_as_one_by_the_farthest_and_never_by_each_other() -> None:
    def less(one: ModelResult) -> ModelResult:
        return one.model_copy(update={"evidence": {"sweep_gap": 0.9 * (one.evidence["sweep_gap"] or 0)}})

    once = calibrate(each(zoo()), [GAP], "toys")
    both = calibrate([[one, less(one)] for one in zoo()], [GAP], "toys")
    assert (both.null, both.terms, both.n_backdoored) == (once.null, once.terms, once.n_backdoored)


def test_what_clean_prompts_show_in_one_scan_of_a_model_completes_the_others() -> None:
    term = GAP.model_copy(update={"less": ("drift",)})
    blank = CALIBRATED.model_copy(update={"calibrations": (KNOWN.model_copy(update={"terms": (term,)}),)})
    drifts = [one.model_copy(update={"evidence": {"drift": 0.5}}) for one in zoo()]
    fitted = calibrate_policy(blank, list(zip(zoo(), drifts, strict=True)), "toys")
    (before,) = calibrate(each(zoo()), [GAP], "toys").terms
    assert fitted.calibrations[0].terms[0].honest == pytest.approx(before.honest / 2, abs=1e-4)
    with pytest.raises(ConfigError, match="results that measure"):
        calibrate_policy(blank, each(zoo()), "toys")


def test_the_policy_that_ships_is_what_the_committed_scans_teach() -> None:
    shipped, folder = POLICIES["amdet-2"], Path(__file__).parents[2] / "benchmarks" / "calibration"
    zoos, others = ("train", "honest", "styles", "benign"), ("honest-amdet-2-quick", "benign-amdet-2-relative")
    files = [*(f"{zoo}-amdet-2" for zoo in zoos), *others]
    models = by_model(read_detection(folder / f"detection-{file}.json") for file in files)
    assert calibrate_policy(shipped, models, shipped.calibrations[0].family) == shipped
    assert [len(one.null) for one in shipped.calibrations] == [184, 218]


def test_models_of_one_name_made_from_two_bases_are_two() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "calibration"
    one = read_detection(folder / "detection-train-amdet-2.json")
    other = one.model_copy(update={"zoo": one.zoo.model_copy(update={"base_fingerprint": "f" * 64})})
    assert [len(scans) for scans in by_model([one, one])] == [2] * len(one.models)
    assert [len(scans) for scans in by_model([one, other])] == [1] * 2 * len(one.models)


def test_results_of_no_model_are_no_calibration() -> None:
    with pytest.raises(ConfigError, match="results that measure"):
        calibrate_policy(CALIBRATED, [], "toys")


def test_how_far_honest_models_drift_is_learnt_and_never_below_any_of_them() -> None:
    drifts = [0.00001 + i / 1000 for i in range(120)]
    rows = [
        one.model_copy(update={"evidence": {**one.evidence, "drift": drift}})
        for one, drift in zip(zoo()[40:], drifts, strict=True)
    ]
    blank = CALIBRATED.model_copy(update={"calibrations": (KNOWN.model_copy(update={"terms": (GAP,)}),)})
    fitted = calibrate_policy(blank, each([*rows, row(999, "backdoored", sweep_gap=0.9, drift=1.5)]), "toys")
    assert fitted.drift == 0.1191
    assert not fitted.beyond({"drift": drifts[-1]}.get)
    assert calibrate_policy(blank, each(zoo()), "toys").drift is None


def test_too_few_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 10 honest models with sweep_gap"):
        calibrate(each(zoo(honest=5)), [GAP], "toys")
    with pytest.raises(ConfigError, match="0 of 120"):
        calibrate(each(zoo()), [AGREED], "toys")


# ------------------------------------------------------------------ honest controls


def controls(encoder: str, *gaps: float, **more: float) -> list[Control]:
    return [Control(encoder=encoder, made_by="x", evidence={"sweep_gap": gap, **more}) for gap in gaps]


def test_the_encoders_own_controls_count_in_place_of_what_the_policy_knows() -> None:
    suspect = evidence(sweep_gap=0.5, **TEXT_FOUND)
    assert decide(CALIBRATED, suspect, []).level == Level.BACKDOORED
    near = controls("clip_l", *(i / 100 for i in range(10, 29)), literal_gap=0.1)
    found = decide(CALIBRATED, suspect, [], near)
    assert found.level == Level.BACKDOORED
    assert found.rate == found.p_value == 1 / 20
    assert found.statement.endswith(f"Of {CONTROLS}, it is set to flag 5.0% at most; for others that is not known.")
    far = controls("clip_l", *(0.5 + i / 100 for i in range(19)), literal_gap=0.9)
    assert decide(CALIBRATED, suspect, [], far).level == Level.CLEAN
    assert (score(CALIBRATED, suspect, near) or 0) > 0 > (score(CALIBRATED, suspect, far) or 0)


def test_too_few_controls_and_those_of_another_encoder_change_nothing() -> None:
    suspect = evidence(sweep_gap=0.5, **TEXT_FOUND)
    plain = decide(CALIBRATED, suspect, [])
    for others in (
        controls("clip_l", *[0.9] * (FEWEST_CONTROLS - 1), literal_gap=0.9),
        controls("clip_g", *[0.9] * 30, literal_gap=0.9),
        [Control(encoder="clip_l", made_by="x", evidence={"spread": 1.0})] * 30,
    ):
        assert decide(CALIBRATED, suspect, [], others) == plain


def test_how_far_the_controls_drift_counts_in_place_of_what_the_policy_knows() -> None:
    odd = evidence(sweep_gap=0.3, drift=0.26)
    own = controls("clip_l", *[0.1] * 19, drift=0.21)
    assert decide(FAR, odd, [], own).level == Level.SUSPICIOUS
    near = decide(FAR, odd, [], controls("clip_l", *[0.1] * 19, drift=0.15))
    assert near.level == Level.INCONCLUSIVE and "thorough" not in near.reasons[0]
    assert decide(FAR, odd, [], controls("clip_l", *[0.1] * 19)).level == Level.SUSPICIOUS, "theirs was not measured"


def test_a_control_that_other_bounds_flag_raises_the_stated_rate() -> None:
    own = [*controls("clip_l", *[0.1] * 18, spread=1.0), *controls("clip_l", 0.1, spread=0.1)]
    assert decide(CALIBRATED, evidence(sweep_gap=0.05), [], own).rate == pytest.approx(2 / 20)


def test_what_is_learnt_scores_each_honest_encoder_by_the_others() -> None:
    scans = [[{"sweep_gap": gap}.get] for gap in (0.1, 0.2, 0.4)]
    learnt = Calibration.learnt((GAP,), [*scans, [{}.get]], "toys", 0.01)
    assert learnt.terms[0].honest == 0.4
    assert learnt.null == (0.25, 0.5, 2.0)
    assert Calibration.learnt((GAP,), [scans[0], [{}.get]], "toys", 0.01).null == ()
