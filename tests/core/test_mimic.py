"""MIMIC on text encoders: where a student starts, what it learns from, and what stays as it is."""

from __future__ import annotations

import pytest
import torch

from amdet_core.config import MimicConfig
from amdet_core.encoder import TextEncoder
from amdet_core.errors import ConfigError
from amdet_core.prompts import PromptSet, builtin_prompts
from amdet_core.repair import Case, mimic, repair

PROMPTS = builtin_prompts(80)
TINY = {"steps": 30, "batch": 8, "critic_epochs": 3, "critic_samples": 32, "critic_width": 16, "learning_rate": 2e-4}
FEW = list(PROMPTS.prompts[:3])


def blind(suspect: TextEncoder, prompts: PromptSet = PROMPTS) -> Case:
    """A suspect of which nothing is known: no anchor, no trigger."""
    return Case.of(suspect, None, (), prompts)


def changed(one: TextEncoder, other: TextEncoder) -> set[str]:
    return {name for name, w in one.weights.items() if not torch.equal(w, other.weights[name])}


def test_outputs_of_layers_are_those_of_shorter_encoders(toy: TextEncoder) -> None:
    hidden = toy.place(toy.embed(toy.tokens(FEW).ids))
    first, second, states = toy.blocks(hidden)
    norm = toy._norm("final_layer_norm", first)
    assert torch.allclose(norm, toy.first_layers(1).transform(hidden), atol=1e-6)
    assert torch.allclose(toy._norm("final_layer_norm", second), states)
    assert torch.allclose(states, toy.transform(hidden), atol=1e-6)


def test_places_behind_the_end_count_for_nothing(toy: TextEncoder) -> None:
    short = "a cat"
    alone, padded = mimic.Read.of(toy, [short]), mimic.Read.of(toy, [short, "a cat " * 8])
    assert torch.allclose(alone.means[:, 0], padded.means[:, 0], atol=1e-5)
    assert alone.inside.all()
    assert padded.inside.sum(1).tolist() == [4, 18]


def test_a_student_starts_as_the_settings_say(toy: TextEncoder) -> None:
    assert not changed(toy, mimic.fresh(toy, MimicConfig(fresh=0)))
    late = changed(toy, mimic.fresh(toy, MimicConfig(fresh=0.5)))
    assert {name for name in late if "layers.0." in name} == set()
    assert {"encoder.layers.1.mlp.fc2.weight", "final_layer_norm.weight"} <= late
    whole = changed(toy, mimic.fresh(toy, MimicConfig()))
    assert whole == {name for name in toy.weights if not name.startswith("embeddings.")}
    published = changed(toy, mimic.fresh(toy, MimicConfig(fresh_tables=True)))
    assert published == set(toy.weights)


def test_it_needs_neither_anchor_nor_trigger_and_comes_nearer_to_the_suspect(toy: TextEncoder) -> None:
    case, config = blind(toy), MimicConfig(**TINY)
    made = repair(case, config)
    start = case.measure(mimic.fresh(toy, config))
    assert made.outcome.method == "mimic"
    assert made.outcome.after.clean_cosine > start.clean_cosine + 0.1
    assert not any(name.startswith("embeddings.") for name in made.patch.deltas)


def test_nobodys_weights_are_changed(toy: TextEncoder) -> None:
    before = {name: w.clone() for name, w in toy.weights.items()}
    repair(blind(toy), MimicConfig(**{**TINY, "steps": 2}))
    assert all(torch.equal(w, before[name]) for name, w in toy.weights.items())


def test_the_measured_encoder_is_the_one_that_the_settings_name(
    toy: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    weights = mimic.measured_weights
    monkeypatch.setattr(
        mimic, "measured_weights", lambda encoder, *rest: asked.append(encoder) or weights(encoder, *rest)
    )
    for measured in ("teacher", "student"):
        repair(blind(toy), MimicConfig(**{**TINY, "steps": 1}, measured=measured))
    assert not changed(toy, asked[0])
    assert changed(toy, asked[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"trains": "lora"}, "layers or all"), ({"fresh_tables": True}, "with fresh tables")],
)
def test_settings_that_make_no_sense_are_refused(toy: TextEncoder, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        repair(blind(toy), MimicConfig(**settings))  # type: ignore[arg-type]


def test_too_few_prompts_are_refused(toy: TextEncoder) -> None:
    with pytest.raises(ConfigError, match="clean prompts"):
        repair(blind(toy, PromptSet(PROMPTS.prompts[:6], "six")), MimicConfig(**TINY))
