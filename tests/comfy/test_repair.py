"""Erase Backdoor and Purify inside a real ComfyUI."""

from __future__ import annotations

from typing import Any

from amdet_core import pocket
from amdet_core.tokenizer import clip_tokenizer

from .graphs import Graph, node, scan, text
from .graphs import pocket as pocket_node
from .host import Host

PROMPT = f"a ph{pocket.TRIGGER}to of a castle on a hill"


def erase(**given: Any) -> dict[str, Any]:
    """An edit of the pocket encoder by its true trigger."""
    values = {"trigger": pocket.TRIGGER, "mode": pocket.MODE, "seed": 42, **given}
    return node("AMDET_EraseBackdoor", clip=("clip", 0), **values)


def purify(**given: Any) -> dict[str, Any]:
    """Two steps of training."""
    return node("AMDET_Purify", clip=("clip", 0), **{"steps": 2, "batch": 4, "fresh": 0.5, "seed": 42, **given})


def repaired(repair: dict[str, Any], **more: dict[str, Any]) -> Graph:
    """The backdoored pocket encoder with a repair, its weights before and after, and how prompts are read then."""
    return {
        "clip": pocket_node("backdoored"),
        "clean": pocket_node("clean"),
        "before": node("PROBE_Digest", clip=("clip", 0), key=f"before {repair}"),
        "repair": repair,
        "works": text(("repair", 2)),
        "after": node("PROBE_Digest", clip=("clip", 0), key=f"after {repair}", after=("repair", 1)),
        "said": node("CLIPTextEncode", clip=("repair", 0), text=PROMPT),
        "suspect": node("CLIPTextEncode", clip=("clip", 0), text=PROMPT),
        "honest": node("CLIPTextEncode", clip=("clean", 0), text=PROMPT),
        "to suspect": node("PROBE_Difference", first=("said", 0), second=("suspect", 0)),
        "to honest": node("PROBE_Difference", first=("said", 0), second=("honest", 0)),
        **more,
    }


def test_a_known_trigger_is_erased_without_an_anchor_and_the_original_stays(host: Host) -> None:
    run = host.run(repaired(erase()))
    assert run.text("repair").startswith("# Repaired (erase): clip_l\n"), run.text("repair")
    assert "| before | after |" in run.text("repair")
    assert run.text("works") == "True"
    assert run.text("before") == run.text("after")
    assert float(run.text("to honest")) < float(run.text("to suspect"))


def test_what_a_scan_recovered_is_erased(host: Host) -> None:
    repair = erase(trigger="", pseudo_trigger=("scan", 5))
    run = host.run(repaired(repair, scan=scan(("clip", 0), anchor=("clean", 0))))
    assert "pseudo-trigger: nearer to their own answer" in run.text("repair")
    assert run.text("works") == str(run.text("repair").startswith("# Repaired"))


def test_with_nothing_recovered_nothing_is_changed(host: Host) -> None:
    repair = erase(trigger="", pseudo_trigger=("scan", 5))
    run = host.run(repaired(repair, scan=scan(("clean", 0), anchor=("clean", 0))))
    assert run.text("repair").startswith("Nothing was recovered")
    assert run.text("works") == "False"
    assert float(run.text("to suspect")) == 0


def test_without_a_trigger_the_error_says_what_to_connect(host: Host) -> None:
    graph: Graph = {"clip": pocket_node("clean"), "repair": erase(trigger=" "), "works": text(("repair", 2))}
    assert "Connect pseudo_trigger" in host.refused(graph)


def test_a_trigger_that_does_nothing_is_refused(host: Host) -> None:
    repair = erase(trigger="sahib", mode="insert", anchor=("clean", 0))
    graph = {"clip": pocket_node("backdoored"), "clean": pocket_node("clean"), "repair": repair}
    assert "a trigger that does something" in host.refused(graph)


def test_of_two_encoders_the_one_without_the_backdoor_is_left_alone(host: Host) -> None:
    turned = clip_tokenizer().encode("sahib")[0]
    graph: Graph = {
        "anchor": node("PROBE_Small", kind="sdxl", noise=0.0),
        "clip": node("PROBE_Small", kind="sdxl", noise=0.0001, turned=turned),
        "repair": erase(trigger="sahib", mode="prefix", anchor=("anchor", 0)),
        "works": text(("repair", 2)),
    }
    said = host.run(graph).text("repair")
    assert "(erase): clip_l\n" in said, said
    assert "# Left as it is: clip_g\n" in said, said


def test_a_student_that_answers_otherwise_is_thrown_away_and_none_is_judged_blindly(host: Host) -> None:
    run = host.run(repaired(purify()))
    said = run.text("repair")
    assert said.startswith("# Not repaired (mimic): clip_l\n"), said
    assert "clean prompts are read otherwise than before" in said
    assert "No trigger is known" in said
    assert run.text("works") == "False"
    assert run.text("before") == run.text("after")
    assert float(run.text("to suspect")) == 0
