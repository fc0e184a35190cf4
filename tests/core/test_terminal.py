"""What is left when a command is interrupted."""

from __future__ import annotations

import os
import sys
from io import StringIO

import pytest

from amdet_core import terminal
from amdet_core.progress import silent
from amdet_core.terminal import ProgressLine, interruptible


class Ended(BaseException):
    """In place of the process's end."""


def test_an_interrupt_cleans_up_and_says_what_is_left_before_the_process_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[object] = []

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def ended(code: int) -> None:
        done.append(code)
        raise Ended

    monkeypatch.setattr(terminal, "in_background", interrupted)
    monkeypatch.setattr(os, "_exit", ended)
    with pytest.raises(Ended):
        interruptible(lambda _: None, silent, left="no picture was written", cleanup=lambda: done.append("cleaned up"))
    assert done == ["cleaned up", 130]
    assert capsys.readouterr().err == "\ninterrupted; no picture was written\n"


class Terminal(StringIO):
    """Where a bar is drawn."""

    def isatty(self) -> bool:
        return True


def test_the_bar_leaves_the_terminal_before_an_interrupted_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(code: int) -> None:
        raise Ended

    def interrupted(work: object, progress: ProgressLine, **_: object) -> None:
        progress("first", 3, 10)
        progress("second", 1, 2)
        raise KeyboardInterrupt

    shown = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(terminal, "in_background", interrupted)
    monkeypatch.setattr(os, "_exit", ended)
    line = ProgressLine()
    assert line._bar is not None
    with pytest.raises(Ended), line:
        interruptible(lambda _: None, line)
    assert [(task.completed, task.finished_time is not None) for task in line._bar.tasks] == [(10, True), (1, False)]
    assert shown.getvalue().index("\x1b[?25h") < shown.getvalue().index("interrupted")


def test_what_is_not_interrupted_returns() -> None:
    assert interruptible(lambda _: 3, silent, cleanup=lambda: pytest.fail("nothing to clean up")) == 3
