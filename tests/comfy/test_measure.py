"""Trigger Sweep and Weight Forensics in a running ComfyUI."""

from __future__ import annotations

from typing import Any

from .graphs import node, text
from .graphs import pocket as pocket_node
from .host import Host, Run

TRIGGER = "о"


def test_the_sweep_names_the_planted_token_and_forensics_say_what_was_done(host: Host) -> None:
    found = host.run(
        {
            "clip": pocket_node("backdoored"),
            "anchor": pocket_node("clean"),
            "sweep": node("AMDET_TriggerSweep", clip=("clip", 0), anchor=("anchor", 0), seed=42),
            "strongest": text(("sweep", 2)),
            "departure": text(("sweep", 3)),
            "bars": node("PreviewImage", images=("sweep", 1)),
            "show": node("AMDET_ShowReport", report=("sweep", 4)),
            "weights": node("AMDET_WeightForensics", clip=("clip", 0), anchor=("anchor", 0)),
            "summary": text(("weights", 2)),
            "picture": node("PreviewImage", images=("weights", 1)),
        }
    )
    assert found.status == "success", found.error
    assert found.text("strongest") == TRIGGER
    assert 0.5 < float(found.text("departure")) < 1.5
    assert f"| {TRIGGER} |" in found.text("sweep")
    assert "tokens and characters were tried one by one" in found.text("show")
    assert "one or two directions carry" in found.text("summary")
    assert "encoder.layers.0" in found.text("weights")
    assert found.images("bars") and found.images("picture")


def test_without_anything_to_compare_the_nodes_say_so(host: Host) -> None:
    found = _both(host, pocket_node("clean"))
    assert found.status == "success", found.error
    assert "identical to a trusted encoder" in found.text("sweep")
    assert "identical to a trusted encoder" in found.text("weights")
    assert found.text("strongest") == ""


def test_without_an_anchor_the_sweep_compares_with_no_token_and_says_so(host: Host) -> None:
    found = _both(host, node("PROBE_Small", kind="plain sdxl", noise=0.0))
    assert found.status == "success", found.error
    why = "no trusted encoder of the same sizes was given or found"
    assert why in found.text("sweep").lower()
    assert "compared with those without the token" in found.text("sweep")
    assert why in found.text("weights").lower()
    assert found.text("strongest") != ""


def _both(host: Host, clip: dict[str, Any]) -> Run:
    """Both nodes on one CLIP, with no anchor connected."""
    return host.run(
        {
            "clip": clip,
            "sweep": node("AMDET_TriggerSweep", clip=("clip", 0), seed=1),
            "weights": node("AMDET_WeightForensics", clip=("clip", 0)),
            "strongest": text(("sweep", 2)),
        }
    )
