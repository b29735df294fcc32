"""Distinct random positions that are the same on every machine, for all time.

numpy promises stable streams for its bit generators but not for the methods of ``Generator``
(NEP 19), so only the raw 64-bit words of Philox are read here (Philox4x64-10: Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3").
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scalepet.masks.digest import digest_parts

# From this density on, one flag a position is no larger than the drawn positions themselves (8
# bytes each) and beats sorting. The result is the same set either way.
_NUM_POSITIONS_PER_FLAGGED_DRAW = 8
# 2 MiB of words stay in the cache of a core.
_NUM_WORDS_AT_ONCE = 2**18


def draw_distinct(
    num_drawn: int, *, num_positions: int, key: tuple[str, ...]
) -> npt.NDArray[np.int64]:
    """Sorted distinct positions of [0, num_positions), uniform over all subsets of that size.

    The set is the first ``num_drawn`` distinct values of ``word % num_positions`` over the words of
    a Philox stream; above one half it is the complement of the ``num_positions - num_drawn`` that
    such a stream names. ``%`` favours small positions by a part of less than num_positions / 2**64
    (6e-10 at 11 billion).

    Args:
        num_drawn: from 0 to num_positions.
        num_positions: below 2**63.
        key: names the stream; other parts, or another order, give an independent stream.

    Returns:
        int64 array of shape (num_drawn,), strictly rising; a function of the arguments only.
    """
    assert 0 <= num_drawn <= num_positions < 2**63, (num_drawn, num_positions)
    stream = _open_stream(key)
    if 2 * num_drawn > num_positions:
        kept = np.ones(num_positions, dtype=bool)
        kept[_first_distinct(stream, num_positions - num_drawn, num_positions)] = False
        return np.flatnonzero(kept).astype(np.int64, copy=False)
    return _first_distinct(stream, num_drawn, num_positions)


def draw_small_words(
    num_words: int, *, most: int, key: tuple[str, ...]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Those of the first words of a Philox stream that are at most ``most``, and their places.

    Args:
        num_words: words of the stream to look at; they are never in memory all at once.
        most: from 0 to 2**64 - 1.
        key: names the stream, as in draw_distinct.

    Returns:
        places, int64, strictly rising in [0, num_words), and the words there, uint64.
    """
    stream = _open_stream(key)
    places, words = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.uint64)]
    for first in range(0, num_words, _NUM_WORDS_AT_ONCE):
        read: npt.NDArray[np.uint64] = stream.random_raw(min(_NUM_WORDS_AT_ONCE, num_words - first))
        small = np.flatnonzero(read <= np.uint64(most))
        places.append(small + first)
        words.append(read[small])
    return np.concatenate(places), np.concatenate(words)


def _open_stream(key: tuple[str, ...]) -> np.random.Philox:
    return np.random.Philox(key=int.from_bytes(digest_parts(key), "little"))


def _first_distinct(
    stream: np.random.Philox, num_drawn: int, num_positions: int
) -> npt.NDArray[np.int64]:
    """The first num_drawn distinct values of the stream, sorted.

    Each round reads as many words as values are missing, so no round can bring too many.
    """
    if num_drawn * _NUM_POSITIONS_PER_FLAGGED_DRAW >= num_positions:
        return _first_distinct_by_flags(stream, num_drawn, num_positions)
    held = np.empty(0, dtype=np.int64)
    while num_missing := num_drawn - held.size:
        fresh = _sort_distinct(_read(stream, num_missing, num_positions))
        held = _merge(held, fresh) if held.size else fresh
    return held


def _first_distinct_by_flags(
    stream: np.random.Philox, num_drawn: int, num_positions: int
) -> npt.NDArray[np.int64]:
    """The same values as _first_distinct, collected in one flag a position."""
    seen = np.zeros(num_positions, dtype=bool)
    num_missing = num_drawn
    while num_missing:
        seen[_read(stream, num_missing, num_positions)] = True
        num_missing = num_drawn - int(np.count_nonzero(seen))
    return np.flatnonzero(seen).astype(np.int64, copy=False)


def _read(stream: np.random.Philox, num_words: int, num_positions: int) -> npt.NDArray[np.int64]:
    """The next num_words positions of the stream, with repeats, in stream order."""
    words: npt.NDArray[np.uint64] = stream.random_raw(num_words)
    words %= np.uint64(num_positions)
    return words.view(np.int64)


def _sort_distinct(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sorts values in place and returns them without repeats; np.unique would copy once more."""
    values.sort()
    is_new = np.ones(values.size, dtype=bool)
    np.not_equal(values[1:], values[:-1], out=is_new[1:])
    return values if is_new.all() else values[is_new]


def _merge(held: npt.NDArray[np.int64], fresh: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The sorted union of two sorted sets, in one pass over the large one."""
    places = np.searchsorted(held, fresh)
    is_new = held[np.minimum(places, held.size - 1)] != fresh
    return np.insert(held, places[is_new], fresh[is_new])
