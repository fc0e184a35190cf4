"""The report of a scan in all its forms; ``storage.publish`` writes what ``render_files`` returns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .. import figures
from ..records import ScanReport
from ..storage import REPORT, record_json
from .html import render_html
from .overview import Overview, Row, render_overview
from .text import render_text
from .words import strongest

__all__ = ["Overview", "Row", "render_files", "render_html", "render_overview", "render_text", "schema_json"]


def render_files(report: ScanReport, tensors: Mapping[str, bytes]) -> dict[str, bytes]:
    """All files of a report by name; equal reports give equal bytes.

    Args:
        tensors: further files that belong to it, as the recovered features.
    """
    files = {**tensors, REPORT: record_json(report), "report.html": render_html(report).encode("utf-8", "replace")}
    best = strongest(report)
    if best is not None and best.landscape is not None and figures.drawable(best.landscape):
        files["landscape.png"] = figures.png(figures.landscape(best.landscape))
        files["spectrum.png"] = figures.png(figures.spectrum(best.landscape))
    if any(candidate.loss for candidate in report.candidates):
        files["loss.png"] = figures.png(figures.loss_curves(report.candidates))
    return files


def schema_json() -> bytes:
    """The JSON Schema of report.json, as it is committed beside this file."""
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:amdet:report:" + ScanReport.model_fields["schema_version"].default,
        **ScanReport.model_json_schema(mode="serialization"),
        "title": "AMDET scan report",
        "description": "The result of scanning the text encoders of one file or folder; see docs/report.md.",
    }
    return (json.dumps(schema, indent=2) + "\n").encode("ascii")
