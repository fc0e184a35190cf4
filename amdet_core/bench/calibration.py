"""Fitting a policy's calibration to the results of a benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..calibration import Calibration, Term
from ..errors import ConfigError
from ..policy import Finding, Policy, farthest
from .results import Detection, ModelResult

FEWEST = 10
"""Honest models without which nothing is learnt."""
ON_CLEAN_PROMPTS = ("spread", "drift")
"""Evidence that no search and no preset has a part in: one scan of a model tells it for all."""

Scans = Sequence[ModelResult]
"""Of one model, by one preset or several."""


def by_model(results: Iterable[Detection]) -> list[Scans]:
    """Scans of each model; results of one recipe and base are of the same models."""
    models: dict[tuple[str, str, str], list[ModelResult]] = {}
    for result in results:
        for row in result.models:
            models.setdefault((result.zoo.recipe_sha256, result.zoo.base_fingerprint, row.model), []).append(row)
    return list(models.values())


def calibrate_policy(policy: Policy, models: Sequence[Scans], family: str, rate: float = 0.01) -> Policy:
    """A policy whose calibrations are learnt anew; those of whose evidence no model has any stay as they are.

    Scans with an anchor and without one, and by different presets, measure different evidence: each counts for every
    calibration of which it has all. A preset that does less is so judged by those that do more as well, which go as far
    or further. A model counts once, by the farthest that it went in any of its scans, against its base or a relative.

    Raises:
        ConfigError: the policy has no calibration, or too few honest models have all of one's evidence.
    """
    if not policy.calibrations:
        raise ConfigError("a policy with a calibration", policy.name, "Name another with --policy: docs/policies.md.")
    models = [_completed(scans) for scans in models]
    rows = [row for scans in models for row in scans]
    measured = [any(one.values(row.evidence.get) is not None for row in rows) for one in policy.calibrations]
    if not any(measured):
        raise ConfigError(
            f"results that measure what {policy.name} weighs", "none", "Scan the zoo with the policy that measures it."
        )
    fitted = [
        calibrate(models, one.terms, family, rate, policy.beside) if known else one
        for one, known in zip(policy.calibrations, measured, strict=True)
    ]
    first = next(one for one in fitted if one.null)
    error_rate = f"set to {first.stated_rate:.1%} on {len(first.null)} {first.family}; for others it is not known"
    drift = farthest(row.evidence.get for row in rows if row.label == "benign")
    return policy.model_copy(update={"calibrations": tuple(fitted), "error_rate": error_rate, "drift": drift})


def calibrate(
    models: Sequence[Scans],
    terms: Sequence[Term],
    family: str,
    rate: float = 0.01,
    findings: Sequence[Finding] = (),
) -> Calibration:
    """Learn how far honest models go in every term, and score each of them by the others.

    Models that were changed openly on purpose have no part. Backdoored ones are counted, and change nothing.

    Args:
        models: of zoos for training.
        terms: evidence to be judged by; what they say of honest models does not count.
        family: the honest models, in words.
        rate: of false positives.
        findings: of the policy, on other evidence, by whose bounds models are flagged as well.

    Raises:
        ConfigError: fewer than :data:`FEWEST` honest models have all the evidence.
    """
    blank = Calibration(family=family, terms=tuple(terms))
    known = [[row for row in scans if blank.values(row.evidence.get) is not None] for scans in models]
    backdoored, honest = (
        [scans for scans in known if scans and scans[0].label == label] for label in ("backdoored", "benign")
    )
    if len(honest) < FEWEST:
        count = sum(bool(scans) and scans[0].label == "benign" for scans in models)
        raise ConfigError(
            f"at least {FEWEST} honest models with {', '.join(term.name for term in terms)}",
            f"{len(honest)} of {count}",
            "Scan a larger zoo, with the policy that measures these.",
        )
    calibration = Calibration.learnt(terms, [[row.evidence.get for row in scans] for scans in honest], family, rate)
    caught = sum(all(_crosses(row, findings) or _flagged(calibration, row) for row in scans) for scans in backdoored)
    alarms = sum(any(_crosses(row, findings) for row in scans) for scans in honest)
    return calibration.model_copy(update={"alarms": alarms, "caught": caught, "n_backdoored": len(backdoored)})


def _completed(scans: Scans) -> Scans:
    """Scans of one model, each with what its clean prompts showed in another where it did not measure that itself."""
    known = {name: value for row in scans for name in ON_CLEAN_PROMPTS if (value := row.evidence.get(name)) is not None}
    return [row.model_copy(update={"evidence": {**known, **row.evidence}}) for row in scans]


def _crosses(row: ModelResult, findings: Sequence[Finding]) -> bool:
    """Whether a finding's bounds flag a model."""
    return any(finding.margin(row.evidence.get) > 0 for finding in findings)


def _flagged(calibration: Calibration, row: ModelResult) -> bool:
    """Whether a model goes further than honest ones."""
    values = calibration.values(row.evidence.get)
    return values is not None and calibration.flags(calibration.score(values))
