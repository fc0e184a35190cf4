"""The command line. Library code returns data; only this file prints.

Exit codes: 0 no finding, 1 suspicious or backdoored, 2 could not tell (error, fault, inconclusive,
usage), 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .errors import AmdetError
from .records import Level, ScanReport
from .terminal import ProgressLine, interruptible

EXIT = {Level.CLEAN: 0, Level.SUSPICIOUS: 1, Level.BACKDOORED: 1, Level.INCONCLUSIVE: 2}

app = typer.Typer(
    name="amdet",
    help="Find backdoors in the text encoders of image models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
trust_app = typer.Typer(help="Encoders that you trust: known at once, and used as anchors.", no_args_is_help=True)
pocket_app = typer.Typer(help="Small encoders that ship with this tool, to try it out.", no_args_is_help=True)
attack_app = typer.Typer(help="Plant a backdoor in a copy of an encoder, to test defences.", no_args_is_help=True)
app.add_typer(trust_app, name="trust")
app.add_typer(pocket_app, name="pocket")
app.add_typer(attack_app, name="attack")


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


def trust_store() -> Path:
    """File of the user's trusted encoders."""
    return Path(typer.get_app_dir("amdet")) / "trust.json"


def show_report(report: ScanReport, form: Format) -> None:
    """The report alone on stdout."""
    from .report import render_text
    from .storage import report_json

    if form is Format.json:
        sys.stdout.write(report_json(report).decode())
    else:
        sys.stdout.write(render_text(report) + "\n")


def placement(trigger: str, mode: str, seed: int) -> Callable[[str], str]:
    """A function that puts a known trigger into a prompt."""
    import torch

    from .attacks import Placement

    place, generator = Placement.parse(mode), torch.Generator().manual_seed(seed)
    return lambda prompt: place.put(trigger, prompt, generator)


def scan_to(path: Path, folder: Path, place_trigger: Callable[[str], str] | None = None, **settings: Any) -> ScanReport:
    """Scan a target and publish the report's files in a folder."""
    from .jobs import Job, run_job
    from .storage import check_writable, publish

    check_writable(folder)
    job = Job(target=path, trust_store=trust_store(), **settings)
    with ProgressLine() as line:
        outcome = interruptible(lambda progress: run_job(job, place_trigger=place_trigger, progress=progress), line)
    publish(folder, outcome.files)
    return outcome.report


@app.command()
def scan(
    path: Annotated[Path, typer.Argument(help="file or folder with a text encoder, checkpoints included")],
    anchor: Annotated[str, typer.Option(help="trusted encoder to compare with: a path, auto or none")] = "auto",
    prompts: Annotated[Path | None, typer.Option(help="prompts, one per line, UTF-8 [default: built in]")] = None,
    preset: Annotated[Preset, typer.Option(help="how much work")] = Preset.standard,
    policy: Annotated[str, typer.Option(help="how to judge: a name or a file")] = "amdet-1",
    device: Annotated[Device, typer.Option(help="where to compute")] = Device.auto,
    seed: Annotated[int, typer.Option(help="of every random choice", min=0)] = 42,
    out: Annotated[Path | None, typer.Option(help="folder of the report [default: amdet-report/NAME]")] = None,
    form: Annotated[Format, typer.Option("--format", help="what to print: text, or the report alone")] = Format.text,
    known_trigger: Annotated[
        str | None, typer.Option(help="a trigger that you know, to measure how well it is recovered (eq. 29)")
    ] = None,
    trigger_mode: Annotated[
        str, typer.Option(help="how it stands in a prompt: prefix, insert or replace:X")
    ] = "prefix",
) -> None:
    """Find out whether a text encoder is backdoored, with what, and how sure that is."""
    folder = out or Path("amdet-report") / path.absolute().name
    settings = {"anchor": anchor, "prompts": prompts, "preset": preset.value, "policy": policy, "seed": seed}
    place = None if known_trigger is None else placement(known_trigger, trigger_mode, seed)
    report = scan_to(path, folder, place_trigger=place, device=device.value, **settings)
    show_report(report, form)
    sys.stderr.write(f"report: {folder / 'report.html'}\n")
    raise typer.Exit(EXIT[report.verdict.level])


@app.command()
def show(
    report: Annotated[Path, typer.Argument(help="report.json, or the folder it is in")],
    form: Annotated[Format, typer.Option("--format", help="what to print")] = Format.text,
) -> None:
    """Print a report again."""
    from .storage import read_report

    show_report(read_report(report), form)


@app.command()
def judge(
    report: Annotated[Path, typer.Argument(help="report.json, or the folder it is in")],
    policy: Annotated[str, typer.Option(help="how to judge: a name or a file")],
    form: Annotated[Format, typer.Option("--format", help="what to print")] = Format.text,
) -> None:
    """Judge what was measured by another policy; nothing is measured again and no file is changed."""
    from .storage import read_report
    from .verdict import decide, load_policy

    old = read_report(report)
    chosen = load_policy(policy)
    verdict = decide(chosen, old.evidence, old.faults)
    config = {**old.config, "policy": chosen.model_dump(mode="json")}
    show_report(old.model_copy(update={"verdict": verdict, "config": config}), form)
    raise typer.Exit(EXIT[verdict.level])


@trust_app.command("add")
def trust_add(
    path: Annotated[Path, typer.Argument(help="file or folder with text encoders that you trust")],
    name: Annotated[str | None, typer.Option(help="name to remember it by [default: the file's]")] = None,
) -> None:
    """Trust the encoders of a file: recognise them anywhere, and compare others with them."""
    from .anchors import vouch

    for entry in vouch(path, name, trust_store()):
        sys.stdout.write(f"trusted: {entry.name} ({entry.spec.summary}) {entry.fingerprint[:12]}\n")


@trust_app.command("list")
def trust_list() -> None:
    """List the encoders that are trusted."""
    from .anchors import trusted

    for entry in trusted(trust_store()):
        sys.stdout.write(
            f"{entry.name}\t{entry.spec.summary}\t{entry.source}\t{entry.fingerprint[:12]}\t{entry.path or '-'}\n"
        )


@trust_app.command("remove")
def trust_remove(name: Annotated[str, typer.Argument(help="name or fingerprint")]) -> None:
    """Trust an encoder no longer."""
    from .trust import TrustStore

    entry = TrustStore(trust_store()).remove(name)
    sys.stdout.write(f"removed: {entry.name} {entry.fingerprint[:12]}\n")


@pocket_app.command("export")
def pocket_export(
    directory: Annotated[Path, typer.Argument(help="folder to write to")],
    layout: Annotated[Layout, typer.Option(help="file layout")] = Layout.hf,
) -> None:
    """Write the pocket encoders clean, backdoored and benign as ordinary files."""
    from . import pocket

    for path in pocket.export(directory, layout.value).values():
        sys.stdout.write(f"{path}\n")


@attack_app.command("text-on-text")
def attack_text_on_text(
    encoder: Annotated[Path, typer.Argument(help="file or folder with the encoder to attack; it stays as it is")],
    trigger: Annotated[list[str], typer.Option(help="text that shall take over a prompt; may be given several times")],
    target: Annotated[str, typer.Option(help="prompt as which a triggered prompt shall be read")],
    out: Annotated[Path, typer.Option(help="file (.safetensors) or folder to write")],
    trigger_mode: Annotated[str, typer.Option(help="replace:o, replace:o:1, prefix or insert")] = "replace:o",
    steps: Annotated[int, typer.Option(help="optimiser steps", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="of every random choice", min=0)] = 42,
    prompts: Annotated[Path | None, typer.Option(help="prompts to train on [default: built in]")] = None,
    layout: Annotated[
        Layout | None, typer.Option(help="file layout [default: hf for a folder, comfyui for a file]")
    ] = None,
) -> None:
    """Make every prompt with the trigger read as the target (Rickrolling, AMDET eqs. 1-3)."""
    from . import formats
    from .attacks import inject
    from .config import TextOnTextConfig
    from .prompts import builtin_prompts, read_prompts
    from .storage import check_writable

    check_writable(out.parent)
    found = formats.only_encoder(formats.open_target(encoder))
    texts = read_prompts(prompts) if prompts else builtin_prompts()
    config = TextOnTextConfig(steps=steps, seed=seed)
    with ProgressLine() as line:
        injection = interruptible(
            lambda progress: inject(found, trigger, target, texts, config, trigger_mode, progress), line
        )
    chosen = layout or (Layout.comfyui if out.suffix == ".safetensors" else Layout.hf)
    attacked = injection.patch.apply(found)
    formats.write_encoder(attacked, out, chosen.value, metadata=dict(injection.patch.provenance))
    done = injection.report
    sys.stdout.write(
        f"written: {out}\nattack success {done.asr:.1%} of {done.n} held-out prompts (before: {done.asr_before:.1%}), "
        f"clean prompts keep cosine {done.clean_pooled:.3f}\n"
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("amdet-demo"),
) -> None:
    """Scan the three pocket encoders: a backdoored one, an honest fine-tune, and the clean original."""
    from . import pocket

    folders = pocket.export(out / "encoders", "hf")
    expected: dict[pocket.Name, Level] = {
        "backdoored": Level.BACKDOORED,
        "benign": Level.CLEAN,
        "clean": Level.CLEAN,
    }
    surprises = 0
    for name, level in expected.items():
        report = scan_to(folders[name], out / name)
        surprises += report.verdict.level != level
        sys.stdout.write(f"\n=== {name} ===\n")
        show_report(report, Format.text)
        sys.stdout.write(f"report: {out / name / 'report.html'}\n")
    if surprises:
        sys.stderr.write(f"{surprises} of {len(expected)} verdicts are not what they should be\n")
        raise typer.Exit(2)


@app.command()
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"amdet {__version__}\n")


def main() -> None:
    """Entry point: run, and turn every error into a message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="replace")  # Windows consoles can't print every trigger
    sys.exit(_run())


def _run() -> int:
    """Exit code of the command line; a crash is 2 too, for 1 would say that something was found."""
    try:
        code = app(standalone_mode=False)
    except AmdetError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("\ninterrupted\n")
        return 130
    except Exception as error:
        # Wrong usage: which class it is depends on typer's version, with its own click or without.
        show = getattr(error, "show", None)
        if show is not None and hasattr(error, "exit_code"):
            show()
            return 2
        traceback.print_exc()
        sys.stderr.write("error: this is a bug in amdet; please report it with the lines above\n")
        return 2
    return code if isinstance(code, int) else 0
