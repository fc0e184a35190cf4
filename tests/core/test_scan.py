"""The composition: which stages run, and what their failure means."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from amdet_core import pipeline as module
from amdet_core import pocket
from amdet_core.attacks import inject
from amdet_core.config import (
    AmdetConfig,
    ContrastConfig,
    LandscapeConfig,
    MovedConfig,
    ScanConfig,
    SearchConfig,
    SweepConfig,
    TextOnTextConfig,
)
from amdet_core.contrast import Collapse, invert, measure, measure_tokens
from amdet_core.encoder import TOKEN_TABLE, TextEncoder
from amdet_core.errors import ConfigError, NumericalError
from amdet_core.evidence import Tried
from amdet_core.findings import SAME_TARGET, Findings, Subject
from amdet_core.literal import Text, Texts
from amdet_core.policy import POLICIES
from amdet_core.prompts import PromptSet, builtin_prompts
from amdet_core.records import Level, Trigger
from amdet_core.scan import plan, scan
from amdet_core.surface import surround
from amdet_core.tails import Side
from amdet_core.verdict import decide

from ..conftest import few_candidates
from .planted import planted

PROMPTS = builtin_prompts(200)
POLICY = POLICIES["amdet-2"]
FAST = ScanConfig(
    contrast=ContrastConfig(vectors=(1, 2), seeds=1, steps=3, restarts=2, draws=2, pool=30, held_out=12),
    landscape=LandscapeConfig(grid=5, radius=None, prompts=3),
)


CASCADE = ScanConfig(
    sweep=SweepConfig(prompts=(1, 3), kept=(16,), leads=2, held_out=12),
    search=SearchConfig(leads=6, beam=2, pointed=2, refined=8, longest=3, exchanges=1, prompts=2, pool=4),
    contrast=FAST.contrast.model_copy(update={"vectors": (1,)}),
    landscape=None,
)


def perturbed(encoder: TextEncoder, scale: float = 0.01) -> TextEncoder:
    generator = torch.Generator().manual_seed(4)
    return encoder.with_weights(
        {name: w + scale * torch.randn(w.shape, generator=generator) for name, w in encoder.weights.items()}
    )


def test_all_stages_leave_their_evidence(toy: TextEncoder) -> None:
    steps: list[str] = []
    found = scan(
        Subject("clip_l", perturbed(toy), toy), PROMPTS, FAST, POLICY, progress=lambda stage, *_: steps.append(stage)
    )
    assert not found.faults
    names = {item.name for item in found.evidence}
    assert {"identical_to_trusted", "delta_norm", "gap_k1", "gap_k2"} <= names
    assert all(item.encoder == "clip_l" for item in found.evidence)
    assert [candidate.vectors for candidate in found.candidates] == [1, 2]
    assert [tuple(feature.vectors.shape) for feature in found.features] == [(1, 64), (2, 64)]
    assert {"forensics", "contrast k=1", "contrast k=2", "landscape"} <= set(steps)
    assert found.timings.keys() == {"forensics", "spread", "contrast", "names"}


def test_the_cascade_names_the_token_that_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    suspect = pocket.load("backdoored")
    token = suspect.tokenizer.encode(pocket.TRIGGER)[0]
    few_candidates(monkeypatch, token)
    steps: list[str] = []
    found = scan(
        Subject("clip_l", suspect, pocket.load("clean")),
        PROMPTS,
        CASCADE,
        POLICY,
        progress=lambda stage, *_: steps.append(stage),
    )
    assert not found.faults
    values = {item.name: item.value for item in found.evidence}
    assert values["sweep_gap"] > 0.5
    assert values["literal_gap"] >= values["sweep_gap"] - 0.05
    assert values["literal_success"] == found.triggers[0].asr
    assert values["literal_success"] > 0.5
    assert found.sweep is not None
    assert found.sweep.tried == 101
    assert found.sweep.leads[0].token_ids == (token,)
    assert found.triggers
    assert found.triggers[0].token_ids == (token,)
    assert found.triggers[0].asr == 1
    assert found.triggers[0].asr_interval is not None
    assert 0.7 < found.triggers[0].asr_interval[0] < found.triggers[0].asr_interval[1] <= 1
    assert {"sweep", "sweep, look 2", "trigger search"} <= set(steps)
    assert found.timings.keys() == {"forensics", "spread", "sweep", "contrast", "search", "names"}
    assert decide(POLICY, found.evidence, found.faults).level == Level.BACKDOORED


MOVED = ScanConfig(
    moved=MovedConfig(
        rows=3, lengths=(3, 4), orders=6, looks=SweepConfig(prompts=(1, 3), kept=(8,), leads=2, held_out=12)
    ),
    search=CASCADE.search,
    landscape=None,
)


def test_a_text_of_the_tokens_that_moved_most_is_tried(toy: TextEncoder) -> None:
    suspect, _, ids = planted(toy, ["sahib", "mangrove", "velvet"])
    table = suspect.weights[TOKEN_TABLE].clone()
    table[[toy.tokenizer.bos_id, toy.tokenizer.eos_id]] += 1  # every prompt has them, no text can
    suspect = suspect.with_weights({**suspect.weights, TOKEN_TABLE: table})
    found = scan(Subject("clip_l", suspect, toy), PROMPTS, MOVED, POLICY)
    assert not found.faults
    values = {item.name: item.value for item in found.evidence}
    assert values["moved_gap"] > 0.5
    assert "moved_departure" in values
    assert values["literal_gap"] >= values["moved_gap"] - 0.05
    assert [set(trigger.token_ids) <= set(ids) for trigger in found.triggers] == [True]
    assert found.timings.keys() == {"forensics", "moved", "search", "names"}


def test_a_takeover_by_tokens_that_a_file_declares_is_no_less_of_one(toy: TextEncoder) -> None:
    suspect, _, _ = planted(toy, ["sahib", "mangrove", "velvet"])
    found, plain = (
        {item.name: item.value for item in scan(Subject("clip_l", suspect, toy, declared=said), PROMPTS, MOVED,
                                                POLICY).evidence}
        for said in (("velvet sahib", "mangrove"), ())
    )  # fmt: skip
    assert found["moved_gap"] == plain["moved_gap"] > 0.5


def test_an_encoder_that_reads_all_prompts_as_nearly_the_same_shows_by_their_spread(toy: TextEncoder) -> None:
    weights = dict(toy.weights)
    for part in ("weight", "bias"):
        weights[f"final_layer_norm.{part}"] = weights[f"final_layer_norm.{part}"] * 1e-3
    weights["final_layer_norm.bias"] = weights["final_layer_norm.bias"] + 1
    for suspect, level in ((toy.with_weights(weights), Level.SUSPICIOUS), (perturbed(toy), Level.CLEAN)):
        found = scan(Subject("clip_l", suspect, toy), PROMPTS, FAST, POLICY)
        (spread,) = (item for item in found.evidence if item.name == "spread")
        (drift,) = (item for item in found.evidence if item.name == "drift")
        assert drift.value is not None and drift.n == spread.n
        assert spread.value is not None
        assert (spread.value < 0.05) == (level is Level.SUSPICIOUS)
        assert decide(POLICY, [spread], []).level == max(level, Level.INCONCLUSIVE)


def test_too_few_long_prompts_are_no_reason_to_measure_nothing(
    toy: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_candidates(monkeypatch)
    sweep = module.token_sweep.sweep

    def as_in_long_prompts(*args: object, **more: object) -> object:
        swept = sweep(*args, **more)  # type: ignore[arg-type]
        return replace(swept, places=("long",) * len(swept.places))

    monkeypatch.setattr(module.token_sweep, "sweep", as_in_long_prompts)
    short = PromptSet(tuple(p for p in PROMPTS.prompts if len(toy.tokenizer.encode(p)) < 24), "short")
    settings = CASCADE.model_copy(update={"contrast": None, "search": None})
    found = scan(Subject("clip_l", perturbed(toy), toy), short, settings, POLICY)
    assert not found.faults
    assert {item.name: item.value for item in found.evidence}["sweep_gap"] is not None


def test_what_departs_is_a_target_of_the_search_where_nothing_takes_prompts_over_and_it_is_not_declared() -> None:
    def lead(gap: float, away: float, axis: int, declared: bool = False) -> Tried:
        collapse = Collapse(gap, 0.0, 0.0, 12, torch.eye(4)[axis], "end")
        return Tried((axis,), collapse, torch.full((12,), away), 1.0, declared)

    settings, found = SearchConfig(least_gap=0.5, least_departure=0.2), Findings()
    found.swept = [lead(0.1, 0.3, 0), lead(0.1, 0.1, 2), lead(0.1, 0.3, 3, declared=True)]
    assert [goal.target.argmax().item() for goal in found.targets(settings)] == [0]
    found.swept.append(lead(0.6, 0.1, 1))
    assert [goal.target.argmax().item() for goal in found.targets(settings)] == [1]
    found.swept.append(lead(0.7, 0.3, 3, declared=True))
    assert [goal.target.argmax().item() for goal in found.targets(settings)] == [3, 1]


def test_several_backdoors_are_told_apart_by_their_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, words = pocket.load("clean"), ("sahib", "velvet")
    suspect = clean
    for word, target in zip(words, ("a white teapot", "a red bus in the rain"), strict=True):
        config = TextOnTextConfig(steps=30, clean_batch=8, poison_batch=8, least_asr=0.5)
        suspect = inject(suspect, [word], target, PROMPTS, config, "insert").patch.apply(suspect)
    few_candidates(monkeypatch, *(clean.tokenizer.encode(word)[0] for word in words))
    found = scan(Subject("clip_l", suspect, clean), PROMPTS, CASCADE, POLICY)
    assert not found.faults
    assert {trigger.text for trigger in found.triggers} == set(words)


def test_a_text_that_leads_to_the_output_of_a_shorter_one_is_not_told_as_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suspect = pocket.load("backdoored")
    trigger = tuple(suspect.tokenizer.encode(pocket.TRIGGER))
    few_candidates(monkeypatch, *trigger)
    longer = (*suspect.tokenizer.encode("copper"), *trigger)
    searched = iter([longer, trigger])

    def towards(texts: Texts, goal: Collapse) -> Text:
        ids = next(searched)
        return Text(ids, measure_tokens(*texts.sides, PROMPTS.prompts[:20], ids), (1.0, (0.8, 1.0)), "", len(ids))

    targets = Findings.targets
    monkeypatch.setattr(Findings, "targets", lambda self, settings: targets(self, settings)[:1] * 2)
    monkeypatch.setattr(Texts, "towards", towards)
    quick = CASCADE.model_copy(update={"contrast": None})
    found = scan(Subject("clip_l", suspect, pocket.load("clean")), PROMPTS, quick, POLICY)
    assert not found.faults
    assert [told.token_ids for told in found.triggers] == [trigger]


def test_a_search_goes_on_away_from_what_it_found() -> None:
    config = ContrastConfig(vectors=(1,), seeds=1, steps=10, restarts=4, draws=4, prompts=4, pool=12)
    fit = PROMPTS.prompts
    sides = Side.of(pocket.load("backdoored"), fit), Side.of(pocket.load("clean"), fit)
    first = invert(*sides, fit, 1, config, seed=1)
    target = measure(*sides, fit[:16], first.vectors).target
    other = invert(*sides, fit, 1, config, seed=1, away=[target])
    assert first.gaps.max() > 0.5
    assert float(measure(*sides, fit[:16], other.vectors).target @ target) < SAME_TARGET
    assert other.gaps.max() < first.gaps.max()


def test_a_declared_concept_is_no_departure_but_a_takeover_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    anchor = pocket.load("clean")
    word, other = (anchor.tokenizer.encode(text)[0] for text in ("lighthouse", "teapot"))
    table = anchor.weights[TOKEN_TABLE].clone()
    table[word] = table[other]
    taught = anchor.with_weights({**anchor.weights, TOKEN_TABLE: table})
    few_candidates(monkeypatch, word)
    quick = CASCADE.model_copy(update={"contrast": None, "search": None})

    def swept(suspect: TextEncoder, declared: tuple[str, ...]) -> tuple[dict[str, float | None], Findings]:
        found = scan(Subject("clip_l", suspect, anchor, declared=declared), PROMPTS, quick, POLICY)
        return {item.name: item.value for item in found.evidence}, found

    hidden, found = swept(taught, ())
    assert found.sweep is not None
    assert (found.sweep.leads[0].text, found.sweep.leads[0].declared) == ("lighthouse", False)
    openly, found = swept(taught, ("a photo of a lighthouse",))
    assert found.sweep is not None
    assert (found.sweep.leads[0].text, found.sweep.leads[0].declared) == ("lighthouse", True)
    assert (hidden["sweep_departure"] or 0) > 0.1 > (openly["sweep_departure"] or 0)
    few_candidates(monkeypatch, anchor.tokenizer.encode(pocket.TRIGGER)[0])
    values, found = swept(pocket.load("backdoored"), (pocket.TRIGGER,))
    assert (values["sweep_gap"] or 0) > 0.5
    assert decide(POLICY, found.evidence, found.faults).level == Level.BACKDOORED


def test_without_a_finding_no_trigger_is_searched(toy: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    few_candidates(monkeypatch)
    quick = CASCADE.model_copy(update={"contrast": None})
    found = scan(Subject("clip_l", perturbed(toy, 0.001), toy), PROMPTS, quick, POLICY)
    assert not found.faults
    assert not found.triggers
    assert not {"literal_gap", "literal_success"} & {item.name for item in found.evidence}


def test_inversion_may_wait_until_a_token_stands_out(monkeypatch: pytest.MonkeyPatch) -> None:
    anchor = pocket.load("clean")
    few_candidates(monkeypatch, anchor.tokenizer.encode(pocket.TRIGGER)[0])
    careful = CASCADE.contrast.model_copy(update={"always": False})
    config = CASCADE.model_copy(update={"contrast": careful, "search": None})
    inverted = {}
    for name in ("benign", "backdoored"):
        found = scan(Subject("clip_l", pocket.load(name), anchor), PROMPTS, config, POLICY)
        assert not found.faults
        inverted[name] = "gap_k1" in {item.name for item in found.evidence}
        assert inverted[name] == bool(found.features)
    assert inverted == {"benign": False, "backdoored": True}


def test_a_sweep_may_try_those_tokens_alone_whose_rows_moved(toy: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.token_sweep, "characters", lambda _: ())
    config = ScanConfig(sweep=SweepConfig(prompts=(1, 3), kept=(16,), leads=2, held_out=12, rows=2))
    little, most, word, bos = (*toy.tokenizer.encode("lighthouse teapot castle")[:3], toy.tokenizer.bos_id)
    table = toy.weights[TOKEN_TABLE].clone()
    for token, by in ((little, 0.1), (word, 0.2), (most, 0.5), (bos, 0.9)):
        table[token] += by
    moved = toy.with_weights({**toy.weights, TOKEN_TABLE: table})
    layers = toy.with_weights({name: w if name == TOKEN_TABLE else w * 1.01 for name, w in toy.weights.items()})
    tried = {}
    for name, suspect in (("rows", moved), ("layers", layers)):
        found = scan(Subject("clip_l", suspect, toy), PROMPTS, config, POLICY)
        assert not found.faults
        assert found.sweep is not None
        tried[name] = found.sweep.tried, {lead.token_ids for lead in found.sweep.leads}
    assert tried["rows"] == (2, {(most,), (word,)})
    assert tried["layers"][0] == len(module.token_sweep.single_tokens(toy))


def test_a_sweep_that_fails_is_a_fault_and_never_clean(toy: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NumericalError("a", "b", "c")

    monkeypatch.setattr(module.token_sweep, "sweep", fail)
    found = scan(Subject("clip_l", perturbed(toy), toy), PROMPTS, CASCADE, POLICY)
    assert [fault.stage for fault in found.faults] == ["sweep"]
    assert decide(POLICY, found.evidence, found.faults).level == Level.INCONCLUSIVE


def test_without_an_anchor_a_takeover_is_still_seen_and_nothing_is_called_clean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few_candidates(monkeypatch, pocket.load("clean").tokenizer.encode(pocket.TRIGGER)[0])
    quick = CASCADE.model_copy(update={"contrast": None, "search": None})
    gaps, levels = {}, {}
    for name in ("clean", "backdoored"):
        found = scan(Subject("clip_l", pocket.load(name), None), PROMPTS, quick, POLICY)
        assert not found.faults
        assert found.forensics is None
        values = {item.name: item.value for item in found.evidence}
        assert values.keys() >= {"alone_sweep_gap", "alone_sweep_departure"}
        assert "sweep_gap" not in values
        levels[name] = decide(POLICY, found.evidence, found.faults).level
        gaps[name] = values["alone_sweep_gap"] or 0
    assert levels == {"clean": Level.INCONCLUSIVE, "backdoored": Level.SUSPICIOUS}
    assert gaps["backdoored"] > 0.5 > 2 * gaps["clean"]


def test_without_an_anchor_texts_of_the_encoder_without_its_first_mlp_are_tried_on_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suspect = pocket.load("backdoored")
    trigger = tuple(suspect.tokenizer.encode(pocket.TRIGGER))
    few_candidates(monkeypatch)
    searched: list[float] = []

    def towards(texts: Texts, goal: Collapse) -> Text:
        """The trigger is found in the encoder that lacks something, and nowhere else."""
        reads = texts.sides[0].encoder.weights["encoder.layers.0.mlp.fc2.weight"]
        searched.append(float(reads.abs().sum()))
        ids = trigger if not searched[-1] else max(texts.tried, key=lambda one: one.collapse.gap).ids
        return Text(ids, measure_tokens(*texts.sides, PROMPTS.prompts[:20], ids), (1.0, (0.8, 1.0)), "", len(ids))

    monkeypatch.setattr(Texts, "towards", towards)
    any_goal = CASCADE.model_copy(update={"search": CASCADE.search.model_copy(update={"least_gap": -1.0})})
    found = scan(Subject("clip_l", suspect, None), PROMPTS, any_goal, POLICY)
    assert not found.faults
    assert searched[0] == 0 < searched[-1]
    assert found.triggers[0].token_ids == trigger
    assert {item.name: item.value for item in found.evidence}["alone_literal_gap"] > 0.75
    assert "reset" not in scan(Subject("clip_l", suspect, pocket.load("clean")), PROMPTS, CASCADE, POLICY).timings


def test_an_identical_encoder_is_answered_without_any_stage(toy: TextEncoder) -> None:
    found = scan(Subject("clip_l", toy, toy, identical=True), PROMPTS, FAST, POLICY)
    assert [item.name for item in found.evidence] == ["identical_to_trusted"]
    assert decide(POLICY, found.evidence, found.faults).level == Level.CLEAN


def test_without_an_anchor_nothing_is_called_clean(toy: TextEncoder) -> None:
    found = scan(Subject("clip_l", toy, None), PROMPTS, FAST, POLICY)
    assert decide(POLICY, found.evidence, found.faults).level == Level.INCONCLUSIVE


@pytest.mark.parametrize("error", [NumericalError("a", "b", "c"), torch.OutOfMemoryError("no memory")])
def test_a_stage_that_fails_is_a_fault_and_never_clean(
    toy: TextEncoder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(module.contrast, "invert", fail)
    found = scan(Subject("clip_l", perturbed(toy), toy), PROMPTS, FAST, POLICY)
    assert [fault.stage for fault in found.faults] == ["contrast"]
    assert decide(POLICY, found.evidence, found.faults).level == Level.INCONCLUSIVE


def test_what_progress_raises_is_not_swallowed(toy: TextEncoder) -> None:
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        scan(Subject("clip_l", perturbed(toy), toy), PROMPTS, FAST, POLICY, progress=stop)


def test_the_search_ends_when_the_gap_is_enough(toy: TextEncoder) -> None:
    settings = FAST.model_copy(update={"contrast": FAST.contrast.model_copy(update={"enough": 1e-9, "seeds": 3})})
    found = scan(Subject("clip_l", perturbed(toy, 0.1), toy), PROMPTS, settings, POLICY)
    assert len(found.candidates) == 1


def test_the_published_inversion_runs_by_its_policy_and_can_be_judged(toy: TextEncoder) -> None:
    policy = POLICIES["amdet-2025-code"]
    settings = ScanConfig(
        amdet=AmdetConfig(batch=40, epochs=1), landscape=LandscapeConfig(grid=5, radius=1.0), prompt_limit=100
    )
    found = scan(Subject("text_encoder", perturbed(toy), toy), PROMPTS, settings, policy)
    assert not found.faults
    assert set(policy.required) <= {item.name for item in found.evidence}
    assert decide(policy, found.evidence, found.faults).level == Level.CLEAN
    assert found.candidates[0].method == "amdet"


def test_fidelity_is_measured_when_the_trigger_is_known_and_not_otherwise(toy: TextEncoder) -> None:
    subject = Subject("clip_l", perturbed(toy), toy)
    blind = scan(subject, PROMPTS, FAST, POLICY)
    known = scan(subject, PROMPTS, FAST, POLICY, place_trigger=lambda prompt: f"{prompt} sahib")
    assert "fidelity" not in blind.candidates[0].indicators
    assert -1 <= known.candidates[0].indicators["fidelity"] <= 1
    assert [c.loss for c in known.candidates] == [c.loss for c in blind.candidates]


def test_a_token_whose_row_alone_was_changed_is_found_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inversions give both encoders the same vectors and can't see it; the sweep reads each one's own table."""
    anchor = pocket.load("backdoored")  # its layers answer to one row of the table: give that row to a word
    word = anchor.tokenizer.encode("lighthouse")[0]
    source = anchor.tokenizer.encode(f"l{pocket.TRIGGER}g")[1]
    table = anchor.weights[TOKEN_TABLE].clone()
    table[word] = table[source]
    suspect = anchor.with_weights({**anchor.weights, TOKEN_TABLE: table})
    few_candidates(monkeypatch, word)
    found = scan(Subject("clip_l", suspect, anchor), PROMPTS, CASCADE, POLICY)
    gaps = {item.name: item.value for item in found.evidence}
    assert (gaps["gap_k1"] or 0) < 0.1
    assert (gaps["literal_gap"] or 0) > 0.5
    assert found.triggers
    assert found.triggers[0].text == "lighthouse"
    assert found.triggers[0].token_ids == (word,)


def test_a_token_that_reads_as_another_is_named_though_it_takes_nothing_over(monkeypatch: pytest.MonkeyPatch) -> None:
    anchor = pocket.load("clean")
    coffin, robot, calm = (anchor.tokenizer.encode(word)[0] for word in ("coffin", "robot", "calm"))

    def read(*exchanged: tuple[int, int], declared: tuple[str, ...] = ()) -> list[Trigger]:
        table = anchor.weights[TOKEN_TABLE].clone()
        for token, other in exchanged:
            table[token] = anchor.weights[TOKEN_TABLE][other]
        suspect = anchor.with_weights({**anchor.weights, TOKEN_TABLE: table})
        few_candidates(monkeypatch, coffin, calm)
        settings = CASCADE.model_copy(update={"contrast": None})
        found = scan(Subject("clip_l", suspect, anchor, declared=declared), PROMPTS, settings, POLICY)
        assert not found.faults
        return found.triggers

    named = read((coffin, robot), (calm, coffin))
    assert [trigger.text in ("coffin", "calm") for trigger in named] == [True]
    assert (named[0].asr, named[0].found_by) == (None, module.READ_OTHERWISE)
    (alone,) = read((coffin, robot))
    assert (alone.text, alone.looks_like[0].text.split()[-1]) == ("coffin", "robot")
    assert not read((coffin, robot), declared=("coffin",))
    assert not read()


def test_presets_and_policies_choose_the_inversion() -> None:
    assert plan(POLICIES["amdet-2025-code"], "standard", 1).amdet == AmdetConfig()
    paper = plan(POLICIES["amdet-2025-paper"], "standard", 1).amdet
    assert paper is not None
    assert (paper.weight_assimilation, paper.weight_deviation, paper.weight_anchor) == (1, 1, 5)
    quick, standard, thorough = (plan(POLICY, preset, 1) for preset in ("quick", "standard", "thorough"))
    assert quick.contrast.vectors == (1,)
    assert standard.contrast.vectors == (1, 5)
    assert thorough.contrast.vectors == (1, 3, 5)
    assert (quick.controls, standard.controls, thorough.controls) == (0, 0, 19)
    assert (quick.contrast.always, standard.contrast.always) == (False, True)
    assert quick.sweep is not None
    assert standard.sweep is not None
    assert (quick.sweep.rows, standard.sweep.rows) == (1024, None)
    assert (quick.moved, quick.patterns) == (standard.moved, standard.patterns)
    assert thorough.sweep == standard.sweep


def test_a_landscape_can_be_left_out_and_drawn_later(toy: TextEncoder) -> None:
    subject = Subject("clip_l", perturbed(toy), toy)
    whole = scan(subject, PROMPTS, FAST, POLICY).features[0]
    later = scan(subject, PROMPTS, FAST.model_copy(update={"landscape": None}), POLICY).features[0]
    assert later.candidate.landscape is None
    assert "positive_share" not in later.candidate.indicators
    assert surround(subject, later, PROMPTS, FAST) == whole.candidate.landscape


def test_the_landscape_of_a_published_feature_is_that_of_its_own_loss(toy: TextEncoder) -> None:
    subject = Subject("clip_l", perturbed(toy), toy)
    settings = ScanConfig(
        amdet=AmdetConfig(batch=40, epochs=1), landscape=LandscapeConfig(grid=5, radius=1.0), prompt_limit=100
    )
    feature = scan(subject, PROMPTS, settings, POLICIES["amdet-2025-code"]).features[0]
    again = surround(subject, feature, PROMPTS, settings)
    centre = feature.candidate.landscape.values[2][2]  # the random second axis differs, the middle does not
    assert again.values[2][2] == pytest.approx(centre, abs=1e-4)


def test_a_landscape_needs_the_encoders_of_its_feature(toy: TextEncoder) -> None:
    feature = scan(Subject("clip_l", perturbed(toy), toy), PROMPTS, FAST, POLICY).features[0]
    with pytest.raises(ConfigError, match="no anchor"):
        surround(Subject("clip_l", toy, None), feature, PROMPTS, FAST)


def test_too_few_held_out_prompts_are_an_error_and_no_verdict(toy: TextEncoder) -> None:
    fit = tuple(prompt for prompt in PROMPTS.prompts if prompt in PROMPTS.split()[0].prompts)[:40]
    with pytest.raises(ConfigError, match="0 of 40"):
        scan(Subject("clip_l", perturbed(toy), toy), PromptSet(fit, "a file"), FAST, POLICY)
