"""The detection benchmark: every model of a zoo is scanned as a user would scan it, against the zoo's base.

A result file grows model by model, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from .. import formats, trust
from ..config import Config
from ..errors import ConfigError
from ..jobs import Job, choose_device
from ..progress import Progress, silent
from ..scan import plan
from ..storage import check_writable, record_json, write_atomic
from ..verdict import DEFAULT_POLICY, load_policy
from ..workers import side_by_side, threads
from ..zoo.labels import Labels
from .metrics import measure
from .results import Detection, Machine, ModelResult, Seeds, ZooInfo, read_detection
from .scans import scan_model
from .source import commit


class Benchmark(Config):
    """What is measured and how."""

    zoo: Path = Field(description="folder with labels.json and the models")
    policy: str = Field(default=DEFAULT_POLICY, description="name or file")
    preset: Literal["quick", "standard", "thorough"] = Field(default="standard", description="how much work")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="where to compute")
    seed: int = Field(default=42, ge=0, description="of every scan")
    jobs: int = Field(default=1, ge=1, description="models scanned side by side, each in a process of its own")
    sample: int | None = Field(
        default=None, ge=1, description="at most so many models, every group by its share of the zoo; null: all"
    )

    def job(self, model: str, base: str) -> Job:
        """The scan of one model against the base encoder."""
        return Job(
            target=self.zoo / model,
            anchor=str(self.zoo / base),
            preset=self.preset,
            policy=self.policy,
            device=self.device,
            seed=self.seed,
        )


def run(benchmark: Benchmark, out: Path, *, command: str = "", progress: Progress = silent) -> Detection:
    """Scan what a result file lacks, and rewrite the file after each model.

    Args:
        out: the result file. One of an earlier, unfinished run of the same benchmark is completed.
        command: the command line that makes this file, for the record.
        progress: told how many models are done.

    Raises:
        ConfigError: the file holds results of another benchmark, the base is not the one of the labels, or a
            worker was killed.
        AmdetError: the zoo can't be read or the file can't be written.
    """
    labels = Labels.read(benchmark.zoo)
    if len(labels.models) + len(labels.failed) < labels.planned:
        raise ConfigError(
            f"a zoo of {labels.planned} models", f"{len(labels.models)} so far", "Build the rest: amdet zoo build."
        )
    empty = _empty(benchmark, labels, command)
    earlier = _earlier(out, empty)
    check_writable(out.parent)
    _check_base(benchmark.zoo / labels.base, labels.base_fingerprint)
    done = _kept(earlier, labels)
    chosen = labels.evenly()[: benchmark.sample]
    tasks = [(label, benchmark.job(label.model, labels.base)) for label in chosen if label.model not in done]
    if earlier is not None:
        empty = _continued(earlier, empty, scanning=bool(tasks))

    def keep(*, complete: bool) -> Detection:
        models = tuple(done[label.model] for label in labels.models if label.model in done)
        result = empty.model_copy(update={"models": models, "metrics": measure(models), "complete": complete})
        write_atomic(out, record_json(result))
        return result

    total = len(done) + len(tasks)
    progress("models", len(done), total, {})
    with closing(side_by_side(scan_model, tasks, benchmark.jobs)) as rows:
        for _, row in rows:
            done[row.model] = row
            keep(complete=False)
            progress("models", len(done), total, {})
    return keep(complete=True)


def _empty(benchmark: Benchmark, labels: Labels, command: str) -> Detection:
    """The result before anything was scanned."""
    policy = load_policy(benchmark.policy)
    settings = policy.model_dump_json() + plan(policy, benchmark.preset, benchmark.seed).model_dump_json()
    counts = [label.label for label in labels.models]
    device = choose_device(benchmark.device)
    return Detection(
        command=command,
        commit=commit(),
        machine=Machine(
            torch=torch.__version__,
            threads=threads(benchmark.jobs),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        ),
        zoo=ZooInfo(
            name=labels.name,
            base_fingerprint=labels.base_fingerprint,
            recipe_sha256=labels.recipe_sha256,
            n_backdoored=counts.count("backdoored"),
            n_benign=counts.count("benign"),
            n_intentional=counts.count("intentional"),
        ),
        policy=policy.name,
        preset=benchmark.preset,
        seeds=Seeds(zoo=labels.seed, scan=benchmark.seed),
        settings_sha256=hashlib.sha256(settings.encode()).hexdigest(),
        complete=False,
        metrics=measure(()),
        models=(),
    )


def _earlier(out: Path, new: Detection) -> Detection | None:
    """What an earlier run of the same benchmark left, or None where there is no file."""
    if not out.exists():
        return None
    old = read_detection(out)
    for name, before, now in (
        ("zoo", old.zoo.name, new.zoo.name),
        ("base encoder", old.zoo.base_fingerprint, new.zoo.base_fingerprint),
        ("recipe of the zoo", old.zoo.recipe_sha256, new.zoo.recipe_sha256),
        ("policy", old.policy, new.policy),
        ("preset", old.preset, new.preset),
        ("seeds", old.seeds, new.seeds),
        ("bounds and settings", old.settings_sha256, new.settings_sha256),
    ):
        if before != now:
            raise ConfigError(
                f"results of the same benchmark in {out}, with {name} {now}",
                f"{name} {before}",
                "Write to another file, or remove this one.",
            )
    return old


def _continued(earlier: Detection, new: Detection, *, scanning: bool) -> Detection:
    """The empty result of a run that goes on; one that has nothing left to scan leaves the origin as it was."""
    if not scanning:
        origin = {"command": earlier.command, "commit": earlier.commit, "machine": earlier.machine}
        return new.model_copy(update=origin)
    commits = dict.fromkeys([*(earlier.commit or "").split(", "), new.commit or ""])
    return new.model_copy(update={"commit": ", ".join(filter(None, commits)) or None})


def _kept(earlier: Detection | None, labels: Labels) -> dict[str, ModelResult]:
    """Name -> scan of an earlier run, of the models that still have the values they had then."""
    now = {label.model: label.fingerprint for label in labels.models}
    rows = () if earlier is None else earlier.models
    return {row.model: row for row in rows if now.get(row.model) == row.fingerprint}


def _check_base(base: Path, fingerprint: str) -> None:
    found = trust.fingerprint(formats.only_encoder(formats.open_target(base)))
    if found != fingerprint:
        raise ConfigError(
            f"the base encoder of the labels ({fingerprint[:12]}) at {base}",
            f"other values ({found[:12]})",
            "Build the zoo again.",
        )
