"""Scored masks: against a plain sort, for one, two and three ranks and any cut into slices."""

from __future__ import annotations

import functools
import math
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from scalepet.errors import ConfigError
from scalepet.masks import ScoreShard, SparseMask, select_top
from scalepet.masks.share import spread_even, spread_proportional

T = TypeVar("T")
Scores = dict[str, npt.NDArray[np.float32]]

_SHAPES: dict[str, tuple[int, ...]] = {
    "b.wi": (9, 7),
    "a.q": (12, 8),
    "a.norm": (5,),
    "b.scale": (),
    "b.q": (4, 3, 5),
    "c": (50,),
}
_GROUPS = {name: name[0] for name in _SHAPES}
_NUM_ENTRIES = sum(map(math.prod, _SHAPES.values()))
_SPREADS: dict[str, Any] = {"even": spread_even, "proportional": spread_proportional}


class _Ranks:
    """Threads that meet at every gather, each of them one rank."""

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks = num_ranks
        self._slots: list[Any] = [None] * num_ranks
        self._barrier = threading.Barrier(num_ranks, timeout=20)

    def gather(self, rank: int, value: T) -> list[T]:
        self._slots[rank] = value
        self._barrier.wait()
        every = list(self._slots)
        self._barrier.wait()
        return every

    def sum(self, rank: int, value: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        assert value.dtype == np.int64 and value.ndim == 1
        return np.sum(self.gather(rank, value), axis=0)

    def run(self, work: Callable[..., T]) -> list[T]:
        """What each rank returns of work(rank, sum_over_ranks=..., gather=...)."""
        with ThreadPoolExecutor(self.num_ranks) as pool:
            futures = [
                pool.submit(
                    work,
                    rank,
                    sum_over_ranks=functools.partial(self.sum, rank),
                    gather=functools.partial(self.gather, rank),
                )
                for rank in range(self.num_ranks)
            ]
        for future in futures:
            error = future.exception()
            if error and not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [future.result() for future in futures]


def _cut(scores: Scores, num_ranks: int, seed: int) -> list[dict[str, ScoreShard]]:
    """Uneven slices, some of them empty, in another order of ranks for each tensor."""
    rng = np.random.default_rng(seed)
    shards: list[dict[str, ScoreShard]] = [{} for _ in range(num_ranks)]
    for name, values in scores.items():
        cuts = np.sort(rng.integers(0, values.size + 1, size=num_ranks - 1)).tolist()
        edges = [0, *cuts, values.size]
        for place, rank in enumerate(rng.permutation(num_ranks)):
            start, end = edges[place], edges[place + 1]
            shards[rank][name] = ScoreShard(start=start, values=values[start:end])
    return shards


def _select(scores: Scores, *, num_ranks: int = 1, cut_seed: int = 0, **request: Any) -> SparseMask:
    """The mask of all ranks, which must be one and the same."""
    shards = _cut(scores, num_ranks, cut_seed)

    def work(rank: int, **ways: Any) -> SparseMask:
        return select_top(shards[rank], shapes=_SHAPES, **request, **ways)

    masks = _Ranks(num_ranks).run(work)
    assert all(_to_lists(mask) == _to_lists(masks[0]) for mask in masks)
    return masks[0]


def _to_lists(mask: SparseMask) -> dict[str, list[int]]:
    return {name: row.tolist() for name, row in mask.positions.items()}


def _sort_plainly(count: int, scores: Scores, *, largest: bool) -> dict[str, list[int]]:
    every = sorted(
        (-float(score) if largest else float(score), name, position)
        for name, values in scores.items()
        for position, score in enumerate(values)
    )
    chosen: dict[str, list[int]] = {}
    for _, name, position in every[:count]:
        chosen.setdefault(name, []).append(position)
    return {name: sorted(row) for name, row in chosen.items()}


def _expect(count: int, scores: Scores, *, share: str, largest: bool) -> dict[str, list[int]]:
    if share == "uniform":
        return _sort_plainly(count, scores, largest=largest)
    sizes = Counter[str]()
    for name, values in scores.items():
        sizes[_GROUPS[name]] += values.size
    chosen: dict[str, list[int]] = {}
    ordered = {group: sizes[group] for group in sorted(sizes)}
    for group, portion in _SPREADS[share](count, ordered, seed=0).items():
        members = {name: values for name, values in scores.items() if _GROUPS[name] == group}
        chosen |= _sort_plainly(portion, members, largest=largest)
    return chosen


def _make_scores(kind: str, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    makers: Mapping[str, Callable[[int], Any]] = {
        "normal": lambda size: np.abs(rng.normal(size=size)),
        "wide": lambda size: 10.0 ** rng.uniform(-44, 38, size=size),
        "close": lambda size: 1 + rng.integers(0, 200, size=size) * 2.0**-23,
        "few": lambda size: rng.integers(0, 4, size=size) / 8,
        "equal": lambda size: np.full(size, 0.3),
        "zero": lambda size: np.where(rng.random(size) < 0.5, 0.0, -0.0),
        "extreme": lambda size: rng.choice(
            [0.0, -0.0, 1e-45, 2e-45, np.finfo(np.float32).max], size=size
        ),
    }
    return {n: makers[kind](math.prod(s)).astype(np.float32) for n, s in _SHAPES.items()}


_KINDS = ["normal", "wide", "close", "few", "equal", "zero", "extreme"]


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("share", ["uniform", "even", "proportional"])
@pytest.mark.parametrize("kind", _KINDS)
def test_choice_is_that_of_a_plain_sort(kind: str, share: Any, largest: bool) -> None:
    scores = _make_scores(kind)
    for num_ranks, count in [(1, 1), (1, 77), (2, 2), (2, 100), (3, 5), (3, 41), (3, 150)]:
        mask = _select(
            scores,
            num_ranks=num_ranks,
            cut_seed=count,
            budget=count,
            share=share,
            groups=_GROUPS,
            largest=largest,
        )
        assert _to_lists(mask) == _expect(count, scores, share=share, largest=largest)
        assert mask.count == count
        assert mask.rule is None and mask.num_eligible == _NUM_ENTRIES
        assert list(mask.positions) == list(mask.shapes) == sorted(mask.positions)
        assert all(mask.shapes[name] == _SHAPES[name] for name in mask.shapes)


@pytest.mark.parametrize("count", [1, 63, _NUM_ENTRIES - 1, _NUM_ENTRIES])
def test_ranks_and_cuts_do_not_matter(count: int) -> None:
    scores = _make_scores("few", seed=1)
    checksums = {
        _select(scores, num_ranks=num_ranks, cut_seed=cut_seed, budget=count).checksum
        for num_ranks in (1, 2, 3, 5)
        for cut_seed in range(4)
    }
    assert len(checksums) == 1


def test_scores_in_one_rank_alone() -> None:
    scores = _make_scores("normal")
    whole = {name: ScoreShard(0, values) for name, values in scores.items()}
    none = np.empty(0, dtype=np.float32)
    empty = {name: ScoreShard(values.size, none) for name, values in scores.items()}

    def work(rank: int, **ways: Any) -> SparseMask:
        return select_top(whole if rank == 1 else empty, shapes=_SHAPES, budget="10%", **ways)

    masks = _Ranks(2).run(work)
    expected = _sort_plainly(masks[0].count, scores, largest=True)
    assert masks[0].count == 28  # 27.5 goes up
    assert _to_lists(masks[0]) == _to_lists(masks[1]) == expected


def test_scores_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = _make_scores("few", seed=2)
    whole = _select(scores, num_ranks=2, budget=120)
    monkeypatch.setattr("scalepet.masks.top._NUM_SCORES_AT_ONCE", 7)
    assert _to_lists(_select(scores, num_ranks=2, budget=120)) == _to_lists(whole)


def test_scores_are_left_as_they_are() -> None:
    scores = _make_scores("zero")
    before = {name: values.tobytes() for name, values in scores.items()}
    for values in scores.values():
        values.flags.writeable = False
    _select(scores, budget=9, largest=False)
    assert before == {name: values.tobytes() for name, values in scores.items()}


def test_memory_is_a_part_of_the_scores() -> None:
    values = np.random.default_rng(0).random(2**23, dtype=np.float32)
    tracemalloc.start()
    mask = select_top(
        {"a": ScoreShard(0, values)},
        shapes={"a": (2**23,)},
        budget="0.1%",
        sum_over_ranks=lambda array: array,
        gather=lambda value: [value],
    )
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    expected = np.sort(np.argsort(-values, kind="stable")[: mask.count])
    np.testing.assert_array_equal(mask.positions["a"], expected)
    assert peak_bytes < values.nbytes / 3


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_scores_that_are_no_scores_are_refused_on_every_rank(num_ranks: int) -> None:
    scores = _make_scores("normal")
    scores["a.q"][[3, 50, 95]] = np.nan, np.inf, -np.inf
    scores["c"][[0, 49]] = -1e-45, -2.0
    scores["b.wi"][5] = -np.nan
    shards = _cut(scores, num_ranks, seed=1)
    faults: list[tuple[str, ...]] = []

    def work(rank: int, **ways: Any) -> None:
        with pytest.raises(ConfigError) as error:
            select_top(shards[rank], shapes=_SHAPES, budget=3, **ways)
        faults.append(error.value.faults)

    _Ranks(num_ranks).run(work)
    assert len(faults) == num_ranks and len(set(faults)) == 1
    allowed = "allowed: finite numbers from 0 on"
    assert faults[0] == (
        f"mask scores: 'a.q' has 3 of 96 that are not finite and 0 that are negative; {allowed}",
        f"mask scores: 'b.wi' has 1 of 63 that are not finite and 0 that are negative; {allowed}",
        f"mask scores: 'c' has 0 of 50 that are not finite and 2 that are negative; {allowed}",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 276}, "276 entries but 275 are eligible"),
        ({"budget": "0%"}, "'0%' is not allowed"),
        ({"share": "fair"}, "'fair' is unknown; allowed: uniform, even, proportional"),
        ({"share": "even"}, "6 of 6 have none"),
        ({"share": "even", "groups": _GROUPS, "budget": 200}, "'c' has 50 .* share of 200 is 6"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _select(_make_scores("normal"), **({"budget": 10} | changes))


def test_no_tensor_is_refused() -> None:
    with pytest.raises(ConfigError, match="no tensor is eligible"):
        select_top({}, shapes={}, budget=1, sum_over_ranks=lambda a: a, gather=lambda o: [o])


@pytest.mark.parametrize(
    "shards",
    [
        {},
        {"a": ScoreShard(0, np.zeros(3, dtype=np.float32))},  # too few
        {"a": ScoreShard(1, np.zeros(3, dtype=np.float32))},  # a hole
        {"a": ScoreShard(0, np.zeros(5, dtype=np.float32))},  # too many
        {"a": ScoreShard(0, np.zeros(4))},  # float64
        {"a": ScoreShard(0, np.zeros((2, 2), dtype=np.float32))},
        {n: ScoreShard(0, np.zeros(4, dtype=np.float32)) for n in "ab"},
    ],
)
def test_slices_that_do_not_fit_are_our_own_mistake(shards: dict[str, ScoreShard]) -> None:
    with pytest.raises(AssertionError):
        select_top(
            shards,
            shapes={"a": (2, 2)},
            budget=1,
            sum_over_ranks=lambda array: array,
            gather=lambda value: [value],
        )


def test_slices_that_overlap_are_our_own_mistake() -> None:
    def work(rank: int, **ways: Any) -> SparseMask:
        shard = ScoreShard(0, np.zeros(2, dtype=np.float32))
        return select_top({"a": shard}, shapes={"a": (2, 2)}, budget=1, **ways)

    with pytest.raises(AssertionError, match="a"):
        _Ranks(2).run(work)
