"""Strict and frugal reading of safetensors: the header first, then only the tensors that are asked for.

The rules are those of the reference implementation: an 8-byte length, a JSON object of at most 100 MB,
known dtypes, and offsets that cover the rest of the file without gap or overlap.

References:
    https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import StorageError
from .files import open_raw, read_exactly, reading

HEADER_LIMIT = 100_000_000
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32}
BITS |= {"U64": 64, "I64": 64, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4}
BITS |= {"F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""The dtypes that weights of an encoder may have; the others only pass by."""
MOST_DIMENSIONS = 16
LARGEST_DIMENSION = 2**40


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: byte range behind the header, dtype code and shape."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """The header of one safetensors file, and its tensors on demand.

    Attributes:
        files: the file.
        shapes: name -> shape.
        dtypes: name -> torch's name of the dtype, or the format's where torch has none.
        metadata: what the header says besides, text by name.
        bytes_read: bytes read so far, header included.

    Raises:
        StorageError: the file can't be read or breaks the format's rules.
    """

    def __init__(self, path: Path) -> None:
        self.files: tuple[Path, ...] = (path,)
        with reading(path), open_raw(path) as file:
            size = path.stat().st_size
            if size < 8:
                raise _damaged(path, f"a file of {size} bytes")
            length = int.from_bytes(read_exactly(file, 8), "little")
            if length > HEADER_LIMIT or length > size - 8:
                raise _damaged(path, f"a header of {length:,} bytes in a file of {size:,}")
            header = bytes(read_exactly(file, length))
        self._start = 8 + length
        self._entries, self.metadata = parse_header(header, size - self._start, path)
        self.shapes: Mapping[str, tuple[int, ...]] = {name: entry.shape for name, entry in self._entries.items()}
        self.dtypes: Mapping[str, str] = {name: _dtype_name(entry.dtype) for name, entry in self._entries.items()}
        self.bytes_read = self._start

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors in their own dtype, one after the other in the order of the file."""
        (path,) = self.files
        wanted = sorted(names, key=lambda name: self._entries[name].begin)
        with reading(path), open_raw(path) as file:
            for name in wanted:
                entry = self._entries[name]
                file.seek(self._start + entry.begin)
                data = read_exactly(file, entry.end - entry.begin)
                self.bytes_read += len(data)
                flat = torch.frombuffer(data, dtype=TORCH[entry.dtype]) if data else torch.empty(0)
                yield name, flat.to(TORCH[entry.dtype]).reshape(entry.shape)


def parse_header(header: bytes, data_size: int, path: Path) -> tuple[dict[str, Entry], Mapping[str, str]]:
    """Entries and metadata of a header that describes ``data_size`` bytes behind it.

    Raises:
        StorageError: the header breaks a rule of the format; the message says which.
    """
    try:
        table = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"a header that is no valid JSON ({str(error)[:80]})") from error
    if not isinstance(table, dict):
        raise _damaged(path, "a header that is no JSON object")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "metadata that is not text by name")
    entries = {name: _entry(name, value, path) for name, value in table.items()}
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            raise _damaged(path, f"{name!r} at byte {entry.begin:,} where byte {at:,} is next (a gap or an overlap)")
        at = entry.end
    if at != data_size:
        raise _damaged(path, f"tensors of {at:,} bytes and {data_size:,} bytes behind the header (a truncated file?)")
    return entries, metadata


def _entry(name: str, value: object, path: Path) -> Entry:
    """One tensor of the header, checked."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"an entry {name[:80]!r} that is not dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _damaged(path, f"{name[:80]!r} of the unknown dtype {str(dtype)[:20]!r}")
    if not _counts(shape) or len(shape) > MOST_DIMENSIONS or any(side > LARGEST_DIMENSION for side in shape):
        raise _damaged(path, f"{name[:80]!r} with the shape {str(shape)[:80]}")
    if not _counts(offsets) or len(offsets) != 2:
        raise _damaged(path, f"{name[:80]!r} with the offsets {str(offsets)[:80]}")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * BITS[dtype]:
        raise _damaged(path, f"{name[:80]!r}: {dtype} {shape} in {end - begin:,} bytes")
    return Entry(dtype, tuple(shape), begin, end)


def _counts(value: object) -> bool:
    """Whether a JSON value is a list of whole numbers from 0 up (JSON's true is no number)."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build an object, refusing a key that occurs twice: readers disagree about which one counts."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key occurs twice")
    return table


def _dtype_name(code: str) -> str:
    return str(TORCH[code]).removeprefix("torch.") if code in TORCH else code.lower()


def _damaged(path: Path, found: str) -> StorageError:
    return StorageError(
        expected="a valid safetensors file",
        found=f"{found} in {path.name}",
        remedy="The file is damaged or incomplete; download it again.",
    )
