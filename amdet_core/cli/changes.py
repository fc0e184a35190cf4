"""What commands that change encoders share: options, settings, and how the result is written."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from enum import Enum
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from .common import Layout

if TYPE_CHECKING:
    from ..encoder import TextEncoder
    from ..formats import FoundEncoder
    from ..patch import Patch


class LoraLayout(str, Enum):
    """Key layouts of LoRA files."""

    kohya = "kohya"
    peft = "peft"


HF_FILES = ("model.safetensors", "config.json")
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")
"""In the folders that are written."""
EncoderPath = Annotated[Path, typer.Argument(help="file or folder with the encoder; it stays as it is")]
Out = Annotated[Path, typer.Option(help="file (.safetensors) or folder to write")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="any other setting as NAME=VALUE; see docs/configuration.md")
]
Prompts = Annotated[Path | None, typer.Option(help="prompts to train on, one per line [default: built in]")]
FileLayout = Annotated[Layout | None, typer.Option(help="file layout [default: hf for a folder, comfyui for a file]")]
LoraFile = Annotated[Path | None, typer.Option(help="write the change as a LoRA too, to this file (peft: folder)")]
LoraForm = Annotated[LoraLayout, typer.Option("--lora-layout", help="of that LoRA")]


def setting_values(settings: list[str] | None, seed: int | None, **given: object) -> dict[str, Any]:
    """Settings by name, of which those that were given win over defaults; values as JSON, else as text."""
    given = {"seed": seed, **given}
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for setting in settings or []:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError("NAME=VALUE", repr(setting), "See docs/configuration.md for the names.")
        try:
            values[name.strip()] = json.loads(text)
        except ValueError:
            values[name.strip()] = text.strip()
    return values


@dataclass(frozen=True)
class Output:
    """What is written: the changed encoder, and the change itself where a path is given for it.

    Attributes:
        rank: of the change as a LoRA; None where it has no low one.
        delta: file for the differences alone.
        encoder: name of the one of several encoders that is written; empty where there is one.
    """

    path: Path
    layout: Layout | None
    lora: Path | None = None
    lora_layout: LoraLayout = LoraLayout.kohya
    rank: int | None = None
    delta: Path | None = None
    encoder: str = ""

    def of(self, encoder: str) -> Output:
        """The same for one of several encoders, whose name is added to every path."""
        lora, delta = (None if path is None else named(path, encoder) for path in (self.lora, self.delta))
        return replace(self, path=named(self.path, encoder), lora=lora, delta=delta, encoder=encoder)

    def at(self, path: Path) -> Output:
        """The same with the encoder written elsewhere."""
        return replace(self, path=path)

    def check(self, original: Path) -> None:
        """Fail now rather than after a long training; nothing is written to where the original is, or twice."""
        from ..storage import check_file

        if self.lora is not None and self.rank is None:
            raise ConfigError("--weights lora with --lora", "another choice of weights", "Add --weights lora.")
        files = self._files
        for file in files:
            if _touches(file, original):
                raise ConfigError(f"another place than the original's ({original})", str(file), "It stays as it is.")
            check_file(file)
        # None is another one, nor is a file the folder of another one.
        for one, other in (*permutations(self._places, 2), *permutations(files, 2)):
            there = other.resolve()
            if one.resolve() == there or (one in files and one.resolve() in there.parents):
                raise ConfigError("different places for --out, --delta and --lora", f"{one} and {other}", "Rename one.")

    @property
    def form(self) -> Layout:
        """The layout that is asked for, or that of a file or folder of this name."""
        return self.layout or (Layout.comfyui if self.path.suffix == ".safetensors" else Layout.hf)

    def check_encoder(self, found: TextEncoder) -> None:
        """Fail now rather than after a long training: the layout must be able to say what the encoder computes."""
        from ..formats import check_expressible

        check_expressible(found, self.form.value)

    def write(self, found: FoundEncoder, patch: Patch) -> None:
        """Write everything and name it; the encoder first, as a change may be none that a LoRA can hold."""
        from .. import formats

        about = dict(patch.provenance)
        if found.declared:
            about[formats.TRIGGER_PHRASE] = ", ".join(found.declared)
        formats.write_encoder(patch.apply(found.encoder), self.path, self.form.value, metadata=about)
        sys.stdout.write(f"written: {self.path}\n")
        if self.delta is not None:
            patch.save(self.delta)
            sys.stdout.write(f"written: {self.delta}\n")
        if self.lora is not None and self.rank is not None:
            several = bool(self.encoder)
            formats.write_lora(
                patch,
                self.lora,
                self.lora_layout.value,
                rank=self.rank,
                encoder=found.name,
                of_several=several,
                projected=found.encoder.spec.projection is not None,
            )
            sys.stdout.write(f"written: {self.lora}\n")

    @property
    def _places(self) -> list[Path]:
        """What was named."""
        return [path for path in (self.path, self.lora, self.delta) if path is not None]

    @property
    def _files(self) -> list[Path]:
        """Every file that is written."""
        files = [self.path / name for name in HF_FILES] if self.form is Layout.hf else [self.path]
        if self.lora is not None:
            peft = self.lora_layout is LoraLayout.peft
            files += [self.lora / name for name in PEFT_FILES] if peft else [self.lora]
        return files if self.delta is None else [*files, self.delta]


def _touches(place: Path, original: Path) -> bool:
    """Whether writing a file changes the original, or what its folder is read from."""
    written, there = place.resolve(), original.resolve()
    if written == there or written.parent == there or (place.exists() and there in written.parents):
        return True
    return place.exists() and original.exists() and place.samefile(original)


def named(path: Path, encoder: str) -> Path:
    """A path with the name of one of several encoders in it."""
    return path.with_name(f"{path.stem}-{encoder}{path.suffix}")
