"""What a scan costs stage by stage, in seconds and in multiplications: quick beside standard, in one run.

    python benchmarks/cost.py [--out benchmarks/results/cost.json] [--threads 1]

Two honest encoders, as most are, are scanned against the clean pocket encoder: a fine-tune of the layers alone, for
which the preset quick tries every token, and one of all weights. Where something stands out both presets go on to
invert and to search. Every scan runs twice, for seconds without the counter, whose bookkeeping costs time.
Multiplications are those of matrix products (``torch.utils.flop_counter`` counts two operations for each). Seconds are
of this machine; their ratios within one run can be compared.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from amdet_core import __version__, pocket
from amdet_core import scan as scanning
from amdet_core.attacks import benign
from amdet_core.config import FineTuneConfig
from amdet_core.encoder import TextEncoder
from amdet_core.findings import Findings, Subject
from amdet_core.policy import DEFAULT_POLICY, load_policy
from amdet_core.prompts import builtin_prompts
from amdet_core.storage import write_atomic

PRESETS = ("quick", "standard")
SEED = 42


def suspects(clean: TextEncoder) -> dict[str, TextEncoder]:
    """What is scanned, by what was done to the clean encoder."""
    tuned = benign.fine_tune(clean, builtin_prompts(), FineTuneConfig(steps=50, trains="all"))
    return {
        "fine-tune of the layers": pocket.load("benign"),
        "fine-tune of all weights": tuned.apply(clean),
    }


def scanned(suspect: TextEncoder, clean: TextEncoder, preset: str) -> Findings:
    """One scan as ``amdet scan`` makes it."""
    policy = load_policy(DEFAULT_POLICY)
    subject = Subject("text_encoder", suspect, clean)
    return scanning.scan(subject, builtin_prompts(), scanning.plan(policy, preset, SEED), policy)


def counted(suspect: TextEncoder, clean: TextEncoder, preset: str) -> dict[str, int]:
    """Multiplications of every stage of a scan."""
    counts: dict[str, int] = {}
    timed = scanning.timed

    @contextmanager
    def counting(found: Findings, encoder: str, stage: str) -> Iterator[None]:
        with FlopCounterMode(display=False) as counter, timed(found, encoder, stage):
            yield
        counts[stage] = counter.get_total_flops() // 2

    scanning.timed = counting
    try:
        scanned(suspect, clean, preset)
    finally:
        scanning.timed = timed
    return counts


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Measure what a scan costs.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cost.json"))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clean = pocket.load("clean")
    costs: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for name, suspect in suspects(clean).items():
        for preset in PRESETS:
            seconds, products = scanned(suspect, clean, preset).timings, counted(suspect, clean, preset)
            costs.setdefault(name, {})[preset] = {
                stage: {"seconds": round(spent, 2), "giga_multiplications": round(products[stage] / 1e9, 1)}
                for stage, spent in seconds.items()
            }
        for unit in ("seconds", "giga_multiplications"):
            quick, standard = (sum(stage[unit] for stage in costs[name][preset].values()) for preset in PRESETS)
            print(f"{name}: quick {quick:.0f} {unit}, standard {standard:.0f}: {quick / standard:.3f}")
    made = {
        "command": f"python benchmarks/cost.py --threads {given.threads}",
        "amdet": __version__,
        "torch": torch.__version__,
        "machine": {"processor": platform.machine(), "threads": given.threads},
        "policy": DEFAULT_POLICY,
        "seed": SEED,
        "costs": costs,
    }
    write_atomic(given.out, (json.dumps(made, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
