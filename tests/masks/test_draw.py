"""Distinct positions: exact, uniform, and equal to a stream that is worked out here by hand."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from scalepet.masks import draw_distinct
from scalepet.masks.draw import _NUM_WORDS_AT_ONCE, _first_distinct_by_flags, draw_small_words

_WORD = 2**64


def _philox_words(key: int) -> Iterator[int]:
    """Philox4x64-10 from its paper, in plain integers; counters start at 1 as in numpy."""
    for block in itertools.count(1):
        counter, keys = [block, 0, 0, 0], [key % _WORD, key >> 64]
        for _ in range(10):
            first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
            counter = [
                (second >> 64) ^ counter[1] ^ keys[0],
                second % _WORD,
                (first >> 64) ^ counter[3] ^ keys[1],
                first % _WORD,
            ]
            keys = [
                (keys[0] + 0x9E3779B97F4A7C15) % _WORD,
                (keys[1] + 0xBB67AE8584CAA73B) % _WORD,
            ]
        yield from counter


def _number(key: tuple[str, ...]) -> int:
    joined = b"".join(len(p.encode()).to_bytes(8, "little") + p.encode() for p in key)
    return int.from_bytes(hashlib.blake2b(joined, digest_size=16).digest(), "little")


def _draw_plainly(num_drawn: int, num_positions: int, key: tuple[str, ...]) -> list[int]:
    """What the docstring of draw_distinct says, word by word."""
    words = _philox_words(_number(key))
    if 2 * num_drawn > num_positions:
        left_out: set[int] = set()
        while len(left_out) < num_positions - num_drawn:
            left_out.add(next(words) % num_positions)
        return sorted(set(range(num_positions)) - left_out)
    drawn: set[int] = set()
    while len(drawn) < num_drawn:
        drawn.add(next(words) % num_positions)
    return sorted(drawn)


@pytest.mark.parametrize(
    ("num_drawn", "num_positions"),
    [
        (0, 1),
        (1, 1),
        (1, 2),
        (0, 7),
        (7, 7),
        (4, 9),
        (5, 9),
        (1, 10**6),
        (60, 4096),  # sorted, collisions likely
        (511, 4096),
        (512, 4096),  # flags from here on
        (2048, 4096),
        (2049, 4096),  # complement from here on
        (4095, 4096),
        (1000, 11_000_000_000),
        (3, 2**63 - 1),
    ],
)
def test_draw_is_the_documented_stream(num_drawn: int, num_positions: int) -> None:
    key = ("test", str(num_drawn))
    drawn = draw_distinct(num_drawn, num_positions=num_positions, key=key)
    assert drawn.dtype == np.int64
    assert drawn.tolist() == _draw_plainly(num_drawn, num_positions, key)


def test_draw_is_pinned() -> None:
    drawn = draw_distinct(8, num_positions=11_000_000_000, key=("golden", "1"))
    assert drawn.tolist() == [
        2006838107,
        3428378088,
        5185003902,
        5658428002,
        6150524742,
        7187490488,
        9168192581,
        10207436601,
    ]
    assert draw_distinct(3, num_positions=10, key=("golden", "2")).tolist() == [2, 3, 7]


def test_draw_is_exact_for_many_sizes() -> None:
    sizes = np.random.default_rng(0)
    for case in range(300):
        num_positions = int(sizes.integers(1, 5000))
        num_drawn = int(sizes.integers(0, num_positions + 1))
        drawn = draw_distinct(num_drawn, num_positions=num_positions, key=(str(case),))
        assert drawn.shape == (num_drawn,)
        assert (np.diff(drawn) > 0).all()
        assert not num_drawn or 0 <= drawn[0] <= drawn[-1] < num_positions


@pytest.mark.parametrize(("num_drawn", "num_positions"), [(1, 6), (2, 6), (3, 6), (4, 6), (1, 20)])
def test_draw_is_uniform_over_subsets(num_drawn: int, num_positions: int) -> None:
    num_seeds = 6000
    seen = Counter(
        tuple(draw_distinct(num_drawn, num_positions=num_positions, key=("u", str(seed))).tolist())
        for seed in range(num_seeds)
    )
    num_subsets = math.comb(num_positions, num_drawn)
    expected = num_seeds / num_subsets
    every = itertools.combinations(range(num_positions), num_drawn)
    chi_square = sum((seen[subset] - expected) ** 2 / expected for subset in every)
    freedom = num_subsets - 1
    # Mean and standard deviation of chi-square are freedom and sqrt(2 * freedom).
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_draw_is_uniform_where_collisions_are_merged() -> None:
    """One in ten of 2,000: the sorted path with top-ups; each position has the same chance."""
    num_seeds = 1000
    hits = np.zeros(2000)
    for seed in range(num_seeds):
        hits[draw_distinct(200, num_positions=2000, key=("m", str(seed)))] += 1
    variance = num_seeds * 0.1 * 0.9
    chi_square = float(((hits - num_seeds * 0.1) ** 2 / variance).sum())
    assert abs(chi_square - 2000) < 4 * math.sqrt(2 * 2000)


def test_flags_and_sorting_give_one_set() -> None:
    by_sorting = draw_distinct(400, num_positions=4000, key=("both",))
    by_flags = _first_distinct_by_flags(np.random.Philox(key=_number(("both",))), 400, 4000)
    np.testing.assert_array_equal(by_sorting, by_flags)


def test_keys_give_independent_draws() -> None:
    first, second, third = (
        draw_distinct(10_000, num_positions=100_000, key=key)
        for key in [("a", "1"), ("a", "2"), ("1", "a")]
    )
    # 1,000 expected, standard deviation about 28.
    assert abs(np.intersect1d(first, second).size - 1000) < 150
    assert abs(np.intersect1d(first, third).size - 1000) < 150


@pytest.mark.parametrize(("num_drawn", "num_positions"), [(-1, 3), (4, 3), (1, 2**63)])
def test_draw_asserts_its_range(num_drawn: int, num_positions: int) -> None:
    with pytest.raises(AssertionError):
        draw_distinct(num_drawn, num_positions=num_positions, key=("x",))


@pytest.mark.parametrize("most", [0, 2**62, 2**63 + 12345, 2**64 - 1])
def test_small_words_are_those_of_the_stream(most: int) -> None:
    words = list(itertools.islice(_philox_words(_number(("small",))), 1001))
    places, small = draw_small_words(1001, most=most, key=("small",))
    assert places.tolist() == [place for place, word in enumerate(words) if word <= most]
    assert small.tolist() == [word for word in words if word <= most]


def test_small_words_of_a_long_stream_are_read_in_parts() -> None:
    num_words = 2 * _NUM_WORDS_AT_ONCE + 3
    words = np.random.Philox(key=_number(("long",))).random_raw(num_words)
    places, small = draw_small_words(num_words, most=2**61, key=("long",))
    np.testing.assert_array_equal(places, np.flatnonzero(words <= 2**61))
    np.testing.assert_array_equal(small, words[places])
