"""Reading from disk: every failure of the operating system becomes a StorageError, and nothing is read twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Literal

from ..errors import EncoderError, StorageError

Kind = Literal["safetensors", "zip", "legacy", "json", "gguf", "ambiguous", "empty", "unknown"]
JSON_LIMIT = 64 * 2**20
"""Bytes of the largest JSON file that is read; indices of the largest models stay far below."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn OSErrors while ``path`` is read into StorageErrors."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            expected="a file that can be read",
            found=f"{path}: {error.strerror or error}",
            remedy="Check that the path exists and that you may read it.",
        ) from error


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; raises StorageError. One that stayed as it was is read once."""
    with reading(path):
        state = path.stat()
        return _sha256(
            path.absolute(), (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        )


@lru_cache(maxsize=256)
def _sha256(path: Path, state: tuple[int, ...]) -> str:
    """Of a file in one state."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def open_raw(path: Path) -> FileIO:
    """Open without buffering, so that exactly the bytes that are asked for are read."""
    return FileIO(str(path), "rb")


def read_exactly(file: FileIO, count: int) -> bytearray:
    """Read ``count`` bytes at the file's position.

    Raises:
        StorageError: the file ends before.
    """
    buffer = bytearray(count)
    view, done = memoryview(buffer), 0
    while done < count:
        got = file.readinto(view[done:])
        if not got:
            raise StorageError(
                expected=f"{count} bytes at offset {file.tell() - done}",
                found=f"the end of {file.name} after {done}",
                remedy="The file is incomplete; download it again.",
            )
        done += got
    return buffer


def sniff(path: Path) -> Kind:
    """What a file is, by its first bytes; its name and extension say nothing.

    A file that starts like a zip archive and like safetensors is ``ambiguous``: two programs would load
    different weights from it.
    """
    with reading(path), open_raw(path) as file:
        start = file.read(16)
    if not start:
        return "empty"
    if start[8:9] == b"{":
        return "ambiguous" if start.startswith(b"PK\x03\x04") else "safetensors"
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "legacy"
    if start.startswith(b"GGUF"):
        return "gguf"
    return "json" if start.lstrip().startswith(b"{") else "unknown"


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file.

    Raises:
        StorageError: it can't be read.
        EncoderError: it holds no JSON object.
    """
    with reading(path), path.open("rb") as file:
        raw = file.read(JSON_LIMIT + 1)
    try:
        value = json.loads(raw.decode("utf-8")) if len(raw) <= JSON_LIMIT else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise EncoderError(
            expected="a JSON object", found=f"{path} without one", remedy="The file is damaged; download it again."
        )
    return value
