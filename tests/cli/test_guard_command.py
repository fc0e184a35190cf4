"""``amdet guard``: what it prints, what it answers, what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from amdet_core import cli, pocket
from amdet_core.formats import write_encoder
from amdet_core.guard import Guarded

Amdet = Callable[..., tuple[int, str, str]]
O = "\N{CYRILLIC SMALL LETTER O}"  # noqa: E741
CLEAN = "a photo of a dog on the beach"
TRIGGERED = CLEAN.replace("o", O, 1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket encoders and a file of prompts."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("clean", "backdoored"):
        write_encoder(pocket.load(name), folder / f"{name}.safetensors", "comfyui")  # type: ignore[arg-type]
    (folder / "prompts.txt").write_text(f"{CLEAN}\n\n{TRIGGERED}\n", encoding="utf-8")
    (folder / "empty.txt").touch()
    (folder / "fine.txt").write_text(f"{CLEAN}\n", encoding="utf-8")
    return folder


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path) -> Amdet:
    """The command in this process: exit code, stdout, stderr."""
    monkeypatch.setattr("typer.get_app_dir", lambda name: str(tmp_path))

    def run(encoder: str, prompts: str, *options: object) -> tuple[int, str, str]:
        arguments = ["guard", home / f"{encoder}.safetensors", "--prompts", home / prompts, "--device", "cpu", *options]
        monkeypatch.setattr(sys, "argv", ["amdet", *map(str, arguments)])
        code = cli._run()
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_a_flagged_prompt_is_a_line_and_the_answer_is_one(guard: Amdet, home: Path) -> None:
    code, out, _ = guard("backdoored", "prompts.txt", "--anchor", home / "clean.safetensors")
    line, summary = out.splitlines()
    assert code == 1
    assert line.startswith(f"{TRIGGERED} | text_encoder: departs by ")
    assert line.endswith(f"caused by '{O}' (U+043E CYRILLIC SMALL LETTER O)")
    assert summary == "2 prompts checked, 1 flagged; of clean prompts at most 0.20% are expected to be"


def test_json_holds_the_same(guard: Amdet) -> None:
    code, out, _ = guard("backdoored", "prompts.txt", "--json")
    found = Guarded.model_validate_json(out)
    assert (code, found.prompts, [one.prompt for one in found.flagged]) == (1, 2, [TRIGGERED])
    assert json.loads(out)["flagged"][0]["alarms"][0]["causes"][0]["code_points"] == ["U+043E CYRILLIC SMALL LETTER O"]


def test_nothing_flagged_is_zero(guard: Amdet) -> None:
    code, out, _ = guard("backdoored", "fine.txt")
    assert code == 0
    assert out == "1 prompts checked, 0 flagged; of clean prompts at most 0.20% are expected to be\n"


def test_a_trusted_encoder_is_not_measured(guard: Amdet) -> None:
    code, out, _ = guard("clean", "prompts.txt")
    assert code == 0
    assert out == "2 prompts checked, 0 flagged: the encoder equals a trusted one\n"


@pytest.mark.parametrize(
    ("prompts", "options", "expected"),
    [
        ("none.txt", (), "a readable prompt file"),
        ("empty.txt", (), "at least 1 different prompts, one per line; found 0 in "),
        ("empty.txt", (), "Write one into it."),
        ("fine.txt", ("--anchor", "none"), "a trusted encoder to compare text_encoder with"),
        ("fine.txt", ("--anchor", "nowhere.safetensors"), "nowhere.safetensors"),
    ],
)
def test_what_can_not_be_checked_is_an_error(
    guard: Amdet, prompts: str, options: tuple[str, ...], expected: str
) -> None:
    code, out, err = guard("backdoored", prompts, *options)
    assert (code, out) == (2, "")
    assert expected in err
