"""How the painter's weights are made: it draws its own pictures and learns from them on two cores.

Run ``python -m amdet_core.pocket.painter.recipe --out DIR`` with the extra ``amdet[paint]`` installed. A killed run
goes on from what it finds in DIR; its result is DIR/weights, four files to be copied to
``amdet_core/pocket/painter/weights``. The stages, in order:

    pictures   48,000 scenes are drawn
    vae        pictures -> latents -> pictures
    latents    the pictures through the VAE as it is stored
    decoder    those latents -> pictures: the VAE's second half goes on alone, so that the UNet's latents stay
    tower      pictures placed where the pocket encoder places their captions
    reader     colours and shapes of drawings, those included that the painter never sees
    unet       velocities of noised latents, given captions
    export     DIR/weights

With ``--begin FOLDER`` the UNet goes on from the weights there, as after the first half of its steps, and the other
parts are taken as they are.

The pocket encoder is frozen throughout. Steps and batches are chosen for two cores and about two hours; batches are
small, as a CPU gains little from large ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...memory import fast_products
from ...progress import Progress
from ...storage import write_atomic
from .. import load
from .captions import caption
from .losses import autoencoding, contrast, decoding, denoising, reading, to_tensor
from .networks import LATENT_CHANNELS, LATENT_PIXELS, PARTS, unet
from .pictures import PIXELS, draw
from .scenes import Scene, scenes
from .training import Loss, Metrics, Plan, Training
from .weights import decode, encode, load_weights, save

SEED, READER_SEED = 0, 1
"""Of the scenes that the painter, and that the reader, learn from."""
STAGES = ("pictures", "vae", "latents", "decoder", "tower", "reader", "unet", "export")
BATCHES = {"vae": 8, "decoder": 8, "tower": 192, "reader": 64, "unet": 64}
PLANS = {
    "vae": Plan(steps=5_500, rate=8e-4, decay=0.0, average=0.998),
    "decoder": Plan(steps=2_000, rate=4e-4, decay=0.0, average=0.998),
    "tower": Plan(steps=1_000, rate=1e-3, decay=1e-2, average=0.99),
    "reader": Plan(steps=1_500, rate=1e-3, decay=1e-2, average=0.99),
    "unet": Plan(steps=20_000, rate=1e-3, average=0.999),
}
CHUNK = 200
"""Pictures that pass the VAE together."""
TWO_SHARE = 0.75
"""Of the UNet's pictures that are picked among those of two objects alone, which are harder; the rest among all."""
SAID_SECONDS = 20.0


@dataclass(frozen=True)
class Work:
    """A run's folder and sizes.

    Attributes:
        pictures: drawn.
        batches: stage -> pictures in a step.
        plans: stage -> how it is trained.
        begin: folder of weights from which the UNet goes on, in place of random ones.
    """

    out: Path
    pictures: int
    batches: Mapping[str, int]
    plans: Mapping[str, Plan]
    begin: Path | None = None

    @property
    def pictures_file(self) -> Path:
        """``(N, 64, 64, 3)`` of 8 bits."""
        return self.out / f"pictures-{self.pictures}.npy"

    @property
    def latents_file(self) -> Path:
        """``(N, 4, 8, 8)`` of 16 bits."""
        vae = self.plans["vae"].steps if self.begin is None else "begun"
        return self.out / f"latents-{self.pictures}-{vae}.npy"

    def scenes(self) -> list[Scene]:
        """What the pictures show."""
        return list(scenes(SEED, self.pictures))

    def training(self, part: str, loss: Loss, module: nn.Module | None = None) -> Training:
        """The training of one part, from its checkpoint where there is one.

        Args:
            module: to begin with; random weights where None.
        """
        torch.manual_seed(SEED)
        plan, begun = self.plans[part], 0
        fresh = module or (unet(training=True) if part == "unet" else PARTS[part]())
        if self.begin is not None:
            begun = plan.steps // 2 if part == "unet" else plan.steps
            if module is None:
                fresh.load_state_dict(load_weights(part, self.begin))
        return Training(part, fresh, loss, plan, self.out / f"{part}.pt", SEED, begun)


def make(work: Work, stages: tuple[str, ...], progress: Progress) -> None:
    """Go through stages, in their order; what is done already is not done again.

    Raises:
        ConfigError: diffusers is not installed.
        NumericalError: a training diverged.
        StorageError: the folder can't be written to.
    """
    work.out.mkdir(parents=True, exist_ok=True)
    every: dict[str, Callable[[Work, Progress], object]] = {
        "pictures": drawn, "vae": train_vae, "latents": encoded, "decoder": train_decoder, "tower": train_tower,
        "reader": train_reader, "unet": train_unet, "export": export,
    }  # fmt: skip
    for stage in STAGES:
        if stage in stages:
            every[stage](work, progress)


# ------------------------------------------------------------------ data


def drawn(work: Work, progress: Progress) -> NDArray[np.uint8]:
    """The pictures, drawn once."""

    def fill(out: NDArray[Any]) -> None:
        for i, one in enumerate(work.scenes()):
            out[i] = draw(one)
            progress("pictures", i + 1, work.pictures, {})

    return _kept(work.pictures_file, (work.pictures, PIXELS, PIXELS, 3), np.uint8, fill)


def encoded(work: Work, progress: Progress) -> NDArray[np.float16]:
    """Their latents by the VAE as it is stored, made once."""

    @torch.no_grad()
    def fill(out: NDArray[Any]) -> None:
        pictures, module = drawn(work, progress), PARTS["vae"]().train(False)
        module.load_state_dict(decode(encode(train_vae(work, progress))))
        for start in range(0, work.pictures, CHUNK):
            with fast_products():
                latents = module.encode(to_tensor(pictures[start : start + CHUNK])).latents
            out[start : start + CHUNK] = latents.float().numpy()
            progress("latents", min(start + CHUNK, work.pictures), work.pictures, {})

    shape = (work.pictures, LATENT_CHANNELS, LATENT_PIXELS, LATENT_PIXELS)
    return _kept(work.latents_file, shape, np.float16, fill)


def _kept(path: Path, shape: tuple[int, ...], dtype: Any, fill: Callable[[NDArray[Any]], None]) -> NDArray[Any]:
    """An array on disk, made once; a partly filled one is made anew."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape)
        fill(array)
        array.flush()
        del array  # Windows renames no file that is mapped
        partial.replace(path)
    kept: NDArray[Any] = np.load(path, mmap_mode="r")
    return kept


# ------------------------------------------------------------------ trainings


def train_vae(work: Work, progress: Progress) -> dict[str, Tensor]:
    """The autoencoder."""
    pictures = drawn(work, progress)

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        picked = _picked(work, "vae", generator)
        return autoencoding(module, to_tensor(pictures[picked]), generator)

    return work.training("vae", loss).run(progress)


def train_decoder(work: Work, progress: Progress) -> dict[str, Tensor]:
    """The whole VAE, its decoder trained further on the latents as the UNet knows them."""
    pictures, latents, whole = drawn(work, progress), encoded(work, progress), train_vae(work, progress)
    vae = PARTS["vae"]()
    vae.load_state_dict(whole)

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        picked = _picked(work, "decoder", generator)
        return decoding(module, torch.from_numpy(latents[picked].astype(np.float32)), to_tensor(pictures[picked]))

    trained = work.training("decoder", loss, vae.decoder).run(progress)
    return {**whole, **{f"decoder.{name}": weight for name, weight in trained.items()}}


def train_tower(work: Work, progress: Progress) -> dict[str, Tensor]:
    """The image tower."""
    pictures, told, encoder = drawn(work, progress), work.scenes(), load("clean")

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        picked = _picked(work, "tower", generator)
        return contrast(module, encoder, to_tensor(pictures[picked]), [told[i] for i in picked], Random(step))  # type: ignore[arg-type]

    return work.training("tower", loss).run(progress)


def train_reader(work: Work, progress: Progress) -> dict[str, Tensor]:
    """The reader, from drawings of its own."""

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        return reading(module, work.batches["reader"], step, READER_SEED, generator)  # type: ignore[arg-type]

    return work.training("reader", loss).run(progress)


def train_unet(work: Work, progress: Progress) -> dict[str, Tensor]:
    """The denoiser behind the frozen pocket encoder."""
    latents, told, encoder = torch.from_numpy(encoded(work, progress).astype(np.float32)), work.scenes(), load("clean")
    twos = [i for i, one in enumerate(told) if len(one.things) > 1]

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        picked, random = _picked(work, "unet", generator), Random(step)
        picked = [twos[i % len(twos)] if random.random() < TWO_SHARE else i for i in picked]
        captions = [caption(told[i], random) for i in picked]
        return denoising(module, encoder, latents[picked], captions, step, generator)

    return work.training("unet", loss).run(progress)


def _picked(work: Work, stage: str, generator: torch.Generator) -> list[int]:
    return [int(i) for i in torch.randint(work.pictures, (work.batches[stage],), generator=generator)]


def export(work: Work, progress: Progress) -> None:
    """Write the averaged weights of all parts."""
    trainings = {"vae": train_decoder, "unet": train_unet, "tower": train_tower, "reader": train_reader}
    for done, (part, train) in enumerate(trainings.items()):
        progress("export", done, len(trainings), {})
        plan = work.plans[part]
        if work.begin is not None and part != "unet":
            name = f"{part}.safetensors"
            write_atomic(work.out / "weights" / name, (work.begin / name).read_bytes())
            continue
        about = {
            "made_by": "amdet_core.pocket.painter.recipe",
            "pictures": str(work.pictures),
            "steps": str(plan.steps),
            "batch": str(work.batches[part]),
            "rate": f"{plan.rate:g}",
            "seed": str(SEED),
        }
        save(part, train(work, progress), work.out / "weights", about)
    progress("export", len(trainings), len(trainings), {})


# ------------------------------------------------------------------ command


@dataclass
class Lines:
    """Progress as lines on stderr: a stage, its step, its numbers, and the minutes that are left."""

    stage: str = ""
    begun: tuple[float, int] = (0.0, 0)
    said: float = 0.0

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float] = {}, /) -> None:
        """A line every now and then, and at the end of a stage."""
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.begun, self.said = stage, (now, done - 1), now
        if now - self.said < SAID_SECONDS and done < total:
            return
        self.said = now
        began, first = self.begun
        left = (now - began) / (done - first) * (total - done) / 60
        numbers = "".join(f"  {name} {value:.4g}" for name, value in metrics.items())
        sys.stderr.write(f"{stage} {done}/{total}{numbers}  {left:.1f} min left\n")


def main() -> None:
    """Make the four files of weights."""
    parser = argparse.ArgumentParser(description="Make the weights of the pocket's painter.")
    parser.add_argument("--out", type=Path, required=True, help="working folder; a killed run goes on from it")
    parser.add_argument("--pictures", type=int, default=48_000, help="drawn")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    parser.add_argument("--begin", type=Path, help="folder of weights from which the UNet goes on")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="do these alone")
    for part, plan in PLANS.items():
        parser.add_argument(f"--{part}-steps", type=int, default=plan.steps, help="over all runs")
        parser.add_argument(f"--{part}-batch", type=int, default=BATCHES[part], help="pictures in a step")
    given = vars(parser.parse_args())
    torch.set_num_threads(given["threads"])
    torch.set_flush_denormal(True)  # averages of weights that stay near zero are slow otherwise
    work = Work(
        given["out"],
        given["pictures"],
        {part: given[f"{part}_batch"] for part in PLANS},
        {part: replace(plan, steps=given[f"{part}_steps"]) for part, plan in PLANS.items()},
        given["begin"],
    )
    make(work, tuple(given["stages"]), Lines())


if __name__ == "__main__":
    main()
