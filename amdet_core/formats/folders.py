"""Folders of transformers and diffusers: which file holds the weights of which text encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import EncoderError, StorageError
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
WEIGHTS = ("safetensors", "zip", "legacy")


def components(path: Path) -> dict[str, Path]:
    """The places of text encoders by component name; the path itself under an empty name.

    Raises:
        StorageError: a pipeline names a text encoder whose folder is not there.
    """
    if not path.is_dir():
        return {"": path}
    with reading(path):
        names = {child.name for child in path.iterdir() if child.is_dir() and child.name.startswith("text_encoder")}
    pipeline = pipeline_file(path)
    if pipeline is not None:
        listed = read_json(pipeline).items()
        names |= {
            name for name, value in listed if name.startswith("text_encoder") and value not in (None, [None, None])
        }
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
        indices = sorted(place.glob("*.index*.json"))
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
    """Whether a path is one model: a file, or a folder that says what it holds or holds one weight file and nothing
    else that could hold one."""
    if not path.is_dir() or _says(path):
        return True
    return len(_weights(path)) == 1 and not any(child.is_dir() for child in path.iterdir())


def _says(folder: Path) -> bool:
    """Whether a folder says what it holds, by the names of transformers and diffusers."""
    with reading(folder):
        names = {child.name for child in folder.iterdir()}
    return bool(names & {PIPELINE, *CONFIGS, *STANDARD}) or any(name.startswith("text_encoder") for name in names)


def models_below(folder: Path, skipped: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """Every model in a folder and the folders below it, in the order of their names.

    A folder that says what it holds is named whole; of others every weight file. Links to folders are not followed.

    Args:
        skipped: folders to leave out.

    Raises:
        StorageError: a folder can't be read.
    """
    weights = set(_weights(folder))
    with reading(folder):
        children = sorted(folder.iterdir(), key=lambda child: (child.name.lower(), child.name))
    for child in children:
        if child in weights:
            yield child
        elif child.is_dir() and not child.is_symlink() and not child.name.startswith(".") and not skipped(child):
            if _says(child):
                yield child
            else:
                yield from models_below(child, skipped)


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
