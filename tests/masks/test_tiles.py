"""Structured masks: against a plain enumeration of all tiles, exact, stable and random."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from scalepet.errors import ConfigError
from scalepet.masks import MaskRule, SparseMask, select_entries
from scalepet.masks.share import spread_even, spread_proportional
from scalepet.masks.tiles import _draw_candidates, _take_in_order, cut_tensor

_SHAPES: dict[str, tuple[int, ...]] = {
    "encoder.0.q": (16, 24),
    "encoder.0.wi": (37, 16),
    "encoder.0.norm": (16,),
    "encoder.1.q": (16, 24),
    "encoder.1.conv": (5, 3, 4),
    "encoder.1.scale": (),
    "shared": (50, 16),
}
_GROUPS = {name: name.rpartition(".")[0] or name for name in _SHAPES}
_SPREADS: dict[str, Any] = {"even": spread_even, "proportional": spread_proportional}


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0] if shape else 1), math.prod(shape[1:])


_TILES: dict[str, dict[str, tuple[int, int]]] = {
    "row": {name: (1, _matrix(shape)[1]) for name, shape in _SHAPES.items()},
    "column": {name: (_matrix(shape)[0], 1) for name, shape in _SHAPES.items()},
    "tensor": {name: _matrix(shape) for name, shape in _SHAPES.items()},
    "head": {name: (4, _matrix(shape)[1]) for name, shape in _SHAPES.items()},
    "block": dict.fromkeys(_SHAPES, (5, 7)),
    "mixed": {n: (1, 1) if n.endswith("norm") else (16, 16) for n in _SHAPES},
}


def _list_tiles(
    name: str, shape: tuple[int, ...], tile: tuple[int, int], seed: int
) -> list[tuple[int, str, int, list[int]]]:
    """(key, tensor name, number, flat positions row by row) of each tile."""
    rows, columns = _matrix(shape)
    height, width = min(tile[0], rows), min(tile[1], columns)
    parts = ("tiles", name, "x".join(map(str, shape)), f"{height}x{width}", str(seed))
    joined = b"".join(len(p.encode()).to_bytes(8, "little") + p.encode() for p in parts)
    number = int.from_bytes(hashlib.blake2b(joined, digest_size=16).digest(), "little")
    corners = list(itertools.product(range(0, rows, height), range(0, columns, width)))
    keys = np.random.Philox(key=number).random_raw(len(corners)).tolist()
    flat = np.arange(rows * columns).reshape(rows, columns)
    return [
        (key, name, place, flat[top : top + height, left : left + width].ravel().tolist())
        for place, (key, (top, left)) in enumerate(zip(keys, corners, strict=True))
    ]


def _choose_plainly(
    count: int, names: list[str], tiles: Mapping[str, tuple[int, int]], seed: int
) -> dict[str, list[int]]:
    every = [tile for n in names for tile in _list_tiles(n, _SHAPES[n], tiles[n], seed)]
    chosen: dict[str, list[int]] = {}
    for _, name, _, positions in sorted(every):
        kept = positions[:count]
        count -= len(kept)
        if kept:
            chosen[name] = sorted(chosen.get(name, []) + kept)
    return chosen


def _expect(
    count: int, tiles: Mapping[str, tuple[int, int]], *, seed: int, share: str
) -> dict[str, list[int]]:
    if share == "uniform":
        return _choose_plainly(count, list(_SHAPES), tiles, seed)
    sizes = Counter[str]()
    for name, shape in _SHAPES.items():
        sizes[_GROUPS[name]] += math.prod(shape)
    chosen: dict[str, list[int]] = {}
    for group, portion in _SPREADS[share](count, sizes, seed=seed).items():
        names = [name for name in _SHAPES if _GROUPS[name] == group]
        chosen |= _choose_plainly(portion, names, tiles, seed)
    return chosen


def _to_lists(mask: SparseMask) -> dict[str, list[int]]:
    return {name: row.tolist() for name, row in mask.positions.items()}


@pytest.mark.parametrize("share", ["uniform", "even", "proportional"])
@pytest.mark.parametrize("unit", _TILES)
def test_tiles_are_those_of_a_plain_enumeration(unit: str, share: Any) -> None:
    for seed, count in enumerate([1, 2, 17, 100, 333, 1000, 1300]):
        mask = select_entries(
            _SHAPES,
            budget=count,
            seed=seed,
            share=share,
            groups=_GROUPS,
            tiles=_TILES[unit],
            unit=unit,
        )
        assert _to_lists(mask) == _expect(count, _TILES[unit], seed=seed, share=share)
        assert mask.count == count
        assert mask.rule == MaskRule(str(count), count, share, seed, unit)
        assert mask.num_eligible == sum(map(math.prod, _SHAPES.values()))
        assert list(mask.positions) == list(mask.shapes) == sorted(mask.positions)
        assert all(mask.shapes[name] == _SHAPES[name] for name in mask.shapes)


@pytest.mark.parametrize("unit", _TILES)
def test_everything_can_be_chosen(unit: str) -> None:
    mask = select_entries(_SHAPES, budget="100%", seed=0, tiles=_TILES[unit])
    assert _to_lists(mask) == {n: list(range(math.prod(s))) for n, s in _SHAPES.items()}


def test_positions_are_pinned() -> None:
    shapes = {"a": (6, 4), "b": (5,)}
    rows = select_entries(shapes, budget=11, seed=7, tiles={"a": (1, 4), "b": (1, 1)}, unit="row")
    assert _to_lists(rows) == {"a": [12, 13, 14, 15, 16, 17, 18, 19], "b": [0, 3, 4]}
    blocks = select_entries(shapes, budget=11, seed=7, tiles=dict.fromkeys(shapes, (2, 3)))
    assert _to_lists(blocks) == {"a": [0, 8, 9, 10, 11, 12, 13, 14, 15], "b": [2, 3]}


@pytest.mark.parametrize("share", ["uniform", "even", "proportional"])
def test_single_entries_are_the_mask_without_tiles(share: Any) -> None:
    request: dict[str, Any] = {"seed": 3, "share": share, "groups": _GROUPS}
    plain = select_entries(_SHAPES, budget=60, **request)
    tiled = select_entries(_SHAPES, budget=60, tiles=dict.fromkeys(_SHAPES, (1, 1)), **request)
    assert _to_lists(plain) == _to_lists(tiled) and plain.rule == tiled.rule


def test_rows_are_whole_but_for_one() -> None:
    shapes = {f"layer.{i}": (32, 10) for i in range(6)}
    tiles = dict.fromkeys(shapes, (1, 10))
    for seed in range(20):
        mask = select_entries(shapes, budget=123, seed=seed, tiles=tiles)
        rows = Counter(
            (name, position // 10) for name, row in mask.positions.items() for position in row
        )
        assert Counter(rows.values()) == {10: 12, 3: 1}
        cut = next(row for row, size in rows.items() if size == 3)
        held = mask.positions[cut[0]]
        assert held[held // 10 == cut[1]].tolist() == [cut[1] * 10 + i for i in range(3)]


def test_order_of_the_mappings_is_irrelevant() -> None:
    tiles = _TILES["block"]
    turned = dict(reversed(_SHAPES.items()))
    for share in ("uniform", "even"):
        request: dict[str, Any] = {"budget": 101, "seed": 3, "share": share, "groups": _GROUPS}
        first = select_entries(_SHAPES, tiles=tiles, **request)
        second = select_entries(turned, tiles=dict(reversed(tiles.items())), **request)
        assert _to_lists(first) == _to_lists(second)


def test_other_tensors_do_not_change_the_order_in_a_tensor() -> None:
    """What a tensor gets beside others is the same as it gets alone with that many entries."""
    tiles = _TILES["row"]
    together = select_entries(_SHAPES, budget=700, seed=5, tiles=tiles)
    for name, row in together.positions.items():
        if _SHAPES[name] and _matrix(_SHAPES[name])[1] > 1:
            alone = select_entries({name: _SHAPES[name]}, budget=row.size, seed=5, tiles=tiles)
            assert alone.positions[name].tolist() == row.tolist()


def test_names_shapes_tiles_and_seeds_give_other_tiles() -> None:
    def choose(name: str, shape: tuple[int, ...], tile: tuple[int, int], seed: int) -> list[int]:
        mask = select_entries({name: shape}, budget=64, seed=seed, tiles={name: tile})
        return mask.positions[name].tolist()

    same = choose("a", (64, 64), (4, 4), 0)
    assert same == choose("a", (64, 64), (4, 4), 0)
    for name, shape, seed in [("b", (64, 64), 0), ("a", (64, 8, 8), 0), ("a", (64, 64), 1)]:
        assert choose(name, shape, (4, 4), seed) != same
    assert choose("a", (64, 64), (16, 1), 0) != same


def test_each_tile_has_the_same_chance() -> None:
    shapes = {"a": (4, 3), "b": (2, 3), "c": (3,)}
    tiles = {"a": (1, 3), "b": (1, 3), "c": (3, 1)}
    num_seeds = 3500
    seen: Counter[tuple[str, int]] = Counter()
    for seed in range(num_seeds):
        mask = select_entries(shapes, budget=6, seed=seed, tiles=tiles)
        seen.update((n, int(p) // 3) for n, row in mask.positions.items() for p in row[::3])
    # 7 tiles, 2 of them chosen: binomial with mean 1000 and standard deviation 27.
    assert len(seen) == 7 and sum(seen.values()) == 2 * num_seeds
    assert all(abs(hits - 1000) < 4.5 * 27 for hits in seen.values())


def test_a_tile_that_is_too_large_is_the_whole_tensor() -> None:
    first = select_entries({"a": (6, 4)}, budget=7, seed=0, tiles={"a": (6, 4)})
    second = select_entries({"a": (6, 4)}, budget=7, seed=0, tiles={"a": (100, 9)})
    assert _to_lists(first) == _to_lists(second) == {"a": list(range(7))}


def test_large_tensors_take_wide_positions() -> None:
    shapes = {"narrow": (2**15, 2**16), "wide": (2**16, 2**16)}
    tiles = dict.fromkeys(shapes, (16, 16))
    mask = select_entries(shapes, budget=10_000, seed=0, tiles=tiles)
    assert mask.positions["narrow"].dtype == np.int32
    assert mask.positions["wide"].dtype == np.int64
    assert mask.positions["wide"][-1] > 2**31


def test_candidates_are_the_first_tiles_though_the_first_bound_is_too_low() -> None:
    """One tile of 1,000 among 1,000 single entries: its key decides how many others are needed."""
    grids = [cut_tensor("large", (1000,), (1000, 1)), cut_tensor("small", (1000,), (1, 1))]
    sizes = set()
    for seed in range(30):
        (large, small), keys = _draw_candidates(1500, grids, seed=seed)
        every = [key for key, *_ in _list_tiles("small", (1000,), (1, 1), seed)]
        most = max(int(row.max()) for row in keys)
        bound = next(key for key in [*sorted(every), 2**64] if key > most)
        assert small.tolist() == [place for place, key in enumerate(every) if key < bound]
        assert large.tolist() == [0] and small.size >= 500
        sizes.add(small.size)
    assert len(sizes) > 2


def test_equal_keys_are_taken_in_the_order_of_tiles() -> None:
    keys = np.repeat(np.array([5, 5, 2**64 - 1, 0], dtype=np.uint64), 20)
    taken = _take_in_order(27, keys=keys, sizes=np.ones(80, dtype=np.int64))
    assert np.flatnonzero(taken).tolist() == [*range(7), *range(60, 80)]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="'encoder.1' has 445 eligible entries but its share"):
        select_entries(
            _SHAPES, budget=1500, seed=0, share="even", groups=_GROUPS, tiles=_TILES["row"]
        )
    with pytest.raises(ConfigError, match="no tensor is eligible"):
        select_entries({}, budget=1, seed=0, tiles={})
    with pytest.raises(AssertionError, match="no tile for .*shared"):
        select_entries(_SHAPES, budget=1, seed=0, tiles={"encoder.0.q": (1, 1)})
    with pytest.raises(AssertionError, match="no tile"):
        select_entries(_SHAPES, budget=1, seed=0, tiles={})
    with pytest.raises(AssertionError, match="shared"):
        select_entries({"shared": (3, 3)}, budget=1, seed=0, tiles={"shared": (0, 3)})


def test_blocks_of_eleven_billion() -> None:
    """43 million tiles; the clock is generous, since tests share their machine."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(73):
        shapes |= {f"{layer}.attention.{site}": (4096, 4096) for site in "qkvo"}
        shapes |= {f"{layer}.wi": (10240, 4096), f"{layer}.wo": (4096, 10240)}
    tiles = dict.fromkeys(shapes, (16, 16))
    tracemalloc.start()
    start_seconds = time.perf_counter()
    mask = select_entries(shapes, budget=12_000_000, seed=1, tiles=tiles, unit="block")
    passed_seconds = time.perf_counter() - start_seconds
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{passed_seconds:.2f} s, {peak_bytes / 2**20:.0f} MiB")
    assert mask.count == 12_000_000 and len(mask.positions) == 438
    assert passed_seconds < 5
    assert peak_bytes < 2**28
