"""How often verdicts depend on the seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from amdet_core.bench import Detection, flips
from amdet_core.bench.metrics import measure
from amdet_core.bench.results import Machine, ModelResult, Seeds, ZooInfo
from amdet_core.errors import ConfigError


def result(seed: int, verdicts: dict[str, bool | None], **changed: Any) -> Detection:
    """Models and whether they are flagged; None where the scan ended with an error."""
    rows = tuple(
        ModelResult(
            model=name, label="benign", kind="k", group="g", fingerprint="", seconds=1.0, level="clean",
            flagged=bool(flagged), recovered=None, error="broken" if flagged is None else None,
        )
        for name, flagged in verdicts.items()
    )  # fmt: skip
    made = Detection(
        command="", commit=None, machine=Machine(torch="", threads=1, device="cpu"),
        zoo=ZooInfo(name="z", base_fingerprint="", recipe_sha256="", n_backdoored=0, n_benign=3, n_intentional=0),
        seeds=Seeds(zoo=1, scan=seed), settings_sha256="", policy_sha256="",
        complete=True, policy="amdet-2", preset="quick",
        metrics=measure(()), models=rows,
    )  # fmt: skip
    return made.model_copy(update=changed)


def named(*results: Detection) -> dict[Path, Detection]:
    return {Path(f"{i}.json"): one for i, one in enumerate(results)}


def test_scans_that_say_otherwise_than_most_are_counted() -> None:
    found = flips(
        named(
            result(1, {"a": True, "b": False, "c": False, "d": True}),
            result(2, {"a": True, "b": False, "c": True, "d": True}),
            result(3, {"a": True, "b": False, "c": True}),
        )
    )
    assert (found.scans.count, found.scans.n) == (1, 9), "d was not scanned by all"
    assert (found.models.count, found.models.n) == (1, 3)
    assert [(row.model, row.flagged, row.n, row.flips) for row in found.rows] == [("c", 2, 3, 1)]
    assert found.seeds == (1, 2, 3)


def test_a_scan_that_ended_with_an_error_is_no_verdict() -> None:
    found = flips(named(result(1, {"a": True, "b": True}), result(2, {"a": None, "b": True})))
    assert (found.models.count, found.models.n) == (0, 1)


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([result(1, {})], "two different seeds"),
        ([result(1, {}), result(1, {})], "two different seeds"),
        ([result(1, {}), result(2, {}, preset="standard")], "one preset"),
        ([result(1, {}), result(2, {}, policy="own")], "one policy"),
        ([result(1, {}), result(2, {}, policy_sha256="other bounds")], "one policy_sha256"),
        ([result(1, {}), result(2, {}, anchor="none")], "one anchor"),
    ],
)
def test_results_that_differ_in_more_than_the_seed_are_refused(results: list[Detection], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        flips(named(*results))
