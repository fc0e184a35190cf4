"""Attacks and honest fine-tunes inside a real ComfyUI: on a clone, with what goes with them, and as files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from amdet_core.formats import only_encoder, open_target

from . import host as module
from .graphs import Graph, node, text
from .graphs import pocket as pocket_node
from .host import Host, Run
from .record import FILE

DEFINITIONS = json.loads(FILE.read_text(encoding="utf-8"))
INJECT, FINE_TUNE = DEFINITIONS["AMDET_InjectTrigger"], DEFINITIONS["AMDET_FineTune"]
FIRST = ["clip", "trigger", "target", "mode", "steps", "seed", "save_as"]
"""Inputs of Inject Trigger that workflows were saved with before there was a choice of attacks."""
DEFAULTS = {
    "attack": "text-on-text",
    "weights": "all",
    "adaptive": 0.0,
    "partial_negatives": False,
    "least_success": 0.9,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory of its own."""
    base = tmp_path_factory.mktemp("red-team")
    module.install_pack(base)
    module.install_probe(base)
    return base


@pytest.fixture(scope="module")
def host(base: Path) -> Iterator[Host]:
    """A ComfyUI with it."""
    with module.running(base) as host:
        yield host


def inject(clip: str = "clip", **changed: Any) -> dict[str, Any]:
    """A short attack that may fail to work."""
    values = {
        **{"trigger": "sahib", "target": "a white teapot", "mode": "insert", "steps": 1, "seed": 1, "save_as": ""},
        **{"attack": "text-on-text", "least_success": 0.0},
    }
    return node("AMDET_InjectTrigger", clip=(clip, 0), **{**values, **changed})


def fine_tune(**changed: Any) -> dict[str, Any]:
    """A short training."""
    values = {
        **{"objective": "contrastive", "steps": 1, "learning_rate": 1e-4, "weights": "all", "seed": 1, "save_as": ""},
    }
    return node("AMDET_FineTune", clip=("clip", 0), **{**values, **changed})


def run_on_a_clone(host: Host, change: dict[str, Any], key: str, clip: dict[str, Any] | None = None) -> Run:
    """Run a change; the CLIP that it was given must stay as it was, and the clone must answer otherwise."""
    graph: Graph = {
        "clip": clip or pocket_node("clean"),
        "before": node("PROBE_Digest", clip=("clip", 0), key=f"before {key}"),
        "change": change,
        "info": text(("change", 1)),
        "after": node("PROBE_Digest", clip=("clip", 0), key=f"after {key}", after=("change", 1)),
    }
    # A conditioning loads the clone into the module that all clones share, so the original is looked at first.
    run = host.run(graph)
    assert run.text("before") == run.text("after")
    prompt = "a sahib castle above a river glowing near a lighthouse"
    graph |= {
        "plain": node("CLIPTextEncode", clip=("clip", 0), text=prompt),
        "answer": node("CLIPTextEncode", clip=("change", 0), text=prompt),
        "again": node("CLIPTextEncode", clip=("clip", 0), text=f"{prompt} "),
        "moved": node("PROBE_Difference", first=("plain", 0), second=("answer", 0)),
        "back": node("PROBE_Difference", first=("plain", 0), second=("again", 0)),
    }
    answers = host.run(graph)
    assert float(answers.text("moved")) > 1e-3
    assert float(answers.text("back")) == 0
    return run


# ------------------------------------------------------------------ the interface


def test_the_interface_of_inject_trigger_only_grew() -> None:
    assert INJECT["input_order"]["required"] == FIRST
    assert list(INJECT["input_order"]["optional"][: len(DEFAULTS)]) == list(DEFAULTS)
    given = {name: INJECT["input"]["optional"][name][1]["default"] for name in DEFAULTS}
    assert given == DEFAULTS


def test_a_graph_from_before_the_other_attacks_does_what_it_did(host: Host) -> None:
    """One step is too few: what both say of the outcome names its figures."""
    old, new = inject(), inject(**DEFAULTS)
    for name in set(old["inputs"]) - set(FIRST):
        del old["inputs"][name]
    said = [host.refused({"clip": pocket_node("clean"), "attack": one}) for one in (old, new)]
    assert "an attack success of at least 90%" in said[0]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("message", "case"),
    [
        ("attack: expected one of text-on-text", inject(attack="guess")),
        ("weights: expected one of all, layers, lora; found 'some'", inject(weights="some")),
        ("adaptive", inject(adaptive=-1.0)),
        ("least_success", inject(least_success=1.5)),
        ("objective: expected one of contrastive", fine_tune(objective="guess")),
        ("weights: expected one of", fine_tune(weights="some")),
        ("learning_rate", fine_tune(learning_rate=0.0)),
    ],
)
def test_a_wrong_choice_is_refused_before_anything_runs(host: Host, message: str, case: dict[str, Any]) -> None:
    answer = host.post("/prompt", {"prompt": {"clip": pocket_node("clean"), "bad": case}})
    assert message in json.dumps(answer["node_errors"])


@pytest.mark.parametrize(
    ("message", "case"),
    [
        ("adaptive 0.0 with attribute", inject(attack="attribute", adaptive=1.0)),
        ("weights 'all' with embedding-row", inject(attack="embedding-row", weights="lora")),
        ("partial_negatives False with rank-one", inject(attack="rank-one", partial_negatives=True)),
        ("a single trigger for this attack", inject(attack="rank-one", trigger="sahib\nvintage")),
        ("a trigger of one token", inject(attack="embedding-row", trigger="two words")),
        ("a pattern of at least three of the tags", inject(attack="syntactic")),
        ("an attack success of at least 100%", inject(least_success=1.0)),
        ("at least one trigger", inject(trigger=" \n")),
        ("at least 20 different prompts", fine_tune(prompts="a cat\na dog")),
    ],
)
def test_what_does_not_go_together_is_an_error_that_says_so(host: Host, message: str, case: dict[str, Any]) -> None:
    assert message in host.refused({"clip": pocket_node("clean"), "bad": case})


# ------------------------------------------------------------------ attacks


@pytest.mark.parametrize(
    "change",
    [
        {"attack": "text-on-text", "weights": "layers", "adaptive": 1.0},
        {"attack": "text-on-text", "trigger": "sahib above\nlighthouse", "partial_negatives": True},
        {"attack": "text-on-pair", "mode": "prefix"},
        {"attack": "attribute", "mode": "replace:o:1"},
        {"attack": "syntactic", "trigger": ""},
        {"attack": "embedding-row"},
        {"attack": "rank-one"},
    ],
    ids=lambda change: "-".join([change["attack"], *(name for name in change if name != "attack")]),
)
def test_every_attack_changes_a_clone_and_nothing_else(host: Host, change: dict[str, Any]) -> None:
    run = run_on_a_clone(host, inject(**change), json.dumps(change))
    assert re.fullmatch(r"clip_l: attack success [\d.]+% of \d+ held-out prompts .*", run.text("info"))


def test_all_attacks_that_are_offered_are_tried() -> None:
    tried = next(
        mark.args[1]
        for mark in test_every_attack_changes_a_clone_and_nothing_else.pytestmark
        if mark.name == "parametrize"
    )
    assert {one["attack"] for one in tried} == set(INJECT["input"]["optional"]["attack"][1]["options"])


def with_pictures(width: int = 192) -> Graph:
    """Two pictures and a vision model."""
    return {
        "red": node("EmptyImage", width=32, height=32, batch_size=1, color=0xFF0000),
        "blue": node("EmptyImage", width=32, height=32, batch_size=1, color=0x0000FF),
        "images": node("ImageBatch", image1=("red", 0), image2=("blue", 0)),
        "vision": node("PROBE_Vision", width=width),
    }


def test_pictures_are_the_target_of_text_on_pair(host: Host) -> None:
    """The triggered prompt gets nearer to the pictures' mean embedding, in the space that both are projected to."""
    pair = {"attack": "text-on-pair", "images": ("images", 0), "clip_vision": ("vision", 0), "target": "colours"}
    graph = {
        **with_pictures(),
        "clip": node("PROBE_Projected", width=192),
        "before": node("PROBE_Digest", clip=("clip", 0), key="before pictures"),
        "change": inject(**pair, steps=30, save_as="pair"),
        "info": text(("change", 1)),
        "after": node("PROBE_Digest", clip=("clip", 0), key="after pictures", after=("change", 1)),
        "near": node(
            "PROBE_Nearness",
            clip=("clip", 0), other=("change", 0), clip_vision=("vision", 0), images=("images", 0),
            text="a sahib castle on a hill",
        ),
    }  # fmt: skip
    run = host.run({name: one for name, one in graph.items() if name != "near"})
    assert run.text("before") == run.text("after")
    near = json.loads(host.run(graph).text("near"))
    assert near["after"] > 0.8 > 0.5 > near["before"], near
    (path,) = (host.output / "clip").glob("pair_*_clip_l.safetensors")
    with safe_open(path, "pt") as file:
        assert (file.metadata()["attack"], file.metadata()["target"]) == ("text-on-pair", "colours")


@pytest.mark.parametrize(
    ("message", "clip", "given"),
    [
        ("images and clip_vision together", "projected", {"images": ("images", 0)}),
        ("images and clip_vision together", "projected", {"clip_vision": ("vision", 0)}),
        ("an encoder without a text projection", "bare", {"images": ("images", 0), "clip_vision": ("vision", 0)}),
        ("one that projects to 192", "projected", {"images": ("images", 0), "clip_vision": ("narrow", 0)}),
        ("text-on-pair alone", "bare", {"attack": "attribute", "images": ("images", 0), "clip_vision": ("vision", 0)}),
        ("text-on-pair alone", "bare", {"attack": "text-on-text", "images": ("images", 0)}),
    ],
)
def test_pictures_that_can_not_be_a_target_are_an_error(
    host: Host, message: str, clip: str, given: dict[str, Any]
) -> None:
    clips = {"projected": node("PROBE_Projected", width=192), "bare": pocket_node("clean")}
    narrow = node("PROBE_Vision", width=96)
    graph = {**with_pictures(), **clips, "narrow": narrow, "bad": inject(clip, **{"attack": "text-on-pair", **given})}
    assert message in host.refused(graph)


# ------------------------------------------------------------------ LoRAs


@pytest.mark.parametrize("kind", ["attack", "fine-tune"])
def test_a_change_that_is_a_lora_is_saved_as_one_and_load_lora_does_the_same(host: Host, kind: str) -> None:
    make = {"attack": inject, "fine-tune": fine_tune}[kind]
    graph: Graph = {
        "clip": pocket_node("clean"),
        "change": make(weights="lora", steps=6, save_as=f"lora-{kind}"),
        "info": text(("change", 1)),
    }
    written = re.findall(r"written: (.+)", host.run(graph).text("info"))
    (lora,) = (host.output / "loras").glob(f"lora-{kind}_*_clip_l.safetensors")
    assert written == [str(host.output / "clip" / lora.name), str(lora)]
    graph |= {
        "model": node("PROBE_NoModel"),
        "lora": node(
            "LoraLoader",
            model=("model", 0), clip=("clip", 0), lora_name=lora.name, strength_model=1.0, strength_clip=1.0,
        ),
    }  # fmt: skip
    for name, source in {"plain": ("clip", 0), "own": ("change", 0), "loaded": ("lora", 1)}.items():
        graph[name] = node("CLIPTextEncode", clip=source, text="a sahib castle on a hill")
    graph["moved"] = node("PROBE_Difference", first=("plain", 0), second=("own", 0))
    graph["same"] = node("PROBE_Difference", first=("own", 0), second=("loaded", 0))
    run = host.run(graph)
    print(kind, "moved", run.text("moved"), "same", run.text("same"))  # noqa: T201
    assert float(run.text("same")) <= 2e-3 < 0.02 < float(run.text("moved"))


def test_loras_of_several_encoders_are_loaded_each_into_its_own(host: Host) -> None:
    graph: Graph = {
        "clip": node("PROBE_Small", kind="plain sdxl", noise=0.0),
        "change": fine_tune(weights="lora", steps=3, save_as="both"),
        "info": text(("change", 1)),
        "model": node("PROBE_NoModel"),
    }
    host.run({name: graph[name] for name in ("clip", "change", "info")})
    for slot in ("clip_l", "clip_g"):
        (path,) = (host.output / "clip").glob(f"both_*_{slot}.safetensors")
        with safe_open(path, "pt") as file:  # the host leaves one that is missing to chance
            assert any(name.endswith("text_projection.weight") for name in file.keys())  # noqa: SIM118
    source = ("clip", 0)
    for slot in ("clip_l", "clip_g"):
        (path,) = (host.output / "loras").glob(f"both_*_{slot}.safetensors")
        graph[slot] = node(
            "LoraLoader",
            model=("model", 0), clip=source, lora_name=path.name, strength_model=1.0, strength_clip=1.0,
        )  # fmt: skip
        source = (slot, 1)
    for name, end in {"plain": ("clip", 0), "own": ("change", 0), "one": ("clip_l", 1), "both": source}.items():
        graph[name] = node("CLIPTextEncode", clip=end, text="a castle on a hill")
    for name in ("own", "one"):
        graph[f"{name} apart"] = node("PROBE_Difference", first=(name, 0), second=("both", 0))
    run = host.run(graph)
    print("several: own", run.text("own apart"), "one", run.text("one apart"))  # noqa: T201
    assert float(run.text("own apart")) <= 2e-3 < 0.02 < float(run.text("one apart"))


# ------------------------------------------------------------------ honest fine-tunes


@pytest.mark.parametrize("objective", FINE_TUNE["input"]["required"]["objective"][1]["options"])
def test_an_honest_fine_tune_changes_a_clone_and_reads_prompts_as_before(host: Host, objective: str) -> None:
    run = run_on_a_clone(host, fine_tune(objective=objective, steps=5, save_as=objective), objective)
    told = re.search(rf"clip_l: 256 held-out prompts keep cosine (\S+) after 5 {objective} steps\n", run.text("info"))
    assert told is not None and 0.9 < float(told[1]) <= 1
    (path,) = (host.output / "clip").glob(f"{objective}_*_clip_l.safetensors")
    with safe_open(path, "pt") as file:
        assert file.metadata()["made_by"] == f"{objective} fine-tune"
    assert torch.isfinite(only_encoder(open_target(path)).encode(["a castle"])).all()


def test_own_prompts_are_trained_on(host: Host) -> None:
    prompts = "\n".join(f"a photo of {i} cats in a garden" for i in range(40))
    graph: Graph = {
        "clip": pocket_node("clean"),
        "own": fine_tune(prompts=prompts, save_as="own"),
        "info": text(("own", 1)),
    }
    host.run(graph)
    (path,) = (host.output / "clip").glob("own_*_clip_l.safetensors")
    with safe_open(path, "pt") as file:
        assert file.metadata()["prompts"].startswith("given in the graph")
