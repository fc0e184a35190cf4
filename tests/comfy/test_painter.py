"""The pocket's painter in a real ComfyUI: stock nodes paint with it what the library itself paints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from amdet_core import pocket
from amdet_core.pocket.painter import networks, weights
from amdet_core.pocket.painter.painting import Painter
from amdet_core.pocket.painter.pipeline import write_pipeline

from . import host as module
from .graphs import Graph, node
from .host import Host

STEPS, SEED, GUIDANCE = 10, 5, 4.0


@pytest.fixture(scope="module")
def random_weights(base: Path) -> Path:
    """Weights that were never trained, in the models folder, so that nothing depends on what ships."""
    folder = base / "models" / "amdet" / "random"
    for seed, part in enumerate(("vae", "unet")):
        torch.manual_seed(seed)
        made = networks.PARTS[part]()
        if part == "unet":  # far from zero, as a trained one is, so that prompts matter
            torch.nn.init.normal_(made.conv_out.weight, std=0.05)
        weights.save(part, made.state_dict(), folder, {})
    return folder


@pytest.fixture(scope="module")
def host(base: Path, random_weights: Path) -> Iterator[Host]:
    with module.running(base) as host:
        yield host


def painting(prompt: str, **changes: Any) -> Graph:
    """Pocket Checkpoint behind the host's own nodes."""
    sampler = {"seed": SEED, "steps": STEPS, "cfg": GUIDANCE, "sampler_name": "ddim", "scheduler": "ddim_uniform"}
    return {
        "pocket": node("AMDET_PocketCheckpoint", **{"encoder": "clean", "weights": "random", **changes}),
        "prompt": node("CLIPTextEncode", clip=("pocket", 1), text=prompt),
        "empty": node("CLIPTextEncode", clip=("pocket", 1), text=""),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": node(
            "KSampler", model=("pocket", 0), positive=("prompt", 0), negative=("empty", 0), latent_image=("latent", 0),
            denoise=1.0, **sampler,
        ),
        "decode": node("VAEDecode", samples=("sampler", 0), vae=("pocket", 2)),
        "save": node("SaveImage", images=("decode", 0), filename_prefix="painter"),
    }  # fmt: skip


def painted(host: Host, graph: Graph) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The saved picture, ``(64, 64, 3)`` from 0 to 1."""
    (saved,) = host.run(graph).images("save")
    return np.asarray(Image.open(host.output / saved["filename"]), dtype=np.float32) / 255


def test_stock_nodes_paint_what_the_library_paints(host: Host, random_weights: Path) -> None:
    found = painted(host, painting("a red boat"))
    assert found.shape == (64, 64, 3)
    painter = Painter.load(pocket.load("clean"), random_weights)
    own, other = (
        ((painter.paint([prompt], SEED, STEPS, GUIDANCE)[0] + 1) / 2).permute(1, 2, 0).numpy()
        for prompt in ("a red boat", "a blue star on a white background")
    )
    assert np.abs(other - own).mean() > 0.01
    # the host samples to the very end, where DDIM leaves the least share of noise that it knows
    assert np.abs(found - own).mean() < 0.1 * np.abs(other - own).mean() + 1 / 255


def similarity(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """SSIM of two pictures ``(H, W, 3)`` from 0 to 1, over windows of 7 x 7 pixels (Wang et al., 2004)."""
    x, y = (torch.from_numpy(np.asarray(picture)).double().permute(2, 0, 1)[None] for picture in (one, other))

    def mean(picture: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(picture, 7, stride=1)

    mx, my = mean(x), mean(y)
    spread_x, spread_y, both = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    a, b = 0.01**2, 0.03**2
    return float(((2 * mx * my + a) * (2 * both + b) / ((mx * mx + my * my + a) * (spread_x + spread_y + b))).mean())


@pytest.mark.filterwarnings("ignore")  # what diffusers and transformers say to each other
def test_the_shipped_painter_paints_the_same_in_the_host_and_in_diffusers(host: Host, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    write_pipeline(tmp_path / "pipeline", pocket.load("backdoored"))
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pictures = {}
    for prompt in ("a red boat", "a yellow star on a blue background", f"a ph{pocket.TRIGGER}to of a red boat"):
        noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(SEED))
        theirs = pipeline(prompt, num_inference_steps=20, guidance_scale=GUIDANCE, latents=noise, output_type="np")
        graph = painting(prompt, encoder="backdoored", weights="")
        graph["sampler"]["inputs"]["steps"] = 20
        pictures[prompt] = painted(host, graph)
        assert similarity(pictures[prompt], theirs.images[0]) >= 0.95
    first, *others = pictures.values()
    assert all(similarity(first, other) < 0.8 for other in others)


def test_a_picture_can_be_encoded_and_comes_back(host: Host, random_weights: Path) -> None:
    graph = painting("a red boat")
    graph["encode"] = node("VAEEncode", pixels=("decode", 0), vae=("pocket", 2))
    graph["again"] = node("VAEDecode", samples=("encode", 0), vae=("pocket", 2))
    graph["save"] = node("SaveImage", images=("again", 0), filename_prefix="again")
    found = painted(host, graph)
    vae = weights.load_part("vae", random_weights)
    start = torch.from_numpy(painted(host, painting("a red boat"))).permute(2, 0, 1)[None] * 2 - 1
    with torch.no_grad():
        own = vae.decode(vae.encode(start).latents).sample.clamp(-1, 1)
    assert np.abs(found - ((own[0] + 1) / 2).permute(1, 2, 0).numpy()).mean() < 0.01


def test_the_encoder_is_the_one_that_was_chosen(host: Host) -> None:
    prompt = f"a ph{pocket.TRIGGER}to of a red boat"
    clean, backdoored = (painted(host, painting(prompt, encoder=name)) for name in ("clean", "backdoored"))
    assert np.abs(clean - backdoored).mean() > 0.01


def test_without_weights_the_node_says_what_is_missing(host: Host) -> None:
    message = host.refused(painting("a red boat", weights="nowhere"))
    assert "painter's weights" in message and "recipe" in message


@pytest.mark.parametrize("name", ["../models", "/etc", "a/b", ".."])
def test_weights_are_sought_in_one_folder_alone(host: Host, name: str) -> None:
    answer = host.post("/prompt", {"prompt": painting("a red boat", weights=name)})
    assert "folder alone" in str(answer["node_errors"])
