"""The command line in the test's own process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from amdet_core import cli

Amdet = Callable[..., tuple[int, str, str]]


@pytest.fixture
def amdet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Amdet:
    """The command line, run in a folder of its own, in which its settings lie too: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("typer.get_app_dir", lambda name: str(tmp_path))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["amdet", *map(str, arguments)])
        code = cli._run()
        out = capsys.readouterr()
        return code, out.out, out.err

    return run
