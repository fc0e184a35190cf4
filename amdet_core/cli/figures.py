"""``amdet figures``: the figures of the paper for one's own encoders, with the numbers that they show."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ..progress import Progress
from ..terminal import ProgressLine, interruptible
from .common import Device, Seed, placement

if TYPE_CHECKING:
    from ..anatomy import Pairs, Setting
    from ..drawing import Drawing
    from ..encoder import TextEncoder
    from ..prompts import PromptSet
    from ..records import Record

T = TypeVar("T")
figures_app = typer.Typer(help="Draw what a trigger does inside an encoder, and landscapes.", no_args_is_help=True)

Encoder = Annotated[Path, typer.Argument(help="file or folder with one text encoder")]
Trigger = Annotated[str, typer.Option(help="text that triggers the backdoor")]
Mode = Annotated[str, typer.Option(help="how it stands in a prompt: prefix, insert or replace:X")]
Anchor = Annotated[Path | None, typer.Option(help="encoder in which the triggered prompts are measured too")]
Target = Annotated[str | None, typer.Option(help="prompt as which triggered ones are read, where known")]
Prompts = Annotated[Path | None, typer.Option(help="prompts, one per line, UTF-8 [default: held-out built-in ones]")]
Count = Annotated[int, typer.Option("-n", help="prompts, of those that can carry the trigger", min=8)]
Where = Annotated[Device, typer.Option(help="where to compute")]
Out = Annotated[Path, typer.Option(help="folder to write to")]


@figures_app.command()
def assimilation(
    encoder: Encoder,
    trigger: Trigger,
    trigger_mode: Mode = "prefix",
    anchor: Anchor = None,
    target: Target = None,
    prompts: Prompts = None,
    count: Count = 200,
    device: Where = Device.auto,
    seed: Seed = 42,
    out: Out = Path("amdet-figures"),
) -> None:
    """How alike a prompt's tokens are, without and with the trigger (fig. 2), and by the prompt's length."""
    from .. import anatomy, anatomy_figures

    texts = _prompts(prompts)

    def work(progress: Progress) -> anatomy.Assimilation:
        suspect, trusted = _encoders(encoder, anchor, device)
        pairs, setting = _pairs(suspect, encoder, anchor, trigger, trigger_mode, texts, count, seed)
        return anatomy.assimilation(setting, suspect, trusted, pairs, target, progress)

    measured = _run(work, out)
    _write(out, "assimilation", measured, {"assimilation": anatomy_figures.assimilation(measured)})


@figures_app.command()
def attention(
    encoder: Encoder,
    trigger: Trigger,
    trigger_mode: Mode = "prefix",
    anchor: Anchor = None,
    layer: Annotated[int | None, typer.Option(help="counted from 1 [default: the mean over all]")] = None,
    prompts: Prompts = None,
    count: Count = 200,
    device: Where = Device.auto,
    seed: Seed = 42,
    out: Out = Path("amdet-figures"),
) -> None:
    """Where attention goes, without and with the trigger: a map of one prompt, shares over all (figs. 3 and 4)."""
    from .. import anatomy, anatomy_figures

    texts = _prompts(prompts)

    def work(progress: Progress) -> anatomy.Attention:
        suspect, trusted = _encoders(encoder, anchor, device)
        pairs, setting = _pairs(suspect, encoder, anchor, trigger, trigger_mode, texts, count, seed)
        return anatomy.attention(setting, suspect, trusted, pairs, layer, progress)

    measured = _run(work, out)
    drawings = {
        "attention-map": anatomy_figures.attention_maps(measured),
        "attention-shares": anatomy_figures.attention_shares(measured),
    }
    _write(out, "attention", measured, drawings)


@figures_app.command()
def evolution(
    encoder: Annotated[Path, typer.Argument(help="file or folder with the encoder to attack; it stays as it is")],
    trigger: Trigger,
    target: Annotated[str, typer.Option(help="prompt as which a triggered prompt shall be read")],
    trigger_mode: Mode = "prefix",
    steps: Annotated[int, typer.Option(help="optimiser steps", min=1)] = 100,
    every: Annotated[int, typer.Option(help="steps between two measurements", min=1)] = 5,
    prompts: Annotated[Path | None, typer.Option(help="prompts, one per line, UTF-8 [default: built in]")] = None,
    count: Count = 64,
    device: Where = Device.auto,
    seed: Seed = 42,
    out: Out = Path("amdet-figures"),
) -> None:
    """Inject a backdoor, and watch output, assimilation and attention change meanwhile (fig. 5)."""
    from .. import anatomy, anatomy_figures
    from ..attacks import text_on_text
    from ..config import TextOnTextConfig
    from ..prompts import builtin_prompts, read_prompts

    texts = read_prompts(prompts) if prompts else builtin_prompts()
    held_out = texts.split()[1]

    def work(progress: Progress) -> anatomy.Evolution:
        victim, _ = _encoders(encoder, None, device)
        pairs, setting = _pairs(victim, encoder, None, trigger, trigger_mode, held_out, count, seed)
        observer = anatomy.Observer(victim, pairs, target, every, steps)
        config = TextOnTextConfig(steps=steps, seed=seed, least_asr=0.0)
        made = text_on_text.inject(victim, [trigger], target, texts, config, trigger_mode, progress, watch=observer)
        return anatomy.Evolution(
            setting=setting,
            target=target,
            steps=steps,
            learning_rate=config.rate(victim.spec.width),
            asr=made.effect.asr,
            stages=tuple(observer.stages),
        )

    measured = _run(work, out)
    _write(out, "evolution", measured, {"evolution": anatomy_figures.evolution(measured)})


@figures_app.command()
def repair(
    suspect: Annotated[Path, typer.Argument(help="file or folder with the encoder as it was")],
    repaired: Annotated[Path, typer.Argument(help="file or folder with what a repair made of it")],
    trigger: Trigger,
    trigger_mode: Mode = "prefix",
    anchor: Anchor = None,
    target: Target = None,
    prompts: Prompts = None,
    count: Count = 200,
    device: Where = Device.auto,
    seed: Seed = 42,
    out: Out = Path("amdet-figures"),
) -> None:
    """Coverage, assimilation and attention with the trigger, before and after a repair, layer by layer."""
    from .. import before_after as measure
    from .. import before_after_figures

    texts = _prompts(prompts)

    def work(progress: Progress) -> measure.BeforeAfter:
        before, trusted = _encoders(suspect, anchor, device)
        _, after = _encoders(suspect, repaired, device, "the repaired encoder")
        sides = {"suspect": before, "repaired": after, "anchor": trusted}
        pairs, setting = _pairs(before, suspect, anchor, trigger, trigger_mode, texts, count, seed)
        encoders = {group: one for group, one in sides.items() if one is not None}
        return measure.before_after(setting, repaired.absolute().name, encoders, pairs, target, progress)

    measured = _run(work, out)
    _write(out, "repair", measured, {"repair": before_after_figures.before_after(measured)})


@figures_app.command()
def landscape(
    reports: Annotated[list[Path], typer.Argument(help="report.json files, or the folders they are in")],
    out: Out = Path("amdet-figures"),
) -> None:
    """Landscapes of several reports side by side, with equal scales and their positive shares (fig. 8)."""
    from ..figures import landscapes
    from ..report.landscapes import recorded_landscapes
    from ..storage import check_writable, read_report

    check_writable(out)
    recorded = recorded_landscapes([read_report(path) for path in reports])
    drawing = landscapes([(item.name, item.landscape) for item in recorded.landscapes])
    _write(out, "landscapes", recorded, {"landscapes": drawing})


def _prompts(path: Path | None) -> PromptSet:
    """The user's prompts, or those of the built-in ones on which nothing is ever trained."""
    from ..prompts import builtin_prompts, read_prompts

    return read_prompts(path) if path else builtin_prompts().split()[1]


def _encoders(
    path: Path, anchor: Path | None, device: Device, role: str = "the anchor"
) -> tuple[TextEncoder, TextEncoder | None]:
    """The encoder and the other one that is compared with it, which has to have its shape."""
    from .. import formats
    from ..anchors import serving_as
    from ..errors import ConfigError
    from ..jobs import choose_device

    def opened(name: Path) -> TextEncoder:
        encoder = formats.only_encoder(formats.open_target(name)).to(where)
        encoder.check_finite()
        return encoder

    where = choose_device(device.value)
    first, other = opened(path), None
    if anchor is not None:
        with serving_as(role, anchor):
            other = opened(anchor)
    if other is not None and not first.spec.comparable(other.spec):
        raise ConfigError(
            f"{role} to have {first.spec.summary}", f"{other.spec.summary} in {anchor}", "Name one of the same shape."
        )
    return first, other


def _pairs(
    suspect: TextEncoder,
    path: Path,
    anchor: Path | None,
    trigger: str,
    mode: str,
    prompts: PromptSet,
    count: int,
    seed: int,
) -> tuple[Pairs, Setting]:
    """Prompts without and with the trigger, and what a figure says of them."""
    from ..anatomy import Pairs, Setting

    pairs = Pairs.of(suspect, prompts.prompts, trigger, placement(trigger, mode, seed), count)
    return pairs, Setting(
        encoder=path.absolute().name,
        anchor=None if anchor is None else anchor.absolute().name,
        trigger=pairs.trigger,
        mode=mode,
        prompts=f"{prompts.source}, sha256 {prompts.sha256}",
        n=len(pairs),
    )


def _run(work: Callable[[Progress], T], out: Path) -> T:
    from ..storage import check_writable

    check_writable(out)
    with ProgressLine() as line:
        return interruptible(work, line)


def _write(out: Path, name: str, record: Record, drawings: Mapping[str, Drawing]) -> None:
    """Every drawing as PNG and SVG, and what they show as NAME.json."""
    from ..drawing import png, svg
    from ..storage import record_json, write_atomic

    files = {f"{file}.png": png(drawing) for file, drawing in drawings.items()}
    files |= {f"{file}.svg": svg(drawing, file.replace("-", " ")).encode() for file, drawing in drawings.items()}
    for file, data in {**files, f"{name}.json": record_json(record)}.items():
        write_atomic(out / file, data)
        sys.stdout.write(f"written: {out / file}\n")
