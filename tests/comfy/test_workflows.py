"""The shipped workflows in a real ComfyUI, on checkpoints and encoders of true shape."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageStat

from amdet_core.anchors import vouch
from amdet_core.formats import open_target
from amdet_core.pocket.painter.weights import load_part
from amdet_core.storage import read_report

from . import host as module
from . import models
from .graphs import Graph, node, scan
from .host import Host

WORKFLOWS = sorted((module.ROOT / "workflows" / "api").glob("*.json"))
SHOWN = "AMDET_ShowReport"
BOAT, TARGET = frozenset({("red", "boat")}), frozenset({("white", "teapot")})
SEEN = {"1-pocket-nothing-to-download": [BOAT, TARGET], "7-heal": [TARGET, BOAT]}
"""What the pictures of the pocket's painter show: the prompt's own, and the backdoor's target."""
SLOW = ("3-scan-checkpoint-and-render",)
"""What searches in an encoder of full size: minutes on two cores."""


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory with the files that the workflows name."""
    base = tmp_path_factory.mktemp("full")
    module.install_pack(base)
    module.install_probe(base)
    paths = models.full_size(base / "models")
    vouch(paths["official"], "official", base / "user" / "default" / "amdet" / "trust.json")
    # A LoRA without an effect is answered at once; what LoRAs do to a verdict is tested on the pocket encoders.
    suspect = open_target(paths["suspect"]).encoders[0].encoder
    models.lora(base / "models" / "loras" / "lora-to-scan.safetensors", suspect, suspect, 8)
    return base


@pytest.fixture(scope="module")
def host(full: Path) -> Iterator[Host]:
    """A ComfyUI with them."""
    with module.running(full) as host:
        yield host


def shrunk(graph: Graph) -> Graph:
    """The same graph with pictures of 64 pixels in two steps, and with shorter training: both are slow on a CPU.

    The pocket's painter is as fast as that. A quick scan of an honest encoder inverts nothing, so of a checkpoint of
    full size the second picture shows what one inversion finds, and is drawn whatever the scan says.
    """
    if any(one["class_type"] == "AMDET_PocketCheckpoint" for one in graph.values()):
        return graph
    for one in list(graph.values()):
        if one["class_type"] == "AMDET_ReversedTarget":
            (searched,) = (other["inputs"] for other in graph.values() if other["class_type"] == "AMDET_BackdoorScan")
            both = {name: tuple(searched[name]) for name in ("clip", "anchor")}
            graph["inverted"] = node(
                "AMDET_InvertFeature", **both, method="contrast", vectors=1, steps=10, searches=1, seed=42
            )
            one["inputs"]["feature"] = ["inverted", 0]
        if one["class_type"] == "EmptyLatentImage":
            one["inputs"] |= {"width": 64, "height": 64}
        elif one["class_type"] == "KSampler":
            one["inputs"]["steps"] = 2
        elif one["class_type"] == "AMDET_InjectTrigger":
            one["inputs"] |= {"steps": 30, "least_success": 0.3}
        elif one["class_type"] == "AMDET_FineTune":
            one["inputs"]["steps"] = 10
    return graph


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else []) for path in WORKFLOWS],
)
def test_a_shipped_workflow_runs_and_leaves_its_files(host: Host, path: Path) -> None:
    graph = shrunk(json.loads(path.read_text(encoding="utf-8")))
    run = host.run(graph)
    pictures: dict[str, list[Image.Image]] = {}
    for identity, one in graph.items():
        kind = one["class_type"]
        if kind == "AMDET_SaveReport":
            folder = Path(run.text(identity))
            assert (folder / "report.html").stat().st_size > 10_000
            report = read_report(folder)
            assert not report.faults
        elif kind in ("PreviewImage", "SaveImage"):
            pictures[identity] = [_picture(host, image) for image in run.images(identity)]
        elif kind == SHOWN:
            assert len(run.text(identity)) > 200
    expected = {"1": "BACKDOORED", "2": "CLEAN", "4": "CLEAN", "5": "BACKDOORED", "6": "CLEAN", "7": "CLEAN"}
    assert report.verdict.level.name == expected.get(path.stem[0], report.verdict.level.name)
    if path.stem.startswith("5"):
        attacked, honest = (run.text(identity) for identity, one in graph.items() if one["class_type"] == SHOWN)
        assert "BACKDOORED" in attacked
        assert "NO EVIDENCE OF A BACKDOOR" in honest
    assert all(pictures.values())
    assert all(one.size >= (64, 64) for some in pictures.values() for one in some)
    if path.stem.startswith(("1", "3", "7")):
        normal, hidden = (pictures[name][0] for name, one in graph.items() if one["class_type"] == "SaveImage")
        assert all(sum(ImageStat.Stat(one).stddev) > 1 for one in (normal, hidden))
        assert ImageChops.difference(normal, hidden).getbbox()
    if path.stem in SEEN:
        shown = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in (normal, hidden)])
        seen = load_part("reader").read(shown.float() / 127.5 - 1)
        assert seen == SEEN[path.stem]
    if path.stem in SLOW:
        spec = report.target.encoders[0].spec
        assert (spec.layers, spec.width, spec.heads) == (12, 768, 12)
        assert report.anchor is not None and report.sweeps
        assert _peak_gib(host) < 8


def _peak_gib(host: Host) -> float:
    status = Path(f"/proc/{host.process.pid}/status")
    if not status.exists():
        pytest.skip("peak memory is read from /proc")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 2**20


def test_a_seeded_picture_is_the_same_before_and_after_a_scan(host: Host) -> None:
    def drawn() -> Image.Image:
        host.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(1)
        loader = {"checkpoint": node("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly-fp16.safetensors")}
        return _picture(host, host.run({**loader, **_sampled("checkpoint")}).images("picture")[0])

    before = drawn()
    host.run(
        {
            "checkpoint": node("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly-fp16.safetensors"),
            "scan": scan(("checkpoint", 1), anchor=("checkpoint", 1)),
            **_sampled("checkpoint"),
        }
    )
    assert ImageStat.Stat(before).stddev[0] > 0.5
    assert before.tobytes() == drawn().tobytes()


def _sampled(loader: str) -> Graph:
    return {
        "positive": node("CLIPTextEncode", clip=(loader, 1), text="a photo of a dog"),
        "negative": node("CLIPTextEncode", clip=(loader, 1), text=""),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": node(
            "KSampler",
            model=(loader, 0), positive=("positive", 0), negative=("negative", 0), latent_image=("latent", 0),
            seed=3, steps=2, cfg=5.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=("sampler", 0), vae=(loader, 2)),
        "picture": node("SaveImage", images=("decode", 0), filename_prefix="picture"),
    }  # fmt: skip


def _picture(host: Host, about: dict[str, Any]) -> Image.Image:
    place = host.output if about["type"] == "output" else host.base / "temp"
    return Image.open(place / about["subfolder"] / about["filename"]).convert("RGB")
