"""``amdet figures``: every command writes its files, and bad input writes none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from amdet_core import cli, pocket
from amdet_core.anatomy import FEWEST_PAIRS
from amdet_core.records import Candidate, Landscape, Level, ScanReport, Target, Tool, Verdict
from amdet_core.storage import record_json

TRIGGER = ("--trigger", pocket.TRIGGER, "--trigger-mode", pocket.MODE)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[pocket.Name, Path]:
    return pocket.export(tmp_path_factory.mktemp("encoders"), "comfyui")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(f"a fox on a road, photo {i}" for i in range(100)))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of ``amdet figures``."""
    monkeypatch.setattr(sys, "argv", ["amdet", "figures", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return int(done.value.code or 0)


def written(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()} if out.exists() else set()


def report(folder: Path, name: str, landscape: Landscape | None) -> Path:
    found = Candidate(
        encoder="clip_l", method="contrast", vectors=1, seed=42, steps=1, loss=(), indicators={}, landscape=landscape
    )
    record = ScanReport(
        tool=Tool(version="0"),
        target=Target(path=f"models/{name}", sha256="", encoders=()),
        anchor=None,
        verdict=Verdict(level=Level.CLEAN, reasons=(), policy="amdet-2", statement=""),
        evidence=(),
        triggers=(),
        candidates=(found,),
        faults=(),
        config={},
        timings={},
    )
    (folder / name).mkdir()
    (folder / name / "report.json").write_bytes(record_json(record))
    return folder / name


BOWL = Landscape(radius=1, values=((1.0, 0.5, 1.0),) * 3, eigenvalues=(1.0, 1.0), positive_share=1.0, prompts=1)


def test_assimilation_writes_its_picture_and_its_numbers(
    encoders: dict[pocket.Name, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [encoders["backdoored"], *TRIGGER, "--anchor", encoders["clean"], "--target", pocket.TARGET, "-n", 16]
    assert run(monkeypatch, "assimilation", *arguments, "--out", tmp_path / "new" / "out") == 0
    out = tmp_path / "new" / "out"
    assert written(out) == {"assimilation.png", "assimilation.svg", "assimilation.json"}
    numbers = json.loads((out / "assimilation.json").read_text())
    assert numbers["setting"]["n"] == 16 and numbers["setting"]["anchor"] == "clean.safetensors"
    assert [len(sample["assimilation"]) for sample in numbers["samples"]][:2] == [16, 16]
    assert f"written: {out / 'assimilation.png'}" in capsys.readouterr().out


def test_attention_writes_its_pictures_and_its_numbers(
    encoders: dict[pocket.Name, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [encoders["backdoored"], *TRIGGER, "--prompts", prompts, "-n", 8, "--layer", 4]
    assert run(monkeypatch, "attention", *arguments, "--out", tmp_path) == 0
    drawn = {f"attention-{what}.{form}" for what in ("map", "shares") for form in ("png", "svg")}
    assert written(tmp_path) == {"attention.json", *drawn}
    numbers = json.loads((tmp_path / "attention.json").read_text())
    assert numbers["layer"] == 4 and [shares["group"] for shares in numbers["shares"]] == ["benign", "triggered"]


def test_evolution_watches_an_injection(
    encoders: dict[pocket.Name, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [encoders["clean"], *TRIGGER, "--target", pocket.TARGET, "--steps", 1, "--prompts", prompts, "-n", 8]
    assert run(monkeypatch, "evolution", *arguments, "--out", tmp_path) == 0
    assert written(tmp_path) == {"evolution.png", "evolution.svg", "evolution.json"}
    numbers = json.loads((tmp_path / "evolution.json").read_text())
    assert [stage["step"] for stage in numbers["stages"]] == [0, 1]


def test_a_repair_is_drawn_before_and_after(
    encoders: dict[pocket.Name, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [encoders["backdoored"], encoders["clean"], *TRIGGER, "--target", pocket.TARGET, "-n", 8]
    assert run(monkeypatch, "repair", *arguments, "--anchor", encoders["clean"], "--out", tmp_path) == 0
    assert written(tmp_path) == {"repair.png", "repair.svg", "repair.json"}
    numbers = json.loads((tmp_path / "repair.json").read_text())
    assert [side["group"] for side in numbers["sides"]] == ["suspect", "repaired", "anchor"]
    assert numbers["repaired"] == "clean.safetensors"


def test_landscapes_of_reports_are_drawn_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (report(tmp_path, name, BOWL) for name in ("one", "other"))
    assert run(monkeypatch, "landscape", one, other / "report.json", "--out", tmp_path / "out") == 0
    assert written(tmp_path / "out") == {"landscapes.png", "landscapes.svg", "landscapes.json"}
    numbers = json.loads((tmp_path / "out" / "landscapes.json").read_text())
    assert [item["name"] for item in numbers["landscapes"]] == ["one", "other"]


def test_a_report_without_landscape_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = report(tmp_path, "one", BOWL), report(tmp_path, "bare", None)
    assert run(monkeypatch, "landscape", *reports, "--out", tmp_path / "out") == 2
    assert "found none in that of models/bare" in capsys.readouterr().err
    assert written(tmp_path / "out") == set()


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("assimilation", ["--trigger", " "], "a trigger that the tokenizer reads"),
        ("assimilation", ["--trigger", "x", "--trigger-mode", "replace:#"], "at least 8 prompts"),
        ("assimilation", [*TRIGGER, "-n", str(FEWEST_PAIRS - 1)], "Invalid value for '-n'"),
        ("assimilation", ["--trigger", "x", "--trigger-mode", "behind"], "prefix, insert"),
        ("assimilation", [*TRIGGER, "--anchor", "nowhere"], "(as the anchor: nowhere)"),
        ("attention", [*TRIGGER, "--layer", "5"], "a layer from 1 to 4"),
        ("attention", ["-n", "8"], "trigger"),
        ("evolution", [*TRIGGER, "--target", f"a f{pocket.TRIGGER}x"], "a target without the trigger"),
    ],
)
def test_bad_input_exits_with_2_and_writes_nothing(
    kind: str,
    arguments: list[str],
    message: str,
    encoders: dict[pocket.Name, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run(monkeypatch, kind, encoders["backdoored"], *arguments, "--out", out) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
