"""Structured masks: tensors as matrices of tiles, and whole tiles in random order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalepet.masks.draw import draw_small_words
from scalepet.masks.mask import Indices, index_dtype

_LARGEST_KEY = 2**64 - 1


@dataclass(frozen=True)
class Grid:
    """A tensor seen as a matrix and cut into tiles, which are numbered row by row.

    Attributes:
        name: of the tensor.
        shape: of the whole tensor.
        matrix: rows and columns of the matrix.
        tile: rows and columns of a tile, at most those of the matrix; tiles at the lower and right
            edges may be smaller.
    """

    name: str
    shape: tuple[int, ...]
    matrix: tuple[int, int]
    tile: tuple[int, int]

    @property
    def num_tiles_across(self) -> int:
        """Tiles side by side."""
        return -(-self.matrix[1] // self.tile[1])

    @property
    def num_tiles(self) -> int:
        """All tiles."""
        return -(-self.matrix[0] // self.tile[0]) * self.num_tiles_across


def cut_tensor(name: str, shape: tuple[int, ...], tile: tuple[int, int]) -> Grid:
    """The grid of a tensor: first dimension x product of the others, a vector of n is n x 1.

    A tile that is larger than the matrix counts as one of the matrix's own size.
    """
    assert len(tile) == 2 and min(tile) >= 1, (name, tile)
    matrix = (math.prod(shape[:1]), math.prod(shape[1:]))
    return Grid(name, shape, matrix, (min(tile[0], matrix[0]), min(tile[1], matrix[1])))


def choose_tiles(count: int, grids: Sequence[Grid], *, seed: int) -> dict[str, Indices]:
    """Exactly count entries: whole tiles of all grids in random order, the last one cut.

    Each tile has a 64-bit key, a word of a stream that (name, shape, tile, seed) name; tiles come
    in the order of (key, name, number). Memory is that of the tiles and entries chosen.

    Args:
        count: from 0 to the entries of all grids.
        grids: in any order.
        seed: the mask seed.

    Returns:
        Tensor name to sorted flat positions, without the tensors that get none.
    """
    if not count:
        return {}
    grids = sorted(grids, key=lambda grid: grid.name)
    candidates, keys = _draw_candidates(count, grids, seed=seed)
    sizes = [_measure(grid, tiles) for grid, tiles in zip(grids, candidates, strict=True)]
    taken = _take_in_order(count, keys=np.concatenate(keys), sizes=np.concatenate(sizes))
    ends = np.cumsum([tiles.size for tiles in candidates])
    chosen: dict[str, Indices] = {}
    for grid, tiles, counts in zip(grids, candidates, np.split(taken, ends[:-1]), strict=True):
        if counts.any():
            has_entries = counts > 0
            chosen[grid.name] = _list_entries(grid, tiles[has_entries], counts[has_entries])
    return chosen


def _draw_candidates(
    count: int, grids: Sequence[Grid], *, seed: int
) -> tuple[list[npt.NDArray[np.int64]], list[npt.NDArray[np.uint64]]]:
    """For each grid the tiles with the smallest keys, and these keys; together at least count.

    Keys are uniform, so nearly all tiles can be left out by their keys alone. Which bound they are
    held to changes the memory and the time but not which tiles come first.
    """
    num_entries = sum(math.prod(grid.matrix) for grid in grids)
    bound = min(_LARGEST_KEY, _LARGEST_KEY * count * 5 // (num_entries * 4))
    while True:
        drawn = [_draw_small_keys(grid, bound, seed=seed) for grid in grids]
        found = sum(
            int(_measure(grid, tiles).sum()) for grid, (tiles, _) in zip(grids, drawn, strict=True)
        )
        if found >= count:
            return [tiles for tiles, _ in drawn], [keys for _, keys in drawn]
        bound = min(_LARGEST_KEY, bound * 2)


def _draw_small_keys(
    grid: Grid, bound: int, *, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """The tiles of a grid whose keys are at most bound, and these keys."""
    shape, tile = ("x".join(map(str, numbers)) for numbers in (grid.shape, grid.tile))
    key = ("tiles", grid.name, shape, tile, str(seed))
    return draw_small_words(grid.num_tiles, most=bound, key=key)


def _take_in_order(
    count: int, *, keys: npt.NDArray[np.uint64], sizes: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """How many entries each tile gives when tiles are taken by rising key until count is met."""
    order = np.argsort(keys, kind="stable")
    ends = np.cumsum(sizes[order])
    last = int(np.searchsorted(ends, count))
    taken = np.zeros_like(sizes)
    whole = order[: last + 1]
    taken[whole] = sizes[whole]
    taken[order[last]] -= ends[last] - count
    return taken


def _measure(grid: Grid, tiles: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The entries of each tile."""
    _, _, heights, widths = _locate(grid, tiles)
    sizes: npt.NDArray[np.int64] = heights * widths
    return sizes


def _locate(grid: Grid, tiles: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
    """Top row, left column, height and width of each tile."""
    down, across = np.divmod(tiles, grid.num_tiles_across)
    top, left = down * grid.tile[0], across * grid.tile[1]
    heights = np.minimum(grid.tile[0], grid.matrix[0] - top)
    return top, left, heights, np.minimum(grid.tile[1], grid.matrix[1] - left)


def _list_entries(
    grid: Grid, tiles: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> Indices:
    """The sorted flat positions of the first entries of each tile, at least one of each.

    A tile is a run of positions for each of its rows. Runs do not meet, so sorting the runs sorts
    the positions.
    """
    top, left, _, widths = _locate(grid, tiles)
    num_runs = -(-counts // widths)
    tile_of_run, row = _count_up(num_runs)
    starts = (top[tile_of_run] + row) * grid.matrix[1] + left[tile_of_run]
    lengths = np.minimum(widths[tile_of_run], counts[tile_of_run] - row * widths[tile_of_run])
    order = np.argsort(starts)
    run_of_entry, column = _count_up(lengths[order])
    column += starts[order][run_of_entry]
    return column.astype(index_dtype(math.prod(grid.matrix)), copy=False)


def _count_up(
    lengths: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each length its own place that many times, and 0, 1, 2, ... below it."""
    places = np.repeat(np.arange(lengths.size), lengths)
    starts = np.cumsum(lengths) - lengths
    return places, np.arange(places.size) - starts[places]
