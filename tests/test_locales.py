"""Every node, input and output has its texts in every language and its help page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DEFINITIONS = json.loads((ROOT / "tests" / "comfy" / "definitions.json").read_text(encoding="utf-8"))
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())
FILES = ("main.json", "nodeDefs.json")
SCRIPTS = {"en": r"[\x20-\x7e]", "zh": r"[\u4e00-\u9fff]"}
"""Characters of which a text in a language has at least one."""
UNTRANSLATED = {"CLIP", "clip", "AMDET", "JSON", "json"}


def texts(language: str, file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "locales" / language / file).read_text(encoding="utf-8"))
    return found


def inputs(node: dict[str, Any]) -> dict[str, Any]:
    return {**node["input"].get("required", {}), **node["input"].get("optional", {})}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text with its place; fails on anything else, empty objects included."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from leaves(part, f"{path}/{key}")
    else:
        assert isinstance(value, str), path
        yield path, value


def page(name: str) -> str:
    return (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------ languages


def test_there_is_more_than_one_language_and_all_have_the_same_files() -> None:
    assert set(LANGUAGES) == SCRIPTS.keys()
    for language in LANGUAGES:
        assert sorted(path.name for path in (ROOT / "locales" / language).iterdir()) == sorted(FILES)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_a_node_is_translated_whole(language: str, name: str) -> None:
    node, shown = DEFINITIONS[name], texts(language, "nodeDefs.json")[name]
    assert shown.keys() == {"display_name", "description", "inputs", "outputs"}
    assert shown["inputs"].keys() == inputs(node).keys()
    assert list(shown["outputs"]) == [str(i) for i in range(len(node["output"]))]
    for key, part in shown["inputs"].items():
        assert part.keys() - {"options"} == {"name", "tooltip"}, key
        if "options" in part:
            assert part["options"].keys() == set(inputs(node)[key][1]["options"]), key
    assert all(part.keys() == {"name", "tooltip"} for part in shown["outputs"].values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_language_has_nodes_that_are_gone_and_all_have_every_category(language: str) -> None:
    assert texts(language, "nodeDefs.json").keys() == DEFINITIONS.keys()
    categories = {part for node in DEFINITIONS.values() for part in node["category"].split("/")}
    assert texts(language, "main.json").keys() == {"nodeCategories"}
    assert texts(language, "main.json")["nodeCategories"].keys() == categories


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_says_something_and_reads_as_it_is_written(language: str, file: str) -> None:
    for path, text in leaves(texts(language, file)):
        assert text.strip() == text != "", path
        assert not re.search(r"[@{}|<>]", text), f"{path}: the editor takes these for a link, a value or markup"
        assert text.isascii() or language != "en", path
        assert re.search(SCRIPTS[language], text) or text in UNTRANSLATED, f"{path}: {text!r} is not translated"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_a_translation_differs_from_the_english(language: str, file: str) -> None:
    english = dict(leaves(texts("en", file)))
    for path, text in leaves(texts(language, file)):
        assert text != english.get(path) or text in UNTRANSLATED, path


# ------------------------------------------------------------------ help pages


def test_every_node_has_its_help_page_and_no_page_is_left_over() -> None:
    assert {path.name for path in (ROOT / "web" / "docs").iterdir()} == {f"{name}.md" for name in DEFINITIONS}


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_a_help_page_names_every_input_and_output(name: str) -> None:
    node, (_, below) = DEFINITIONS[name], page(name).split("\n## Inputs\n")
    first, second = below.split("\n## Outputs\n")
    rows = [re.findall(r"^\| `([^`]+)` \|", part.split("\n## ")[0], re.M) for part in (first, second)]
    assert rows == [list(inputs(node)), node["output_name"]]
    assert page(name).startswith(f"# {node['display_name']}")


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_a_help_page_is_plain_markdown(name: str) -> None:
    assert page(name).isascii()
    assert not re.search(r"<[a-zA-Z/!?]|&#?\w+;|!\[", page(name)), "markup or a picture"
