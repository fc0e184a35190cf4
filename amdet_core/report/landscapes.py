"""The landscapes that several reports recorded, to be compared (fig. 8)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from .. import figures
from ..errors import ConfigError
from ..records import Landscape, Record, ScanReport
from .words import strongest


class RecordedLandscape(Record):
    """The landscape of a report's strongest feature."""

    name: str
    encoder: str
    method: str
    vectors: int
    landscape: Landscape


class Landscapes(Record):
    """Of several reports, in their order."""

    landscapes: tuple[RecordedLandscape, ...]


def recorded_landscapes(reports: Sequence[ScanReport]) -> Landscapes:
    """The landscape around the strongest feature of each report.

    Raises:
        ConfigError: a report holds none, or they are surfaces of different losses.
    """
    found = []
    for report in reports:
        best = strongest(report)
        if best is None or best.landscape is None or not figures.drawable(best.landscape):
            raise ConfigError(
                "reports with the landscape of a recovered feature",
                f"none in that of {report.target.path}",
                "Leave it out, or scan that encoder with an anchor that it does not equal.",
            )
        name = PurePath(report.target.path.replace("\\", "/")).name
        found.append(
            RecordedLandscape(
                name=name,
                encoder=best.encoder,
                method=best.method,
                vectors=best.vectors,
                landscape=best.landscape,
            )
        )
    if len(methods := {item.method for item in found}) > 1:
        raise ConfigError(
            "landscapes of one loss, which alone have a common scale",
            f"those of {' and '.join(sorted(methods))}",
            "Compare reports of one policy.",
        )
    return Landscapes(landscapes=tuple(found))
