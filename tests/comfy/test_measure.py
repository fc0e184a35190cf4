"""Trigger Sweep and Weight Forensics in a running ComfyUI."""

from __future__ import annotations

from .graphs import node, text
from .graphs import pocket as pocket_node
from .host import Host

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
    same = {"clip": pocket_node("clean"), "other": node("PROBE_Small", kind="plain sdxl", noise=0.0)}
    for name, why in (("clip", "identical to a trusted encoder"), ("other", "no trusted encoder of the same sizes")):
        found = host.run(
            {
                **same,
                "sweep": node("AMDET_TriggerSweep", clip=(name, 0), seed=1),
                "weights": node("AMDET_WeightForensics", clip=(name, 0)),
                "strongest": text(("sweep", 2)),
            }
        )
        assert found.status == "success", found.error
        assert why in found.text("sweep")
        assert why in found.text("weights")
        assert found.text("strongest") == ""
