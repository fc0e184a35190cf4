"""Estimates and intervals against published and hand-computed values."""

from __future__ import annotations

import math

import pytest

from amdet_core.bench.statistics import Z, auroc, auroc_variance, clopper_pearson, ppv, share, tpr_at


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17, 1998, table I, method 5
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0000, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ],
)
def test_exact_intervals_are_the_published_ones(count: int, n: int, low: float, high: float) -> None:
    assert clopper_pearson(count, n) == pytest.approx((low, high), abs=5e-5)
    assert clopper_pearson(n - count, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_the_ends_of_exact_intervals_follow_from_the_tails() -> None:
    low, high = clopper_pearson(0, 12)
    assert (low, high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 12)))
    assert clopper_pearson(12, 12) == (pytest.approx(0.025 ** (1 / 12)), 1.0)
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    low, high = clopper_pearson(3, 7)

    def at_least(k: int, p: float) -> float:
        return sum(math.comb(7, i) * p**i * (1 - p) ** (7 - i) for i in range(k, 8))

    assert at_least(3, low) == pytest.approx(0.025)
    assert 1 - at_least(4, high) == pytest.approx(0.025)


def test_auroc_counts_pairs_and_ties_half() -> None:
    found = auroc([3.0, 2.0, 1.0], [2.0, 0.0])
    assert found is not None
    assert found[0] == pytest.approx((1 + 1 + 0.5 + 1 + 0 + 1) / 6)
    assert auroc([1.0], []) is None
    assert auroc([], [1.0]) is None
    lowest = auroc([-math.inf, 1.0], [-math.inf, -math.inf])
    assert lowest is not None
    assert lowest[0] == pytest.approx(0.75)


def test_the_variance_is_hanley_and_mcneils() -> None:
    # Their example: area 0.893 with 51 abnormal and 58 normal images, standard error 0.032
    assert math.sqrt(auroc_variance(0.893, 51, 58)) == pytest.approx(0.032, abs=5e-4)
    area, m = 0.8, 20  # with equal sizes it is their formula itself
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    theirs = (area * (1 - area) + (m - 1) * (q1 - area**2) + (m - 1) * (q2 - area**2)) / m**2
    assert auroc_variance(area, m, m) == pytest.approx(theirs)


def test_both_ends_of_the_interval_are_so_many_of_their_own_errors_away() -> None:
    positives, negatives = [0.1 * i for i in range(10, 30)], [0.1 * i for i in range(25)]
    found = auroc(positives, negatives)
    assert found is not None
    area, (low, high) = found
    assert low < area < high
    for end in (low, high):
        assert abs(area - end) == pytest.approx(Z * math.sqrt(auroc_variance(end, 20, 25)))


def test_the_interval_has_a_width_where_all_pairs_agree() -> None:
    best, worst = auroc([2.0] * 10, [1.0] * 10), auroc([1.0] * 10, [2.0] * 10)
    assert best is not None
    assert worst is not None
    assert best[0] == best[1][1] == 1
    assert 0.5 < best[1][0] < 0.9
    assert worst == (0.0, (0.0, pytest.approx(1 - best[1][0])))
    more = auroc([2.0] * 100, [1.0] * 100)
    assert more is not None
    assert best[1][0] < more[1][0] < 1


def test_recall_at_a_bound_takes_the_lowest_threshold_that_keeps_to_it() -> None:
    negatives = [float(i) for i in range(100)]
    positives = [97.5, 98.0, 98.5, 200.0]
    found = tpr_at(0.01, positives, negatives)  # one false alarm is allowed: what exceeds 98
    assert found == (0.5, clopper_pearson(2, 4))
    none_allowed = tpr_at(0.01, positives, negatives[1:])
    assert none_allowed is not None
    assert none_allowed[0] == 0.25
    tied = tpr_at(0.5, [1.0, 2.0], [1.0, 1.0, 1.0, 0.0])  # flagging at 1 would flag three of four
    assert tied is not None
    assert tied[0] == 0.5
    assert tpr_at(1.0, [0.0, 1.0], [5.0]) == (1.0, clopper_pearson(2, 2))
    assert tpr_at(0.01, [], negatives) is None
    assert tpr_at(0.01, positives, []) is None


def test_models_of_the_lowest_rank_are_never_found_under_a_bound() -> None:
    found = tpr_at(0.01, [-math.inf, 1.0], [-math.inf] * 200)
    assert found is not None
    assert found[0] == 0.5


def test_precision_at_a_prevalence_is_bayes() -> None:
    # Gigerenzer's mammography: 1% ill, 90% of them and 9% of the healthy test positive
    assert ppv(0.9, 0.09, 0.01) == pytest.approx(0.009 / (0.009 + 0.0891))
    assert ppv(0.9, 0.0, 0.01) == 1
    assert ppv(0.0, 0.0, 0.01) is None


def test_a_share_of_nothing_is_none() -> None:
    assert share(1, 4) == 0.25
    assert share(0, 0) is None
