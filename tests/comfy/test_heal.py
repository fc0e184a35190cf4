"""Heal inside a real ComfyUI: what comes out, what is said, and that the connected CLIP stays as it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from safetensors import safe_open

from amdet_core import pocket
from amdet_core.records import Level
from amdet_core.storage import read_report

from .graphs import Graph, node, scan, text
from .graphs import pocket as pocket_node
from .host import Host

PROMPT = f"a ph{pocket.TRIGGER}to of a castle on a hill"


def heal(**changed: Any) -> dict[str, Any]:
    """A quick one."""
    values = {"method": "auto", "preset": "quick", "seed": 42, "replace": False, "save_as": ""}
    return node("AMDET_Heal", clip=("clip", 0), **{**values, **changed})


def healing(name: str, **changed: Any) -> Graph:
    """A pocket encoder that is healed, with its weights before and after and what comes out as files and texts."""
    key = f"{name} {changed}"
    return {
        "clip": pocket_node(name),
        "before": node("PROBE_Digest", clip=("clip", 0), key=f"before {key}"),
        "heal": heal(**changed),
        "healed": text(("heal", 2)),
        "after": node("PROBE_Digest", clip=("clip", 0), key=f"after {key}", after=("heal", 1)),
        "save": node("AMDET_SaveReport", report=("heal", 3), filename_prefix=f"amdet/heal-{name}"),
    }


def apart(host: Host, graph: Graph, other: str) -> float:
    """How far a prompt's conditioning by the healed CLIP is from that by a pocket encoder."""
    graph = graph | {
        "pocket": pocket_node(other),
        "one": node("CLIPTextEncode", clip=("heal", 0), text=PROMPT),
        "two": node("CLIPTextEncode", clip=("pocket", 0), text=PROMPT),
        "apart": node("PROBE_Difference", first=("one", 0), second=("two", 0)),
    }
    return float(host.run(graph).text("apart"))


def test_a_backdoored_clip_is_repaired_and_the_original_stays_as_it_was(host: Host) -> None:
    graph = healing("backdoored", save_as="healed") | {"scan": scan(("heal", 0)), "passed": text(("scan", 3))}
    run = host.run(graph)
    said = run.text("heal")
    assert said.startswith("# Repaired: AMDET_PocketTextEncoder, clip_l\n"), said
    assert "Repaired by spectral: a re-scan finds nothing" in said
    assert "| before | after |" in said
    assert run.text("healed") == "True"
    assert run.text("passed") == "True"
    assert run.text("before") == run.text("after")
    report = read_report(host.output / "amdet" / "heal-backdoored_00001" / "report.json")
    assert report.verdict.level == Level.CLEAN
    (path,) = (host.output / "clip").glob("healed_*_clip_l.safetensors")
    assert f"written: {path}" in said
    with safe_open(path, "pt") as file:
        assert file.metadata()["repair"] == "spectral"
    assert apart(host, graph, "clean") < 0.5 * apart(host, graph, "backdoored")


def test_the_anchor_takes_the_place_of_a_suspect_on_request(host: Host) -> None:
    graph = healing("backdoored", replace=True)
    run = host.run(graph)
    assert run.text("heal").startswith("# Replaced by the trusted encoder")
    assert run.text("healed") == "True"
    assert run.text("before") == run.text("after")
    assert apart(host, graph, "clean") < 1e-2


def test_an_honest_clip_comes_out_as_it_was_and_the_text_says_so(host: Host) -> None:
    graph = healing("benign", save_as="not-there")
    run = host.run(graph)
    assert run.text("heal").startswith("# Nothing to heal: AMDET_PocketTextEncoder")
    assert "nothing was changed" in run.text("heal")
    assert run.text("healed") == "False"
    assert run.text("before") == run.text("after")
    assert apart(host, graph, "benign") == 0
    assert not list(host.output.rglob("not-there*"))


def test_both_encoders_of_sdxl_are_looked_at_each_with_its_own_anchor(host: Host) -> None:
    graph: Graph = {
        "anchor": node("PROBE_Small", kind="sdxl", noise=0.0),
        "clip": node("PROBE_Small", kind="sdxl", noise=0.002),
        "heal": heal(anchor=("anchor", 0)),
        "healed": text(("heal", 2)),
        "save": node("AMDET_SaveReport", report=("heal", 3), filename_prefix="amdet/heal-sdxl"),
    }
    run = host.run(graph)
    report = read_report(host.output / "amdet" / "heal-sdxl_00001" / "report.json")
    assert [encoder.name for encoder in report.target.encoders] == ["clip_l", "clip_g"]
    assert all(f", {name}\n" in run.text("heal") for name in ("clip_l", "clip_g"))
    assert run.text("healed") == "False"


def test_without_an_anchor_it_could_not_tell_and_a_method_that_needs_one_is_an_error(host: Host) -> None:
    graph: Graph = {"clip": node("PROBE_Small", kind="sdxl", noise=0.0), "heal": heal(), "healed": text(("heal", 2))}
    run = host.run(graph)
    assert "# Could not tell" in run.text("heal")
    assert run.text("healed") == "False"
    assert "an anchor for spectral" in host.refused({**graph, "heal": heal(method="spectral")})


@pytest.mark.parametrize(
    ("message", "case"),
    [("method: expected one of auto", {"method": "guess"}), ("preset: expected one of quick", {"preset": "guess"})],
)
def test_a_wrong_choice_is_refused_before_anything_runs(host: Host, message: str, case: dict[str, Any]) -> None:
    answer = host.post("/prompt", {"prompt": {"clip": pocket_node("clean"), "heal": heal(**case)}})
    assert message in json.dumps(answer["node_errors"])
