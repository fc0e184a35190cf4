"""How often a verdict depends on the seed of the scan: the same models, scanned with several seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from ..errors import ConfigError
from ..records import Record
from .results import Against, Detection, Share, read_detection

SAME = ("policy", "policy_sha256", "preset", "anchor", "zoo")
"""What results of several seeds agree on."""


class Flipping(Record):
    """One model under all seeds."""

    model: str
    label: Literal["backdoored", "benign", "intentional"]
    group: str
    flagged: int = Field(description="scans that flag it")
    n: int = Field(description="scans")

    @property
    def flips(self) -> int:
        """Scans that say otherwise than most; half of them where opinions are even."""
        return min(self.flagged, self.n - self.flagged)


class Flips(Record):
    """The verdicts of several seeds; models that are not in all results are left out."""

    command: str
    policy: str
    preset: Literal["quick", "standard", "thorough"]
    anchor: Against
    zoo: str
    seeds: tuple[int, ...]
    scans: Share = Field(description="scans that say otherwise than most scans of their model")
    models: Share = Field(description="models of which any scan does; the careful one")
    rows: tuple[Flipping, ...] = Field(description="those models alone")


def flips(results: Mapping[Path, Detection], command: str = "") -> Flips:
    """Compare results of ``amdet bench detection`` that differ in the seed of the scans alone.

    Raises:
        ConfigError: there are fewer than two, two have one seed, or they differ in more than that.
    """
    found = list(results.values())
    seeds = tuple(one.seeds.scan for one in found)
    if len(set(seeds)) < max(2, len(found)):
        raise ConfigError("results of at least two different seeds", f"seeds {seeds}", "Scan with other --seed values.")
    for path, one in results.items():
        for name in SAME:
            if getattr(one, name) != getattr(found[0], name):
                raise ConfigError(
                    f"results with one {name}", f"another in {path}", "Compare results that differ in --seed alone."
                )
    counted = _counted(found)
    return Flips(
        command=command,
        policy=found[0].policy,
        preset=found[0].preset,
        anchor=found[0].anchor,
        zoo=found[0].zoo.name,
        seeds=seeds,
        scans=Share.of((row.flips, row.n) for row in counted),
        models=Share.of((int(row.flips > 0), 1) for row in counted),
        rows=tuple(row for row in counted if row.flips),
    )


def read_flips(paths: Sequence[Path], command: str = "") -> Flips:
    """The same from files; see :func:`flips`."""
    return flips({path: read_detection(path) for path in paths}, command)


def _counted(results: Sequence[Detection]) -> list[Flipping]:
    """Every model that all results scanned without an error."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    about = {row.model: row for one in results for row in one.models}
    for one in results:
        for row in one.models:
            if row.error is None:
                verdicts[row.model].append(row.flagged)
    return [
        Flipping(model=name, label=about[name].label, group=about[name].group, flagged=sum(flagged), n=len(flagged))
        for name, flagged in verdicts.items()
        if len(flagged) == len(results)
    ]
