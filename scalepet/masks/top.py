"""Scored masks: exactly the entries with the largest scores, found over the slices of all ranks.

A radix select in two steps of 16 bits: a float32 that is not negative is ordered as its bit pattern
is as a whole number (IEEE 754), so a histogram of the high halves and one of the low halves give
the exact score at which the budget is met, and no score ever leaves its rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from scalepet.errors import ConfigError
from scalepet.masks.budget import count_budget
from scalepet.masks.mask import Indices, Share, SparseMask, index_dtype
from scalepet.masks.share import Portion, check_share, spread_over_groups

T = TypeVar("T")
Counts: TypeAlias = npt.NDArray[np.int64]
Codes: TypeAlias = npt.NDArray[np.uint32]

_HALF_BITS = 16
_NUM_HALVES = 2**_HALF_BITS
_LARGEST_CODE = np.uint32(2**31 - 1)  # the sign bit is left out
_INFINITY = np.uint32(0x7F800000)
_MINUS_ZERO = np.uint32(0x80000000)
# Keeps what is made of the scores at once within the cache of a core.
_NUM_SCORES_AT_ONCE = 2**18
# What does not divide between groups is dealt in an order shuffled by a seed; scores have none.
_SEED = 0


class Gather(Protocol):
    """Returns every rank's object, in the order of the ranks."""

    def __call__(self, value: T, /) -> list[T]: ...


@dataclass(frozen=True, eq=False)
class ScoreShard:
    """This rank's part of the scores of a tensor: flat positions from start on.

    Attributes:
        start: flat row-major position of the first score.
        values: float32 of shape (number of scores,), maybe empty.
    """

    start: int
    values: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Work:
    """What every step needs: the scores of this rank and the way to the other ranks."""

    scores: Mapping[str, ScoreShard]
    largest: bool
    sum_over_ranks: Callable[[Counts], Counts]
    gather: Gather

    def read(self, name: str) -> Iterator[tuple[int, Codes]]:
        """Positions and codes, piece by piece; a code is larger the earlier it is chosen."""
        shard = self.scores[name]
        for first, bits in _read_bits(shard.values):
            codes = bits & _LARGEST_CODE
            yield shard.start + first, codes if self.largest else _LARGEST_CODE - codes


def select_top(
    scores: Mapping[str, ScoreShard],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    budget: str | int,
    share: Share = "uniform",
    groups: Mapping[str, str] | None = None,
    sum_over_ranks: Callable[[Counts], Counts],
    gather: Gather,
    largest: bool = True,
) -> SparseMask:
    """The mask of exactly as many entries as the budget says, those with the largest scores.

    Equal scores are chosen in the order of (tensor name, position), so the mask does not depend on
    the number of ranks or on where tensors are cut. Every rank calls this together and gets the
    same mask, without a rule. Time is linear in the scores of a rank (each is read five times);
    memory beside them is that of the chosen positions.

    Args:
        scores: this rank's slice of every eligible tensor; the slices of all ranks together hold
            each entry once.
        shapes: the eligible tensors, name to FULL shape, the same on every rank.
        budget: see count_budget; a percent is of all entries of ``shapes``.
        share: ``uniform``, the largest of all; ``even`` or ``proportional``, the largest of each
            group, which gets as many entries as in select_entries.
        groups: tensor name to its group, for ``even`` and ``proportional``.
        sum_over_ranks: adds int64 arrays of one dimension over all ranks.
        gather: gives every rank's object in the order of the ranks.
        largest: False chooses the smallest scores.

    Raises:
        ConfigError: what select_entries refuses, or scores that are negative or not finite; on
            every rank at once.
    """
    sizes = {name: math.prod(shapes[name]) for name in sorted(shapes)}
    assert all(sizes.values()), [name for name, size in sizes.items() if not size]
    check_share(sizes, share=share, groups=groups)
    num_eligible = sum(sizes.values())
    count = count_budget(budget, num_eligible=num_eligible)
    portions = spread_over_groups(count, sizes, share=share, groups=groups, seed=_SEED)
    work = _Work(scores=scores, largest=largest, sum_over_ranks=sum_over_ranks, gather=gather)
    _assert_slices(work, sizes)
    _check_scores(work, sizes)
    chosen: dict[str, Indices] = {}
    for portion in portions:
        chosen |= _choose_top(portion, work) if portion.count else {}
    chosen = {name: chosen[name] for name in sizes if name in chosen}
    return SparseMask(
        positions=chosen,
        shapes={name: tuple(map(int, shapes[name])) for name in chosen},
        num_eligible=num_eligible,
    )


def _assert_slices(work: _Work, sizes: Mapping[str, int]) -> None:
    """Asserts that the slices of all ranks hold each entry of each tensor once."""
    assert work.scores.keys() == sizes.keys(), sorted(work.scores.keys() ^ sizes.keys())
    mine: dict[str, tuple[int, int]] = {}
    for name in sizes:
        values = work.scores[name].values
        assert values.dtype == np.float32 and values.ndim == 1, (name, values.dtype, values.shape)
        mine[name] = (work.scores[name].start, values.size)
    every = work.gather(mine)
    for name, size in sizes.items():
        end = 0
        for start, length in sorted(slices[name] for slices in every if slices[name][1]):
            assert start == end, (name, start, end)
            end = start + length
        assert end == size, (name, end, size)


def _check_scores(work: _Work, sizes: Mapping[str, int]) -> None:
    faulty = np.zeros((len(sizes), 2), dtype=np.int64)
    for row, name in enumerate(sizes):
        for _, bits in _read_bits(work.scores[name].values):
            is_infinite = (bits & _LARGEST_CODE) >= _INFINITY
            is_negative = (bits > _MINUS_ZERO) & ~is_infinite
            faulty[row] += np.count_nonzero(is_infinite), np.count_nonzero(is_negative)
    faulty = work.sum_over_ranks(faulty.ravel()).reshape(-1, 2)
    faults = [
        f"mask scores: {name!r} has {infinite:,} of {sizes[name]:,} that are not finite and "
        f"{negative:,} that are negative; allowed: finite numbers from 0 on"
        for name, (infinite, negative) in zip(sizes, faulty.tolist(), strict=True)
        if infinite or negative
    ]
    if faults:
        raise ConfigError(faults)


def _read_bits(values: npt.NDArray[np.float32]) -> Iterator[tuple[int, Codes]]:
    for first in range(0, values.size, _NUM_SCORES_AT_ONCE):
        yield first, values[first : first + _NUM_SCORES_AT_ONCE].view(np.uint32)


def _choose_top(portion: Portion, work: _Work) -> dict[str, Indices]:
    """The positions of each tensor of a group that has any, of all ranks."""
    threshold, num_ties = _find_threshold(portion, work)
    ties_before = _count_ties_before(portion, work, threshold)
    chosen: dict[str, Indices] = {}
    for name, size in portion.sizes.items():
        mine = _list_chosen(name, work, threshold, max(0, num_ties - ties_before[name]))
        parts = work.gather(mine.astype(index_dtype(size), copy=False))
        parts = sorted((part for part in parts if part.size), key=lambda part: int(part[0]))
        if parts:
            chosen[name] = np.concatenate(parts)
    return chosen


def _find_threshold(portion: Portion, work: _Work) -> tuple[int, int]:
    """The code of the last entry that is chosen, and how many entries of that code are."""
    totals = np.zeros(_NUM_HALVES, dtype=np.int64)
    for name in portion.sizes:
        for _, codes in work.read(name):
            totals += np.bincount(codes >> _HALF_BITS, minlength=_NUM_HALVES)
    high, wanted = _find_bin(work.sum_over_ranks(totals), portion.count)
    totals = np.zeros(_NUM_HALVES, dtype=np.int64)
    for name in portion.sizes:
        for _, codes in work.read(name):
            inside = codes[codes >> _HALF_BITS == high]
            totals += np.bincount(inside & (_NUM_HALVES - 1), minlength=_NUM_HALVES)
    low, wanted = _find_bin(work.sum_over_ranks(totals), wanted)
    return (high << _HALF_BITS) + low, wanted


def _find_bin(totals: Counts, wanted: int) -> tuple[int, int]:
    """The bin in which the wanted number is met from the top, and how many of it are wanted."""
    from_top = np.cumsum(totals[::-1])
    place = int(np.searchsorted(from_top, wanted))
    above = int(from_top[place - 1]) if place else 0
    return totals.size - 1 - place, wanted - above


def _count_ties_before(portion: Portion, work: _Work, threshold: int) -> dict[str, int]:
    """For each tensor the entries of the threshold's code that come before this rank's slice."""
    ties = {
        name: sum(int(np.count_nonzero(codes == threshold)) for _, codes in work.read(name))
        for name in portion.sizes
    }
    every = work.gather({name: (work.scores[name].start, ties[name]) for name in ties})
    before: dict[str, int] = {}
    num_earlier = 0
    for name in sorted(ties):
        start = work.scores[name].start
        before[name] = num_earlier + sum(
            theirs[name][1] for theirs in every if theirs[name][0] < start
        )
        num_earlier += sum(theirs[name][1] for theirs in every)
    return before


def _list_chosen(name: str, work: _Work, threshold: int, num_ties: int) -> Counts:
    """The chosen positions of this rank: all above the threshold and the first num_ties at it."""
    found = [np.empty(0, dtype=np.int64)]
    for first, codes in work.read(name):
        is_chosen = codes > threshold
        ties = np.flatnonzero(codes == threshold)[:num_ties]
        is_chosen[ties] = True
        num_ties -= ties.size
        found.append(np.flatnonzero(is_chosen) + first)
    return np.concatenate(found)
