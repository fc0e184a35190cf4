"""Files of ``torch.save`` (.pt, .ckpt, .bin): read by torch's restricted loader, which runs no code, or not at all."""

from __future__ import annotations

import re
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError  # only the error's name: torch's restricted loader raises it

import torch
from torch import Tensor

from ..errors import EncoderError
from .files import reading, sniff

MALFORMED = (
    *(UnpicklingError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError),
    *(AssertionError, ArithmeticError, MemoryError, struct.error, zipfile.BadZipFile),
)
"""What torch raises on a file that is damaged or wants to run code."""
DEEPEST = 8
"""Levels of nested tables in a checkpoint; training frameworks use two or three."""


class LegacyFile:
    """The tensors of one file of ``torch.save``, nested tables flattened to dotted names.

    Zip archives are mapped, so that only the tensors that are read are loaded.

    Attributes:
        files: the file.
        shapes: name -> shape.
        dtypes: name -> torch's name of the dtype.
        bytes_read: bytes of the tensors read so far; of the whole file for the format before torch 1.6.

    Raises:
        StorageError: the file can't be read.
        EncoderError: the file is TorchScript, would run code, or is no checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.files: tuple[Path, ...] = (path,)
        self.metadata: Mapping[str, str] = {}
        mapped = sniff(path) == "zip"
        with reading(path):
            if mapped:
                _check_archive(path)
            elif tarfile.is_tarfile(path):
                raise _refused("a tar archive of an early torch version")
            self._tensors = flatten(_load(path, mapped))
            self.bytes_read = 0 if mapped else path.stat().st_size
        self._mapped = mapped
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tuple(t.shape) for name, t in self._tensors.items()}
        self.dtypes: Mapping[str, str] = {
            name: str(t.dtype).removeprefix("torch.") for name, t in self._tensors.items()
        }

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors in their own dtype, one after the other."""
        for name in names:
            tensor = self._tensors[name]
            self.bytes_read += tensor.numel() * tensor.element_size() if self._mapped else 0
            yield name, tensor


def flatten(table: object) -> dict[str, Tensor]:
    """Dense tensors of nested tables by dotted name; a table that occurs twice is taken once.

    Raises:
        EncoderError: it is nested without end, two names are equal, or a tensor is larger than its storage.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    todo: list[tuple[str, int, object]] = [("", 0, table)]
    while todo:
        name, depth, value = todo.pop()
        if isinstance(value, Tensor):
            if name in tensors:
                raise _refused(f"two tensors that are both called {name!r}")
            tensors[name] = _dense(name, value)
        elif isinstance(value, Mapping) and id(value) not in seen:
            if depth > DEEPEST:
                raise _refused(f"tables nested more than {DEEPEST} deep")
            seen.add(id(value))
            todo += [(f"{name}.{key}" if name else str(key), depth + 1, item) for key, item in value.items()]
    return tensors


def _dense(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself, unless a few bytes pretend to be a huge one."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise _refused(f"the tensor {name!r} ({tensor.layout}, {tensor.dtype}, {tensor.device})")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise _refused(f"the tensor {name!r} that is larger than its own bytes")
    return tensor.detach()


def _load(path: Path, mapped: bool) -> object:
    try:
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except MALFORMED as error:
        raise EncoderError(
            expected="a checkpoint that holds tensors only",
            found=f"{path.name}, which {_reason(error)}",
            remedy="Nothing of it was run. Ask for a safetensors file, or scan another source of this model.",
        ) from error


def _reason(error: Exception) -> str:
    """What is wrong with a file, without torch's advice to load it unsafely."""
    called = re.search(r"GLOBAL (\S+)", str(error))
    if called:
        return f"would run code: it names {called[1]}"
    detail = str(error).rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0]
    return f"is damaged or of an unknown kind ({detail[:160] or type(error).__name__})"


def _check_archive(path: Path) -> None:
    """Raise EncoderError for a zip archive that torch.save did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, LookupError, struct.error) as error:
        raise _refused(f"a damaged zip archive ({error})") from error
    if "constants.pkl" in names:
        raise EncoderError(
            expected="weights",
            found=f"{path.name}, a TorchScript program (as OpenAI published CLIP)",
            remedy="Convert it: torch.jit.load(...).state_dict() of a file that you trust, saved as safetensors.",
        )
    if "data.pkl" not in names:
        raise _refused("a zip archive without a model in it")


def _refused(found: str) -> EncoderError:
    return EncoderError(
        expected="a checkpoint of torch.save that holds tensors by name",
        found=found,
        remedy="Name a safetensors file or another checkpoint.",
    )
