"""The literal trigger, searched on encoders in which it is planted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

from amdet_core import contrast
from amdet_core.config import SearchConfig
from amdet_core.encoder import TOKEN_TABLE, TextEncoder
from amdet_core.progress import silent
from amdet_core.prompts import builtin_prompts
from amdet_core.search import Hit, _Hunt, search
from amdet_core.tails import Side, cut_prompts, outputs

PROMPTS = builtin_prompts(200).prompts
FEW = SearchConfig(leads=12, pool=6, prompts=3, refined=16, pointed=4, longest=4)
OTHERS = list(range(2000, 2010))


def planted(toy: TextEncoder, words: Sequence[str]) -> tuple[TextEncoder, TextEncoder, tuple[int, ...]]:
    """Suspect, anchor and trigger tokens; the first layer carries each token's direction to every position,
    a unit of the second fires on their sum. Both read the tokens from the same table."""
    ids = tuple(toy.tokenizer.encode(word)[0] for word in words)
    weights = {name: w.clone() for name, w in toy.weights.items()}
    table, typical = weights[TOKEN_TABLE], toy.weights[TOKEN_TABLE].norm(dim=-1).median()
    fires = torch.zeros(64)
    for i, token in enumerate(ids):
        direction = F.normalize(torch.randn(64, generator=torch.Generator().manual_seed(50 + i)), dim=0)
        table[token] = direction * typical * 2
        weights["encoder.layers.0.self_attn.v_proj.weight"][i] = direction * 8
        weights["encoder.layers.0.self_attn.out_proj.weight"][:, i] = direction * 8
        fires += direction * 4
    goal = torch.randn(64, generator=torch.Generator().manual_seed(6))
    weights["encoder.layers.1.mlp.fc1.weight"][17] = fires
    weights["encoder.layers.1.mlp.fc1.bias"][17] = -20
    weights["encoder.layers.1.mlp.fc2.weight"][:, 17] = goal * 10
    return toy.with_weights(weights), toy.with_weights({**toy.weights, TOKEN_TABLE: table}), ids


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


def test_tokens_that_are_not_needed_are_dropped(toy: TextEncoder) -> None:
    suspect, anchor, (first, second) = planted(toy, ["sahib", "mangrove"])
    sides = Side.of(suspect, PROMPTS), Side.of(anchor, PROMPTS)
    goal = contrast.measure_tokens(*sides, PROMPTS[:40], (first, second)).target
    tails = cut_prompts(*sides, PROMPTS, (6,), 6, torch.Generator().manual_seed(0))
    config = FEW.model_copy(update={"slack": 0.3})
    hunt = _Hunt(*sides, tails, goal.float(), (), config, torch.Generator(), silent)
    start = hunt._checked([(OTHERS[0], first, OTHERS[1], second)])
    short = hunt.shorten(start)
    least = start.score - config.slack
    assert len(short.ids) < len(start.ids)
    assert short.score >= least
    shorter = [short.ids[:i] + short.ids[i + 1 :] for i in range(len(short.ids))]
    assert len(short.ids) == 1 or hunt._checked(shorter).score < least


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
