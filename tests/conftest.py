"""Small encoders that many tests need."""

from __future__ import annotations

import pytest
import torch

from amdet_core import sweep
from amdet_core.encoder import TOKEN_TABLE, TextEncoder, expected_shapes
from amdet_core.records import EncoderSpec
from amdet_core.tokenizer import clip_tokenizer

TOY = EncoderSpec(width=64, layers=2, heads=1, mlp_width=128, vocabulary=49408, positions=77)


def random_encoder(spec: EncoderSpec = TOY, seed: int = 0, scale: float = 0.05) -> TextEncoder:
    """An encoder with random weights: norms near one, everything else near zero."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in expected_shapes(spec).items():
        noise = torch.randn(shape, generator=generator) * scale
        weights[name] = noise + 1 if "norm" in name and name.endswith("weight") else noise
    return TextEncoder(spec, weights, clip_tokenizer())


def with_added_tokens(encoder: TextEncoder, count: int) -> TextEncoder:
    """An encoder with rows behind the vocabulary, as diffusers adds them for a textual inversion."""
    table = encoder.weights[TOKEN_TABLE]
    rows = torch.randn(count, encoder.spec.width, generator=torch.Generator().manual_seed(3)) * table.std()
    spec = encoder.spec.model_copy(update={"vocabulary": encoder.spec.vocabulary + count})
    return TextEncoder(spec, {**encoder.weights, TOKEN_TABLE: torch.cat((table, rows))}, encoder.tokenizer)


def few_candidates(monkeypatch: pytest.MonkeyPatch, *more: int) -> None:
    """A sweep tries a hundred tokens and these, in place of all: for tests of what is made of its leads."""
    monkeypatch.setattr(sweep, "single_tokens", lambda _: tuple((i,) for i in (*range(1000, 1100), *more)))
    monkeypatch.setattr(sweep, "characters", lambda _: ())


@pytest.fixture(scope="session")
def toy() -> TextEncoder:
    return random_encoder()


@pytest.fixture(scope="session")
def other() -> TextEncoder:
    """Another random encoder of the same shape."""
    return random_encoder(seed=1)
