"""Write the pages of docs/ that are made from the code: ``python docs/generate.py``. A test holds them."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import tables

from amdet_core import config
from amdet_core.bench import (
    Flips,
    read_detection,
    read_guarding,
    read_painting,
    read_pictures,
    read_repairing,
)
from amdet_core.bench.images import read_images
from amdet_core.calibration import Calibration
from amdet_core.policy import DEFAULT_POLICY, FARTHER, POLICIES
from amdet_core.report import schema_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKS = "<!-- results -->\n", "<!-- /results -->"
"""The lines of README.md between which the tables of results stand."""
AIM_MARKS = "<!-- aims -->\n", "<!-- /aims -->"
"""The same for what was aimed at."""
REPAIR_MARKS = "<!-- repairs -->\n", "<!-- /repairs -->"
"""The same for repairs; by kind in docs/repair.md."""
PAINTER_MARKS = "<!-- painter -->\n", "<!-- /painter -->"
PICTURES_MARKS = "<!-- pictures -->\n", "<!-- /pictures -->"
"""The same in docs/pocket.md."""
GUARD_MARKS = "<!-- guard -->\n", "<!-- /guard -->"
KIND_MARKS = "<!-- kinds -->\n", "<!-- /kinds -->"
FLIPS_MARKS = "<!-- flips -->\n", "<!-- /flips -->"
STAGE_MARKS = "<!-- stages -->\n", "<!-- /stages -->"
COST_MARKS = "<!-- cost -->\n", "<!-- /cost -->"
"""The same in docs/benchmark.md."""
IMAGE_MARKS = "<!-- encoders -->\n", "<!-- /encoders -->"
"""The same in docs/images.md."""
T = TypeVar("T")


def configuration() -> str:
    """Every setting with its default."""
    return "\n".join(_configuration()) + "\n"


def _configuration() -> Iterator[str]:
    yield "# Settings\n"
    yield "The settings of every algorithm with their defaults, as a report records them under `config`."
    yield "This page is generated from `amdet_core/config/`.\n"
    for kind in (
        config.ScanConfig,
        config.ContrastConfig,
        config.SweepConfig,
        config.MovedConfig,
        config.PatternConfig,
        config.SearchConfig,
        config.AmdetConfig,
        config.LandscapeConfig,
        config.GuardConfig,
        config.TextOnTextConfig,
        config.TextOnPairConfig,
        config.AttributeConfig,
        config.SyntacticConfig,
        config.EmbeddingRowConfig,
        config.RankOneConfig,
        config.FineTuneConfig,
        config.CureConfig,
        config.SpectralConfig,
        config.RestoreConfig,
        config.DistilConfig,
        config.EraseConfig,
        config.HealConfig,
        config.RenderConfig,
        config.MimicConfig,
        config.SimclrConfig,
        config.BadEncoderConfig,
        config.ImageMimicConfig,
        config.DownstreamConfig,
    ):
        yield f"## {kind.__name__}\n\n{inspect.getdoc(kind)}\n"
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
    yield "`amdet judge REPORT --policy FILE`. This page is generated from `amdet_core/policies/`.\n"
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
        if policy.drift is not None:
            yield "One that goes further than the honest ones below, and drifts much farther, is `inconclusive`"
            yield f"(`drift` above {FARTHER} x {policy.drift:g}), unless a finding of the gravest level holds,"
            yield "or one of what is not weighed below.\n"
        for calibration in policy.calibrations:
            yield from _calibration(calibration)


def _calibration(calibration: Calibration) -> Iterator[str]:
    """How far honest encoders go, and what is flagged."""
    honest, backdoored = len(calibration.null), calibration.n_backdoored
    known = (
        f" Of {backdoored} backdoored ones of the same zoos, which it does not know, {calibration.caught} are flagged."
    )
    yield (
        f"Learnt from {honest} {calibration.family}: suspicious where any of these goes more than "
        f"{calibration.bound:.2f} times as far as they do, a rate of {calibration.kept_rate:.1%}; those bounds flag "
        f"{calibration.alarms} of them.{known if backdoored else ''}\n"
    )
    yield "| evidence | honest ones, or noise, up to | says |\n|---|---|---|"
    for term in calibration.terms:
        yield f"| `{term.name}` | {max(term.honest, term.least):.3f} | {term.words} |"
    yield ""


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


def readme() -> str:
    """README.md with the results that are recorded."""
    page, detected = (ROOT / "README.md").read_text(encoding="utf-8"), _recorded("detection", read_detection)
    page = _between(page, MARKS, tables.results(detected))
    page = _between(page, AIM_MARKS, tables.aims(detected, _recorded("flips", _read_flips), _costs()))
    return _between(page, REPAIR_MARKS, tables.repairs(_recorded("repair", read_repairing)))


def _costs() -> dict[str, Any]:
    """The recorded costs of a scan."""
    found: dict[str, Any] = json.loads((RESULTS / "cost.json").read_bytes())
    return found


def _recorded(benchmark: str, read: Callable[[Path], T], above: str = "") -> dict[str, T]:
    """The recorded results of a benchmark, by their paths as a page ``above`` them links to them."""
    found = sorted(RESULTS.glob(f"{benchmark}-*.json"), key=lambda path: path.stem)
    return {above + path.relative_to(ROOT).as_posix(): read(path) for path in found}


def _read_flips(path: Path) -> Flips:
    return Flips.model_validate_json(path.read_bytes())


def _between(page: str, marks: tuple[str, str], text: str) -> str:
    """The page with a text between two of its lines."""
    before, rest = page.split(marks[0])
    _, after = rest.split(marks[1])
    return before + marks[0] + text + marks[1] + after


def pocket() -> str:
    """docs/pocket.md with the painter's recorded results."""
    page = (ROOT / "docs" / "pocket.md").read_text(encoding="utf-8")
    page = _between(page, PAINTER_MARKS, tables.painter(read_painting(RESULTS / "pocket.json")))
    return _between(page, PICTURES_MARKS, tables.pictures(read_pictures(RESULTS / "pictures-visible.json")))


def images() -> str:
    """docs/images.md with the recorded result."""
    page = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
    return _between(page, IMAGE_MARKS, tables.encoders(read_images(RESULTS / "image.json")))


def benchmark() -> str:
    """docs/benchmark.md with the recorded costs of a scan, and what benchmarks say."""
    page = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    detected = _recorded("detection", read_detection, "../")
    page = _between(page, COST_MARKS, tables.costs(_costs()))
    page = _between(page, KIND_MARKS, tables.by_kind(detected))
    page = _between(page, STAGE_MARKS, tables.stages(detected))
    page = _between(page, GUARD_MARKS, tables.guards(_recorded("guard", read_guarding, "../")))
    return _between(page, FLIPS_MARKS, tables.flips(_recorded("flips", _read_flips, "../")))


def repair() -> str:
    """docs/repair.md with what repairs did by kind of attack."""
    page = (ROOT / "docs" / "repair.md").read_text(encoding="utf-8")
    return _between(page, REPAIR_MARKS, tables.repairs_by_kind(_recorded("repair", read_repairing, "../")))


PAGES: dict[Path, Callable[[], str]] = {
    ROOT / "locales" / "en" / "nodeDefs.json": english,
    **{ROOT / "web" / "docs" / f"{name}.md": partial(help_page, name) for name in _definitions()},
    ROOT / "docs" / "benchmark.md": benchmark,
    ROOT / "docs" / "images.md": images,
    ROOT / "docs" / "configuration.md": configuration,
    ROOT / "docs" / "policies.md": policies,
    ROOT / "docs" / "pocket.md": pocket,
    ROOT / "docs" / "repair.md": repair,
    ROOT / "README.md": readme,
    ROOT / "amdet_core" / "report" / "schema.json": lambda: schema_json().decode(),
}

if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8", newline="\n")
        sys.stdout.write(f"{path}\n")
