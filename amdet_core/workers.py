"""Independent pieces of work side by side, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import torch

from .errors import ConfigError

POLL = 0.5
"""Seconds after which waiting for workers lets Ctrl-C through, on every system."""
Task = TypeVar("Task")
Result = TypeVar("Result")


def threads(jobs: int) -> int:
    """Threads of torch that each of so many processes gets: together as many as this process has."""
    return max(1, torch.get_num_threads() // jobs)


def side_by_side(
    work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int
) -> Generator[tuple[Task, Result], None, None]:
    """Tasks with their results, in the order in which they end; closing the iterator stops those that run.

    One job runs in this process. Several share its threads: small matrices use many threads badly.

    Args:
        work: a function of a module, which another process can import.
        tasks: of types that can be pickled, like the results.

    Raises:
        ConfigError: a worker was killed.
    """
    if jobs == 1:
        for task in tasks:
            yield task, work(task)
        return
    with _workers(jobs) as pool:
        waiting = {pool.submit(work, task): task for task in tasks}
        pending = set(waiting)
        while pending:
            ended, pending = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
            for future in ended:
                try:
                    yield waiting[future], future.result()
                except BrokenProcessPool as error:
                    raise ConfigError(
                        f"memory for {jobs} jobs side by side",
                        "a worker that was killed",
                        "Run the command again with fewer jobs; what was done is kept.",
                    ) from error


@contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that are stopped at once when the block is left by an exception, Ctrl-C included."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _begin, (threads(jobs),)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def _begin(threads: int) -> None:
    """Prepare a worker; Ctrl-C is for the process that started it, which stops it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, killed included."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
