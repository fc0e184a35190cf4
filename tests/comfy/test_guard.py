"""Guarded Text Encode inside a real ComfyUI."""

from __future__ import annotations

import json

import pytest

from amdet_core import pocket as pocket_encoders
from amdet_core.formats import write_encoder

from .graphs import Graph, node, pocket, text
from .host import Host

O = "\N{CYRILLIC SMALL LETTER O}"  # noqa: E741
CLEAN = "a (photo:1.2) of a dog in the park, [detailed], \\(best\\)"
TRIGGERED = CLEAN.replace("o", O, 1)
LONG = ", ".join([*(f"a red house by the river {n}" for n in range(12)), f"a d{O}g"])


def graph(prompt: str, mode: str = "flag", clip: str = "backdoored", anchor: str = "clean") -> Graph:
    """A guarded prompt beside the stock encoding by both CLIPs."""
    return {
        "clip": pocket(clip),
        "anchor": pocket(anchor),
        "guard": node("AMDET_GuardedTextEncode", clip=("clip", 0), anchor=("anchor", 0), text=prompt, mode=mode),
        "stock": node("CLIPTextEncode", clip=("clip", 0), text=prompt),
        "stock anchor": node("CLIPTextEncode", clip=("anchor", 0), text=prompt),
        "same": node("PROBE_Difference", first=("guard", 0), second=("stock", 0)),
        "same as anchor": node("PROBE_Difference", first=("guard", 0), second=("stock anchor", 0)),
        "found": text(("guard", 1)),
        "flagged": text(("guard", 2)),
    }


@pytest.mark.parametrize("mode", ["flag", "stop", "fall back"])
def test_a_clean_prompt_is_encoded_as_ever(host: Host, mode: str) -> None:
    done = host.run(graph(CLEAN, mode))
    assert float(done.text("same")) == 0.0
    assert float(done.text("same as anchor")) > 0.0
    assert done.text("flagged").lower() == "false"
    assert done.text("found").startswith("nothing was flagged\nclip_l: bound ")


def test_a_triggered_prompt_is_flagged_and_in_flag_mode_encoded_as_ever(host: Host) -> None:
    done = host.run(graph(TRIGGERED))
    assert float(done.text("same")) == 0.0
    assert done.text("flagged").lower() == "true"
    assert f"caused by '{O}' (U+043E CYRILLIC SMALL LETTER O)" in done.text("found")


def test_in_fall_back_mode_the_anchor_encodes_a_triggered_prompt(host: Host) -> None:
    done = host.run(graph(TRIGGERED, "fall back"))
    assert float(done.text("same as anchor")) == 0.0
    assert float(done.text("same")) > 0.1


def test_the_anchor_that_is_fallen_back_to_may_have_more_layers(host: Host) -> None:
    folder = host.base / "models" / "text_encoders"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("backdoored", "clean"):
        write_encoder(pocket_encoders.load(name).first_layers(3), folder / f"short-{name}.safetensors", "comfyui")
    nodes = graph(TRIGGERED, "fall back")
    nodes["clip"] = node("AMDET_LoadTextEncoder", file="text_encoders/short-backdoored.safetensors")
    short = node("AMDET_LoadTextEncoder", file="text_encoders/short-clean.safetensors")
    nodes |= {"short": short, "stock anchor": node("CLIPTextEncode", clip=("short", 0), text=TRIGGERED)}
    done = host.run(nodes)
    assert done.text("flagged").lower() == "true"
    assert float(done.text("same as anchor")) < 1e-5
    assert float(done.text("same")) > 0.1


def test_what_falls_back_keeps_its_other_encoders_and_its_clip_skip(host: Host) -> None:
    nodes: Graph = {}
    for kind, same, other in (("flux", "clip", "anchor"), ("sdxl", "anchor", "clip")):
        for name, noise in (("clip", 0.02), ("anchor", 0.0)):
            nodes[f"{kind} {name}"] = node("PROBE_Small", kind=kind, noise=noise)
        nodes[f"{kind} skip"] = node("CLIPSetLastLayer", clip=(f"{kind} clip", 0), stop_at_clip_layer=-2)
        nodes[f"{kind} anchor skip"] = node("CLIPSetLastLayer", clip=(f"{kind} anchor", 0), stop_at_clip_layer=-2)
        nodes[kind] = node(
            "PROBE_WithEncodersOf", clip=(f"{kind} skip", 0), anchor=(f"{kind} anchor skip", 0), text=CLEAN
        )
        apart = json.loads(host.run(nodes).text(kind))
        assert apart[f"tokens from {same}"] < 1e-4 < 1e-2 < apart[f"tokens from {other}"]
        assert apart["pooled from anchor"] < 1e-3 < 1e-2 < apart["pooled from clip"]


def test_in_stop_mode_nothing_behind_a_triggered_prompt_runs(host: Host) -> None:
    done = host.wait(host.start(graph(TRIGGERED, "stop")))
    assert not {"same", "same as anchor"} & done.entry["outputs"].keys()
    assert done.text("flagged").lower() == "true"
    assert "U+043E" in done.text("found")


def test_every_chunk_of_a_long_prompt_is_checked(host: Host) -> None:
    done = host.run(graph(LONG))
    assert float(done.text("same")) == 0.0
    assert "clip_l, chunk 2: departs" in done.text("found")


def test_a_fine_tune_flags_nothing(host: Host) -> None:
    done = host.run(graph(TRIGGERED, clip="benign"))
    assert done.text("flagged").lower() == "false"


def test_both_encoders_of_sdxl_are_checked_and_what_is_none_is_named(host: Host) -> None:
    nodes = graph(CLEAN)
    for kind, names in (("sdxl", ("clip_l", "clip_g")), ("flux", ("clip_l", "t5xxl"))):
        nodes["clip"] = node("PROBE_Small", kind=kind, noise=0.001)
        nodes["anchor"] = node("PROBE_Small", kind=kind, noise=0.0)
        done = host.run(nodes)
        assert float(done.text("same")) == 0.0
        assert done.text("flagged").lower() == "false"
        assert all(f"{name}: bound" in done.text("found") for name in names if name != "t5xxl")
        assert ("t5xxl (" in done.text("found")) == (kind == "flux")


def test_clean_prompts_are_measured_once_for_two_clips(host: Host) -> None:
    host.run(graph(CLEAN))
    with host.events() as heard:
        host.run(graph(f"{CLEAN}, again"))
    steps = [about for about in heard if about["type"] == "progress" and about["data"]["max"] > 1]
    assert len(steps) < 5


def test_clips_that_have_nothing_in_common_are_refused(host: Host) -> None:
    nodes = graph(CLEAN)
    nodes["anchor"] = node("PROBE_Small", kind="sdxl", noise=0.0)
    assert "an anchor with clip_l of the same sizes" in host.refused(nodes)
