"""Open a file or folder and find every CLIP text encoder in it, whatever its layout, name or extension.

Only headers and the encoders' own tensors are read. What can't be scanned is named; what the file does
not say and had to be assumed is written down. Nothing is filled in silently.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..encoder import TextEncoder, expected_shapes
from ..errors import AmdetError, ConfigError, EncoderError, NoEncoderError
from ..storage import check_named
from ..tokenizer import ClipTokenizer, clip_tokenizer
from .files import read_json, sha256
from .folders import components, config_file, other_weights, pipeline_file, weight_file
from .layouts import LONG_CLIP_KEPT, POSITION_REST, Location, locate, merge_positions, pieces
from .parts import CONSTANTS, OTHER_ENCODER, QUANTISED, SCALES, describe, describe_unknown, sort_out
from .source import CONVERT, Source, open_source
from .spec import NAMES, Config, deduce, text_config

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
SIGLIP = "a SigLIP text tower: its tokenizer is not supported yet"


TRIGGER_PHRASE = "modelspec.trigger_phrase"
"""Key of the metadata under which files name what they were taught (Stability AI, ModelSpec 1.0)."""


@dataclass(frozen=True, eq=False)
class FoundEncoder:
    """One text encoder of a target.

    Attributes:
        name: clip_l, clip_g, clip_h or text_encoder; a number follows where a target holds two of a name.
        encoder: float32 weights on the CPU.
        dtype: of its tensors in the file, several joined by ``+``.
        layout: hf, open_clip, comfyui, sd1, sd2, sdxl or sd3; graph for one that was no file.
        assumptions: what the file does not say.
        used_layers: layers that count, from the first; all where None. Clip skip leaves out the last ones.
        declared: phrases that the file says it was taught, as makers of concepts write them into the metadata.
    """

    name: str
    encoder: TextEncoder
    dtype: str
    layout: str
    assumptions: tuple[str, ...]
    used_layers: int | None = None
    declared: tuple[str, ...] = ()

    @property
    def added_tokens(self) -> int:
        """Rows of the token table that no prompt reaches: the tokenizer can't produce their ids."""
        return max(0, self.encoder.spec.vocabulary - len(self.encoder.tokenizer))

    def reachable(self, encoder: TextEncoder | None = None) -> TextEncoder:
        """This encoder without added token rows, or as much of another one: as many layers and token rows.

        Raises:
            EncoderError: the other one has fewer.
        """
        spec = self.encoder.spec
        return (encoder or self.encoder).first_layers(spec.layers).first_tokens(spec.vocabulary - self.added_tokens)

    def in_use(self, encoder: TextEncoder | None = None) -> TextEncoder:
        """What is reachable of this encoder, or as much of another one, without the layers that do not count."""
        return self.reachable(encoder).first_layers(self.used_layers or self.encoder.spec.layers)


@dataclass(frozen=True, eq=False)
class OpenedTarget:
    """A file or folder with everything in it that can be scanned, or what a host has loaded.

    Attributes:
        path: as it was given; a description where there was no file.
        files: the files that were read; none for what a host has loaded.
        encoders: at least one.
        not_scanned: text encoders and unknown tensors that this library does not support, other weight
            files of the folder. Image models, VAEs and image towers take no part in reading prompts and
            are left out.
        bytes_read: of headers, indices and tensors.
    """

    path: Path
    files: tuple[Path, ...]
    encoders: tuple[FoundEncoder, ...]
    not_scanned: tuple[str, ...]
    bytes_read: int


@dataclass(frozen=True, eq=False)
class _Contents:
    """What one source holds: its encoders, and lines about the rest.

    Attributes:
        encoders: those that can be scanned.
        named: lines about what takes part in reading prompts and can't be scanned.
        other: lines about everything else.
        remedy: what to do where there is no encoder.
    """

    encoders: tuple[FoundEncoder, ...]
    named: tuple[str, ...]
    other: tuple[str, ...]
    remedy: str


def open_target(path: Path | str, *, tokenizer: ClipTokenizer | None = None) -> OpenedTarget:
    """Find and read every CLIP text encoder in a file or folder.

    A config.json counts where the path is its folder; a single file speaks for itself.

    Args:
        path: a weight file, an index of shards, or a transformers or diffusers folder.
        tokenizer: of all encoders; CLIP's own where None.

    Raises:
        EncoderError: there is no CLIP text encoder, it is incomplete, quantised or contradicts its
            config, or the file would run code.
        NumericalError: weights are NaN or infinite.
        StorageError: something can't be read, is truncated or breaks its format's rules.
        ConfigError: the path is empty.
    """
    check_named(str(path))
    path, tokenizer = Path(path), tokenizer or clip_tokenizer()
    pipeline = pipeline_file(path)
    files = [pipeline] if pipeline else []
    contents: dict[str, _Contents] = {}
    bytes_read = 0
    for label, place in components(path).items():
        with _within(label):
            source, config = open_source(weight_file(place)), config_file(place)
            contents[label] = _read(source, text_config(read_json(config)) if config else {}, tokenizer)
        files += [*source.files, *([config] if config else [])]
        bytes_read += source.bytes_read
    encoders = [found for part in contents.values() for found in part.encoders]
    named = [f"{label}: {line}" if label else line for label, part in contents.items() for line in part.named]
    if not encoders:
        other = [line for part in contents.values() for line in part.other]
        remedy = next(iter(contents.values())).remedy
        silent = other and not named and not any(SCALES.what in line for line in other)
        kind = NoEncoderError if silent else EncoderError
        raise kind("a CLIP text encoder", "; ".join(named + other) or "a file without tensors", remedy)
    named += other_weights(path, files)
    return OpenedTarget(path, tuple(files), _distinct(encoders), tuple(named), bytes_read)


def only_encoder(target: OpenedTarget) -> TextEncoder:
    """The encoder of a target that holds one.

    Raises:
        EncoderError: it holds several.
    """
    if len(target.encoders) == 1:
        return target.encoders[0].encoder
    names = ", ".join(found.name for found in target.encoders)
    raise EncoderError("one text encoder", f"{names} in {target.path}", "Name the file or folder of one of them.")


def file_sha256(target: OpenedTarget) -> str:
    """SHA-256 of a target's file.

    For a folder, of the sorted lines ``<sha256>  <relative path>`` of the files that were read.

    Raises:
        ConfigError: it was no file.
    """
    if not target.files:
        raise ConfigError("a target that was read from disk", str(target.path), "Hash its values instead.")
    if target.files == (target.path,):
        return sha256(target.path)
    root = target.path if target.path.is_dir() else target.path.parent
    lines = sorted(f"{sha256(file)}  {file.relative_to(root).as_posix()}\n" for file in target.files)
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


@contextmanager
def _within(label: str) -> Iterator[None]:
    """Name the component of a folder in the errors about it."""
    try:
        yield
    except AmdetError as error:
        if not label:
            raise
        raise type(error)(error.expected, f"{error.found} (in {label})", error.remedy) from error


def _read(source: Source, config: Config, tokenizer: ClipTokenizer) -> _Contents:
    """Every encoder of one source, and lines about the rest of it."""
    locations = locate(source.shapes)
    claimed = {key for location in locations for key in location.keys}
    rest = source.shapes.keys() - claimed
    known, unknown = sort_out(rest)
    foreign = rest - set(known.get(CONSTANTS, ()))
    found = []
    for location in locations:
        if not location.siglip:
            _own_tensors_only(location, known.get(SCALES, []), unknown, foreign)
            found.append(_encoder(source, location, config, tokenizer))
    lines = [(part.named, describe(part, keys)) for part, keys in known.items()]
    lines += [(True, f"{SIGLIP} ({location.prefix or 'whole file'})") for location in locations if location.siglip]
    lines += [(True, describe_unknown(unknown))] if unknown else []
    remedies = [OTHER_ENCODER for location in locations if location.siglip]
    remedies += [part.remedy for part in sorted(known, key=lambda part: not part.named)]
    return _Contents(
        tuple(found),
        tuple(line for named, line in lines if named),
        tuple(line for named, line in lines if not named),
        next(iter(remedies), CONVERT),
    )


def _own_tensors_only(location: Location, scales: list[str], unknown: list[str], foreign: Set[str]) -> None:
    """Raise EncoderError where an encoder's subtree holds tensors that no CLIP text encoder has."""
    scales = [key for key in scales if key.startswith(location.root)]
    if scales:
        raise EncoderError("weights as numbers", f"quantised weights with scales of their own ({scales[0]})", QUANTISED)
    inside = {key for key in unknown if key.startswith(location.root)}
    inside |= {key for key in foreign if key.startswith(location.stems)}
    if inside:
        raise EncoderError(
            expected="only tensors of a CLIP text encoder beside its token table",
            found=f"{len(inside)} unexpected {sorted(inside)[:5]}",
            remedy="It is another architecture, or was changed; ask its author for a plain CLIP text encoder.",
        )


def _encoder(source: Source, location: Location, config: Config, tokenizer: ClipTokenizer) -> FoundEncoder:
    """Check an encoder by the shapes in the header alone, then read it."""
    dtypes = sorted({source.dtypes[key] for key in location.keys})
    if not set(dtypes) <= set(FLOATS):
        raise EncoderError(f"weights in one of {', '.join(FLOATS)}", f"{' and '.join(dtypes)}", QUANTISED)
    outline = _canonical(location, ((key, torch.empty(source.shapes[key], device="meta")) for key in location.keys))
    spec, assumptions = deduce(
        {name: tuple(w.shape) for name, w in outline.items()},
        tokenizer,
        slot=location.slot,
        fused=location.style == "open_clip",
        config=config,
    )
    TextEncoder(spec, outline, tokenizer)
    weights = _canonical(location, source.read(location.keys))
    encoder = TextEncoder(spec, {name: weights[name] for name in expected_shapes(spec)}, tokenizer)
    encoder.check_finite()
    if any(name == POSITION_REST for name in location.keys.values()):
        assumptions += (f"LongCLIP: the first {LONG_CLIP_KEPT} position rows from one table, the rest from the other",)
    name = location.slot or NAMES.get(spec.width, "text_encoder")
    return FoundEncoder(
        name, encoder, "+".join(dtypes), location.layout, assumptions, declared=_declared(source.metadata)
    )


def _declared(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Taught phrases by the metadata of a file; several are separated by commas."""
    phrases = (part.strip() for part in metadata.get(TRIGGER_PHRASE, "").split(","))
    return tuple(dict.fromkeys(filter(None, phrases)))


def _canonical(location: Location, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Canonical float32 copies of an encoder's tensors, converted one by one."""
    weights = {
        name: view.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for key, tensor in tensors
        for name, view in pieces(location.keys[key], tensor)
    }
    return merge_positions(weights)


def _distinct(encoders: list[FoundEncoder]) -> tuple[FoundEncoder, ...]:
    """The encoders with a number behind every name that occurred before."""
    seen: Counter[str] = Counter()
    out = []
    for found in encoders:
        seen[found.name] += 1
        count = seen[found.name]
        out.append(found if count == 1 else replace(found, name=f"{found.name}_{count}"))
    return tuple(out)
