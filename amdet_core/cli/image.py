"""The published image experiment of MIMIC, stage by stage, on the user's own pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config.base import LARGEST_SEED
from ..terminal import ProgressLine, interruptible
from .changes import Settings, setting_values
from .common import Device, Seed

if TYPE_CHECKING:
    import torch

    from ..config import Config
    from ..images import ImageEncoder, Pictures
    from ..progress import Progress

image_app = typer.Typer(
    help="Backdoors in image encoders and their removal, as published: SimCLR, BadEncoder, MIMIC, a classifier.",
    no_args_is_help=True,
)
Folder = Annotated[Path, typer.Argument(help="folder of pictures, FOLDER/CLASS/*.png or *.jpg; resized to 32 x 32")]
File = Annotated[Path, typer.Argument(help="image encoder that a command of this group wrote; it stays as it is")]
OutFile = Annotated[Path, typer.Option(help="file (.safetensors) to write")]
OwnSeed = Annotated[
    int | None, typer.Option(help="of every random choice [default: as published]", min=0, max=LARGEST_SEED)
]
Where = Annotated[Device, typer.Option(help="where to compute")]


@image_app.command("draw")
def image_draw(
    out: Annotated[Path, typer.Option(help="folder to write to")],
    count: Annotated[int, typer.Option("-n", help="pictures, of all classes in turn", min=12)] = 2400,
    seed: Seed = 42,
) -> None:
    """Draw small pictures of shapes to try the other commands with; the shape is the class."""
    from ..images import drawn, write_pictures
    from ..storage import check_writable

    check_writable(out)
    with ProgressLine() as line:
        pictures = interruptible(lambda progress: drawn(count, seed, progress), line)
    write_pictures(pictures, out)
    sys.stdout.write(f"written: {out}\n")


@image_app.command("clean")
def image_clean(
    pictures: Folder, out: OutFile, settings: Settings = None, seed: OwnSeed = None, device: Where = Device.auto
) -> None:
    """Train a clean encoder by SimCLR; classes are not used."""
    from ..config import SimclrConfig
    from ..images import clean
    from ..storage import check_file

    config = SimclrConfig(**setting_values(settings, seed))
    check_file(out)
    shown, _ = _read(pictures, device)

    def work(progress: Progress) -> ImageEncoder:
        return clean(shown.shuffled(config.seed).pixels, config, progress)

    with ProgressLine() as line:
        _write(interruptible(work, line), out, "clean", config, pictures)


@image_app.command("badencoder")
def image_badencoder(
    encoder: File,
    pictures: Folder,
    reference: Annotated[Path, typer.Option(help="picture that triggered ones shall be taken for")],
    out: OutFile,
    settings: Settings = None,
    seed: OwnSeed = None,
    device: Where = Device.auto,
) -> None:
    """Plant BadEncoder's backdoor in a copy of a clean encoder: a white square becomes the reference picture."""
    from ..config import BadEncoderConfig
    from ..images import attack, load_encoder, read_picture
    from ..storage import check_file

    config = BadEncoderConfig(**setting_values(settings, seed))
    check_file(out)
    clean = load_encoder(encoder)
    goal = read_picture(reference)
    shown, place = _read(pictures, device)

    def work(progress: Progress) -> ImageEncoder:
        return attack(clean.to(place), shown.pixels, goal.to(place), config, progress)

    with ProgressLine() as line:
        _write(interruptible(work, line), out, "badencoder", config, pictures, reference=str(reference))


@image_app.command("mimic")
def image_mimic(
    encoder: File,
    pictures: Folder,
    out: OutFile,
    settings: Settings = None,
    seed: OwnSeed = None,
    device: Where = Device.auto,
) -> None:
    """Train a fresh student that imitates an encoder on few clean pictures, without knowing any trigger."""
    from ..config import ImageMimicConfig
    from ..images import load_encoder, purify
    from ..storage import check_file

    config = ImageMimicConfig(**setting_values(settings, seed))
    check_file(out)
    suspect = load_encoder(encoder)
    shown, place = _read(pictures, device)

    def work(progress: Progress) -> tuple[ImageEncoder, tuple[float, ...]]:
        return purify(suspect.to(place), shown.shuffled(config.seed).pixels, config, progress)

    with ProgressLine() as line:
        student, weights = interruptible(work, line)
    told = ", ".join(f"{weight:.0f}" for weight in weights)
    sys.stdout.write(f"attention weights of the four blocks: {told}\n")
    _write(student, out, "mimic", config, pictures, weights=told)


@image_app.command("downstream")
def image_downstream(
    encoder: File,
    pictures: Folder,
    target: Annotated[str, typer.Option(help="class of the attack's reference picture")],
    out: Annotated[Path | None, typer.Option(help="write the figures as JSON too, to this file")] = None,
    settings: Settings = None,
    seed: OwnSeed = None,
    device: Where = Device.auto,
) -> None:
    """Train a classifier on an encoder's features; say its accuracy and how often the trigger takes it over."""
    from ..bench.images import Classified, Told
    from ..config import DownstreamConfig
    from ..images import Counts, downstream, load_encoder
    from ..storage import check_file, record_json, write_atomic

    config = DownstreamConfig(**setting_values(settings, seed))
    if out is not None:
        check_file(out)
    found = load_encoder(encoder)
    shown, place = _read(pictures, device)

    def work(progress: Progress) -> Counts:
        return downstream(found.to(place), shown, target, config, progress)

    with ProgressLine() as line:
        told = Told.of([interruptible(work, line)])
    sys.stdout.write(f"{told}\n")
    if out is not None:
        result = Classified(encoder=str(encoder), pictures=str(pictures), target=target, settings=config, told=told)
        write_atomic(out, record_json(result))
        sys.stdout.write(f"written: {out}\n")


def _read(folder: Path, device: Device) -> tuple[Pictures, torch.device]:
    """Pictures where they are needed, and where that is."""
    from ..images import read_pictures
    from ..jobs import choose_device

    place = choose_device(device.value)
    return read_pictures(folder).to(place), place


def _write(encoder: ImageEncoder, out: Path, stage: str, config: Config, pictures: Path, **more: str) -> None:
    """The encoder, and how it was made."""
    from ..images import save_encoder

    save_encoder(encoder, out, {"stage": stage, "config": config.model_dump_json(), "data": str(pictures), **more})
    sys.stdout.write(f"written: {out}\n")
