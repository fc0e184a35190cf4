"""Every token tried as a trigger, on encoders whose answer is known."""

from __future__ import annotations

import pytest
import torch

from amdet_core import contrast, pocket, sweep
from amdet_core.config import MovedConfig, SweepConfig
from amdet_core.encoder import TOKEN_TABLE, TextEncoder
from amdet_core.errors import ConfigError
from amdet_core.prompts import builtin_prompts
from amdet_core.records import Place
from amdet_core.tails import Side, Tails, cut_prompts
from amdet_core.tokenizer import clip_tokenizer

from .planted import planted

PROMPTS = builtin_prompts(200).prompts
FEW = SweepConfig(prompts=(1, 4, 6), kept=(32, 8))
PLACES: tuple[Place, ...] = ("end", "start")
CANDIDATES = tuple((i,) for i in range(1000, 1400))


def swept(suspect: TextEncoder, anchor: TextEncoder, candidates: tuple[sweep.Ids, ...] = CANDIDATES) -> sweep.Swept:
    sides = Side.of(suspect, PROMPTS), Side.of(anchor, PROMPTS)
    return sweep.sweep(*sides, PROMPTS, candidates, FEW, seed=0)


def test_a_token_that_takes_over_comes_first() -> None:
    suspect = pocket.load("backdoored")
    trigger = tuple(suspect.tokenizer.encode("о"))
    found = swept(suspect, pocket.load("clean"), (*CANDIDATES, trigger, (400, 401)))
    assert found.leads[0] == trigger
    assert found.scores.gap[0] > 0.5
    assert found.sigmas[0] > 20
    assert found.sigmas[0] > 3 * found.sigmas[1]
    assert found.tried == len(CANDIDATES) + 2


def test_a_fine_tune_has_no_token_that_stands_out() -> None:
    found = swept(pocket.load("benign"), pocket.load("clean"))
    assert found.scores.gap.max() < 0.1
    assert found.sigmas.max() < 20


def test_a_token_that_reads_as_another_departs_without_a_takeover(toy: TextEncoder) -> None:
    table = toy.weights[TOKEN_TABLE].clone()
    table[1200] = 3 * table[2000]
    found = swept(toy.with_weights({**toy.weights, TOKEN_TABLE: table}), toy)
    assert found.leads[0] == (1200,)
    assert found.scores.departure[0] > 0.01
    assert abs(found.scores.gap[0]) < 0.2


def test_a_text_of_moved_tokens_is_cut_down_to_what_it_needs() -> None:
    suspect, anchor = pocket.load("backdoored"), pocket.load("clean")
    sides = Side.of(suspect, PROMPTS), Side.of(anchor, PROMPTS)
    whole, other, true = (tuple(suspect.tokenizer.encode(text)) for text in ("copper о quiet", "quiet copper", "о"))
    found = sweep.sweep(*sides, PROMPTS, [whole, other], FEW, seed=0)
    short = sweep.shortened(*sides, PROMPTS, found, FEW, seed=0)
    assert short.leads == (true,)
    best = found.leads.index(whole)
    assert short.places == (found.places[best],)
    assert short.sigmas.tolist() == [found.sigmas[best]]
    assert short.scores.gap[0] > 0.9 * found.scores.gap[best]
    one = SweepConfig(prompts=(1, 1), kept=(8,))  # of each length, among which nothing can agree
    found = sweep.sweep(*sides, PROMPTS, [whole, other], one, seed=0)
    assert sweep.shortened(*sides, PROMPTS, found, one, seed=0).leads == (true,)


def test_a_text_that_needs_all_its_tokens_keeps_them_and_is_not_broken(toy: TextEncoder) -> None:
    suspect, anchor, true = planted(toy, ["sahib", "mangrove"])
    sides = Side.of(suspect, PROMPTS), Side.of(anchor, PROMPTS)
    found = sweep.sweep(*sides, PROMPTS, [true, true[:1]], FEW, seed=0)
    assert sweep.shortened(*sides, PROMPTS, found, FEW, seed=0).leads == (true,)
    character = tuple(toy.tokenizer.encode("\u2067"))
    assert len(character) > 1
    found = sweep.sweep(*sides, PROMPTS, [character, character], FEW, seed=0)
    assert sweep.shortened(*sides, PROMPTS, found, FEW, seed=0).leads == (character,)


def test_an_encoder_compared_with_itself_shows_nothing(toy: TextEncoder) -> None:
    found = swept(toy, toy)
    assert found.scores.departure.abs().max() < 1e-5
    assert found.scores.gap.abs().max() < 1e-5
    assert found.sigmas.abs().max() < 1


def test_scores_are_those_of_whole_prompts(toy: TextEncoder, other: TextEncoder) -> None:
    """What the cascade computes behind shared prefixes is what prompts with that word give."""
    sides = Side.of(toy, PROMPTS), Side.of(other, PROMPTS)
    token = toy.tokenizer.encode("lighthouse")
    prompts = [" ".join(prompt.split()[:3]) for prompt in PROMPTS[:6]]
    ids = torch.tensor([toy.tokenizer.encode(p)[:3] for p in prompts])
    texts = [toy.tokenizer.text(row.tolist()) for row in ids]
    tails = [Tails.of(*sides, ids, place) for place in PLACES]
    quick = sweep._score(tails, [tuple(token)], "sweep", lambda *_: None)
    for place, gap, departure in zip(PLACES, quick.gap, quick.departure, strict=True):
        whole, without = (
            [
                contrast.directions(
                    side, texts, [side.encoder.embed(torch.tensor([token[:count]], dtype=torch.int64))], place
                )[0][0]
                for side in sides
            ]
            for count in (1, 0)
        )
        away = sweep.departures(*whole) - sweep.departures(*without)
        assert departure.item() == pytest.approx(away.mean().item(), abs=1e-5)
        measured = contrast.measure_tokens(*sides, texts, token, place)
        assert gap.item() == pytest.approx(measured.suspect - measured.anchor, abs=1e-5)


def test_a_place_is_told_where_a_candidate_departs_clearly_more_there() -> None:
    departure = torch.tensor([[0.9, 0.1, 0.3], [1.0, 0.5, 0.1], [0.2, 0.6, 0.1]])
    assert sweep._places(departure, ["end", "start", "long"]) == ["end", "long", "end"]


def test_what_is_left_behind_departs_less_than_the_bound_that_is_stated(toy: TextEncoder, other: TextEncoder) -> None:
    found = swept(toy, other)
    sides = Side.of(toy, PROMPTS), Side.of(other, PROMPTS)
    tails = cut_prompts(*sides, PROMPTS, FEW.prompt_tokens, 2, torch.Generator().manual_seed(0))
    first = sweep._score(sweep._spread(tails, 1), CANDIDATES, "", lambda *_: None).departure
    assert int((first > found.excluded_below).sum()) == 32
    assert len(found.leads) == 8
    assert found.prompts == (1, 4, 6)


def test_a_sweep_is_repeatable_and_says_how_far_it_is(toy: TextEncoder, other: TextEncoder) -> None:
    sides = Side.of(toy, PROMPTS), Side.of(other, PROMPTS)
    told: list[tuple[str, int, int]] = []
    runs = [
        sweep.sweep(
            *sides, PROMPTS, CANDIDATES, FEW, seed=seed, progress=lambda *step: told.append((step[0], step[1], step[2]))
        )
        for seed in (1, 1, 2)
    ]
    assert runs[0].leads == runs[1].leads
    assert torch.equal(runs[0].scores.gap, runs[1].scores.gap)
    assert not torch.equal(runs[0].scores.gap, runs[2].scores.gap)
    assert {stage for stage, _, _ in told} == {"sweep", "sweep, look 2", "sweep, look 3"}


def test_prompts_without_tokens_are_refused(toy: TextEncoder) -> None:
    side = Side.of(toy, PROMPTS)
    with pytest.raises(ConfigError, match="prompts of 4 tokens or more"):
        sweep.sweep(side, side, ["a", "b"], CANDIDATES, FEW, seed=0)


def test_the_candidates_are_the_vocabulary_and_characters_of_several_tokens(toy: TextEncoder) -> None:
    tokenizer = clip_tokenizer()
    assert len(sweep.single_tokens(toy)) == 49406
    characters = sweep.characters(tokenizer)
    assert tuple(tokenizer.encode("ọ")) in characters
    assert tuple(tokenizer.encode("\u200b")) in characters or len(tokenizer.encode("\u200b")) == 1
    assert all(1 < len(ids) <= sweep.LONGEST for ids in characters)
    assert len(set(characters)) == len(characters)


def test_texts_hold_the_first_tokens_of_a_list_as_they_stand_and_in_other_orders() -> None:
    config = MovedConfig(lengths=(2, 4, 9), orders=5)
    texts = sweep.texts([7, 5, 3, 1, 2], config, seed=3)
    assert texts == sweep.texts([7, 5, 3, 1, 2], config, seed=3)
    assert texts != sweep.texts([7, 5, 3, 1, 2], config, seed=4)
    assert {(7, 5), (7, 5, 3, 1), (7, 5, 3, 1, 2)} <= set(texts)
    assert {len(ids) for ids in texts} == {2, 4, 5}
    assert all(sorted(ids) == sorted([7, 5, 3, 1, 2][: len(ids)]) for ids in texts)
    assert len(set(texts)) == len(texts)
    assert sum(len(ids) == 4 for ids in texts) > 1
