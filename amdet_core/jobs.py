"""One scan as a job: paths and settings in, a report and its files out. Nothing is written here.

The command line and any batch runner call :func:`run_job`; a host whose encoders are in memory, as ComfyUI's
nodes, calls :func:`scan_opened`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from . import __version__, controls, features, formats
from .anchors import Anchor, Anchors, projection_change
from .config import Config, GuardConfig, ScanConfig
from .config.base import Seed
from .errors import ConfigError, EncoderError
from .features import Feature
from .findings import Findings, Subject
from .formats import FoundEncoder, OpenedTarget
from .guard import Guard
from .memory import OUT_OF_MEMORY
from .policy import DEFAULT_POLICY, Policy, load_policy
from .progress import Progress, silent
from .prompts import PromptSet, builtin_prompts, read_prompts
from .records import EncoderInfo, Fault, ScanReport, Target, Tool
from .report import render_files
from .scan import plan, scan
from .scan import stages as of_scan
from .storage import PSEUDO_TRIGGER
from .verdict import decide

PROJECTION_DRIFT = 0.02
"""Relative change of a text projection up to which nothing is made of it; chosen, not measured."""
NOT_CHECKED = (
    "The U-Net, the VAE, the image encoder, and LoRAs that are not applied: only text encoders are scanned",
    "Code inside pickle files: nothing is executed, and nothing is said about it",
    "Tokenizer files: the encoder is read with CLIP's own vocabulary",
    "Backdoors that change a part of the picture only (an attribute, a style) instead of replacing it",
)
MOVED_ALONE = "Single tokens whose rows of the token table moved least or not at all: a larger preset tries all"
NOT_INVERTED = "Triggers that no single token, text of moved tokens or pattern shows: a larger preset inverts for them"


class Job(Config):
    """What to scan and how."""

    target: Path = Field(description="file or folder with a text encoder")
    anchor: str = Field(default="auto", description="auto, none, or a path")
    prompts: Path | None = Field(default=None, description="prompts, one per line; null: the built-in set")
    preset: Literal["quick", "standard", "thorough"] = Field(default="standard", description="how much work")
    policy: str = Field(default=DEFAULT_POLICY, description="name or file")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="where to compute")
    seed: Seed = Field(default=42, description="of every random choice")
    trust_store: Path | None = Field(default=None, description="file of the user's trusted encoders; null: none")


@dataclass(frozen=True, eq=False)
class Outcome:
    """A report, the features that it speaks of, and the files to publish, the report itself included."""

    report: ScanReport
    features: tuple[Feature, ...]
    files: dict[str, bytes]


def run_job(job: Job, *, place_trigger: Callable[[str], str] | None = None, progress: Progress = silent) -> Outcome:
    """Open, identify, scan and judge.

    Args:
        place_trigger: puts a known trigger into a prompt; see :func:`.scan.scan`.

    Raises:
        AmdetError: a setting or the target is not usable. What fails later is a fault in the report.
    """
    started = time.perf_counter()
    policy = load_policy(job.policy)
    config = plan(policy, job.preset, job.seed)
    prompts = read_prompts(job.prompts) if job.prompts else builtin_prompts(config.prompt_limit)
    device = choose_device(job.device)
    progress("open", 0, 1, {})
    opened = formats.open_target(job.target)
    anchors = Anchors.of(job.anchor, job.trust_store)
    return scan_opened(
        opened,
        anchors,
        config,
        policy,
        prompts,
        device,
        place_trigger=place_trigger,
        started=started,
        progress=progress,
    )


def scan_opened(
    opened: OpenedTarget,
    anchors: Anchors,
    config: ScanConfig,
    policy: Policy,
    prompts: PromptSet,
    device: torch.device,
    *,
    place_trigger: Callable[[str], str] | None = None,
    started: float | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Identify, scan and judge encoders that were read from a file or taken from a host.

    Args:
        device: where to compute; the encoders themselves stay where they are.
        started: ``time.perf_counter()`` when the reading began; now where None.

    Raises:
        AmdetError: the anchor is not usable, or weights are not finite.
    """
    started = time.perf_counter() if started is None else started
    matched = _matched(opened, anchors, progress)
    target = _target(opened, matched)  # its hash before the scan, while the file is likely what was read
    findings: list[Findings] = []
    timings = {"open": time.perf_counter() - started}
    for found, anchor in zip(opened.encoders, matched, strict=True):
        subject = _subject(found, anchor, device)
        findings.append(scan(subject, prompts, config, policy, place_trigger=place_trigger, progress=progress))
        controls.scan_controls(subject, prompts, config, policy, findings[-1], progress=progress)
        findings[-1].faults += _projection_faults(found, anchor)
        del subject  # before the next one is put beside it
    report = _report(policy, config, prompts, target, matched, findings)
    timings |= _stage_seconds(findings) | {"total": time.perf_counter() - started}
    report = report.model_copy(update={"timings": timings})
    recovered = tuple(feature for found in findings for feature in found.features)
    return Outcome(report, recovered, render_files(report, _feature_files(recovered, report)))


def _subject(found: FoundEncoder, anchor: Anchor, device: torch.device) -> Subject:
    """One encoder and its anchor where to compute: on the CPU where the device has no room for both."""
    trusted = None if anchor.encoder is None else found.in_use(anchor.encoder)
    here = Subject(found.name, found.in_use(), trusted, anchor.identical, found.declared)
    if not anchor.identical:
        with suppress(OUT_OF_MEMORY):
            return replace(here, suspect=here.suspect.to(device), anchor=trusted and trusted.to(device))
    return here


def _projection_faults(found: FoundEncoder, anchor: Anchor) -> list[Fault]:
    """A text projection that was changed by more than training changes one: what it does can't be told."""
    apart = projection_change(found, anchor.encoder)
    if anchor.identical or apart is None or apart <= PROJECTION_DRIFT:
        return []
    said = f"it differs from the anchor's by {apart:.1%}, and nothing looks through it"
    return [Fault(stage="text projection", error="EncoderError", message=said, encoder=found.name)]


def joined(parts: Sequence[Outcome], policy: Policy) -> Outcome:
    """Scans of single encoders of one target as the scan of the whole target."""
    if len(parts) == 1:
        return parts[0]
    reports = [part.report for part in parts]

    def every(field: str) -> tuple[Any, ...]:
        return tuple(item for report in reports for item in getattr(report, field) or ())

    evidence, faults, first = every("evidence"), every("faults"), reports[0]
    targets = [report.target for report in reports]
    encoders = tuple(encoder for target in targets for encoder in target.encoders)
    in_memory = any(target.sha256 == _values_sha256(target.encoders) for target in targets)
    sha256 = _values_sha256(encoders) if in_memory else first.target.sha256
    stages = dict.fromkeys(stage for report in reports for stage in report.timings)
    report = first.model_copy(
        update={
            **{name: every(name) for name in ("sweeps", "patterns", "candidates", "forensics", "controls")},
            "target": first.target.model_copy(update={"encoders": encoders, "sha256": sha256}),
            "anchor": every("anchor") or None,
            "verdict": decide(policy, evidence, faults, every("controls")),
            "evidence": evidence,
            "triggers": tuple(sorted(every("triggers"), key=lambda trigger: -trigger.collapse)),
            "faults": faults,
            "not_checked": tuple(dict.fromkeys(every("not_checked"))),
            "timings": {stage: sum(report.timings.get(stage, 0.0) for report in reports) for stage in stages},
        }
    )
    recovered = tuple(feature for part in parts for feature in part.features)
    return Outcome(report, recovered, render_files(report, _feature_files(recovered, report)))


def stages(config: ScanConfig, encoders: int = 1) -> dict[str, int]:
    """How often each stage of a job will report to ``progress``; a search that succeeds early runs fewer."""
    return of_scan(config, encoders) | controls.stages(config, encoders)


def guards(
    opened: OpenedTarget, anchors: Anchors, config: GuardConfig, device: torch.device, progress: Progress = silent
) -> tuple[Guard, ...]:
    """A guard of every encoder against its own anchor; none of one that equals a trusted encoder.

    Raises:
        EncoderError: an encoder has no anchor.
        AmdetError: the anchor is not usable, or weights are not finite.
    """
    made = []
    for found, anchor in zip(opened.encoders, _matched(opened, anchors, progress), strict=True):
        if anchor.identical:
            continue
        if anchor.encoder is None:
            raise EncoderError(
                f"a trusted encoder to compare {found.name} with",
                "; ".join(anchor.notes),
                "Name the encoder that it was made from, or trust it once and for all: amdet trust add PATH.",
            )
        suspect, trusted = found.in_use().to(device), found.in_use(anchor.encoder).to(device)
        made.append(Guard.of(found.name, suspect, trusted, config, progress))
    return tuple(made)


def choose_device(name: str) -> torch.device:
    """The device of a name; ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: this machine, or this build of torch, has no such device.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    if not available[name]:
        usable = ", ".join(kind for kind, there in available.items() if there)
        raise ConfigError(f"a device that torch can use here ({usable})", name, "Use --device auto.")
    return torch.device(name)


def _matched(opened: OpenedTarget, anchors: Anchors, progress: Progress) -> list[Anchor]:
    """The anchor of every encoder, all of them with finite weights."""
    for found in opened.encoders:
        found.encoder.check_finite()
    matched = []
    for done, found in enumerate(opened.encoders):
        progress("identify", done, len(opened.encoders), {})
        matched.append(anchors.match(found, opened))
    return matched


def _report(
    policy: Policy,
    config: ScanConfig,
    prompts: PromptSet,
    target: Target,
    anchors: list[Anchor],
    findings: list[Findings],
) -> ScanReport:
    """The report of all encoders, without timings."""
    evidence = tuple(item for found in findings for item in found.evidence)
    faults = tuple(item for found in findings for item in found.faults)
    infos = tuple(anchor.info for anchor in anchors if anchor.info is not None)
    candidates = tuple(
        candidate.model_copy(update={"feature_file": features.feature_file(candidate.encoder, index)})
        for found in findings
        for index, candidate in enumerate(found.candidates)
    )
    triggers = [trigger for found in findings for trigger in found.triggers]
    honest = tuple(control for found in findings for control in found.controls)
    return ScanReport(
        tool=Tool(version=__version__),
        target=target,
        anchor=infos or None,
        verdict=decide(policy, evidence, faults, honest),
        evidence=evidence,
        triggers=tuple(sorted(triggers, key=lambda trigger: -trigger.collapse)),
        sweeps=tuple(found.sweep for found in findings if found.sweep is not None),
        patterns=tuple(found.patterns for found in findings if found.patterns is not None),
        candidates=candidates,
        forensics=tuple(found.forensics for found in findings if found.forensics is not None),
        controls=honest,
        faults=faults,
        not_checked=(
            *target.not_scanned,
            *(note for anchor in anchors for note in anchor.notes),
            *_left_out(config, findings),
            *NOT_CHECKED,
        ),
        config={
            "scan": config.model_dump(mode="json"),
            "policy": policy.model_dump(mode="json"),
            "prompts": {"source": prompts.source, "count": len(prompts), "sha256": prompts.sha256},
            "torch": torch.__version__,
        },
        timings={},
    )


def _left_out(config: ScanConfig, findings: list[Findings]) -> Iterator[str]:
    """What the settings left out of scans that measured anything."""
    swept = [found.sweep for found in findings if found.sweep is not None]
    moved = any(found.forensics is not None and found.forensics.rows_changed for found in findings)
    if config.sweep is not None and config.sweep.rows is not None and swept and moved:
        yield MOVED_ALONE
    if config.contrast is not None and not config.contrast.always and swept:
        yield NOT_INVERTED


def _target(opened: OpenedTarget, anchors: list[Anchor]) -> Target:
    return Target(
        path=str(opened.path),
        sha256=formats.file_sha256(opened) if opened.files else _values_sha256(anchors),
        encoders=tuple(
            EncoderInfo(
                name=found.name,
                spec=found.encoder.spec,
                dtype=found.dtype,
                layout=found.layout,
                fingerprint=anchor.fingerprint,
                assumptions=found.assumptions,
            )
            for found, anchor in zip(opened.encoders, anchors, strict=True)
        ),
        not_scanned=opened.not_scanned,
    )


def _values_sha256(encoders: Iterable[Anchor | EncoderInfo]) -> str:
    """Of encoders that are in no file, by their fingerprints."""
    return hashlib.sha256("".join(f"{one.fingerprint}\n" for one in encoders).encode()).hexdigest()


def _feature_files(recovered: Sequence[Feature], report: ScanReport) -> dict[str, bytes]:
    """Tensors of all features, and the strongest of each encoder as one embedding."""
    files = {
        str(candidate.feature_file): features.feature_bytes(feature)
        for candidate, feature in zip(report.candidates, recovered, strict=True)
    }
    embedding = features.pseudo_trigger_bytes(recovered)
    return files | ({PSEUDO_TRIGGER: embedding} if embedding else {})


def _stage_seconds(findings: list[Findings]) -> dict[str, float]:
    stages = dict.fromkeys(stage for found in findings for stage in found.timings)
    return {stage: sum(found.timings.get(stage, 0.0) for found in findings) for stage in stages}
