"""Fitting a policy's calibration to the results of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from ..calibration import Calibration, Term
from ..errors import ConfigError
from ..verdict import Finding
from .results import ModelResult

FEWEST = 10
"""Honest models without which nothing is learnt."""
DIGITS = 4
"""Decimals that are kept."""


def calibrate(
    rows: Sequence[ModelResult],
    terms: Sequence[Term],
    family: str,
    rate: float = 0.01,
    findings: Sequence[Finding] = (),
) -> Calibration:
    """Learn how far honest models go in every term, and score each of them by the others.

    Models that were changed openly on purpose have no part. Backdoored ones are counted, and change nothing.

    Args:
        rows: scans of zoos for training.
        terms: evidence to be judged by; what they say of honest models does not count.
        family: the honest models, in words.
        rate: of false positives.
        findings: of the policy, by whose bounds honest models are flagged as well.

    Raises:
        ConfigError: fewer than :data:`FEWEST` honest models have all the evidence.
    """
    honest = [row for row in rows if row.label == "benign"]
    known = [values for row in honest if (values := _values(row, terms)) is not None]
    if len(known) < FEWEST:
        raise ConfigError(
            f"at least {FEWEST} honest models with {', '.join(term.name for term in terms)}",
            f"{len(known)} of {len(honest)}",
            "Scan a larger zoo, with the policy that measures these.",
        )
    null = [_beyond(_reached(terms, known[:i] + known[i + 1 :]), values) for i, values in enumerate(known)]
    calibration = Calibration(
        family=family,
        terms=_reached(terms, known),
        null=tuple(sorted(round(score, DIGITS) for score in null)),
        rate=rate,
    )
    others = [row for row in rows if row.label == "backdoored"]
    caught = sum(_crosses(row, findings) or _flagged(calibration, row) for row in others)
    alarms = sum(_crosses(row, findings) for row in honest)
    return calibration.model_copy(update={"alarms": alarms, "caught": caught, "n_backdoored": len(others)})


def _crosses(row: ModelResult, findings: Sequence[Finding]) -> bool:
    """Whether a finding's bounds flag a model."""
    return any(finding.margin(row.evidence.get) > 0 for finding in findings)


def _flagged(calibration: Calibration, row: ModelResult) -> bool:
    """Whether a model goes further than honest ones."""
    values = calibration.values(row.evidence.get)
    return values is not None and calibration.p_value(calibration.score(values)) <= calibration.kept_rate


def _values(row: ModelResult, terms: Sequence[Term]) -> list[float] | None:
    found = [term.value(row.evidence.get) for term in terms]
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else None


def _reached(terms: Sequence[Term], honest: Sequence[Sequence[float]]) -> tuple[Term, ...]:
    """The terms with the largest values of honest models."""
    largest = map(max, zip(*honest, strict=True))
    return tuple(
        term.model_copy(update={"honest": round(value, DIGITS)}) for term, value in zip(terms, largest, strict=True)
    )


def _beyond(terms: Sequence[Term], values: Sequence[float]) -> float:
    return max(term.beyond(value) for term, value in zip(terms, values, strict=True))
