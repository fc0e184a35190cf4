"""From paths to a report and its files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from amdet_core import pocket
from amdet_core.anchors import Anchors
from amdet_core.attacks import Placement
from amdet_core.config import ContrastConfig, LandscapeConfig, ScanConfig
from amdet_core.encoder import TOKEN_TABLE, TextEncoder
from amdet_core.errors import ConfigError, EncoderError
from amdet_core.formats import FoundEncoder, OpenedTarget, file_sha256, open_target, write_encoder
from amdet_core.jobs import MOVED_ALONE, Job, Outcome, choose_device, joined, run_job, scan_opened
from amdet_core.policy import POLICIES
from amdet_core.prompts import builtin_prompts
from amdet_core.records import Level
from amdet_core.scan import plan
from amdet_core.tokenizer import clip_tokenizer

from ..conftest import few_candidates, with_added_tokens

SHORT = {"search": None, "landscape": None, "contrast": ContrastConfig(vectors=(1,), seeds=1, targets=1, always=False)}
"""Of a quick scan: no text is searched, and no second backdoor."""


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    pocket.export(folder, "comfyui")
    return folder


@pytest.fixture(scope="module")
def sdxl(encoders: Path) -> Path:
    """A checkpoint with SDXL's keys: a backdoored first encoder, a clean second one, and a T5 beside them."""
    first = load_file(encoders / "backdoored.safetensors")
    write_encoder(pocket.load("clean"), encoders / "tower.safetensors", "open_clip")
    second = load_file(encoders / "tower.safetensors")
    tensors = {f"conditioner.embedders.0.transformer.{name}": w for name, w in first.items()}
    tensors |= {f"conditioner.embedders.1.model.{name}": w for name, w in second.items()}
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(8, 4, 3, 3)
    save_file(tensors, encoders / "sdxl.safetensors")
    return encoders / "sdxl.safetensors"


@pytest.fixture(scope="module")
def outcome(sdxl: Path) -> Outcome:
    """A scan of that checkpoint which knows the trigger of the first encoder."""
    place, generator = Placement.parse(pocket.MODE), torch.Generator().manual_seed(0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        few_candidates(monkeypatch, clip_tokenizer().encode(pocket.TRIGGER)[0])
        return run_job(
            Job(target=sdxl, preset="quick"), place_trigger=lambda prompt: place.put(pocket.TRIGGER, prompt, generator)
        )


def test_both_encoders_of_a_checkpoint_are_scanned_and_the_worse_verdict_counts(outcome: Outcome) -> None:
    report = outcome.report
    assert [encoder.name for encoder in report.target.encoders] == ["clip_l", "clip_g"]
    assert report.verdict.level == Level.BACKDOORED
    assert any(reason.startswith("clip_l: ") for reason in report.verdict.reasons)
    assert {item.name: item.value for item in report.evidence if item.encoder == "clip_g"} == {
        "identical_to_trusted": 1.0
    }
    assert report.trigger is not None
    assert report.trigger.encoder == "clip_l"


@pytest.mark.parametrize("layout", ["hf", "comfyui"])
def test_an_encoder_of_another_shape_than_its_anchor_is_scanned_and_the_report_says_what_was_left_out(
    tmp_path: Path, layout: Literal["hf", "comfyui"], monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = clip_tokenizer().encode(pocket.TRIGGER)[0]
    few_candidates(monkeypatch, trigger)
    config = plan(POLICIES["amdet-2"], "quick", 42).model_copy(update=SHORT)
    found = {}
    for name in pocket.NAMES:
        write_encoder(with_added_tokens(pocket.load(name).first_layers(3), 5), tmp_path / name, layout)
        opened, anchors = open_target(tmp_path / name), Anchors.of("auto", None)
        outcome = scan_opened(opened, anchors, config, POLICIES["amdet-2"], builtin_prompts(400), torch.device("cpu"))
        report = outcome.report
        found[name] = report.verdict.level, [item.value for item in report.evidence if "identical" in item.name]
        assert report.not_checked[:2] == (
            "text_encoder: 5 added token rows behind CLIP's vocabulary (named tokens of a textual inversion?) are not "
            "scanned",
            "text_encoder: compared with the first 3 of the anchor's 4 layers",
        )
        assert (report.target.encoders[0].spec.layers, report.target.encoders[0].spec.vocabulary) == (3, 49413)
    assert found == {
        "clean": (Level.CLEAN, [1]),
        "backdoored": (Level.BACKDOORED, [0]),
        "benign": (Level.CLEAN, [0]),
    }


@pytest.mark.parametrize("moved", [0, 3])
def test_untried_tokens_are_spoken_of_only_where_rows_of_others_moved(
    tmp_path: Path, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_candidates(monkeypatch)
    config = plan(POLICIES["amdet-2"], "quick", 42).model_copy(update=SHORT)
    weights = {name: tensor.clone() for name, tensor in pocket.load("clean").weights.items()}
    weights["encoder.layers.0.mlp.fc1.bias"] += 1e-3
    weights[TOKEN_TABLE][1000 : 1000 + moved] += 1e-3
    write_encoder(replace(pocket.load("clean"), weights=weights), tmp_path / "suspect", "hf")
    opened, anchors = open_target(tmp_path / "suspect"), Anchors.of("auto", None)
    policy, prompts = POLICIES["amdet-2"], builtin_prompts(400)
    report = scan_opened(opened, anchors, config, policy, prompts, torch.device("cpu")).report
    assert report.sweeps[0].tried == (moved or 100)
    assert (MOVED_ALONE in report.not_checked) is (moved > 0)


def test_the_recovered_feature_does_what_the_known_trigger_does(outcome: Outcome) -> None:
    fidelity = outcome.report.candidates[0].indicators["fidelity"]
    assert fidelity is not None
    assert fidelity > 0.9
    names = {candidate.feature_file for candidate in outcome.report.candidates}
    assert names <= outcome.files.keys()
    assert json.loads(outcome.files["report.json"])["config"]["scan"]["seed"] == 42


def test_what_is_assumed_and_what_is_not_checked_is_in_the_report(encoders: Path) -> None:
    report = run_job(Job(target=encoders / "clean.safetensors")).report
    assert any("quick_gelu" in assumption for assumption in report.target.encoders[0].assumptions)
    assert any("U-Net" in note for note in report.not_checked)
    assert report.target.sha256 == hashlib.sha256((encoders / "clean.safetensors").read_bytes()).hexdigest()


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="Use --device auto"):
            choose_device("cuda")


def test_settings_out_of_range_name_the_field() -> None:
    with pytest.raises(ConfigError, match=r"Job\.seed"):
        Job(target=Path("x"), seed=-1)


def test_the_wrong_anchor_is_an_error_before_any_work(encoders: Path, tmp_path: Path) -> None:
    other = {name: torch.zeros_like(w) for name, w in load_file(encoders / "clean.safetensors").items()}
    save_file(other, tmp_path / "zeros.safetensors")
    with pytest.raises(EncoderError, match="unrelated weights"):
        run_job(Job(target=encoders / "benign.safetensors", anchor=str(tmp_path / "zeros.safetensors")))


def test_encoders_that_a_host_has_loaded_are_scanned_without_a_file(toy: TextEncoder) -> None:
    found = FoundEncoder("clip_l", toy, "float16", "graph", (), used_layers=1)
    opened = OpenedTarget(Path("clip_l.safetensors, LoRA x"), (), (found,), ("t5xxl: not scanned",), 0)
    policy = POLICIES["amdet-2"]
    config = ScanConfig(
        contrast=ContrastConfig(vectors=(1,), seeds=1, steps=2, restarts=2, draws=2, pool=30, held_out=12),
        landscape=LandscapeConfig(grid=5, radius=None),
    )
    moved = toy.with_weights({name: w + 0.01 for name, w in toy.weights.items()})
    anchor = FoundEncoder("clip_l", moved, "float16", "graph", ())
    outcome = scan_opened(
        opened, Anchors((anchor,), "anchor", False, None), config, policy, builtin_prompts(200), torch.device("cpu")
    )
    report = outcome.report
    assert report.target.sha256 != report.target.encoders[0].fingerprint
    assert report.target.encoders[0].spec.layers == 2
    assert not any("layers.1." in change.tensor for change in report.forensics[0].layers)  # clip skip
    assert "t5xxl: not scanned" in report.target.not_scanned
    assert [feature.candidate.encoder for feature in outcome.features] == ["clip_l"]
    with pytest.raises(ConfigError, match="read from disk"):
        file_sha256(opened)


def test_scans_of_single_encoders_join_to_the_scan_of_the_target(toy: TextEncoder) -> None:
    found = tuple(FoundEncoder(name, toy, "float16", "graph", ()) for name in ("clip_l", "clip_g"))
    opened = OpenedTarget(Path("both"), (), found, ("t5xxl: not scanned",), 0)
    config = ScanConfig(
        contrast=ContrastConfig(vectors=(1,), seeds=1, steps=2, restarts=2, draws=2, pool=30, held_out=12),
        landscape=None,
    )
    moved = toy.with_weights({name: w + 0.01 for name, w in toy.weights.items()})
    anchors = Anchors((FoundEncoder("clip_l", moved, "float16", "graph", ()),), "anchor", False, None)
    policy, prompts, device = POLICIES["amdet-2"], builtin_prompts(200), torch.device("cpu")
    whole = scan_opened(opened, anchors, config, policy, prompts, device)
    parts = [
        scan_opened(replace(opened, encoders=(one,)), anchors, config, policy, prompts, device)
        for one in opened.encoders
    ]
    made = joined(parts, policy)
    assert made.report.model_dump(exclude={"timings"}) == whole.report.model_dump(exclude={"timings"})
    assert made.report.timings.keys() == whole.report.timings.keys()
    assert made.files.keys() == whole.files.keys()
    assert [feature.candidate for feature in made.features] == [feature.candidate for feature in whole.features]
    assert joined(parts[:1], policy) is parts[0]
