"""The literal trigger, searched on encoders in which it is planted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from amdet_core import contrast
from amdet_core.config import SearchConfig
from amdet_core.encoder import TextEncoder
from amdet_core.progress import silent
from amdet_core.prompts import builtin_prompts
from amdet_core.search import Hit, _Hunt, _moved, search
from amdet_core.tails import Side, cut_prompts, outputs

from .planted import planted

PROMPTS = builtin_prompts(200).prompts
FEW = SearchConfig(leads=12, pool=6, prompts=3, refined=16, pointed=4, longest=4)
OTHERS = list(range(2000, 2010))


def found(toy: TextEncoder, words: list[str], leads: list[int], config: SearchConfig = FEW) -> tuple[Hit, Hit]:
    """What is found for a planted trigger, and the trigger itself with its score."""
    suspect, anchor, ids = planted(toy, words)
    sides = Side.of(suspect, PROMPTS), Side.of(anchor, PROMPTS)
    goal = contrast.measure_tokens(*sides, PROMPTS[:40], ids).target
    hit = search(*sides, PROMPTS, goal, leads, config, seed=0)
    # Searching among nothing else, without growing, scores the trigger itself.
    own, other = (
        F.normalize(outputs(side.encoder, PROMPTS[:40], side.encoder.embed(torch.tensor(ids))) - side.centre)
        for side in sides
    )
    score = ((own @ goal.float()) - (other @ goal.float()).clamp(min=0)).mean().item()
    return hit, Hit(ids, score)


def test_a_trigger_of_two_tokens_is_put_together_from_its_parts(toy: TextEncoder) -> None:
    trigger = toy.tokenizer.encode("sahib mangrove")
    hit, true = found(toy, ["sahib", "mangrove"], [*OTHERS, *trigger])
    assert set(hit.ids) == set(true.ids)
    assert hit.score > true.score - 0.1


def test_the_gradient_points_to_a_part_that_no_lead_names(toy: TextEncoder) -> None:
    first, second = toy.tokenizer.encode("sahib mangrove")
    hit, _ = found(toy, ["sahib", "mangrove"], [first, *OTHERS])
    assert second in hit.ids


def test_a_search_begins_with_whole_sequences_too(toy: TextEncoder) -> None:
    suspect, anchor, ids = planted(toy, ["sahib", "mangrove", "velvet"])
    sides = Side.of(suspect, PROMPTS), Side.of(anchor, PROMPTS)
    goal = contrast.measure_tokens(*sides, PROMPTS[:40], ids).target
    config = FEW.model_copy(update={"pointed": 1, "exchanges": 0, "beam": 1, "longest": 5})
    starts = [tuple(OTHERS[:3]), (OTHERS[0], *ids, OTHERS[1])]
    alone, begun = (search(*sides, PROMPTS, goal, OTHERS, config, seed=0, starts=some) for some in ((), starts))
    assert set(begun.ids) == set(ids)
    assert set(alone.ids) != set(ids)
    assert begun.score > alone.score


def test_only_sequences_that_a_prompt_can_hold_are_scored_where_there_are_any(toy: TextEncoder) -> None:
    suspect, anchor, ids = planted(toy, ["sahib", "mangrove"])
    sides = Side.of(suspect, PROMPTS), Side.of(anchor, PROMPTS)
    goal = contrast.measure_tokens(*sides, PROMPTS[:40], ids).target
    tails = cut_prompts(*sides, PROMPTS, (6,), 6, torch.Generator().manual_seed(0))
    hunt = _Hunt(*sides, tails, goal.float(), (), FEW, torch.Generator(), silent)
    half = toy.tokenizer.encode("\u2067")[0]
    words = tuple(toy.tokenizer.encode("quiet copper"))
    assert hunt.best_of([(half, ids[0]), words]).ids == words
    assert hunt.best_of([(half, ids[0])]).ids == (half, ids[0])


def test_a_token_is_moved_to_every_other_place_once() -> None:
    assert _moved((1, 2)) == [(2, 1)]
    assert sorted(_moved((1, 2, 3))) == [(1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2)]


def test_tokens_that_are_not_needed_are_dropped(toy: TextEncoder) -> None:
    suspect, anchor, (first, second) = planted(toy, ["sahib", "mangrove"])
    sides = Side.of(suspect, PROMPTS), Side.of(anchor, PROMPTS)
    goal = contrast.measure_tokens(*sides, PROMPTS[:40], (first, second)).target
    tails = cut_prompts(*sides, PROMPTS, (6,), 6, torch.Generator().manual_seed(0))
    config = FEW.model_copy(update={"slack": 0.3})
    hunt = _Hunt(*sides, tails, goal.float(), (), config, torch.Generator(), silent)
    start = hunt.best_of([(OTHERS[0], first, OTHERS[1], second)])
    short = hunt.shorten(start, config.slack, hunt.all)
    least = start.score - config.slack
    assert len(short.ids) < len(start.ids)
    assert short.score >= least
    shorter = [short.ids[:i] + short.ids[i + 1 :] for i in range(len(short.ids))]
    assert len(short.ids) == 1 or hunt.best_of(shorter).score < least


def test_a_sequence_is_never_longer_than_asked_for_and_the_search_is_repeatable(toy: TextEncoder) -> None:
    config = FEW.model_copy(update={"gain": 0.0, "longest": 3, "slack": 0.0, "enough": 5.0})
    leads = [*OTHERS, *toy.tokenizer.encode("sahib mangrove")]
    one, other = (found(toy, ["sahib", "mangrove"], leads, config)[0] for _ in range(2))
    assert one.ids == other.ids
    assert one.score == pytest.approx(other.score)
    assert len(one.ids) <= 3


def test_words_that_describe_the_goal_to_the_anchor_too_count_for_nothing(toy: TextEncoder) -> None:
    side = Side.of(toy, PROMPTS)
    token = toy.tokenizer.encode("lighthouse")
    goal = contrast.measure_tokens(side, side, PROMPTS[:40], token).target
    assert search(side, side, PROMPTS, goal, [*token, *OTHERS], FEW, seed=0).score <= 0
