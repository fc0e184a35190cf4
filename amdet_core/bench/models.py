"""A benchmark over the models of a zoo: a result file grows model by model, and a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import torch

from .. import formats, trust
from ..errors import AmdetError, ConfigError
from ..jobs import choose_device
from ..progress import Progress
from ..storage import check_file, record_json, write_atomic
from ..workers import side_by_side, threads
from ..zoo.labels import Label, Labels
from .results import Machine, Result, Row, Seeds, ZooInfo
from .source import commit

R = TypeVar("R", bound=Result)
Model = TypeVar("Model", bound=Row)
Task = TypeVar("Task")
SAME = {
    "zoo": "zoo.name",
    "base encoder": "zoo.base_fingerprint",
    "recipe of the zoo": "zoo.recipe_sha256",
    "seeds": "seeds",
    "settings": "settings_sha256",
}
"""What two runs of one benchmark agree on."""


def run_models(
    zoo: Path,
    labels: Labels,
    empty: R,
    work: Callable[[Task], Row],
    task: Callable[[Label], Task],
    add_up: Callable[[Sequence[Any]], Any],
    *,
    out: Path,
    read: Callable[[Path], R],
    same: Mapping[str, str],
    sample: int | None,
    jobs: int,
    progress: Progress,
) -> R:
    """Do the models that a result file lacks, and rewrite the file after each.

    Args:
        empty: the result before anything was done.
        work: makes a model's row; a function of a module.
        add_up: makes the metrics of all rows.
        out: the result file. One of an earlier, unfinished run of the same benchmark is completed.
        same: by their names, fields on which the earlier run has to agree, beside :data:`SAME`.
        sample: at most so many models.

    Raises:
        ConfigError: the file holds results of another benchmark, the base is not the one of the labels, or a
            worker was killed.
        AmdetError: the zoo can't be read or the file can't be written.
    """
    if len(labels.models) + len(labels.failed) < labels.planned:
        raise ConfigError(
            f"a zoo of {labels.planned} models", f"{len(labels.models)} so far", "Build the rest: amdet zoo build."
        )
    if not labels.models:
        raise ConfigError(
            f"a zoo with models in {zoo}", f"none, and {len(labels.failed)} that could not be made",
            "Build another one: amdet zoo build says why none could be made.",
        )  # fmt: skip
    earlier = _earlier(out, read, empty, {**same, **SAME})
    check_file(out)
    _check_base(zoo / labels.base, labels.base_fingerprint)
    done = _kept(earlier, labels)
    tasks = [task(label) for label in labels.evenly()[:sample] if label.model not in done]
    if earlier is not None and done:
        empty = _continued(earlier, empty, working=bool(tasks))

    def keep(*, complete: bool) -> R:
        models = tuple(done[label.model] for label in labels.models if label.model in done)
        result = empty.model_copy(update={"models": models, "metrics": add_up(models), "complete": complete})
        write_atomic(out, record_json(result))
        return result

    total = len(done) + len(tasks)
    progress("models", len(done), total, {})
    with closing(side_by_side(work, tasks, jobs)) as rows:
        for _, row in rows:
            done[row.model] = row
            keep(complete=False)
            progress("models", len(done), total, {})
    return keep(complete=True)


def begun(labels: Labels, device: str, jobs: int, seed: int, settings: str) -> dict[str, Any]:
    """The fields that a result of any benchmark has before anything was done.

    Args:
        seed: of the benchmark's own random choices.
        settings: everything that decides the results; it is hashed.
    """
    return {
        "commit": commit(),
        "machine": machine(device, jobs),
        "zoo": zoo_info(labels),
        "seeds": Seeds(zoo=labels.seed, scan=seed),
        "settings_sha256": sha256(settings),
        "complete": False,
        "models": (),
    }


def sha256(settings: str) -> str:
    """The hash by which a result names settings."""
    return hashlib.sha256(settings.encode()).hexdigest()


def timed(row: Model, work: Callable[[], Mapping[str, object]]) -> Model:
    """A model's row with the fields that ``work`` fills, its time, and an error that was raised on purpose."""
    started = time.perf_counter()
    try:
        row = row.model_copy(update=dict(work()))
    except AmdetError as error:
        row = row.model_copy(update={"error": str(error)})
    row = row.model_copy(update={"seconds": time.perf_counter() - started})
    # Rounded as it will be in the file, so that a run that was resumed gives the same metrics.
    return type(row).model_validate_json(record_json(row))


def machine(device: str, jobs: int) -> Machine:
    """Where a benchmark runs."""
    where = choose_device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
    return Machine(torch=torch.__version__, threads=threads(jobs), device=name)


def zoo_info(labels: Labels) -> ZooInfo:
    """What a zoo holds."""
    counts = [label.label for label in labels.models]
    return ZooInfo(
        name=labels.name,
        base_fingerprint=labels.base_fingerprint,
        recipe_sha256=labels.recipe_sha256,
        n_backdoored=counts.count("backdoored"),
        n_benign=counts.count("benign"),
        n_intentional=counts.count("intentional"),
    )


def _earlier(out: Path, read: Callable[[Path], R], new: R, same: Mapping[str, str]) -> R | None:
    """What an earlier run of the same benchmark left, or None where there is no file."""
    if not out.exists():
        return None
    old = read(out)
    for name, field in same.items():
        before, now = attrgetter(field)(old), attrgetter(field)(new)
        if before != now:
            raise ConfigError(
                f"results of the same benchmark in {out}, with {name} {now}",
                f"{name} {before}",
                "Write to another file, or remove this one.",
            )
    return old


def _continued(earlier: R, new: R, *, working: bool) -> R:
    """The empty result of a run that goes on.

    One that has nothing left to do leaves the origin as it was; but where it completes a file, in that it asks for no
    more models than are there, the file is what its command makes.
    """
    if not working:
        origin = {"commit": earlier.commit, "machine": earlier.machine}
        if earlier.complete:
            origin["command"] = earlier.command
        return new.model_copy(update=origin)
    commits = dict.fromkeys([*(earlier.commit or "").split(", "), new.commit or ""])
    return new.model_copy(update={"commit": ", ".join(filter(None, commits)) or None})


def _kept(earlier: Result | None, labels: Labels) -> dict[str, Row]:
    """Name -> row of an earlier run, of models that still have the values they had then; what failed is tried again."""
    now = {label.model: label.fingerprint for label in labels.models}
    rows = () if earlier is None else earlier.models
    return {row.model: row for row in rows if row.error is None and now.get(row.model) == row.fingerprint}


def _check_base(base: Path, fingerprint: str) -> None:
    found = trust.fingerprint(formats.only_encoder(formats.open_target(base)))
    if found != fingerprint:
        raise ConfigError(
            f"the base encoder of the labels ({fingerprint[:12]}) at {base}",
            f"other values ({found[:12]})",
            "Build the zoo again.",
        )
