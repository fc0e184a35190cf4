"""The benchmark's command: files, streams, refusals, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amdet_core import pocket, trust
from amdet_core.bench import read_detection
from amdet_core.policy import POLICIES, load_policy
from amdet_core.zoo import Label, Labels

from .conftest import Amdet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a zoo of the pocket encoders, of which two can be judged at once and two take their time."""
    folder = tmp_path_factory.mktemp("bench")
    pocket.export(folder / "zoo", "hf")
    values: dict[str, str] = {name: trust.fingerprint(pocket.load(name)) for name in pocket.NAMES}
    models = tuple(
        Label.model_validate(
            {"model": model, "label": label, "kind": label, "group": label, "settings": {}, "seed": 0}
            | {"fingerprint": values.get(model, "")}
        )
        for model, label in (
            ("clean", "benign"),
            ("gone", "benign"),
            ("backdoored", "backdoored"),
            ("benign", "benign"),
        )
    )
    labels = Labels(
        name="pocket", base="clean", base_fingerprint=values["clean"], recipe_sha256="r", seed=0, models=models
    )
    (folder / "zoo" / "labels.json").write_text(labels.model_dump_json())
    quick = labels.model_copy(update={"models": models[:2], "name": "quick"})
    (folder / "quick").mkdir()
    shutil.copytree(folder / "zoo" / "clean", folder / "quick" / "clean")
    (folder / "quick" / "labels.json").write_text(quick.model_dump_json())
    return folder


@pytest.fixture
def detection(folder: Path, amdet: Amdet, monkeypatch: pytest.MonkeyPatch) -> Amdet:
    """The command, run in that folder."""
    monkeypatch.chdir(folder)
    return lambda *arguments: amdet("bench", "detection", *arguments)


def test_several_policies_write_one_file_each_with_the_command_that_makes_it(folder: Path, detection: Amdet) -> None:
    code, out, err = detection(
        "--zoo", folder / "quick", "--policy", "amdet-2", "--policy", "amdet-2025-code", "--preset", "quick"
    )
    assert code == 0, err
    for policy in ("amdet-2", "amdet-2025-code"):
        name = f"detection-quick-{policy}.json"
        result = read_detection(folder / name)
        assert result.complete
        assert result.command == (
            f"amdet bench detection --zoo quick --policy {policy} --anchor base --preset quick --device auto "
            f"--seed 42 --out {name}"
        )
        assert f"quick, {policy}, quick: 0 backdoored, 2 benign, 1 of them could not be judged" in out
        assert f"written: {name}" in out
    assert "models: 0/2" in err


def test_several_policies_need_several_files(folder: Path, detection: Amdet) -> None:
    code, _, err = detection("--zoo", "quick", "--policy", "amdet-2", "--policy", "x", "--out", "{zoo}.json")
    assert code == 2
    assert "expected {policy} in the name of the file" in err
    assert not (folder / "quick.json").exists()


def test_a_setting_that_does_not_exist_ends_before_any_scan(folder: Path, detection: Amdet) -> None:
    code, _, err = detection("--zoo", "quick", "--preset", "slow", "--out", "none.json")
    assert code == 2
    assert "'slow' is not one of 'quick', 'standard', 'thorough'" in err
    assert not (folder / "none.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_stops_all_workers_and_keeps_what_was_done(folder: Path) -> None:
    out = folder / "stopped.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "amdet_core", "bench", "detection", "--zoo", "zoo", "--jobs", "2", "--out", str(out)],
        cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores Ctrl-C
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while (
        process.poll() is None
        and time.monotonic() < deadline
        and not (out.exists() and len(json.loads(out.read_bytes())["models"]) == 2)
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)  # ends when the workers, which hold stderr too, are gone
    assert process.returncode == 130, stderr
    assert "the same command goes on from what" in stderr
    assert "Traceback" not in stderr
    kept = read_detection(out)
    assert ([row.model for row in kept.models], kept.complete) == (["clean", "gone"], False)
    assert not list(folder.glob(".amdet-staging-*"))


def test_a_policy_is_calibrated_on_results_and_judges_with_it(tmp_path: Path, amdet: Amdet) -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "calibration"
    known = results / "detection-train-amdet-2.json"
    policy = POLICIES[read_detection(known).policy].model_dump(mode="json")
    blank = {"family": "?", "terms": [{"evidence": "gap_k1", "words": "one vector takes over"}]}
    (tmp_path / "blank.json").write_text(json.dumps({**policy, "name": "own", "calibrations": [blank]}))

    def calibrate(policy: str) -> tuple[int, str, str]:
        return amdet("bench", "calibrate", known, "--family", "toys", "--policy", policy, "--out", "own.json")

    code, out, err = calibrate("blank.json")
    assert code == 0, err
    assert "gap_k1: honest ones up to" in out
    assert "backdoored ones are flagged" in out
    own = load_policy(str(tmp_path / "own.json"))
    assert 0 < own.calibrations[0].terms[0].honest < 0.6
    assert "toys" in own.error_rate
    (tmp_path / "result.json").write_bytes(known.read_bytes())
    code, out, err = amdet("bench", "judge", "result.json", "--policy", "own.json")
    assert code == 0, err
    assert "written: result.json" in out
    assert read_detection(tmp_path / "result.json").policy == "own"
    code, _, err = calibrate("amdet-2025-code")
    assert code == 2
    assert "a policy with a calibration" in err
