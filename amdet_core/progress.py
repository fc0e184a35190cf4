"""The one way from an algorithm outward: progress, live numbers and interruption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Called by every long stage after each step.

    ``stage`` names the stage, ``done`` of ``total`` steps are over, ``metrics`` are its live numbers.
    It may raise to interrupt the work; the library catches nothing that it raises.
    """

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float] = ..., /) -> None:
        """Take note of one step."""


def silent(stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None, /) -> None:
    """Progress that goes nowhere."""
