"""From a report and a checkpoint to pictures: prompts as they are, and with what the scan recovered in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import __version__, formats, pocket, trust
from ..config import RenderConfig
from ..encoder import TextEncoder
from ..errors import AmdetError, ConfigError, EncoderError, StorageError
from ..features import embedding_key, read_pseudo_triggers
from ..glyphs import plain
from ..memory import OUT_OF_MEMORY
from ..progress import Progress, silent
from ..records import Record, ScanReport
from ..report.words import strongest
from ..storage import PSEUDO_TRIGGER
from .checkpoint import Checkpoint, diffusers_package, load, look_into
from .conditioning import Conditioner, Conditioning, Insertion, compel_package

FEATURE, TRIGGER = "feature", "trigger"
NORMAL, WITH_FEATURE = "normal prompt", "with the reversed feature"

Encoders = tuple[TextEncoder, ...]
"""Of a checkpoint, in the order in which its image model reads them."""
Pixels = NDArray[np.uint8]
"""``(N, H, W, 3)``."""
Pair = tuple[Conditioning, Conditioning]
"""What the image model reads of a prompt, and of the negative prompt."""


class Painted(Record):
    """How pictures were made; ``pictures.json`` beside the report."""

    tool: str
    checkpoint: str
    family: str
    prompts: tuple[str, ...]
    columns: tuple[str, ...]
    settings: RenderConfig
    size: int
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Rendering:
    """Pictures by the heading of their column, and how they were made."""

    record: Painted
    columns: Mapping[str, Pixels]


@dataclass(frozen=True, eq=False)
class Column:
    """One way to read every prompt.

    Attributes:
        heading: over its pictures.
        encoders: that read.
        inserted: name of what stands in the prompts; None: nothing.
    """

    heading: str
    encoders: Encoders
    inserted: str | None = None


@dataclass(frozen=True, eq=False)
class Read:
    """What text encoders say, column by column and prompt by prompt, and notes about who said it."""

    states: Mapping[str, Sequence[Pair]]
    notes: tuple[str, ...]


def render(
    report: ScanReport,
    folder: Path,
    checkpoint: Path,
    prompts: Sequence[str],
    config: RenderConfig | None = None,
    *,
    device: torch.device | None = None,
    encoder: Path | None = None,
    repaired: Sequence[Path] = (),
    progress: Progress = silent,
) -> Rendering:
    """Paint every prompt as it is, with the reversed feature, with the literal trigger, and after repair.

    Pictures of one row have the same noise. The negative prompt is read by the anchor where the report names one that
    is still there, so that nothing but the prompt differs.

    Args:
        report: of the suspect encoders.
        folder: where the report's files are.
        checkpoint: a single file or a diffusers folder; where its own text encoders are not those of the report, the
            scanned ones take their place.
        prompts: one or more, taken in turn.
        device: to paint on; the CPU where None. Text encoders stay on the CPU.
        encoder: where the scanned encoders are now; where the report says where None.
        repaired: files or folders with the repaired encoders.

    Raises:
        ConfigError: no prompts, nothing was recovered, a prompt is too long, a package is missing, or there is no room.
        EncoderError: the checkpoint is not supported, or belongs to other encoders than the report's.
        StorageError: something can't be read.
    """
    config, device = config or RenderConfig(), device or torch.device("cpu")
    if not prompts:
        raise ConfigError("at least one prompt", "none", "Name one.")
    shown = tuple(prompts[i % len(prompts)] for i in range(config.pictures))
    found = look_into(checkpoint)
    read = _read(report, folder, found, shown, config, encoder, repaired, progress)
    size = config.size or found.size
    pictures = _painted(load(found, device, config.prediction), list(read.states.values()), config, size, progress)
    record = Painted(
        tool=f"amdet {__version__}", checkpoint=str(checkpoint), family=found.family, prompts=shown,
        columns=tuple(read.states), settings=config, size=size, notes=read.notes,
    )  # fmt: skip
    return Rendering(record, dict(zip(record.columns, pictures, strict=True)))


def check_ready(checkpoint: Path, widths: Mapping[str, int]) -> None:
    """Fail now rather than after long work: what can be known of a checkpoint before its weights are read.

    Args:
        checkpoint: a single file or a diffusers folder.
        widths: of the encoders that it shall paint with, by name.

    Raises:
        ConfigError: a package is missing.
        EncoderError: the checkpoint is not supported, or belongs to other encoders.
        StorageError: it can't be read.
    """
    diffusers_package()
    compel_package()
    _fitting(look_into(checkpoint), widths)


def _read(
    report: ScanReport,
    folder: Path,
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    config: RenderConfig,
    encoder: Path | None,
    repaired: Sequence[Path],
    progress: Progress,
) -> Read:
    """Ask the text encoders; they are gone when the image model comes."""
    suspects, named = _scanned(report, checkpoint, _own(checkpoint), encoder)
    insertions = {suspects: _insertions(report, folder, suspects, named)}
    own = insertions[suspects]
    columns = [Column(NORMAL, suspects), *(Column(one.label, suspects, name) for name, one in own.items())]
    if repaired:
        healed = _replaced(checkpoint, suspects, repaired)
        # A trigger is read from the repaired table: its row may be what was repaired.
        insertions[healed] = _insertions(report, folder, healed, named)
        columns += [Column(f"repaired, {one.label}", healed, name) for name, one in own.items()]
    anchors, notes = _anchors(report, named, suspects)
    negative = Conditioner(checkpoint, anchors, {})(config.negative)
    states: dict[str, list[Pair]] = {}
    reader: Conditioner | None = None
    readers: Encoders = ()
    for done, column in enumerate(columns):
        progress("read prompts", done, len(columns), {})
        if reader is None or column.encoders is not readers:
            reader, readers = Conditioner(checkpoint, column.encoders, insertions[column.encoders]), column.encoders
        states[column.heading] = [(reader(prompt, column.inserted), negative) for prompt in prompts]
    return Read(states, notes)


# ------------------------------------------------------------------ encoders


def _own(checkpoint: Checkpoint) -> Encoders:
    """The checkpoint's own text encoders."""
    opened = formats.open_target(checkpoint.path)
    return tuple(_of_width(opened, width) for width in checkpoint.widths)


def _of_width(opened: formats.OpenedTarget, width: int) -> TextEncoder:
    for found in opened.encoders:
        if found.encoder.spec.width == width:
            return found.encoder
    raise EncoderError(
        f"a text encoder of width {width}, which the image model reads",
        ", ".join(f"{found.name} of width {found.encoder.spec.width}" for found in opened.encoders),
        "Name a checkpoint with the text encoders that it was trained with.",
    )


def _fitting(checkpoint: Checkpoint, widths: Mapping[str, int]) -> tuple[str, ...]:
    """Names of the encoders whose widths the checkpoint reads, or EncoderError where there is none."""
    names = tuple(name for name, width in widths.items() if width in checkpoint.widths)
    if not names:
        raise EncoderError(
            f"an encoder of width {' or '.join(map(str, checkpoint.widths))}, which {checkpoint.path.name} reads",
            ", ".join(f"{name} of width {width}" for name, width in widths.items()),
            "Name a checkpoint that the scanned encoder belongs to.",
        )
    return names


def _scanned(
    report: ScanReport, checkpoint: Checkpoint, own: Encoders, elsewhere: Path | None
) -> tuple[Encoders, dict[str, int]]:
    """The checkpoint's encoders with those of the report in their places, and the report's names for those places.

    Raises:
        EncoderError: none of them fits, or what stands at their path now is something else.
    """
    fits = _fitting(checkpoint, {info.name: info.spec.width for info in report.target.encoders})
    fitting = {info.name: info for info in report.target.encoders if info.name in fits}
    values = {trust.fingerprint(one): place for place, one in enumerate(own)} if elsewhere is None else {}
    named = {name: values[info.fingerprint] for name, info in fitting.items() if info.fingerprint in values}
    if len(named) == len(fitting):
        return own, named
    path = elsewhere or Path(report.target.path)
    if not path.exists():
        raise StorageError(f"the scanned encoder at {path}", "nothing there", "Say where it is now by --encoder.")
    suspects = list(own)
    opened = {trust.fingerprint(one.encoder): one.encoder for one in formats.open_target(path).encoders}
    for name, info in fitting.items():
        if name in named:
            continue
        if info.fingerprint not in opened:
            raise EncoderError(
                f"the encoder {name} that was scanned (values {info.fingerprint[:12]}) in {path} or {checkpoint.path}",
                "another one",
                "Say where it is now by --encoder, or scan again.",
            )
        place = checkpoint.widths.index(info.spec.width)
        suspects[place] = opened[info.fingerprint]
        named[name] = place
    return tuple(suspects), named


def _replaced(checkpoint: Checkpoint, suspects: Encoders, paths: Sequence[Path]) -> Encoders:
    """The suspects with repaired encoders in their places."""
    repaired = list(suspects)
    for path in paths:
        fitting = [one for one in _all(path) if one.spec.width in checkpoint.widths]
        if not fitting:
            raise EncoderError(
                f"a repaired encoder of width {' or '.join(map(str, checkpoint.widths))}",
                f"none in {path}",
                "Name the file that amdet heal wrote.",
            )
        for one in fitting:
            repaired[checkpoint.widths.index(one.spec.width)] = one
    return tuple(repaired)


def _anchors(report: ScanReport, named: Mapping[str, int], suspects: Encoders) -> tuple[Encoders, tuple[str, ...]]:
    """Who reads the negative prompt, and notes about it."""
    readers, notes = list(suspects), []
    infos = {info.encoder: info for info in report.anchor or ()}
    for name, place in named.items():
        info = infos.get(name)
        try:
            if info is None:
                raise EncoderError("an anchor in the report", "none", "Scan with one.")
            found = [pocket.load("clean")] if info.chosen == "shipped" else _all(Path(info.path))
            readers[place] = next(one for one in found if trust.fingerprint(one) == info.fingerprint)
        except (AmdetError, StopIteration) as error:
            why = error.found if isinstance(error, AmdetError) else "its file holds other values now"
            notes.append(f"{name}: the suspect itself reads the negative prompt, for lack of its anchor ({why})")
    return tuple(readers), tuple(notes)


def _all(path: Path) -> list[TextEncoder]:
    return [found.encoder for found in formats.open_target(path).encoders]


# ------------------------------------------------------------------ prompts


def _insertions(report: ScanReport, folder: Path, suspects: Encoders, named: Mapping[str, int]) -> dict[str, Insertion]:
    """What the scan recovered, as far as it can stand in prompts."""
    found: dict[str, Insertion] = {}
    if strongest(report) is not None and (folder / PSEUDO_TRIGGER).exists():
        vectors = read_pseudo_triggers(folder / PSEUDO_TRIGGER)
        placed = {named[name]: vectors[key] for name in named if (key := embedding_key(name)) in vectors}
        if placed:
            found[FEATURE] = Insertion(WITH_FEATURE, placed)
    if report.trigger is not None:
        label = f'with trigger "{plain(report.trigger.text)}"'
        found[TRIGGER] = Insertion.of_tokens(label, report.trigger.token_ids, suspects)
    if not found:
        raise ConfigError(
            f"a recovered feature or a trigger in the report in {folder}", "neither",
            "There is nothing to show: the scan recovered nothing, or had no anchor.",
        )  # fmt: skip
    return found


# ------------------------------------------------------------------ pictures


def _painted(
    pipeline: Any,
    states: Sequence[Sequence[Pair]],
    config: RenderConfig,
    size: int,
    progress: Progress,
) -> list[Pixels]:
    total = config.steps * sum(map(len, states))
    done = 0

    def step(_pipeline: Any, _step: int, _time: Any, kept: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        done += 1
        progress("paint", min(done, total), total, {})
        return kept

    pictures = []
    for column in states:
        rows = []
        for i, (prompt, negative) in enumerate(column):
            noise = torch.Generator().manual_seed(config.seed + i)
            try:
                answer = pipeline(
                    **_conditions(pipeline, prompt, negative), num_inference_steps=config.steps, height=size,
                    width=size, guidance_scale=config.guidance, generator=noise, output_type="np",
                    callback_on_step_end=step,
                )  # fmt: skip
            except OUT_OF_MEMORY as error:
                raise ConfigError(
                    f"room on the device for a picture of {size}x{size}", "not enough memory",
                    "Use a smaller --size, close other programs, or use --device cpu.",
                ) from error  # fmt: skip
            rows.append(np.rint(answer.images[0] * 255).astype(np.uint8))
        pictures.append(np.stack(rows))
    return pictures


def _conditions(pipeline: Any, prompt: Conditioning, negative: Conditioning) -> dict[str, Tensor]:
    """Arguments of the pipeline, in its precision."""

    def cast(x: Tensor) -> Tensor:
        return x.to(pipeline.unet.dtype)

    given = {"prompt_embeds": cast(prompt.states), "negative_prompt_embeds": cast(negative.states)}
    if prompt.pooled is not None and negative.pooled is not None:
        given |= {
            "pooled_prompt_embeds": cast(prompt.pooled), "negative_pooled_prompt_embeds": cast(negative.pooled)
        }  # fmt: skip
    return given
