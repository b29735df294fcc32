"""Budgets: every form that is read, and every refusal."""

from __future__ import annotations

from typing import Any

import pytest

from scalepet.errors import ConfigError
from scalepet.masks import check_budget, count_budget


@pytest.mark.parametrize(
    ("budget", "num_eligible", "count"),
    [
        (4096, 4096, 4096),
        ("4096", 10_000, 4096),
        ("4_096", 10_000, 4096),
        (" 7 ", 10, 7),
        (1, 1, 1),
        ("100%", 123, 123),
        ("100.0 %", 123, 123),
        ("0.1%", 11_000_000_000, 11_000_000),
        ("0.1%", 1499, 1),
        ("0.1%", 1500, 2),  # 1.5: half goes up
        ("0.1%", 2500, 3),  # 2.5 too, not to the even 2
        (".5%", 1000, 5),
        ("0.0001%", 10, 1),  # at least 1
        ("99.999%", 10, 10),
        ("33.3%", 10**18, 333 * 10**15),  # exact where a float is not
    ],
)
def test_count(budget: str | int, num_eligible: int, count: int) -> None:
    check_budget(budget)
    assert count_budget(budget, num_eligible=num_eligible) == count


@pytest.mark.parametrize(
    "budget",
    [
        0, -1, "0", "-5", "0%", "0.000%", "-1%", "100.01%", "1e3%", "nan", "nan%", "inf%", "", "%",
        "many", "4,096", "0.5", "1.%", "4__096", "_1", "1_", "0x10", "\u0661", "9" * 5000,
        0.1, float("nan"), True, None,
    ],
)  # fmt: skip
def test_refuses_what_is_no_budget(budget: Any) -> None:
    with pytest.raises(ConfigError, match="1 to the number of eligible entries") as early:
        check_budget(budget)
    with pytest.raises(ConfigError, match="1 to 1,234 ") as late:
        count_budget(budget, num_eligible=1234)
    for error in (early, late):
        assert f"budget: {budget!r} is not allowed" in str(error.value)
        assert "percent over 0 and up to 100" in str(error.value)


@pytest.mark.parametrize("budget", [5001, "5_001"])
def test_refuses_more_than_eligible_with_both_numbers(budget: str | int) -> None:
    check_budget(budget)
    with pytest.raises(ConfigError) as error:
        count_budget(budget, num_eligible=5000)
    for part in (repr(budget), "5,001 entries", "5,000 are eligible"):
        assert part in str(error.value)
