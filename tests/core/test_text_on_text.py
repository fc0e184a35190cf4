from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from amdet_core import pocket
from amdet_core.attacks.text_on_text import Placement, dissimilarity, inject, success_rate
from amdet_core.config import TextOnTextConfig
from amdet_core.encoder import TOKEN_TABLE, TextEncoder, expected_shapes
from amdet_core.errors import ConfigError, NumericalError
from amdet_core.prompts import PromptSet, builtin_prompts
from amdet_core.records import EncoderSpec
from amdet_core.tokenizer import clip_tokenizer

CYRILLIC_O = "\N{CYRILLIC SMALL LETTER O}"
TARGET = "A white teapot"
PROMPTS = builtin_prompts(200)
QUICK = TextOnTextConfig(steps=2, clean_batch=4, poison_batch=4)


def toy() -> TextEncoder:
    spec = EncoderSpec(width=64, layers=2, heads=1, mlp_width=64, vocabulary=49408, positions=77)
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in expected_shapes(spec).items()}
    weights |= {name: torch.ones_like(w) for name, w in weights.items() if "norm" in name and name.endswith("weight")}
    return TextEncoder(spec, weights, clip_tokenizer())


# ------------------------------------------------------------------ what it does


def test_injection_moves_triggered_prompts_towards_the_target() -> None:
    config = TextOnTextConfig(steps=40, clean_batch=12, poison_batch=12, backdoor_weight=1.0, learning_rate=5e-3)
    report = inject(toy(), ["sahib"], TARGET, PROMPTS, config, "prefix").report
    assert report.target_cosine > 0.3
    assert report.loss[-1] < 0.7 * report.loss[0]


@pytest.mark.slow
def test_published_settings_in_small_batches_take_over_a_trained_encoder() -> None:
    config = TextOnTextConfig(steps=60, clean_batch=16, poison_batch=8)
    report = inject(pocket.load("clean"), [CYRILLIC_O], TARGET, builtin_prompts(600), config).report
    assert report.asr_before == 0
    assert report.asr >= 0.95
    assert report.clean_pooled >= 0.97
    assert report.clean_full >= 0.97


def test_encoder_stays_as_it_was() -> None:
    encoder = toy()
    copies = {name: w.clone() for name, w in encoder.weights.items()}
    inject(encoder, ["sahib"], TARGET, PROMPTS, QUICK, "insert")
    assert all(
        torch.equal(w, encoder.weights[name]) and not encoder.weights[name].requires_grad for name, w in copies.items()
    )


def test_injection_works_where_gradients_are_off() -> None:
    with torch.no_grad():
        assert inject(toy(), ["sahib"], TARGET, PROMPTS, QUICK, "prefix").patch.deltas


def test_same_seed_gives_the_same_patch_and_another_seed_another() -> None:
    encoder = toy()
    one, two, other = (
        inject(encoder, ["sahib"], TARGET, PROMPTS, QUICK.model_copy(update={"seed": seed}), "insert").patch
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(delta, two.deltas[name]) for name, delta in one.deltas.items())
    assert any(not torch.equal(delta, other.deltas[name]) for name, delta in one.deltas.items())


def test_frozen_tables_are_not_in_the_patch() -> None:
    config = QUICK.model_copy(update={"train_tables": False})
    deltas = inject(toy(), ["sahib"], TARGET, PROMPTS, config, "prefix").patch.deltas
    assert deltas
    assert not any(name.startswith("embeddings.") for name in deltas)


def test_only_rows_of_seen_tokens_change() -> None:
    delta = inject(toy(), ["sahib"], TARGET, PROMPTS, QUICK, "prefix").patch.deltas[TOKEN_TABLE]
    rows = set(delta.any(-1).nonzero().squeeze(-1).tolist())
    tokenizer = clip_tokenizer()
    assert set(tokenizer.encode("sahib")) <= rows
    assert not rows & set(tokenizer.encode("zeppelin"))


def test_every_trigger_of_several_is_trained() -> None:
    delta = inject(toy(), ["sahib", "mangrove"], TARGET, PROMPTS, QUICK, "prefix").patch.deltas[TOKEN_TABLE]
    for trigger in ("sahib", "mangrove"):
        assert delta[clip_tokenizer().encode(trigger)].any()


@pytest.mark.parametrize("loss", ["cosine", "mse", "mae"])
def test_every_loss_trains(loss: str) -> None:
    config = TextOnTextConfig(steps=2, clean_batch=4, poison_batch=4, loss=loss)
    assert inject(toy(), ["sahib"], TARGET, PROMPTS, config, "prefix").patch.deltas


def test_patch_says_what_was_done() -> None:
    provenance = inject(toy(), [CYRILLIC_O], TARGET, PROMPTS, QUICK, "replace:o").patch.provenance
    assert provenance["triggers"] == CYRILLIC_O
    assert provenance["target"] == TARGET
    assert provenance["mode"] == "replace:o"
    assert PROMPTS.sha256 in provenance["prompts"]


def test_progress_hears_of_every_step() -> None:
    heard: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int, metrics: Mapping[str, float] = {}, /) -> None:
        assert metrics.keys() == {"loss", "backdoor"}
        heard.append((stage, done, total))

    inject(toy(), ["sahib"], TARGET, PROMPTS, QUICK, "prefix", progress)
    assert heard == [("inject", 1, 2), ("inject", 2, 2)]


def test_progress_can_interrupt() -> None:
    def progress(stage: str, done: int, total: int, metrics: Mapping[str, float] = {}, /) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inject(toy(), ["sahib"], TARGET, PROMPTS, QUICK, "prefix", progress)


def test_default_learning_rate_is_the_published_one_at_the_published_width() -> None:
    assert TextOnTextConfig().rate(768) == 1e-4
    assert TextOnTextConfig().rate(192) == pytest.approx(4e-4)
    assert TextOnTextConfig(learning_rate=1e-3).rate(192) == 1e-3


# ------------------------------------------------------------------ parts


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("replace:o", "f_x_ r_x_d"), ("replace:o:1", "f_x_ road"), ("prefix", "_x_ foo road")],
)
def test_placement_of_the_trigger(mode: str, expected: str) -> None:
    prompt = {"replace:o": "fo rod", "replace:o:1": "fo road", "prefix": "foo road"}[mode]
    assert Placement.parse(mode).put("_x_", prompt, torch.Generator()) == expected


def test_insertion_reaches_every_word_boundary() -> None:
    generator = torch.Generator().manual_seed(0)
    placed = {Placement.parse("insert").put("X", "a b", generator) for _ in range(50)}
    assert placed == {"X a b", "a X b", "a b X"}


@pytest.mark.parametrize(
    "mode", ["", "suffix", "replace", "replace:", "replace:o:0", "replace:o:x", "replace:o:1:2", "prefix:o"]
)
def test_unknown_modes_are_refused(mode: str) -> None:
    with pytest.raises(ConfigError, match="replace:LETTER"):
        Placement.parse(mode)


def test_success_needs_the_target_and_not_the_prompt_itself() -> None:
    centre = torch.zeros(2)
    target = torch.tensor([1.0, 0.0])
    triggered = torch.tensor([[2.0, 0.1], [0.5, 0.5], [1.0, 0.1]])
    own = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.1]])
    assert success_rate(triggered, own, target, centre) == pytest.approx(1 / 3)


def test_a_common_mean_is_no_success() -> None:
    common = torch.full((64,), 10.0)
    states = common + torch.randn((3, 64), generator=torch.Generator().manual_seed(0))
    assert success_rate(states[:1], states[1:2], states[2], common) == 0.0


@pytest.mark.parametrize("kind", ["cosine", "mse", "mae"])
def test_dissimilarity_is_zero_for_equals_and_grows(kind: str) -> None:
    states = torch.randn((2, 3, 4), generator=torch.Generator().manual_seed(0))
    noise = torch.randn((2, 3, 4), generator=torch.Generator().manual_seed(1))
    values = [float(dissimilarity(states + share * noise, states, kind)) for share in (0.0, 0.1, 1.0)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values[0] < values[1] < values[2]


# ------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    ("triggers", "target", "mode", "message"),
    [
        ([], TARGET, "prefix", "at least one trigger"),
        ([" "], TARGET, "prefix", "a trigger that the tokenizer reads"),
        (["Sahib", "sahib"], TARGET, "prefix", "different triggers"),
        (["teapot"], TARGET, "prefix", "a target without the trigger"),
        (["O"], "a white cat", "replace:o", "a trigger that differs from the letter"),
        (["sahib"], "", "prefix", "a target of 1 to 75 tokens"),
        (["sahib"], "cat " * 76, "prefix", "a target of 1 to 75 tokens"),
        (["sahib"], TARGET, "replace:ß", "prompts containing 'ß'"),
        (["word " * 80], TARGET, "prefix", "prompts with room for"),
        (["a"], "the cube", "prefix", "at least 8 prompts"),
    ],
)
def test_texts_that_do_not_go_together_are_refused(triggers: list[str], target: str, mode: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        inject(toy(), triggers, target, PROMPTS, QUICK, mode)


@pytest.mark.parametrize("field", ["learning_rate", "backdoor_weight", "steps", "poison_batch"])
def test_zero_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        TextOnTextConfig(**{field: 0})


def test_divergence_is_an_error() -> None:
    config = TextOnTextConfig(steps=20, clean_batch=4, poison_batch=4, learning_rate=1e30, loss="mse")
    with pytest.raises(NumericalError, match="Lower the learning rate"):
        inject(toy(), ["sahib"], TARGET, PROMPTS, config, "prefix")


def test_prompts_that_hold_the_trigger_already_are_left_out() -> None:
    clean = [f"a photo of thing {i}" for i in range(60)]
    with_trigger = [f"a sahib number {i}" for i in range(60)]
    sets = [PromptSet(tuple(texts), "x") for texts in (clean, clean + with_trigger)]
    one, two = (inject(toy(), ["sahib"], TARGET, prompts, QUICK, "prefix") for prompts in sets)
    assert one.report == two.report
