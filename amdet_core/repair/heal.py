"""The loop: scan, repair by the least invasive method that works, scan again, and say what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field

from .. import formats
from ..anchors import Anchors
from ..config import Config, DistilConfig, EraseConfig, HealConfig, RestoreConfig, ScanConfig, SpectralConfig
from ..encoder import TOKEN_TABLE, TextEncoder
from ..errors import ConfigError, NumericalError
from ..formats import FoundEncoder, OpenedTarget
from ..jobs import Outcome as Scanned
from ..jobs import joined, scan_opened
from ..patch import Patch
from ..policy import Policy
from ..progress import Progress, silent
from ..prompts import PromptSet
from ..records import Level, LevelName, Measured, Record, Target, Verdict
from .condition import Case
from .kinds import ANCHORED, CONFIGS, TRIGGERED, Outcome, finish, named, repair
from .ladder import no_anchor
from .probe import Probe, recovered

REPLACED = "replace"
"""What a repair is called that puts the anchor in the suspect's place."""


class Attempt(Record):
    """One repair that was tried, and what a scan says of its result."""

    method: str
    outcome: Outcome | None = Field(default=None, description="null: it ended with an error")
    error: str = ""
    verdict: Verdict | None = Field(
        default=None, description="of the re-scan; null: the repair did not work, so none was made"
    )

    @property
    def result(self) -> str:
        """What came of it, in words."""
        if self.outcome is None:
            return self.error
        if self.verdict is None:
            return f"{self.outcome.after}"
        return f"a re-scan still says {self.verdict.level.name.lower()}"


class HealReport(Record):
    """What was found, what was done, and how far it helped."""

    target: Target
    before: Verdict
    action: Literal["nothing", "replaced", "repaired", "failed", "not judged"]
    statement: str
    advice: str = ""
    same_as_anchor: Measured = Field(
        default=None, description="mean cosine of the suspect's clean answers to the anchor's"
    )
    triggers: tuple[str, ...] = Field(default=(), description="recovered, by which repairs were made and chosen")
    attempts: tuple[Attempt, ...] = ()
    after: LevelName | None = Field(default=None, description="of the last re-scan")

    @property
    def healed(self) -> bool:
        """Whether there is a repaired encoder to use."""
        return self.action in ("repaired", "replaced")


@dataclass(frozen=True, eq=False)
class Healing:
    """A report, the scans before and after, and the patch where there is one."""

    report: HealReport
    before: Scanned
    after: Scanned | None = None
    patch: Patch | None = None


@dataclass(frozen=True, eq=False)
class Clinic:
    """Everything that scans and repairs of one target share.

    Attributes:
        opened: the target; it stays as it is. Of several encoders each has a clinic of its own: see :attr:`each`.
        anchors: where the anchor comes from.
        scan: of every scan, before and after.
        prompts: to scan, repair and measure with.
    """

    opened: OpenedTarget
    anchors: Anchors
    scan: ScanConfig
    policy: Policy
    prompts: PromptSet
    device: torch.device
    progress: Progress = silent

    @property
    def found(self) -> FoundEncoder:
        """The encoder.

        Raises:
            EncoderError: there are several.
        """
        formats.only_encoder(self.opened)
        return self.opened.encoders[0]

    def check_suspect(self) -> None:
        """Refuse to repair what can have no backdoor.

        Raises:
            ConfigError: the encoder has the values of a trusted one.
        """
        matched = self.anchors.match(self.found, self.opened)
        if matched.identical:
            name = matched.info.name if matched.info else "a trusted encoder"
            raise ConfigError(
                "an encoder that may have a backdoor",
                f"{self.found.name}, which equals the trusted encoder {name}",
                "Nothing is to be repaired: use it as it is.",
            )

    @property
    def each(self) -> tuple[Clinic, ...]:
        """The same for every encoder of the target alone."""
        return tuple(replace(self, opened=replace(self.opened, encoders=(found,))) for found in self.opened.encoders)

    def telling(self, progress: Progress) -> Clinic:
        """The same, with its progress told elsewhere."""
        return replace(self, progress=progress)

    def scanned(self, encoder: TextEncoder | None = None) -> Scanned:
        """A scan of the target, or of it with a repaired encoder in place of its own; without honest controls.

        Those would be made anew for every scan, and the policy's own calibration judges all of them alike.
        """
        opened = self.opened if encoder is None else self._holding(encoder)
        config = self.scan.model_copy(update={"controls": 0})
        return scan_opened(opened, self.anchors, config, self.policy, self.prompts, self.device, progress=self.progress)

    def repaired(self, patch: Patch) -> Scanned:
        """A scan of the target after a repair, with the values that its file will have."""
        return self.scanned(formats.as_stored(self.whole(patch).apply(self.found.encoder)))

    def case(self, probes: Sequence[Probe]) -> Case:
        """The encoder and its anchor, as far as prompts reach, with triggers to repair by."""
        found = self.found
        anchor = self.anchors.match(found, self.opened).encoder
        return Case.of(
            found.in_use().to(self.device),
            None if anchor is None else found.in_use(anchor).to(self.device),
            probes,
            self.prompts.first(self.scan.prompt_limit),
        )

    def whole(self, patch: Patch) -> Patch:
        """A patch of what prompts reach as one of the file's encoder, which may have added token rows."""
        if TOKEN_TABLE not in patch.deltas or not self.found.added_tokens:
            return patch
        rows = torch.nn.functional.pad(patch.deltas[TOKEN_TABLE], (0, 0, 0, self.found.added_tokens))
        return Patch({**patch.deltas, TOKEN_TABLE: rows}, patch.provenance)

    def _holding(self, encoder: TextEncoder) -> OpenedTarget:
        found = replace(self.found, encoder=encoder, layout="graph")
        return replace(self.opened, files=(), encoders=(found,))


@dataclass(frozen=True, eq=False)
class Healed:
    """What became of every encoder of a target, by name."""

    encoders: Mapping[str, Healing]
    policy: Policy

    @property
    def found_nothing(self) -> bool:
        """Whether every encoder is clean as it is."""
        return all(one.report.action == "nothing" for one in self.encoders.values())

    @property
    def healed(self) -> bool:
        """Whether something was found, and all of it is healed: nothing failed, and no scan was left in doubt."""
        left = [one for one in self.encoders.values() if one.report.action != "nothing"]
        return bool(left) and all(one.report.healed for one in left)

    @property
    def patches(self) -> dict[str, Patch]:
        """The repairs that work."""
        return {name: one.patch for name, one in self.encoders.items() if one.patch is not None}

    @property
    def before(self) -> Scanned:
        """The scan of the target as it was."""
        return joined([one.before for one in self.encoders.values()], self.policy)

    @property
    def after(self) -> Scanned:
        """The scan of what there is now: repaired encoders, and the others as they were."""
        return joined([one.after or one.before for one in self.encoders.values()], self.policy)


def heal_each(
    clinic: Clinic, config: HealConfig | None = None, *, method: str | None = None, replaced: bool = False
) -> Healed:
    """Heal the encoders of a target one by one; see :func:`heal`."""
    healings = {one.found.name: heal(one, config, method=method, replaced=replaced) for one in clinic.each}
    return Healed(healings, clinic.policy)


def heal(
    clinic: Clinic,
    config: HealConfig | None = None,
    *,
    method: str | None = None,
    replaced: bool = False,
    before: Scanned | None = None,
) -> Healing:
    """Scan a target with one encoder; where something is found, repair a copy of the encoder and scan that.

    Args:
        method: the only repair to try, by its name in :data:`.kinds.CONFIGS`; all that can be used where None.
        replaced: put the anchor in the suspect's place where the two say the same but for the backdoor.
        before: a scan of the target by the same settings; made where None.

    Raises:
        ConfigError: the method needs an anchor and there is none; or the anchor shall take the suspect's place,
            and there is none or it says something else.
        AmdetError: the target or the anchor is not usable.
    """
    if method in ANCHORED:
        matched = clinic.anchors.match(clinic.found, clinic.opened)
        if matched.encoder is None and not matched.identical:
            raise no_anchor(method)  # now rather than after a scan
    config, before = config or HealConfig(), before or clinic.scanned()
    level = before.report.verdict.level
    if level < Level.SUSPICIOUS:
        return Healing(_unchanged(before), before)
    probes = triggers(before, config)
    case = clinic.case(probes)
    same = None if case.anchor is None else case.clean_cosine(case.anchor)
    told = HealReport(
        target=before.report.target,
        before=before.report.verdict,
        action="failed",
        statement="",
        same_as_anchor=same,
        advice=_advice(before, same, config),
    )
    if replaced:
        return _replaced(clinic, case, before, told, config)
    attempts: list[Attempt] = []
    for settings in ladder(case) if method is None else alone(case, method):
        for _ in range(config.rounds):
            try:
                made = repair(case, settings, config.cure, clinic.progress)
            except NumericalError as error:
                attempts.append(Attempt(method=named(settings), error=str(error)))
                break
            if not made.outcome.works:
                attempts.append(Attempt(method=made.outcome.method, outcome=made.outcome))
                break
            after = clinic.repaired(made.patch)
            attempts.append(Attempt(method=made.outcome.method, outcome=made.outcome, verdict=after.report.verdict))
            if _passes(after, case):
                return Healing(_repaired(told, case, attempts), before, after, clinic.whole(made.patch))
            more = triggers(after, config)
            if not more:
                break
            probes += more
            case = clinic.case(probes)
    return Healing(_failed(told, case, attempts), before)


def ladder(case: Case) -> Iterator[Config]:
    """Methods that can be used here, from the least to the most invasive."""
    if case.anchor is None:
        if case.probes:
            yield EraseConfig()
        return
    yield SpectralConfig()
    yield RestoreConfig()
    if case.probes:
        yield DistilConfig()


def alone(case: Case, method: str) -> Iterable[Config]:
    """A method that was asked for; none where it has no trigger to work by."""
    return [CONFIGS[method]()] if case.probes or method not in TRIGGERED else []


def replaceable(same: float | None, config: HealConfig) -> bool:
    """Whether an anchor can take the suspect's place, by the mean cosine of their clean answers."""
    return same is not None and same >= config.same


def triggers(scanned: Scanned, config: HealConfig) -> tuple[Probe, ...]:
    """What a scan recovered and repairs are made by."""
    return recovered(scanned.report, scanned.features, config.least, config.probes)


def _passes(after: Scanned, case: Case) -> bool:
    """Whether a re-scan finds nothing. Without an anchor no scan says clean, and no fault is the best there is."""
    level = after.report.verdict.level
    return level == Level.CLEAN or (case.anchor is None and level < Level.SUSPICIOUS and not after.report.faults)


def _replaced(clinic: Clinic, case: Case, before: Scanned, told: HealReport, config: HealConfig) -> Healing:
    if case.anchor is None or not replaceable(told.same_as_anchor, config):
        raise ConfigError(
            f"an anchor whose clean answers are the suspect's (mean cosine {config.same} or more)",
            "no anchor" if case.anchor is None else f"{told.same_as_anchor:.3f}: the suspect learnt more than that",
            "Repair it instead: leave replace out.",
        )
    made = finish(case, REPLACED, case.anchor, config.cure, 0.0)
    after = clinic.repaired(made.patch)
    attempt = Attempt(method=REPLACED, outcome=made.outcome, verdict=after.report.verdict)
    statement = (
        "The trusted encoder took the suspect's place: backdoor aside, both say the same "
        f"(mean cosine {told.same_as_anchor:.3f} on clean prompts)."
    )
    report = told.model_copy(
        update={"action": "replaced", "statement": statement, "advice": "", **_tried(case, [attempt])}
    )
    return Healing(report, before, after, clinic.whole(made.patch))


def _unchanged(before: Scanned) -> HealReport:
    verdict = before.report.verdict
    judged = verdict.level == Level.CLEAN
    return HealReport(
        target=before.report.target,
        before=verdict,
        action="nothing" if judged else "not judged",
        statement=(
            "Nothing was found, so nothing was changed."
            if judged
            else "The scan could not tell whether there is anything to heal, so nothing was changed."
        ),
        advice="" if judged else "Read why, put right what failed, and heal again; an anchor helps most.",
    )


def _advice(before: Scanned, same: float | None, config: HealConfig) -> str:
    """The simplest cure, where there is one."""
    if same is None or not replaceable(same, config):
        return ""
    name = before.report.anchor[0].name if before.report.anchor else "the anchor"
    return (
        f"The simplest cure: use the trusted encoder itself ({name}). Backdoor aside, the suspect says what it says "
        f"(mean cosine {same:.3f} on clean prompts). The option replace puts it in the suspect's place."
    )


def _tried(case: Case, attempts: Sequence[Attempt]) -> dict[str, object]:
    last = attempts[-1].verdict if attempts else None
    return {
        "triggers": tuple(probe.name for probe in case.probes),
        "attempts": tuple(attempts),
        "after": None if last is None else last.level,
    }


def _repaired(told: HealReport, case: Case, attempts: Sequence[Attempt]) -> HealReport:
    last = attempts[-1].outcome
    assert last is not None, "what was repaired has an outcome"
    found = (
        "a re-scan finds nothing"
        if case.anchor is not None
        else "a re-scan without an anchor finds nothing any more, which can't be called clean"
    )
    statement = f"Repaired by {last.method}: {found}. {last.after}."
    return told.model_copy(update={"action": "repaired", "statement": statement, **_tried(case, attempts)})


def _failed(told: HealReport, case: Case, attempts: Sequence[Attempt]) -> HealReport:
    why = "; ".join(f"{one.method}: {one.result}" for one in attempts)
    statement = f"No repair worked, and nothing was changed. {why or 'No trigger was recovered to repair by.'}"
    return told.model_copy(update={"statement": statement, **_tried(case, attempts)})
