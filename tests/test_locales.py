"""Every node, input and output has its texts in every language and its help page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DEFINITIONS = json.loads((ROOT / "tests" / "comfy" / "definitions.json").read_text(encoding="utf-8"))
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())


def texts(language: str, file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "locales" / language / file).read_text(encoding="utf-8"))
    return found


def inputs(node: dict[str, Any]) -> dict[str, Any]:
    return {**node["input"].get("required", {}), **node["input"].get("optional", {})}


def test_there_is_more_than_one_language() -> None:
    assert {"en", "zh"} <= set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_a_node_is_translated_whole(language: str, name: str) -> None:
    node, shown = DEFINITIONS[name], texts(language, "nodeDefs.json")[name]
    assert shown["inputs"].keys() == inputs(node).keys()
    assert list(shown["outputs"]) == [str(i) for i in range(len(node["output"]))]
    parts = [shown, *shown["inputs"].values(), *shown["outputs"].values()]
    assert all(
        part[key].strip() for part in parts for key in ("display_name", "description", "name", "tooltip") if key in part
    )
    assert all({"name", "tooltip"} <= part.keys() for part in parts[1:])
    for key, part in shown["inputs"].items():
        assert set(part.get("options", {})) <= set(inputs(node)[key][1].get("options", [])), key
    if language != "en":
        english = texts("en", "nodeDefs.json")[name]
        assert shown["description"] != english["description"]
        assert all(part["tooltip"] != english["inputs"][key]["tooltip"] for key, part in shown["inputs"].items())


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_language_has_nodes_that_are_gone_and_all_have_every_category(language: str) -> None:
    assert texts(language, "nodeDefs.json").keys() == DEFINITIONS.keys()
    categories = {part for node in DEFINITIONS.values() for part in node["category"].split("/")}
    assert texts(language, "main.json")["nodeCategories"].keys() == categories


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_a_help_page_names_every_input_and_output_and_holds_no_markup(name: str) -> None:
    page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
    node = DEFINITIONS[name]
    for word in [*inputs(node), *node["output_name"]]:
        assert f"`{word}`" in page, word
    assert not re.search(r"<[a-zA-Z/]", page)
