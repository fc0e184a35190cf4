"""The loop: what is changed, what is left alone, and what is said, with scans that are given."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amdet_core import pocket
from amdet_core.anchors import Anchors
from amdet_core.config import DistilConfig, EraseConfig, HealConfig, RestoreConfig, SpectralConfig
from amdet_core.encoder import TextEncoder
from amdet_core.errors import ConfigError
from amdet_core.formats import FoundEncoder, OpenedTarget
from amdet_core.jobs import Outcome as Scanned
from amdet_core.policy import POLICIES
from amdet_core.prompts import builtin_prompts
from amdet_core.records import Level, ScanReport, Target, Tool, Trigger, Verdict
from amdet_core.repair import Clinic, HealReport, Probe, condition, heal, heal_each, render_heal, render_repairs
from amdet_core.repair.heal import ladder
from amdet_core.scan import plan


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on few prompts: these tests are about what is done, not about how well."""
    monkeypatch.setattr(condition, "MEASURED_PROMPTS", 16)
    monkeypatch.setattr(condition, "CLEAN_PROMPTS", 32)


TOKENS = tuple(pocket.load("clean").tokenizer.encode(pocket.TRIGGER))


def scanned(level: Level, *, trigger: bool = False) -> Scanned:
    """A scan with this verdict, which recovered the shipped backdoor's trigger or nothing."""
    literal = Trigger(
        text=pocket.TRIGGER, code_points=(), tokens=(), token_ids=TOKENS, found_by="", encoder="text_encoder",
        collapse=0.9, n=64,
    )  # fmt: skip
    report = ScanReport(
        tool=Tool(version="0"),
        target=Target(path="suspect", sha256="", encoders=()),
        anchor=None,
        verdict=Verdict(level=level, reasons=("a reason",), policy="amdet-2", statement=""),
        evidence=(),
        triggers=(literal,) if trigger else (),
        candidates=(),
        faults=(),
        config={},
        timings={},
    )
    return Scanned(report, (), {})


def clinic(encoder: TextEncoder, anchor: TextEncoder | None) -> Clinic:
    policy = POLICIES["amdet-2"]
    return Clinic(
        opened=OpenedTarget(Path("suspect"), (), (FoundEncoder("text_encoder", encoder, "float32", "hf", ()),), (), 0),
        anchors=Anchors(
            () if anchor is None else (FoundEncoder("text_encoder", anchor, "float32", "hf", ()),), "a", False, None
        ),
        scan=plan(policy, "quick", 42),
        policy=policy,
        prompts=builtin_prompts(200),
        device=torch.device("cpu"),
    )


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Scanned]:
    """Scans that are handed out one after the other."""
    scans: list[Scanned] = []
    monkeypatch.setattr(Clinic, "scanned", lambda self, encoder=None: scans.pop(0))
    return scans


@pytest.fixture(scope="module")
def ill() -> Clinic:
    return clinic(pocket.load("backdoored"), pocket.load("clean"))


def methods(report: HealReport) -> list[str]:
    return [attempt.method for attempt in report.attempts]


@pytest.mark.parametrize(("level", "action"), [(Level.CLEAN, "nothing"), (Level.INCONCLUSIVE, "not judged")])
def test_what_is_not_found_is_not_healed(ill: Clinic, given: list[Scanned], level: Level, action: str) -> None:
    given.append(scanned(level))
    healing = heal(ill)
    assert healing.report.action == action
    assert healing.patch is None
    assert "nothing was changed" in healing.report.statement


def test_the_least_invasive_repair_is_taken_and_scanned_again(ill: Clinic, given: list[Scanned]) -> None:
    given += [scanned(Level.BACKDOORED, trigger=True), scanned(Level.CLEAN)]
    healing = heal(ill)
    assert healing.report.action == "repaired"
    assert methods(healing.report) == ["spectral"]
    assert healing.report.after == Level.CLEAN
    assert healing.patch is not None
    page = render_heal(healing.report)
    assert page.startswith("# Repaired: suspect")
    assert "The original is as it was." in page


def test_the_most_invasive_repair_comes_last_and_what_needs_more_than_there_is_is_left_out(ill: Clinic) -> None:
    probe = Probe.of_tokens("x", (320,))
    case = ill.case((probe,))
    assert [type(one) for one in ladder(case)] == [SpectralConfig, RestoreConfig, DistilConfig]
    assert [type(one) for one in ladder(replace(case, probes=()))] == [SpectralConfig, RestoreConfig]
    assert [type(one) for one in ladder(replace(case, anchor=None))] == [EraseConfig]
    assert not list(ladder(replace(case, anchor=None, probes=())))


def test_what_still_fires_is_tried_otherwise_and_failure_is_said(
    ill: Clinic, given: list[Scanned], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys.modules["amdet_core.repair.heal"], "ladder", lambda case: [SpectralConfig(), SpectralConfig(rows=0)]
    )
    given += [scanned(Level.BACKDOORED, trigger=True), scanned(Level.SUSPICIOUS), scanned(Level.BACKDOORED)]
    healing = heal(ill)
    assert healing.report.action == "failed"
    assert not healing.report.healed
    assert healing.patch is None
    assert methods(healing.report) == ["spectral", "spectral"]
    assert "No repair worked" in healing.report.statement
    assert "still says suspicious" in healing.report.statement


def test_a_repair_that_diverges_is_a_failed_attempt_and_the_next_one_is_tried(
    ill: Clinic, given: list[Scanned], monkeypatch: pytest.MonkeyPatch
) -> None:
    steep = DistilConfig(learning_rate=1e9, steps=5)
    monkeypatch.setattr(sys.modules["amdet_core.repair.heal"], "ladder", lambda case: [steep, SpectralConfig()])
    given += [scanned(Level.BACKDOORED, trigger=True), scanned(Level.CLEAN)]
    healing = heal(ill)
    assert methods(healing.report) == ["distil", "spectral"]
    assert healing.report.action == "repaired"
    assert healing.report.attempts[0].outcome is None
    assert "finite" in healing.report.attempts[0].error
    assert healing.report.attempts[0].error in render_heal(healing.report)


def test_a_rescan_reads_the_values_that_the_file_will_have(ill: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TextEncoder | None] = []
    scans = [scanned(Level.BACKDOORED, trigger=True), scanned(Level.CLEAN)]
    monkeypatch.setattr(Clinic, "scanned", lambda self, encoder=None: seen.append(encoder) or scans.pop(0))
    heal(ill)
    assert seen[1] is not None
    assert all(torch.equal(w, w.half().float()) for w in seen[1].weights.values())


def test_what_a_rescan_recovers_is_repaired_too(ill: Clinic, given: list[Scanned]) -> None:
    given += [scanned(Level.BACKDOORED), scanned(Level.BACKDOORED, trigger=True), scanned(Level.CLEAN)]
    healing = heal(ill)
    assert healing.report.action == "repaired"
    assert methods(healing.report) == ["spectral", "spectral"]
    assert healing.report.triggers == (repr(pocket.TRIGGER),)


def test_the_trusted_encoder_is_recommended_and_taken_on_request(ill: Clinic, given: list[Scanned]) -> None:
    given += [scanned(Level.BACKDOORED, trigger=True), scanned(Level.CLEAN)]
    lenient = HealConfig(same=0.5)
    healing = heal(ill, lenient, replaced=True)
    assert healing.report.action == "replaced"
    assert healing.patch is not None
    healed = healing.patch.apply(ill.found.encoder)
    clean = pocket.load("clean")
    assert all(torch.allclose(w, clean.weights[name], atol=1e-6) for name, w in healed.weights.items())
    given += [scanned(Level.BACKDOORED, trigger=True), scanned(Level.CLEAN)]
    assert "The option replace" in heal(ill, lenient).report.advice


def test_another_encoder_than_the_suspect_says_is_not_put_in_its_place(ill: Clinic, given: list[Scanned]) -> None:
    given.append(scanned(Level.BACKDOORED, trigger=True))
    with pytest.raises(ConfigError, match="leave replace out"):
        heal(ill, HealConfig(same=1.0), replaced=True)


def test_without_an_anchor_and_a_trigger_there_is_nothing_to_repair_by(given: list[Scanned]) -> None:
    given.append(scanned(Level.SUSPICIOUS))
    healing = heal(clinic(pocket.load("backdoored"), None))
    assert healing.report.action == "failed"
    assert "No trigger was recovered" in healing.report.statement


def test_a_method_that_was_asked_for_is_tried_alone(ill: Clinic, given: list[Scanned]) -> None:
    given += [scanned(Level.BACKDOORED, trigger=True), scanned(Level.CLEAN)]
    healing = heal(ill, method="restore")
    assert methods(healing.report) == ["restore"]
    assert healing.report.action == "repaired"


@pytest.mark.parametrize("method", ["erase", "distil"])
def test_a_method_without_a_trigger_to_work_by_changes_nothing(ill: Clinic, given: list[Scanned], method: str) -> None:
    given.append(scanned(Level.BACKDOORED))
    healing = heal(ill, method=method)
    assert (healing.report.action, healing.report.attempts) == ("failed", ())
    assert "No trigger was recovered" in healing.report.statement


def test_a_method_without_the_anchor_that_it_needs_is_an_error_before_anything_is_scanned(given: list[Scanned]) -> None:
    with pytest.raises(ConfigError, match="an anchor for spectral"):
        heal(clinic(pocket.load("backdoored"), None), method="spectral")
    given.append(scanned(Level.CLEAN))
    assert heal(clinic(pocket.load("clean"), pocket.load("clean")), method="spectral").report.action == "nothing"


def pair(ill: Clinic) -> Clinic:
    """A target with two encoders."""
    (found,) = ill.opened.encoders
    encoders = tuple(replace(found, name=name) for name in ("clip_l", "clip_g"))
    return replace(ill, opened=replace(ill.opened, encoders=encoders))


@pytest.mark.parametrize(
    ("second", "healed"), [(Level.CLEAN, True), (Level.INCONCLUSIVE, False)], ids=lambda value: str(value)
)
def test_of_two_encoders_each_is_healed_and_one_in_doubt_leaves_the_target_unhealed(
    ill: Clinic, given: list[Scanned], second: Level, healed: bool
) -> None:
    given += [scanned(Level.BACKDOORED, trigger=True), scanned(Level.CLEAN), scanned(second)]
    done = heal_each(pair(ill))
    assert [one.report.action for one in done.encoders.values()] == ["repaired", "nothing" if healed else "not judged"]
    assert (done.healed, done.found_nothing) == (healed, False)
    assert list(done.patches) == ["clip_l"]
    page = render_heal(*(one.report for one in done.encoders.values()))
    assert page.count("\n# ") + page.startswith("# ") == 2


def test_a_target_in_which_nothing_is_found_is_not_healed(ill: Clinic, given: list[Scanned]) -> None:
    given += [scanned(Level.CLEAN), scanned(Level.CLEAN)]
    done = heal_each(pair(ill))
    assert (done.healed, done.found_nothing, done.patches) == (False, True, {})


@pytest.mark.slow
def test_the_shipped_backdoor_is_healed_from_its_file_alone() -> None:
    healing = heal(clinic(pocket.load("backdoored"), pocket.load("clean")))
    assert healing.report.action == "repaired"
    assert healing.report.after == Level.CLEAN


@pytest.mark.slow
def test_an_honest_fine_tune_is_left_alone() -> None:
    healing = heal(clinic(pocket.load("benign"), pocket.load("clean")))
    assert healing.report.action == "nothing"
    assert healing.patch is None


def test_a_page_of_single_repairs_names_the_encoders_that_were_left_and_why() -> None:
    reason = ConfigError("a trigger that does something", "none", "Check it.")
    assert render_repairs({}, {"clip_g": reason}) == f"# Left as it is: clip_g\n\n{reason}\n"
    assert render_repairs({}, {}).startswith("Nothing was recovered")
