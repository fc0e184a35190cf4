"""Work side by side: order, errors, stopping."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from amdet_core.errors import AmdetError, ConfigError, EncoderError, NumericalError, StorageError
from amdet_core.workers import side_by_side, threads


def sleep(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def refuse(number: int) -> int:
    if number == 1:
        raise NumericalError("an even number", str(number), "Take another one.")
    return number


def die(number: int) -> int:
    os._exit(9)


def count_threads(_: int) -> int:
    return torch.get_num_threads()


def note_and_wait(path: Path) -> None:
    path.write_text("begun")
    time.sleep(60)
    path.write_text("ended")


def ended() -> bool:
    """Whether all workers are gone; they take a moment to die."""
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not multiprocessing.active_children()


def test_one_job_runs_here_in_order_and_only_when_asked() -> None:
    done: list[int] = []
    results = side_by_side(lambda number: done.append(number) or number * number, [3, 1, 2], 1)  # type: ignore[func-returns-value]
    assert done == []
    assert next(results) == (3, 9)
    assert done == [3]
    assert list(results) == [(1, 1), (2, 4)]


def test_one_job_stops_when_the_iterator_is_closed() -> None:
    done: list[int] = []
    with closing(side_by_side(done.append, [1, 2, 3], 1)) as results:
        next(results)
    assert done == [1]


def test_errors_of_one_job_come_out_where_they_happen() -> None:
    results = side_by_side(refuse, [0, 1, 2], 1)
    assert next(results) == (0, 0)
    with pytest.raises(NumericalError, match="an even number; found 1"):
        next(results)


@pytest.mark.parametrize("kind", [ConfigError, EncoderError, NumericalError, StorageError])
def test_errors_travel_between_processes(kind: type[AmdetError]) -> None:
    error = kind("a", "b", "c")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.expected, again.found, again.remedy, str(again)) == ("a", "b", "c", str(error))


def test_threads_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert [threads(jobs) for jobs in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]


@pytest.mark.slow
def test_several_jobs_give_every_result_in_the_order_in_which_they_end() -> None:
    results = list(side_by_side(sleep, [12.0, 0.0, 0.1], 2))
    assert [task for task, _ in results] == [0.0, 0.1, 12.0]
    assert os.getpid() not in {process for _, process in results}


@pytest.mark.slow
def test_errors_of_workers_come_out_and_end_the_others() -> None:
    with pytest.raises(NumericalError, match="an even number; found 1"):
        list(side_by_side(refuse, [1, 2], 2))
    assert ended()


@pytest.mark.slow
def test_a_worker_that_was_killed_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"memory for 2 jobs.*Run the command again with fewer jobs"):
        list(side_by_side(die, [1, 2], 2))


@pytest.mark.slow
def test_closing_stops_what_runs_at_once(tmp_path: Path) -> None:
    running = tmp_path / "running"
    results = side_by_side(_note_or_pass, [None, running], 2)
    assert next(results) == (None, None)
    deadline = time.monotonic() + 60
    while not running.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    begun = time.monotonic()
    results.close()
    assert time.monotonic() - begun < 10
    assert ended()
    assert running.read_text() == "begun"


def _note_or_pass(path: Path | None) -> None:
    if path is not None:
        note_and_wait(path)


@pytest.mark.slow
def test_workers_share_the_threads_of_their_parent() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert [found for _, found in side_by_side(count_threads, [0, 1], 2)] == [2, 2]
    finally:
        torch.set_num_threads(before)
