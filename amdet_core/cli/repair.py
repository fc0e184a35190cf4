"""Repair a copy of a backdoored encoder: by one method, or by whatever works."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError, EncoderError
from ..terminal import ProgressLine, interruptible
from .changes import (
    EncoderPath,
    FileLayout,
    LoraFile,
    LoraForm,
    LoraLayout,
    Out,
    Output,
    Settings,
    named,
    setting_values,
)
from .common import Device, Preset, Seed, report_folder, trust_store
from .render import check_paintable, paint_or_say

if TYPE_CHECKING:
    from ..encoder import TextEncoder
    from ..progress import Progress
    from ..repair import Clinic, Healed, Probe, Repair

RANK = 16
"""Of the matrices of a LoRA, unless another is asked for."""


class Kind(str, Enum):
    """Repairs by name."""

    erase = "erase"
    spectral = "spectral"
    restore = "restore"
    distil = "distil"
    mimic = "mimic"
    fine_tune = "fine-tune"


AnchorPath = Annotated[str, typer.Option(help="trusted encoder that it was made from: a path, auto or none")]
PromptFile = Annotated[Path | None, typer.Option(help="clean prompts, one per line [default: built in]")]
PolicyName = Annotated[str, typer.Option(help="how scans judge: a name or a file")]
Work = Annotated[Preset, typer.Option(help="how much work scans do")]
Where = Annotated[Device, typer.Option(help="where to compute")]
Delta = Annotated[Path | None, typer.Option(help="write the differences alone too, to this file")]
Rank = Annotated[int, typer.Option("--lora-rank", help="of the LoRA's matrices at most", min=1)]


def repair(
    kind: Annotated[Kind, typer.Argument(help="the method; erase and mimic need no anchor, fine-tune is the baseline")],
    suspect: EncoderPath,
    out: Out,
    anchor: AnchorPath = "auto",
    known_trigger: Annotated[
        str | None, typer.Option(help="a trigger that you know; without one a scan recovers what it can")
    ] = None,
    trigger_mode: Annotated[
        str, typer.Option(help="how it stands in a prompt: prefix, insert or replace:X")
    ] = "prefix",
    settings: Settings = None,
    prompts: PromptFile = None,
    policy: PolicyName = "amdet-2",
    preset: Work = Preset.standard,
    device: Where = Device.auto,
    seed: Seed = 42,
    layout: FileLayout = None,
    delta: Delta = None,
    lora: LoraFile = None,
    lora_layout: LoraForm = LoraLayout.kohya,
    lora_rank: Rank = RANK,
) -> None:
    """Repair a copy of an encoder by one method, and say what that achieved.

    Nothing is written by a repair that does not work (exit code 2).
    """
    from ..attacks import Placement
    from ..formats import only_encoder
    from ..repair import (
        ANCHORED,
        BLIND,
        CONFIGS,
        UNJUDGED,
        Probe,
        check_effect,
        check_lora,
        known_bounds,
        needs_anchor,
        triggers,
    )
    from ..repair import repair as run

    values = setting_values(settings, seed)
    if "seed" not in CONFIGS[kind.value].model_fields:
        del values["seed"]
    config = CONFIGS[kind.value](**values)
    output = Output(out, layout, lora, lora_layout, lora_rank, delta)
    output.check(suspect)
    if lora is not None:
        check_lora(config, lora_rank)
    clinic = _clinic(suspect, anchor, prompts, policy, preset, device, seed)
    output.check_encoder(only_encoder(clinic.opened))
    clinic.check_suspect()
    known: tuple[Probe, ...] = ()
    if known_trigger is not None:
        known = (Probe.of_text(known_trigger, Placement.parse(trigger_mode), seed),)

    def work(progress: Progress) -> Repair:
        from ..config import HealConfig

        told, bounds = clinic.telling(progress), HealConfig()
        if kind.value in ANCHORED:
            needs_anchor(told.case(()), kind.value)  # now rather than after a scan
        if known:
            case = told.case(known)
            check_effect(case)
            return run(case, config, known_bounds(bounds.cure), progress)
        scanned = told.scanned()
        probes = triggers(scanned, bounds)
        if not probes and kind.value not in BLIND:
            raise ConfigError(
                "a trigger by which a repair is made and measured",
                f"none in a scan that says {scanned.report.verdict.level.name.lower()}",
                "Name it with --known-trigger, or scan more thoroughly: --preset thorough.",
            )
        return run(told.case(probes), config, bounds.cure, progress)

    with ProgressLine() as line:
        made = interruptible(work, line)
    sys.stdout.write(f"{made.outcome}\n")
    if not made.outcome.before.responses:
        sys.stdout.write(f"{UNJUDGED}\n")
    if not made.outcome.works:
        sys.stdout.write("this repair does not work; nothing was written\n")
        raise typer.Exit(2)
    output.write(clinic.found, clinic.whole(made.patch))


def heal(
    path: EncoderPath,
    anchor: AnchorPath = "auto",
    replace: Annotated[
        bool, typer.Option("--replace", help="write the trusted encoder, where it says the same but for the backdoor")
    ] = False,
    prompts: PromptFile = None,
    policy: PolicyName = "amdet-2",
    preset: Work = Preset.standard,
    device: Where = Device.auto,
    seed: Seed = 42,
    report: Annotated[Path | None, typer.Option(help="folder of the reports [default: amdet-report/NAME]")] = None,
    out: Annotated[
        Path | None, typer.Option(help="file or folder of the healed encoder [default: healed.safetensors beside them]")
    ] = None,
    layout: FileLayout = None,
    delta: Delta = None,
    lora: LoraFile = None,
    lora_layout: LoraForm = LoraLayout.kohya,
    lora_rank: Rank = RANK,
    checkpoint: Annotated[
        str | None, typer.Option(help="paint with it before and after: a Stable Diffusion 1, 2 or XL, or pocket")
    ] = None,
) -> None:
    """Scan an encoder, repair a copy of it by the least invasive method that works, and scan that.

    Several encoders of one file are healed one by one, and each is written to a file with its name. Exit code 0:
    nothing was found, or it is healed; 2: a repair did not work, or a scan could not tell.
    """
    from ..repair import heal_each, render_heal
    from ..storage import check_writable, publish, record_json, write_atomic

    folder = report or report_folder(path)
    check_writable(folder)
    output = Output(out or folder / "healed.safetensors", layout, lora, lora_layout, lora_rank, delta)
    output.check(path)
    clinic = _clinic(path, anchor, prompts, policy, preset, device, seed)
    if checkpoint is not None:
        check_paintable(checkpoint, {found.name: found.encoder.spec.width for found in clinic.opened.encoders})
    several = len(clinic.opened.encoders) > 1
    outputs = {found.name: output.of(found.name) if several else output for found in clinic.opened.encoders}
    for found in clinic.opened.encoders:
        if layout is None and (several or out is None) and not _by_sizes(found.encoder):
            file = outputs[found.name]  # a folder, whose config says what its sizes do not
            outputs[found.name] = file.at(file.path.with_suffix(""))
        outputs[found.name].check(path)
        outputs[found.name].check_encoder(found.encoder)

    def work(progress: Progress) -> Healed:
        return heal_each(clinic.telling(progress), replaced=replace)

    with ProgressLine() as line:
        done = interruptible(work, line)
    publish(folder / "before", done.before.files)
    if done.patches or (folder / "after").is_dir():  # that of an earlier run
        publish(folder / "after", done.after.files if done.patches else {})
    record = folder / "heal.json"
    text = render_heal(*(healing.report for healing in done.encoders.values()))
    write_atomic(folder / "heal.md", text.encode())
    for name, healing in done.encoders.items():
        write_atomic(named(record, name) if several else record, record_json(healing.report))
    sys.stdout.write(text)
    refused: list[ConfigError] = []
    for found in clinic.opened.encoders:
        if found.name in done.patches:
            try:
                outputs[found.name].write(found, done.patches[found.name])
            except ConfigError as error:
                refused.append(error)  # a LoRA; the other encoders are written all the same
        elif outputs[found.name].path.exists():
            sys.stderr.write(f"{outputs[found.name].path} was there before and is not of this run\n")
    if checkpoint is not None and done.patches:
        healed = [outputs[name].path for name in done.patches]
        paint_or_say(folder / "before", done.before.report, checkpoint, device.value, healed)
    sys.stderr.write(f"report: {folder / 'heal.md'}\n")
    if refused:
        raise refused[0]
    raise typer.Exit(0 if done.found_nothing or done.healed else 2)


def _by_sizes(encoder: TextEncoder) -> bool:
    """Whether a file without a config says what an encoder computes."""
    from ..formats import check_expressible

    try:
        check_expressible(encoder, "comfyui")
    except EncoderError:
        return False
    return True


def _clinic(
    path: Path, anchor: str, prompts: Path | None, policy: str, preset: Preset, device: Device, seed: int
) -> Clinic:
    """A target, its anchors, and how it is scanned."""
    from .. import formats
    from ..anchors import Anchors
    from ..jobs import choose_device
    from ..policy import load_policy
    from ..prompts import builtin_prompts, read_prompts
    from ..repair import Clinic
    from ..scan import plan

    judge = load_policy(policy)
    scan = plan(judge, preset.value, seed)
    return Clinic(
        opened=formats.open_target(path),
        anchors=Anchors.of(anchor, trust_store()),
        scan=scan,
        policy=judge,
        prompts=read_prompts(prompts) if prompts else builtin_prompts(scan.prompt_limit),
        device=choose_device(device.value),
    )
