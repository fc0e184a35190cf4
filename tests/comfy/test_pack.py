"""What can be said about the pack without a ComfyUI: its files, its imports, its workflows."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..test_architecture import FORBIDDEN, imports

ROOT = Path(__file__).parents[2]
NODES = sorted((ROOT / "nodes").glob("*.py"))
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
DEFINITIONS = json.loads((ROOT / "tests" / "comfy" / "definitions.json").read_text(encoding="utf-8"))
HOST = {"comfy", "comfy_execution", "folder_paths", "server", "execution", "nodes"}


def schemas() -> dict[str, str]:
    """Class -> node id of every node, read as ComfyUI-Manager reads it: from the source, without importing."""
    found = {}
    for path in NODES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "io.ComfyNode" for base in node.bases):
                calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
                (schema,) = [call for call in calls if ast.unparse(call.func) == "io.Schema"]
                (name,) = [key.value for key in schema.keywords if key.arg == "node_id"]
                assert isinstance(name, ast.Constant)
                found[node.name] = str(name.value)
    return found


def test_the_nodes_that_a_registry_reads_from_the_source_are_those_that_are_registered() -> None:
    assert schemas() == {name: name for name in DEFINITIONS}


def test_every_node_is_described_for_people() -> None:
    for name, node in DEFINITIONS.items():
        assert name.startswith("AMDET_")
        assert node["category"].startswith("AMDET/")
        assert node["display_name"] and len(node["description"]) > 40
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        assert all(about["tooltip"] for _, about in inputs.values()), name
        assert all(node["output_tooltips"]), name
        assert not {"CLIP", "INT", "FLOAT", "STRING", "IMAGE", "BOOLEAN"} & set(node["output_name"]), name


@pytest.mark.parametrize("path", NODES, ids=lambda path: path.name)
def test_imports_within_the_pack_are_relative_and_the_host_stays_in_four_files(path: Path) -> None:
    absolute = {name.split(".")[0] for level, name in imports(path) if level == 0}
    assert "amdet_core" not in absolute
    assert path.stem in ("bridge", "folders", "comfy_clip", "comfy_model") or not absolute & HOST
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize(
    "path", [*NODES, ROOT / "__init__.py", *(ROOT / "web").rglob("*.js")], ids=lambda path: path.name
)
def test_the_archive_holds_nothing_that_registries_refuse(path: Path) -> None:
    assert not FORBIDDEN.findall(path.read_text(encoding="utf-8"))


def test_the_library_runs_where_nothing_of_the_host_can_be_imported() -> None:
    code = (
        "import sys\n"
        f"for name in {sorted(HOST | {'comfy_api', 'aiohttp', 'matplotlib'})!r}: sys.modules[name] = None\n"
        "import pkgutil, importlib, amdet_core\n"
        "for found in pkgutil.walk_packages(amdet_core.__path__, 'amdet_core.'):\n"
        "    if not found.name.endswith(('__main__', 'recipe', 'distillation')): importlib.import_module(found.name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_root_can_be_imported_on_its_own_and_defines_no_old_mappings() -> None:
    code = (
        "import __init__ as pack\n"
        "assert not hasattr(pack, 'NODE_CLASS_MAPPINGS') and not hasattr(pack, 'comfy_entrypoint')\n"
        "assert pack.WEB_DIRECTORY == './web'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert (ROOT / "web").is_dir()


def test_packaging_asks_for_nothing_that_comfyui_lacks() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if line.strip() and not line.startswith("#")]
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    comfy = project["tool"]["comfy"]
    assert comfy["PublisherId"] and comfy["DisplayName"] and "web" not in comfy
    assert comfy["requires-comfyui"] == ">=0.3.64"
    version = project["project"]["version"]
    assert f'__version__ = "{version}"' in (ROOT / "amdet_core" / "__init__.py").read_text(encoding="utf-8")
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    assert {"tests/", "docs/"} <= set(ignored)


# ------------------------------------------------------------------ workflows


def test_the_workflows_are_what_their_generator_writes() -> None:
    spec = importlib.util.spec_from_file_location("generator", ROOT / "docs" / "workflows.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generator"] = module
    spec.loader.exec_module(module)
    for path, page in module.pages().items():
        assert path.read_text(encoding="utf-8") == page, "run: python docs/workflows.py"
    assert {path.stem for path in module.pages()} == {path.stem for path in WORKFLOWS}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_both_forms_of_a_workflow_are_the_same_graph(path: Path) -> None:
    shown = json.loads(path.read_text(encoding="utf-8"))
    graph = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
    nodes = {str(node["id"]): node for node in shown["nodes"] if node["type"] != "MarkdownNote"}
    assert {key: node["type"] for key, node in nodes.items()} == {
        key: node["class_type"] for key, node in graph.items()
    }
    links = {link[0]: link for link in shown["links"]}
    for key, node in nodes.items():
        wired = {port["name"]: links[port["link"]] for port in node["inputs"] if port["link"]}
        given = graph[key]["inputs"]
        assert {name: [str(link[1]), link[2]] for name, link in wired.items()} == {
            name: value for name, value in given.items() if isinstance(value, list)
        }
        widgets = [value for value in node["widgets_values"] if value != "fixed"]
        assert widgets == [value for value in given.values() if not isinstance(value, list)]
    for identity, start, slot, end, port, kind in shown["links"]:
        assert nodes[str(end)]["inputs"][port]["link"] == identity
        assert identity in nodes[str(start)]["outputs"][slot]["links"]
        assert nodes[str(start)]["outputs"][slot]["type"] == kind == nodes[str(end)]["inputs"][port]["type"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_its_picture(path: Path) -> None:
    picture = path.with_suffix(".jpg").read_bytes()
    assert picture[:3] == b"\xff\xd8\xff" and 5_000 < len(picture) < 500_000


def test_there_is_one_folder_of_templates() -> None:
    assert [
        name for name in ("example_workflows", "example", "examples", "workflow", "workflows") if (ROOT / name).is_dir()
    ] == ["workflows"]


def test_no_file_of_the_pack_names_a_place_of_its_makers() -> None:
    for path in [*NODES, *WORKFLOWS, *(ROOT / "web").rglob("*.md")]:
        assert not re.search(r"/work/|/root/|localhost:\d", path.read_text(encoding="utf-8")), path
