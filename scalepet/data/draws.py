"""Which rows of many: drawn by a seed, the same on every rank and machine, and without blanks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from scalepet.data.forms import RowNumbers
from scalepet.data.rows import NUM_ROWS_READ, Rows, read_rows

if TYPE_CHECKING:
    from datasets import Dataset


def draw(num_keys: int, *, seed: int, purpose: str) -> npt.NDArray[np.uint64]:
    """Keys to sort by, the same in every numpy; a key depends on its place, the seed and the
    purpose alone.

    Raw output of Philox 4x64-10 (Salmon et al. 2011) with key (seed, BLAKE2b of the purpose).
    """
    digest = blake2b(purpose.encode(), digest_size=8).digest()
    key = np.array([seed, int.from_bytes(digest, "little")], dtype=np.uint64)
    return np.random.Philox(key=key).random_raw(num_keys)


def drawn(numbers: RowNumbers, limit: int | None, *, seed: int, purpose: str) -> RowNumbers:
    """At most ``limit`` of these ascending numbers, still ascending; all of them for None."""
    if limit is None or len(numbers) <= limit:
        return numbers
    keys = draw(int(numbers[-1]) + 1, seed=seed, purpose=purpose)[numbers]
    return np.sort(numbers[np.lexsort((numbers, keys))[:limit]])


def first_filled(
    rows: Rows, numbers: RowNumbers, limit: int | None, columns: Sequence[str]
) -> RowNumbers:
    """The first ``limit`` of these rows in which none of the columns is blank."""
    limit = len(numbers) if limit is None else limit
    if not columns:
        return numbers[:limit]
    found = [numbers[:0]]
    for start in range(0, len(numbers), NUM_ROWS_READ):
        if sum(map(len, found)) >= limit:
            break
        some = numbers[start : start + NUM_ROWS_READ]
        values = read_rows(at(rows, some), columns)
        found.append(some[[not any(map(_is_blank, row)) for row in values]])
    return np.concatenate(found)[:limit]


def at(rows: Rows, numbers: RowNumbers) -> Rows:
    """The rows with these numbers."""
    return cast(Rows, cast("Dataset", rows).select(numbers))


def _is_blank(value: object) -> bool:
    """Whether there is nothing in it: null, NaN, white space, or a list or fields of such."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, (list, dict)):
        return all(map(_is_blank, value.values() if isinstance(value, dict) else value))
    return value is None or (isinstance(value, float) and math.isnan(value))
