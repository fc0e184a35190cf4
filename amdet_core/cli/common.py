"""What several commands share: options, and how a report is made and shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config.base import LARGEST_SEED
from ..errors import AmdetError
from ..records import Level, ScanReport
from ..terminal import ProgressLine, interruptible

Seed = Annotated[int, typer.Option(help="of every random choice", min=0, max=LARGEST_SEED)]
EXIT = {Level.CLEAN: 0, Level.SUSPICIOUS: 1, Level.BACKDOORED: 1, Level.INCONCLUSIVE: 2}


class Preset(str, Enum):
    """How much work a scan does."""

    quick = "quick"
    standard = "standard"
    thorough = "thorough"


class Device(str, Enum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Format(str, Enum):
    """What is printed."""

    text = "text"
    json = "json"


class Layout(str, Enum):
    """Key layouts in which encoders are written."""

    hf = "hf"
    comfyui = "comfyui"
    sd1 = "sd1"
    open_clip = "open_clip"


class Interrupted(Exception):
    """Ctrl-C stopped a command that says itself what it leaves."""


def named_path(text: str) -> Path:
    """A path as it was named.

    Raises:
        ConfigError: it is empty, which Path would take for the current folder.
    """
    from ..storage import check_named

    check_named(str(text))
    return Path(text)


def in_words(error: AmdetError) -> str:
    """An error on one line; it may quote names that a stranger chose."""
    from ..glyphs import plain

    return plain(" ".join(str(error).splitlines()))


def trust_store() -> Path:
    """File of the user's trusted encoders."""
    return Path(typer.get_app_dir("amdet")) / "trust.json"


def report_folder(path: Path) -> Path:
    """Where the report of a target belongs, unless another place is named; a number tells targets of one name apart."""
    whole = path.resolve() if path.name in ("", "..") else path  # a link keeps its name
    name = whole.name or whole.drive.rstrip(":") or "root"
    numbered = (Path("amdet-report") / (f"{name}-{number}" if number > 1 else name) for number in count(1))
    return next(folder for folder in numbered if not _of_another(folder, path))


def _of_another(folder: Path, path: Path) -> bool:
    """Whether a folder holds the report of another target, of a scan or of what was healed."""
    from ..storage import REPORT, read_report

    try:
        reports = [read_report(place) for place in (folder, folder / "before") if (place / REPORT).is_file()]
    except AmdetError:  # damaged, or of another release: it may be anyone's
        return True
    return any(Path(report.target.path).resolve() != path.resolve() for report in reports)


def show_report(report: ScanReport, form: Format) -> None:
    """The report alone on stdout."""
    from ..report import render_text
    from ..storage import record_json

    if form is Format.json:
        sys.stdout.write(record_json(report).decode())
    else:
        sys.stdout.write(render_text(report) + "\n")


def placement(trigger: str, mode: str, seed: int) -> Callable[[str], str]:
    """A function that puts a known trigger into a prompt."""
    from ..attacks import Placement

    return Placement.parse(mode).putting(trigger, seed)


def scan_to(
    path: Path,
    folder: Path,
    place_trigger: Callable[[str], str] | None = None,
    left: str = "nothing was written",
    **settings: Any,
) -> ScanReport:
    """Scan a target and publish the report's files in a folder.

    Args:
        left: what an interruption leaves, in words.
    """
    from ..jobs import Job, run_job
    from ..storage import check_writable, publish

    check_writable(folder)
    job = Job(target=path, trust_store=trust_store(), **settings)
    with ProgressLine() as line:
        outcome = interruptible(
            lambda progress: run_job(job, place_trigger=place_trigger, progress=progress), line, left=left
        )
    publish(folder, outcome.files)
    return outcome.report
