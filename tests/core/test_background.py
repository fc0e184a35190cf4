"""Work in a thread: its result, its errors, and how soon it lets go."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from amdet_core.background import in_background
from amdet_core.progress import Progress, silent


def test_the_result_and_every_step_arrive() -> None:
    steps: list[tuple[str, int, int]] = []

    def work(progress: Progress) -> int:
        for i in range(3):
            progress("count", i + 1, 3)
        return 42

    assert in_background(work, lambda stage, done, total, *_: steps.append((stage, done, total))) == 42
    assert steps == [("count", 1, 3), ("count", 2, 3), ("count", 3, 3)]


def test_gradients_flow_whatever_the_mode_of_the_caller() -> None:
    def work(_: Progress) -> torch.Tensor:
        x = torch.ones(3, requires_grad=True)
        (x * x).sum().backward()
        return x.grad

    with torch.inference_mode():
        assert in_background(work, silent).tolist() == [2, 2, 2]


def test_its_errors_are_raised_where_it_was_called() -> None:
    def work(_: Progress) -> None:
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        in_background(work, silent)


def test_what_poll_raises_goes_out_at_once_and_the_work_ends_at_its_next_step() -> None:
    ended = threading.Event()

    def work(progress: Progress) -> None:
        try:
            time.sleep(1.5)  # one long operation
            progress("step", 1, 2)
            time.sleep(60)
        finally:
            ended.set()

    def poll() -> None:
        raise InterruptedError

    started = time.monotonic()
    with pytest.raises(InterruptedError):
        in_background(work, silent, poll, grace=0.1)
    assert time.monotonic() - started < 1
    assert ended.wait(5)
