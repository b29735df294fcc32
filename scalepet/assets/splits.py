"""A training and a test set, and an order of rows, drawn from what the rows are called.

The first n rows of a file are a random sample of it, the same one on every machine and under
every version of Python.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

Unit = TypeVar("Unit")

SEED = 0
TEST_SHARE = 0.2
SPLITS = ("train", "test")


def draw(key: str) -> bytes:
    """A pseudo-random place for a row that depends on its key and the seed alone."""
    return hashlib.blake2b(f"{SEED} {key}".encode(), digest_size=16).digest()


def split(
    units: Iterable[Unit], *, key: Callable[[Unit], str], stratum: Callable[[Unit], str]
) -> dict[str, list[Unit]]:
    """A fifth of each stratum, rounded, as "test" and the rest as "train"."""
    strata: dict[str, list[Unit]] = defaultdict(list)
    for unit in sorted(units, key=lambda unit: draw(key(unit))):
        strata[stratum(unit)].append(unit)
    parts: dict[str, list[Unit]] = {name: [] for name in SPLITS}
    for members in strata.values():
        num_test = round(TEST_SHARE * len(members))
        parts["test"] += members[:num_test]
        parts["train"] += members[num_test:]
    return parts


def split_note(stratum: str) -> str:
    """What `split` did, for the asset's SOURCE.md."""
    return f"Split by scalepet: {TEST_SHARE:.0%} of each {stratum} is the test set (seed {SEED})."
