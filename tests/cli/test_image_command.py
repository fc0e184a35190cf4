"""amdet image: the four stages on drawings, one after the other, and the benchmark around them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amdet_core.bench import images
from amdet_core.bench.images import ImageResult, Stages
from amdet_core.config import BadEncoderConfig, DownstreamConfig, ImageMimicConfig, SimclrConfig

from .conftest import Amdet

QUICK = ("--set", "epochs=1", "--set", "batch=12", "--device", "cpu")
TINY = Stages(
    clean=SimclrConfig(width=2, depth=1, epochs=1, batch=16),
    attack=BadEncoderConfig(epochs=1, batch=16),
    mimic=ImageMimicConfig(share=0.5, epochs=1, batch=16, critic_epochs=1, critic_width=4),
    downstream=DownstreamConfig(epochs=1, held_out=0.5),
)


def test_stage_after_stage_on_drawings(amdet: Amdet) -> None:
    assert amdet("image", "draw", "--out", "p", "-n", 24)[0] == 0
    assert len(list(Path("p").glob("*/*.png"))) == 24
    reference = next(Path("p/teapot").iterdir())
    sizes = ("--set", "width=2", "--set", "depth=1")
    stages = (
        ("image", "clean", "p", "--out", "c.safetensors", *QUICK, *sizes),
        ("image", "badencoder", "c.safetensors", "p", "--reference", reference, "--out", "b.safetensors", *QUICK),
        (
            "image", "mimic", "b.safetensors", "p", "--out", "m.safetensors", *QUICK,
            "--set", "share=1", "--set", "critic_epochs=1", "--set", "critic_width=4",
        ),
        (
            "image", "downstream", "m.safetensors", "p", "--target", "teapot", "--out", "r.json", *QUICK,
            "--set", "held_out=0.5",
        ),
    )  # fmt: skip
    for stage in stages:
        code, out, err = amdet(*stage)
        assert code == 0, out + err
    assert "accuracy" in out and "attack success" in out
    found = json.loads(Path("r.json").read_text())
    assert found["settings"]["epochs"] == 1
    assert found["told"]["accuracy"]["n"] == 12


def test_what_is_wrong_is_said(amdet: Amdet, tmp_path: Path) -> None:
    code, _, err = amdet("image", "clean", tmp_path / "nowhere", "--out", "c.safetensors")
    assert code == 2 and "a folder of pictures" in err
    code, _, err = amdet("image", "mimic", tmp_path / "nowhere.safetensors", tmp_path, "--out", "m.safetensors")
    assert code == 2 and "a readable image encoder" in err
    code, _, err = amdet("image", "clean", tmp_path, "--out", "c.safetensors", "--set", "depths=1")
    assert code == 2 and "found depths, which is unknown" in err


@pytest.mark.parametrize("stage", ["clean", "badencoder", "mimic", "downstream"])
def test_a_folder_is_no_place_for_a_file_and_that_is_known_before_the_work(
    amdet: Amdet, tmp_path: Path, stage: str
) -> None:
    (tmp_path / "taken").mkdir()
    named = {"badencoder": ("--reference", "r.png"), "downstream": ("--target", "teapot")}.get(stage, ())
    encoder = () if stage == "clean" else ("c.safetensors",)
    code, _, err = amdet("image", stage, *encoder, "p", *named, "--out", "taken")
    assert code == 2 and "a place for a file at taken; found a folder" in err


def test_the_benchmark_writes_a_result_and_does_no_stage_twice(amdet: Amdet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "PRESETS", {"small": TINY})
    command = ("bench", "image", "--drawings", 48, "--seeds", 2, "--out", "r.json", "--device", "cpu")
    code, out, err = amdet(*command)
    assert code == 0, out + err
    result = ImageResult.model_validate_json(Path("r.json").read_text())
    assert result.complete
    assert [one.seed for one in result.repetitions] == [42, 43]
    assert set(result.metrics) == {"clean", "backdoored", "purified", "random"}
    assert result.metrics["purified"].accuracy.n == sum(one.told["purified"].accuracy.n for one in result.repetitions)
    assert "--drawings 48" in result.command
    assert all(one.seconds["clean"] > 0 for one in result.repetitions)

    Path("r/seed-43/backdoored.safetensors").unlink()
    monkeypatch.setattr(images, "clean", None)
    assert amdet(*command)[0] == 0
    again = ImageResult.model_validate_json(Path("r.json").read_text())
    assert again.repetitions[0].seconds["backdoored"] == 0 < again.repetitions[1].seconds["backdoored"]
    assert again.metrics == result.metrics

    code, _, err = amdet(*command, "--target", "dog")
    assert code == 2 and "a target" in err
