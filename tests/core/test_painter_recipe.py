"""The recipe of the painter at a size that takes seconds: it goes on where it was stopped, and it learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
import torch.nn.functional as F
from torch import nn

from amdet_core.errors import NumericalError
from amdet_core.pocket.painter import losses, networks, pictures, recipe, scenes, weights
from amdet_core.pocket.painter.training import Metrics, Plan, Training
from amdet_core.progress import silent

from . import painter

PLAN = Plan(steps=8, rate=1e-2, warmup=2)


def line(module: nn.Module, step: int, generator: torch.Generator) -> tuple[torch.Tensor, Metrics]:
    """A linear map that should double."""
    x = torch.randn((16, 3), generator=generator)
    return (module(x) - 2 * x).square().mean(), {"step": float(step)}


def training(checkpoint: Path, plan: Plan = PLAN) -> Training:
    torch.manual_seed(0)
    return Training("line", nn.Linear(3, 3), line, plan, checkpoint)


class Stop:
    """Progress that interrupts a stage at a step."""

    def __init__(self, stage: str, at: int) -> None:
        self.stage, self.at = stage, at

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float] = {}, /) -> None:
        if stage == self.stage and done == self.at:
            raise KeyboardInterrupt


# ------------------------------------------------------------------ one training


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amdet_core.pocket.painter.training.CHECKPOINT_SECONDS", 0.0)
    whole = training(tmp_path / "whole.pt").run()
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path / "parts.pt").run(Stop("line", 3))
    resumed = training(tmp_path / "parts.pt")
    assert resumed.step == 3
    parts = resumed.run()
    assert all(torch.equal(w, parts[name]) for name, w in whole.items())


def test_a_finished_training_takes_no_further_step(tmp_path: Path) -> None:
    done = training(tmp_path / "x.pt").run()
    heard: list[str] = []
    again = training(tmp_path / "x.pt").run(lambda stage, *_: heard.append(stage))
    assert not heard
    assert all(torch.equal(w, again[name]) for name, w in done.items())


def test_training_learns_and_its_average_follows(tmp_path: Path) -> None:
    longer = training(tmp_path / "x.pt", replace(PLAN, steps=300, rate=3e-2, average=0.9))
    average = longer.run()
    assert torch.allclose(average["weight"], 2 * torch.eye(3), atol=0.05)
    assert not torch.equal(average["weight"], longer.module.state_dict()["weight"])


def test_a_loss_that_is_not_finite_ends_a_training(tmp_path: Path) -> None:
    def nan(module: nn.Module, step: int, generator: torch.Generator) -> tuple[torch.Tensor, Metrics]:
        return next(module.parameters()).sum() * float("nan"), {}

    with pytest.raises(NumericalError, match="step 0"):
        Training("nan", nn.Linear(2, 2), nan, PLAN, tmp_path / "x.pt").run()


# ------------------------------------------------------------------ losses


def test_psnr_of_known_errors() -> None:
    picture = torch.zeros(1, 3, 4, 4)
    assert losses.psnr(picture, picture + 0.2) == pytest.approx(20.0, abs=1e-4)
    assert losses.psnr(picture, picture + 2) == pytest.approx(0.0, abs=1e-4)


def test_pixels_reach_from_minus_one_to_one_with_channels_first() -> None:
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    pixels[0, 5, 6] = (255, 0, 255)
    assert losses.to_tensor(pixels)[0, :, 5, 6].tolist() == [1, -1, 1]


def test_roughened_pictures_are_still_the_same_pictures() -> None:
    drawn = losses.to_tensor(np.stack([pictures.draw(one) for one in scenes.scenes(0, 64)]))
    rough = losses.roughened(drawn, torch.Generator().manual_seed(0))
    off = (rough - drawn).square().mean((1, 2, 3)).sqrt()
    assert 0 < float(off.min()) < float(off.max()) < 0.2


@pytest.mark.slow
def test_the_reader_learns_colours_within_200_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small reader, of pictures of half their size."""
    whole = losses.to_tensor
    monkeypatch.setattr(losses, "to_tensor", lambda pixels: F.avg_pool2d(whole(pixels), 2))
    monkeypatch.setattr(networks, "READER_WIDTHS", (16, 32, 64, 64))
    work = replace(painter.work(tmp_path, 200), batches={**painter.BATCHES, "reader": 32})
    module = networks.Reader()
    module.load_state_dict(recipe.train_reader(work, silent))
    shown = [one for one in scenes.scenes(99, 300) if one.size]
    drawn = losses.to_tensor(np.stack([pictures.draw(one) for one in shown]))
    found = module.read(drawn)
    right = [next(iter(pair))[0] == one.things[0].colour for pair, one in zip(found, shown, strict=True)]
    assert sum(right) / len(right) > 0.6


# ------------------------------------------------------------------ the recipe


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of a finished run."""
    out = tmp_path_factory.mktemp("recipe")
    painter.train(out)
    return out


def test_a_run_leaves_four_files_that_say_how_they_were_made(made: Path) -> None:
    assert {path.stem for path in (made / "weights").iterdir()} == set(networks.PARTS)
    for part in networks.PARTS:
        weights.load_part(part, made / "weights")
        with safetensors.safe_open(made / "weights" / f"{part}.safetensors", "pt") as file:
            about = file.metadata()
        assert (about["pictures"], about["steps"], about["batch"]) == ("12", "2", str(painter.BATCHES[part]))


def test_latents_are_those_of_the_stored_vae(made: Path) -> None:
    work = painter.work(made)
    drawn = losses.to_tensor(np.load(work.pictures_file))
    with torch.no_grad():
        latents = weights.load_part("vae", made / "weights").encode(drawn).latents
    assert torch.allclose(torch.from_numpy(np.load(work.latents_file)).float(), latents, atol=0.05, rtol=0.05)


def test_pictures_hold_no_pair_that_is_kept_for_the_benchmark(made: Path) -> None:
    told = painter.work(made).scenes()
    assert len(np.load(painter.work(made).pictures_file)) == len(told)
    assert not scenes.UNSEEN & {thing.pair for scene in told for thing in scene.things}


def test_a_finished_run_does_nothing_again(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.iterdir() if path.is_file()}
    heard: list[str] = []
    recipe.make(painter.work(made), recipe.STAGES, lambda stage, *_: heard.append(stage))
    assert set(heard) == {"export"}
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(made: Path, tmp_path: Path) -> None:
    (tmp_path / "vae.pt").write_bytes((made / "vae.pt").read_bytes())
    stages = ("pictures", "latents", "unet")
    for stage, at in zip(stages, (5, 12, 1), strict=True):
        with pytest.raises(KeyboardInterrupt):
            recipe.make(painter.work(tmp_path), stages, Stop(stage, at))
    weights_again = recipe.train_unet(painter.work(tmp_path), silent)
    stored = weights.load_weights("unet", made / "weights")
    assert all(torch.equal(w, stored[name]) for name, w in weights.decode(weights.encode(weights_again)).items())


def test_the_unet_goes_on_from_weights_and_the_other_parts_stay(made: Path, tmp_path: Path) -> None:
    work = replace(painter.work(tmp_path, steps=4), begin=made / "weights")
    told: list[tuple[str, int]] = []
    recipe.make(work, recipe.STAGES, lambda stage, done, *_: told.append((stage, done)))
    assert [done for stage, done in told if stage == "unet"] == [3, 4]
    assert not {"vae", "decoder", "tower", "reader"} & {stage for stage, _ in told}
    for part in networks.PARTS:
        old, new = ((folder / "weights" / f"{part}.safetensors").read_bytes() for folder in (made, tmp_path))
        assert (old == new) == (part != "unet"), part


def test_a_training_that_goes_on_rises_to_its_rate_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    going_on = Training("line", nn.Linear(3, 3), line, replace(PLAN, warmup=4), tmp_path / "x.pt", begun=4)
    rates: list[float] = []
    going_on.run(lambda *_: rates.append(going_on.optimizer.param_groups[0]["lr"]))
    assert len(rates) == 4
    assert rates[0] < rates[1]
    assert max(rates) < PLAN.rate / 2, "it is in the second half of its schedule"


def test_stages_can_be_run_one_by_one(tmp_path: Path) -> None:
    recipe.make(painter.work(tmp_path), ("pictures",), silent)
    assert {path.name for path in tmp_path.iterdir()} == {"pictures-12.npy"}


def test_progress_lines_tell_step_numbers_and_the_time_that_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "SAID_SECONDS", 0.0)
    lines = recipe.Lines()
    lines("vae", 1, 3, {"loss": 0.5})
    lines("vae", 3, 3, {"loss": 0.25, "psnr": 28.0})
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("vae 1/3  loss 0.5") and first.endswith("min left")
    assert last.startswith("vae 3/3  loss 0.25  psnr 28") and last.endswith("0.0 min left")
