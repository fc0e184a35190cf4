"""Where ComfyUI keeps files, and what the nodes write there."""

from __future__ import annotations

import glob
import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths

if TYPE_CHECKING:
    from ..amdet_core.encoder import TextEncoder
    from ..amdet_core.patch import Patch

EMBEDDINGS = "embeddings"
OWN_FOLDER = "amdet"
WEIGHT_FILES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")


def register_folders() -> None:
    """Let ``embedding:amdet/NAME`` find what Save Pseudo-Trigger writes; call it before any CLIP is loaded."""
    folder_paths.add_model_folder_path(EMBEDDINGS, str(output_folder() / EMBEDDINGS))


def output_folder() -> Path:
    """Where the host lets nodes write."""
    return Path(folder_paths.get_output_directory())


def trust_store() -> Path:
    """File with the encoders that this ComfyUI's user trusts."""
    return Path(folder_paths.get_user_directory(), "default", OWN_FOLDER, "trust.json")


def embedding_folders() -> list[str]:
    """Where a CLIP looks for ``embedding:`` files."""
    return list(folder_paths.get_folder_paths(EMBEDDINGS))


def new_place(prefix: str, below: str = "") -> Path:
    """A path in the output directory with which no name there begins yet: PREFIX_00001 and on.

    Call it before long work too: what is wrong with a prefix is told then.

    Args:
        below: folder of the output directory.

    Raises:
        ConfigError: the prefix is no name of a file, or leads out of the output directory.
    """
    from ..amdet_core.errors import ConfigError

    root = output_folder() / below
    try:
        if re.search(r'[<>:"|?*\x00-\x1f]', prefix) or not Path(prefix).name or prefix.endswith(("/", "\\", "..")):
            raise ValueError("it is no name of a file")
        if root.resolve() not in (root / prefix).resolve().parents:
            raise ValueError(f"it leads out of {root}")
        parent, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
        places = (Path(parent, f"{name}_{number:05}") for number in itertools.count(counter))
        return next(place for place in places if not any(place.parent.glob(f"{glob.escape(place.name)}*")))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the first part of a name in ComfyUI's output{f'/{below}' if below else ''}, as my-model or tests/one",
            f"{prefix!r}: {error}",
            "Choose another name.",
        ) from error


def model_files(*kinds: str) -> list[str]:
    """Files of the models folders as ``KIND/NAME``."""
    return [f"{kind}/{name}" for kind in kinds for name in folder_paths.get_filename_list(kind)]


def model_path(file: str) -> Path:
    """Path of ``KIND/NAME``; raises FileNotFoundError."""
    kind, _, name = file.partition("/")
    return Path(folder_paths.get_full_path_or_raise(kind, name))


def text_encoders() -> list[Path]:
    """Files of text encoders that are there; a link to nowhere is listed by the host, and is none."""
    names = (name for name in folder_paths.get_filename_list("text_encoders") if name.lower().endswith(WEIGHT_FILES))
    paths = (folder_paths.get_full_path("text_encoders", name) for name in names)
    return [Path(path) for path in paths if path is not None]


def is_plain(name: str) -> bool:
    """Whether a name stays in the folder that it is put into."""
    return Path(name).name == name != ".." and "\\" not in name


def own_models(name: str) -> Path:
    """A folder of this pack's own in the models folder."""
    return Path(folder_paths.models_dir, OWN_FOLDER, name)


def stamp(path: Path) -> str:
    """Changes whenever the file is replaced; raises OSError."""
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def folder_state(folder: Path) -> str:
    """Changes whenever a file of the folder is replaced."""
    return " ".join(f"{path.name} {stamp(path)}" for path in sorted(folder.glob("*")))


def file_state(file: str | None) -> str | float:
    """Changes whenever the file is replaced; always, where it comes over a wire and the host does not tell which."""
    if file is None:
        return math.nan
    try:
        return stamp(model_path(file))
    except OSError:
        return "missing"


def save_embedding(name: str, data: bytes) -> str:
    """Write an embedding under a name that no other has, and return what to write into a prompt for it.

    Raises:
        ConfigError: the name could not be used in a prompt.
        StorageError: the output directory can't be written to.
    """
    from ..amdet_core.errors import ConfigError
    from ..amdet_core.storage import write_atomic

    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ConfigError("a name of up to 64 letters, digits, - and _", repr(name), "Choose another name.")
    folder = output_folder() / EMBEDDINGS / OWN_FOLDER
    for number in itertools.count(1):
        path = folder / f"{name if number == 1 else f'{name}-{number}'}.safetensors"
        if not path.exists():
            write_atomic(path, data)
        elif path.read_bytes() != data:
            continue
        return f"embedding:{OWN_FOLDER}/{path.stem}"
    raise AssertionError("numbers do not end")


def save_encoders(prefix: str, encoders: Mapping[str, tuple[TextEncoder, Mapping[str, str]]]) -> list[Path]:
    """Write encoders with their metadata into output/clip, where CLIPLoader finds them.

    Raises:
        AmdetError: an encoder can't be written.
    """
    from ..amdet_core.formats import write_encoder

    place, paths = new_place(prefix, "clip"), list[Path]()
    for slot, (encoder, metadata) in encoders.items():
        paths.append(place.with_name(f"{place.name}_{slot}.safetensors"))
        write_encoder(encoder, paths[-1], "comfyui", metadata=metadata)
    return paths


def save_loras(prefix: str, patches: Mapping[str, Patch], rank: int) -> list[Path]:
    """Write changes of encoders as LoRAs into output/loras, where Load LoRA finds them.

    Args:
        patches: of all CLIP text encoders of one CLIP, by name.

    Raises:
        AmdetError: a change is no LoRA, or can't be written.
    """
    from ..amdet_core.formats import write_lora

    several = len(patches) > 1  # a single encoder is the loader's first one, whatever its name
    place, paths = new_place(prefix, "loras"), list[Path]()
    for slot, patch in patches.items():
        paths.append(place.with_name(f"{place.name}_{slot}.safetensors"))
        encoder = slot if several else "text_encoder"
        write_lora(patch, paths[-1], "kohya", rank=rank, encoder=encoder, of_several=several)
    return paths
