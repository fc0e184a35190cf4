"""Tensors of one file or of a set of shards, known by name and shape before any of them is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..errors import EncoderError, StorageError
from .files import read_json, sniff
from .legacy import LegacyFile
from .safetensors_file import SafetensorsFile

CONVERT = "Name a safetensors file, a torch checkpoint, or a transformers or diffusers folder."
REFUSED = {
    "empty": ("an empty file", "The download failed; download it again."),
    "gguf": ("a GGUF file, whose weights are quantised", "Scan the encoder that it was made from."),
    "ambiguous": ("a file that is a zip archive and safetensors at once", "Don't use it: programs disagree about it."),
    "unknown": ("a file that is no model", CONVERT),
    "json": ("a JSON file that is no index of shards", CONVERT),
}


class Source(Protocol):
    """Tensors by name.

    Attributes:
        files: the files that were opened.
        shapes: name -> shape.
        dtypes: name -> torch's name of the dtype.
        metadata: what the files say of themselves, text by name.
    """

    files: tuple[Path, ...]
    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]

    @property
    def bytes_read(self) -> int:
        """Bytes read so far, headers and indices included."""
        ...

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors in their own dtype, one after the other."""
        ...


class Shards:
    """Several files under one index, as transformers and diffusers save large models.

    Raises:
        StorageError: a shard is missing.
        EncoderError: the index names files outside its folder, or tensors that a shard lacks.
    """

    def __init__(self, index: Path, places: Mapping[str, object]) -> None:
        names = sorted({str(place) for place in places.values()})
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise EncoderError(
                expected="shards beside their index", found=outside[0], remedy="The index is damaged; don't use it."
            )
        missing = [name for name in names if not (index.parent / name).is_file()]
        if missing:
            raise StorageError(
                expected=f"the {len(names)} shards that {index.name} names",
                found=f"{len(missing)} missing, first {missing[0]}",
                remedy="The download is incomplete; download the rest.",
            )
        shards = {name: _open_weights(index.parent / name) for name in names}
        self._shard_of = {key: shards[str(place)] for key, place in places.items()}
        absent = [key for key, shard in self._shard_of.items() if key not in shard.shapes]
        if absent:
            raise EncoderError(
                expected=f"every tensor that {index.name} names",
                found=f"{len(absent)} missing, first {absent[0]}",
                remedy="Index and shards are of different models; download them again.",
            )
        self._shards = tuple(shards.values())
        self.files = (index, *(path for shard in self._shards for path in shard.files))
        self.shapes: Mapping[str, tuple[int, ...]] = {key: shard.shapes[key] for key, shard in self._shard_of.items()}
        self.dtypes: Mapping[str, str] = {key: shard.dtypes[key] for key, shard in self._shard_of.items()}
        self.metadata: Mapping[str, str] = {key: text for shard in self._shards for key, text in shard.metadata.items()}
        self._index_bytes = index.stat().st_size

    @property
    def bytes_read(self) -> int:
        """Bytes of the index and of what its shards read."""
        return self._index_bytes + sum(shard.bytes_read for shard in self._shards)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, shard by shard."""
        wanted = list(names)
        for shard in self._shards:
            yield from shard.read([name for name in wanted if self._shard_of[name] is shard])


def open_source(path: Path) -> Source:
    """Open a weight file or an index of shards, whatever its name.

    Raises:
        StorageError: it can't be read or breaks its format's rules.
        EncoderError: it is something else, or would run code.
    """
    if sniff(path) == "json":
        places = read_json(path).get("weight_map")
        if isinstance(places, dict) and places:
            return Shards(path, places)
    return _open_weights(path)


def _open_weights(path: Path) -> Source:
    kind = sniff(path)
    if kind == "safetensors":
        return SafetensorsFile(path)
    if kind in ("zip", "legacy"):
        return LegacyFile(path)
    found, remedy = REFUSED[kind]
    raise EncoderError("a file with the weights of a text encoder", f"{found}: {path.name}", remedy)
