from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest, fisher_exact

from scalepet.experiments.logistic import Logistic, fit_logistic
from scalepet.experiments.thresholds import (
    Baseline,
    Point,
    high_threshold,
    least_right,
    low_threshold,
    midpoint_interval,
)

GUESS = Baseline("the majority guess", 0.25)


def test_nine_of_twenty_beat_a_quarter_and_eight_do_not() -> None:
    """P(X >= 9) = .0409 and P(X >= 8) = .1018 of 20 rows at .25."""
    assert least_right(GUESS, 20) == 9


@pytest.mark.parametrize(("rate", "rows"), [(0.25, 20), (0.068, 977), (0.5, 64), (0.91, 300)])
def test_known_rates_are_beaten_as_in_the_exact_binomial_test(rate: float, rows: int) -> None:
    found = least_right(Baseline("guess", rate), rows)
    passes = [k for k in range(rows + 1) if binomtest(k, rows, rate, "greater").pvalue < 0.05]
    assert found == passes[0]
    summed = sum(
        math.comb(rows, k) * rate**k * (1 - rate) ** (rows - k) for k in range(found, rows + 1)
    )
    assert summed < 0.05


def test_four_cups_of_four_beat_none_and_three_do_not() -> None:
    """Fisher's tea: 1/70 for four against none; 4/56 for three against none."""
    assert least_right(Baseline("before", 0.0, num_rows=4), 4) == 4


@pytest.mark.parametrize(("rate", "others", "rows"), [(0.1, 50, 80), (0.02, 400, 400)])
def test_measured_rates_are_beaten_as_in_fishers_test(rate: float, others: int, rows: int) -> None:
    before = round(rate * others)

    def p_value(right: int) -> float:
        table = [[right, rows - right], [before, others - before]]
        return float(fisher_exact(table, "greater").pvalue)

    passes = [right for right in range(rows + 1) if p_value(right) < 0.05]
    assert least_right(Baseline("before", rate, num_rows=others), rows) == passes[0]


@pytest.mark.parametrize("rate", [0.041, 0.0499, 0.05])
def test_a_measured_rate_between_two_numbers_of_rows_counts_as_the_larger(rate: float) -> None:
    """Against 5 of 100, 13 of 100 are enough (P = .041); against 4, which is less, 12."""
    assert least_right(Baseline("before", rate, num_rows=100), 100) == 13
    assert least_right(Baseline("before", 0.04, num_rows=100), 100) == 12


def test_what_no_score_beats() -> None:
    assert least_right(Baseline("guess", 1.0), 20) is None
    assert least_right(GUESS, 2) is None  # two of two: 1/16
    threshold = low_threshold([Point(10, (1.0,))], baseline=GUESS, num_rows=2)
    assert threshold.value is None and threshold.interval is None
    assert threshold.reason == "no score on 2 rows beats the majority guess"


def test_every_seed_has_to_beat_the_guess() -> None:
    points = [
        Point(10, (0.40, 0.40)),  # 8 of 20 twice
        Point(100, (0.45, 0.40)),  # 9 and 8: pooled, 17 of 40 would pass
        Point(1_000, (0.45, 0.45)),
        Point(10_000, (0.90, 0.35)),
        Point(100_000, (1.0, 1.0)),
    ]
    threshold = low_threshold(points, baseline=GUESS, num_rows=20)
    assert threshold.value == 1_000 and threshold.fails_at == (10_000,)
    assert low_threshold(points[:2], baseline=GUESS, num_rows=20).value is None
    assert low_threshold(points[:2], baseline=GUESS, num_rows=20).reason == "not reached by 100"


@pytest.mark.parametrize(("right", "is_sure"), [(9, False), (12, False), (15, True)])
def test_an_interval_tells_whether_other_rows_might_have_missed_it(
    right: int, is_sure: bool
) -> None:
    """One seed: a draw misses with P(X < 9), which is .41, .057 and .0009 of these."""
    threshold = low_threshold([Point(10, (right / 20,))], baseline=GUESS, num_rows=20)
    assert threshold.value == 10
    assert threshold.interval == (10, 10 if is_sure else math.inf)


def test_an_interval_tells_whether_other_seeds_might_have_missed_it() -> None:
    """Of three seeds with one bad, 8/27 of the draws have none of it."""
    points = [Point(10, (1.0, 1.0, 0.0)), Point(100, (1.0, 1.0, 1.0))]
    threshold = low_threshold(points, baseline=GUESS, num_rows=20)
    assert threshold.value == 100 and threshold.interval == (10, 100)
    again = low_threshold(points, baseline=GUESS, num_rows=20)
    assert again == threshold


def test_full_tuning_is_reached_within_its_deviation() -> None:
    """Mean .85, sample standard deviation .0707: the goal is .7793."""
    points = [Point(10, (0.779, 0.779)), Point(100, (0.77, 0.79)), Point(1_000, (0.90, 0.9))]
    threshold = high_threshold(points, full=(0.8, 0.9), num_rows=None)
    assert threshold.value == 100 and threshold.fails_at == ()
    assert high_threshold(points[:1], full=(0.8, 0.9), num_rows=None).value is None
    # Full tuning drawn as (.8, .8), (.9, .9) or both: goals .8, .9 and .7793.
    assert threshold.interval == (100, 1_000)


def test_rows_widen_the_interval_of_the_high_threshold() -> None:
    points = [Point(10, (0.80,) * 3), Point(100, (0.86,) * 3)]
    full = (0.88, 0.88, 0.88)
    sure = high_threshold(points, full=full, num_rows=None)
    assert sure.value is None and sure.interval == (math.inf, math.inf)
    assert sure.reason == "not reached by 100"
    unsure = high_threshold(points, full=full, num_rows=100)
    assert unsure.interval is not None and unsure.interval[0] <= 100


def test_one_run_of_full_tuning_gives_no_threshold() -> None:
    threshold = high_threshold([Point(10, (0.9,))], full=(0.9,), num_rows=100)
    assert threshold.value is None and threshold.interval is None
    assert threshold.reason == "1 run(s) of full tuning have no standard deviation"


def test_the_interval_of_a_midpoint_holds_it_and_shrinks_with_rows() -> None:
    sizes = [10**n for n in range(1, 7)]
    scores = [0.25, 0.26, 0.40, 0.70, 0.84, 0.85]
    points = [Point(n, (s, s)) for n, s in zip(sizes, scores, strict=True)]
    fit = fit_logistic(sizes, scores)
    assert isinstance(fit, Logistic)
    few = midpoint_interval(points, fit, num_rows=100)
    many = midpoint_interval(points, fit, num_rows=10_000)
    assert few is not None and many is not None
    assert few[0] < many[0] < 10**fit.midpoint < many[1] < few[1]
    assert midpoint_interval(points, fit, num_rows=100) == few
