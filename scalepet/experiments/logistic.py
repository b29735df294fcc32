"""A logistic curve in the logarithm of the number of parameters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit

Floats = NDArray[np.float64]
MIN_NUM_SIZES = 5
STEEPEST = 20.0
"""e-foldings of the odds in a decade: beyond it the curve is a step between two sizes."""
_EDGE = 1e-3


@dataclass(frozen=True)
class Logistic:
    """score(N) = low + (high - low) / (1 + exp(-slope (log10 N - midpoint))).

    Source of the form: Donoway et al. 2025.

    Attributes:
        midpoint: log10 of the number of parameters half way up.
        slope: of the odds, e-foldings in a decade.
        r_squared: share of the variance of the scores that the curve explains.
        is_inside: whether the midpoint is between the smallest and the largest size; else it is
            only known to be beyond.
    """

    low: float
    high: float
    midpoint: float
    slope: float
    r_squared: float
    is_inside: bool

    def at(self, sizes: Floats) -> Floats:
        """The curve at these numbers of parameters."""
        return _curve(np.log10(sizes), self.low, self.high, self.midpoint, self.slope)


@dataclass(frozen=True)
class NoFit:
    """Why there is no curve."""

    reason: str


def fit_logistic(
    sizes: Sequence[int], scores: Sequence[float], *, start: Logistic | None = None
) -> Logistic | NoFit:
    """The curve of least squares; its ends are free within the range of the scores, and its
    midpoint within that of the sizes.

    Args:
        sizes: numbers of parameters, above 0 and distinct.
        scores: one for each.
        start: where the search starts; a fit to similar scores saves time.
    """
    x, y = np.log10(np.asarray(sizes, dtype=float)), np.asarray(scores, dtype=float)
    if len(x) < MIN_NUM_SIZES:
        return NoFit(f"{len(x)} sizes; four numbers of a curve need at least {MIN_NUM_SIZES}")
    bottom, top = float(y.min()), float(y.max())
    if top == bottom:
        return NoFit("all scores are equal")
    bounds = ([bottom, bottom, x.min(), 0.0], [top, top, x.max(), STEEPEST])
    first = _guess(x, y) if start is None else _numbers(start)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # a covariance that nobody reads
            numbers, _ = curve_fit(
                _curve, x, y, p0=np.clip(first, *bounds), bounds=bounds, jac=_slopes, max_nfev=400
            )
    except RuntimeError:
        return NoFit("the search for the curve does not settle")
    low, high, midpoint, slope = map(float, numbers)
    if high <= low or slope < _EDGE:
        return NoFit("the scores do not rise with the number of parameters")
    rest = y - _curve(x, *numbers)
    is_inside = x.min() + _EDGE < midpoint < x.max() - _EDGE
    r_squared = 1 - float(rest @ rest) / float(((y - y.mean()) ** 2).sum())
    return Logistic(low, high, midpoint, slope, r_squared, bool(is_inside))


def _curve(x: Floats, low: float, high: float, midpoint: float, slope: float) -> Floats:
    return low + (high - low) * _share(x, midpoint, slope)


def _share(x: Floats, midpoint: float, slope: float) -> Floats:
    return 0.5 + 0.5 * np.tanh(0.5 * slope * (x - midpoint))


def _slopes(x: Floats, low: float, high: float, midpoint: float, slope: float) -> Floats:
    """Derivatives of the curve by low, high, midpoint and slope."""
    share = _share(x, midpoint, slope)
    steep = (high - low) * share * (1 - share)
    return np.stack([1 - share, share, -slope * steep, (x - midpoint) * steep], axis=1)


def _guess(x: Floats, y: Floats) -> Floats:
    half = (y.min() + y.max()) / 2
    return np.array([y.min(), y.max(), x[int(np.argmax(y >= half))], 3.0])


def _numbers(fit: Logistic) -> Floats:
    return np.array([fit.low, fit.high, fit.midpoint, fit.slope])
