"""Folders of transformers and diffusers: which file holds the weights of which text encoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Set
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from ..errors import AmdetError, EncoderError, StorageError
from ..storage import report_files
from .files import read_json, reading, sniff

STANDARD = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names that transformers looks for, in its order."""
CONFIGS = ("config.json", "open_clip_config.json")
PIPELINE = "model_index.json"
TEXT_ENCODER = re.compile(r"text_encoder(_\d+)?")
"""Names of folders with text encoders."""
INDEX = "*.index*.json"
SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+$")
"""Names of the files of which a model is split."""
WEIGHTS = ("safetensors", "zip", "legacy")
LOADABLE = (*WEIGHTS, "gguf", "ambiguous")
"""What programs load as weights, this one or others, by the first bytes of a file."""
SUFFIXES = (".safetensors", ".sft", ".ckpt", ".gguf")
"""Names of files that are weights whatever their bytes: of downloads that failed, too."""


def components(path: Path) -> dict[str, Path]:
    """The places of text encoders by component name; the path itself under an empty name.

    Raises:
        StorageError: a pipeline names a text encoder whose folder is not there.
    """
    if not path.is_dir():
        return {"": path}
    with reading(path):
        names = _text_encoders(path)
    pipeline = pipeline_file(path)
    if pipeline is not None:
        listed = read_json(pipeline).items()
        names |= {name for name, value in listed if TEXT_ENCODER.fullmatch(name) and value not in (None, [None, None])}
    missing = sorted(name for name in names if not (path / name).is_dir())
    if missing:
        raise StorageError(
            expected=f"the folders that {PIPELINE} names",
            found=f"no {', no '.join(missing)}",
            remedy="The download is incomplete; download the rest.",
        )
    return {name: path / name for name in sorted(names)} or {"": path}


def pipeline_file(path: Path) -> Path | None:
    """The file that lists the components of a diffusers folder, if it is one."""
    return path / PIPELINE if (path / PIPELINE).is_file() else None


def config_file(place: Path) -> Path | None:
    """The config of a folder; None for a single file, whose neighbours may belong to anything."""
    return next((place / name for name in CONFIGS if (place / name).is_file()), None)


def weight_file(place: Path) -> Path:
    """The file or index that holds a folder's weights: the one that transformers takes, else the only one.

    Raises:
        EncoderError: there is none, or several and no rule says which one counts.
    """
    if not place.is_dir():
        return place
    with reading(place):
        indices = sorted(place.glob(INDEX))
    standard = [place / name for name in STANDARD if (place / name).is_file()] + indices
    if standard:
        return standard[0]
    found = _weights(place)
    safe = [file for file in found if sniff(file) == "safetensors"]
    choice = safe or found
    if len(choice) == 1:
        return choice[0]
    names = ", ".join(file.name for file in choice[:8])
    raise EncoderError(
        expected="a folder with the weights of one text encoder, or a diffusers folder",
        found=f"{len(choice)} weight files in {place}" + (f": {names}" if names else ""),
        remedy="Name the file itself." if names else "Name the folder or file that holds the weights.",
    )


def is_model(path: Path) -> bool:
    """Whether a path is one model: a file, or a folder that holds one and nothing else that could be one."""
    if not path.is_dir():
        return True
    found = list(islice(models_below(path), 2))
    if not found:
        return _says(path)  # what it says is not there, and opening it tells
    return found == [path] or (len(found) == 1 and found[0].parent == path and not _folders(path))


def _says(folder: Path) -> bool:
    """Whether a folder says what it holds, by the names of transformers and diffusers."""
    with reading(folder):
        names = {child.name for child in folder.iterdir()}
    return bool(names & {PIPELINE, *CONFIGS, *STANDARD}) or bool(_text_encoders(folder))


def _text_encoders(folder: Path) -> set[str]:
    """Names of folders in a folder that hold text encoders, by the names of diffusers and transformers."""
    return {
        child.name
        for child in _folders(folder)
        if TEXT_ENCODER.fullmatch(child.name) and any((child / name).is_file() for name in (*CONFIGS, *STANDARD))
    }


def models_below(folder: Path, skipped: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """Every model in a folder and the folders below it, in the order of their names.

    A folder that says what it holds is named whole, and so is every weight file from which it is not read; of
    others every weight file. What can't be read, or is a weight file by its name alone, is named as well, for
    whoever opens it to say so. Not followed are links to folders and hidden folders; left out are the features
    that a scan saved beside its report.

    Args:
        skipped: folders to leave out.
    """
    return _below(folder, skipped, frozenset(), component=False)


def _below(folder: Path, skipped: Callable[[Path], bool], read: Set[Path], *, component: bool) -> Iterator[Path]:
    """The same, without files of which a folder above is read; a component is no model of its own."""
    try:
        whole = None if component else _whole(folder)
        loose = set(_loose(folder)) - read - (whole or set())
        children = sorted((*_folders(folder), *loose), key=lambda child: (child.name.lower(), child.name))
        named = set() if whole is None else _text_encoders(folder) | _listed(folder)
    except StorageError:
        yield folder
        return
    if whole is not None:
        yield folder
        read = read | whole
    for child in children:
        if child in loose:
            yield child
        elif not child.name.startswith(".") and not skipped(child):
            text = TEXT_ENCODER.fullmatch(child.name) is not None
            if text or child.name not in named:  # other parts of a pipeline are no text encoders
                yield from _below(child, skipped, read, component=text and child.name in named)


def files_of(path: Path) -> list[Path]:
    """The files that decide what a model is: those that it is read from, or all of a folder that can't be read."""
    if not path.is_dir():
        return [path]
    try:
        places, weights = components(path).values(), _read_from(path)
    except AmdetError:
        with reading(path):
            return sorted(file for file in path.iterdir() if file.is_file())
    about = [pipeline_file(path), *map(config_file, places)]
    return sorted(weights | {file for file in about if file is not None})


def _read_from(folder: Path) -> set[Path]:
    """The weight files from which a folder is read, indices and shards among them."""
    return {file for place in components(folder).values() for file in _with_shards(weight_file(place))}


def _whole(folder: Path) -> set[Path] | None:
    """The weight files of a folder that is one model; of one that can't be opened none; None where it is no model."""
    if not _says(folder):
        return None
    try:
        return _read_from(folder)
    except StorageError:
        return set()
    except EncoderError:  # none, or several and no rule says which one counts: they are named one by one
        return set() if pipeline_file(folder) else None


def _with_shards(file: Path) -> list[Path]:
    """A weight file, or an index with its shards."""
    if sniff(file) != "json":
        return [file]
    places = read_json(file).get("weight_map")
    names = {str(place) for place in places.values()} if isinstance(places, dict) else set()
    return [file, *(file.parent / name for name in sorted(names) if SHARD.search(name))]


def _loose(folder: Path) -> Iterator[Path]:
    """Weight files of a folder by their first bytes or their names, and indices in place of their shards."""
    with reading(folder):
        files = [child for child in folder.iterdir() if child.is_file() or child.is_symlink()]
        indices = [file for file in files if fnmatch(file.name, INDEX)]
    shards = {shard for index in indices for shard in _shards(index)}
    own = report_files(folder)
    for file in files:
        if file in indices or (file not in shards and file.name not in own and _may_hold_weights(file)):
            yield file


def _shards(index: Path) -> list[Path]:
    """The shards of an index that are there; none where it is damaged."""
    try:
        return [file for file in _with_shards(index)[1:] if file.is_file()]
    except AmdetError:
        return []


def _may_hold_weights(file: Path) -> bool:
    try:
        return file.suffix.lower() in SUFFIXES or (file.is_file() and sniff(file) in LOADABLE)
    except StorageError:
        return True


def _folders(folder: Path) -> list[Path]:
    with reading(folder):
        return [child for child in folder.iterdir() if child.is_dir() and not child.is_symlink()]


def _listed(folder: Path) -> set[str]:
    """The components that a pipeline names, text encoders or not; none where it is damaged."""
    file = pipeline_file(folder)
    try:
        return set() if file is None else {name for name, value in read_json(file).items() if isinstance(value, list)}
    except AmdetError:
        return set()


def other_weights(path: Path, used: Iterable[Path]) -> list[str]:
    """Weight files in a folder and its components that were not read, one line each."""
    if not path.is_dir():
        return []
    read = set(used)
    rest = [file for folder in {path} | {file.parent for file in read} for file in _weights(folder) if file not in read]
    return [f"{file.relative_to(path).as_posix()}: another weight file of this folder" for file in sorted(rest)]


def _weights(folder: Path) -> list[Path]:
    """Files in a folder that hold weights by their first bytes."""
    with reading(folder):
        files = sorted(file for file in folder.iterdir() if file.is_file())
    return [file for file in files if sniff(file) in WEIGHTS]
