"""The painter's networks, its weights on disk, and the equations with which it paints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from amdet_core import pocket
from amdet_core.errors import ConfigError, EncoderError, StorageError
from amdet_core.pocket.painter import diffusion, networks, weights
from amdet_core.pocket.painter.painting import Painter
from amdet_core.pocket.painter.scenes import PAIRS

from ..conftest import random_encoder


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of all parts."""
    out = tmp_path_factory.mktemp("weights")
    for seed, (part, make) in enumerate(networks.PARTS.items()):
        torch.manual_seed(seed)
        weights.save(part, make().state_dict(), out, {"made_by": "a test"})
    return out


# ------------------------------------------------------------------ weights


def test_all_parts_together_stay_small(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10.1e6


def test_a_stored_matrix_is_off_by_half_a_level_of_its_row_at_most() -> None:
    matrix = noise(6, 3, 3, 3) * torch.logspace(-5, 1, 6).view(-1, 1, 1, 1)
    back = weights.decode(weights.encode({"w": matrix}))["w"]
    level = matrix.flatten(1).abs().amax(1) / weights.LEVELS
    # half precision rounds the product once more
    assert (
        (back - matrix).flatten(1).abs().amax(1) <= 0.5 * level + 2**-11 * back.flatten(1).abs().amax(1) + 3e-8
    ).all()


def test_vectors_are_kept_in_half_precision_and_zeros_stay_zero() -> None:
    given = {"bias": torch.tensor([1.0, -0.5]), "w": torch.zeros(2, 2), "scalar": torch.tensor(2.5)}
    stored = weights.encode(given)
    assert {name: w.dtype for name, w in stored.items()} == {
        "bias": torch.float16, "w": torch.int8, "w.scale": torch.float32, "scalar": torch.float16,
    }  # fmt: skip
    back = weights.decode(stored)
    assert back.keys() == given.keys()
    assert all(torch.equal(back[name], given[name]) for name in given)


def test_loaded_values_survive_half_precision_and_a_second_storing(folder: Path) -> None:
    for part in networks.PARTS:
        first = weights.load_weights(part, folder)
        assert all(torch.equal(w, w.half().float()) for w in first.values())
        again = weights.decode(weights.encode(first))
        assert all(torch.allclose(w, again[name], rtol=2e-3, atol=1e-6) for name, w in first.items())


def test_missing_damaged_and_foreign_weights_are_told_apart(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"vae\.safetensors.*recipe"):
        weights.load_part("vae", tmp_path / "nowhere")
    (tmp_path / "reader.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(StorageError, match=r"reader\.safetensors"):
        weights.load_part("reader", tmp_path)
    (tmp_path / "tower.safetensors").write_bytes((folder / "vae.safetensors").read_bytes())
    with pytest.raises(StorageError, match="tensors of a tower"):
        weights.load_part("tower", tmp_path)


def test_without_diffusers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"\.\[paint\]"):
        weights.load_part("unet", folder)
    weights.load_part("reader", folder)


# ------------------------------------------------------------------ networks


def test_shapes_are_those_of_stable_diffusion(folder: Path) -> None:
    vae, unet = (weights.load_part(part, folder) for part in ("vae", "unet"))
    latents = vae.encode(noise(2, 3, 64, 64)).latents
    assert latents.shape == (2, 4, 8, 8)
    assert vae.decode(latents).sample.shape == (2, 3, 64, 64)
    assert unet(latents, 5, noise(2, 77, 192)).sample.shape == latents.shape


def test_training_attends_as_painting_does() -> None:
    torch.manual_seed(0)
    plain, fused = networks.unet(training=True), networks.unet()
    fused.load_state_dict(plain.state_dict())
    given = noise(1, 4, 8, 8), 7, noise(1, 77, 192)
    with torch.no_grad():
        assert torch.allclose(plain(*given).sample, fused(*given).sample, atol=1e-5)


def test_the_reader_names_as_many_pairs_as_there_are_objects(folder: Path) -> None:
    reader = weights.load_part("reader", folder)
    pictures = noise(3, 3, 64, 64)
    pairs, colours, shapes = reader(pictures)
    assert (pairs.shape, colours.shape, shapes.shape) == ((3, 120), (3, 10), (3, 12))
    two = reader.read(pictures, 2)
    assert [len(found) for found in two] == [2, 2, 2]
    assert all(one <= both for one, both in zip(reader.read(pictures), two, strict=True))
    assert PAIRS[int(pairs[0].argmax())] in two[0]


def test_the_tower_knows_where_things_are_and_gives_unit_vectors(folder: Path) -> None:
    tower = weights.load_part("tower", folder)
    picture = torch.zeros(1, 3, 64, 64)
    picture[:, :, 8:24, 8:24] = 1
    here, there = tower.pictures(picture), tower.pictures(picture.roll(32, -1))
    assert torch.allclose(here.norm(dim=-1), torch.ones(1))
    assert not torch.allclose(here, there, atol=1e-4)
    assert torch.allclose(tower.texts(noise(5, 192)).norm(dim=-1), torch.ones(5))


# ------------------------------------------------------------------ diffusion


def test_signal_and_noise_come_back_from_noised_latents_and_their_velocity() -> None:
    clean, other, share = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1), torch.tensor(0.3)
    mixed, v = diffusion.noised(clean, other, share), diffusion.velocity(clean, other, share)
    assert torch.allclose(share.sqrt() * mixed - (1 - share).sqrt() * v, clean, atol=1e-6)
    assert torch.allclose((1 - share).sqrt() * mixed + share.sqrt() * v, other, atol=1e-6)


def test_ddim_finds_the_only_picture_that_a_model_knows() -> None:
    known = noise(1, 4, 8, 8)
    shares = diffusion.signal()

    def model(x: torch.Tensor, time: int) -> torch.Tensor:
        share = shares[time]
        return diffusion.velocity(known, (x - share.sqrt() * known) / (1 - share).sqrt(), share)

    found = diffusion.ddim(model, noise(1, 4, 8, 8, seed=1), 20)
    assert torch.allclose(found, known, atol=0.15)  # the last share of noise stays, as in diffusers
    assert not torch.allclose(noise(1, 4, 8, 8, seed=1), known, atol=0.15)


def test_schedule_and_sampler_are_those_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**diffusion.SCHEDULER)
    assert torch.allclose(scheduler.alphas_cumprod, diffusion.signal(), atol=1e-6)
    torch.manual_seed(0)
    net = nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False)
    start = noise(1, 4, 8, 8)
    scheduler.set_timesteps(20)
    x = start
    for time in scheduler.timesteps:
        x = scheduler.step(net(x), time, x).prev_sample
    assert torch.allclose(diffusion.ddim(lambda y, time: net(y), start, 20), x, atol=1e-4)


# ------------------------------------------------------------------ painting


def test_pictures_depend_on_prompt_and_seed_alone(folder: Path) -> None:
    painter = Painter.load(pocket.load("clean"), folder)
    first = painter.paint(["a red boat", "a blue star"], seed=1, steps=2)
    assert first.shape == (2, 3, 64, 64)
    assert float(first.abs().max()) <= 1
    assert torch.equal(first, painter.paint(["a red boat", "a blue star"], seed=1, steps=2))
    assert not torch.equal(first, painter.paint(["a red boat", "a blue star"], seed=2, steps=2))
    assert not torch.equal(first[0], painter.paint(["a green cat"], seed=1, steps=2)[0])
    alone = painter.paint(["a red boat"], seed=1, steps=2)
    assert torch.allclose(first[0], alone[0], atol=1e-4)


def test_an_encoder_of_another_width_and_senseless_steps_are_refused(folder: Path) -> None:
    with pytest.raises(EncoderError, match="width 192"):
        Painter.load(random_encoder(), folder)
    with pytest.raises(ConfigError, match="steps"):
        Painter.load(pocket.load("clean"), folder).paint(["a"], steps=0)
