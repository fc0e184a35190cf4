"""The repair benchmark: every method on every model of a zoo, measured by true triggers that no method is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import Field, field_validator

from .. import formats
from ..anchors import Anchors
from ..attacks.effect import Example
from ..attacks.planted import Planted
from ..attacks.syntactic import Patterned
from ..config import Config, HealConfig, InjectionConfig
from ..config.base import Seed
from ..encoder import TextEncoder
from ..errors import AmdetError
from ..jobs import Outcome as Scanned
from ..jobs import choose_device
from ..patch import Patch
from ..policy import load_policy
from ..progress import Progress, silent
from ..prompts import builtin_prompts
from ..records import Measured, Record
from ..repair import CONFIGS, Case, Clinic, Probe, heal, repair, triggers
from ..scan import plan
from ..zoo.labels import Label, Labels
from .models import begun, run_models, timed
from .results import Result, Row, Share, read_result

HEAL, ALONE = "heal", "erase"
"""The loop, and the method that is given neither an anchor nor a scan with one."""
METHODS = (ALONE, "mimic", "spectral", "restore", "distil", "fine-tune", HEAL)
EXAMPLES = 64
"""Held-out triggered prompts of each model."""
NEARER, OWN, CLEAN, ASR = 0.95, 0.9, 0.98, 0.05
"""What a model has to reach to count as healed, and as erased."""


class RepairBenchmark(Config):
    """What is measured and how."""

    zoo: Path = Field(description="folder with labels.json and the models")
    policy: str = Field(default="amdet-2", description="name or file")
    preset: Literal["quick", "standard", "thorough"] = Field(default="standard", description="how much work")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="where to compute")
    seed: Seed = Field(default=42, description="of every scan")
    jobs: int = Field(default=1, ge=1, description="models side by side, each in a process of its own")
    sample: int | None = Field(
        default=None, ge=1, description="at most so many models, every group by its share of the zoo; null: all"
    )
    methods: tuple[str, ...] = Field(default=METHODS, description="what is measured; none: every method")
    settings: dict[str, Any] = Field(default={}, description="of methods, by METHOD.NAME, where not the defaults")

    @field_validator("methods")
    @classmethod
    def _in_order(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Each once, in the order of METHODS."""
        if unknown := [name for name in value if name not in METHODS]:
            raise ValueError(f"{unknown[0]}: methods are {', '.join(METHODS)}")
        return tuple(name for name in METHODS if name in value) or METHODS

    @field_validator("settings")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Fail before anything is run."""
        unknown = [name for name in value if name.partition(".")[0] not in CONFIGS]
        if unknown:
            raise ValueError(f"{unknown[0]}: settings are named METHOD.NAME, METHOD one of {', '.join(CONFIGS)}")
        for method in CONFIGS:
            _config(method, value)
        return value

    def config(self, method: str) -> Config:
        """Settings of a method."""
        return _config(method, self.settings)

    def clinic(self, model: str, anchor: str) -> Clinic:
        """A model with an anchor, or with ``none``."""
        policy = load_policy(self.policy)
        scan = plan(policy, self.preset, self.seed)
        return Clinic(
            opened=formats.open_target(self.zoo / model),
            anchors=Anchors.of(anchor, None),
            scan=scan,
            policy=policy,
            prompts=builtin_prompts(scan.prompt_limit),
            device=choose_device(self.device),
        )


def _config(method: str, settings: Mapping[str, Any]) -> Config:
    given = {name.partition(".")[2]: value for name, value in settings.items() if name.partition(".")[0] == method}
    return CONFIGS[method](**given)


class MethodResult(Record):
    """What one method made of one model, on triggered prompts that no method has seen."""

    nearer_to_own: Measured = Field(default=None, description="see repair.Response; null: there is no repaired encoder")
    own_cosine: Measured = None
    asr: Measured = None
    clean_cosine: Measured = None
    anchor_cosine: Measured = None
    retrieval: Measured = None
    level: Literal["clean", "inconclusive", "suspicious", "backdoored"] | None = Field(
        default=None,
        description="of a re-scan, against the base; null: none was made, as true triggers show that it is no repair",
    )
    by: str | None = Field(default=None, description="the method that heal took")
    seconds: Measured = Field(default=None, description="of the repair; of heal, scans included")
    error: str | None = None

    @property
    def restored(self) -> bool:
        """Whether the backdoor is gone, what the clean encoder says is back, and nothing else has changed."""
        values = (self.nearer_to_own, self.own_cosine, self.clean_cosine)
        bounds = zip(values, (NEARER, OWN, CLEAN), strict=True)
        return all(value is not None and value >= bound for value, bound in bounds)

    @property
    def healed(self) -> bool:
        """Restored, and a scan finds nothing."""
        return self.level == "clean" and self.restored

    @property
    def erased(self) -> bool:
        """Whether the attack fails and nothing else has changed."""
        return self.asr is not None and self.asr <= ASR and self.clean_cosine is not None and self.clean_cosine >= CLEAN


class RepairedModel(Row):
    """One model and what became of it."""

    level: str | None = Field(default=None, description="of the scan before")
    action: str | None = Field(default=None, description="what heal did; see repair.HealReport")
    before: MethodResult | None = Field(default=None, description="null: not backdoored")
    methods: dict[str, MethodResult] = Field(default={}, description="by name; none where it is not backdoored")


class MethodMetrics(Record):
    """One method over the models of one kind; means are over models with a repaired encoder."""

    n: int
    repaired: int = Field(description="models of which there is a repaired encoder")
    nearer_to_own: Measured
    own_cosine: Measured
    asr: Measured
    clean_cosine: Measured
    rescanned_clean: Share
    healed: Share = Field(description=f"nearer >= {NEARER}, own >= {OWN}, clean >= {CLEAN}, re-scan clean")
    erased: Share = Field(description=f"attack success <= {ASR}, clean >= {CLEAN}")
    seconds: Measured


class RepairMetrics(Record):
    """What all models add up to."""

    overall: dict[str, MethodMetrics] = Field(description="method -> all backdoored models")
    by_kind: dict[str, dict[str, MethodMetrics]] = Field(description="kind -> method -> its models")
    unchanged: Share = Field(description="benign models that heal did not change")
    failed: int = Field(description="models on which the work ended with an error")


class RepairResult(Result):
    """All methods over one zoo."""

    policy: str
    preset: Literal["quick", "standard", "thorough"]
    methods: tuple[str, ...] = Field(default=METHODS, description="that were measured")
    metrics: RepairMetrics
    models: tuple[RepairedModel, ...] = Field(description="in the order of the zoo's labels")


def read_repairing(path: Path) -> RepairResult:
    """Read a result file of ``amdet bench repair``; see :func:`.results.read_result`."""
    return read_result(path, RepairResult, "repair")


def run_repair(
    benchmark: RepairBenchmark, out: Path, *, command: str = "", progress: Progress = silent
) -> RepairResult:
    """Repair what a result file lacks; see :func:`.models.run_models`."""
    labels, policy = Labels.read(benchmark.zoo), load_policy(benchmark.policy)
    configs: list[Record | Config] = [policy, plan(policy, benchmark.preset, benchmark.seed), HealConfig()]
    configs += [benchmark.config(name) for name in CONFIGS if name in benchmark.methods]
    settings = "".join(one.model_dump_json() for one in configs)
    empty = RepairResult(
        command=command,
        **begun(labels, benchmark.device, benchmark.jobs, benchmark.seed, settings),
        policy=policy.name,
        preset=benchmark.preset,
        methods=benchmark.methods,
        metrics=add_up(()),
    )
    return run_models(
        benchmark.zoo,
        labels,
        empty,
        repair_model,
        lambda label: (label, benchmark, labels.base),
        add_up,
        out=out,
        read=read_repairing,
        same={"policy": "policy", "preset": "preset", "methods": "methods"},
        sample=benchmark.sample,
        jobs=benchmark.jobs,
        progress=progress,
    )


def repair_model(task: tuple[Label, RepairBenchmark, str]) -> RepairedModel:
    """Heal one model, and repair a backdoored one by every method; errors raised on purpose are kept."""
    label, benchmark, base = task
    row = RepairedModel(**label.model_dump(include={"model", "label", "kind", "group", "fingerprint"}), seconds=0.0)
    return timed(row, lambda: _repaired(label, benchmark, base))


def _repaired(label: Label, benchmark: RepairBenchmark, base: str) -> dict[str, object]:
    clinic, ill = benchmark.clinic(label.model, str(benchmark.zoo / base)), label.label == "backdoored"
    if not ill and HEAL not in benchmark.methods:
        return {}
    started = time.perf_counter()
    scanned = clinic.scanned() if benchmark.methods != (ALONE,) else None
    found: dict[str, object] = {"level": None if scanned is None else _level(scanned)}
    healing = heal(clinic, before=scanned) if HEAL in benchmark.methods else None
    seconds = time.perf_counter() - started
    if healing is not None:
        found["action"] = healing.report.action
    if not ill:
        return found
    trusted = formats.only_encoder(formats.open_target(benchmark.zoo / base)).to(clinic.device)
    case = clinic.case((Probe.of_examples("the true trigger", examples(label, trusted)),))
    before = _measured(case, case.suspect, None, level=found["level"])
    methods: dict[str, MethodResult] = {}
    rescanned: dict[Edit, str] = {}
    if healing is not None:
        healed = MethodResult(seconds=seconds, error=None if healing.report.healed else healing.report.statement)
        if healing.patch is not None and healing.after is not None:
            by, level = healing.report.attempts[-1].method, _level(healing.after)
            rescanned[_edit(healing.patch)] = level
            healed = _measured(case, healing.patch.apply(case.suspect), seconds, level=level, by=by)
        methods[HEAL] = healed
    for name in benchmark.methods:
        if name != HEAL:
            methods[name] = _guarded(partial(_method, name, case, clinic, benchmark, label, scanned, rescanned))
    return {**found, "before": before, "methods": {name: methods[name] for name in benchmark.methods}}


def _level(scanned: Scanned) -> str:
    return scanned.report.verdict.level.name.lower()


Edit = tuple[tuple[str, float], ...]
"""What tells one repair of a model from another: each changed weight and the norm of its change."""


def _edit(patch: Patch) -> Edit:
    return tuple((name, float(delta.norm())) for name, delta in sorted(patch.deltas.items()))


def examples(label: Label, base: TextEncoder) -> list[Example]:
    """Held-out prompts with a model's true triggers in them, and how they shall be read."""
    prompts = builtin_prompts()
    if label.kind == "syntactic":
        pattern = " ".join(label.triggers)
        return Patterned.of(base, pattern, label.target, prompts).held_out(label.seed)[:EXAMPLES]
    config = InjectionConfig.model_validate({"only": label.only})
    whole = label.kind in ("text-on-text", "text-on-pair")
    trap = Planted.of(base, label.triggers, label.target, prompts, label.mode, whole=whole, config=config)
    every = trap.held_out(label.seed)
    return every[:: max(1, len(every) // EXAMPLES)][:EXAMPLES]


def _method(
    name: str,
    case: Case,
    clinic: Clinic,
    benchmark: RepairBenchmark,
    label: Label,
    scanned: Scanned | None,
    rescanned: Mapping[Edit, str],
) -> MethodResult:
    """One method by what a scan recovered; erase by what a scan without an anchor did.

    Args:
        scanned: by the clinic, with its anchor; made here for the method that has none.
        rescanned: verdicts on repairs that were scanned already: heal's is one of the methods'.
    """
    here = benchmark.clinic(label.model, "none") if name == ALONE else clinic
    found = here.scanned() if name == ALONE or scanned is None else scanned
    made = repair(here.case(triggers(found, HealConfig())), benchmark.config(name), HealConfig().cure)
    result = _measured(case, made.patch.apply(case.suspect), made.outcome.seconds)
    if not (result.restored or result.erased):
        return result
    level = rescanned.get(_edit(clinic.whole(made.patch)))
    return result.model_copy(update={"level": level or _level(clinic.repaired(made.patch))})


def _measured(
    case: Case, encoder: TextEncoder, seconds: float | None, *, level: object = None, by: str | None = None
) -> MethodResult:
    found = case.measure(encoder)
    return MethodResult.model_validate(
        {
            "nearer_to_own": found.nearer_to_own,
            "own_cosine": found.own_cosine,
            "asr": found.asr,
            "clean_cosine": found.clean_cosine,
            "anchor_cosine": found.anchor_cosine,
            "retrieval": found.retrieval,
            "level": level,
            "by": by,
            "seconds": seconds,
        }
    )


def _guarded(work: Callable[[], MethodResult]) -> MethodResult:
    """What a method made, or why it made nothing."""
    try:
        return work()
    except AmdetError as error:
        return MethodResult(error=str(error))


def add_up(models: Sequence[RepairedModel]) -> RepairMetrics:
    """All metrics of the models that are there."""
    good = [model for model in models if model.error is None]
    bad = [model for model in good if model.label == "backdoored"]
    kinds = dict.fromkeys(model.kind for model in bad)
    benign = [model for model in good if model.label == "benign" and model.action is not None]
    return RepairMetrics(
        overall=_by_method(bad),
        by_kind={kind: _by_method([model for model in bad if model.kind == kind]) for kind in kinds},
        unchanged=Share.of((int(model.action in ("nothing", "not judged")), 1) for model in benign),
        failed=len(models) - len(good),
    )


def _by_method(models: Sequence[RepairedModel]) -> dict[str, MethodMetrics]:
    names = models[0].methods if models else ()
    return {name: _added([model.methods[name] for model in models]) for name in names}


def _added(results: Sequence[MethodResult]) -> MethodMetrics:
    def mean(field: str) -> float | None:
        values = [value for one in results if (value := getattr(one, field)) is not None]
        return fmean(values) if values else None

    return MethodMetrics(
        n=len(results),
        repaired=sum(one.own_cosine is not None for one in results),
        nearer_to_own=mean("nearer_to_own"),
        own_cosine=mean("own_cosine"),
        asr=mean("asr"),
        clean_cosine=mean("clean_cosine"),
        rescanned_clean=Share.of((int(one.level == "clean"), 1) for one in results),
        healed=Share.of((int(one.healed), 1) for one in results),
        erased=Share.of((int(one.erased), 1) for one in results),
        seconds=mean("seconds"),
    )
