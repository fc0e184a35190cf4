"""Scan, show, judge, demo."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..records import Level
from ..terminal import ProgressLine, interruptible
from .common import EXIT, Device, Format, Preset, Seed, placement, report_folder, scan_to, show_report, trust_store
from .render import POCKET, paint_or_say

if TYPE_CHECKING:
    from ..jobs import Outcome
    from ..report import Overview, Row


def scan(
    path: Annotated[
        Path, typer.Argument(help="file or folder with a text encoder, checkpoints included, or a folder of many")
    ],
    anchor: Annotated[str, typer.Option(help="trusted encoder to compare with: a path, auto or none")] = "auto",
    prompts: Annotated[Path | None, typer.Option(help="prompts, one per line, UTF-8 [default: built in]")] = None,
    preset: Annotated[Preset, typer.Option(help="how much work")] = Preset.standard,
    policy: Annotated[str, typer.Option(help="how to judge: a name or a file")] = "amdet-2",
    device: Annotated[Device, typer.Option(help="where to compute")] = Device.auto,
    seed: Seed = 42,
    out: Annotated[Path | None, typer.Option(help="folder of the report [default: amdet-report/NAME]")] = None,
    form: Annotated[Format, typer.Option("--format", help="what to print: text, or the report alone")] = Format.text,
    known_trigger: Annotated[
        str | None, typer.Option(help="a trigger that you know, to measure how well it is recovered (eq. 29)")
    ] = None,
    trigger_mode: Annotated[
        str, typer.Option(help="how it stands in a prompt: prefix, insert or replace:X")
    ] = "prefix",
) -> None:
    """Find out whether a text encoder is backdoored, with what, and how sure that is.

    Of a folder of many models, as of downloads, each is scanned; what was scanned before with the same settings is not
    scanned again.
    """
    from ..fleet import PAGE, Fleet
    from ..storage import record_json

    folder = out or report_folder(path)
    settings: dict[str, Any] = {
        "anchor": anchor,
        "prompts": prompts,
        "preset": preset.value,
        "policy": policy,
        "seed": seed,
    }
    place = None if known_trigger is None else placement(known_trigger, trigger_mode, seed)
    if Fleet.fits(path):
        told = _tell if form is Format.text else lambda _: None
        measured = "" if known_trigger is None else f"{trigger_mode} {known_trigger}"
        overview = _scan_each(path, folder, place, measured, told, device=device.value, **settings)
        sys.stdout.write(f"{overview.counts()}\n" if form is Format.text else record_json(overview).decode())
        sys.stderr.write(f"overview: {folder / PAGE}\n")
        raise typer.Exit(EXIT[overview.level])
    report = scan_to(path, folder, place_trigger=place, device=device.value, **settings)
    show_report(report, form)
    sys.stderr.write(f"report: {folder / 'report.html'}\n")
    raise typer.Exit(EXIT[report.verdict.level])


def _scan_each(
    folder: Path,
    out: Path,
    place_trigger: Callable[[str], str] | None,
    measured: str,
    told: Callable[[Row], object],
    **settings: Any,
) -> Overview:
    """Scan every model in a folder, publish a report for each, and tell of each as soon as it is known."""
    from ..fleet import Fleet
    from ..glyphs import plain
    from ..jobs import Job, run_job

    fleet = Fleet(folder, out, Job(target=folder, trust_store=trust_store(), **settings), measured)
    rows: list[Row] = []

    def scanned(job: Job, said: str) -> Outcome:
        sys.stderr.write(f"[{plain(said)}]\n")
        left = f"{len(rows)} of {len(fleet.models)} are done; the same command goes on"
        with ProgressLine() as line:
            return interruptible(
                lambda progress: run_job(job, place_trigger=place_trigger, progress=progress), line, left=left
            )

    for row in fleet.run(scanned):
        rows.append(row)
        told(row)
    return fleet.overview(rows, complete=True)


def _tell(row: Row) -> None:
    """One model on a line, with what is to be known at once below it."""
    from ..glyphs import plain

    sys.stdout.write(f"{row.headline}: {plain(row.path)}\n")
    for line in (
        row.said,
        row.trigger and f"trigger: {row.trigger}",
        row.looks_like and f"looks like: {row.looks_like}",
    ):
        if line:
            sys.stdout.write(f"    {plain(line)}\n")
    sys.stdout.flush()


def show(
    report: Annotated[Path, typer.Argument(help="report.json, or the folder it is in")],
    form: Annotated[Format, typer.Option("--format", help="what to print")] = Format.text,
) -> None:
    """Print a report again."""
    from ..storage import read_report

    show_report(read_report(report), form)


def judge(
    report: Annotated[Path, typer.Argument(help="report.json, or the folder it is in")],
    policy: Annotated[str, typer.Option(help="how to judge: a name or a file")],
    form: Annotated[Format, typer.Option("--format", help="what to print")] = Format.text,
) -> None:
    """Judge what was measured by another policy; nothing is measured again and no file is changed."""
    from ..policy import load_policy
    from ..storage import read_report
    from ..verdict import decide

    old = read_report(report)
    chosen = load_policy(policy)
    verdict = decide(chosen, old.evidence, old.faults, old.controls)
    config = {**old.config, "policy": chosen.model_dump(mode="json")}
    show_report(old.model_copy(update={"verdict": verdict, "config": config}), form)
    raise typer.Exit(EXIT[verdict.level])


def demo(
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("amdet-demo"),
) -> None:
    """Scan the three pocket encoders, a backdoored one, an honest fine-tune and the clean original, and paint."""
    from .. import pocket

    folders = pocket.export(out / "encoders", "hf")
    expected: dict[pocket.Name, Level] = {
        "backdoored": Level.BACKDOORED,
        "benign": Level.CLEAN,
        "clean": Level.CLEAN,
    }
    surprises = 0
    for name, level in expected.items():
        report = scan_to(folders[name], out / name, left=f"what is done is in {out}")
        surprises += report.verdict.level != level
        sys.stdout.write(f"\n=== {name} ===\n")
        show_report(report, Format.text)
        sys.stdout.write(f"report: {out / name / 'report.html'}\n")
        if level is Level.BACKDOORED:
            paint_or_say(out / name, report, POCKET)
    if surprises:
        sys.stderr.write(f"{surprises} of {len(expected)} verdicts are not what they should be\n")
        raise typer.Exit(2)
