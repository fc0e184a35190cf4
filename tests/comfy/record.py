"""Write tests/comfy/definitions.json from a running ComfyUI: ``python tests/comfy/record.py http://127.0.0.1:8188``.

The file holds the interface of every node as workflows depend on it; a test refuses removed or reordered inputs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

FILE = Path(__file__).with_name("definitions.json")
KEPT = (
    "input", "input_order", "output", "output_name", "output_tooltips", "name", "display_name", "description",
    "category", "output_node", "experimental",
)  # fmt: skip


def definitions(server: str) -> dict[str, Any]:
    """The pack's part of /object_info; choices that depend on installed files are left empty."""
    with urlopen(f"{server}/object_info") as answer:
        every = json.load(answer)
    nodes = {name: {key: node[key] for key in KEPT} for name, node in every.items() if name.startswith("AMDET_")}
    for node in nodes.values():  # what the host hands over by itself is no part of a workflow
        node["input"].pop("hidden", None)
        node["input_order"].pop("hidden", None)
    nodes["AMDET_LoadTextEncoder"]["input"]["required"]["file"][1]["options"] = []
    return nodes


if __name__ == "__main__":
    FILE.write_text(json.dumps(definitions(sys.argv[1]), indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
