"""Pictures of what a trigger does."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config.base import LARGEST_SEED
from ..errors import AmdetError
from ..terminal import ProgressLine, interruptible
from .common import Device, in_words, named_path

if TYPE_CHECKING:
    from ..records import ScanReport

POCKET = "pocket"
POCKET_PROMPTS = ("a blue star", "a green tree on a gray background", "a yellow house", "a large purple cat")
"""What the pocket's painter can paint."""
POCKET_SETTINGS = {"guidance": 4.0}


class Prediction(str, Enum):
    """What an image model predicts."""

    epsilon = "epsilon"
    v_prediction = "v_prediction"


def render(
    checkpoint: Annotated[
        str, typer.Option(help="a Stable Diffusion 1, 2 or XL: single file, diffusers folder, or pocket")
    ],
    report: Annotated[Path, typer.Option(help="folder of the report of the scan")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="a prompt; may be given several times [default: built-in ones]")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="prompts, one per line, UTF-8")] = None,
    pictures: Annotated[int, typer.Option("-n", "--pictures", help="of each kind", min=1, max=64)] = 4,
    encoder: Annotated[
        Path | None, typer.Option(help="the scanned encoder, where it is no longer at the report's path")
    ] = None,
    repaired: Annotated[
        list[Path] | None, typer.Option(help="what amdet heal wrote, for pictures after repair; one file per encoder")
    ] = None,
    steps: Annotated[int, typer.Option(help="of the checkpoint's sampler", min=1, max=999)] = 25,
    guidance: Annotated[float | None, typer.Option(help="classifier-free guidance [default: 7.5; pocket: 4]")] = None,
    size: Annotated[int | None, typer.Option(help="side in px [default: as the checkpoint was trained]")] = None,
    negative: Annotated[str, typer.Option(help="negative prompt; the trusted encoder reads it")] = "",
    prediction: Annotated[
        Prediction | None, typer.Option(help="what the image model predicts [default: as its family does]")
    ] = None,
    device: Annotated[Device, typer.Option(help="where to paint")] = Device.auto,
    seed: Annotated[int, typer.Option(help="of the noise", min=0, max=LARGEST_SEED)] = 42,
) -> None:
    """Paint what a scan recovered: prompts as they are, with the reversed feature, with the trigger, after repair."""
    from ..prompts import read_prompts
    from ..storage import read_report

    chosen = list(prompt or ())
    if prompts is not None:
        chosen += read_prompts(prompts, fewest=1).prompts
    settings = {
        "pictures": pictures,
        "steps": steps,
        "guidance": guidance,
        "size": size,
        "negative": negative,
        "prediction": None if prediction is None else prediction.value,
        "seed": seed,
    }
    paint_to(report, read_report(report), checkpoint, chosen, device.value, encoder, repaired or (), **settings)
    sys.stdout.write(f"pictures: {report / 'pictures.png'}\nreport: {report / 'report.html'}\n")


def paint_to(
    folder: Path, report: ScanReport, checkpoint: str, prompts: Sequence[str] = (), device: str = "cpu",
    encoder: Path | None = None, repaired: Sequence[Path] = (), **settings: Any,
) -> None:  # fmt: skip
    """Paint for a report, and put the pictures beside it and into its page.

    Args:
        prompts: such as the checkpoint can paint, where there are none.
        settings: of a RenderConfig; None where they are not given.
    """
    from ..config import RenderConfig
    from ..drawing import png
    from ..gallery import gallery
    from ..jobs import choose_device
    from ..prompts import builtin_prompts
    from ..render import render as painted
    from ..report import render_html
    from ..storage import PICTURES, check_writable, record_json, write_atomic

    check_writable(folder)
    given = {name: value for name, value in settings.items() if value is not None}
    config = RenderConfig(**(POCKET_SETTINGS if checkpoint == POCKET else {}) | given)
    if not prompts:
        prompts = POCKET_PROMPTS if checkpoint == POCKET else builtin_prompts().first(config.pictures).prompts
    with ProgressLine() as line, ExitStack() as stack:
        path = _opened(checkpoint, stack)
        made = interruptible(
            lambda progress: painted(
                report, folder, path, prompts, config,
                device=choose_device(device), encoder=encoder, repaired=repaired, progress=progress,
            ),
            line,
            left="no picture was written",
            cleanup=stack.close,
        )  # fmt: skip
    shown = gallery(made.columns, made.record.prompts)
    write_atomic(folder / PICTURES, png(shown))
    write_atomic(folder / "pictures.json", record_json(made.record))
    write_atomic(folder / "report.html", render_html(report, shown).encode("utf-8", "replace"))
    for note in made.record.notes:
        sys.stderr.write(f"note: {note}\n")


def check_paintable(checkpoint: str, widths: Mapping[str, int]) -> None:
    """Fail now rather than after long work; see :func:`amdet_core.render.check_ready`."""
    from ..render import check_ready

    with ExitStack() as stack:
        check_ready(_opened(checkpoint, stack), widths)


def paint_or_say(
    folder: Path, report: ScanReport, checkpoint: str, device: str = "cpu", repaired: Sequence[Path] = ()
) -> None:
    """Paint for a report after other work, which counts for more: what prevents it is said and raises nothing."""
    from ..storage import PICTURES

    try:
        paint_to(folder, report, checkpoint, device=device, repaired=repaired)
    except AmdetError as error:
        sys.stdout.write(f"no pictures: {in_words(error)}\n")
    else:
        sys.stdout.write(f"pictures: {folder / PICTURES}\n")


def _opened(checkpoint: str, stack: ExitStack) -> Path:
    """The path of a checkpoint; the shipped one is written to a folder that is removed with the stack."""
    if checkpoint != POCKET:
        return named_path(checkpoint)
    from ..pocket import load
    from ..pocket.painter.pipeline import write_pipeline

    path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / POCKET
    write_pipeline(path, load("clean"))
    return path
