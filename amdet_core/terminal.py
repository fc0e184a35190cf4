"""What the command line shows while it works, and how it stops at once on Ctrl-C."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .background import in_background
from .progress import Progress as ProgressCallback

T = TypeVar("T")
GRACE = 0.5
"""Seconds that the work gets to stop by itself after Ctrl-C."""
LINE_EVERY = 5.0
"""Seconds between two progress lines of one stage where there is no terminal."""


class ProgressLine:
    """A bar on a terminal, plain lines elsewhere; on stderr in both cases."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description:<16}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[numbers]}"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=console, transient=True)
        self._task: TaskID | None = None
        self._stage, self._last = "", 0.0

    def __enter__(self) -> ProgressLine:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal, which gets its cursor back."""
        if self._bar:
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None, /) -> None:
        """Show one step."""
        numbers = " ".join(f"{name} {value:.3f}" for name, value in (metrics or {}).items())
        if self._bar:
            if stage != self._stage or self._task is None:
                self._end(self._bar)
                self._task = self._bar.add_task(stage, total=total, numbers=numbers)
            self._bar.update(self._task, completed=done, total=total, numbers=numbers)
        elif stage != self._stage or time.monotonic() - self._last > LINE_EVERY:
            self._last = time.monotonic()
            sys.stderr.write(f"{stage}: {done}/{total} {numbers}".rstrip() + "\n")
            sys.stderr.flush()
        self._stage = stage

    def _end(self, bar: Progress) -> None:
        """Leave the stage that is over as a full bar: many tell of their steps as these begin, and some end early."""
        for task in bar.tasks:
            if task.id == self._task:
                bar.update(task.id, completed=task.total)
                bar.stop_task(task.id)


def interruptible(
    work: Callable[[ProgressCallback], T],
    progress: ProgressCallback,
    *,
    left: str = "nothing was written",
    cleanup: Callable[[], object] = lambda: None,
) -> T:
    """Run ``work`` so that Ctrl-C ends the process within a second, with exit code 130.

    Args:
        left: what is said of the files.
        cleanup: is called before that end, which no ``finally`` outlives.
    """
    try:
        return in_background(work, progress, grace=GRACE)
    except KeyboardInterrupt:
        cleanup()
        if isinstance(progress, ProgressLine):
            progress.close()  # no `finally` will
        sys.stderr.write(f"\ninterrupted; {left}\n")
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(130)
