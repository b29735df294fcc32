"""How many entries are trained: from what the user writes to one exact number."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from scalepet.errors import ConfigError

_WHOLE = re.compile(r"[0-9]+(?:_[0-9]+)*")
_PERCENT = re.compile(r"([0-9]*\.?[0-9]+) ?%")
_MAX_NUM_CHARACTERS = 40


def check_budget(budget: str | int) -> None:
    """Returns when a budget can be read, before the number of eligible entries is known.

    Raises:
        ConfigError: for all that count_budget refuses, save a number above the eligible entries.
    """
    _read(budget, most="the number of eligible entries")


def count_budget(budget: str | int, *, num_eligible: int) -> int:
    """The exact number of entries that a budget asks for.

    Args:
        budget: entries (4096, "4096", "4_096"), or a percent of the eligible ones ("0.1%", "100%"),
            which is rounded half up and is at least 1.
        num_eligible: entries that may be chosen.

    Returns:
        A number from 1 to num_eligible.

    Raises:
        ConfigError: the budget cannot be read, is zero or negative, is over 100 %, or is over
            num_eligible.
    """
    amount = _read(budget, most=f"{num_eligible:,} (all eligible entries)")
    if isinstance(amount, Fraction):
        amount = max(1, math.floor(amount * num_eligible + Fraction(1, 2)))
    if amount > num_eligible:
        raise ConfigError(
            f"budget: {budget!r} is {amount:,} entries but {num_eligible:,} are eligible; "
            f"allowed: at most {num_eligible:,}"
        )
    return amount


def _read(budget: str | int, *, most: str) -> int | Fraction:
    """Entries as an int, a share of the eligible entries as a Fraction in (0, 1]."""
    amount = _parse(budget)
    if amount is None or amount <= 0 or (isinstance(amount, Fraction) and amount > 1):
        raise ConfigError(
            f"budget: {budget!r} is not allowed; allowed: a whole number of entries from 1 to "
            f"{most}, such as 4096 or '4_096', or a percent over 0 and up to 100, such as '0.1%'"
        )
    return amount


def _parse(budget: str | int) -> int | Fraction | None:
    if isinstance(budget, int) and not isinstance(budget, bool):
        return budget
    if not isinstance(budget, str) or len(budget) > _MAX_NUM_CHARACTERS:
        return None
    text = budget.strip()
    if _WHOLE.fullmatch(text):
        return int(text)
    percent = _PERCENT.fullmatch(text)
    return Fraction(percent[1]) / 100 if percent else None
