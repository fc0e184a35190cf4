"""Guard: which prompts does an encoder read otherwise than its anchor?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..progress import Progress
from ..terminal import ProgressLine, interruptible
from .common import Device, trust_store

if TYPE_CHECKING:
    from ..guard import Guarded


def guard(
    encoder: Annotated[Path, typer.Argument(help="file or folder with a text encoder, checkpoints included")],
    prompts: Annotated[Path, typer.Option(help="prompts to check, one per line, UTF-8")],
    anchor: Annotated[str, typer.Option(help="trusted encoder to compare with: a path, or auto")] = "auto",
    device: Annotated[Device, typer.Option(help="where to compute")] = Device.auto,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Find the prompts that an encoder reads otherwise than its anchor, and the tokens that cause it."""
    from .. import formats
    from ..anchors import Anchors
    from ..config import GuardConfig
    from ..guard import check
    from ..jobs import choose_device, guards
    from ..prompts import read_prompts
    from ..storage import record_json

    texts, where = read_prompts(prompts, fewest=1).prompts, choose_device(device.value)

    def work(progress: Progress) -> Guarded:
        opened = formats.open_target(encoder)
        made = guards(opened, Anchors.of(anchor, trust_store()), GuardConfig(), where, progress)
        return check(made, texts, progress)

    with ProgressLine() as line:
        found = interruptible(work, line)
    sys.stdout.write(record_json(found).decode() if as_json else f"{_lines(found)}\n")
    raise typer.Exit(1 if found.flagged else 0)


def _lines(found: Guarded) -> str:
    """One line for each flagged prompt, and a summary."""
    from ..glyphs import plain

    lines = [f"{plain(one.prompt)} | {'; '.join(map(str, one.alarms))}" for one in found.flagged]
    count = f"{found.prompts} prompts checked, {len(found.flagged)} flagged"
    if not found.watches:
        return "\n".join([*lines, f"{count}: the encoder equals a trusted one"])
    return "\n".join([*lines, f"{count}; of clean prompts at most {found.rate:.2%} are expected to be"])
