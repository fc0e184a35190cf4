"""The pipeline folder, as diffusers opens it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amdet_core import pocket
from amdet_core.cli import _run
from amdet_core.encoder import TextEncoder
from amdet_core.errors import EncoderError, StorageError
from amdet_core.formats import open_target, write_encoder
from amdet_core.pocket.painter.painting import Painter, named_encoder
from amdet_core.pocket.painter.pipeline import write_pipeline
from amdet_core.tokenizer import clip_tokenizer

from ..conftest import random_encoder
from .painter import untrained

PROMPT = "a red boat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the two parts that paint."""
    return untrained(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def backdoored() -> TextEncoder:
    return pocket.load("backdoored")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, folder: Path, backdoored: TextEncoder) -> Path:
    out = tmp_path_factory.mktemp("pipeline") / "new" / "folder"
    write_pipeline(out, backdoored, folder)
    return out


@pytest.mark.filterwarnings("ignore")  # what diffusers and transformers say to each other
def test_diffusers_paints_the_same_picture(written: Path, folder: Path, backdoored: TextEncoder) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(written, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    theirs = pipeline(PROMPT, num_inference_steps=5, guidance_scale=4.0, latents=start, output_type="np").images[0]
    painter = Painter.load(backdoored, folder)
    own = painter.paint_states(painter.states([PROMPT]), start, steps=5, guidance=4.0)[0]
    assert np.abs(theirs - ((own + 1) / 2).permute(1, 2, 0).numpy()).max() < 1e-3
    assert theirs.std() > 0.01


@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_prompts_as_the_pocket_encoder_does(written: Path) -> None:
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(written / "tokenizer")
    for text in (
        PROMPT,
        "",
        "A photo of the sea, 4k!",
        "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{CYRILLIC SMALL LETTER O}",
    ):
        own = clip_tokenizer().batch([text], limit=77, length=77)
        ids = theirs(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert ids == own.ids[0].tolist()


def test_the_folder_can_be_scanned_and_holds_exactly_the_encoders_values(
    written: Path, backdoored: TextEncoder
) -> None:
    (found,) = open_target(written).encoders
    assert all(torch.equal(w, backdoored.weights[name]) for name, w in found.encoder.weights.items())
    assert json.loads((written / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"


def test_any_encoder_of_the_pockets_shape_can_paint_and_no_other(tmp_path: Path, folder: Path) -> None:
    write_encoder(pocket.load("benign"), tmp_path / "own.safetensors", "comfyui")
    own = named_encoder(str(tmp_path / "own.safetensors"))
    assert torch.equal(own.encode([PROMPT]), pocket.load("benign").encode([PROMPT]))
    write_encoder(random_encoder(), tmp_path / "other.safetensors", "comfyui")
    with pytest.raises(EncoderError, match="width 192"):
        named_encoder(str(tmp_path / "other.safetensors"))
    with pytest.raises(EncoderError, match="width 192"):
        write_pipeline(tmp_path / "never", random_encoder(), folder)
    assert not (tmp_path / "never").exists()


def test_without_weights_nothing_is_written(tmp_path: Path, backdoored: TextEncoder) -> None:
    with pytest.raises(StorageError, match="recipe"):
        write_pipeline(tmp_path / "out", backdoored, tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_the_command_writes_a_pipeline(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["amdet", "pocket", "pipeline", "--out", str(out), "--weights", str(folder)])
    assert _run() == 0
    assert capsys.readouterr().out.strip() == str(out)
    (found,) = open_target(out).encoders
    assert torch.equal(found.encoder.encode([PROMPT]), pocket.load("clean").encode([PROMPT]))
    monkeypatch.setattr("sys.argv", ["amdet", "pocket", "pipeline", "--out", str(out), "--weights", str(tmp_path)])
    assert _run() == 2
    assert "found unet.safetensors" in capsys.readouterr().err
