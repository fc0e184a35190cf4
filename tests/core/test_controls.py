"""Honest controls: how they are made, and what a job does with them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from amdet_core import controls, jobs
from amdet_core.anchors import Anchors
from amdet_core.attacks import benign
from amdet_core.calibration import Calibration, Term
from amdet_core.config import ContrastConfig, FineTuneConfig, ScanConfig
from amdet_core.encoder import TextEncoder
from amdet_core.errors import NumericalError
from amdet_core.findings import Findings, Subject
from amdet_core.forensics import distance
from amdet_core.formats import FoundEncoder, OpenedTarget
from amdet_core.memory import OUT_OF_MEMORY
from amdet_core.policy import CONTROLS, FEWEST_CONTROLS, POLICIES
from amdet_core.progress import silent
from amdet_core.prompts import builtin_prompts
from amdet_core.records import Level
from amdet_core.report import render_html
from amdet_core.tails import Side, drift
from amdet_core.verdict import decide

PROMPTS = builtin_prompts(200)
TERM = Term(evidence="gap_k1", words="one vector makes all prompts give one output")
POLICY = POLICIES["amdet-2"].model_copy(
    update={
        "required": ("gap_k1",),
        "calibrations": (Calibration(family="others", terms=(TERM,), null=tuple(i / 100 for i in range(99))),),
    }
)
"""Bounds on other evidence are the default policy's; by what is weighed here, a few steps are enough."""
QUICK = ScanConfig(
    contrast=ContrastConfig(vectors=(1,), seeds=1, steps=2, restarts=2, draws=2, pool=30, held_out=12),
    landscape=None,
    controls=FEWEST_CONTROLS,
)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of a few steps."""
    monkeypatch.setattr(controls, "TRAINING", controls.TRAINING.model_copy(update={"steps": 3, "batch": 8}))


def changed(encoder: TextEncoder, by: float) -> TextEncoder:
    generator = torch.Generator().manual_seed(7)
    return encoder.with_weights(
        {name: w + by * torch.randn(w.shape, generator=generator) for name, w in encoder.weights.items()}
    )


def drifted(encoder: TextEncoder, anchor: TextEncoder) -> float:
    texts = PROMPTS.split()[0].prompts[: controls.DRIFT_PROMPTS]
    return drift(Side.of(encoder, texts), Side.of(anchor, texts))


@pytest.mark.parametrize("apart", [0.003, 0.03, 0.1])
@pytest.mark.parametrize("number", [0, 4, 8, 9, 18])
def test_a_control_drifts_as_far_as_it_should(toy: TextEncoder, apart: float, number: int) -> None:
    before = {name: w.clone() for name, w in toy.weights.items()}
    encoder, made_by = controls.control(toy, apart, number, PROMPTS, 1)
    wanted = apart * controls.SHARES[number // len(controls.HOW)]
    assert 0.8 * wanted < drifted(encoder, toy) <= 1.001 * wanted
    assert made_by.split(" fine-tune of ")[0] == controls.HOW[number % len(controls.HOW)][1]
    assert all(torch.equal(w, before[name]) for name, w in toy.weights.items())


def test_none_drifts_farther_than_honest_models_do(toy: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "CONTROLS_DRIFT", 0.01)
    assert drifted(controls.control(toy, 1.5, 0, PROMPTS, 1)[0], toy) < 0.0101


def test_drift_is_0_for_what_says_the_same_whatever_its_weights(toy: TextEncoder) -> None:
    one = Side.of(toy, PROMPTS.prompts[:20])
    assert drift(one, one) == pytest.approx(0, abs=1e-6)
    assert drift(one, replace(one, clean=-one.clean)) == pytest.approx(2)


def test_controls_differ_and_the_same_seed_gives_the_same(toy: TextEncoder) -> None:
    one, again, other = (controls.control(toy, 0.01, 0, PROMPTS, seed)[0] for seed in (1, 1, 2))
    assert distance(one, again) == 0
    assert distance(one, other) > 0.001


def test_it_trains_again_only_while_it_is_too_near(toy: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = benign.fine_tune

    def counted(encoder, prompts, config: FineTuneConfig, progress=silent):  # type: ignore[no-untyped-def]
        rates.append(config.learning_rate)
        return real(encoder, prompts, config, progress)

    monkeypatch.setattr(controls.benign, "fine_tune", counted)
    controls.control(toy, 1e-6, 0, PROMPTS, 1)
    assert rates == [controls.TRAINING.learning_rate]
    rates.clear()
    controls.control(toy, 0.2, 0, PROMPTS, 1)
    assert 1 < len(rates) <= controls.TRIES
    assert rates == sorted(rates)
    assert all(later <= controls.FASTER * rate * 1.001 for rate, later in pairwise(rates))


def test_a_job_judges_by_them_says_so_and_tells_how_far_it_is(toy: TextEncoder) -> None:
    found = FoundEncoder("clip_l", changed(toy, 0.002), "float32", "graph", ())
    opened = OpenedTarget(Path("clip_l.safetensors"), (), (found,), (), 0)
    anchors = Anchors((FoundEncoder("clip_l", toy, "float32", "graph", ()),), "anchor", False, None)
    told: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int, *_: object) -> None:
        told.append((stage, done, total))

    report = jobs.scan_opened(opened, anchors, QUICK, POLICY, PROMPTS, torch.device("cpu"), progress=progress).report
    assert not report.faults
    assert [control.encoder for control in report.controls] == ["clip_l"] * FEWEST_CONTROLS
    assert len({control.made_by for control in report.controls}) == FEWEST_CONTROLS
    assert all(control.evidence.keys() == {one.name for one in report.evidence} for control in report.controls)
    flagged = sum(
        (control.evidence["spread"] or 0) <= 0.2 for control in report.controls
    )  # by a bound beside the score
    assert report.verdict.rate == pytest.approx((1 + flagged) / (FEWEST_CONTROLS + 1))
    assert f"Of {CONTROLS}, it is set to flag" in report.verdict.statement
    assert report.verdict == decide(POLICY, report.evidence, report.faults, report.controls)
    assert report.timings["controls"] > 0
    plan = jobs.stages(QUICK)
    assert {stage for stage, _, _ in told} - plan.keys() <= {"identify", "starts"}
    assert f"control {FEWEST_CONTROLS} of {FEWEST_CONTROLS}" in plan
    page = render_html(report)
    assert "Honest controls of clip_l" in page
    assert all(control.made_by in page for control in report.controls)
    assert "How often policy" in render_html(report.model_copy(update={"controls": report.controls[1:]}))
    assert "How often policy" not in page, "the rate of the policy's own calibration does not hold here"


def test_without_an_anchor_or_with_the_anchor_itself_there_are_none(toy: TextEncoder) -> None:
    for subject in (Subject("clip_l", toy, None), Subject("clip_l", toy, toy, identical=True)):
        found = Findings()
        controls.scan_controls(subject, PROMPTS, QUICK, POLICY, found, progress=silent)
        assert (found.controls, found.faults, found.timings) == ([], [], {})


def test_one_that_fails_is_a_fault_and_the_others_are_made(toy: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = controls.control

    def diverging(anchor, apart, number, *args):  # type: ignore[no-untyped-def]
        if number == 1:
            raise NumericalError("a finite loss", "nan", "Lower the rate.")
        return real(anchor, apart, number, *args)

    monkeypatch.setattr(controls, "control", diverging)
    found, config = Findings(), QUICK.model_copy(update={"controls": 3})
    subject = Subject("clip_l", changed(toy, 0.002), toy)
    controls.scan_controls(subject, PROMPTS, config, POLICY, found, progress=silent)
    assert len(found.controls) == 2
    assert [(fault.stage, fault.encoder, fault.error) for fault in found.faults] == [
        ("controls", "clip_l", "NumericalError")
    ]
    assert found.faults[0].message.startswith("honest control 2 of 3: ")
    assert decide(POLICY, found.evidence, found.faults, found.controls).level == Level.INCONCLUSIVE


def test_a_stage_that_fails_on_a_control_is_told_apart_from_one_of_the_suspect(toy: TextEncoder) -> None:
    assert QUICK.contrast is not None
    hard = QUICK.contrast.model_copy(update={"prompt_tokens": (70,)})  # no prompt is as long
    broken = QUICK.model_copy(update={"controls": 2, "contrast": hard})
    found = Findings()
    controls.scan_controls(Subject("clip_l", changed(toy, 0.002), toy), PROMPTS, broken, POLICY, found, progress=silent)
    assert [fault.stage for fault in found.faults] == ["controls"], "what all have in common is said once"
    assert found.faults[0].message.startswith("honest control 1, 2 of 2: contrast: ")


def test_without_room_to_train_all_weights_low_rank_additions_are_trained(
    toy: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = benign.fine_tune

    def cramped(encoder, prompts, config: FineTuneConfig, progress=silent):  # type: ignore[no-untyped-def]
        if config.trains != "lora":
            raise OUT_OF_MEMORY("no room")
        return real(encoder, prompts, config, progress)

    monkeypatch.setattr(controls.benign, "fine_tune", cramped)
    encoder, made_by = controls.control(toy, 0.001, 0, PROMPTS, 1)
    assert made_by.startswith("contrastive fine-tune of low-rank additions")
    assert 0 < drifted(encoder, toy) < 0.00101

    def full(*_: object) -> None:
        raise OUT_OF_MEMORY("no room at all")

    monkeypatch.setattr(controls.benign, "fine_tune", full)
    with pytest.raises(OUT_OF_MEMORY, match="at all"):
        controls.control(toy, 0.001, 0, PROMPTS, 1)
