"""Random masks: exactly the number of entries asked for, the same on every rank and machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

from scalepet.errors import ConfigError
from scalepet.masks.budget import count_budget
from scalepet.masks.draw import draw_distinct
from scalepet.masks.mask import Indices, MaskRule, Share, SparseMask, index_dtype
from scalepet.masks.share import spread_even, spread_proportional, spread_uniform

_NUM_NAMES_SHOWN = 5


def select_entries(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    budget: str | int,
    seed: int,
    share: Share = "uniform",
    groups: Mapping[str, str] | None = None,
) -> SparseMask:
    """A mask of exactly as many entries as the budget says.

    The positions inside a tensor are a function of (its name, its full shape, its number of
    entries, the seed), so tensors of one shape differ, and neither the order of ``shapes`` nor
    rank, shard or world size matters.

    Args:
        shapes: the eligible tensors, name to FULL shape (not the empty one of a sharded parameter).
        budget: see count_budget; a percent is of all entries of ``shapes``.
        seed: any whole number; other seeds give independent masks.
        share: ``uniform`` over all eligible entries; ``even``, the same number for each group;
            ``proportional`` to the size of each group. Inside a group entries are uniform.
        groups: tensor name to its group (a layer, a site), which ``even`` and ``proportional``
            need; ``uniform`` does not look at it.

    Raises:
        ConfigError: shapes is empty, the budget is refused, the share is unknown, tensors have no
            group, or a group is smaller than its even share.
    """
    assert isinstance(seed, int) and not isinstance(seed, bool), seed
    sizes = {name: math.prod(shapes[name]) for name in sorted(shapes)}
    assert all(sizes.values()), [name for name, size in sizes.items() if not size]
    _check_request(shapes, share=share, groups=groups)
    num_eligible = sum(sizes.values())
    count = count_budget(budget, num_eligible=num_eligible)
    counts = _count_per_tensor(count, sizes, seed=seed, share=share, groups=groups or {})
    chosen = {name: tuple(map(int, shapes[name])) for name in sizes if counts[name]}
    return SparseMask(
        positions={n: _draw_positions(n, chosen[n], counts[n], seed=seed) for n in chosen},
        shapes=chosen,
        rule=MaskRule(budget=str(budget).strip(), count=count, share=share, seed=seed),
        num_eligible=num_eligible,
    )


def _check_request(
    shapes: Mapping[str, tuple[int, ...]], *, share: Share, groups: Mapping[str, str] | None
) -> None:
    faults = [] if shapes else ["mask: no tensor is eligible; allowed: at least one"]
    allowed = get_args(Share)
    if share not in allowed:
        faults.append(f"mask share: {share!r} is unknown; allowed: {', '.join(allowed)}")
    elif share != "uniform":
        alone = [name for name in sorted(shapes) if name not in (groups or {})]
        if alone:
            more = f" and {len(alone) - _NUM_NAMES_SHOWN} more" * (len(alone) > _NUM_NAMES_SHOWN)
            faults.append(
                f"mask share: {share!r} needs a group for each eligible tensor; {len(alone)} of "
                f"{len(shapes)} have none: {', '.join(alone[:_NUM_NAMES_SHOWN])}{more}"
            )
    if faults:
        raise ConfigError(faults)


def _count_per_tensor(
    count: int, sizes: Mapping[str, int], *, seed: int, share: Share, groups: Mapping[str, str]
) -> dict[str, int]:
    """Tensor name to its number of entries, 0 included."""
    if share == "uniform":
        return spread_uniform(count, sizes, seed=seed, group="")
    members: dict[str, dict[str, int]] = {}
    for name, size in sizes.items():
        members.setdefault(groups[name], {})[name] = size
    spread = spread_even if share == "even" else spread_proportional
    group_sizes = {group: sum(tensors.values()) for group, tensors in members.items()}
    group_counts = spread(count, group_sizes, seed=seed)
    counts: dict[str, int] = {}
    for group, tensors in members.items():
        counts |= spread_uniform(group_counts[group], tensors, seed=seed, group=group)
    return counts


def _draw_positions(name: str, shape: tuple[int, ...], count: int, *, seed: int) -> Indices:
    num_positions = math.prod(shape)
    key = ("positions", name, "x".join(map(str, shape)), str(count), str(seed))
    drawn = draw_distinct(count, num_positions=num_positions, key=key)
    return drawn.astype(index_dtype(num_positions), copy=False)
