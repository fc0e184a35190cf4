"""Fitting a policy's calibration to the results of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from ..calibration import Calibration, Term
from ..errors import ConfigError
from .results import ModelResult
from .statistics import auroc

FOLDS = 10
"""Parts of which each is scored by a fit to the others."""
PENALTY = 0.02
"""Factor of the squared weights beside the mean log-loss, so that separable classes give finite weights."""
DIGITS = 3
"""Decimals that are kept."""

Values = NDArray[np.float64]


def calibrate(rows: Sequence[ModelResult], terms: Sequence[Term], family: str, rate: float = 0.01) -> Calibration:
    """Learn the weights of terms, and score every model by a fit in which it had no part.

    Models that were changed openly on purpose have no part. Backdoored and honest models weigh alike, however many
    they are.

    Args:
        rows: scans of a zoo for training.
        terms: evidence to be weighed; their own weights do not count.
        family: the honest models, in words.
        rate: of false positives.

    Raises:
        ConfigError: fewer than :data:`FOLDS` backdoored or honest models have all the evidence.
    """
    table = [(row.label == "backdoored", _values(row, terms)) for row in rows if row.label != "intentional"]
    known = [(label, values) for label, values in table if values is not None]
    labels = np.array([label for label, _ in known], dtype=bool)
    values = np.array([values for _, values in known], dtype=np.float64).reshape(len(known), len(terms))
    if min(labels.sum(), (~labels).sum()) < FOLDS:
        raise ConfigError(
            f"at least {FOLDS} backdoored and {FOLDS} honest models with {', '.join(term.name for term in terms)}",
            f"{labels.sum()} and {(~labels).sum()} of {len(table)}",
            "Scan a larger zoo, with the policy that measures these.",
        )
    unseen = _unseen(values, labels)
    weights, intercept = _fit(values, labels)
    calibration = Calibration(
        family=family,
        terms=tuple(
            term.model_copy(update={"weight": round(float(weight), DIGITS), "honest": round(float(honest), DIGITS)})
            for term, weight, honest in zip(terms, weights, values[~labels].max(0), strict=True)
        ),
        intercept=round(intercept, DIGITS),
        null=tuple(sorted(round(float(score), DIGITS) for score in unseen[~labels])),
        n_backdoored=int(labels.sum()),
        rate=rate,
    )
    caught = sum(calibration.p_value(float(score)) <= calibration.kept_rate for score in unseen[labels])
    area = auroc(unseen[labels].tolist(), unseen[~labels].tolist())
    return calibration.model_copy(update={"caught": caught, "auroc": area and round(area[0], DIGITS)})


def _unseen(values: Values, labels: NDArray[np.bool_]) -> Values:
    """The score of every model by a fit to the other folds; every fold has its share of both classes."""
    fold = np.empty(len(labels), dtype=int)
    for one in (labels, ~labels):
        fold[one] = np.arange(one.sum()) % FOLDS
    scores = np.empty(len(labels))
    for part in range(FOLDS):
        scores[fold == part] = _scores(values[fold == part], *_fit(values[fold != part], labels[fold != part]))
    return scores


def _values(row: ModelResult, terms: Sequence[Term]) -> list[float] | None:
    found = [term.value(row.evidence.get) for term in terms]
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else None


def _scores(values: Values, weights: Values, intercept: float) -> Values:
    return values @ weights + intercept


def _fit(values: Values, labels: NDArray[np.bool_]) -> tuple[Values, float]:
    """Weights, none of them negative, and intercept of a logistic regression in which both classes weigh alike."""
    signs = np.where(labels, 1.0, -1.0)
    share = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())

    def loss(parameters: Values) -> tuple[float, Values]:
        margins = signs * _scores(values, parameters[:-1], float(parameters[-1]))
        slopes = -share * signs * expit(-margins)
        value = float(share @ np.logaddexp(0, -margins) + PENALTY / 2 * parameters[:-1] @ parameters[:-1])
        return value, np.append(values.T @ slopes + PENALTY * parameters[:-1], slopes.sum())

    count = values.shape[1]
    found = minimize(
        loss, np.zeros(count + 1), jac=True, method="L-BFGS-B", bounds=[(0, None)] * count + [(None, None)]
    )
    return found.x[:-1], float(found.x[-1])
