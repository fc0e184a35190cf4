"""Write the pages of docs/ that are made from the code: ``python docs/generate.py``. A test holds them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from amdet_core import config
from amdet_core.report import schema_json
from amdet_core.verdict import DEFAULT_POLICY, POLICIES

ROOT = Path(__file__).parents[1]


def configuration() -> str:
    """Every setting with its default."""
    return "\n".join(_configuration()) + "\n"


def _configuration() -> Iterator[str]:
    yield "# Settings\n"
    yield "The settings of every algorithm with their defaults, as a report records them under `config`."
    yield "This page is generated from `amdet_core/config.py`.\n"
    for kind in (
        config.ScanConfig,
        config.ContrastConfig,
        config.AmdetConfig,
        config.LandscapeConfig,
        config.TextOnTextConfig,
    ):
        yield f"## {kind.__name__}\n\n{(kind.__doc__ or '').strip()}\n"
        yield "| setting | default | meaning |\n|---|---|---|"
        for name, field in kind.model_fields.items():
            default = field.default if not isinstance(field.default, config.Config) else "see below"
            yield f"| `{name}` | `{default}` | {field.description} |"
        yield ""


def policies() -> str:
    """Every built-in policy with its bounds."""
    return "\n".join(_policies()) + "\n"


def _policies() -> Iterator[str]:
    yield "# Policies\n"
    yield f"How evidence becomes a verdict. The default is `{DEFAULT_POLICY}`. A policy is data: the `config.policy`"
    yield "of any report, changed and saved as a file, can be given to `amdet scan --policy FILE` and"
    yield "`amdet judge REPORT --policy FILE`. This page is generated from `amdet_core/verdict.py`.\n"
    yield "Whatever the policy: an encoder that equals a trusted one is `clean`; a stage that failed, or evidence that"
    yield "is required and was not measured, makes it `inconclusive` unless something was found.\n"
    for policy in POLICIES.values():
        yield f"## {policy.name}\n\n{policy.description}. Inversion: `{policy.method}`. "
        yield f"Error rate: {policy.error_rate}.\n"
        yield "| level | all of these hold | in words |\n|---|---|---|"
        for finding in policy.findings:
            when = ", ".join(f"`{condition}`" for condition in finding.when)
            yield f"| {finding.level.name.lower()} | {when} | {finding.reason} |"
        yield f"\nRequired: {', '.join(f'`{name}`' for name in policy.required)}.\n"


def _definitions() -> dict[str, Any]:
    """The recorded interface of every node."""
    found: dict[str, Any] = json.loads((ROOT / "tests" / "comfy" / "definitions.json").read_text(encoding="utf-8"))
    return found


def _inputs(node: dict[str, Any]) -> dict[str, Any]:
    return {**node["input"].get("required", {}), **node["input"].get("optional", {})}


def english() -> str:
    """The English texts of the nodes, as ComfyUI looks for them."""
    texts = {
        name: {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": {
                key: {"name": about.get("display_name", key), "tooltip": about["tooltip"]}
                for key, (_, about) in _inputs(node).items()
            },
            "outputs": {
                str(i): {"name": shown, "tooltip": tooltip}
                for i, (shown, tooltip) in enumerate(zip(node["output_name"], node["output_tooltips"], strict=True))
            },
        }
        for name, node in _definitions().items()
    }
    return json.dumps(texts, indent=2, ensure_ascii=False) + "\n"


def help_page(name: str) -> str:
    """A node's help: what docs/nodes says, with tables of its inputs and outputs."""
    node = _definitions()[name]
    optional = node["input"].get("optional", {})
    lines = ["## Inputs\n", "| input | type | |", "|---|---|---|"]
    for key, (kind, about) in _inputs(node).items():
        note = " Optional." if key in optional else ""
        lines.append(f"| `{key}` | {kind} | {about['tooltip']}{note} |")
    lines += ["", "## Outputs\n", "| output | type | |", "|---|---|---|"]
    for key, kind, tooltip in zip(node["output_name"], node["output"], node["output_tooltips"], strict=True):
        lines.append(f"| `{key}` | {kind} | {tooltip} |")
    prose = (ROOT / "docs" / "nodes" / f"{name}.md").read_text(encoding="utf-8")
    assert prose.count("{interface}") == 1, f"docs/nodes/{name}.md says where the tables go"
    return prose.replace("{interface}", "\n".join(lines))


PAGES = {
    ROOT / "locales" / "en" / "nodeDefs.json": english,
    **{ROOT / "web" / "docs" / f"{name}.md": partial(help_page, name) for name in _definitions()},
    ROOT / "docs" / "configuration.md": configuration,
    ROOT / "docs" / "policies.md": policies,
    ROOT / "amdet_core" / "report" / "schema.json": lambda: schema_json().decode(),
}

if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8", newline="\n")
        sys.stdout.write(f"{path}\n")
