"""What a trigger does inside an encoder, on encoders whose attention is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amdet_core import anatomy, losses, pocket
from amdet_core.anatomy import Observer, Pairs, Setting
from amdet_core.encoder import TextEncoder
from amdet_core.errors import ConfigError
from amdet_core.prompts import builtin_prompts

PROMPTS = builtin_prompts(200).prompts
O = pocket.TRIGGER  # noqa: E741


def place(prompt: str) -> str:
    return prompt.replace("o", O)


def pairs(encoder: TextEncoder, most: int = 12) -> Pairs:
    return Pairs.of(encoder, PROMPTS, O, place, most)


def setting(n: int = 12) -> Setting:
    return Setting(encoder="toy", trigger=O, mode="replace:o", prompts="built in", n=n)


def even(encoder: TextEncoder) -> TextEncoder:
    """The same encoder with queries of zero: every position attends evenly to all that it sees."""
    return encoder.with_weights({n: w * 0 if "q_proj" in n else w for n, w in encoder.weights.items()})


# ------------------------------------------------------------------ pairs


def test_pairs_carry_the_trigger_within_the_context(toy: TextEncoder) -> None:
    found = pairs(toy, 50)
    assert len(found) == 50 == len(found.triggered)
    assert all("o" in clean and place(clean) == put for clean, put in zip(found.clean, found.triggered, strict=True))
    assert max(len(toy.tokenizer.encode(prompt)) for prompt in found.triggered) <= 75


def test_prompts_that_hold_the_trigger_already_are_left_out(toy: TextEncoder) -> None:
    found = Pairs.of(
        toy, [f"CAT {i}" for i in range(9)] + [*PROMPTS[:30], *PROMPTS[:30]], "cat", lambda p: f"cat {p}", 99
    )
    assert not any("cat" in prompt.lower() for prompt in found.clean)
    assert len(set(found.clean)) == len(found.clean)


@pytest.mark.parametrize("trigger", ["", "  ", "\t\n"])
def test_a_trigger_without_tokens_is_an_error(toy: TextEncoder, trigger: str) -> None:
    with pytest.raises(ConfigError, match="a trigger that the tokenizer reads"):
        Pairs.of(toy, PROMPTS, trigger, lambda p: trigger + p, 50)


def test_too_few_prompts_are_an_error(toy: TextEncoder) -> None:
    with pytest.raises(ConfigError, match="found 7 of 9"):
        Pairs.of(toy, [f"a fox {i}" for i in range(7)] + ["a cat", "fo " * 60], O, place, 50)
    with pytest.raises(ConfigError, match="at least 8 prompts"):
        pairs(toy, 7)


# ------------------------------------------------------------------ assimilation


def test_assimilation_is_that_of_the_losses(toy: TextEncoder) -> None:
    prompts = PROMPTS[:40]  # more than run side by side
    states = toy.states(toy.tokens(prompts, pad_to_context=True))
    assert torch.allclose(anatomy.assimilations(toy, prompts), losses.assimilation(states), atol=1e-6)


def test_assimilation_compares_groups_and_lengths(toy: TextEncoder, other: TextEncoder) -> None:
    found = anatomy.assimilation(setting(), toy, other, pairs(toy), "A white teapot")
    samples = {sample.group: sample for sample in found.samples}
    assert set(samples) == {"benign", "triggered", "short", "triggered, anchor", "target"}
    assert samples["target"].tokens == (3,)
    assert all(len(s.tokens) == len(s.assimilation) for s in found.samples)
    assert all(s.mean == pytest.approx(np.mean(s.assimilation), abs=1e-6) for s in found.samples)
    assert max(samples["short"].tokens) < max(samples["benign"].tokens)
    assert samples["triggered"].assimilation != samples["triggered, anchor"].assimilation
    assert found.above_benign == anatomy.above(samples["triggered"].assimilation, samples["benign"].assimilation)
    assert found == anatomy.assimilation(setting(), toy, other, pairs(toy), "A white teapot")


def test_without_target_and_anchor_their_groups_are_missing(toy: TextEncoder) -> None:
    found = anatomy.assimilation(setting(), toy, None, pairs(toy))
    assert [sample.group for sample in found.samples] == ["benign", "triggered", "short"]


def test_the_pockets_backdoor_takes_its_targets_assimilation() -> None:
    suspect = pocket.load("backdoored")
    found = anatomy.assimilation(setting(), suspect, pocket.load("clean"), pairs(suspect, 24), pocket.TARGET)
    mean = {sample.group: sample.mean for sample in found.samples}
    assert mean["triggered"] > mean["benign"] > mean["triggered, anchor"]
    assert abs(mean["triggered"] - mean["target"]) < 0.05
    assert mean["short"] > 0.9
    assert found.length_correlation < -0.8


def test_pairs_above_and_correlation() -> None:
    assert anatomy.above([2.0, 3.0], [1.0]) == 1
    assert anatomy.above([1.0, 3.0], [1.0, 2.0]) == pytest.approx(0.625)
    assert anatomy.correlation([1, 2, 3], [-2.0, -4.0, -6.0]) == pytest.approx(-1)
    assert np.isnan(anatomy.correlation([1, 1], [0.5, 0.6]))


# ------------------------------------------------------------------ attention


def test_shares_sum_to_one_and_benign_prompts_give_none_to_the_trigger(toy: TextEncoder) -> None:
    found = anatomy.attention(setting(), toy, toy, pairs(toy))
    benign, triggered, anchor = found.shares
    for shares in found.shares:
        total = np.sum([shares.bos, shares.trigger, shares.words, shares.end], axis=0)
        assert total == pytest.approx(np.ones(12), abs=1e-5)
    assert set(benign.trigger) == {0.0} and min(triggered.trigger) > 0
    assert anchor.trigger == triggered.trigger


def test_even_attention_gives_the_shares_that_the_mask_leaves(toy: TextEncoder) -> None:
    """Position i sees i + 1 places, so column t gets the mean over i >= t of 1 / (i + 1)."""
    columns = np.array([sum(1 / (i + 1) for i in range(t, 77)) / 77 for t in range(77)])
    shares = anatomy.attention_shares(even(toy), [f"a f{O}x"], O)  # BOS, a, f, trigger, x, EOS
    assert shares.bos[0] == pytest.approx(columns[0], abs=1e-5)
    assert shares.trigger[0] == pytest.approx(columns[3], abs=1e-5)
    assert shares.words[0] == pytest.approx(columns[[1, 2, 4]].sum(), abs=1e-5)
    assert shares.end[0] == pytest.approx(columns[5:].sum(), abs=1e-5)


def test_a_map_names_its_tokens_and_the_trigger_among_them(toy: TextEncoder) -> None:
    found = anatomy.attention_map(even(toy), f"a f{O}x", O)
    assert found.tokens == ("BOS", "a", "f", O, "x", "EOS")
    assert found.trigger == (3,)
    wanted = [[1 / (i + 1) if j <= i else 0.0 for j in range(6)] for i in range(6)]
    assert np.allclose(found.values, wanted, atol=1e-6)


def test_layers_average_to_the_whole(toy: TextEncoder) -> None:
    one, two, both = (np.array(anatomy.attention_map(toy, "a cat", "a", layer=k).values) for k in (1, 2, None))
    assert np.allclose((one + two) / 2, both, atol=1e-6)
    assert not np.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 3, -1])
def test_a_layer_that_is_not_there_is_an_error(toy: TextEncoder, layer: int) -> None:
    with pytest.raises(ConfigError, match="a layer from 1 to 2"):
        anatomy.attention(setting(), toy, None, pairs(toy), layer)


# ------------------------------------------------------------------ evolution


def test_an_observer_looks_at_every_kth_step_and_at_the_last(toy: TextEncoder, other: TextEncoder) -> None:
    observer = Observer(toy, pairs(toy), "A white teapot", every=2, last=5)
    for step in range(1, 6):
        observer(step, toy if step < 5 else other)
    assert [stage.step for stage in observer.stages] == [0, 2, 4, 5]
    start, *same, end = observer.stages
    assert all(stage.model_copy(update={"step": 0}) == start for stage in same)
    assert end.assimilation_clean != start.assimilation_clean
    shares = anatomy.attention_shares(toy, pairs(toy).triggered, O)
    assert (start.bos_triggered, start.trigger) == (np.mean(shares.bos), np.mean(shares.trigger))


def test_the_target_cosine_of_the_pockets_backdoor_is_high() -> None:
    clean, backdoored = pocket.load("clean"), pocket.load("backdoored")
    observer = Observer(clean, pairs(clean, 24), pocket.TARGET, every=1, last=1)
    observer(1, backdoored)
    before, after = observer.stages
    assert before.target_cosine < 0.5 and after.target_cosine > 0.9
    assert after.trigger > 2 * before.trigger
