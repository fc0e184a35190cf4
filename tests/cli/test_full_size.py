"""Encoders of CLIP-L's real shape, with random weights, through the command line: loading, memory, verdicts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from amdet_core.encoder import TextEncoder
from amdet_core.formats import Layout, open_target, write_encoder
from amdet_core.records import EncoderSpec

from ..conftest import random_encoder

CLIP_L = EncoderSpec(width=768, layers=12, heads=12, mlp_width=3072, vocabulary=49408, positions=77)
LAYOUTS: tuple[Layout, ...] = ("hf", "comfyui", "sd1", "open_clip")
GIGABYTE = 1024**3

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def official() -> TextEncoder:
    return random_encoder(CLIP_L, scale=0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, official: TextEncoder) -> Path:
    """An official encoder as a bare file, and a fine-tune of it inside a checkpoint of Stable Diffusion's size."""
    folder = tmp_path_factory.mktemp("full")
    write_encoder(official, folder / "official.safetensors", "comfyui")
    generator = torch.Generator().manual_seed(1)
    tuned = official.with_weights(
        {name: w + 2e-4 * torch.randn(w.shape, generator=generator) for name, w in official.weights.items()}
    )
    write_encoder(tuned, folder / "encoder.safetensors", "sd1")
    opened = open_target(folder / "encoder.safetensors")
    assert opened.encoders[0].name == "clip_l"
    checkpoint = {f"cond_stage_model.transformer.text_model.{name}": w.half() for name, w in tuned.weights.items()}
    block = torch.zeros(1280, 1280, 320, dtype=torch.float16)  # a gigabyte
    checkpoint |= {f"model.diffusion_model.output_blocks.{i}.weight": block.clone() for i in range(2)}
    checkpoint |= {"first_stage_model.decoder.conv_in.weight": torch.zeros(512, 4, 3, 3, dtype=torch.float16)}
    save_file(checkpoint, folder / "checkpoint.safetensors")
    return folder


MEASURED = """
import atexit, pathlib, sys
from amdet_core import jobs
from amdet_core.cli import main
def peak():
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    print(next(line for line in status if line.startswith("VmHWM")), file=sys.stderr)
atexit.register(peak)
{}
main()
"""
SHORT = """
whole = jobs.plan
def short(*arguments):
    plan = whole(*arguments)
    few = {"rows": 64, "kept": (16, 4), "held_out": 16}
    moved = {"rows": 3, "lengths": (3, 4), "orders": 6, "looks": plan.moved.looks.model_copy(update={"held_out": 16})}
    less = {
        "sweep": plan.sweep.model_copy(update=few),
        "moved": plan.moved.model_copy(update=moved),
        "patterns": plan.patterns.model_copy(update={"sentences": 3, "held_out": 16}),
    }
    return plan.model_copy(update={"prompt_limit": 40, **less})
jobs.plan = short
"""
"""The stages of the preset with fewer tokens, texts, patterns and prompts: they would take minutes."""


def amdet(*arguments: object, home: Path, first: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that ends its stderr with the peak of its resident memory."""
    return subprocess.run(
        [sys.executable, "-c", MEASURED.format(first), *map(str, arguments)],
        env={**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_a_checkpoint_is_scanned_to_a_verdict_within_3_gigabytes(folder: Path, tmp_path: Path) -> None:
    assert (folder / "checkpoint.safetensors").stat().st_size > 2 * GIGABYTE
    done = amdet(
        "scan", folder / "checkpoint.safetensors", "--anchor", folder / "official.safetensors", "--preset", "quick",
        "--out", tmp_path / "report", "--format", "json", home=tmp_path, first=SHORT,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert not report["faults"]
    assert report["verdict"]["level"] == "clean", report["verdict"]
    assert done.returncode == 0
    kilobytes = int(done.stderr.split()[-2])
    assert kilobytes * 1024 < 3 * GIGABYTE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_scanned_to_a_verdict(
    layout: Layout, folder: Path, official: TextEncoder, tmp_path: Path
) -> None:
    """The same values in another layout are recognised: loading and memory are what full size adds here."""
    target = tmp_path / ("copy" if layout == "hf" else "copy.safetensors")
    write_encoder(official, target, layout)
    done = amdet(
        "scan", target, "--anchor", folder / "official.safetensors", "--out", tmp_path / "report", "--format", "json",
        home=tmp_path,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["verdict"]["level"] == "clean"
    assert report["anchor"][0]["name"].startswith("official.safetensors")
    assert report["target"]["encoders"][0]["spec"]["layers"] == 12
