from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from study_folders import logistic

from scalepet.experiments.logistic import Logistic, NoFit, fit_logistic

SIZES = [10, 32, 100, 316, 1_000, 3_162, 10_000, 31_623, 100_000, 316_228, 1_000_000]


@pytest.mark.parametrize(
    ("low", "high", "midpoint", "slope"),
    [(0.25, 0.85, 3.5, 3.0), (0.0, 1.0, 2.2, 6.0), (0.48, 0.55, 4.0, 4.0)],
)
def test_a_curve_gives_its_own_numbers(
    low: float, high: float, midpoint: float, slope: float
) -> None:
    scores = [logistic(n, low=low, high=high, midpoint=midpoint, slope=slope) for n in SIZES]
    fit = fit_logistic(SIZES, scores)
    assert isinstance(fit, Logistic) and fit.is_inside
    # The ends may not leave the scores, which never quite reach those of the curve.
    assert fit.midpoint == pytest.approx(midpoint, abs=0.02)
    assert fit.slope == pytest.approx(slope, rel=0.05)
    assert (fit.low, fit.high) == pytest.approx((low, high), abs=0.01 * (high - low))
    assert fit.r_squared > 0.9999
    assert fit.at(np.array([10**fit.midpoint]))[0] == pytest.approx((fit.low + fit.high) / 2)


def test_no_curve_of_a_fine_grid_is_nearer_to_noisy_scores() -> None:
    noise = np.random.default_rng(3).normal(0, 0.03, len(SIZES))
    scores = [
        logistic(n, low=0.3, high=0.8, midpoint=3.2, slope=2.5) + e
        for n, e in zip(SIZES, noise, strict=True)
    ]
    fit = fit_logistic(SIZES, scores)
    assert isinstance(fit, Logistic)
    found = sum((a - b) ** 2 for a, b in zip(scores, fit.at(np.array(SIZES, float)), strict=True))

    def distance(low: float, high: float, midpoint: float, slope: float) -> float:
        curve = [logistic(n, low=low, high=high, midpoint=midpoint, slope=slope) for n in SIZES]
        return sum((a - b) ** 2 for a, b in zip(scores, curve, strict=True))

    ends = np.linspace(min(scores), max(scores), 12)
    grid = itertools.product(ends[:5], ends[-5:], np.arange(2.6, 4, 0.1), np.arange(1.5, 5, 0.25))
    assert found <= min(distance(*map(float, numbers)) for numbers in grid) + 1e-12
    total = len(scores) * float(np.var(scores))
    assert fit.r_squared == pytest.approx(1 - found / total)


@pytest.mark.parametrize(
    ("sizes", "scores", "reason"),
    [
        (SIZES[:4], [0.1, 0.2, 0.3, 0.4], "4 sizes"),
        (SIZES[:6], [0.5] * 6, "equal"),
        (SIZES, [1 - math.log10(n) / 10 for n in SIZES], "do not rise"),
    ],
)
def test_what_cannot_be_fitted_says_why(sizes: list[int], scores: list[float], reason: str) -> None:
    fit = fit_logistic(sizes, scores)
    assert isinstance(fit, NoFit) and reason in fit.reason


def test_a_midpoint_beyond_the_sizes_is_not_claimed() -> None:
    scores = [0.2, 0.2, 0.2, 0.2, 0.2, 0.9]
    late = fit_logistic([10**n for n in range(1, 7)], scores)
    assert isinstance(late, Logistic) and late.midpoint > 5
    level = fit_logistic([10**n for n in range(1, 7)], [0.2, *[0.9] * 5])
    assert isinstance(level, Logistic) and level.midpoint < 2
    falling_off = [0.80, 0.85, 0.88, 0.90, 0.905, 0.908]  # the upper half of a curve
    upper = fit_logistic([10**n for n in range(1, 7)], falling_off)
    assert isinstance(upper, Logistic) and upper.low >= 0.80
