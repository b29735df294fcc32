"""Numbers of a config as they are written."""

from __future__ import annotations

from fractions import Fraction


def exactly(number: float) -> Fraction:
    """The number that was written: of a float its shortest decimal form. 1.1 is 11/10, so that 1.1
    epochs of 100 steps are 110 steps, where ``1.1 * 100`` is above that.
    """
    return Fraction(repr(number))
