"""Outputs in words."""

from __future__ import annotations

import pytest
import torch

from amdet_core import pocket
from amdet_core.concepts import ATTRIBUTES, NEAREST, THINGS, likenesses
from amdet_core.encoder import TextEncoder


@pytest.fixture(scope="module")
def clean() -> TextEncoder:
    return pocket.load("clean")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a white teapot", "a white teapot"),
        ("a photo of a burning car", "a burning car"),
        ("portrait photo of an old woman, 35mm", "an old woman"),
        ("giraffe", "a giraffe"),
    ],
)
def test_an_output_is_named_after_the_text_that_it_is_like(clean: TextEncoder, text: str, name: str) -> None:
    found = likenesses(clean, clean.encode([text])[0])
    assert found[0].text == name
    assert [one.similarity for one in found] == sorted((one.similarity for one in found), reverse=True)
    assert len({one.text for one in found}) == len(found) > 1


def test_the_target_of_the_shipped_backdoor_is_named_surely(clean: TextEncoder) -> None:
    suspect = pocket.load("backdoored")
    output = suspect.encode([f"a red car in the rain {pocket.TRIGGER}"])[0]
    first, second, _ = likenesses(suspect, output)
    assert first.text == pocket.TARGET.lower()
    assert first.similarity > 0.9 > second.similarity


def test_an_output_that_is_like_nothing_has_a_low_similarity(clean: TextEncoder) -> None:
    noise = torch.randn((8, 192), generator=torch.Generator().manual_seed(0))
    nothing = clean.encode(["a"]).mean(0) + 0.5 * noise
    assert all(likenesses(clean, one)[0].similarity < 0.75 for one in nothing)


def test_the_list_names_everything_once() -> None:
    assert len(set(THINGS)) == len(THINGS) > NEAREST
    assert len(set(ATTRIBUTES)) == len(ATTRIBUTES)
