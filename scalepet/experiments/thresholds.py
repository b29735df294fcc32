"""How many parameters are enough: to beat a guess (low), and to reach full tuning (high).

Both are properties of a curve: of the scores of all seeds at each number of tuned parameters. Which
seeds and rows there happen to be is drawn again for the intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, hypergeom

from scalepet.experiments.logistic import Floats, Logistic, fit_logistic

LEVEL = 0.05
NUM_DRAWS = 1000
NUM_FITTED_DRAWS = 200
INTERVAL = (0.025, 0.975)
MIN_FITTED_SHARE = 0.5
MIN_FULL_SEEDS = 2
_ROUNDING = 1e-6
"""A score is right rows / rows, and comes back as them but for rounding."""


@dataclass(frozen=True)
class Point:
    """The scores of all seeds at one number of tuned parameters; 0 is the head alone."""

    tuned: int
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Baseline:
    """What has to be beaten.

    Attributes:
        name: for people.
        rate: its score.
        num_rows: that it was measured on; None where it is known exactly, as the share of the most
            frequent class in the very rows.
    """

    name: str
    rate: float
    num_rows: int | None = None


@dataclass(frozen=True)
class Threshold:
    """A number of parameters, or why there is none.

    Attributes:
        value: None where it is not reached or not given.
        reason: why there is no value; else empty.
        interval: 95 % by the bootstrap; infinite where the threshold is not reached.
        fails_at: larger sizes at which the condition does not hold.
    """

    value: int | None
    reason: str = ""
    interval: tuple[float, float] | None = None
    fails_at: tuple[int, ...] = ()


def least_right(baseline: Baseline, num_rows: int) -> int | None:
    """The fewest right rows of ``num_rows`` that beat the baseline at 5 %, one-sided; None where
    not even all of them do.

    Against a known rate this is the exact binomial test, against a measured one Fisher's exact
    test. That takes the rows of both for different ones. Where they are the same (the head alone is
    scored on the very test rows) it ignores which row pairs with which, and the number is an upper
    bound.
    """
    right = np.arange(num_rows + 1)
    if baseline.num_rows is None:
        p_values = binom.sf(right - 1, num_rows, baseline.rate)
    else:
        others, right_others = baseline.num_rows, _right(baseline.rate, baseline.num_rows)
        p_values = hypergeom.sf(right - 1, num_rows + others, right + right_others, num_rows)
    passes = np.flatnonzero(p_values < LEVEL)
    return int(passes[0]) if passes.size else None


def low_threshold(
    points: Sequence[Point], *, baseline: Baseline, num_rows: int, seed: int = 0
) -> Threshold:
    """The smallest number of parameters at which every seed beats the baseline.

    Args:
        points: sizes rising.
        num_rows: that each score is over.
        seed: of the bootstrap, which draws seeds and, at their scores, right rows again.
    """
    least = least_right(baseline, num_rows)
    if least is None:
        return Threshold(None, f"no score on {num_rows:,} rows beats {baseline.name}")

    def passes(scores: Floats) -> NDArray[np.bool_]:
        return np.asarray((scores * num_rows + _ROUNDING >= least).all(axis=-1))

    held = [bool(passes(np.array(point.scores))) for point in points]
    generator = np.random.default_rng(seed)
    drawn = [passes(_redraw(point, num_rows, generator, NUM_DRAWS)) for point in points]
    return _threshold(points, held, np.stack(drawn, axis=1))


def high_threshold(
    points: Sequence[Point], *, full: Sequence[float], num_rows: int | None, seed: int = 0
) -> Threshold:
    """The smallest number of parameters at which the mean score is at least the mean of full tuning
    less its standard deviation over seeds.

    Args:
        full: scores of full tuning.
        num_rows: that each score is over; None where a score is no mean over rows, which leaves the
            seeds for the bootstrap.
    """
    if len(full) < MIN_FULL_SEEDS:
        return Threshold(None, f"{len(full)} run(s) of full tuning have no standard deviation")
    goal = float(np.mean(full) - np.std(full, ddof=1))
    held = [point.mean >= goal - _ROUNDING for point in points]
    generator = np.random.default_rng(seed)
    tuned = _redraw(Point(0, tuple(full)), num_rows, generator, NUM_DRAWS)
    goals = tuned.mean(axis=1) - tuned.std(axis=1, ddof=1)
    drawn = [
        _redraw(point, num_rows, generator, NUM_DRAWS).mean(axis=1) >= goals - _ROUNDING
        for point in points
    ]
    return _threshold(points, held, np.stack(drawn, axis=1))


def midpoint_interval(
    points: Sequence[Point], fit: Logistic, *, num_rows: int | None, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of the number of parameters at the midpoint of the curve; None where fewer than
    half of the drawn curves can be fitted.
    """
    generator = np.random.default_rng(seed)
    drawn = [_redraw(p, num_rows, generator, NUM_FITTED_DRAWS).mean(axis=1) for p in points]
    sizes = [point.tuned for point in points]
    fits = [fit_logistic(sizes, means, start=fit) for means in np.stack(drawn, axis=1).tolist()]
    midpoints = [10**found.midpoint for found in fits if isinstance(found, Logistic)]
    if len(midpoints) < MIN_FITTED_SHARE * NUM_FITTED_DRAWS:
        return None
    low, high = np.quantile(midpoints, INTERVAL)
    return float(low), float(high)


def _redraw(
    point: Point, num_rows: int | None, generator: np.random.Generator, num_draws: int
) -> Floats:
    """Seeds drawn with replacement, and right rows at the score of each: (draws, seeds)."""
    scores = np.array(point.scores)
    drawn = scores[generator.integers(len(scores), size=(num_draws, len(scores)))]
    if num_rows is None:
        return drawn
    return generator.binomial(num_rows, np.clip(drawn, 0, 1)) / num_rows


def _threshold(
    points: Sequence[Point], held: Sequence[bool], drawn: NDArray[np.bool_]
) -> Threshold:
    sizes = np.array([point.tuned for point in points], dtype=float)
    firsts = np.where(drawn.any(axis=1), sizes[drawn.argmax(axis=1)], math.inf)
    # No value between two sizes: what was not trained is not claimed.
    low, high = np.quantile(firsts, INTERVAL, method="inverted_cdf")
    interval = (float(low), float(high))
    if not any(held):
        return Threshold(None, f"not reached by {int(sizes[-1]):,}", interval)
    first = list(held).index(True)
    fails = tuple(p.tuned for p, holds in list(zip(points, held, strict=True))[first:] if not holds)
    return Threshold(points[first].tuned, "", interval, fails)


def _right(rate: float, num_rows: int) -> int:
    """Rounded up: a mean over seeds, or of parts of rows, lies between two numbers of right rows,
    and has to be beaten whole.
    """
    return math.ceil(rate * num_rows - _ROUNDING)
