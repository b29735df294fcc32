"""How entries are spread: exact sums, the right laws, and both numbers in a refusal."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from scalepet.errors import ConfigError
from scalepet.masks.share import (
    spread_even,
    spread_over_groups,
    spread_proportional,
    spread_uniform,
)


def test_even_gives_the_same_number_and_spreads_the_rest() -> None:
    rng = np.random.default_rng(0)
    for seed in range(200):
        num_groups = int(rng.integers(1, 12))
        sizes = {f"layer.{i}": int(rng.integers(50, 90)) for i in range(num_groups)}
        count = int(rng.integers(1, 50 * num_groups + 1))
        shares = spread_even(count, sizes, seed=seed)
        assert sum(shares.values()) == count
        assert set(shares.values()) <= {count // num_groups, -(-count // num_groups)}


def test_even_rest_is_shuffled_by_seed() -> None:
    """10 groups, 13 entries: each group is among the 3 lucky ones three times in ten."""
    sizes = {f"layer.{i}": 100 for i in range(10)}
    lucky = Counter(
        group
        for seed in range(1000)
        for group, share in spread_even(13, sizes, seed=seed).items()
        if share == 2
    )
    assert sum(lucky.values()) == 3000
    # Binomial with standard deviation 14.5.
    assert all(abs(lucky[group] - 300) < 5 * 14.5 for group in sizes)


@pytest.mark.parametrize("seed", range(20))
def test_even_rest_goes_where_there_is_room(seed: int) -> None:
    assert spread_even(7, {"small": 3, "large": 5}, seed=seed) == {"small": 3, "large": 4}


def test_even_refuses_small_groups_with_both_numbers() -> None:
    sizes = {"a": 3, "b": 4, "c": 90}
    with pytest.raises(ConfigError) as error:
        spread_even(30, sizes, seed=0)
    assert len(error.value.faults) == 2
    assert "group 'a' has 3 eligible entries but its share of 30 is 10" in error.value.faults[0]
    assert "at most 11" in error.value.faults[0]
    assert sum(spread_even(11, sizes, seed=0).values()) == 11
    with pytest.raises(ConfigError):
        spread_even(12, sizes, seed=0)


def test_proportional_is_the_largest_remainder_method() -> None:
    rng = np.random.default_rng(1)
    for seed in range(200):
        sizes = {f"g{i}": int(rng.integers(1, 1000)) for i in range(int(rng.integers(1, 9)))}
        total = sum(sizes.values())
        count = int(rng.integers(0, total + 1))
        shares = spread_proportional(count, sizes, seed=seed)
        quotas = {group: Fraction(count * size, total) for group, size in sizes.items()}
        assert sum(shares.values()) == count
        assert all(math.floor(quotas[g]) <= shares[g] <= math.ceil(quotas[g]) for g in sizes)
        assert all(shares[group] <= sizes[group] for group in sizes)
        up = [quotas[g] % 1 for g in sizes if shares[g] > quotas[g]]
        down = [quotas[g] % 1 for g in sizes if shares[g] < quotas[g]]
        assert min(up, default=Fraction(1)) >= max(down, default=Fraction(0))


def test_proportional_example() -> None:
    shares = spread_proportional(10, {"a": 600, "b": 270, "c": 130}, seed=0)
    assert shares == {"a": 6, "b": 3, "c": 1}


def test_uniform_follows_the_hypergeometric_law() -> None:
    """Counts of two tensors: 5 entries of 4 + 8; every outcome against its exact chance."""
    num_seeds = 4000
    sizes = {"a": 4, "b": 8}
    seen = Counter(spread_uniform(5, sizes, seed=s, group="")["a"] for s in range(num_seeds))
    chances = {k: math.comb(4, k) * math.comb(8, 5 - k) / math.comb(12, 5) for k in range(5)}
    chi_square = sum(
        (seen[k] - num_seeds * chance) ** 2 / (num_seeds * chance) for k, chance in chances.items()
    )
    assert chi_square < 18.5  # 4 degrees of freedom, one in a thousand


@pytest.mark.parametrize("count", [0, 1, 299, 300, 301, 599, 600])
def test_uniform_sums_up_at_any_density(count: int) -> None:
    sizes = {"b": 100, "a": 500}
    counts = spread_uniform(count, sizes, seed=4, group="")
    assert sum(counts.values()) == count
    assert all(0 <= counts[name] <= sizes[name] for name in sizes)
    assert counts == spread_uniform(count, dict(sorted(sizes.items())), seed=4, group="")


def test_portions_are_the_groups_with_their_counts() -> None:
    sizes = {"a": 30, "b": 10, "c": 20}
    groups = {"a": "x", "b": "y", "c": "x"}
    found = {
        share: {
            portion.group: (portion.count, list(portion.sizes))
            for portion in spread_over_groups(6, sizes, share=share, groups=groups, seed=0)  # type: ignore[arg-type]
        }
        for share in ("uniform", "even", "proportional")
    }
    assert found == {
        "uniform": {"": (6, ["a", "b", "c"])},
        "even": {"x": (3, ["a", "c"]), "y": (3, ["b"])},
        "proportional": {"x": (5, ["a", "c"]), "y": (1, ["b"])},
    }
