"""Repairs: what triggers are put where, what is measured, and what each method changes and leaves alone."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from amdet_core import pocket, tails
from amdet_core.attacks import Placement
from amdet_core.attacks.effect import Example
from amdet_core.config import (
    CureConfig,
    DistilConfig,
    EraseConfig,
    FineTuneConfig,
    RestoreConfig,
    SpectralConfig,
    TrainingConfig,
)
from amdet_core.encoder import POSITION_TABLE, TOKEN_TABLE, TextEncoder
from amdet_core.errors import ConfigError
from amdet_core.progress import silent
from amdet_core.prompts import builtin_prompts
from amdet_core.repair import CONFIGS, Case, Probe, check_effect, erase, repair
from amdet_core.repair.condition import Response, cured
from amdet_core.repair.erase import _Edit
from amdet_core.repair.ladder import first_cure

PROMPTS = builtin_prompts(240)
FEW = list(PROMPTS.prompts[:5])
FC2 = "encoder.layers.0.mlp.fc2.weight"


def known(seed: int = 1) -> Probe:
    """The trigger of the shipped backdoor."""
    return Probe.of_text(pocket.TRIGGER, Placement.parse(pocket.MODE), seed)


@pytest.fixture(scope="module")
def clean() -> TextEncoder:
    return pocket.load("clean")


@pytest.fixture(scope="module")
def backdoored() -> TextEncoder:
    return pocket.load("backdoored")


@pytest.fixture(scope="module")
def case(backdoored: TextEncoder, clean: TextEncoder) -> Case:
    return Case.of(backdoored, clean, (known(),), PROMPTS)


def changed(encoder: TextEncoder, **tensors: torch.Tensor) -> TextEncoder:
    return encoder.with_weights({**encoder.weights, **tensors})


def noise(shape: torch.Size, size: float, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn * (size / drawn.norm())


# ------------------------------------------------------------------ probes


@pytest.mark.parametrize("place", ["start", "end"])
def test_vectors_stand_where_a_scan_put_them(toy: TextEncoder, place: tails.Place) -> None:
    vectors = torch.randn(3, toy.spec.width, generator=torch.Generator().manual_seed(0))
    inputs = Probe.of_vectors("v", vectors, place).inputs(toy, FEW)
    assert torch.allclose(inputs.pooled(toy), tails.outputs(toy, FEW, vectors, place), atol=1e-5)


def test_tokens_are_read_from_each_encoders_own_table(toy: TextEncoder, other: TextEncoder) -> None:
    ids = toy.tokenizer.encode("sahib river")
    for encoder in (toy, other):
        found = Probe.of_tokens("t", ids).inputs(encoder, FEW).pooled(encoder)
        expected = tails.outputs(encoder, FEW, encoder.embed(torch.tensor(ids)))
        assert torch.allclose(found, expected, atol=1e-5)


def test_a_text_is_marked_wherever_it_stands_and_reaches_all_behind_it(toy: TextEncoder) -> None:
    inputs = Probe.of_text("sahib", Placement.parse("replace:white"), 1).inputs(toy, ["a white cat"])
    assert inputs.trigger.int().tolist() == [[0, 0, 1, 0, 0]]  # BOS, a, sahib, cat, EOS
    assert inputs.reached.int().tolist() == [[0, 0, 1, 1, 1]]


def test_a_known_text_is_measured_on_prompts_that_can_hold_it_and_too_few_are_an_error(toy: TextEncoder) -> None:
    probe, long = Probe.of_text("sahib", Placement.parse("replace:q:1"), 1), f"{'cat ' * 90} quiet"
    assert probe.fitting(toy, [f"a quiet cat {i}" for i in range(9)] + ["a cat", long], 48) == [
        f"a quiet cat {i}" for i in range(9)
    ]
    with pytest.raises(ConfigError, match="at least 8 prompts that can hold 'sahib'; found 1 of 3"):
        probe.fitting(toy, ["a quiet cat", "a cat", long], 48)


def test_every_encoder_reads_a_trigger_at_the_same_place(toy: TextEncoder) -> None:
    probe = Probe.of_text("sahib", Placement.parse("insert"), 1)
    first, again = (probe.inputs(toy, FEW) for _ in range(2))
    one_by_one = [probe.inputs(toy, [prompt]).trigger.int().argmax().item() for prompt in reversed(FEW)]
    assert torch.equal(first.embeds, again.embeds)
    assert first.trigger.int().argmax(1).tolist() == one_by_one[::-1]
    assert len(set(one_by_one)) > 1


def test_a_long_prompt_loses_its_last_tokens_and_not_the_trigger(toy: TextEncoder) -> None:
    ids = toy.tokenizer.encode("sahib")
    inputs = Probe.of_tokens("t", ids).inputs(toy, ["cat " * 100], pad_to_context=True)
    assert inputs.trigger.nonzero().tolist() == [[0, toy.spec.positions - 2]]
    assert inputs.eos.tolist() == [toy.spec.positions - 1]


# ------------------------------------------------------------------ measuring


def test_the_suspect_is_as_ill_as_its_backdoor_and_the_anchor_is_well(case: Case, clean: TextEncoder) -> None:
    ill, well = case.measure(case.suspect), case.measure(clean)
    assert (ill.clean_cosine, well.anchor_cosine) == pytest.approx((1, 1), abs=1e-5)
    assert (ill.nearer_to_own, ill.asr) == (0.0, 1.0)
    assert well.own_cosine == pytest.approx(1, abs=1e-5)
    assert well.asr == 0.0
    assert ill.responses[0].gap > 0.5
    assert abs(well.responses[0].gap) < 1e-5
    assert well.cured(CureConfig())
    assert not ill.cured(CureConfig())


def test_known_goals_are_the_goals(backdoored: TextEncoder, clean: TextEncoder) -> None:
    put = Placement.parse(pocket.MODE).putting(pocket.TRIGGER, 3)
    given = [Example(put(prompt), put(prompt), pocket.TARGET) for prompt in FEW]
    case = Case.of(backdoored, clean, (Probe.of_examples("e", given),), PROMPTS)
    answered = backdoored.encode([one.text for one in given])
    goal = clean.encode([pocket.TARGET])
    expected = F.cosine_similarity(answered - case.centre, goal - case.centre, dim=-1).mean()
    assert case.measure(backdoored).responses[0].goal_cosine == pytest.approx(float(expected), abs=1e-5)


def test_without_an_anchor_ordinary_tokens_say_what_is_right(backdoored: TextEncoder) -> None:
    case = Case.of(backdoored, None, (known(),), PROMPTS)
    found = case.measure(backdoored)
    assert found.anchor_cosine is None
    assert found.nearer_to_own < 0.05


def test_less_is_within_reach_where_clean_answers_are_not_the_anchors(clean: TextEncoder) -> None:
    table = clean.weights[TOKEN_TABLE]
    tuned = changed(clean, **{TOKEN_TABLE: table + noise(table.shape, 0.5 * float(table.norm()))})
    same, other = (Case.of(one, clean, (known(),), PROMPTS).responses(one)[0] for one in (clean, tuned))
    assert same.reach == pytest.approx(1)
    assert other.reach < 0.98
    for share, right in ((0.951, True), (0.949, False)):
        update = {"nearer_to_own": 1.0, "own_cosine": share * other.reach}
        assert cured([other.model_copy(update=update)], CureConfig()) is right


def test_without_an_anchor_an_encoder_without_a_backdoor_reaches_what_is_asked(clean: TextEncoder) -> None:
    """A word that means nothing much is about as near to the average of ordinary words as a single one of them."""
    probe = Probe.of_tokens("of the", clean.tokenizer.encode("of the"), "end")
    (response,) = Case.of(clean, None, (probe,), PROMPTS).responses(clean)
    assert 0.5 < response.reach < 1
    assert response.own_cosine >= 0.9 * response.reach


# ------------------------------------------------------------------ methods


def test_spectral_takes_the_planted_direction_and_leaves_the_fine_tune(toy: TextEncoder) -> None:
    width, inner = toy.weights[FC2].shape
    planted = noise(torch.Size((width, 1)), 1.0) @ noise(torch.Size((1, inner)), 1.0, seed=1) * 20
    honest = noise(toy.weights[FC2].shape, 0.5, seed=2)
    suspect = changed(toy, **{FC2: toy.weights[FC2] + honest + planted})
    case = Case.of(suspect, toy, (Probe.of_tokens("t", toy.tokenizer.encode("sahib")),), PROMPTS.first(60))
    after = repair(case, SpectralConfig(directions=(1,))).patch.apply(suspect)
    assert float((after.weights[FC2] - toy.weights[FC2] - honest).norm()) < 0.2
    assert float((after.weights[FC2] - toy.weights[FC2]).norm()) > 0.4


def test_spectral_resets_a_row_that_moved_and_nothing_else(toy: TextEncoder) -> None:
    token = toy.tokenizer.encode("sahib")[0]
    table = toy.weights[TOKEN_TABLE].clone()
    table[token] += 1
    suspect = changed(toy, **{TOKEN_TABLE: table})
    probe = Probe.of_tokens("t", [token])
    made = repair(Case.of(suspect, toy, (probe,), PROMPTS.first(60)), SpectralConfig())
    assert list(made.patch.deltas) == [TOKEN_TABLE]
    assert torch.allclose(made.patch.apply(suspect).weights[TOKEN_TABLE], toy.weights[TOKEN_TABLE], atol=1e-6)
    assert made.outcome.works


def test_restore_touches_the_blamed_block_alone(toy: TextEncoder) -> None:
    name = "encoder.layers.1.mlp.fc2.weight"
    width, inner = toy.weights[name].shape
    planted = noise(torch.Size((width, 1)), 1.0) @ noise(torch.Size((1, inner)), 1.0, seed=1) * 20
    suspect = changed(
        toy,
        **{
            name: toy.weights[name] + planted,
            FC2: toy.weights[FC2] + noise(toy.weights[FC2].shape, 1e-3),
            POSITION_TABLE: toy.weights[POSITION_TABLE] + 1e-5,
        },
    )
    case = Case.of(suspect, toy, (Probe.of_tokens("t", toy.tokenizer.encode("sahib")),), PROMPTS.first(60))
    made = repair(case, RestoreConfig(), CureConfig(clean=-1))
    assert list(made.patch.deltas) == [name]
    assert made.outcome.cured


def test_spectral_cures_the_shipped_backdoor_and_keeps_clean_answers(case: Case) -> None:
    made = repair(case, SpectralConfig())
    held_out = Case.of(case.suspect, case.anchor, (known(seed=9),), PROMPTS)
    found = held_out.measure(made.patch.apply(case.suspect))
    assert found.nearer_to_own >= 0.95
    assert found.own_cosine >= 0.9
    assert found.clean_cosine >= 0.98
    assert made.outcome.works


def test_erase_ends_the_shipped_backdoor_without_an_anchor(backdoored: TextEncoder, clean: TextEncoder) -> None:
    alone = Case.of(backdoored, None, (known(),), PROMPTS)
    made = repair(alone, EraseConfig(prompts=12, clean_prompts=128, clean_weights=(32.0,)))
    found = Case.of(backdoored, clean, (known(seed=9),), PROMPTS).measure(made.patch.apply(backdoored))
    assert found.asr <= 0.05
    assert found.clean_cosine >= 0.98
    assert made.outcome.works
    assert {name.rpartition(".layers.")[2][2:] for name in made.patch.deltas} == {
        "self_attn.out_proj.weight",
        "mlp.fc2.weight",
    }


@pytest.mark.parametrize(("border", "taken"), [(0.0, 4.0), (33.0, 48.0), (256.0, 256.0), (300.0, 256.0)])
def test_erase_takes_the_strongest_edit_that_keeps_clean_answers(
    toy: TextEncoder, monkeypatch: pytest.MonkeyPatch, border: float, taken: float
) -> None:
    made: list[float] = []

    def weighed(_: _Edit, weight: float) -> TextEncoder:
        made.append(weight)
        return changed(toy, **{"final_layer_norm.bias": torch.full_like(toy.weights["final_layer_norm.bias"], weight)})

    def factor(encoder: TextEncoder) -> float:
        return float(encoder.weights["final_layer_norm.bias"][0])

    monkeypatch.setattr(_Edit, "made", weighed)
    monkeypatch.setattr(Case, "clean_cosine", lambda _, encoder: 0.99 if factor(encoder) >= border else 0.9)
    case = Case.of(toy, None, (Probe.of_tokens("t", toy.tokenizer.encode("sahib"), "end"),), PROMPTS.first(60))
    assert factor(erase.repair(case, EraseConfig(prompts=2, clean_prompts=4), CureConfig())) == taken
    assert len(made) <= 4


def test_an_erased_matrix_answers_triggered_inputs_as_ordinary_ones(toy: TextEncoder) -> None:
    """With next to no weight on clean inputs the closed form solves ``W k = W_old k'`` for few enough keys."""
    case = Case.of(toy, None, (Probe.of_tokens("t", toy.tokenizer.encode("sahib"), "end"),), PROMPTS.first(60))
    edit = _Edit.of(case, EraseConfig(prompts=2, clean_prompts=4, ridge=1e-9))
    after = edit.edited(toy, 0, "mlp.fc2", TextEncoder.mlp_inputs, 1e-9)
    first = edit.triggered.trigger  # few enough keys of their own, apart from those behind
    keys = toy.mlp_inputs(toy.place(edit.triggered.embeds), 0)[first]
    ordinary = toy.mlp_inputs(toy.place(edit.right), 0)[first]
    assert torch.allclose(keys @ after.weights[FC2].T, ordinary @ toy.weights[FC2].T, atol=1e-4)
    assert not torch.allclose(keys @ toy.weights[FC2].T, ordinary @ toy.weights[FC2].T, atol=1e-2)


def test_an_erased_matrix_answers_triggered_inputs_as_the_anchors(toy: TextEncoder) -> None:
    bias = FC2.replace("weight", "bias")
    anchor = changed(toy, **{name: toy.weights[name] + noise(toy.weights[name].shape, 1.0) for name in (FC2, bias)})
    case = Case.of(toy, anchor, (Probe.of_tokens("t", toy.tokenizer.encode("sahib"), "end"),), PROMPTS.first(60))
    edit = _Edit.of(case, EraseConfig(prompts=2, clean_prompts=4, ridge=1e-9))
    after = edit.edited(toy, 0, "mlp.fc2", TextEncoder.mlp_inputs, 1e-9)
    keys = toy.mlp_inputs(toy.place(edit.triggered.embeds), 0)[edit.triggered.trigger]
    said = keys @ after.weights[FC2].T + after.weights[bias]
    assert torch.allclose(said, keys @ anchor.weights[FC2].T + anchor.weights[bias], atol=1e-4)
    assert torch.equal(after.weights[bias], toy.weights[bias])


def test_erase_with_an_anchor_gives_triggered_prompts_their_meaning_back(
    backdoored: TextEncoder, clean: TextEncoder
) -> None:
    made = repair(Case.of(backdoored, clean, (known(),), PROMPTS), EraseConfig(prompts=24, clean_prompts=128))
    found = Case.of(backdoored, clean, (known(seed=9),), PROMPTS).measure(made.patch.apply(backdoored))
    assert found.nearer_to_own >= 0.95
    assert found.own_cosine >= 0.85
    assert found.clean_cosine >= 0.98


def test_distil_leads_triggered_prompts_back(case: Case) -> None:
    config = DistilConfig(
        start="suspect", steps=6, cycles=1, clean_batch=4, clean_weight=1.0, triggered_batch=8, learning_rate=2e-4
    )
    made = repair(case, config)
    assert made.outcome.after.own_cosine > made.outcome.before.own_cosine + 0.05


def test_distil_from_the_anchor_learns_what_the_suspect_says_to_clean_prompts(
    backdoored: TextEncoder, clean: TextEncoder
) -> None:
    torch.manual_seed(0)
    moved = {name: w + w.std() * torch.randn_like(w) for name, w in clean.weights.items() if "mlp.fc2.w" in name}
    case = Case.of(backdoored, clean.with_weights({**clean.weights, **moved}), (known(),), PROMPTS)
    at_first = DistilConfig(steps=1, cycles=1, clean_batch=16, triggered_batch=8, learning_rate=1e-12)
    outcome = repair(case, at_first).outcome
    assert case.anchor is not None
    assert outcome.after.own_cosine > 0.999
    assert outcome.after.clean_cosine == pytest.approx(case.clean_cosine(case.anchor), abs=1e-4)
    learnt = repair(case, at_first.model_copy(update={"steps": 20, "learning_rate": 1e-4})).outcome
    assert 1 - learnt.after.clean_cosine < 0.7 * (1 - outcome.after.clean_cosine)
    assert learnt.after.own_cosine > outcome.before.own_cosine + 0.3


@pytest.mark.parametrize(("asked", "gone_through"), [(-1.0, 1), (1.01, 3)])
def test_distil_goes_on_until_it_works(case: Case, asked: float, gone_through: int) -> None:
    steps = list[tuple[int, int]]()
    config = DistilConfig(steps=2, cycles=3, clean_batch=4, triggered_batch=4, learning_rate=1e-12)
    bounds = CureConfig().model_copy(update={"clean": asked})
    repair(case, config, bounds, lambda stage, done, total, *_: steps.append((done, total)))
    assert steps == [(done, 6) for done in range(1, 2 * gone_through + 1)]


def test_distil_of_low_rank_keeps_its_rank_over_cycles(case: Case) -> None:
    config = DistilConfig(start="suspect", trains="lora", rank=1, steps=1, cycles=3, clean_batch=4, triggered_batch=4)
    delta = repair(case, config, CureConfig().model_copy(update={"clean": 1.01})).patch.deltas[FC2]
    assert torch.linalg.matrix_rank(delta, rtol=1e-3) == 1


@pytest.mark.parametrize("method", ["spectral", "restore", "distil"])
def test_methods_with_an_anchor_ask_for_it(backdoored: TextEncoder, method: str) -> None:
    with pytest.raises(ConfigError, match="an anchor for"):
        repair(Case.of(backdoored, None, (known(),), PROMPTS), CONFIGS[method]())


@pytest.mark.parametrize("method", ["erase", "distil"])
def test_methods_that_learn_from_triggers_ask_for_one(backdoored: TextEncoder, clean: TextEncoder, method: str) -> None:
    with pytest.raises(ConfigError, match="a trigger to"):
        repair(Case.of(backdoored, clean, (), PROMPTS), CONFIGS[method]())


def test_a_known_trigger_that_does_nothing_is_refused(backdoored: TextEncoder, clean: TextEncoder) -> None:
    idle = Probe.of_text("sahib", Placement.parse("insert"), 1)
    with pytest.raises(ConfigError, match=r"a trigger that does something.*'sahib'"):
        check_effect(Case.of(backdoored, clean, (idle,), PROMPTS))
    check_effect(Case.of(backdoored, clean, (idle, known()), PROMPTS))


def test_settings_of_something_else_are_refused(case: Case) -> None:
    with pytest.raises(ConfigError, match="settings of a repair"):
        repair(case, TrainingConfig())


def test_a_fine_tune_that_cures_nothing_is_said_not_to_work(case: Case) -> None:
    made = repair(case, FineTuneConfig(steps=1, batch=4))
    assert not made.outcome.works
    assert made.patch.provenance["repair"] == "fine-tune"
    assert json.loads(made.patch.provenance["effect"])["cured"] is False


def test_nobodys_weights_are_changed(case: Case) -> None:
    before = {name: w.clone() for name, w in case.suspect.weights.items()}
    repair(case, SpectralConfig(directions=(0, 1)))
    assert all(torch.equal(w, before[name]) for name, w in case.suspect.weights.items())


class Choices:
    """A case whose encoders are two numbers: cosine to their own answer of triggered prompts, and of clean ones."""

    def responses(self, encoder: tuple[float, float]) -> tuple[Response, ...]:
        own, _ = encoder
        return (Response(trigger="x", gap=0, asr=0, nearer_to_own=1, own_cosine=own, goal_cosine=0, reach=1, n=8),)

    def clean_cosine(self, encoder: tuple[float, float]) -> float:
        return encoder[1]


@pytest.mark.parametrize(
    ("candidates", "taken"),
    [
        pytest.param([(0.5, 1.0), (0.96, 0.999), (0.985, 0.99), (0.99, 0.99)], 2, id="an ample cure that costs little"),
        pytest.param([(0.5, 1.0), (0.96, 0.999), (0.985, 0.97), (0.99, 0.99)], 1, id="no ample one that costs much"),
        pytest.param([(0.96, 0.999), (0.97, 0.99), (0.94, 0.99)], 0, id="the first where none is ample"),
        pytest.param([(0.5, 1.0), (0.94, 0.99), (0.93, 0.99)], 1, id="the nearest where none cures"),
        pytest.param([(0.5, 1.0), (0.99, 0.9)], 1, id="the only cure, whatever it costs"),
    ],
)
def test_a_cure_is_ample_where_that_costs_little(candidates: list[tuple[float, float]], taken: int) -> None:
    chosen = first_cure(Choices(), iter(candidates), CureConfig(), len(candidates), silent)  # type: ignore[arg-type, misc]
    assert chosen == candidates[taken]
