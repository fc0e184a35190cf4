"""The report as one HTML file without scripts and without anything from outside.

File names, tokens and messages come from strangers: the template escapes everything, hidden characters
are spelled out, and the page forbids itself scripts and connections.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import figures
from ..drawing import Drawing, svg
from ..glyphs import glyphs, plain
from ..policy import DRIFT
from ..records import Candidate, Forensics, LayerChange, ScanReport
from . import words

TEMPLATE = "report.html.j2"
CHANGE = "delta_norm"
"""Evidence of how far an encoder is from its anchor."""


def render_html(report: ScanReport, pictures: Drawing | None = None) -> str:
    """The page, made from the report alone; equal reports give equal pages.

    Args:
        pictures: painted with what was recovered, as :func:`..gallery.gallery` lays them out.
    """
    names = tuple(encoder.name for encoder in report.target.encoders)
    return page(
        TEMPLATE,
        report=report,
        level=report.verdict.level.name.lower(),
        headline=words.HEADLINES[report.verdict.level],
        file=words.file_name(report),
        of_a_file=words.of_a_file(report),
        sections=words.sections(report),
        trigger=glyphs(report.trigger.text) if report.trigger else (),
        pictures=None if pictures is None else Markup(svg(pictures, "Pictures with and without the trigger")),
        weights=_weights(report),
        candidates=_candidates(report),
        controls=_controls(report),
        landscapes=[shown for i, name in enumerate(names) if (shown := _landscape(words.strongest(report, name), i))],
        config=json.dumps(report.model_dump(mode="json")["config"], indent=2, ensure_ascii=True).splitlines(),
    )


def page(template: str, **values: object) -> str:
    """A page of this package from its template."""
    return _environment().get_template(template).render(**values)


def _weights(report: ScanReport) -> list[tuple[str, Markup]]:
    """Caption and figure of the changes to each encoder."""
    return [
        (
            f"{forensics.encoder}: relative change of each weight against the anchor, grey where it is not known.",
            Markup(figures.svg(figures.weight_changes(forensics), "Relative change of each weight")),
        )
        for i, forensics in enumerate(report.forensics)
        if forensics.layers
    ]


def _candidates(report: ScanReport) -> list[tuple[str, Markup]]:
    """Gaps and loss curves of all candidates, where there are any."""
    shown = []
    if any(figures.has_gap(candidate) for candidate in report.candidates):
        bars = figures.svg(figures.gaps(report.candidates), "Gap of each candidate")
        shown.append(
            (
                "How much more the outputs agree than the anchor's, or than without the feature, by recovered feature.",
                Markup(bars),
            )
        )
    if any(candidate.loss for candidate in report.candidates):
        curves = figures.svg(figures.loss_curves(report.candidates), "Loss by step")
        shown.append(("Loss by step of each run.", Markup(curves)))
    return shown


def _controls(report: ScanReport) -> list[tuple[str, list[str], list[tuple[str, float | None, float, float]]]]:
    """Per encoder with honest controls: how they were made, and by evidence its value, their least and their most."""
    tables = []
    for encoder in dict.fromkeys(control.encoder for control in report.controls):
        honest = [control for control in report.controls if control.encoder == encoder]
        rows = []
        for e in report.evidence:
            reached = [value for control in honest if (value := control.evidence.get(e.name)) is not None]
            if e.encoder == encoder and (e.direction == "higher" or e.name in (DRIFT, CHANGE)) and reached:
                rows.append((e.name, e.value, min(reached), max(reached)))
        tables.append((encoder, [control.made_by for control in honest], rows))
    return tables


def _landscape(candidate: Candidate | None, index: int) -> tuple[str, Markup, Markup] | None:
    """Encoder, surface and spectrum around the strongest feature of one encoder."""
    if candidate is None or candidate.landscape is None or not figures.drawable(candidate.landscape):
        return None
    surface = candidate.landscape
    return (
        candidate.encoder,
        Markup(figures.svg(figures.landscape(surface), "Loss around the feature")),
        Markup(figures.svg(figures.spectrum(surface), "Curvature of the loss")),
    )


def _most_changed(forensics: Forensics) -> list[LayerChange]:
    """The dozen tensors that changed most, those whose change is not known last."""
    known = [change for change in forensics.layers if math.isfinite(change.relative_norm)]
    unknown = [change for change in forensics.layers if not math.isfinite(change.relative_norm)]
    return [*sorted(known, key=lambda change: -change.relative_norm), *unknown][:12]


def _shown(value: object) -> object:
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        alone=words.alone, number=words.number, meaning=words.meaning, most_changed=_most_changed
    )
    return environment
