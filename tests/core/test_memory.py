"""Halving what runs side by side, with the same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from amdet_core import contrast
from amdet_core.config import ContrastConfig, LandscapeConfig
from amdet_core.encoder import TextEncoder
from amdet_core.landscape import landscape
from amdet_core.memory import OUT_OF_MEMORY, Batches
from amdet_core.prompts import builtin_prompts
from amdet_core.tails import Side, Tails, cut_prompts

PROMPTS = builtin_prompts(200).prompts


def limited(work: Callable[[slice], list[int]], most: int) -> Callable[[slice], list[int]]:
    def run(part: slice) -> list[int]:
        if part.stop - part.start > most:
            raise OUT_OF_MEMORY("no room")
        return work(part)

    return run


def test_parts_shrink_until_they_fit_and_every_item_is_done_once() -> None:
    batches = Batches(8)
    parts = batches.map(limited(lambda part: list(range(part.start, part.stop)), 3), 11)
    assert [i for part in parts for i in part] == list(range(11))
    assert batches.size == 2
    assert len(batches.map(limited(lambda part: [], 3), 4)) == 2  # the size that fits is remembered


def test_a_single_item_without_room_is_an_error() -> None:
    with pytest.raises(OUT_OF_MEMORY):
        Batches(4).map(limited(lambda part: [], 0), 4)


@pytest.mark.parametrize("most", [1, 3])
def test_an_inversion_and_a_landscape_without_room_come_out_the_same(
    toy: TextEncoder, other: TextEncoder, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    sides = Side.of(toy, PROMPTS), Side.of(other, PROMPTS)
    config = ContrastConfig(steps=4, restarts=6, pool=40, prompts=4)
    around = LandscapeConfig(grid=5, radius=1.0)

    def run() -> tuple[torch.Tensor, Any]:
        found = contrast.invert(*sides, PROMPTS, 2, config, seed=1)
        tails = cut_prompts(*sides, PROMPTS, (4,), 40, torch.Generator().manual_seed(0))
        surface = landscape(lambda v: -contrast.gaps(tails, v), found.vectors, around, torch.Generator().manual_seed(0))
        return found.vectors, surface.values

    vectors, values = run()
    whole, refused = Tails.collapses, []

    def cramped(self: Tails, vectors: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(vectors) > most:
            refused.append(len(vectors))
            raise OUT_OF_MEMORY("no room")
        return whole(self, vectors, *args, **kwargs)

    monkeypatch.setattr(Tails, "collapses", cramped)
    # picking the best of a few candidates is not split: it runs without gradients
    monkeypatch.setattr(contrast, "_gaps", torch.no_grad()(lambda tails, v, _: _in_single_file(tails, v)))
    vectors_cramped, values_cramped = run()
    assert refused
    torch.testing.assert_close(vectors_cramped, vectors, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.tensor(values_cramped), torch.tensor(values), atol=1e-4, rtol=1e-4)


def _in_single_file(tails: list[Tails], vectors: torch.Tensor) -> torch.Tensor:
    return torch.cat([contrast.gaps(tails, vector[None]) for vector in vectors])
