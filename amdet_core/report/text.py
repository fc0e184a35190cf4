"""The report for a terminal: at most 30 plain lines, the verdict first."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import wrap

from ..glyphs import plain
from ..records import ScanReport
from .words import HEADLINES, file_name, sections

LABEL = 11
"""Columns of the label in front of each answer."""
MOST = 30
"""Lines of the whole summary."""


def render_text(report: ScanReport, width: int = 80) -> str:
    """The report as plain text without colours or control characters, and without a line end at its end.

    Args:
        width: columns of the terminal; at least 40 are used.
    """
    for limit in range(8, 2, -1):  # long answers are cut, all to the same length; 3 lines each always fit
        lines = _lines(report, max(width, 40), limit)
        if len(lines) <= MOST:
            break
    return "\n".join(lines)


def _lines(report: ScanReport, width: int, limit: int) -> list[str]:
    headline = f"{HEADLINES[report.verdict.level].upper()}: {file_name(report)} (policy {report.verdict.policy})"
    lines = [*_fit([headline], width, 2), *_fit([report.verdict.statement], width, limit)]
    for section in sections(report):
        for i, line in enumerate(_fit(section.lines, width - LABEL, limit)):
            lines.append(f"{section.label if i == 0 else '':<{LABEL}}{line}")
    return lines


def _fit(answers: Iterable[str], width: int, limit: int) -> list[str]:
    """Wrapped answers, continued lines indented, cut to ``limit`` lines."""
    lines = [
        line
        for answer in answers
        for line in wrap(plain(answer), width - 1, subsequent_indent="  ", break_on_hyphens=False)
    ]
    return lines if len(lines) <= limit else [*lines[: limit - 1], lines[limit - 1] + "…"]
