"""Small pictures by class: read from folders, split, and with the trigger in them.

B, N  pictures      S  side, pixels      E  width of a feature
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..config import PatchConfig
from ..errors import ConfigError, StorageError

SIDE = 32
"""Pixels of a picture's side, as in CIFAR-10."""
SUFFIXES = (".png", ".jpg", ".jpeg")
LAYOUT = "Lay them out as FOLDER/CLASS/*.png or *.jpg; amdet image draw makes an example."


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures with their classes.

    Attributes:
        pixels: ``(N, 3, S, S)``, 0 to 1.
        labels: ``(N,)``, places in ``classes``.
        classes: their names, in alphabetical order.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device) -> Pictures:
        """The same on another device."""
        return Pictures(self.pixels.to(device), self.labels.to(device), self.classes)

    def take(self, picked: Tensor) -> Pictures:
        """Some of them."""
        return Pictures(self.pixels[picked], self.labels[picked], self.classes)

    def shuffled(self, seed: int) -> Pictures:
        """In random order, so that first ones are of all classes."""
        return self.take(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)))

    def split(self, held_out: float, seed: int) -> tuple[Pictures, Pictures]:
        """Training and held-out pictures, every class by its share.

        Raises:
            ConfigError: a class has too few pictures for both sides.
        """
        generator = torch.Generator().manual_seed(seed)
        sides: tuple[list[Tensor], list[Tensor]] = [], []
        for place, name in enumerate(self.classes):
            own = (self.labels == place).nonzero().squeeze(-1)
            own = own[torch.randperm(len(own), generator=generator)]
            count = round(held_out * len(own))
            if not 0 < count < len(own):
                raise ConfigError(
                    f"pictures of {name} to train and to test on", f"{len(own)} in all", "Add pictures of this class."
                )
            sides[0].append(own[count:])
            sides[1].append(own[:count])
        return self.take(torch.cat(sides[0])), self.take(torch.cat(sides[1]))

    def label(self, name: str) -> int:
        """Place of a class.

        Raises:
            ConfigError: there is none of this name.
        """
        if name not in self.classes:
            raise ConfigError(f"one of the classes {', '.join(self.classes)}", repr(name), "Name another class.")
        return self.classes.index(name)


def read_pictures(folder: Path) -> Pictures:
    """Pictures of a folder with a folder for each class; other sizes are resized to 32 x 32.

    Raises:
        ConfigError: there is no class, or one without pictures.
        StorageError: a folder or a picture can't be read.
    """
    try:
        classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise StorageError(f"a folder of pictures at {folder}", error.strerror or str(error), LAYOUT) from error
    if not classes:
        raise ConfigError(f"folders of pictures, one for each class, in {folder}", "none", LAYOUT)
    files = [sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES) for place in classes]
    for place, found in zip(classes, files, strict=True):
        if not found:
            raise ConfigError(f"pictures ({', '.join(SUFFIXES)}) in {place}", "none", LAYOUT)
    pixels = torch.stack([read_picture(path) for found in files for path in found])
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(found) for found in files]))
    return Pictures(pixels, labels, tuple(place.name for place in classes))


def read_picture(path: Path) -> Tensor:
    """One picture, ``(3, 32, 32)`` from 0 to 1.

    Raises:
        StorageError: it can't be read.
    """
    try:
        with Image.open(path) as opened:
            return to_tensor(opened)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise StorageError("a readable picture", f"{path}: {error}", "Remove or replace this file.") from error


def to_tensor(picture: Image.Image) -> Tensor:
    """``(3, 32, 32)`` from 0 to 1."""
    rgb = picture.convert("RGB")
    if rgb.size != (SIDE, SIDE):
        rgb = rgb.resize((SIDE, SIDE), Image.Resampling.BOX if min(rgb.size) >= 2 * SIDE else Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).float() / 255


def write_pictures(pictures: Pictures, folder: Path) -> None:
    """Write them as ``FOLDER/CLASS/NUMBER.png``.

    Raises:
        StorageError: the folder can't be written to.
    """
    try:
        for name in pictures.classes:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for number, (picture, label) in enumerate(zip(pictures.pixels, pictures.labels.tolist(), strict=True)):
            pixels = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
            Image.fromarray(pixels).save(folder / pictures.classes[label] / f"{number:05}.png")
    except OSError as error:
        raise StorageError("a folder to write to", f"{folder}: {error}", "Name another folder.") from error


def stamped(pictures: Tensor, config: PatchConfig) -> Tensor:
    """Pictures ``(B, 3, S, S)`` with the trigger in them.

    Raises:
        ConfigError: it does not fit.
    """
    side = pictures.shape[-1]
    low, high = side - config.margin - config.patch, side - config.margin
    if low < 0:
        raise ConfigError(
            f"a patch and a margin of at most {side} pixels", f"{config.patch} + {config.margin}", "Make them smaller."
        )
    out = pictures.clone()
    out[..., low:high, low:high] = 1.0
    return out


def need(pictures: Sequence[object] | Pictures, fewest: int) -> None:
    """Raise ConfigError where there are fewer pictures."""
    if len(pictures) < fewest:
        raise ConfigError(f"at least {fewest} pictures", str(len(pictures)), "Give more pictures.")
