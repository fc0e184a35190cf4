"""Parts of a report as Markdown tables, for hosts that show text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..glyphs import plain
from ..records import Forensics, ScanReport, Sweep
from .words import ALONE_WORDS, identical, number

MOST = 12
"""Rows of a table of weights or tokens."""


def sweep_table(report: ScanReport) -> str:
    """The tokens that stood out in each encoder, or why none were tried."""
    anchored = {anchor.encoder for anchor in report.anchor or ()}
    tables = ("\n".join(_swept(sweep, sweep.encoder in anchored)) for sweep in report.sweeps)
    return "\n\n".join(tables) or _nothing(report)


def forensics_table(report: ScanReport) -> str:
    """What was done to the weights of each encoder, or why that is not known."""
    return "\n\n".join("\n".join(_changed(forensics)) for forensics in report.forensics) or _nothing(report)


def _swept(sweep: Sweep, anchored: bool) -> Iterator[str]:
    yield f"{sweep.encoder}: {sweep.tried:,} tokens and characters tried; those that stand out, on {sweep.n} prompts"
    if not anchored:
        yield f"{ALONE_WORDS}, and tokens that honestly mean much stand out too."
    yield ""
    yield from _table(
        ("text", "tokens", "where in prompts", "departure", "sigma", "gap"),
        (
            (lead.text, " ".join(lead.tokens), lead.place, *map(number, (lead.departure, lead.sigma, lead.gap)))
            for lead in sweep.leads
        ),
    )


def _changed(forensics: Forensics) -> Iterator[str]:
    yield f"{forensics.encoder}: {forensics.summary}"
    yield ""
    most = sorted(forensics.layers, key=lambda layer: -layer.relative_norm)[:MOST]
    yield from _table(
        ("tensor", "change", "in one direction", "effective rank"),
        (
            (layer.tensor, number(layer.relative_norm), number(layer.top1_energy), number(layer.effective_rank))
            for layer in most
        ),
    )
    if forensics.rows:
        yield ""
        rows = ((row.text, row.token, number(row.distance), number(row.sigma)) for row in forensics.rows[:MOST])
        yield from _table(("row of", "token", "distance", "sigma"), rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(plain(cell).replace('|', chr(92) + '|') for cell in row)} |"


def _nothing(report: ScanReport) -> str:
    """Why no encoder was measured."""
    if report.faults:
        return "; ".join(f"{fault.encoder}: {fault.stage} failed: {fault.message}" for fault in report.faults)
    if equal := identical(report):
        return f"{', '.join(equal)}: identical to a trusted encoder in all that prompts reach; nothing to compare"
    return "Nothing was compared: no trusted encoder of the same sizes was given or found."
