"""The detection benchmark: every model of a zoo is scanned as a user would scan it, most often against its base."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Literal

from pydantic import Field

from ..config import Config
from ..config.base import Seed
from ..errors import ConfigError
from ..jobs import Job
from ..policy import DEFAULT_POLICY, PUBLISHED, Policy, load_policy
from ..progress import Progress, silent
from ..scan import plan
from ..zoo.labels import Label, Labels
from .metrics import measure
from .models import begun, run_models, sha256
from .results import Against, Detection, read_detection
from .scans import judged, scan_model

RELATIVES = ("fine-tune", "merge", "average")
"""Kinds of honest models that stand in for a base which nobody has any more."""
BOUNDS = "bounds of the policy (amdet bench judge applies others)"
"""How two results differ that measured the same."""


class Benchmark(Config):
    """What is measured and how."""

    zoo: Path = Field(description="folder with labels.json and the models")
    policy: str = Field(default=DEFAULT_POLICY, description="name or file")
    anchor: Against = Field(default="base", description="what models are compared with")
    preset: Literal["quick", "standard", "thorough"] = Field(default="standard", description="how much work")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="where to compute")
    seed: Seed = Field(default=42, description="of every scan")
    jobs: int = Field(default=1, ge=1, description="models scanned side by side, each in a process of its own")
    sample: int | None = Field(
        default=None, ge=1, description="at most so many models, every group by its share of the zoo; null: all"
    )

    def job(self, label: Label, labels: Labels) -> Job:
        """The scan of one model as a user would start it.

        Raises:
            ConfigError: a relative is asked for, and the zoo has none.
        """
        return Job(
            target=self.zoo / label.model,
            anchor=self._anchor(label, labels),
            preset=self.preset,
            policy=self.policy,
            device=self.device,
            seed=self.seed,
        )

    def _anchor(self, label: Label, labels: Labels) -> str:
        if self.anchor == "none":
            return "none"
        if self.anchor == "base":
            return str(self.zoo / labels.base)
        others = [
            one.model
            for one in labels.models
            if one.label == "benign" and one.kind in RELATIVES and one.model != label.model
        ]
        if not others:
            raise ConfigError(
                f"another honest model in {self.zoo} ({', '.join(RELATIVES)})", "none", "Build a larger zoo."
            )
        return str(self.zoo / Random(f"{self.seed} {label.model}").choice(others))


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
    return run_models(
        benchmark.zoo,
        labels,
        _empty(benchmark, labels, command),
        scan_model,
        lambda label: (label, benchmark.job(label, labels), benchmark.zoo / labels.base),
        measure,
        out=out,
        read=read_detection,
        same={"policy": "policy", "preset": "preset", "anchor": "anchor", BOUNDS: "policy_sha256"},
        sample=benchmark.sample,
        jobs=benchmark.jobs,
        progress=progress,
    )


def _empty(benchmark: Benchmark, labels: Labels, command: str) -> Detection:
    """The result before anything was scanned."""
    policy = load_policy(benchmark.policy)
    settings = _measures(policy, benchmark.preset, benchmark.seed)
    return Detection(
        command=command,
        **begun(labels, benchmark.device, benchmark.jobs, benchmark.seed, settings),
        policy=policy.name,
        policy_sha256=policy_sha256(policy),
        anchor=benchmark.anchor,
        preset=benchmark.preset,
        metrics=measure(()),
    )


def judge_again(result: Detection, policy: Policy) -> Detection:
    """What a benchmark would say, had its scans been judged by another policy; nothing is measured again.

    Raises:
        ConfigError: scans under that policy measure something else.
    """
    if sha256(_measures(policy, result.preset, result.seeds.scan)) != result.settings_sha256:
        raise ConfigError(
            f"a policy under which scans measure what those of {result.policy} did",
            policy.name,
            "Scan the zoo with it: amdet bench detection.",
        )
    models = tuple(judged(row, policy) for row in result.models)
    news = {"policy": policy.name, "policy_sha256": policy_sha256(policy), "models": models, "metrics": measure(models)}
    return result.model_copy(update=news)


def policy_sha256(policy: Policy) -> str:
    """The hash by which a result names the policy that judged."""
    return sha256(policy.model_dump_json())


def _measures(policy: Policy, preset: str, seed: int) -> str:
    """What decides what scans measure: of a policy no bounds, unless searches stop at them."""
    bounds = policy.model_dump_json() if policy.method in PUBLISHED else f"{policy.literal_gap}"
    return bounds + plan(policy, preset, seed).model_dump_json()
