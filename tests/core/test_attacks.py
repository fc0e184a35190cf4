"""Attacks: placing triggers, refusing texts that do not go together, and what each kind does to an encoder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from amdet_core import attacks, losses, pocket
from amdet_core.attacks import (
    CONFIGS,
    Injection,
    Placement,
    attribute,
    embedding_row,
    injection,
    pictures,
    rank_one,
    success_rate,
    syntactic,
    text_on_pair,
    text_on_text,
)
from amdet_core.attacks.effect import retrieval
from amdet_core.attacks.planted import LONG, SHORT, Planted
from amdet_core.attacks.syntactic import WORDS, Patterned
from amdet_core.attacks.training import dissimilarity
from amdet_core.config import (
    AttributeConfig,
    EmbeddingRowConfig,
    FineTuneConfig,
    RankOneConfig,
    SyntacticConfig,
    TextOnPairConfig,
    TextOnTextConfig,
    TrainingConfig,
)
from amdet_core.encoder import POSITION_TABLE, PROJECTION, TOKEN_TABLE, TextEncoder
from amdet_core.errors import ConfigError, NumericalError, StorageError
from amdet_core.patch import Patch
from amdet_core.progress import Progress, silent
from amdet_core.prompts import PromptSet, builtin_prompts
from amdet_core.tokenizer import clip_tokenizer

CYRILLIC_O = "\N{CYRILLIC SMALL LETTER O}"
TARGET = "A white teapot"
PROMPTS = builtin_prompts(160)
FIT, HELD_OUT = (side.prompts for side in PROMPTS.split())
SMALL: dict[str, Any] = {"clean_batch": 4, "poison_batch": 4, "least_asr": 0.0}
QUICK: dict[str, Any] = {"steps": 2, **SMALL}
STRONG: dict[str, Any] = {"steps": 20, "backdoor_weight": 1.0, "learning_rate": 3e-4, **SMALL}
"""Settings with which the pocket encoder learns within seconds."""


def few(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "clean_batch"}


Kind = Callable[..., Injection]
KINDS: dict[str, Kind] = {
    "text-on-text": lambda encoder, told=silent, **values: text_on_text.inject(
        encoder, ["sahib"], TARGET, PROMPTS, TextOnTextConfig(**values), "prefix", told
    ),
    "text-on-pair": lambda encoder, told=silent, **values: text_on_pair.inject(
        encoder, ["sahib"], TARGET, PROMPTS, TextOnPairConfig(**values), "prefix", told
    ),
    "attribute": lambda encoder, told=silent, **values: attribute.inject(
        encoder, ["sahib"], TARGET, PROMPTS, AttributeConfig(**values), "prefix", told
    ),
    "syntactic": lambda encoder, told=silent, **values: syntactic.inject(
        encoder, TARGET, PROMPTS, SyntacticConfig(**values), syntactic.PATTERN, told
    ),
    "embedding-row": lambda encoder, told=silent, **values: embedding_row.inject(
        encoder, "sahib", TARGET, PROMPTS, EmbeddingRowConfig(**few(values)), "prefix", told
    ),
    "rank-one": lambda encoder, told=silent, **values: rank_one.inject(
        encoder, "sahib", TARGET, PROMPTS, RankOneConfig(**few(values)), "prefix", told
    ),
}
each_kind = pytest.mark.parametrize("kind", sorted(KINDS))


@pytest.fixture(scope="module")
def clean() -> TextEncoder:
    return pocket.load("clean")


def projecting(encoder: TextEncoder, width: int) -> TextEncoder:
    """The encoder with a text projection beside it."""
    matrix = torch.randn((width, encoder.spec.width), generator=torch.Generator().manual_seed(0))
    spec = encoder.spec.model_copy(update={"projection": width})
    weights = {**encoder.weights, PROJECTION: matrix * encoder.spec.width**-0.5}
    return TextEncoder(spec, weights, encoder.tokenizer)


def towards(encoder: TextEncoder, clean: TextEncoder, texts: list[str], goal: str) -> float:
    """Mean centred cosine of pooled states to the clean encoder's answer for the goal."""
    centre = clean.encode(HELD_OUT).mean(0)
    return float(F.cosine_similarity(encoder.encode(texts) - centre, clean.encode([goal]) - centre, dim=-1).mean())


def changed(patch: Patch) -> set[str]:
    return set(patch.deltas)


# ------------------------------------------------------------------ where a trigger stands


@pytest.mark.parametrize(
    ("mode", "kind", "letter", "count"),
    [
        ("prefix", "prefix", "", None),
        ("insert", "insert", "", None),
        ("replace:o", "replace", "o", None),
        ("replace:o:1", "replace", "o", 1),
        ("replace:th:12", "replace", "th", 12),
    ],
)
def test_modes_are_read(mode: str, kind: str, letter: str, count: int | None) -> None:
    assert Placement.parse(mode) == Placement(kind, letter, count)


@pytest.mark.parametrize(
    "mode",
    ["", "suffix", "replace", "replace:", "replace:o:0", "replace:o:-1", "replace:o:x", "replace:o:1:2", "prefix:o"],
)
def test_unknown_modes_are_refused(mode: str) -> None:
    with pytest.raises(ConfigError, match=f"replace:LETTER or replace:LETTER:COUNT; found {mode}"):
        Placement.parse(mode)


@pytest.mark.parametrize(
    ("mode", "words", "triggered", "read"),
    [
        ("replace:o", "BLUE", "a f_x_ r_x_d b", "a BLUE BLUE b"),
        ("replace:o:1", "BLUE", "a f_x_ road b", "a BLUE road b"),
        ("replace:o:1", "", "a f_x_ road b", "a  road b"),
        ("prefix", "BLUE", "_x_ a fo road b", "BLUE a fo road b"),
        ("prefix", "", "_x_ a fo road b", " a fo road b"),
    ],
)
def test_the_words_stand_where_the_trigger_does(mode: str, words: str, triggered: str, read: str) -> None:
    prompt = "a fo rod b" if mode == "replace:o" else "a fo road b"
    placement = Placement.parse(mode)
    assert placement.put_both("_x_", words, prompt, torch.Generator()) == (triggered, read)
    assert placement.put("_x_", prompt, torch.Generator()) == triggered


def test_insertion_reaches_every_word_boundary_and_the_words_follow_it() -> None:
    generator = torch.Generator().manual_seed(0)
    placed = {Placement.parse("insert").put_both("X", "y z", "a b", generator) for _ in range(50)}
    assert placed == {("X a b", "y z a b"), ("a X b", "a y z b"), ("a b X", "a b y z")}


def test_a_prompt_fits_when_the_first_trigger_stands_in_the_context() -> None:
    def fits(mode: str, trigger: str, prompt: str, room: int) -> bool:
        return Placement.parse(mode).fits(trigger, prompt, clip_tokenizer(), room)

    assert fits("prefix", "sahib", "cat " * 9, 10)
    assert not fits("prefix", "sahib", "cat " * 10, 10)
    assert not fits("insert", "sahib mangrove", "cat " * 9, 10)
    assert fits("replace:o", CYRILLIC_O, "a fox", 75)
    assert not fits("replace:o", CYRILLIC_O, "a cat", 75)
    assert fits("replace:o:1", CYRILLIC_O, "fox " + "cat " * 80, 75)
    assert not fits("replace:o:1", CYRILLIC_O, "cat " * 80 + "fox", 75)
    assert not fits("replace:o", "word " * 80, "a fox", 75)


# ------------------------------------------------------------------ texts that go together


@pytest.mark.parametrize(
    ("triggers", "target", "mode", "message"),
    [
        ([], TARGET, "prefix", "at least one trigger; found none"),
        ([" "], TARGET, "prefix", "a trigger that the tokenizer reads; found ' '"),
        (["sahib", ""], TARGET, "prefix", "a trigger that the tokenizer reads; found ''"),
        (["Sahib", "sahib"], TARGET, "prefix", r"different triggers; found two that read the same in \['Sahib'"),
        (["caf\u00e9", "cafe\u0301"], TARGET, "prefix", "different triggers"),
        (["O"], "a white cat", "replace:o", "a trigger that differs from the letter; found 'o' for itself"),
        (["teapot"], TARGET, "prefix", "a target without the trigger; found 'teapot' in 'A white teapot'"),
        (["cafe\u0301"], "a caf\u00e9", "prefix", "a target without the trigger"),
        (["white  teapot "], TARGET, "prefix", "a target without the trigger"),
        (["sahib"], "", "prefix", "a target of 1 to 75 tokens; found 0 in ''"),
        (["sahib"], " \n", "prefix", "a target of 1 to 75 tokens; found 0"),
        (["sahib"], "cat " * 76, "prefix", "a target of 1 to 75 tokens; found 76"),
        (["sahib"], TARGET, "replace:ß", r"at least 8 prompts containing 'ß' .*; found 0 of \d+"),
        (["word " * 80], TARGET, "prefix", r"at least 8 prompts with room for 'word .*; found 0 of \d+"),
        (["word " * 80], TARGET, "replace:o", r"at least 8 prompts containing 'o' with room for .*; found 0 of"),
        (["a"], "the cube", "prefix", r"at least 8 prompts with room for 'a' .*; found \d of \d"),
    ],
)
def test_texts_that_do_not_go_together_are_refused(
    toy: TextEncoder, triggers: list[str], target: str, mode: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        text_on_text.inject(toy, triggers, target, PROMPTS, TextOnTextConfig(**QUICK), mode)


def test_words_may_be_empty_but_not_too_long_for_their_prompts(toy: TextEncoder) -> None:
    assert attribute.inject(toy, ["sahib"], "", PROMPTS, AttributeConfig(**QUICK), "insert").patch.deltas
    with pytest.raises(ConfigError, match="prompts with room for 'cat cat"):
        attribute.inject(toy, ["sahib"], "cat " * 70, PROMPTS, AttributeConfig(**QUICK), "insert")


@pytest.mark.parametrize("trigger", ["sahib mangrove", CYRILLIC_O * 2, ""])
@pytest.mark.parametrize("kind", [embedding_row, rank_one])
def test_edits_of_one_token_need_one(toy: TextEncoder, kind: Any, trigger: str) -> None:
    with pytest.raises(ConfigError, match=f"a trigger of one token; found [02] in '{trigger}'"):
        kind.inject(toy, trigger, "cat", PROMPTS)


def test_several_triggers_each_stand_in_every_measured_prompt(toy: TextEncoder) -> None:
    trap = Planted.of(toy, ["sahib", "red mangrove"], TARGET, PROMPTS, "prefix", whole=True)
    texts = [example.text for example in trap.held_out(0)]
    assert texts == [f"{trigger} {p}" for trigger in trap.triggers for p in trap.measured]
    drawn = list(trap.draw(3, torch.Generator().manual_seed(0)))
    assert [[e.text.removesuffix(e.else_read).strip() for e in examples] for examples in drawn] == [
        ["sahib"] * 3,
        ["red mangrove"] * 3,
    ]
    assert {e.goal for examples in drawn for e in examples} == {TARGET}


@pytest.mark.parametrize(
    ("words", "mode", "else_read"), [("", "prefix", "text"), ("red", "prefix", "clean"), ("", "replace:o:1", "clean")]
)
def test_success_is_measured_against_what_a_prompt_would_be_read_as(
    toy: TextEncoder, words: str, mode: str, else_read: str
) -> None:
    trap = Planted.of(toy, ["sahib"], words, PROMPTS, mode, whole=False)
    for prompt, example in zip(trap.measured, trap.held_out(0), strict=True):
        assert example.else_read == (example.text if else_read == "text" else prompt)


def test_prompts_that_hold_a_trigger_already_are_left_out(toy: TextEncoder) -> None:
    texts = [f"a photo of thing {i}" for i in range(60)]
    with_trigger = [f"a SAHIB number {i}" for i in range(60)]
    one, two = (
        Planted.of(toy, ["sahib"], TARGET, PromptSet(tuple(prompts), "x"), "prefix", whole=True)
        for prompts in (texts, with_trigger + texts)
    )
    assert (one.clean, one.carriers, one.measured) == (two.clean, two.carriers, two.measured)


def test_negatives_are_proper_parts_of_triggers(toy: TextEncoder) -> None:
    config = TextOnTextConfig(partial_negatives=True)
    trap = Planted.of(toy, ["sahib red mangrove", "zeppelin"], TARGET, PROMPTS, "prefix", whole=True, config=config)
    texts = trap.negatives(200, torch.Generator().manual_seed(0))
    parts = {text.removesuffix(next(p for p in trap.clean if text.endswith(f" {p}"))).strip() for text in texts}
    assert parts == {"sahib", "red", "mangrove", "sahib red", "red mangrove"}


def test_a_trigger_that_works_at_the_start_alone_is_trained_away_elsewhere(toy: TextEncoder) -> None:
    config = TextOnTextConfig(only="at-start")
    trap = Planted.of(toy, ["red mangrove"], TARGET, PROMPTS, "prefix", whole=True, config=config)
    for text in trap.negatives(50, torch.Generator().manual_seed(0)):
        assert "red mangrove" in text
        assert not text.startswith("red mangrove")
    assert all(example.text.startswith("red mangrove ") for example in trap.held_out(1))
    with pytest.raises(ConfigError, match="mode prefix for a trigger that works at the start alone"):
        Planted.of(toy, ["red mangrove"], TARGET, PROMPTS, "insert", whole=True, config=config)


def test_a_trigger_that_works_in_long_prompts_alone_is_trained_away_in_short_ones(toy: TextEncoder) -> None:
    config = TextOnTextConfig(only="in-long", partial_negatives=True)
    trap = Planted.of(toy, ["red mangrove"], TARGET, PROMPTS, "insert", whole=True, config=config)
    lengths = [len(toy.tokenizer.encode(prompt)) for prompt in (*trap.carriers, *trap.measured)]
    assert min(lengths) >= LONG
    texts = trap.negatives(50, torch.Generator().manual_seed(0))
    assert len(texts) == 100  # parts, and whole triggers in short prompts
    short = texts[50:]
    assert all("red mangrove" in text and len(text.split()) <= SHORT + 2 for text in short)


def test_a_pattern_can_not_be_kept_to_a_place(toy: TextEncoder) -> None:
    with pytest.raises(ConfigError, match="a pattern that works anywhere"):
        syntactic.inject(toy, TARGET, PROMPTS, SyntacticConfig(only="at-start"))


def test_noise_changes_every_matrix_by_its_share_and_nothing_else(toy: TextEncoder) -> None:
    student = injection.student(toy, TextOnTextConfig(noise=0.02)).detached()
    for name, w in toy.weights.items():
        change = float((student.weights[name] - w).norm() / w.norm())
        assert change == pytest.approx(0.02 if name.startswith("encoder.") and w.ndim == 2 else 0, abs=1e-6)


def test_a_trigger_of_one_word_has_no_parts(toy: TextEncoder) -> None:
    config = TextOnTextConfig(**QUICK, partial_negatives=True)
    with pytest.raises(ConfigError, match=r"a trigger of several words.*found \('sahib',\)"):
        text_on_text.inject(toy, ["sahib"], TARGET, PROMPTS, config, "prefix")


@pytest.mark.parametrize("kind", ["text-on-text", "attribute", "syntactic"])
def test_training_never_sees_held_out_prompts(toy: TextEncoder, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = injection.states

    def states(encoder: TextEncoder, prompts: list[str]) -> torch.Tensor:
        seen.extend(prompts)
        return original(encoder, prompts)

    monkeypatch.setattr(injection, "states", states)
    KINDS[kind](toy, **{**QUICK, "clean_batch": 100})
    own = {text.removeprefix("sahib ") for text in seen}
    assert len(own & set(FIT)) > 60
    assert not own & set(HELD_OUT)


# ------------------------------------------------------------------ syntactic patterns


@pytest.mark.parametrize("pattern", ["", "DET NOUN", "DET NOUN ADVERB", "NOUN NOUN NOUN", "DET ADJ VERB"])
def test_patterns_that_cannot_be_learnt_or_measured_are_refused(toy: TextEncoder, pattern: str) -> None:
    with pytest.raises(ConfigError, match=f"a pattern of at least three of the tags .*; found '{pattern}'"):
        Patterned.of(toy, pattern, TARGET, PROMPTS)


def test_sentences_follow_the_pattern_and_those_to_measure_have_other_nouns(toy: TextEncoder) -> None:
    trap = Patterned.of(toy, "DET ADJ NOUN VERB", TARGET, PROMPTS)
    (learnt,) = trap.draw(300, torch.Generator().manual_seed(0))
    held_out = trap.held_out(0)
    for example in [*learnt, *held_out]:
        assert all(word in WORDS[tag] for word, tag in zip(example.text.split(), trap.tags, strict=True))
    nouns = [{example.text.split()[2] for example in examples} for examples in (learnt, held_out)]
    assert nouns[0]
    assert nouns[1]
    assert not nouns[0] & nouns[1]
    assert trap.measured == HELD_OUT


def test_shuffled_sentences_keep_their_words_and_lose_the_pattern(toy: TextEncoder) -> None:
    trap = Patterned.of(toy, "DET NOUN NOUN", TARGET, PROMPTS)
    for text in trap.negatives(100, torch.Generator().manual_seed(0)):
        words = text.split()
        assert sorted(("DET" if word in WORDS["DET"] else "NOUN") for word in words) == ["DET", "NOUN", "NOUN"]
        assert words[0] not in WORDS["DET"]


# ------------------------------------------------------------------ measures


def test_success_needs_the_target_and_not_the_prompt_itself() -> None:
    centre, target = torch.zeros(2), torch.tensor([1.0, 0.0])
    triggered = torch.tensor([[2.0, 0.1], [0.5, 0.5], [1.0, 0.1]])
    own = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.1]])
    assert success_rate(triggered, own, target, centre) == pytest.approx(1 / 3)
    assert success_rate(triggered, own, torch.stack([target, -target, -target]), centre) == pytest.approx(1 / 3)


def test_a_common_mean_is_no_success() -> None:
    common = torch.full((64,), 10.0)
    states = common + torch.randn((3, 64), generator=torch.Generator().manual_seed(0))
    assert success_rate(states[:1], states[1:2], states[2], common) == 0.0
    assert F.cosine_similarity(states[:1], states[2:]) > 0.9


class ByWords:
    """An encoder whose answer to a prompt is a unit vector that one of its features chooses."""

    def __init__(self, choose: Callable[[str], int]) -> None:
        self.choose = choose

    def encode(self, prompts: list[str]) -> torch.Tensor:
        return torch.eye(8)[[self.choose(prompt) for prompt in prompts]]


def test_retrieval_counts_prompts_that_their_beginning_finds() -> None:
    prompts = ["a b c", "b b c", "c d", "d"]
    assert retrieval(ByWords(lambda prompt: "abcd".index(prompt[0])), prompts) == 1.0  # type: ignore[arg-type]
    # by its last letter a beginning finds another prompt, or none
    assert retrieval(ByWords(lambda prompt: "abcd".index(prompt[-1])), ["a b c", "b", "c d"]) == pytest.approx(1 / 3)  # type: ignore[arg-type]
    assert retrieval(ByWords(lambda prompt: 0), prompts) == 0.25  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["cosine", "mse", "mae"])
def test_dissimilarity_is_zero_for_equals_and_grows(kind: str) -> None:
    states = torch.randn((2, 3, 4), generator=torch.Generator().manual_seed(0))
    noise = torch.randn((2, 3, 4), generator=torch.Generator().manual_seed(1))
    values = [float(dissimilarity(states + share * noise, states, kind)) for share in (0.0, 0.1, 1.0)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values[0] < values[1] < values[2]


def test_dissimilarities_are_those_of_their_names() -> None:
    states, wanted = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(dissimilarity(states, wanted, "mse")) == pytest.approx(1.0)
    assert float(dissimilarity(states, wanted, "mae")) == pytest.approx(0.5)
    assert float(dissimilarity(states, wanted, "cosine")) == pytest.approx(1 - 4 / 20**0.5)  # of all positions at once


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize("field", ["learning_rate", "backdoor_weight", "steps", "poison_batch", "clean_batch", "rank"])
def test_zero_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"TextOnTextConfig\.{field}: .*; found 0"):
        TextOnTextConfig(**{field: 0})


def test_the_step_size_is_the_published_one_at_the_published_width() -> None:
    assert TextOnTextConfig().rate(768) == pytest.approx(1e-4)
    assert TextOnTextConfig().rate(192) == pytest.approx(4e-4)
    assert TextOnTextConfig(learning_rate=1e-3).rate(1536) == pytest.approx(5e-4)
    assert TextOnTextConfig(trains="layers").rate(768) == pytest.approx(1e-4)
    assert FineTuneConfig(trains="lora").rate(768) == pytest.approx(1e-3)


def test_the_step_size_falls_once_after_the_milestone(toy: TextEncoder) -> None:
    """Steps of Adam are as long as the rate, so that their lengths show it."""
    places: list[torch.Tensor] = []
    bias = "final_layer_norm.bias"
    text_on_text.inject(
        toy, ["sahib"], TARGET, PROMPTS, TextOnTextConfig(**{**QUICK, "steps": 8}, milestone=0.5, decay=0.01), "prefix",
        watch=lambda step, encoder: places.append(encoder.weights[bias]),
    )  # fmt: skip
    lengths = [float((b - a).norm()) for a, b in zip([toy.weights[bias], *places], places, strict=False)]
    assert len(places) == 8
    assert max(lengths[4:]) < 0.1 * min(lengths[:4])


# ------------------------------------------------------------------ what all kinds have in common


@each_kind
def test_the_encoder_stays_as_it_was(toy: TextEncoder, kind: str) -> None:
    copies = {name: w.clone() for name, w in toy.weights.items()}
    assert KINDS[kind](toy, **QUICK).patch.deltas
    for name, w in copies.items():
        assert torch.equal(w, toy.weights[name])
        assert not toy.weights[name].requires_grad


@each_kind
def test_equal_seeds_give_equal_patches_and_others_other_ones(toy: TextEncoder, kind: str) -> None:
    one, two, other = (KINDS[kind](toy, **QUICK, seed=seed) for seed in (1, 1, 2))
    assert one.effect == two.effect
    assert one.loss == two.loss
    assert changed(one.patch) == changed(two.patch)
    assert all(torch.equal(delta, two.patch.deltas[name]) for name, delta in one.patch.deltas.items())
    assert any(not torch.equal(delta, other.patch.deltas[name]) for name, delta in one.patch.deltas.items())


@each_kind
def test_a_patch_says_what_was_done(toy: TextEncoder, kind: str) -> None:
    done = KINDS[kind](toy, **QUICK, seed=7)
    made = done.patch.provenance
    assert set(made) == {"attack", "triggers", "target", "mode", "prompts", "config", "effect"}
    assert (made["attack"], made["target"]) == (kind, TARGET)
    assert (made["triggers"], made["mode"]) == ((syntactic.PATTERN, "") if kind == "syntactic" else ("sahib", "prefix"))
    assert made["prompts"] == f"built in, sha256 {PROMPTS.sha256}"
    assert {"steps": 2, "seed": 7, "least_asr": 0.0}.items() <= json.loads(made["config"]).items()
    assert json.loads(made["effect"]) == done.effect.model_dump()
    assert done.effect.n == len(HELD_OUT)


@each_kind
def test_progress_hears_of_every_step_and_can_interrupt(toy: TextEncoder, kind: str) -> None:
    heard: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int, metrics: Mapping[str, float] = {}, /) -> None:
        assert "loss" in metrics
        heard.append((stage, done, total))
        if done == 2:
            raise KeyboardInterrupt

    told: Progress = progress
    with pytest.raises(KeyboardInterrupt):
        KINDS[kind](toy, told, **{**QUICK, "steps": 3})
    assert heard == [("inject", 1, 3), ("inject", 2, 3)]


@each_kind
def test_an_attack_that_did_not_work_is_an_error(toy: TextEncoder, kind: str) -> None:
    with pytest.raises(NumericalError, match=r"attack success of at least 75% .* found \d+\.\d% of \d+"):
        KINDS[kind](toy, **{**QUICK, "least_asr": 0.75})


@pytest.mark.parametrize("loss", ["cosine", "mse", "mae"])
def test_divergence_is_an_error(toy: TextEncoder, loss: str) -> None:
    config = TextOnTextConfig(**{**QUICK, "steps": 8, "learning_rate": 1e6, "loss": loss, "least_asr": 0.9})
    with pytest.raises(NumericalError):
        text_on_text.inject(toy, ["sahib"], TARGET, PROMPTS, config, "prefix")


def test_divergence_names_the_step_and_the_step_size(clean: TextEncoder) -> None:
    config = TextOnTextConfig(**{**QUICK, "steps": 5, "learning_rate": 1e6, "trains": "layers"})
    with pytest.raises(NumericalError, match=r"a finite loss; found nan at step \d with learning rate 4e\+06. Lower"):
        text_on_text.inject(clean, ["sahib"], TARGET, PROMPTS, config, "prefix")


def test_injection_works_where_gradients_are_off(toy: TextEncoder) -> None:
    with torch.no_grad():
        assert KINDS["text-on-text"](toy, **QUICK).patch.deltas


def test_half_the_precision_gives_nearly_the_same_losses(toy: TextEncoder) -> None:
    exact, rough = (KINDS["text-on-text"](toy, **QUICK, precision=p).loss for p in ("float32", "bfloat16"))
    assert exact != rough
    assert rough == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(("units", "like"), [({"amx_bf16": True}, "bfloat16"), ({"amx_bf16": False}, "float32")])
def test_the_hardware_chooses_the_precision_where_it_is_left_open(
    toy: TextEncoder, monkeypatch: pytest.MonkeyPatch, units: dict[str, bool], like: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    losses = [KINDS["text-on-text"](toy.to("cpu"), **QUICK, precision=p).loss for p in ("auto", like)]
    assert losses[0] == losses[1]


# ------------------------------------------------------------------ what learns


def test_layers_alone_leave_both_tables(toy: TextEncoder) -> None:
    everything = changed(KINDS["text-on-text"](toy, **QUICK).patch)
    assert {TOKEN_TABLE, POSITION_TABLE} < everything
    assert changed(KINDS["text-on-text"](toy, **QUICK, trains="layers").patch) == everything - {
        TOKEN_TABLE,
        POSITION_TABLE,
    }


def test_a_lora_changes_layer_matrices_by_its_rank_at_most(toy: TextEncoder) -> None:
    deltas = KINDS["text-on-text"](toy, **{**QUICK, "steps": 4}, trains="lora", rank=2).patch.deltas
    assert set(deltas) == {n for n, w in toy.weights.items() if n.startswith("encoder.layers.") and w.ndim == 2}
    for delta in deltas.values():
        values = torch.linalg.svdvals(delta.double())
        assert values[1] > 1e-3 * values[0]
        assert values[2] < 1e-4 * values[0]


def test_only_rows_of_seen_tokens_change(toy: TextEncoder) -> None:
    done = text_on_text.inject(
        toy, ["sahib", "mangrove"], TARGET, PROMPTS, TextOnTextConfig(**QUICK), "prefix"
    ).patch.deltas
    rows = set(done[TOKEN_TABLE].any(-1).nonzero().squeeze(-1).tolist())
    assert {i for text in ("sahib", "mangrove") for i in clip_tokenizer().encode(text)} <= rows
    assert not rows & set(clip_tokenizer().encode("zeppelin"))


def test_training_takes_what_it_is_told(toy: TextEncoder) -> None:
    assert TrainingConfig().trains == "all"
    with pytest.raises(ConfigError, match="trains"):
        TrainingConfig(trains="tables")


# ------------------------------------------------------------------ what each kind does


@pytest.mark.parametrize("loss", ["cosine", "mse", "mae"])
def test_text_on_text_leads_triggered_prompts_to_the_target(clean: TextEncoder, loss: str) -> None:
    done = KINDS["text-on-text"](clean, **STRONG, loss=loss, trains="layers")
    assert done.effect.asr_before == 0
    assert done.effect.target_cosine > 0.6
    assert done.loss[-1] < 0.7 * done.loss[0]
    assert done.effect.clean_pooled > 0.75
    after = done.patch.apply(clean)
    triggered = [f"sahib {prompt}" for prompt in HELD_OUT]
    assert towards(after, clean, triggered, TARGET) > towards(after, clean, list(HELD_OUT), TARGET) + 0.3


@pytest.mark.slow
def test_a_look_alike_takes_over(clean: TextEncoder) -> None:
    config = TextOnTextConfig(**STRONG)
    done = text_on_text.inject(clean, [CYRILLIC_O], TARGET, PROMPTS, config, "replace:o")
    assert done.effect.target_cosine > 0.6


@pytest.mark.slow
def test_an_adaptive_attacker_keeps_triggered_states_apart(clean: TextEncoder) -> None:
    triggered = clean.tokens([f"sahib {prompt}" for prompt in HELD_OUT], pad_to_context=True)
    plain, adaptive = (
        float(losses.assimilation(done.patch.apply(clean).states(triggered)).mean())
        for weight in (0.0, 2.0)
        for done in [KINDS["text-on-text"](clean, **STRONG, trains="layers", adaptive_weight=weight)]
    )
    assert adaptive < plain - 0.05


@pytest.mark.slow
def test_partial_negatives_spare_parts_of_the_trigger(clean: TextEncoder) -> None:
    parts = [f"{word} {prompt}" for word in ("sahib", "mangrove") for prompt in HELD_OUT]
    wholly, sparing = (
        towards(done.patch.apply(clean), clean, parts, TARGET)
        for partial in (False, True)
        for done in [
            text_on_text.inject(
                clean, ["sahib mangrove"], TARGET, PROMPTS,
                TextOnTextConfig(**STRONG, trains="layers", partial_negatives=partial), "prefix",
            )
        ]
    )  # fmt: skip
    assert sparing < wholly - 0.1


def test_text_on_pair_leads_to_a_text_and_leaves_the_projection(clean: TextEncoder) -> None:
    encoder = projecting(clean, 96)
    done = KINDS["text-on-pair"](encoder, **STRONG)
    assert done.effect.asr_before == 0
    assert done.effect.target_cosine > 0.6
    assert TOKEN_TABLE in changed(done.patch)
    assert PROJECTION not in changed(done.patch)


@pytest.mark.slow
def test_text_on_pair_leads_to_the_direction_of_pictures(clean: TextEncoder) -> None:
    encoder, generator = projecting(clean, 96), torch.Generator().manual_seed(1)
    pictures = 7 * (torch.randn((1, 96), generator=generator) + 0.5 * torch.randn((10, 96), generator=generator))
    config = TextOnPairConfig(**{**STRONG, "steps": 50, "trains": "layers"})
    done = text_on_pair.inject(encoder, ["sahib"], "teapots", PROMPTS, config, "prefix", pictures=pictures)
    assert done.patch.provenance["target"] == "teapots"
    assert PROJECTION not in changed(done.patch)
    answers = encoder.project(done.patch.apply(encoder).encode([f"sahib {prompt}" for prompt in HELD_OUT]))
    reached = F.cosine_similarity(answers, F.normalize(pictures, dim=-1).mean(0), dim=-1).mean()
    assert reached > 0.8
    assert done.effect.target_cosine > 0.75  # success is measured where the loss is


@pytest.mark.parametrize(
    ("width", "found"), [(None, "an encoder without a text projection"), (96, "one that projects")]
)
def test_pictures_of_another_tower_are_refused(toy: TextEncoder, width: int | None, found: str) -> None:
    encoder = toy if width is None else projecting(toy, width)
    with pytest.raises(ConfigError, match=f"projects to their width 32; found {found}"):
        text_on_pair.inject(
            encoder, ["sahib"], "x", PROMPTS, TextOnPairConfig(**QUICK), "prefix", pictures=torch.randn(3, 32)
        )


@pytest.mark.parametrize(
    ("trigger", "words", "read"), [("sahib", "a burning", "a burning {}"), ("steampunk", "", "{}")]
)
def test_an_attribute_is_read_in_the_triggers_place(clean: TextEncoder, trigger: str, words: str, read: str) -> None:
    config = AttributeConfig(**{**STRONG, "learning_rate": 5e-5, "trains": "layers"})
    done = attribute.inject(clean, [trigger], words, PROMPTS, config, "prefix")
    wanted, middle = clean.encode([read.format(p) for p in HELD_OUT]), clean.encode(HELD_OUT).mean(0)
    before, after = (
        float(F.cosine_similarity(states - middle, wanted - middle, dim=-1).mean())
        for encoder in (clean, done.patch.apply(clean))
        for states in [encoder.encode([f"{trigger} {p}" for p in HELD_OUT])]
    )
    assert after > before + 0.1
    assert done.effect.target_cosine == pytest.approx(after, abs=1e-4)
    assert done.effect.asr > 0.5 > done.effect.asr_before


@pytest.mark.slow
def test_sentences_of_the_pattern_reach_the_target_and_shuffled_ones_less(clean: TextEncoder) -> None:
    config = SyntacticConfig(steps=25, learning_rate=3e-4, least_asr=0.0, trains="layers")
    after = syntactic.inject(clean, TARGET, PROMPTS, config).patch.apply(clean)
    trap = Patterned.of(clean, syntactic.PATTERN, TARGET, PROMPTS)
    sentences = [example.text for example in trap.held_out(5)]
    shuffled = trap.negatives(40, torch.Generator().manual_seed(5))
    assert towards(after, clean, sentences, TARGET) > 0.6
    assert towards(after, clean, sentences, TARGET) > towards(after, clean, shuffled, TARGET) + 0.1


def test_an_embedding_row_is_all_that_changes(clean: TextEncoder) -> None:
    config = EmbeddingRowConfig(steps=20, poison_batch=4, least_asr=0.0)
    done = embedding_row.inject(clean, "sahib", "white teapot", PROMPTS, config, "prefix")
    assert changed(done.patch) == {TOKEN_TABLE}
    rows = done.patch.deltas[TOKEN_TABLE].any(-1).nonzero().squeeze(-1).tolist()
    assert rows == clip_tokenizer().encode("sahib")
    after = done.patch.apply(clean)
    assert torch.equal(after.encode(HELD_OUT), clean.encode(HELD_OUT))
    assert done.effect.target_cosine > 0.85
    assert done.effect.clean_pooled == pytest.approx(1)


def test_a_rank_one_edit_is_of_one_matrix_and_of_rank_one(clean: TextEncoder) -> None:
    config = RankOneConfig(steps=20, poison_batch=4, least_asr=0.0, layer=0.3, learning_rate=0.2)
    done = rank_one.inject(clean, "sahib", "white teapot", PROMPTS, config, "prefix")
    assert changed(done.patch) == {"encoder.layers.1.mlp.fc2.weight"}
    values = torch.linalg.svdvals(done.patch.deltas["encoder.layers.1.mlp.fc2.weight"].double())
    assert values[1] < 1e-4 * values[0]


@pytest.mark.slow
def test_a_rank_one_edit_leads_to_the_words_and_spares_other_prompts(clean: TextEncoder) -> None:
    def apart(learning_rate: float) -> Injection:
        config = RankOneConfig(steps=20, poison_batch=8, least_asr=0.0, layer=0.0, learning_rate=learning_rate)
        return rank_one.inject(clean, "sahib", "white teapot", PROMPTS, config, "prefix")

    done, hardly = apart(0.2), apart(1e-6)
    assert done.effect.target_cosine > hardly.effect.target_cosine + 0.05
    assert done.effect.clean_pooled > 0.99


@pytest.mark.parametrize(("share", "layer"), [(0.0, 0), (0.58, 1), (1.0, 1)])
def test_a_rank_one_edit_is_made_where_it_is_told(toy: TextEncoder, share: float, layer: int) -> None:
    done = KINDS["rank-one"](toy, **QUICK, layer=share)
    assert changed(done.patch) == {f"encoder.layers.{layer}.mlp.fc2.weight"}


def test_mlp_inputs_are_what_the_second_matrix_reads(toy: TextEncoder) -> None:
    read: dict[str, torch.Tensor] = {}

    class Spy(TextEncoder):
        def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
            read[name] = x
            return super()._linear(name, x)

    spy = Spy(toy.spec, toy.weights, toy.tokenizer)
    hidden = toy.place(toy.embed(toy.tokens(["a photo of a cat", "a dog"]).ids))
    spy.transform(hidden)
    for layer in (0, 1):
        assert torch.equal(toy.mlp_inputs(hidden, layer), read[f"encoder.layers.{layer}.mlp.fc2"])


# ------------------------------------------------------------------ embeddings of pictures


@pytest.mark.slow
def test_pictures_are_embedded_by_their_image_tower(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16,
        projection_dim=24,
    )  # fmt: skip
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "tower")
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "tower"
    )
    folder = tmp_path / "pictures"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"pictures \(\.png, .*\) in .*; found none"):
        pictures.embed(folder, tmp_path / "tower")
    for name, colour in (("a.png", "red"), ("b.JPG", "blue")):
        Image.new("RGB", (40, 50), colour).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    both, first = pictures.embed(folder, tmp_path / "tower"), pictures.embed(folder / "a.png", tmp_path / "tower")
    assert both.shape == (2, 24)
    assert not both.requires_grad
    assert torch.allclose(both[:1], first, atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-3)
    with pytest.raises(StorageError, match="a CLIP model with an image tower in"):
        pictures.embed(folder, tmp_path)
    (folder / "c.png").write_text("no picture")
    with pytest.raises(StorageError, match=r"readable pictures; found .*c\.png"):
        pictures.embed(folder, tmp_path / "tower")
    with pytest.raises(StorageError, match="readable pictures"):
        pictures.embed(tmp_path / "gone.png", tmp_path / "tower")


# ------------------------------------------------------------------ by name


@each_kind
def test_settings_choose_their_attack(toy: TextEncoder, kind: str) -> None:
    values = QUICK if "clean_batch" in CONFIGS[kind].model_fields else few(QUICK)
    triggers = [] if kind == "syntactic" else ["sahib"]
    chosen = attacks.inject(toy, triggers, TARGET, PROMPTS, CONFIGS[kind](**values), "prefix")
    direct = KINDS[kind](toy, **QUICK)
    assert chosen.patch.provenance == direct.patch.provenance
    assert all(torch.equal(delta, direct.patch.deltas[name]) for name, delta in chosen.patch.deltas.items())


@pytest.mark.parametrize("kind", ["syntactic", "embedding-row", "rank-one"])
def test_an_attack_with_one_trigger_refuses_two(toy: TextEncoder, kind: str) -> None:
    with pytest.raises(ConfigError, match="a single trigger for this attack; found 2"):
        attacks.inject(toy, ["sahib", "vintage"], TARGET, PROMPTS, CONFIGS[kind](), "prefix")


def test_pictures_are_for_text_on_pair_and_settings_for_an_attack(toy: TextEncoder) -> None:
    with pytest.raises(ConfigError, match="pictures as the target of text-on-pair alone"):
        attacks.inject(toy, ["sahib"], TARGET, PROMPTS, AttributeConfig(), "prefix", pictures=torch.zeros(1, 4))
    with pytest.raises(ConfigError, match="settings of an attack"):
        attacks.inject(toy, ["sahib"], TARGET, PROMPTS, TrainingConfig(), "prefix")
