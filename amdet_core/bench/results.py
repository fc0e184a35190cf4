"""The result of a benchmark as one file, and how it is read back; what detection says of scans.

A model is *flagged* when its verdict is suspicious or backdoored. One that could not be judged is not: a
miss where it is backdoored and no false alarm where it is benign, and it is counted by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from ..errors import ConfigError
from ..records import Control, Measured, Record
from ..storage import first_error, read_file
from .statistics import Interval, clopper_pearson


class Machine(Record):
    """Where the scans ran; of the last run, where a benchmark was resumed."""

    torch: str
    threads: int = Field(description="per scan")
    device: str


class Share(Record):
    """A share with its exact interval (Clopper-Pearson, 95%), which takes everything counted as independent."""

    n: int
    count: int
    share: float | None
    interval: Interval

    @classmethod
    def of(cls, counts: Iterable[tuple[int, int]]) -> Share:
        """Of counts and sizes added up."""
        pairs = list(counts)
        count, n = sum(count for count, _ in pairs), sum(n for _, n in pairs)
        return cls(n=n, count=count, share=count / n if n else None, interval=clopper_pearson(count, n))


class ZooInfo(Record):
    """The models that were scanned."""

    name: str
    base_fingerprint: str
    recipe_sha256: str
    n_backdoored: int
    n_benign: int
    n_intentional: int


class Seeds(Record):
    """Of every random choice."""

    zoo: int
    scan: int = Field(description="of every scan, or of a guard's prompts")


class Row(Record):
    """What a benchmark says of one model, beside its label."""

    model: str
    label: Literal["backdoored", "benign", "intentional"]
    kind: str
    group: str
    fingerprint: str
    seconds: float
    error: str | None = Field(default=None, description="what ended the work, or which stage of it failed")


class Result(Record):
    """What the result file of every benchmark holds; ``metrics`` and ``models`` are each one's own."""

    command: str
    commit: str | None = Field(description="of the code; of all that took part, where a benchmark was resumed")
    machine: Machine
    zoo: ZooInfo
    seeds: Seeds
    settings_sha256: str = Field(description="of all that decides what is measured")
    complete: bool = Field(description="whether all models that were asked for are done; they may be a sample")
    models: tuple[Row, ...] = Field(description="in the order of the zoo's labels")


class ModelResult(Row):
    """One scan."""

    level: Literal["clean", "inconclusive", "suspicious", "backdoored", "error"]
    score: Measured = Field(
        default=None, description="see verdict.score; null ranks lowest: equal to the anchor, or not measured"
    )
    flagged: bool = False
    evidence: dict[str, Measured] = Field(default={}, description="name -> value")
    controls: tuple[Control, ...] = Field(default=(), description="honest encoders that it was judged by")
    trigger: str | None = Field(default=None, description="text that the scan reports")
    recovered: Literal["exact", "equivalent", "part", "none"] | None = Field(
        description="equivalent: another text does the same; part: a token of a true trigger is named; null: not "
        "backdoored, or the trigger is no text"
    )
    stages: dict[str, float] = Field(default={}, description="seconds by stage")
    trigger_tokens: int | None = Field(
        default=None, description="of the shortest true trigger; null: not backdoored, or the trigger is no text"
    )
    sim: Measured = Field(
        default=None, description="eq. 29 of the strongest recovered feature, where the trigger is text"
    )


class Overall(Record):
    """All backdoored models against all benign ones; intervals are of 95%."""

    n_backdoored: int
    n_benign: int
    true_positives: int
    false_positives: int
    could_not_tell: int = Field(description="inconclusive, or ended by an error; backdoored and benign")
    precision: float | None = Field(description="null: nothing was flagged, or models of one label are missing")
    recall: float | None
    recall_interval: Interval = Field(description="Clopper-Pearson")
    fpr: float | None
    fpr_interval: Interval = Field(description="Clopper-Pearson")
    f1: float | None = Field(description="null where models of one label are missing")
    auroc: float | None = Field(description="of the scores")
    auroc_interval: Interval | None = Field(description="Newcombe's method 5, on Hanley and McNeil's variance")
    tpr_at_1pct_fpr: float | None = Field(description="at the lowest threshold on the scores that keeps to it")
    tpr_at_1pct_fpr_interval: Interval | None = Field(description="Clopper-Pearson, for this threshold")
    ppv_at_1pct_prevalence: float | None = Field(description="precision where one model in 100 is backdoored")
    ppv_pessimistic: float | None = Field(description="the same with the FPR at the upper end of its interval")
    seconds_mean: float | None
    seconds_worst: float | None


class Backdoored(Record):
    """The backdoored models of one kind or group."""

    n: int
    recall: float
    interval: Interval
    trigger_recovered: float | None = Field(
        description="share whose trigger, or an equivalent text, is reported; null: it is no text"
    )
    trigger_exact: float | None = Field(description="share whose trigger itself is reported")
    trigger_named_part: float | None = Field(description="share of which a part of the trigger alone is reported")
    sim: float | None = Field(description="mean")
    seconds: float = Field(description="mean")


class Benign(Record):
    """The benign models of one kind or group."""

    n: int
    false_positives: int
    fpr: float
    interval: Interval


class Intentional(Record):
    """Models that were changed on purpose and openly; neither right nor wrong to flag."""

    n: int
    flagged: int


class Texts(Record):
    """The triggers of so many tokens, of backdoored models whose trigger is a text."""

    recovered: Share = Field(description="the trigger itself, or an equivalent text, is reported")
    exact: Share = Field(description="the trigger itself is reported")


class Metrics(Record):
    """What the scans of a zoo add up to."""

    overall: Overall
    by_kind: dict[str, Backdoored]
    by_group: dict[str, Backdoored]
    benign_by_kind: dict[str, Benign]
    benign_by_group: dict[str, Benign]
    intentional: Intentional
    by_trigger_tokens: dict[str, Texts] = Field(default={}, description="length of the true trigger in tokens -> texts")
    seconds_by_stage: dict[str, float] = Field(default={}, description="mean of the scans in which a stage ran")
    sim_median: float | None = Field(default=None, description="eq. 29, over the backdoored models where it is known")


Against = Literal["base", "relative", "none"]
"""What models are compared with: the zoo's base, another honest model that comes from it, or nothing."""


class Detection(Result):
    """One policy over one zoo."""

    policy: str
    policy_sha256: str = Field(description="of the policy that judged, bounds and calibration included")
    anchor: Against = "base"
    preset: Literal["quick", "standard", "thorough"]
    metrics: Metrics
    models: tuple[ModelResult, ...] = Field(description="in the order of the zoo's labels")

    @property
    def title(self) -> str:
        """The policy, what it lacked, and the preset where it is not the usual one."""
        lacked = {"base": "", "relative": ", relative as anchor", "none": ", no anchor"}[self.anchor]
        return self.policy + lacked + ("" if self.preset == "standard" else f", {self.preset}")


def read_detection(path: Path) -> Detection:
    """Read a result file of ``amdet bench detection``; see :func:`read_result`."""
    return read_result(path, Detection, "detection")


R = TypeVar("R", bound=Record)


def read_result(path: Path, kind: type[R], benchmark: str) -> R:
    """Read a result file.

    Raises:
        StorageError: it can't be read.
        ConfigError: it is no result of this benchmark.
    """
    raw = read_file(path, "a benchmark's result", "Name a file that amdet bench wrote.")
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise ConfigError(
            f"a result of amdet bench {benchmark} in {path}",
            first_error(error),
            "Name another file, or remove this one and run the benchmark again.",
        ) from error
