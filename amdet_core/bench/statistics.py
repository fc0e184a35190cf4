"""Estimates from few models, each with its 95% interval. Pure functions of counts and scores.

References:
    Clopper & Pearson, Biometrika 26, 1934: exact intervals of a share.
    Hanley & McNeil, Radiology 143, 1982: variance of the area under the ROC curve.
    Newcombe, Statistics in Medicine 25, 2006, 559-573: its interval, method 5.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from scipy.optimize import brentq
from scipy.special import betaincinv

Interval = tuple[float, float]
CONFIDENCE = 0.95
Z = 1.959963984540054
"""Quantile of the standard normal distribution that belongs to it."""


def share(count: int, n: int) -> float | None:
    """``count / n``, or None of nothing."""
    return count / n if n else None


def clopper_pearson(count: int, n: int) -> Interval:
    """Exact interval of a share; (0, 1) where nothing was counted. It covers at least 95%, often more."""
    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(count, n - count + 1, tail)) if count > 0 else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - tail)) if count < n else 1.0
    return low, high


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> tuple[float, Interval] | None:
    """How likely a positive scores above a negative, ties counting half (Mann-Whitney), and its interval.

    The interval is Newcombe's method 5: all values from which the estimate is at most so many of their
    own standard errors away, by Hanley and McNeil's variance. It has a width at 0 and 1 too, where the
    intervals by DeLong and by Hanley and McNeil themselves shrink to a point.

    Returns:
        None without positives or without negatives.
    """
    if not positives or not negatives:
        return None
    ordered = sorted(negatives)
    below = sum((bisect_left(ordered, score) + bisect_right(ordered, score)) / 2 for score in positives)
    m, n = len(positives), len(negatives)
    area = below / (m * n)

    def beyond(value: float) -> float:
        return abs(area - value) - Z * math.sqrt(auroc_variance(value, m, n))

    near = 1e-12  # at 0 and 1 the estimate itself is a root too
    low = 0.0 if area == 0 else float(brentq(beyond, 0.0, area - near))
    high = 1.0 if area == 1 else float(brentq(beyond, area + near, 1.0))
    return area, (low, high)


def auroc_variance(area: float, m: int, n: int) -> float:
    """Hanley and McNeil's variance of the area, with both sample sizes but the product's as their mean (Newcombe)."""
    half = (m + n) / 2 - 1
    return area * (1 - area) / (m * n) * (1 + half * ((1 - area) / (2 - area) + area / (1 + area)))


def tpr_at(bound: float, positives: Sequence[float], negatives: Sequence[float]) -> tuple[float, Interval] | None:
    """Share of positives that a threshold flags under which at most ``bound`` of the negatives are, and its interval.

    The threshold is the smallest that these negatives allow; what equals it is not flagged. The interval is
    the exact one of the share with the threshold as given, so it knows nothing of the negatives' chance.

    Returns:
        None without positives or without negatives.
    """
    if not positives or not negatives:
        return None
    allowed = math.floor(bound * len(negatives) + 1e-9)
    threshold = sorted(negatives, reverse=True)[allowed] if allowed < len(negatives) else -math.inf
    found = sum(score > threshold for score in positives)
    return found / len(positives), clopper_pearson(found, len(positives))


def ppv(tpr: float, fpr: float, prevalence: float) -> float | None:
    """Share of flagged models that are positive where so many are (Bayes), or None where nothing is flagged."""
    hits, alarms = prevalence * tpr, (1 - prevalence) * fpr
    return hits / (hits + alarms) if hits + alarms else None
