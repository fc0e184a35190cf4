"""Recovered features as files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load

from amdet_core.errors import ConfigError
from amdet_core.features import Feature, best, feature_bytes, pseudo_trigger_bytes
from amdet_core.records import Candidate


def candidate(encoder: str = "clip_l", gap: float | None = 0.5, vectors: int = 1) -> Candidate:
    return Candidate(
        encoder=encoder, method="contrast", vectors=vectors, seed=1, steps=2, loss=(0.1,), indicators={"gap": gap}
    )


def feature(candidate: Candidate, vectors: torch.Tensor) -> Feature:
    return Feature(candidate, vectors, torch.zeros(vectors.shape[-1]))


def test_the_embedding_holds_the_strongest_feature_of_each_encoder_under_the_hosts_keys() -> None:
    features = [
        feature(candidate("clip_l", 0.2), torch.zeros(1, 768)),
        feature(candidate("clip_l", 0.9, 5), torch.ones(5, 768)),
        feature(candidate("clip_g", 0.1), torch.full((1, 1280), 2.0)),
    ]
    data = pseudo_trigger_bytes(features)
    assert data is not None
    tensors = load(data)
    assert tensors["clip_l"].tolist() == torch.ones(5, 768).tolist()
    assert tensors["clip_g"].shape == (1, 1280)


def test_a_feature_without_a_gap_is_the_weakest_and_none_at_all_gives_no_file() -> None:
    features = [feature(candidate(gap=None), torch.zeros(1, 4)), feature(candidate(gap=-0.5), torch.ones(1, 4))]
    data = pseudo_trigger_bytes(features)
    assert data is not None
    assert load(data)["clip_l"].tolist() == [[1.0] * 4]
    assert pseudo_trigger_bytes([]) is None


def test_an_encoder_of_no_standard_width_goes_under_clip_l() -> None:
    data = pseudo_trigger_bytes([feature(candidate("text_encoder"), torch.zeros(1, 192))])
    assert data is not None
    assert list(load(data)) == ["clip_l"]


def test_files_say_what_they_are_and_are_the_same_every_time(tmp_path: Path) -> None:
    vectors, target = torch.ones(2, 4, requires_grad=True), torch.zeros(4)
    first, second = (feature_bytes(Feature(candidate(), vectors, target)) for _ in range(2))
    assert first == second
    (tmp_path / "f.safetensors").write_bytes(first)
    with safe_open(tmp_path / "f.safetensors", "pt") as opened:
        about = json.loads(opened.metadata()["amdet"])
        assert set(opened.keys()) == {"vectors", "target"}
    assert about["format"] == "amdet-feature-1"
    assert about["encoder"] == "clip_l"


def test_the_best_feature_is_the_one_with_the_largest_gap_and_there_must_be_one() -> None:
    weak, strong = (feature(candidate(gap=gap), torch.ones(1, 4)) for gap in (0.1, 0.7))
    assert best([weak, strong]) is strong
    with pytest.raises(ConfigError, match="a recovered feature"):
        best([])
