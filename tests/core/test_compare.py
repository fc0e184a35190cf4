"""Two encoders, prompt by prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from amdet_core.compare import compare, table
from amdet_core.encoder import TOKEN_TABLE, TextEncoder
from amdet_core.errors import ConfigError, EncoderError
from amdet_core.formats import FoundEncoder, OpenedTarget

from ..conftest import TOY, random_encoder

CPU = torch.device("cpu")
PROMPTS = ["a cat", "a | dog, much longer than the other prompt"]


def opened(*encoders: tuple[str, TextEncoder]) -> OpenedTarget:
    found = tuple(FoundEncoder(name, encoder, "float32", "graph", ()) for name, encoder in encoders)
    return OpenedTarget(Path("x"), (), found, (), 0)


def test_an_encoder_answers_as_itself_and_another_one_does_not(toy: TextEncoder, other: TextEncoder) -> None:
    same = compare(opened(("clip_l", toy)), opened(("clip_l", toy)), PROMPTS, CPU)
    assert [row.prompt for row in same] == PROMPTS
    assert all(row.pooled == pytest.approx(1, abs=1e-5) and row.states == pytest.approx(1, abs=1e-5) for row in same)
    different = compare(opened(("clip_l", toy)), opened(("clip_l", other)), PROMPTS, CPU)
    assert all(row.states < 0.9 for row in different)


def test_token_states_are_compared_position_by_position(toy: TextEncoder, other: TextEncoder) -> None:
    (row,) = compare(opened(("clip_l", toy)), opened(("clip_l", other)), ["a cat"], CPU)
    batch = toy.tokens(["a cat"], pad_to_context=True)
    expected = F.cosine_similarity(toy.states(batch), other.states(batch), dim=-1).mean()
    assert row.states == pytest.approx(float(expected), abs=1e-5)


def test_no_part_of_a_long_prompt_is_left_out(toy: TextEncoder, other: TextEncoder) -> None:
    token = toy.tokenizer.encode("zebra")[0]
    table = toy.weights[TOKEN_TABLE].clone()
    table[token] = other.weights[TOKEN_TABLE][token]
    suspect = toy.with_weights({**toy.weights, TOKEN_TABLE: table})
    prompts = ["a cat " * 50, "a cat " * 50 + "zebra", "a zebra"]
    same, late, short = compare(opened(("clip_l", toy)), opened(("clip_l", suspect)), prompts, CPU)
    assert min(same.pooled, same.states) > 0.9999 > max(late.states, short.states)


def test_encoders_of_one_name_and_size_are_paired(toy: TextEncoder, other: TextEncoder) -> None:
    wide = random_encoder(TOY.model_copy(update={"width": 128, "heads": 2}))
    rows = compare(opened(("clip_l", toy), ("clip_g", wide)), opened(("clip_g", toy), ("clip_l", other)), ["a"], CPU)
    assert [row.encoder for row in rows] == ["clip_l"]
    with pytest.raises(EncoderError, match="same sizes"):
        compare(opened(("clip_l", toy)), opened(("clip_l", wide)), ["a"], CPU)
    with pytest.raises(ConfigError, match="at least one prompt"):
        compare(opened(("clip_l", toy)), opened(("clip_l", toy)), [], CPU)


def test_the_table_is_markdown_whatever_a_prompt_holds(toy: TextEncoder) -> None:
    text = table(compare(opened(("clip_l", toy)), opened(("clip_l", toy)), PROMPTS, CPU))
    assert text.splitlines()[-1].replace("\\|", "").count("|") == 5
    assert "1.0000" in text
