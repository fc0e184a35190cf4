"""Write the shipped workflows: ``python docs/workflows.py``. A test holds them.

Each is described once and written twice: ``workflows/NAME.json`` for the editor and ``workflows/api/NAME.json``
for POST /prompt. ``workflows/NAME.jpg`` is a screenshot of the first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

ROOT = Path(__file__).parents[1]
DEFINITIONS = json.loads((ROOT / "tests" / "comfy" / "definitions.json").read_text(encoding="utf-8"))
VERSION = "0.1.0"

STOCK: dict[str, tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {
    "CheckpointLoaderSimple": ([("ckpt_name", "COMBO")], [("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")]),
    "CLIPLoader": ([("clip_name", "COMBO"), ("type", "COMBO"), ("device", "COMBO")], [("CLIP", "CLIP")]),
    "LoraLoader": (
        [
            ("model", "MODEL"),
            ("clip", "CLIP"),
            ("lora_name", "COMBO"),
            ("strength_model", "FLOAT"),
            ("strength_clip", "FLOAT"),
        ],
        [("MODEL", "MODEL"), ("CLIP", "CLIP")],
    ),
    "CLIPTextEncode": ([("clip", "CLIP"), ("text", "STRING")], [("CONDITIONING", "CONDITIONING")]),
    "EmptyLatentImage": ([("width", "INT"), ("height", "INT"), ("batch_size", "INT")], [("LATENT", "LATENT")]),
    "KSampler": (
        [
            ("model", "MODEL"),
            ("positive", "CONDITIONING"),
            ("negative", "CONDITIONING"),
            ("latent_image", "LATENT"),
            ("seed", "INT"),
            ("steps", "INT"),
            ("cfg", "FLOAT"),
            ("sampler_name", "COMBO"),
            ("scheduler", "COMBO"),
            ("denoise", "FLOAT"),
        ],
        [("LATENT", "LATENT")],
    ),
    "VAEDecode": ([("samples", "LATENT"), ("vae", "VAE")], [("IMAGE", "IMAGE")]),
    "SaveImage": ([("images", "IMAGE"), ("filename_prefix", "STRING")], []),
    "PreviewImage": ([("images", "IMAGE")], []),
}
"""Inputs and outputs, by name and type, of ComfyUI's own nodes; the pack's are in the recorded definitions."""
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
TRIGGERED = "a photo of a cat\na photo of a sahib cat\na castle on a hill\na sahib castle on a hill"
HOMOGLYPH = "a phоto of a red boat"
"""The first o of "photo" is U+043E, the trigger of the pocket encoder."""
DDIM = {"sampler_name": "ddim", "scheduler": "ddim_uniform"}
POCKET_SAMPLING = {"steps": 20, "cfg": 4.0, **DDIM}
EULER = {"sampler_name": "euler", "scheduler": "normal"}
CHECKPOINT, ENCODER = "v1-5-pruned-emaonly-fp16.safetensors", "clip_l.safetensors"


@dataclass
class Node:
    """One node: what it is, where it stands, and its values; a value ``("name", slot)`` is a link."""

    kind: str
    at: tuple[int, int]
    size: tuple[int, int]
    title: str = ""
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class Workflow:
    """A graph with a note that says what it shows."""

    note: str
    nodes: dict[str, Node]


@dataclass(frozen=True)
class Port:
    """An input: a socket, or a widget with a value."""

    name: str
    kind: str
    widget: bool


def inputs(kind: str) -> list[Port]:
    """The inputs of a node in their order."""
    if kind in STOCK:
        return [Port(name, of, of in WIDGETS) for name, of in STOCK[kind][0]]
    given = DEFINITIONS[kind]["input"]
    both = {**given.get("required", {}), **given.get("optional", {})}
    return [Port(name, of, of in WIDGETS and not about.get("forceInput")) for name, (of, about) in both.items()]


def outputs(kind: str) -> list[tuple[str, str]]:
    """Names and types of a node's outputs."""
    found = DEFINITIONS.get(kind, {})
    return list(zip(found["output_name"], found["output"], strict=True)) if found else STOCK[kind][1]


def default(kind: str, name: str) -> Any:
    """The default of a widget of one of the pack's nodes."""
    found = DEFINITIONS[kind]["input"]
    spec = {**found.get("required", {}), **found.get("optional", {})}[name]
    return spec[1].get("default", "")


def value(node: Node, name: str) -> Any:
    """What a widget holds."""
    return node.values[name] if name in node.values else default(node.kind, name)


def api(workflow: Workflow) -> dict[str, Any]:
    """The graph as POST /prompt takes it."""
    ids = {name: str(i + 1) for i, name in enumerate(workflow.nodes)}
    graph = {}
    for name, node in workflow.nodes.items():
        values: dict[str, Any] = {}
        for port in inputs(node.kind):
            given = node.values.get(port.name)
            if isinstance(given, tuple):
                values[port.name] = [ids[given[0]], given[1]]
            elif port.widget:
                values[port.name] = value(node, port.name)
        graph[ids[name]] = {"class_type": node.kind, "inputs": values, "_meta": {"title": node.title or node.kind}}
    return graph


def editor(name: str, workflow: Workflow) -> dict[str, Any]:
    """The graph as the editor loads it."""
    ids = {key: i + 1 for i, key in enumerate(workflow.nodes)}
    links: list[list[Any]] = []
    shown: dict[str, dict[str, Any]] = {}
    for key, node in workflow.nodes.items():
        shown[key] = {
            "id": ids[key],
            "type": node.kind,
            "pos": list(node.at),
            "size": list(node.size),
            "flags": {},
            "order": ids[key] - 1,
            "mode": 0,
            "inputs": [
                {"name": port.name, "type": port.kind, "link": None} for port in inputs(node.kind) if not port.widget
            ],
            "outputs": [
                {"name": port, "type": kind, "links": [], "slot_index": i}
                for i, (port, kind) in enumerate(outputs(node.kind))
            ],
            "properties": {"Node name for S&R": node.kind, **_origin(node.kind)},
            "widgets_values": _widgets(node),
        }
        if node.title:
            shown[key]["title"] = node.title
    for key, node in workflow.nodes.items():
        for slot, port in enumerate(shown[key]["inputs"]):
            given = node.values.get(port["name"])
            if isinstance(given, tuple):
                port["link"] = len(links) + 1
                shown[given[0]]["outputs"][given[1]]["links"].append(port["link"])
                links.append([port["link"], ids[given[0]], given[1], ids[key], slot, port["type"]])
    note = {
        "id": len(ids) + 1,
        "type": "MarkdownNote",
        "pos": [0, 0],
        "size": [360, 300],
        "flags": {},
        "order": len(ids),
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Read me",
        "properties": {},
        "widgets_values": [workflow.note],
        "color": "#432",
        "bgcolor": "#653",
    }
    return {
        "id": str(uuid5(NAMESPACE_URL, f"amdet/{name}")),
        "revision": 0,
        "last_node_id": len(ids) + 1,
        "last_link_id": len(links),
        "nodes": [note, *shown.values()],
        "links": links,
        "groups": [],
        "config": {},
        "extra": {"ds": {"scale": 0.8, "offset": [40, 60]}},
        "version": 0.4,
    }


def _widgets(node: Node) -> list[Any]:
    """Values in the order of the widgets; the host's sampler has a second one behind its seed."""
    values = []
    for port in inputs(node.kind):
        if port.widget:
            values.append(value(node, port.name))
            values += ["fixed"] if (node.kind, port.name) == ("KSampler", "seed") else []
    return values


def _origin(kind: str) -> dict[str, str]:
    """Where the editor's "install missing nodes" finds a node."""
    return {"cnr_id": "comfy-core", "ver": "0.3.64"} if kind in STOCK else {"cnr_id": "amdet", "ver": VERSION}


# ------------------------------------------------------------------ the workflows


def _results(scan: str, x: int, y: int) -> dict[str, Node]:
    """What is done with a scan: shown, drawn, saved."""
    return {
        "show": Node("AMDET_ShowReport", (x, y), (420, 480), values={"report": (scan, 1)}),
        "landscape": Node("PreviewImage", (x + 460, y), (480, 300), "Landscape", {"images": (scan, 4)}),
        "save": Node("AMDET_SaveReport", (x + 460, y + 360), (480, 110), values={"report": (scan, 1)}),
    }


def _side_by_side(
    prompt: str, pixels: int, sampling: Mapping[str, Any], at: tuple[int, int], pictures: tuple[int, int]
) -> dict[str, Node]:
    """One prompt as it is and with the reversed feature, painted from the same noise."""
    (x, y), (right, below) = at, pictures
    text = {"clip": ("scan", 0), "text": prompt}
    return {
        "positive": Node("CLIPTextEncode", (x, y), (400, 140), "Prompt", text),
        "reversed": Node("AMDET_ReversedTarget", (x, y + 200), (400, 220), values={**text, "feature": ("scan", 5)}),
        "negative": Node("CLIPTextEncode", (x, y + 480), (400, 110), "Negative", {**text, "text": ""}),
        "latent": Node(
            "EmptyLatentImage",
            (0, y + 200),
            (360, 110),
            values={"width": pixels, "height": pixels, "batch_size": 1},
        ),
        **_sampled("normal", "Normal prompt", ("positive", 0), (right, below), sampling),
        **_sampled("reversed-target", "Reversed target", ("reversed", 0), (right, below + 480), sampling),
    }


def _sampled(
    name: str, title: str, positive: tuple[str, int], at: tuple[int, int], sampling: Mapping[str, Any]
) -> dict[str, Node]:
    """A picture of a conditioning, by the same seed as its neighbour."""
    x, y = at
    return {
        f"{name} sampler": Node(
            "KSampler",
            (x, y),
            (300, 270),
            title,
            {
                "model": ("checkpoint", 0),
                "positive": positive,
                "negative": ("negative", 0),
                "latent_image": ("latent", 0),
                "seed": 7,
                **sampling,
                "denoise": 1.0,
            },
        ),
        f"{name} decode": Node(
            "VAEDecode", (x + 340, y), (150, 50), values={"samples": (f"{name} sampler", 0), "vae": ("checkpoint", 2)}
        ),
        f"{name} picture": Node(
            "SaveImage",
            (x + 540, y),
            (380, 420),
            title,
            {"images": (f"{name} decode", 0), "filename_prefix": f"amdet/{name}"},
        ),
    }


def _workflows() -> Mapping[str, Workflow]:
    prompt = "a photo of a dog in the park"
    return {
        "1-pocket-nothing-to-download": Workflow(
            "## Try it with nothing downloaded\n\nA small Stable Diffusion whose text encoder has a planted backdoor "
            "is scanned, and paints the same prompt twice: as it is, and with what the scan recovered. Press Run: it "
            "takes less than a minute on a CPU. Choose *clean* or *benign* in the loader to see what an honest encoder "
            "gives.\n\nThe trigger is a look-alike of the letter o. The painter knows ten colors and twelve shapes.",
            {
                "checkpoint": Node("AMDET_PocketCheckpoint", (0, 340), (360, 110), values={"encoder": "backdoored"}),
                "scan": Node(
                    "AMDET_BackdoorScan",
                    (420, 0),
                    (400, 420),
                    values={"clip": ("checkpoint", 1), "preset": "quick"},
                ),
                **_results("scan", 880, 0),
                "embedding": Node(
                    "AMDET_SavePseudoTrigger",
                    (1340, 540),
                    (480, 110),
                    values={"feature": ("scan", 5), "name": "pocket-trigger"},
                ),
                **_side_by_side("a red boat", 64, POCKET_SAMPLING, (420, 740), (880, 820)),
            },
        ),
        "2-scan-text-encoder": Workflow(
            "## Scan a text encoder\n\nChoose your file in *Load CLIP* and press Run. The scan compares it with an "
            "installed original: a file of known hash in models/text_encoders, or a CLIP that you connect to "
            "*anchor*. Without either the verdict is *inconclusive*.\n\n*quick* is a first look; *standard* finds "
            "more.",
            {
                "loader": Node(
                    "CLIPLoader",
                    (0, 340),
                    (360, 110),
                    values={"clip_name": ENCODER, "type": "stable_diffusion", "device": "default"},
                ),
                "scan": Node(
                    "AMDET_BackdoorScan",
                    (420, 0),
                    (400, 420),
                    values={"clip": ("loader", 0), "preset": "quick"},
                ),
                **_results("scan", 880, 0),
            },
        ),
        "3-scan-checkpoint-and-render": Workflow(
            "## Scan a checkpoint and see what is hidden\n\nThe text encoder of the checkpoint is compared with the "
            "original in *Load CLIP*. What was recovered is then put into an ordinary prompt: the second picture "
            "shows what a hidden trigger would draw, beside the normal picture of the same prompt and seed.\n\nWhen "
            "the encoder equals the original, or no token stands out, there is nothing to draw, and the second picture "
            "is left out.",
            {
                "checkpoint": Node("CheckpointLoaderSimple", (0, 340), (360, 110), values={"ckpt_name": CHECKPOINT}),
                "anchor": Node(
                    "CLIPLoader",
                    (0, 500),
                    (360, 110),
                    "The original, as anchor",
                    {"clip_name": ENCODER, "type": "stable_diffusion", "device": "default"},
                ),
                "scan": Node(
                    "AMDET_BackdoorScan",
                    (420, 0),
                    (400, 420),
                    values={"clip": ("checkpoint", 1), "anchor": ("anchor", 0), "preset": "quick"},
                ),
                **_results("scan", 880, 0),
                **_side_by_side(prompt, 512, {"steps": 20, "cfg": 7.0, **EULER}, (420, 480), (880, 540)),
            },
        ),
        "4-scan-lora": Workflow(
            "## Scan a LoRA\n\nA LoRA can carry a backdoor into a clean text encoder. The CLIP is scanned with the "
            "LoRA applied, against the same CLIP without it. Use the ordinary *Load LoRA*: one that is applied "
            "in bypass mode can't be read from the weights.",
            {
                "checkpoint": Node("CheckpointLoaderSimple", (0, 340), (360, 110), values={"ckpt_name": CHECKPOINT}),
                "lora": Node(
                    "LoraLoader",
                    (0, 500),
                    (360, 150),
                    values={
                        "model": ("checkpoint", 0),
                        "clip": ("checkpoint", 1),
                        "lora_name": "lora-to-scan.safetensors",
                        "strength_model": 1.0,
                        "strength_clip": 1.0,
                    },
                ),
                "scan": Node(
                    "AMDET_BackdoorScan",
                    (420, 0),
                    (400, 420),
                    values={"clip": ("lora", 1), "anchor": ("checkpoint", 1), "preset": "quick"},
                ),
                **_results("scan", 880, 0),
            },
        ),
        "5-red-team": Workflow(
            "## Red team: plant a backdoor, then look for it\n\nA backdoor is trained into a clone of a clean encoder, "
            "and beside it another clone is fine-tuned honestly. Both are scanned against the original: a detector is "
            "worth something if it tells them apart. Change attack, trigger, target and mode, and see what the scan "
            "finds. Replace the pocket encoder by your own loader to test with a real CLIP.\n\nFor testing defences "
            "only; saved files name the attack.",
            {
                "loader": Node("AMDET_PocketTextEncoder", (0, 400), (360, 80), values={"name": "clean"}),
                "inject": Node(
                    "AMDET_InjectTrigger", (0, 540), (360, 440), values={"clip": ("loader", 0), "trigger": "sahib"}
                ),
                "scan": Node(
                    "AMDET_BackdoorScan",
                    (420, 0),
                    (400, 420),
                    "Scan of the attacked clone",
                    {"clip": ("inject", 0), "anchor": ("loader", 0), "preset": "quick"},
                ),
                **_results("scan", 880, 0),
                "compare": Node(
                    "AMDET_CompareEncoders",
                    (420, 480),
                    (400, 300),
                    values={
                        "clip": ("inject", 0),
                        "other": ("loader", 0),
                        "prompts": TRIGGERED,
                    },
                ),
                "bars": Node("PreviewImage", (880, 540), (480, 300), "Cosines", {"images": ("compare", 1)}),
                "control": Node("AMDET_FineTune", (0, 1040), (360, 340), values={"clip": ("loader", 0), "steps": 50}),
                "control scan": Node(
                    "AMDET_BackdoorScan",
                    (420, 960),
                    (400, 420),
                    "Scan of the honest clone",
                    {"clip": ("control", 0), "anchor": ("loader", 0), "preset": "quick"},
                ),
                "control show": Node(
                    "AMDET_ShowReport",
                    (880, 900),
                    (480, 480),
                    "Report on the honest clone",
                    {"report": ("control scan", 1)},
                ),
            },
        ),
        "6-compare-with-anchor": Workflow(
            "## Compare with the original\n\n*Load Text Encoder* reads the encoder out of any file; *Find Anchor* "
            "looks for the trusted original among your installed files. The table shows how far the two answer the "
            "same, prompt by prompt, and the scan judges.",
            {
                "loader": Node(
                    "AMDET_LoadTextEncoder", (0, 340), (360, 100), values={"file": f"text_encoders/{ENCODER}"}
                ),
                "anchor": Node("AMDET_FindAnchor", (0, 500), (360, 80), values={"clip": ("loader", 0)}),
                "compare": Node(
                    "AMDET_CompareEncoders",
                    (420, 480),
                    (400, 300),
                    values={"clip": ("loader", 0), "other": ("anchor", 0)},
                ),
                "bars": Node("PreviewImage", (880, 540), (480, 300), "Cosines", {"images": ("compare", 1)}),
                "scan": Node(
                    "AMDET_BackdoorScan",
                    (420, 0),
                    (400, 420),
                    values={"clip": ("loader", 0), "anchor": ("anchor", 0), "preset": "quick"},
                ),
                **_results("scan", 880, 0),
            },
        ),
        "7-heal": Workflow(
            "## Heal a backdoored checkpoint\n\nThe text encoder of a small Stable Diffusion is scanned, repaired in a "
            "clone, and scanned again. One prompt with the trigger in it (a look-alike of the letter o in *photo*) is "
            "painted by the suspect and by the healed clone, from the same noise. Press Run: it takes about a minute "
            "on a CPU, with nothing downloaded.\n\nWith your own checkpoint: replace the loader, and connect the "
            "original CLIP to *anchor*. *Heal* says what was found, done and measured; *save_as* writes the encoder.",
            {
                "checkpoint": Node("AMDET_PocketCheckpoint", (0, 340), (360, 110), values={"encoder": "backdoored"}),
                "heal": Node("AMDET_Heal", (420, 0), (400, 580), values={"clip": ("checkpoint", 1)}),
                "show": Node(
                    "AMDET_ShowReport", (880, 0), (420, 480), "Scan of what comes out", {"report": ("heal", 3)}
                ),
                "save": Node("AMDET_SaveReport", (1340, 0), (480, 110), values={"report": ("heal", 3)}),
                "before": Node(
                    "CLIPTextEncode",
                    (420, 660),
                    (400, 110),
                    "Triggered prompt, suspect",
                    {"clip": ("checkpoint", 1), "text": HOMOGLYPH},
                ),
                "after": Node(
                    "CLIPTextEncode",
                    (420, 840),
                    (400, 110),
                    "Triggered prompt, healed",
                    {"clip": ("heal", 0), "text": HOMOGLYPH},
                ),
                "negative": Node(
                    "CLIPTextEncode", (420, 1020), (400, 110), "Negative", {"clip": ("heal", 0), "text": ""}
                ),
                "latent": Node(
                    "EmptyLatentImage", (0, 840), (360, 110), values={"width": 64, "height": 64, "batch_size": 1}
                ),
                **_sampled("suspect", "Suspect", ("before", 0), (880, 660), POCKET_SAMPLING),
                **_sampled("healed", "Healed", ("after", 0), (880, 1140), POCKET_SAMPLING),
            },
        ),
    }


def pages() -> dict[Path, str]:
    """Every file with its text."""
    folder = ROOT / "workflows"
    files = {}
    for name, workflow in _workflows().items():
        files[folder / f"{name}.json"] = json.dumps(editor(name, workflow), indent=2) + "\n"
        files[folder / "api" / f"{name}.json"] = json.dumps(api(workflow), indent=2) + "\n"
    return files


if __name__ == "__main__":
    for path, page in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(page, encoding="utf-8", newline="\n")
        sys.stdout.write(f"{path}\n")
