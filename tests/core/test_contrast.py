"""Anchor-relative inversion on encoders whose answer is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from amdet_core import contrast, losses
from amdet_core.config import ContrastConfig
from amdet_core.encoder import TOKEN_TABLE, TextEncoder
from amdet_core.errors import ConfigError, NumericalError
from amdet_core.prompts import builtin_prompts
from amdet_core.records import Place
from amdet_core.tails import LONG, Side, Tails, cut_prompts, fitting, outputs, outputs_of_each

from ..conftest import TOY, random_encoder

PROMPTS = builtin_prompts(200).prompts
FAST = ContrastConfig(steps=4, restarts=3, pool=40, prompts=4)


def test_tails_give_what_the_whole_prompt_gives(toy: TextEncoder, other: TextEncoder) -> None:
    """Prefixes computed once, and candidates side by side, change nothing."""
    ids = toy.tokenizer.batch(["one two three four five six", "red green blue pink gold grey"], limit=77).ids[:, :6]
    sides = Side.of(toy, PROMPTS), Side.of(other, PROMPTS)
    vectors = torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(1)) * 0.3
    fast = Tails.of(*sides, ids[:, 1:]).collapses(vectors)
    for r in range(3):
        for side, found in zip(sides, fast, strict=True):
            eos = side.encoder.embed(torch.tensor([49407])).expand(2, 1, 64)
            embeds = torch.cat((side.encoder.embed(ids), vectors[r].expand(2, 2, 64), eos), 1)
            pooled = side.encoder.transform(side.encoder.place(embeds))[:, -1]
            assert found[r].item() == pytest.approx(losses.collapse(pooled, side.centre).item(), abs=1e-5)


@pytest.mark.parametrize(("place", "form"), [("end", "{} lighthouse"), ("start", "lighthouse {}")])
def test_outputs_of_real_tokens_equal_the_prompt_with_that_word(toy: TextEncoder, place: Place, form: str) -> None:
    token = toy.tokenizer.encode("lighthouse")
    prompts = list(PROMPTS[:9])
    written = toy.encode([form.format(p) for p in prompts])
    placed = outputs(toy, prompts, toy.embed(torch.tensor([token, token])), place)
    torch.testing.assert_close(placed, written.expand(2, -1, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs(toy, prompts, toy.embed(torch.tensor(token)), place), placed[0])


def test_outputs_without_a_trigger_are_those_of_the_prompt(toy: TextEncoder) -> None:
    torch.testing.assert_close(outputs(toy, PROMPTS[:9], torch.empty(0, 64)), toy.encode(PROMPTS[:9]))


@pytest.mark.parametrize("place", ["start", "end"])
def test_candidates_of_several_lengths_share_the_prompts(toy: TextEncoder, place: Place) -> None:
    batches = [toy.embed(torch.tensor(ids)) for ids in ([[5, 6, 7]], [[8], [9]])]
    several = outputs_of_each(toy, PROMPTS[:9], [torch.empty(1, 0, 64), *batches], place)
    apart = [outputs(toy, PROMPTS[:9], vectors, place) for vectors in (torch.empty(1, 0, 64), *batches)]
    for together, alone in zip(several, apart, strict=True):
        torch.testing.assert_close(together, alone)
    endless = [" ".join(["lighthouse"] * 100)]
    (short,) = (one[0, 0] for one in outputs_of_each(toy, endless, [batches[1], batches[0]], place)[:1])
    room = toy.spec.positions - 2 - 3
    torch.testing.assert_close(short, outputs(toy, [" ".join(["lighthouse"] * room)], batches[1], place)[0, 0])


def test_a_bidirectional_encoder_reads_the_whole_context() -> None:
    """Nothing can be shared between candidates there, and padding is seen."""
    siglip = random_encoder(TOY.model_copy(update={"causal": False, "pooling": "last", "pooled_head": 48}))
    token = siglip.tokenizer.encode("lighthouse")
    placed = outputs(siglip, PROMPTS[:5], siglip.embed(torch.tensor(token)))
    torch.testing.assert_close(placed, siglip.encode([f"{p} lighthouse" for p in PROMPTS[:5]]))


def test_only_long_prompts_are_long(toy: TextEncoder) -> None:
    assert fitting(toy, PROMPTS, "start", 7) == list(PROMPTS[:7])
    long = fitting(toy, PROMPTS, "long", 7)
    assert len(long) == 7
    assert all(len(toy.tokenizer.encode(prompt)) >= LONG for prompt in long)


def test_an_encoder_compared_with_itself_has_no_gap(toy: TextEncoder) -> None:
    side = Side.of(toy, PROMPTS)
    found = contrast.invert(side, side, PROMPTS, 1, FAST, seed=0)
    collapse = contrast.measure(side, side, PROMPTS[:20], found.vectors)
    assert collapse.gap == 0
    assert collapse.half_width == 0


def test_optimising_raises_the_gap_and_respects_the_norm_cap(toy: TextEncoder, other: TextEncoder) -> None:
    sides = Side.of(toy, PROMPTS), Side.of(other, PROMPTS)
    short = contrast.invert(*sides, PROMPTS, 1, FAST, seed=3)
    long = contrast.invert(*sides, PROMPTS, 1, FAST.model_copy(update={"steps": 40}), seed=3)
    assert max(long.gaps) > max(short.gaps)
    typical = toy.weights[TOKEN_TABLE].norm(dim=-1).median()
    assert long.vectors.norm(dim=-1).max() <= FAST.norm_cap * typical * 1.001
    assert len(long.loss) <= 40


def test_same_seed_same_vectors_and_other_seed_other_vectors(toy: TextEncoder, other: TextEncoder) -> None:
    sides = Side.of(toy, PROMPTS), Side.of(other, PROMPTS)
    a, b, c = (contrast.invert(*sides, PROMPTS, 2, FAST, seed=s).vectors for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_encoders_are_left_as_they_were(toy: TextEncoder, other: TextEncoder) -> None:
    before = {name: w.clone() for name, w in toy.weights.items()}
    contrast.invert(Side.of(toy, PROMPTS), Side.of(other, PROMPTS), PROMPTS, 1, FAST, seed=0)
    assert all(torch.equal(before[name], w) and w.grad is None for name, w in toy.weights.items())


def test_jackknife_interval_agrees_with_repeated_samples(toy: TextEncoder, other: TextEncoder) -> None:
    """The half width over one sample of 20 is near 1.96 standard deviations over many such samples."""
    sides = Side.of(toy, PROMPTS), Side.of(other, PROMPTS)
    vector = toy.embed(torch.tensor([320])) * 3
    samples = [contrast.measure(*sides, PROMPTS[i : i + 20], vector) for i in range(0, 200, 20)]
    spread = 1.96 * float(torch.tensor([s.gap for s in samples]).std())
    claimed = float(torch.tensor([s.half_width for s in samples]).mean())
    assert 0.4 < claimed / spread < 2.5


def test_too_few_long_prompts_are_refused(toy: TextEncoder) -> None:
    side = Side.of(toy, PROMPTS)
    with pytest.raises(ConfigError, match="prompts of 4 tokens or more"):
        contrast.invert(side, side, ["a cat"] * 30, 1, FAST, seed=0)


def test_lengths_for_which_there_are_too_few_prompts_are_left_out(toy: TextEncoder) -> None:
    side = Side.of(toy, PROMPTS)
    short = [f"a {word} in the rain" for word in ("cat", "dog", "fox", "owl", "bee", "cow", "hen", "pig")]
    tails = cut_prompts(side, side, short, (4, 8), 40, torch.Generator().manual_seed(0))
    assert [tail.suspect[1].length for tail in tails] == [5]


def test_outputs_that_are_not_finite_raise(toy: TextEncoder) -> None:
    weights = dict(toy.weights)
    weights["final_layer_norm.bias"] = torch.full((64,), float("nan"))
    broken = Side.of(toy.with_weights(weights), PROMPTS)
    with pytest.raises(NumericalError, match="finite loss"):
        contrast.invert(broken, broken, PROMPTS, 1, FAST, seed=0)


def test_a_planted_collapse_is_found_and_the_anchor_does_not_share_it(toy: TextEncoder) -> None:
    """The first layer carries one direction to every position, a unit of the second fires on it."""
    direction = F.normalize(torch.randn(64, generator=torch.Generator().manual_seed(5)), dim=0)
    weights = {name: w.clone() for name, w in toy.weights.items()}
    weights["encoder.layers.0.self_attn.v_proj.weight"][0] = direction * 8
    weights["encoder.layers.0.self_attn.out_proj.weight"][:, 0] = direction * 8
    weights["encoder.layers.1.mlp.fc1.weight"][17] = direction * 4
    weights["encoder.layers.1.mlp.fc1.bias"][17] = -8
    goal = torch.randn(64, generator=torch.Generator().manual_seed(6))
    weights["encoder.layers.1.mlp.fc2.weight"][:, 17] = goal * 10
    suspect, anchor = Side.of(toy.with_weights(weights), PROMPTS), Side.of(toy, PROMPTS)
    found = contrast.invert(suspect, anchor, PROMPTS, 1, FAST.model_copy(update={"steps": 60, "restarts": 8}), seed=0)
    measured = contrast.measure(suspect, anchor, PROMPTS[:30], found.vectors)
    assert measured.gap > 0.6
    assert measured.anchor < 0.2
