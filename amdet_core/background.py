"""Long work in a thread of its own, so that whoever waits for it can stop at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from .progress import Progress

T = TypeVar("T")


class Stopped(BaseException):
    """Raised inside abandoned work at its next progress call."""


class _Worker(threading.Thread, Generic[T]):
    def __init__(self, work: Callable[[Progress], T], progress: Progress) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.result: T | None = None
        self.error: BaseException | None = None
        self._work: Callable[[Progress], T] | None = work
        self._progress = progress

    def _report(self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None, /) -> None:
        if self.stop.is_set():
            raise Stopped
        self._progress(stage, done, total, metrics or {})

    def run(self) -> None:
        work, self._work = self._work, None
        try:
            assert work is not None
            self.result = work(self._report)
        except BaseException as error:  # handed to the waiting thread, which raises it
            self.error = error


def in_background(
    work: Callable[[Progress], T],
    progress: Progress,
    poll: Callable[[], object] = lambda: None,
    *,
    every: float = 0.1,
    grace: float = 0.5,
) -> T:
    """Run ``work`` in a thread and return what it returns; raises what it raises.

    One tensor operation can take longer than a person waits. Here the waiting thread stays free: what
    ``poll`` raises, or Ctrl-C, goes out within ``every + grace`` seconds, and the work ends at its next
    progress call. So the work must write nothing to disk but what is right whatever becomes of it, as the trust store's
    entries of known files; what it returns is written by the caller.

    Args:
        work: is given a progress callback; a new thread has gradients on and no inference mode.
        progress: is called in the work's thread.
        poll: is called in the waiting thread, every so many seconds and once at the end.
        grace: seconds that abandoned work gets to end by itself.
    """
    worker = _Worker(work, progress)
    worker.start()
    try:
        while worker.is_alive():
            worker.join(every)
            poll()
    except BaseException:
        worker.stop.set()
        worker.join(grace)
        raise
    if worker.error is not None:
        raise worker.error
    return worker.result  # type: ignore[return-value]
