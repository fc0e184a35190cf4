"""The nodes inside a real ComfyUI, on the CPU, driven as a browser drives them."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from amdet_core import pocket
from amdet_core.anchors import vouch
from amdet_core.encoder import expected_shapes
from amdet_core.formats import write_encoder
from amdet_core.records import Level, ScanReport
from amdet_core.storage import read_report

from ..conftest import random_encoder
from . import host as module
from . import models
from .graphs import Graph, node, scan, text
from .graphs import pocket as pocket_node
from .host import PACK, Host
from .record import FILE, definitions

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def small(base: Path) -> Path:
    """Small files in the models folders, there before ComfyUI starts."""
    folder = base / "models"
    for name in ("text_encoders", "loras", "checkpoints"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    models.backdoor_lora(folder / "loras" / "backdoor.safetensors")
    models.lora(folder / "loras" / "style.safetensors", pocket.load("clean"), pocket.load("benign"), 8)
    for name in ("clean", "benign"):
        write_encoder(pocket.load(name), folder / "text_encoders" / f"pocket-{name}.safetensors", "comfyui")
    (folder / "text_encoders" / "dangling.safetensors").symlink_to(folder / "nowhere.safetensors")
    return folder


@pytest.fixture(scope="session")
def host(base: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The running ComfyUI, under watch for what it writes and connects to."""
    audit = tmp_path_factory.mktemp("audit") / "log.tsv"
    env = {"PYTHONPATH": str(HERE / "audit"), "AMDET_AUDIT": str(audit), "PYTHONDONTWRITEBYTECODE": "1"}
    with module.running(base, env=env) as host:
        yield host
        host.get("/queue")
    events = [line.split("\t", 1) for line in audit.read_text(encoding="utf-8", errors="replace").splitlines()]
    places = [str(base / name) for name in ("output", "temp", "user", "input", "models", "custom_nodes")]
    written = {what for event, what in events if event == "write"}
    outside = {what for what in written if not what.startswith((*places, "/dev/", "/proc/")) and str(base) in what}
    assert any("/output/" in what for what in written)
    assert not outside
    pack_writes = {what for what in written if what.startswith(str(base / "custom_nodes" / PACK))}
    assert not pack_writes
    connected = {what for event, what in events if event == "connect"}
    assert not [what for what in connected if "127.0.0.1" not in what and "::1" not in what and what.startswith("(")]


def report_of(host: Host, graph: Graph, scan_id: str = "scan") -> ScanReport:
    """Run a graph with a Save Report behind its scan, and read what was saved."""
    graph = {**graph, "save": node("AMDET_SaveReport", report=(scan_id, 1), filename_prefix="amdet/test")}
    return read_report(Path(host.run(graph).text("save")))


def lora(file: str, strength: float = 1.0, clip: str = "clip") -> dict[str, Any]:
    """A LoRA on the CLIP of another node."""
    return node("PROBE_LoadLora", clip=(clip, 0), file=file, strength=strength, bypass=False)


# ------------------------------------------------------------------ start and interface


def test_it_starts_without_a_warning_of_the_pack_and_quickly(host: Host) -> None:
    about = [line for line in host.log.splitlines() if PACK in line or "amdet" in line.lower()]
    (imported,) = [line for line in about if "seconds" in line]
    assert "IMPORT FAILED" not in imported
    assert float(re.search(r"([\d.]+) seconds", imported)[1]) < 0.5  # type: ignore[index]
    assert not [line for line in about if re.search("warn|error|traceback", line, re.IGNORECASE)]


def test_it_starts_under_another_name_too(base: Path, host: Host, tmp_path: Path) -> None:
    module.install_pack(tmp_path, "some_other-name.v2")
    (tmp_path / "user").mkdir()
    folder = module.comfy_folder()
    assert folder is not None
    command = [*module.command(folder), *module.locations(tmp_path), "--quick-test-for-ci"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert re.search(r"[\d.]+ seconds: .*some_other-name\.v2", output)
    assert "IMPORT FAILED" not in output


def test_the_interface_is_the_recorded_one(host: Host) -> None:
    """Workflows hold widget values by position: an input may be added at the end, never removed or moved."""
    recorded = json.loads(FILE.read_text(encoding="utf-8"))
    assert definitions(f"http://127.0.0.1:{host.port}") == recorded, "if meant: python tests/comfy/record.py URL"


def test_templates_help_and_translations_are_served(host: Host) -> None:
    names = sorted(path.stem for path in (module.ROOT / "workflows").glob("*.json"))
    assert sorted(host.get("/api/workflow_templates")[PACK]) == names
    for name in names:
        assert host.read(f"/api/workflow_templates/{PACK}/{name}.json").startswith(b"{")
        assert host.read(f"/api/workflow_templates/{PACK}/{name}.jpg").startswith(b"\xff\xd8")
    for name in json.loads(FILE.read_text(encoding="utf-8")):
        assert len(host.read(f"/extensions/{PACK}/docs/{name}.md")) > 500
    shown = host.get("/i18n")
    for language in ("en", "zh"):
        assert shown[language]["nodeDefs"]["AMDET_BackdoorScan"]["display_name"]


# ------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(("name", "level"), [("backdoored", "BACKDOORED"), ("benign", "CLEAN"), ("clean", "CLEAN")])
def test_the_pocket_encoders_are_judged_rightly_and_so_they_are_saved_and_loaded_again(
    host: Host, name: str, level: str
) -> None:
    saved = {
        "clip": pocket_node(name),
        "write": node("CLIPSave", clip=("clip", 0), filename_prefix=f"clip/{name}"),
        "scan": scan(("clip", 0), preset="standard"),
    }
    first = report_of(host, saved)
    assert first.verdict.level.name == level
    (path,) = (host.output / "clip").glob(f"{name}_*clip_l*.safetensors")
    loaded = {"clip": node("AMDET_LoadTextEncoder", file=f"text_encoders/{path.name}")}
    second = report_of(host, {**loaded, "scan": scan(("clip", 0))})
    assert second.verdict.level.name == level
    assert second.target.encoders[0].fingerprint == first.target.encoders[0].fingerprint
    assert second.target.path == f"AMDET_LoadTextEncoder {path.name}"


def test_a_backdoor_in_a_lora_is_found_only_with_the_lora_applied(host: Host) -> None:
    def graph(strength: float) -> Graph:
        return {
            "clip": pocket_node("clean"),
            "lora": lora("backdoor.safetensors", strength),
            "scan": scan(("lora", 0), anchor=("clip", 0)),
        }

    applied = report_of(host, graph(1.0))
    assert applied.verdict.level.name == "BACKDOORED"
    assert any("LoRA" in note for note in applied.target.encoders[0].assumptions)
    assert report_of(host, graph(0.0)).verdict.level.name == "CLEAN"
    without = {"clip": pocket_node("clean"), "scan": scan(("clip", 0))}
    assert report_of(host, without).verdict.level.name == "CLEAN"


def test_without_an_anchor_it_could_not_tell_and_says_what_to_do(host: Host) -> None:
    report = report_of(host, {"clip": node("PROBE_Small", kind="sdxl", noise=0.0), "scan": scan(("clip", 0))})
    assert report.verdict.level.name == "INCONCLUSIVE"
    assert any("no trusted encoder" in note for note in report.not_checked)


def test_the_outputs_say_what_the_report_says_and_stop_the_graph_where_asked(host: Host) -> None:
    graph = {
        "clip": pocket_node("backdoored"),
        "scan": scan(("clip", 0), stop_at="suspicious"),
        "verdict": text(("scan", 2)),
        "passed": text(("scan", 3)),
        "behind": node("CLIPTextEncode", clip=("scan", 0), text="a cat"),
        "shown": text(("behind", 0)),
        "picture": node("PreviewImage", images=("scan", 4)),
    }
    run = host.wait(host.start(graph))
    assert run.text("verdict").startswith("BACKDOORED")
    assert run.text("passed").lower() == "false"
    assert "shown" not in run.entry["outputs"]
    assert run.images("picture")
    onward = host.run({**graph, "scan": scan(("clip", 0), stop_at="never")})
    assert "shown" in onward.entry["outputs"]


def test_a_second_run_is_not_computed_again_and_a_replaced_file_is_seen(host: Host, small: Path) -> None:
    path = small / "text_encoders" / "replaced.safetensors"
    write_encoder(pocket.load("clean"), path, "comfyui")
    graph = {
        "clip": node("AMDET_LoadTextEncoder", file="text_encoders/replaced.safetensors"),
        "scan": scan(("clip", 0)),
        "save": node("AMDET_SaveReport", report=("scan", 1), filename_prefix="amdet/replaced"),
    }
    first = read_report(Path(host.run(graph).text("save")))
    with host.events() as events:
        host.run(graph)
    (cached,) = [event["data"]["nodes"] for event in events if event["type"] == "execution_cached"]
    assert {"clip", "scan", "save"} <= set(cached)
    time.sleep(0.01)
    write_encoder(pocket.load("backdoored"), path, "comfyui")
    second = read_report(Path(host.run(graph).text("save")))
    assert (first.verdict.level.name, second.verdict.level.name) == ("CLEAN", "BACKDOORED")


def test_equal_seeds_give_equal_reports(host: Host) -> None:
    reports = []
    for steps in (20, 21):  # the second graph differs in nothing that is measured, but is not cached
        graph = {
            "clip": pocket_node("backdoored"),
            "scan": scan(("clip", 0), seed=5, stop_at="never" if steps == 20 else "inconclusive"),
        }
        report = report_of(host, graph)
        reports.append(report.model_copy(update={"timings": {}}))
    assert reports[0] == reports[1]
    assert len(reports[0].target.encoders[0].fingerprint) == 64


# ------------------------------------------------------------------ what is read


TEXTS = ("a photo of a cat", "", "an oil painting of a lighthouse at night, highly detailed " * 3)


@pytest.mark.parametrize("skip", [None, -1, -2])
def test_the_library_encodes_as_the_host_does(host: Host, skip: int | None) -> None:
    graph: Graph = {"pocket": pocket_node("benign"), "sdxl": node("PROBE_Small", kind="sdxl", noise=0.0)}
    for name, text_ in itertools.product(("pocket", "sdxl"), range(len(TEXTS))):
        source = (name, 0)
        if skip is not None:
            graph[f"{name} skip"] = node("CLIPSetLastLayer", clip=(name, 0), stop_at_clip_layer=skip)
            source = (f"{name} skip", 0)
        graph[f"{name} {text_}"] = node("PROBE_Parity", clip=source, text=TEXTS[text_])
    run = host.run(graph)
    for name, text_ in itertools.product(("pocket", "sdxl"), range(len(TEXTS))):
        for slot, found in json.loads(run.text(f"{name} {text_}")).items():
            assert found["tokens"], (name, slot)
            assert found["hidden"] <= 1e-4 * max(1, found["scale"]), (name, slot, found)
            assert found["pooled"] <= 1e-4 * max(1, found["scale"]), (name, slot, found)
            whole = 4 if slot == "clip_g" or name == "pocket" else 3
            # SDXL reads the pooled output of clip_g, which is the last layer's whatever the clip skip.
            assert found["layers"] == (whole - 1 if skip == -2 and slot != "clip_g" else whole)


def test_the_weights_are_those_that_the_host_computes_with(host: Host) -> None:
    graph: Graph = {"0": pocket_node("clean")}
    for i, file in enumerate(("style.safetensors", "backdoor.safetensors")):
        graph[str(i + 1)] = lora(file, 0.7, str(i))
    for i in range(3):
        graph[f"effective {i}"] = node("PROBE_Effective", clip=(str(i), 0))
    run = host.run(graph)
    for i in range(3):
        found = json.loads(run.text(f"effective {i}"))
        assert found["worst"] <= 2e-3, (i, found)  # the host keeps its patched weights in float16
        assert found["notes"] == (i > 0)


def test_a_scan_leaves_the_clip_as_it_was_to_the_bit(host: Host) -> None:
    graph = {
        "clip": pocket_node("backdoored"),
        "lora": lora("style.safetensors"),
        "before": node("PROBE_Digest", clip=("lora", 0), key="before"),
        "scan": scan(("lora", 0), anchor=("clip", 0)),
        "after": node("PROBE_Digest", clip=("lora", 0), key="after", after=("scan", 3)),
    }
    run = host.run(graph)
    assert run.text("before") == run.text("after")


@pytest.mark.parametrize(
    ("kind", "scanned", "named"), [("flux", ["clip_l"], "t5xxl"), ("sd3", ["clip_l", "clip_g"], "t5xxl")]
)
def test_of_mixed_encoders_the_clip_part_is_scanned_and_the_rest_named(
    host: Host, kind: str, scanned: list[str], named: str
) -> None:
    report = report_of(host, {"clip": node("PROBE_Small", kind=kind, noise=0.0), "scan": scan(("clip", 0))})
    assert [encoder.name for encoder in report.target.encoders] == scanned
    assert any(named in part for part in report.target.not_scanned)


def test_both_encoders_of_sdxl_are_scanned_against_their_own_anchors(host: Host) -> None:
    graph = {
        "anchor": node("PROBE_Small", kind="sdxl", noise=0.0),
        "clip": node("PROBE_Small", kind="sdxl", noise=0.002),
        "scan": scan(("clip", 0), anchor=("anchor", 0), preset="standard"),
        "reversed": node(
            "AMDET_ReversedTarget",
            clip=("scan", 0), feature=("scan", 5), text="a cat", strength=1.0, position="end",
        ),
        "plain": node("CLIPTextEncode", clip=("clip", 0), text="a cat"),
        "moved": node("PROBE_Difference", first=("reversed", 0), second=("plain", 0)),
        "embedding": node("AMDET_SavePseudoTrigger", feature=("scan", 5), name="both"),
    }  # fmt: skip
    report = report_of(host, graph)
    assert {evidence.encoder for evidence in report.evidence if evidence.name == "gap_k1"} == {"clip_l", "clip_g"}
    assert not report.faults
    assert float(host.run(graph).text("moved")) > 0.01
    saved = load_file(host.output / "embeddings" / "amdet" / "both.safetensors")
    assert {name: w.shape[-1] for name, w in saved.items()} == {"clip_l": 64, "clip_g": 96}
    graph["embedded"] = node("CLIPTextEncode", clip=("clip", 0), text="a cat embedding:amdet/both")
    graph["same"] = node("PROBE_Difference", first=("reversed", 0), second=("embedded", 0))
    assert float(host.run(graph).text("same")) < 1e-4


def test_the_projection_through_which_sdxl_reads_is_compared_and_no_other(host: Host) -> None:
    graph = {
        "anchor": node("PROBE_Small", kind="sdxl", noise=0.0),
        "clip": node("PROBE_Small", kind="sdxl", noise=0.0, projection=0.05),
        "scan": scan(("clip", 0), anchor=("anchor", 0)),
    }
    report = report_of(host, graph)
    assert report.verdict.level == Level.INCONCLUSIVE
    assert [(fault.stage, fault.encoder) for fault in report.faults] == [("text projection", "clip_g")]
    graph["clip"] = node("PROBE_Small", kind="sdxl", noise=0.0, projection=0.0005)
    report = report_of(host, graph)
    assert report.verdict.level == Level.CLEAN
    assert sum("text projection differs from the anchor's by 1.0%" in note for note in report.not_checked) == 1


# ------------------------------------------------------------------ what is refused


def test_what_can_not_be_read_is_an_error_and_no_verdict(host: Host, small: Path) -> None:
    bare = {f"text_model.{name}": w for name, w in _two_layers_of_clip_l().items()}
    save_file(bare, small / "text_encoders" / "two-layers.safetensors")
    graph = {
        "clip": node("CLIPLoader", clip_name="two-layers.safetensors", type="stable_diffusion", device="default"),
        "scan": scan(("clip", 0)),
    }
    assert "clip missing" in host.refused(graph)
    assert "no CLIP text encoder" in host.refused(
        {"clip": node("PROBE_Small", kind="t5", noise=0.0), "scan": scan(("clip", 0))}
    )
    bypass = {
        "clip": pocket_node("clean"),
        "lora": node("PROBE_LoadLora", clip=("clip", 0), file="", strength=1.0, bypass=True),
        "scan": scan(("lora", 0)),
    }
    assert "bypass" in host.refused(bypass)


def _two_layers_of_clip_l() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    spec = models.CLIP_L.model_copy(update={"layers": 2})
    return {name: torch.randn(shape, generator=generator).half() for name, shape in expected_shapes(spec).items()}


def test_bad_input_says_what_was_expected_and_what_to_do(host: Host) -> None:
    clip = {"clip": pocket_node("clean"), "other": node("PROBE_Small", kind="sdxl", noise=0.0)}
    cases = {
        "same sizes": node("AMDET_CompareEncoders", clip=("clip", 0), other=("other", 0), prompts="a"),
        "at least one prompt": node("AMDET_CompareEncoders", clip=("clip", 0), other=("clip", 0), prompts=" \n"),
        "prefix, insert": {**_inject(mode="sideways"), "output": None},
        "without the trigger": {**_inject(trigger="tea", target="a cup of tea"), "output": None},
    }
    for message, case in cases.items():
        attack = case.pop("output", 1) is None
        graph = {**clip, "bad": case} | ({"text": text(("bad", 1))} if attack else {})
        assert message in host.refused(graph)
    choices = {
        "preset: expected one of quick, standard, thorough; found 'huge'": scan(("clip", 0), preset="huge"),
        "policy: expected one of amdet-2": scan(("clip", 0), policy="amdet-0"),
        "stop_at: expected one of never": scan(("clip", 0), stop_at="later"),
        "seed": scan(("clip", 0), seed=-1),
    }
    for message, case in choices.items():
        assert message in json.dumps(host.post("/prompt", {"prompt": {**clip, "scan": case}})["node_errors"])
    for file in ("text_encoders/gone.safetensors", "text_encoders/../../user/comfy.db", "loras/style.safetensors"):
        loader = {"load": node("AMDET_LoadTextEncoder", file=file), "scan": scan(("load", 0))}
        assert "models folders" in json.dumps(host.post("/prompt", {"prompt": loader})["node_errors"])


def _inject(**changed: Any) -> dict[str, Any]:
    settings = {"trigger": "sahib", "target": "a white teapot", "mode": "insert", "steps": 3, "seed": 1, "save_as": ""}
    return node("AMDET_InjectTrigger", clip=("clip", 0), **{**settings, **changed})


def test_find_anchor_takes_what_ships_and_says_what_to_install_otherwise(host: Host) -> None:
    found = host.run(
        {
            "clip": pocket_node("benign"),
            "anchor": node("AMDET_FindAnchor", clip=("clip", 0)),
            "info": text(("anchor", 1)),
            "same": node("AMDET_CompareEncoders", clip=("anchor", 0), other=("clip", 0), prompts="a cat"),
        }
    )
    assert "amdet pocket" in found.text("info")
    graph = {
        "clip": node("PROBE_Small", kind="sdxl", noise=0.0),
        "anchor": node("AMDET_FindAnchor", clip=("clip", 0)),
        "info": text(("anchor", 1)),
    }
    assert "models/text_encoders" in host.refused(graph)


# ------------------------------------------------------------------ features, attacks


def test_stages_one_by_one_lead_to_the_same_picture_and_an_embedding_that_does_the_same(host: Host) -> None:
    graph = {
        "clip": pocket_node("backdoored"),
        "anchor": pocket_node("clean"),
        "invert": node(
            "AMDET_InvertFeature",
            clip=("clip", 0), anchor=("anchor", 0), method="contrast", vectors=1, steps=60, searches=1, seed=42,
        ),
        "gap": text(("invert", 3)),
        "loss": node("PreviewImage", images=("invert", 2)),
        "landscape": node(
            "AMDET_LandscapeVerdict",
            clip=("clip", 0), anchor=("anchor", 0), feature=("invert", 0), grid=9, radius=0.0, seed=42,
        ),
        "verdict": text(("landscape", 3)),
        "pictures": node("PreviewImage", images=("landscape", 0)),
        "save": node("AMDET_SavePseudoTrigger", feature=("invert", 0), name="found"),
        "prompt": text(("save", 0)),
    }  # fmt: skip
    run = host.run(graph)
    assert float(run.text("gap")) > 0.5
    assert re.search(r"(injected|natural).*of the curvatures are positive", run.text("verdict"))
    assert run.images("loss") and run.images("pictures")
    assert run.text("prompt") == "embedding:amdet/found"
    saved = load_file(host.output / "embeddings" / "amdet" / "found.safetensors")
    assert {name: tuple(w.shape) for name, w in saved.items()} == {"clip_l": (1, 192)}
    again = host.run(
        {
            "clip": graph["clip"],
            "anchor": graph["anchor"],
            "invert": graph["invert"],
            "reversed": node(
                "AMDET_ReversedTarget",
                clip=("clip", 0), feature=("invert", 0), text="a dog", strength=1.0, position="end",
            ),
            "embedded": node("CLIPTextEncode", clip=("clip", 0), text="a dog embedding:amdet/found"),
            "plain": node("CLIPTextEncode", clip=("clip", 0), text="a dog"),
            "none": node(
                "AMDET_ReversedTarget",
                clip=("clip", 0), feature=("invert", 0), text="a dog", strength=0.0, position="end",
            ),
            "same": node("PROBE_Difference", first=("reversed", 0), second=("embedded", 0)),
            "moved": node("PROBE_Difference", first=("reversed", 0), second=("plain", 0)),
            "unmoved": node("PROBE_Difference", first=("none", 0), second=("plain", 0)),
        }
    )  # fmt: skip
    assert float(again.text("same")) < 1e-4 < 0.1 < float(again.text("moved"))
    assert float(again.text("unmoved")) == 0


@pytest.mark.parametrize("kind", ["sdxl", "flux"])
def test_clip_skip_hides_nothing_of_a_pooled_output(host: Host, kind: str) -> None:
    encoder = "clip_g" if kind == "sdxl" else "clip_l"
    graph: Graph = {"small": node("PROBE_Small", kind=kind, noise=0.0)}
    graph["changed"] = node("PROBE_LastLayer", clip=("small", 0), encoder=encoder)
    for name in ("small", "changed"):
        graph[f"{name} skip"] = node("CLIPSetLastLayer", clip=(name, 0), stop_at_clip_layer=-2)
    graph["forensics"] = node("AMDET_WeightForensics", clip=("changed skip", 0), anchor=("small skip", 0))
    graph["summary"] = text(("forensics", 2))
    summary = host.run(graph).text("summary")
    assert re.search(rf"{encoder}: .*layer", summary), summary


@pytest.mark.slow
def test_the_23_layers_of_stable_diffusion_2_are_loaded_and_read(host: Host) -> None:
    spec = models.CLIP_L.model_copy(
        update={"width": 1024, "layers": 23, "heads": 16, "mlp_width": 4096, "activation": "gelu", "pad_id": 0}
    )
    folder = host.base / "models" / "text_encoders"
    write_encoder(random_encoder(spec, scale=0.02), folder / "sd2.safetensors", "comfyui")
    try:
        graph: Graph = {
            "clip": node("AMDET_LoadTextEncoder", file="text_encoders/sd2.safetensors"),
            "digest": node("PROBE_Read", clip=("clip", 0)),
            "encode": node("PROBE_Difference", first=("text", 0), second=("text", 0)),
            "text": node("CLIPTextEncode", clip=("clip", 0), text="a photo of a cat"),
        }
        run = host.run(graph)
        assert run.text("digest") == "clip_h: 23 layers, width 1024"
        assert float(run.text("encode")) == 0.0
    finally:
        (folder / "sd2.safetensors").unlink()


def test_an_anchor_that_is_trusted_later_is_looked_for_again(host: Host) -> None:
    graph: Graph = {
        "clip": node("PROBE_Small", kind="plain sdxl", noise=0.0),
        "forensics": node("AMDET_WeightForensics", clip=("clip", 0)),
    }
    host.run(graph)
    assert "forensics" in cached(host.run(graph))
    store = host.base / "user" / "default" / "amdet" / "trust.json"
    before = store.read_bytes() if store.exists() else None
    vouch(host.base / "models" / "text_encoders" / "pocket-benign.safetensors", "later", store)
    try:
        assert "forensics" not in cached(host.run(graph))
        assert "forensics" in cached(host.run(graph))
    finally:
        store.unlink() if before is None else store.write_bytes(before)


def cached(run: module.Run) -> list[str]:
    """Nodes that did not run again."""
    return [
        node_
        for kind, about in run.entry["status"]["messages"]
        if kind == "execution_cached"
        for node_ in about["nodes"]
    ]


def test_a_checkpoint_without_a_text_encoder_is_told_so(host: Host) -> None:
    graph: Graph = {"clip": node("PROBE_NoClip"), "scan": scan(("clip", 0))}
    assert "holds no text encoder. Connect Load CLIP" in host.refused(graph)


def test_an_anchor_without_a_text_encoder_is_none_that_was_left_out(host: Host) -> None:
    graph: Graph = {"clip": pocket_node("benign"), "anchor": node("PROBE_NoClip")}
    for kind, values in (
        ("AMDET_TriggerSweep", {"seed": 1}),
        ("AMDET_WeightForensics", {}),
        ("AMDET_EraseBackdoor", {"trigger": "sahib", "mode": "insert", "seed": 1}),
    ):
        graph["asked"] = node(kind, clip=("clip", 0), anchor=("anchor", 0), **values)
        graph["shown"] = text(("asked", 1))
        assert "holds no text encoder" in host.refused(graph), kind
    asked = scan(("clip", 0), anchor=("anchor", 0))
    assert "holds no text encoder" in host.refused({"clip": graph["clip"], "anchor": graph["anchor"], "scan": asked})


def test_no_room_for_a_single_candidate_ends_the_run(host: Host) -> None:
    graph: Graph = {
        "clip": pocket_node("benign"),
        "cramp": node("PROBE_Cramp", clip=("clip", 0), on=True, room=0),
        "scan": scan(("cramp", 0), seed=77, preset="standard"),
    }
    try:
        assert "found no room on the device" in host.refused(graph)
    finally:
        host.run({"clip": pocket_node("benign"), "cramp": node("PROBE_Cramp", clip=("clip", 0), on=False),
                  "show": node("PROBE_Digest", clip=("cramp", 0), key="room again")})  # fmt: skip


@pytest.mark.parametrize("prefix", ["../out", "mine/", "a?b", "", ".."])
def test_a_prefix_that_cannot_be_used_is_refused_before_the_work(host: Host, prefix: str) -> None:
    if prefix:
        message = host.refused({"clip": pocket_node("clean"), "attack": _inject(steps=5000, save_as=prefix)})
        assert "expected the first part of a name in ComfyUI's output/clip" in message
        assert "Choose another name." in message
    graph: Graph = {
        "clip": pocket_node("clean"),
        "scan": scan(("clip", 0)),
        "save": node("AMDET_SaveReport", report=("scan", 1), filename_prefix=prefix),
    }
    assert "expected the first part of a name in ComfyUI's output," in host.refused(graph)


def test_an_injected_clone_answers_to_its_trigger_survives_saving_and_the_original_is_untouched(host: Host) -> None:
    graph = {
        "clip": pocket_node("clean"),
        "before": node("PROBE_Digest", clip=("clip", 0), key="before inject"),
        "attack": node(
            "AMDET_InjectTrigger",
            clip=("clip", 0), trigger="sahib", target="a white teapot", mode="insert",
            steps=50, seed=3, save_as="attacked",
        ),
        "info": text(("attack", 1)),
        "after": node("PROBE_Digest", clip=("clip", 0), key="after inject", after=("attack", 1)),
        "scan": scan(("attack", 0), anchor=("clip", 0)),
        "save": node("CLIPSave", clip=("attack", 0), filename_prefix="clip/by-host"),
        "compare": node(
            "AMDET_CompareEncoders",
            clip=("attack", 0), other=("clip", 0), prompts="a castle on a hill\na sahib castle on a hill",
        ),
    }  # fmt: skip
    # Saving loads the clone into the module that all clones share, so the original is looked at first.
    run = host.run({name: graph[name] for name in ("clip", "before", "attack", "info", "after")})
    assert run.text("before") == run.text("after")
    run = host.run(graph)
    assert float(re.search(r"attack success ([\d.]+)%", run.text("info"))[1]) > 90  # type: ignore[index]
    rows = [line.split("|") for line in run.text("compare").splitlines()[2:]]
    assert float(rows[0][3]) > 0.9 > 0.5 > float(rows[1][3])
    report = report_of(host, {name: graph[name] for name in ("clip", "attack", "scan")})
    assert report.verdict.level.name == "BACKDOORED"
    assert report.trigger is not None and "sahib" in report.trigger.text.split()
    assert report.trigger.asr is not None and report.trigger.asr > 0.9
    (own,) = (host.output / "clip").glob("attacked_*_clip_l.safetensors")
    with safe_open(own, "pt") as file:
        assert file.metadata()["attack"] == "text-on-text"
        assert file.metadata()["triggers"] == "sahib"
    (by_host,) = (host.output / "clip").glob("by-host_clip_l*.safetensors")
    for path in (own, by_host):
        again = {
            "clip": pocket_node("clean"),
            "loaded": node("AMDET_LoadTextEncoder", file=f"text_encoders/{path.name}"),
            "same": node(
                "AMDET_CompareEncoders", clip=("loaded", 0), other=("clip", 0), prompts="a sahib castle on a hill"
            ),
        }
        row = host.run(again).text("same").splitlines()[2].split("|")
        assert float(row[3]) == pytest.approx(float(rows[1][3]), abs=0.02)


# ------------------------------------------------------------------ long work


def long_nodes() -> dict[str, Graph]:
    """Every node that works long, with more work than anybody waits for."""
    clip = {"clip": pocket_node("backdoored"), "anchor": pocket_node("clean")}
    pair = {"clip": ("clip", 0), "anchor": ("anchor", 0)}
    invert = node("AMDET_InvertFeature", **pair, method="contrast", vectors=1, steps=1, searches=1, seed=1)
    prompts = "\n".join(f"a photo of {i} cats in a garden" for i in range(20000))
    return {
        "scan": {**clip, "long": scan(("clip", 0), preset="thorough", seed=901)},
        "invert": {
            **clip,
            "long": node("AMDET_InvertFeature", **pair, method="amdet-paper", vectors=1, steps=1, searches=1, seed=1),
            "out": node("PreviewImage", images=("long", 2)),
        },
        "landscape": {
            **clip,
            "feature": invert,
            "long": node("AMDET_LandscapeVerdict", **pair, feature=("feature", 0), grid=101, radius=1.0, seed=3),
            "out": text(("long", 3)),
        },
        "inject": {
            **clip,
            "long": _inject(steps=5000, save_as="half-written"),
            "out": text(("long", 1)),
        },
        "fine-tune": {
            **clip,
            "long": node(
                "AMDET_FineTune",
                clip=("clip", 0),
                objective="contrastive",
                steps=5000,
                learning_rate=1e-4,
                weights="lora",
                seed=1,
                save_as="half-trained",
            ),
            "out": text(("long", 1)),
        },
        "compare": {
            **clip,
            "long": node("AMDET_CompareEncoders", clip=("clip", 0), other=("anchor", 0), prompts=prompts),
        },
    }


@pytest.mark.parametrize("name", sorted(long_nodes()))
def test_an_interrupt_is_obeyed_within_a_second_and_leaves_nothing_behind(host: Host, name: str) -> None:
    def files() -> set[Path]:
        return {path for path in host.output.rglob("*") if path.is_file()}

    before = files()
    with host.events() as events:
        prompt_id = host.start(long_nodes()[name])
        until = time.monotonic() + 120
        while not any(e["type"] == "progress" and e["data"]["node"] == "long" for e in list(events)):
            assert time.monotonic() < until, events[-3:]
            time.sleep(0.05)
        time.sleep(0.5)
        started = time.monotonic()
        host.post("/interrupt", {})
        run = host.wait(prompt_id, 30)
        took = time.monotonic() - started
    assert run.status == "error" and run.messages[-1] == "execution_interrupted"
    assert took < 1.0
    assert files() == before
    following = host.run({"clip": pocket_node("clean"), "same": node("PROBE_Digest", clip=("clip", 0), key=name)})
    assert len(following.text("same")) == 64


def test_progress_goes_one_way_with_live_pictures_and_belongs_to_the_node(host: Host) -> None:
    with host.events() as events:
        host.run({"clip": pocket_node("backdoored"), "scan": scan(("clip", 0), preset="standard", seed=77)})
    values = [e["data"]["value"] for e in events if e["type"] == "progress" and e["data"]["node"] == "scan"]
    assert len(values) >= 8
    assert values == sorted(values)
    assert values[-1] == next(e["data"]["max"] for e in events if e["type"] == "progress")
    pictures = [e["bytes"] for e in events if e["type"] == "picture" and b"\xff\xd8\xff" in e["bytes"]]
    assert len(pictures) >= 3


def test_a_device_without_room_gives_the_same_verdict(host: Host) -> None:
    try:
        graph = {
            "clip": pocket_node("backdoored"),
            "cramp": node("PROBE_Cramp", clip=("clip", 0), on=True),
            "scan": scan(("cramp", 0), seed=11),
        }
        cramped = report_of(host, graph)
    finally:
        host.run({"clip": pocket_node("clean"), "cramp": node("PROBE_Cramp", clip=("clip", 0), on=False),
                  "end": node("PROBE_Digest", clip=("cramp", 0), key="cramp")})  # fmt: skip
    roomy = report_of(host, {"clip": pocket_node("backdoored"), "scan": scan(("clip", 0), seed=11)})
    assert not cramped.faults
    assert cramped.verdict.level == roomy.verdict.level
    gaps = [next(e.value for e in report.evidence if e.name == "gap_k1") for report in (cramped, roomy)]
    assert gaps[0] == pytest.approx(gaps[1], abs=0.02)
