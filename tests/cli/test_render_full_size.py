"""Checkpoints of Stable Diffusion's real shapes, with random weights, through ``amdet render``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amdet_core import jobs
from amdet_core.anchors import Anchors
from amdet_core.config import ContrastConfig, ScanConfig
from amdet_core.formats import open_target
from amdet_core.policy import DEFAULT_POLICY, load_policy
from amdet_core.prompts import builtin_prompts
from amdet_core.records import EncoderSpec
from amdet_core.storage import publish

from ..conftest import random_encoder
from ..core import ldm

CLIP_L = EncoderSpec(width=768, layers=12, heads=12, mlp_width=3072, vocabulary=49408, positions=77)
CLIP_G = EncoderSpec(
    width=1280, layers=32, heads=20, mlp_width=5120, vocabulary=49408, positions=77, activation="gelu", projection=1280,
    pad_id=0,
)  # fmt: skip
ROOT = Path(__file__).parents[2]
GIGABYTE = 1024**3
ROOM = {"sd1": 10, "sdxl": 15}
"""Gigabytes of memory that a test takes, the page cache left out."""

pytestmark = pytest.mark.slow

PREPARED = "import sys; from tests.cli import test_render_full_size as made; made.prepare(*sys.argv[1:])"
"""In a process of its own: what it took of memory would stay with this one."""
COUNTED = """
import sys
import diffusers.loaders.single_file as single_file
load, calls = single_file.load_single_file_checkpoint, []
single_file.load_single_file_checkpoint = lambda *a, **k: calls.append(a) or load(*a, **k)
import atexit
atexit.register(lambda: print("loads:", len(calls), file=sys.stderr))
from amdet_core.cli import main
main()
"""


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_single_file_of_real_shape_is_painted_with_and_is_loaded_once(family: str, tmp_path: Path) -> None:
    memory = Path("/proc/meminfo")
    if memory.exists() and int(memory.read_text().split()[1]) * 1024 < ROOM[family] * GIGABYTE:
        pytest.skip(f"needs {ROOM[family]} GB of memory")
    checkpoint, report = tmp_path / f"{family}.safetensors", tmp_path / "report"
    subprocess.run([sys.executable, "-c", PREPARED, family, checkpoint, report], cwd=ROOT, check=True)
    done = subprocess.run(
        [
            sys.executable, "-c", COUNTED, "render", "--checkpoint", checkpoint, "--report", report, "-n", "1",
            "--steps", "1", "--size", "64", "--prompt", "a (red)1.3 boat", "--device", "cpu",
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "loads: 1" in done.stderr
    about = json.loads((report / "pictures.json").read_text(encoding="utf-8"))
    assert (about["family"], about["size"]) == (family, 64)
    assert len(about["columns"]) == 2
    with Image.open(report / "pictures.png") as grid:
        assert np.asarray(grid).std() > 1


def prepare(family: str, checkpoint: str, report: str) -> None:
    """Write a checkpoint and a report of its encoders."""
    specs = [CLIP_L] if family == "sd1" else [CLIP_L, CLIP_G]
    ldm.write(Path(checkpoint), family, [random_encoder(spec, scale=0.02) for spec in specs])
    publish(Path(report), _scanned(Path(checkpoint)).files)


def _scanned(checkpoint: Path) -> jobs.Outcome:
    """A look of two steps at few short prompts: what it recovers is nothing, but it has the shape of a feature."""
    short = ContrastConfig(
        vectors=(1,), seeds=1, steps=2, draws=1, restarts=1, prompts=2, pool=4, held_out=8, prompt_tokens=(4,),
        targets=1,
    )  # fmt: skip
    config = ScanConfig(contrast=short, landscape=None)
    opened = open_target(checkpoint)
    return jobs.scan_opened(
        opened, Anchors.of("none", None), config, load_policy(DEFAULT_POLICY), builtin_prompts(40), torch.device("cpu")
    )
