"""Random masks: exactly the number of entries asked for, the same on every rank and machine."""

from __future__ import annotations

import math
from collections.abc import Mapping

from scalepet.masks.budget import count_budget
from scalepet.masks.draw import draw_distinct
from scalepet.masks.mask import Indices, MaskRule, Share, SparseMask, index_dtype
from scalepet.masks.share import Portion, check_share, spread_over_groups, spread_uniform
from scalepet.masks.tiles import Grid, choose_tiles, cut_tensor


def select_entries(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    budget: str | int,
    seed: int,
    share: Share = "uniform",
    groups: Mapping[str, str] | None = None,
    tiles: Mapping[str, tuple[int, int]] | None = None,
    unit: str = "element",
) -> SparseMask:
    """A mask of exactly as many entries as the budget says.

    The positions inside a tensor are a function of (its name, its full shape, its number of
    entries, the seed), so tensors of one shape differ, and neither the order of ``shapes`` nor
    rank, shard or world size matters.

    With ``tiles`` a tensor is a matrix, its first dimension x the product of the others, cut into a
    grid of tiles, and whole tiles are chosen in random order. The last tile (of each group) is cut
    where the budget is met and keeps its first entries, row by row. How early a tile comes is a
    function of (tensor name, full shape, tile, its place in the grid, the seed).

    Args:
        shapes: the eligible tensors, name to FULL shape (not the empty one of a sharded parameter).
        budget: see count_budget; a percent is of all entries of ``shapes``.
        seed: any whole number; other seeds give independent masks.
        share: ``uniform`` over all eligible entries; ``even``, the same number for each group;
            ``proportional`` to the size of each group. Inside a group entries are uniform.
        groups: tensor name to its group (a layer, a site), which ``even`` and ``proportional``
            need; ``uniform`` does not look at it.
        tiles: tensor name to the (rows, columns) of its tiles, for every eligible tensor: a row is
            (1, C), a whole tensor (R, C). (1, 1) for all is the same as None.
        unit: what a tile is, for people to read; kept in the rule.

    Raises:
        ConfigError: shapes is empty, the budget is refused, the share is unknown, tensors have no
            group, or a group is smaller than its even share.
    """
    assert isinstance(seed, int) and not isinstance(seed, bool), seed
    sizes = {name: math.prod(shapes[name]) for name in sorted(shapes)}
    assert all(sizes.values()), [name for name, size in sizes.items() if not size]
    check_share(sizes, share=share, groups=groups)
    num_eligible = sum(sizes.values())
    count = count_budget(budget, num_eligible=num_eligible)
    portions = spread_over_groups(count, sizes, share=share, groups=groups, seed=seed)
    full_shapes = {name: tuple(map(int, shapes[name])) for name in sizes}
    positions = _choose(portions, full_shapes, tiles, seed=seed)
    return SparseMask(
        positions=positions,
        shapes={name: full_shapes[name] for name in positions},
        rule=MaskRule(budget=str(budget).strip(), count=count, share=share, seed=seed, unit=unit),
        num_eligible=num_eligible,
    )


def _choose(
    portions: list[Portion],
    shapes: Mapping[str, tuple[int, ...]],
    tiles: Mapping[str, tuple[int, int]] | None,
    *,
    seed: int,
) -> dict[str, Indices]:
    """The positions of each tensor that has any, in the order of names."""
    grids = {} if tiles is None else _cut_tensors(shapes, tiles)
    chosen: dict[str, Indices] = {}
    for portion in portions:
        if grids:
            of_group = [grids[name] for name in portion.sizes]
            chosen |= choose_tiles(portion.count, of_group, seed=seed)
        else:
            chosen |= _draw_entries(portion, shapes, seed=seed)
    return {name: chosen[name] for name in sorted(chosen)}


def _cut_tensors(
    shapes: Mapping[str, tuple[int, ...]], tiles: Mapping[str, tuple[int, int]]
) -> dict[str, Grid]:
    """Tensor name to its grid; empty where every tile is a single entry."""
    assert shapes.keys() <= tiles.keys(), f"no tile for {sorted(shapes.keys() - tiles.keys())}"
    grids = {name: cut_tensor(name, shape, tiles[name]) for name, shape in shapes.items()}
    return grids if any(grid.tile != (1, 1) for grid in grids.values()) else {}


def _draw_entries(
    portion: Portion, shapes: Mapping[str, tuple[int, ...]], *, seed: int
) -> dict[str, Indices]:
    counts = spread_uniform(portion.count, portion.sizes, seed=seed, group=portion.group)
    return {
        name: _draw_positions(name, shapes[name], count, seed=seed)
        for name, count in counts.items()
        if count
    }


def _draw_positions(name: str, shape: tuple[int, ...], count: int, *, seed: int) -> Indices:
    num_positions = math.prod(shape)
    key = ("positions", name, "x".join(map(str, shape)), str(count), str(seed))
    drawn = draw_distinct(count, num_positions=num_positions, key=key)
    return drawn.astype(index_dtype(num_positions), copy=False)
