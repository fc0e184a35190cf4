"""The repairs by name, and what each of them achieved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from ..attacks.benign import fine_tune
from ..config import (
    Config,
    CureConfig,
    DistilConfig,
    EraseConfig,
    FineTuneConfig,
    MimicConfig,
    RestoreConfig,
    SpectralConfig,
)
from ..encoder import TextEncoder
from ..errors import ConfigError
from ..patch import Patch
from ..progress import Progress, silent
from ..prompts import PromptSet
from ..records import Record
from . import distil, erase, mimic, restore, spectral
from .condition import Case, Condition

CONFIGS: Mapping[str, type[Config]] = {
    "erase": EraseConfig,
    "spectral": SpectralConfig,
    "restore": RestoreConfig,
    "distil": DistilConfig,
    "fine-tune": FineTuneConfig,
    "mimic": MimicConfig,
}
"""Name of a repair -> its settings; ``fine-tune`` is the baseline."""
ANCHORED = ("spectral", "restore", "distil")
"""Repairs that need an anchor."""
TRIGGERED = ("distil", "erase")
"""Repairs that need a trigger."""
BLIND = ("fine-tune", "mimic")
"""Repairs that make no use of one: they can be run, if not judged, where none is known."""


OWN_OF_KNOWN = 0.9
"""Mean cosine of prompts with the true trigger to their own answer, from which it is cured."""
NO_EFFECT = 0.98
"""The same in the suspect before any repair, from which a trigger does nothing there."""


def known_bounds(bounds: CureConfig) -> CureConfig:
    """When a repair counts as one by the true trigger: less is asked than where a recovered one stands for it."""
    return bounds.model_copy(update={"own": OWN_OF_KNOWN})


def check_effect(case: Case) -> None:
    """Refuse known triggers that do nothing: a repair by them would change clean answers alone, and seem to work.

    Raises:
        ConfigError: prompts with any of them are read as the anchor reads them. Where there is none, or where clean
            answers differ from its own as well, it can't be told.
    """
    before = case.unrepaired.responses
    if all(one.own_cosine >= NO_EFFECT for one in before):
        names, least = ", ".join(one.trigger for one in before), min(one.own_cosine for one in before)
        raise ConfigError(
            "a trigger that does something in this encoder",
            f"{names}: prompts with it are read as without a backdoor (mean cosine {least:.3f})",
            "Check how it is written, and where it stands in prompts (prefix, insert, replace:LETTER).",
        )


def check_lora(config: Config, rank: int) -> None:
    """Refuse a LoRA that can't hold what a repair will change, before the work.

    What ``erase`` changes has a rank that is known afterwards.

    Args:
        config: of the repair.
        rank: of the LoRA's matrices at most.

    Raises:
        ConfigError: the repair changes more than layer matrices, or by a higher rank.
    """
    remedy = ""
    match config:
        case SpectralConfig() if config.rows:
            remedy = "Leave the rows of the token table alone: --set rows=0."
        case DistilConfig() if config.trains != "lora" or config.start != "suspect":
            remedy = "Train low-rank additions to a copy of the suspect: --set trains=lora --set start=suspect."
        case FineTuneConfig() if config.trains != "lora":
            remedy = "Train low-rank additions: --set trains=lora."
        case RestoreConfig() | MimicConfig():
            remedy = "Write the differences instead (--delta), or repair by spectral with --set rows=0."
        case DistilConfig() | FineTuneConfig() if config.rank > rank:
            remedy = f"Ask for a LoRA of that rank (--lora-rank {config.rank}), or train fewer: --set rank={rank}."
    if remedy:
        what = named(config)
        raise ConfigError(f"a repair that changes layer matrices alone, by rank {rank} at most", what, remedy)


class Outcome(Record):
    """What a repair achieved, by the triggers that it was given."""

    method: str
    before: Condition
    after: Condition
    cured: bool = Field(description="whether none of the triggers works any more")
    kept: bool = Field(description="whether clean prompts are answered as before")
    seconds: float = Field(description="of the repair, without measuring before and after")

    @property
    def works(self) -> bool:
        """Whether it can be used."""
        return self.cured and self.kept

    def __str__(self) -> str:
        return f"{self.method}: before, {self.before}; after, {self.after}"


@dataclass(frozen=True, eq=False)
class Repair:
    """A repair, ready to be applied to the suspect, and what it achieves."""

    patch: Patch
    outcome: Outcome


def repair(case: Case, config: Config, bounds: CureConfig | None = None, progress: Progress = silent) -> Repair:
    """Run the repair that the settings belong to, and measure before and after.

    Args:
        bounds: when a repair counts as one; methods that choose among several edits choose by them.

    Raises:
        ConfigError: it needs an anchor, or a trigger, and there is none.
        NumericalError: a training diverged.
    """
    bounds, method = bounds or CureConfig(), named(config)
    started = time.perf_counter()
    after = _repaired(case, config, bounds, progress)
    return finish(case, method, after, bounds, time.perf_counter() - started, settings=config)


def finish(
    case: Case, method: str, after: TextEncoder, bounds: CureConfig, seconds: float, *, settings: Config | None = None
) -> Repair:
    """Measure what became of a suspect, and record it."""
    before, found = case.unrepaired, case.measure(after)
    outcome = Outcome(
        method=method,
        before=before,
        after=found,
        cured=found.cured(bounds),
        kept=found.kept(bounds),
        seconds=seconds,
    )
    made = {"repair": method, "triggers": "\n".join(probe.name for probe in case.probes)}
    if settings is not None:
        made["config"] = settings.model_dump_json()
    return Repair(Patch.between(case.suspect, after, {**made, "effect": outcome.model_dump_json()}), outcome)


def named(config: Config) -> str:
    """The name of the repair that settings belong to.

    Raises:
        ConfigError: they belong to none.
    """
    for name, kind in CONFIGS.items():
        if type(config) is kind:
            return name
    raise ConfigError("settings of a repair", type(config).__name__, "See docs/repair.md.")


def _repaired(case: Case, config: Config, bounds: CureConfig, progress: Progress) -> TextEncoder:
    match config:
        case SpectralConfig():
            return spectral.repair(case, config, bounds, progress)
        case RestoreConfig():
            return restore.repair(case, config, bounds, progress)
        case DistilConfig():
            return distil.repair(case, config, bounds, progress)
        case EraseConfig():
            return erase.repair(case, config, bounds, progress)
        case FineTuneConfig():
            return fine_tune(case.suspect, PromptSet(case.fit, "clean prompts"), config, progress).apply(case.suspect)
        case MimicConfig():
            return mimic.repair(case, config, progress)
    raise ConfigError("settings of a repair", type(config).__name__, "See docs/repair.md.")
