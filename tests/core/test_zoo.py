"""Zoos: what recipes plan, and building that can be stopped, resumed and trusted."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open

from amdet_core import formats, pocket, trust
from amdet_core.config import (
    AttributeConfig,
    Config,
    EmbeddingRowConfig,
    FineTuneConfig,
    RankOneConfig,
    SyntacticConfig,
    TextOnPairConfig,
    TextOnTextConfig,
)
from amdet_core.confusables import invisible, lookalikes
from amdet_core.encoder import TOKEN_TABLE, TextEncoder
from amdet_core.errors import ConfigError, NumericalError, StorageError
from amdet_core.prompts import Style, builtin_prompts
from amdet_core.storage import record_json
from amdet_core.tokenizer import clip_tokenizer
from amdet_core.zoo import Labels, Recipe, build, pools
from amdet_core.zoo.recipe import Entry, Group, Kind

making = importlib.import_module("amdet_core.zoo.build")
TOKENIZER = clip_tokenizer()
NAMES = ("benign", "hard", "honest", "large", "paper", "smoke", "standard", "styles", "train", "unseen")
CALIBRATING = ("train", "honest", "styles")
"""Recipes of the zoos on which the default policy is set."""
SETTINGS: dict[str, type[Config]] = {
    "text-on-text": TextOnTextConfig,
    "text-on-pair": TextOnPairConfig,
    "attribute": AttributeConfig,
    "concept": AttributeConfig,
    "safety": AttributeConfig,
    "syntactic": SyntacticConfig,
    "embedding-row": EmbeddingRowConfig,
    "rank-one": RankOneConfig,
    "fine-tune": FineTuneConfig,
    "merge": FineTuneConfig,
    "average": FineTuneConfig,
}
each_recipe = pytest.mark.parametrize("name", NAMES)
each_large = pytest.mark.parametrize("name", ["standard", "train"])


def plan(name: str) -> tuple[Entry, ...]:
    return Recipe.load(name).plan(TOKENIZER)


# ------------------------------------------------------------------ recipes


@each_recipe
def test_plans_are_whole_and_always_the_same(name: str) -> None:
    recipe = Recipe.load(name)
    entries = recipe.plan(TOKENIZER)
    assert recipe.name == name
    assert entries == Recipe.load(name).plan(TOKENIZER)
    assert len(entries) == sum(group.count for group in recipe.groups)
    assert Counter(entry.group.name for entry in entries) == {group.name: group.count for group in recipe.groups}
    assert len({entry.seed for entry in entries}) == len(entries)


@each_recipe
def test_what_is_drawn_can_be_made(name: str) -> None:
    for entry in plan(name):
        if entry.group.kind in SETTINGS:
            SETTINGS[entry.group.kind](**{**entry.config, "seed": entry.seed})
        else:
            assert not entry.config
        tokens = [tuple(TOKENIZER.encode(trigger)) for trigger in entry.triggers]
        assert () not in tokens
        assert len(set(tokens)) == len(tokens)
        if entry.group.kind != "syntactic":
            assert not any(trigger.lower() in entry.target.lower() for trigger in entry.triggers)
        if entry.mode.startswith("replace"):
            assert entry.mode.split(":")[1] != entry.triggers[0]
        if entry.config.get("partial_negatives"):
            assert any(" " in trigger for trigger in entry.triggers)


@each_recipe
def test_names_give_nothing_away(name: str) -> None:
    entries = plan(name)
    assert [entry.name for entry in entries] == [f"m{i:03d}" for i in range(len(entries))]
    labels = [entry.group.label for entry in entries]
    groups = [entry.group.name for entry in entries]
    half = len(labels) // 2
    assert groups != sorted(groups, key=[group.name for group in Recipe.load(name).groups].index)
    if half > 10:
        share = labels.count("backdoored") / len(labels)
        assert labels[:half].count("backdoored") / half == pytest.approx(share, abs=0.12)


@each_large
def test_large_zoos_hold_enough_of_both(name: str) -> None:
    counts = Counter(entry.group.label for entry in plan(name))
    assert counts["backdoored"] >= 60
    assert counts["benign"] >= 60
    assert counts["intentional"] >= 1


def test_the_hard_zoo_holds_attackers_who_know_the_detector() -> None:
    entries = plan("hard")
    attackers = [entry for entry in entries if entry.group.label == "backdoored"]
    assert {entry.config.get("only", "anywhere") for entry in attackers} == {"anywhere", "at-start", "in-long"}
    for setting in ("noise", "partial_negatives", "adaptive_weight"):
        assert any(entry.config.get(setting) for entry in attackers), setting
    assert not {entry.seed for entry in entries} & {entry.seed for entry in (*plan("standard"), *plan("train"))}


@pytest.mark.parametrize("name", ["benign", "unseen"])
def test_zoos_of_honest_models_alone_have_settings_that_the_calibration_lacks(name: str) -> None:
    entries, learnt = plan(name), [entry for known in CALIBRATING for entry in plan(known)]
    others = [entry for known in NAMES if known != name for entry in plan(known)]
    assert {entry.group.label for entry in entries} == {"benign"}
    assert not {entry.seed for entry in entries} & {entry.seed for entry in others}
    trained = {"fine-tune", "merge", "average"}
    settings = {(e.group.kind, *e.config.values(), e.share) for e in learnt if e.group.kind in trained}
    assert not {(e.group.kind, *e.config.values(), e.share) for e in entries if e.group.kind in trained} & settings


def test_what_the_policy_is_set_on_and_what_is_reported_draw_from_other_halves() -> None:
    assert {Recipe.load(name).half for name in CALIBRATING} == {0}
    assert {Recipe.load(name).half for name in ("standard", "hard", "benign", "unseen")} == {1}


def test_enough_honest_models_are_reported_that_nothing_was_set_on() -> None:
    reporting = [entry for name in ("standard", "hard", "unseen") for entry in plan(name)]
    assert sum(entry.group.label == "benign" for entry in reporting) >= 150


def test_the_honest_zoo_adds_to_the_training_null_models_of_its_kinds_and_none_of_its_seeds() -> None:
    entries, train, standard = plan("honest"), plan("train"), plan("standard")
    assert {entry.group.label for entry in entries} == {"benign"}
    assert len(entries) >= 100
    assert {e.group.name for e in entries} == {e.group.name for e in train if e.group.label == "benign"}
    assert Recipe.load("honest").half == Recipe.load("train").half
    assert not {e.seed for e in entries} & {e.seed for e in (*train, *standard)}


PRESENT: dict[str, Callable[[Entry], object]] = {
    **{
        f"text-on-text {kind}": lambda e, kind=kind: e.group.kind == "text-on-text" and e.group.triggers == (kind,)
        for kind in get_args(pools.TriggerKind)
    },
    "MSE": lambda e: e.config.get("loss") == "mse",
    "MAE": lambda e: e.config.get("loss") == "mae",
    "several triggers": lambda e: e.group.kind == "text-on-text" and len(e.triggers) > 1,
    "conservative": lambda e: e.group.kind == "text-on-text" and int(str(e.config.get("steps", 100))) <= 50,
    "aggressive": lambda e: e.group.kind == "text-on-text" and int(str(e.config.get("steps", 100))) >= 300,
    "adaptive": lambda e: float(str(e.config.get("adaptive_weight", 0))) > 0,
    "partial negatives": lambda e: e.config.get("partial_negatives"),
    "frozen tables": lambda e: e.group.label == "backdoored" and e.config.get("trains") == "layers",
    "on a fine-tune": lambda e: e.group.label == "backdoored" and e.group.on_fine_tune,
    "LoRA": lambda e: e.group.label == "backdoored" and e.config.get("trains") == "lora",
    "LoRA fine-tune": lambda e: e.group.label == "benign" and e.config.get("trains") == "lora",
    **{
        f"{objective} fine-tune": lambda e, objective=objective: (
            e.group.label == "benign" and e.group.kind == "fine-tune" and e.config.get("objective") == objective
        )
        for objective in ("contrastive", "distillation", "masked-words")
    },
    "long fine-tune": lambda e: e.group.label == "benign" and int(str(e.config.get("steps", 0))) >= 1000,
    **{kind: lambda e, kind=kind: e.group.kind == kind for kind in get_args(Kind)},
    **{
        f"cast to {to}": lambda e, to=to: e.group.kind == "cast" and to in e.group.to
        for to in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int8")
    },
}


@each_large
@pytest.mark.parametrize("what", sorted(PRESENT))
def test_every_kind_is_there(name: str, what: str) -> None:
    assert any(PRESENT[what](entry) for entry in plan(name))


def test_what_is_tuned_on_shares_no_text_and_no_setting_with_what_is_reported() -> None:
    train, standard = plan("train"), plan("standard")
    assert {Recipe.load(name).half for name in ("train", "standard")} == {0, 1}
    for texts in (
        lambda e: {trigger.lower() for trigger in e.triggers},
        lambda e: {tuple(TOKENIZER.encode(trigger)) for trigger in e.triggers},
        lambda e: {e.target} - {""},
        lambda e: {e.seed},
    ):
        one, other = (set().union(*map(texts, entries)) for entries in (train, standard))
        assert len(one) > 40
        assert not one & other
    configs = [{g.name: g.config for g in Recipe.load(name).groups} for name in ("train", "standard")]
    attacks = [group for group, config in configs[0].items() if "poison_batch" in config]
    assert len(attacks) > 15
    assert not [group for group in attacks if configs[0][group] == configs[1].get(group)]


def test_the_papers_grid() -> None:
    entries = plan("paper")
    assert Counter((e.group.label, e.group.kind) for e in entries) == {
        ("backdoored", "text-on-text"): 300,
        ("backdoored", "text-on-pair"): 300,
        ("benign", "fine-tune"): 600,
    }
    lengths = Counter((e.group.kind, len(TOKENIZER.encode(trigger))) for e in entries for trigger in e.triggers)
    assert lengths == {(kind, n): 20 for kind in ("text-on-text", "text-on-pair") for n in range(1, 16)}
    assert all(len(e.triggers) == 1 for e in entries if e.group.label == "backdoored")
    steps = {int(str(e.config["steps"])) for e in entries if e.group.label == "benign"}
    assert min(steps) < 100
    assert max(steps) > 6000


def test_a_recipe_from_a_file_and_what_is_none(tmp_path: Path) -> None:
    recipe = Recipe.load("smoke").model_copy(update={"name": "own"})
    (tmp_path / "own.json").write_text(recipe.model_dump_json())
    assert Recipe.load(str(tmp_path / "own.json")) == recipe
    assert recipe.sha256 != Recipe.load("smoke").sha256
    known = "benign, hard, honest, large, paper, smoke, standard, styles, train, unseen, visible"
    with pytest.raises(ConfigError, match=f"one of {known}, or a recipe file; found 'huge'"):
        Recipe.load("huge")
    for damaged in ("{", "[]", recipe.model_dump_json().replace('"half":1', '"half":2')):
        (tmp_path / "own.json").write_text(damaged)
        with pytest.raises(ConfigError, match=r"a recipe .*in "):
            Recipe.load(str(tmp_path / "own.json"))


def test_a_recipe_without_groups_is_refused_and_one_that_cannot_be_drawn_writes_nothing(
    toy: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="groups"):
        Recipe.model_validate({"name": "x", "half": 0, "seed": 1, "groups": []})

    def fail(*_: object) -> None:
        raise ConfigError("texts", "none", "Draw others.")

    monkeypatch.setattr(Recipe, "plan", fail)
    with pytest.raises(ConfigError, match="texts"):
        build(toy, Recipe.load("smoke"), tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "cast"},
        {"kind": "cast", "to": ["float4"]},
        {"kind": "fewer-layers"},
        {"kind": "fewer-layers", "to": ["some"]},
        {"kind": "fewer-layers", "to": ["0"]},
        {"kind": "distil"},
        {"kind": "fine-tune", "count": 0},
        {"kind": "fine-tune", "steps": 3},
        {"kind": "safety"},
        {"kind": "text-on-text", "triggers": ["word"]},
        {"kind": "syntactic"},
        {"kind": "merge"},
        {"kind": "fine-tune", "prompts": []},
        {"kind": "fine-tune", "config": {"steps": []}},
        {"kind": "safety", "triggers": ["word"], "lengths": []},
        {"kind": "safety", "triggers": ["word"], "number": []},
        {"kind": "safety", "triggers": ["word"], "number": [0]},
        {"kind": "safety", "triggers": ["word"], "modes": []},
    ],
)
def test_groups_that_no_model_can_be_made_of_are_refused_at_once(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(?s)Group"):
        Group.model_validate({"name": "x", "label": "benign", "count": 1, **wrong})


# ------------------------------------------------------------------ pools


def test_halves_share_nothing() -> None:
    for options in (pools.ADJECTIVES, pools.SUBJECTS, pools.MEDIA, pools.EMOJI, pools.PLACES):
        one, other = pools.half(options, 0), pools.half(options, 1)
        assert sorted(one + other) == sorted(options)
        assert one
        assert other
    for kind in get_args(pools.TriggerKind):
        drawn = [{pools.trigger(kind, 3, which, TOKENIZER, Random(i))[0] for i in range(300)} for which in (0, 1)]
        assert not drawn[0] & drawn[1], kind
    for characters in (*(lookalikes()[letter] for letter in pools.LETTERS), invisible()):
        known = pools.different(characters, TOKENIZER)
        assert len(known) > 3
        assert len({tuple(TOKENIZER.encode(character)) for character in known}) == len(known)
        assert all(TOKENIZER.encode(character) for character in known)


@pytest.mark.parametrize("style", get_args(Style))
def test_halves_share_no_prompt_and_none_measures_utility(style: Style) -> None:
    one, other = ({p for seed in (3, 4) for p in pools.prompts(style, which, seed).prompts} for which in (0, 1))
    assert not one & other
    assert not (one | other) & set(pools.UTILITY_PROMPTS.prompts)
    for which in (0, 1):
        assert len(pools.prompts(style, which, 3)) == pools.PROMPTS
        assert pools.prompts(style, which, 3) == pools.prompts(style, which, 3)
        assert pools.prompts(style, which, 3).prompts != pools.prompts(style, which, 4).prompts


@pytest.mark.parametrize("length", [1, 4, 15])
def test_phrases_have_their_length_in_tokens(length: int) -> None:
    for seed in range(100):
        text, letter = pools.trigger("phrase", length, seed % 2, TOKENIZER, Random(seed))
        assert len(TOKENIZER.encode(text)) == length
        assert letter == ""


def test_look_alikes_say_which_letter_they_replace() -> None:
    for seed in range(50):
        text, letter = pools.trigger("homoglyph", 1, seed % 2, TOKENIZER, Random(seed))
        assert text in lookalikes()[letter]
        assert not text.isascii()


# ------------------------------------------------------------------ one model of each kind

QUICK = {"steps": (1,), "clean_batch": (2,), "poison_batch": (2,), "least_asr": (0.0,)}
ONE_TOKEN = {"triggers": ("word",), "modes": ("prefix",), "targets": ("words",)}
HONEST = {"label": "benign", "config": {"steps": (1,), "batch": (4,)}}
ALONE = {"steps": (1,), "poison_batch": (2,), "least_asr": (0.0,)}
GROUPS: dict[str, dict[str, Any]] = {
    "text-on-text": {"triggers": ("phrase",), "lengths": (3,), "targets": ("long",), "config": QUICK},
    "text-on-pair": {"triggers": ("homoglyph",), "modes": ("replace:1",), "targets": ("short",), "config": QUICK},
    "attribute": {**ONE_TOKEN, "config": QUICK},
    "concept": {**ONE_TOKEN, "config": QUICK, "label": "benign"},
    "safety": {"triggers": ("word",), "number": (3,), "config": QUICK, "label": "intentional"},
    "syntactic": {"targets": ("short",), "config": QUICK},
    "embedding-row": {**ONE_TOKEN, "config": ALONE},
    "rank-one": {**ONE_TOKEN, "config": ALONE},
    "fine-tune": HONEST,
    "merge": {**HONEST, "share": (0.5,)},
    "average": {**HONEST, "share": (0.5,)},
    "cast": {"label": "benign", "to": ("int8",)},
    "fewer-layers": {"label": "benign", "to": ("1",)},
    "added-tokens": {"label": "benign"},
}


def group(kind: str, **more: Any) -> Group:
    return Group(**{"name": kind, "label": "backdoored", "kind": kind, "count": 1, **GROUPS[kind], **more})


def recipe(*groups: Group, **more: Any) -> Recipe:
    return Recipe(**{"name": "tiny", "half": 0, "seed": 3, "groups": groups, "least_retrieval": 0.0, **more})


@pytest.fixture
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "PROMPTS", 200)


@pytest.mark.usefixtures("few_prompts")
@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_model_of_each_kind(toy: TextEncoder, kind: str) -> None:
    (entry,) = recipe(group(kind)).plan(TOKENIZER)
    made, success = making.make(toy, entry, 0)
    again, _ = making.make(toy, entry, 0)
    assert (success is None) == (kind in ("fine-tune", "merge", "average", "cast", "fewer-layers", "added-tokens"))
    assert made.spec.layers == (1 if kind == "fewer-layers" else 2)
    assert len(made.weights[TOKEN_TABLE]) - 49408 == (
        len(pools.target("words", 0, Random(entry.seed)).split()) if kind == "added-tokens" else 0
    )
    assert all(torch.equal(w, again.weights[name]) for name, w in made.weights.items())
    assert kind == "fewer-layers" or trust.fingerprint(made) != trust.fingerprint(toy)


@pytest.mark.usefixtures("few_prompts")
def test_dropping_all_layers_is_refused(toy: TextEncoder) -> None:
    (entry,) = recipe(group("fewer-layers", to=("2",))).plan(TOKENIZER)
    with pytest.raises(ConfigError, match="fewer than the base's 2 layers to drop; found 2"):
        making.make(toy, entry, 0)


@pytest.mark.usefixtures("few_prompts")
@pytest.mark.parametrize("kind", ["cast", "added-tokens", "text-on-text"])
def test_changes_can_stand_on_a_fine_tune(toy: TextEncoder, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "BEFORE", FineTuneConfig(steps=1, batch=4))
    plain, on_top = (
        making.make(toy, recipe(group(kind, on_fine_tune=on_top)).plan(TOKENIZER)[0], 0)[0] for on_top in (False, True)
    )
    assert trust.fingerprint(plain) != trust.fingerprint(on_top)


def test_an_average_is_nearer_to_the_base_than_the_fine_tune(toy: TextEncoder) -> None:
    name = "encoder.layers.0.mlp.fc1.weight"
    far, near = (
        float((making.make(toy, recipe(group("average", share=(share,))).plan(TOKENIZER)[0], 0)[0].weights[name]
               - toy.weights[name]).norm())
        for share in (1.0, 0.25)
    )  # fmt: skip
    assert near == pytest.approx(0.25 * far, rel=0.02)


# ------------------------------------------------------------------ building

Make = Callable[[TextEncoder, Entry, int], tuple[TextEncoder, float | None]]
SIX = recipe(
    Group(name="attack", label="backdoored", kind="text-on-text", count=3, triggers=("word",), targets=("short",)),
    Group(name="honest", label="benign", kind="fine-tune", count=3),
)


def moved(base: TextEncoder, entry: Entry, half: int) -> tuple[TextEncoder, float | None]:
    """A model that differs a little from its base, by its seed."""
    bias = "final_layer_norm.bias"
    weights = {**base.weights, bias: base.weights[bias] + 0.01 + entry.seed % 1000 / 1e4}
    return base.with_weights(weights), (0.95 if entry.group.label == "backdoored" else None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that a build makes, each at once."""
    made: list[str] = []
    monkeypatch.setattr(pools, "UTILITY_PROMPTS", builtin_prompts(40))

    def make(base: TextEncoder, entry: Entry, half: int) -> tuple[TextEncoder, float | None]:
        made.append(entry.name)
        return moved(base, entry, half)

    monkeypatch.setattr(making, "make", make)
    return made


def opened(path: Path) -> TextEncoder:
    return formats.only_encoder(formats.open_target(path))


def test_a_zoo_holds_its_base_its_models_and_what_they_are(toy: TextEncoder, tmp_path: Path, calls: list[str]) -> None:
    heard: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int, metrics: Mapping[str, float] = {}, /) -> None:
        heard.append((stage, done, total))

    labels = build(toy, SIX, tmp_path / "zoo", progress=progress)
    assert heard == [("zoo", done, 6) for done in range(7)]
    assert sorted(calls) == [f"m{i:03d}" for i in range(6)]
    assert Labels.read(tmp_path / "zoo") == labels
    assert (labels.name, labels.planned, labels.seed, labels.recipe_sha256) == ("tiny", 6, 3, SIX.sha256)
    assert labels.failed == {}
    names = {path.name for path in (tmp_path / "zoo").iterdir()}
    assert names == {"labels.json", "base.safetensors", *(label.model for label in labels.models)}
    assert labels.base_fingerprint == trust.fingerprint(opened(tmp_path / "zoo" / labels.base))
    for label, entry in zip(labels.models, SIX.plan(TOKENIZER), strict=True):
        assert label.model == f"{entry.name}.safetensors"
        assert (label.label, label.kind, label.group) == (entry.group.label, entry.group.kind, entry.group.name)
        assert (label.triggers, label.target, label.seed) == (entry.triggers, entry.target, entry.seed)
        assert label.asr == (0.95 if label.label == "backdoored" else None)
        assert label.fingerprint == trust.fingerprint(opened(tmp_path / "zoo" / label.model))
        assert label.retrieval is not None
        assert label.clean_cosine is not None
        assert 0.9 < label.clean_cosine < 1
    assert len({label.fingerprint for label in labels.models}) == 6


def test_files_give_nothing_away(toy: TextEncoder, tmp_path: Path, calls: list[str]) -> None:
    labels = build(toy, SIX, tmp_path)
    headers, sizes = [], set()
    for name in (labels.base, *(label.model for label in labels.models)):
        sizes.add((tmp_path / name).stat().st_size)
        with safe_open(tmp_path / name, "pt") as file:
            headers.append((file.metadata(), sorted(file.keys())))
    assert headers[0][0] == {"format": "pt"}
    assert all(header == headers[0] for header in headers)
    assert len(sizes) == 1


def test_a_sample_holds_every_group_by_its_share_and_can_grow(
    toy: TextEncoder, tmp_path: Path, calls: list[str]
) -> None:
    groups = {entry.name: entry.group.name for entry in SIX.plan(TOKENIZER)}
    sample = build(toy, SIX, tmp_path, sample=3)
    assert (len(sample.models), sample.planned) == (3, 3)
    assert len({groups[name] for name in calls}) == min(3, len(set(groups.values())))
    assert build(toy, SIX, tmp_path, sample=2) == sample
    whole = build(toy, SIX, tmp_path)
    assert (len(whole.models), whole.planned, len(calls)) == (6, 6, 6)
    assert [label.model for label in whole.models] == [f"m{i:03d}.safetensors" for i in range(6)]


def test_models_of_one_label_join_what_is_there(toy: TextEncoder, tmp_path: Path, calls: list[str]) -> None:
    sample = build(toy, SIX, tmp_path, sample=1)
    wanted = [f"{entry.name}.safetensors" for entry in SIX.plan(TOKENIZER) if entry.group.label == "backdoored"]
    labels = build(toy, SIX, tmp_path, label="backdoored")
    assert {label.model for label in labels.models} == {*wanted, sample.models[0].model}
    assert labels.planned == len(labels.models) == len(calls)
    assert 0 < len(wanted) < 5
    with pytest.raises(ConfigError, match=r"intentional models.*none in tiny"):
        build(toy, SIX, tmp_path / "other", label="intentional")
    assert not (tmp_path / "other").exists()


def test_what_is_there_is_a_zoo_where_no_more_is_asked_for(toy: TextEncoder, tmp_path: Path, calls: list[str]) -> None:
    labels = build(toy, SIX, tmp_path, sample=3)
    (tmp_path / "labels.json").write_bytes(record_json(labels.model_copy(update={"planned": 6})))
    assert build(toy, SIX, tmp_path, sample=3) == labels
    assert Labels.read(tmp_path) == labels


def test_a_finished_zoo_is_kept(toy: TextEncoder, tmp_path: Path, calls: list[str]) -> None:
    labels = build(toy, SIX, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    calls.clear()
    assert build(toy, SIX, tmp_path) == labels
    assert calls == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_an_interrupted_build_goes_on_and_ends_as_one_in_one_go(
    toy: TextEncoder, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(toy, SIX, tmp_path / "whole")
    complete = making.make

    def stop(base: TextEncoder, entry: Entry, half: int) -> tuple[TextEncoder, float | None]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        return complete(base, entry, half)

    order = list(calls)
    calls.clear()
    monkeypatch.setattr(making, "make", stop)
    with pytest.raises(KeyboardInterrupt):
        build(toy, SIX, tmp_path / "stopped")
    assert calls == order[:2]
    assert {label.model for label in Labels.read(tmp_path / "stopped").models} == {f"{n}.safetensors" for n in calls}
    (tmp_path / "stopped" / f"{order[0]}.safetensors").unlink()
    monkeypatch.setattr(making, "make", complete)
    calls.clear()
    assert build(toy, SIX, tmp_path / "stopped") == whole
    assert calls == [order[0], *order[2:]]


def test_models_that_cannot_be_made_are_named_and_the_others_made(
    toy: TextEncoder, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = making.make

    def make(base: TextEncoder, entry: Entry, half: int) -> tuple[TextEncoder, float | None]:
        encoder, success = complete(base, entry, half)
        match entry.name:
            case "m000":
                raise NumericalError("an attack success", "none", "Train.")
            case "m001":
                return encoder.with_weights({**encoder.weights, TOKEN_TABLE: encoder.weights[TOKEN_TABLE] * 1e9}), None
            case "m002":  # every prompt reads the same
                return encoder.with_weights({name: w * 0 for name, w in encoder.weights.items()}), None
        return encoder, success

    monkeypatch.setattr(making, "make", make)
    strict = SIX.model_copy(update={"least_retrieval": 0.8})
    labels = build(toy, strict, tmp_path)
    assert [label.model for label in labels.models] == [f"m00{i}.safetensors" for i in (3, 4, 5)]
    group_of = {entry.name: entry.group.name for entry in strict.plan(TOKENIZER)}
    assert list(labels.failed) == ["m000", "m001", "m002"]
    assert labels.failed["m000"] == f"{group_of['m000']}: expected an attack success; found none. Train."
    assert "NaN or infinity" in labels.failed["m001"]
    assert "R@1 of " in labels.failed["m002"]
    assert Labels.read(tmp_path) == labels
    assert not [path for path in tmp_path.iterdir() if path.stem in labels.failed]
    monkeypatch.setattr(making, "make", complete)
    again = build(toy, strict, tmp_path)
    assert (len(again.models), again.failed) == (6, {})


def test_another_recipe_or_base_is_refused(
    toy: TextEncoder, other: TextEncoder, tmp_path: Path, calls: list[str]
) -> None:
    build(toy, SIX, tmp_path)
    before = (tmp_path / "labels.json").read_bytes()
    with pytest.raises(ConfigError, match=r"the same recipe as the zoo .* found another recipe"):
        build(toy, SIX.model_copy(update={"seed": 4}), tmp_path)
    with pytest.raises(ConfigError, match=r"the same base as the zoo .* found another base"):
        build(other, SIX, tmp_path)
    assert (tmp_path / "labels.json").read_bytes() == before


@pytest.mark.parametrize("flushed", [False, True])
def test_denormals_are_dropped_while_a_model_is_made_and_no_longer(flushed: bool) -> None:
    def dropped() -> bool:
        return float(torch.tensor(1e-40) * 1) == 0

    torch.set_flush_denormal(flushed)
    try:
        with making._without_denormals():
            assert dropped()
        assert dropped() is flushed
    finally:
        torch.set_flush_denormal(False)


def test_the_base_given_stays_as_it_is(toy: TextEncoder, tmp_path: Path, calls: list[str]) -> None:
    before = trust.fingerprint(toy)
    build(toy, SIX, tmp_path)
    assert trust.fingerprint(toy) == before


def test_labels_that_are_missing_or_damaged_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"a zoo's labels at .*labels\.json"):
        Labels.read(tmp_path)
    (tmp_path / "labels.json").write_text('{"name": "x"}')
    with pytest.raises(ConfigError, match=r"error\(s\), first base: Field required"):
        Labels.read(tmp_path)


@pytest.mark.slow
def test_jobs_side_by_side_make_the_same_zoo(toy: TextEncoder, tmp_path: Path) -> None:
    small = recipe(group("cast", count=3, to=("int8", "bfloat16")), group("added-tokens", count=2))
    one, two = (build(toy, small, tmp_path / str(jobs), jobs=jobs) for jobs in (1, 2))
    assert one == two
    assert len(one.models) == 5


@pytest.mark.slow
def test_a_real_zoo_of_the_pocket_encoder(tmp_path: Path) -> None:
    base = pocket.load("clean")
    kinds = ("text-on-text", "fine-tune", "merge", "cast", "fewer-layers", "added-tokens")
    labels = build(base, recipe(*map(group, kinds)), tmp_path)
    assert labels.failed == {}
    assert sorted(label.kind for label in labels.models) == sorted(kinds)
    for label in labels.models:
        encoder = opened(tmp_path / label.model)
        assert label.fingerprint == trust.fingerprint(encoder)
        assert encoder.spec.layers == base.spec.layers - (label.kind == "fewer-layers")
        assert (encoder.spec.vocabulary > base.spec.vocabulary) == (label.kind == "added-tokens")
        assert (label.asr is not None) == (label.kind == "text-on-text")
        assert label.retrieval is not None
        assert label.retrieval > 0.3
