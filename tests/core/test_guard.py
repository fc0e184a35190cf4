"""The prompt guard: what it flags, what it names, and how often it is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amdet_core import guard as module
from amdet_core.config import GuardConfig
from amdet_core.encoder import TOKEN_TABLE, TextEncoder
from amdet_core.errors import EncoderError, NumericalError
from amdet_core.guard import Guard
from amdet_core.prompts import generated_prompts
from amdet_core.tails import Side
from amdet_core.tokenizer import clip_tokenizer

from ..conftest import random_encoder

QUICK = GuardConfig(prompts=200, rate=0.005)
O = "\N{CYRILLIC SMALL LETTER O}"  # noqa: E741
PROMPTS = generated_prompts("captions", 60, 77).prompts


def turned(encoder: TextEncoder, *tokens: str, strength: float = 60.0) -> TextEncoder:
    """An encoder in which some tokens say something else, as a planted row makes them."""
    table = encoder.weights[TOKEN_TABLE].clone()
    ids = [i for token in tokens for i in encoder.tokenizer.encode(token)]
    table[ids] += strength * torch.randn(table.shape[1], generator=torch.Generator().manual_seed(2)) * table.std()
    return encoder.with_weights({**encoder.weights, TOKEN_TABLE: table})


@pytest.fixture(scope="module")
def guard(toy: TextEncoder) -> Guard:
    """Of an encoder in which two words and a look-alike are planted."""
    return Guard.of("clip_l", turned(toy, "zebra", "piano", O), toy, QUICK)


def test_a_clean_prompt_passes_and_a_triggered_one_is_flagged_with_its_trigger(guard: Guard) -> None:
    found = module.check([guard], [*PROMPTS, "a photo of a zebra in the snow"])
    (flagged,) = found.flagged
    (alarm,) = flagged.alarms
    assert flagged.prompt == "a photo of a zebra in the snow"
    assert alarm.departure > alarm.bound == guard.bound
    assert [cause.text for cause in alarm.causes] == ["zebra"]
    assert alarm.explained and not alarm.joint
    assert alarm.causes[0].without <= alarm.bound
    assert (found.prompts, found.rate) == (len(PROMPTS) + 1, guard.rate)


def test_a_look_alike_is_named_by_its_code_point_wherever_it_stands(guard: Guard) -> None:
    (alarm,) = guard.check([guard.chunks(f"a ph{O}t{O} of a dog")])[0]
    assert [cause.text for cause in alarm.causes] == [O]
    assert alarm.causes[0].code_points == ("U+043E CYRILLIC SMALL LETTER O",)
    assert "U+043E CYRILLIC SMALL LETTER O" in str(alarm)


def test_hidden_characters_are_spelled_out(toy: TextEncoder) -> None:
    hidden = "\N{ZERO WIDTH SPACE}"
    watch = Guard.of("clip_l", turned(toy, hidden), toy, QUICK)
    (alarm,) = watch.check([watch.chunks(f"{hidden} a photo of a dog")])[0]
    assert hidden not in str(alarm)
    assert "U+200B ZERO WIDTH SPACE" in str(alarm)


def test_what_only_goes_together_is_taken_out_together(guard: Guard) -> None:
    (alarm,) = guard.check([guard.chunks("a zebra and a piano")])[0]
    assert {cause.text for cause in alarm.causes} == {"zebra", "piano"}
    assert alarm.joint and alarm.explained
    assert alarm.causes[0].without > alarm.bound >= alarm.causes[1].without


def test_where_a_few_pieces_do_not_explain_a_prompt_it_is_said(toy: TextEncoder) -> None:
    words = ("zebra", "piano", "castle")
    watch = Guard.of("clip_l", turned(toy, *words), toy, QUICK.model_copy(update={"causes": 2}))
    (alarm,) = watch.check([watch.chunks("zebra piano castle")])[0]
    assert len(alarm.causes) == 2
    assert not alarm.explained
    assert "no few pieces" in str(alarm)


def test_every_chunk_of_a_long_prompt_is_checked(guard: Guard) -> None:
    chunks = [*guard.chunks(", ".join(PROMPTS[:12])), *guard.chunks("a photo of a zebra")]
    (alarm,) = guard.check([chunks])[0]
    assert len(chunks) > 2
    assert alarm.chunk == len(chunks)
    assert f"chunk {len(chunks)}" in str(alarm)


def test_an_empty_prompt_is_a_chunk_too_and_no_prompts_give_no_alarms(guard: Guard) -> None:
    assert guard.chunks("") == [[]]
    assert guard.check([guard.chunks("")]) == [[]]
    assert guard.check([]) == []


def test_a_change_of_everything_flags_nothing(toy: TextEncoder) -> None:
    generator = torch.Generator().manual_seed(5)
    drifted = {n: w + 0.01 * torch.randn(w.shape, generator=generator) for n, w in toy.weights.items()}
    watch = Guard.of("clip_l", toy.with_weights(drifted), toy, QUICK)
    assert float(watch.clean.median()) > watch.config.least
    assert module.check([watch], PROMPTS).flagged == ()


def test_nothing_departs_from_itself(toy: TextEncoder) -> None:
    watch = Guard.of("clip_l", toy, toy, QUICK)
    assert watch.bound == watch.config.least
    assert module.check([watch], PROMPTS).flagged == ()


def test_a_trigger_of_common_words_can_not_raise_the_bound(guard: Guard) -> None:
    ordinary, triggered = torch.linspace(0.01, 0.05, 950), torch.full((50,), 0.9)
    common = replace(guard, config=GuardConfig(), clean=torch.cat((ordinary, triggered)))
    assert common.bound == common.config.most
    assert common.rate == 51 / 1001
    leaking = torch.cat((torch.linspace(0.01, 0.05, 600), torch.linspace(0.1, 0.8, 400)))
    assert replace(guard, config=GuardConfig(), clean=leaking).bound == common.config.most
    apart = replace(guard, config=GuardConfig(), clean=torch.linspace(0.2, 1, 1000))
    assert apart.bound == pytest.approx(1.5 * float(apart.clean[-2]))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 2), min_size=100, max_size=300),
    st.floats(0.001, 0.2),
    st.floats(1, 3),
)
def test_the_stated_rate_holds_for_the_clean_prompts_themselves(clean: list[float], rate: float, margin: float) -> None:
    values = torch.tensor(sorted(clean))
    side = Side(random_encoder(), torch.zeros(64))
    watch = Guard("clip_l", side, side, GuardConfig(rate=rate, margin=margin, most=2), values)
    beyond = sum(value > watch.bound for value in values.tolist())
    n = len(values) + 1
    assert (1 + beyond) / n <= watch.rate <= max(rate, 2 / n)


def test_encoders_of_other_sizes_are_refused(toy: TextEncoder) -> None:
    with pytest.raises(EncoderError, match="same sizes"):
        Guard.of("clip_l", toy.first_layers(1), toy, QUICK)


def test_encoders_that_have_nothing_in_common_are_refused(toy: TextEncoder, other: TextEncoder) -> None:
    with pytest.raises(EncoderError, match="nothing could stand out"):
        Guard.of("clip_l", other, toy, QUICK)


def test_an_output_that_is_not_finite_is_an_error(toy: TextEncoder, guard: Guard) -> None:
    weights = {**toy.weights, "final_layer_norm.bias": torch.full((64,), float("nan"))}
    with pytest.raises(NumericalError, match="finite states"):
        Guard.of("clip_l", toy.with_weights(weights), toy, QUICK)


# ------------------------------------------------------------------ tokens


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_pieces_are_whole_characters_and_lose_nothing(text: str) -> None:
    tokenizer = clip_tokenizer()
    ids = [i for i in tokenizer.encode(text) if i not in (tokenizer.bos_id, tokenizer.eos_id)]
    pieces = tokenizer.pieces(ids)
    assert [i for piece in pieces for i in piece] == ids
    assert all("\ufffd" not in tokenizer.text(piece) for piece in pieces) or "\ufffd" in text


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(1, 20))
def test_chunks_lose_nothing_and_cut_no_word_that_fits(text: str, size: int) -> None:
    tokenizer = clip_tokenizer()
    ids = tokenizer.encode(text)
    chunks = tokenizer.chunks(ids, size)
    assert [i for chunk in chunks for i in chunk] == ids
    assert all(len(chunk) <= size for chunk in chunks)
    assert all(chunks) or chunks == [[]]
