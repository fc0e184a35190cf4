"""Many scans on one page: what came of every model of a folder, the worst first."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..glyphs import spelled
from ..records import Level, LevelName, PathText, Record, ScanReport, Tool
from . import words
from .html import page

TEMPLATE = "overview.html.j2"
NOT_SCANNED = {"no encoder": "Nothing to scan", "error": "Could not be scanned"}
ORDER = (Level.BACKDOORED, Level.SUSPICIOUS, None, Level.INCONCLUSIVE, Level.CLEAN)
"""Of verdicts; None where there is none because something failed."""


class Row(Record):
    """What came of one model."""

    path: PathText = Field(description="below the folder, with slashes")
    outcome: Literal["scanned", "no encoder", "error"] = Field(
        description="no encoder: the file takes no part in reading prompts"
    )
    level: LevelName | None = Field(default=None, description="null: it was not scanned")
    said: PathText = Field(description="the first reason of the verdict, or why there is none")
    trigger: str | None = Field(default=None, description="the strongest literal trigger, every odd character spelled")
    looks_like: str | None = Field(default=None, description="what the trigger or the strongest feature looks like")
    report: PathText | None = Field(default=None, description="folder of the report, beside this file")
    seconds: float = 0.0
    key: str = Field(description="of everything that decides the result: equal where nothing has to be scanned again")

    @classmethod
    def of(cls, path: str, report: ScanReport, key: str) -> Row:
        """A model that was scanned; its report lies in a folder of the same name."""
        likeness = next(iter(words.likenesses(report)), None)
        return cls(
            path=path,
            outcome="scanned",
            level=report.verdict.level,
            said=report.verdict.reasons[0],
            trigger=None if report.trigger is None else spelled(report.trigger.text),
            looks_like=likeness.text if likeness is not None and likeness.similarity >= words.SURE else None,
            report=path,
            seconds=report.timings.get("total", 0.0),
            key=key,
        )

    @property
    def headline(self) -> str:
        """The verdict in words."""
        return words.HEADLINES[self.level] if self.level is not None else NOT_SCANNED[self.outcome]


class Overview(Record):
    """Every model of a folder; rewritten after each."""

    tool: Tool
    folder: PathText
    policy: str
    preset: str
    anchor: PathText = Field(description="as it was asked for")
    complete: bool = Field(description="whether all models are here")
    rows: tuple[Row, ...]

    def count(self, *levels: Level) -> int:
        """Models with one of the levels."""
        return sum(row.level in levels for row in self.rows)

    @property
    def unclear(self) -> int:
        """Models of which nobody can tell: scans that could not, and files that could not be scanned."""
        return self.count(Level.INCONCLUSIVE) + sum(row.outcome == "error" for row in self.rows)

    @property
    def level(self) -> Level:
        """The worst verdict; inconclusive where something could not be told, or nothing was there to scan."""
        known = max((row.level for row in self.rows if row.level is not None), default=Level.INCONCLUSIVE)
        return max(known, Level.INCONCLUSIVE) if self.unclear or not self.complete else known

    def counts(self) -> str:
        """All of them in one sentence."""
        found = {
            "backdoored": self.count(Level.BACKDOORED),
            "suspicious": self.count(Level.SUSPICIOUS),
            "could not tell": self.unclear,
            "no evidence found": self.count(Level.CLEAN),
            "without a text encoder": sum(row.outcome == "no encoder" for row in self.rows),
        }
        said = [f"{count} {name}" for name, count in found.items() if count]
        return f"{len(self.rows)} model{'s' if len(self.rows) != 1 else ''}: {', '.join(said) or 'none'}."


def render_overview(overview: Overview) -> str:
    """The page, made from the record alone."""
    ordered = sorted(
        overview.rows,
        key=lambda row: (row.outcome == "no encoder", ORDER.index(row.level), row.path),
    )
    return page(
        TEMPLATE,
        overview=overview,
        level=overview.level.name.lower(),
        headline=words.HEADLINES[overview.level],
        counts=overview.counts(),
        rows=[(row, row.headline, "inconclusive" if row.level is None else row.level.name.lower()) for row in ordered],
    )
