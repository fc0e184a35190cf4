"""Honest changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from amdet_core import pocket
from amdet_core.attacks import benign
from amdet_core.config import FineTuneConfig
from amdet_core.encoder import TOKEN_TABLE, TextEncoder
from amdet_core.errors import ConfigError, EncoderError, NumericalError
from amdet_core.prompts import PromptSet, builtin_prompts
from amdet_core.tokenizer import clip_tokenizer

PROMPTS = builtin_prompts(160)
HELD_OUT = PROMPTS.split()[1].prompts
OBJECTIVES = ("contrastive", "distillation", "masked-words")


@pytest.fixture(scope="module")
def clean() -> TextEncoder:
    return pocket.load("clean")


def same(one: TextEncoder, other: TextEncoder) -> bool:
    return all(torch.equal(w, other.weights[name]) for name, w in one.weights.items())


# ------------------------------------------------------------------ fine-tunes


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_lowers_its_own_loss(toy: TextEncoder, objective: str) -> None:
    config = FineTuneConfig(objective=objective, steps=15, batch=12, learning_rate=1e-4, trains="layers")
    makers = (benign._contrastive, benign._distillation, benign._masked_words)
    loss = dict(zip(OBJECTIVES, makers, strict=True))[objective](toy, HELD_OUT, config)
    after = benign.fine_tune(toy, PROMPTS, config).apply(toy)
    with torch.no_grad():
        one, two = (
            sum(float(loss(encoder, torch.Generator().manual_seed(seed))[0]) for seed in range(12))
            for encoder in (toy, after)
        )
    assert two < 0.95 * one


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_fine_tune_keeps_what_prompts_mean(clean: TextEncoder, objective: str) -> None:
    heard: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int, metrics: Mapping[str, float] = {}, /) -> None:
        assert metrics["loss"] >= 0
        heard.append((stage, done, total))

    config = FineTuneConfig(objective=objective, steps=5, batch=6, learning_rate=2e-5)
    after = benign.fine_tune(clean, PROMPTS, config, progress).apply(clean)
    assert heard == [("fine-tune", done, 5) for done in range(1, 6)]
    kept = F.cosine_similarity(after.encode(HELD_OUT), clean.encode(HELD_OUT), dim=-1)
    assert 0.95 < float(kept.mean()) < 0.99999


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_fine_tune_depends_on_its_seed_and_says_what_it_was(toy: TextEncoder, objective: str) -> None:
    copies = {name: w.clone() for name, w in toy.weights.items()}
    one, two, other = (
        benign.fine_tune(toy, PROMPTS, FineTuneConfig(objective=objective, steps=2, batch=4, seed=seed))
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(delta, two.deltas[name]) for name, delta in one.deltas.items())
    assert any(not torch.equal(delta, other.deltas[name]) for name, delta in one.deltas.items())
    assert one.provenance["made_by"] == f"{objective} fine-tune"
    assert PROMPTS.sha256 in one.provenance["prompts"]
    assert all(torch.equal(w, toy.weights[name]) for name, w in copies.items())


def test_masked_words_mask_at_least_one_however_short_the_prompts_are(toy: TextEncoder) -> None:
    short = PromptSet(tuple(f"{word} {other}" for word in ("cat", "dog", "owl", "fox") for other in "abcde"), "x")
    config = FineTuneConfig(objective="masked-words", steps=12, batch=2)
    assert benign.fine_tune(toy, short, config).deltas


def test_training_sees_the_fit_side_alone(toy: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    original = benign.draw

    def draw(prompts: tuple[str, ...], count: int, generator: torch.Generator) -> list[str]:
        seen.update(prompts)
        return original(prompts, count, generator)

    monkeypatch.setattr(benign, "draw", draw)
    benign.fine_tune(toy, PROMPTS, FineTuneConfig(steps=1, batch=4))
    assert seen == set(PROMPTS.split()[0].prompts)


def test_too_few_prompts_are_refused(toy: TextEncoder) -> None:
    few = PromptSet(PROMPTS.split()[0].prompts[:7], "x")
    with pytest.raises(ConfigError, match="at least 8 prompts to train on; found 7"):
        benign.fine_tune(toy, few)


def test_divergence_is_an_error(clean: TextEncoder) -> None:
    with pytest.raises(NumericalError, match="Lower the learning rate"):
        benign.fine_tune(
            clean,
            PROMPTS,
            FineTuneConfig(steps=6, batch=4, learning_rate=1e6, trains="layers", objective="distillation"),
        )


@pytest.mark.parametrize("field", ["learning_rate", "temperature", "steps", "batch"])
def test_settings_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"FineTuneConfig.{field}"):
        FineTuneConfig(**{field: 0})


def test_a_view_keeps_some_words_in_their_order_and_one_at_least() -> None:
    generator = torch.Generator().manual_seed(0)
    prompt = "a b c d e f g h i j"
    views = [benign.view(prompt, generator).split() for _ in range(200)]
    assert all(view == sorted(view) and set(view) <= set(prompt.split()) for view in views)
    assert sum(map(len, views)) / 2000 == pytest.approx(0.8, abs=0.05)
    assert all(benign.view("word", generator) == "word" for _ in range(50))


# ------------------------------------------------------------------ merges, casts, tokens


def test_a_merge_lies_between_its_parts(toy: TextEncoder, other: TextEncoder) -> None:
    assert same(benign.merge(toy, other, 0.0), toy)
    assert same(benign.merge(toy, other, 1.0), other)
    quarter = benign.merge(toy, other, 0.25)
    for name, w in quarter.weights.items():
        assert torch.allclose(w, 0.75 * toy.weights[name] + 0.25 * other.weights[name], atol=1e-6)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_out_of_range_is_refused(toy: TextEncoder, other: TextEncoder, share: float) -> None:
    with pytest.raises(ConfigError, match=f"a share from 0 to 1; found {share}"):
        benign.merge(toy, other, share)


def test_encoders_of_two_shapes_are_not_merged(toy: TextEncoder, clean: TextEncoder) -> None:
    with pytest.raises(EncoderError, match="Merge encoders of one shape"):
        benign.merge(toy, clean, 0.5)


@pytest.mark.parametrize(
    ("to", "largest"),
    [("float16", 5e-4), ("bfloat16", 4e-3), ("float8_e4m3fn", 0.0625), ("float8_e5m2", 0.125), ("int8", None)],
)
def test_a_cast_rounds_as_its_precision_does(clean: TextEncoder, to: benign.Cast, largest: float | None) -> None:
    rounded = benign.cast(clean, to)
    assert same(benign.cast(rounded, to), rounded) or to == "int8"
    for name, w in rounded.weights.items():
        before = clean.weights[name]
        assert w.dtype == torch.float32
        if largest is None:
            step = before.abs().amax(-1, keepdim=True) / 127
            assert bool(((w - before).abs() <= 0.501 * step).all())
        else:
            normal = before.abs() > 0.02
            assert bool(((w - before).abs()[normal] <= largest * before.abs()[normal]).all())
    if to != "float16":  # all of the pocket's values are halves
        assert not same(rounded, clean)
    assert set(get_args(benign.Cast)) == {"float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8"}


def test_added_tokens_are_rows_behind_the_others_near_what_they_mean(clean: TextEncoder) -> None:
    more = benign.add_tokens(clean, ["cat", "white teapot"], 3)
    table, old = more.weights[TOKEN_TABLE], clean.weights[TOKEN_TABLE]
    assert more.spec.vocabulary == len(table) == clean.spec.vocabulary + 2
    assert torch.equal(table[:-2], old)
    for row, word in zip(table[-2:], ("cat", "white teapot"), strict=True):
        own = old[clip_tokenizer().encode(word)].mean(0)
        assert 0.1 < float((row - own).norm() / own.norm()) < 1
        assert F.cosine_similarity(row, own, dim=0) > 0.8
    assert torch.equal(more.encode(HELD_OUT), clean.encode(HELD_OUT))
    again, others = (benign.add_tokens(clean, ["cat", "white teapot"], seed) for seed in (3, 4))
    assert same(more, again)
    assert not same(more, others)


@pytest.mark.parametrize("words", [[], ["cat", " "]])
def test_words_without_tokens_are_not_added(clean: TextEncoder, words: list[str]) -> None:
    with pytest.raises(ConfigError, match="words that the tokenizer reads"):
        benign.add_tokens(clean, words, 0)
