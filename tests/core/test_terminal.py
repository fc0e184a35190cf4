"""What is left when a command is interrupted."""

from __future__ import annotations

import os

import pytest

from amdet_core import terminal
from amdet_core.progress import silent
from amdet_core.terminal import interruptible


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


def test_what_is_not_interrupted_returns() -> None:
    assert interruptible(lambda _: 3, silent, cleanup=lambda: pytest.fail("nothing to clean up")) == 3
