"""How a number of entries is spread over groups of tensors and over the tensors of a group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np

from scalepet.errors import ConfigError
from scalepet.masks.digest import digest_parts
from scalepet.masks.draw import draw_distinct
from scalepet.masks.mask import Share

_NUM_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Portion:
    """What one group of tensors gets of a budget; ``uniform`` makes one group of all, named "".

    Attributes:
        group: its name.
        count: its entries of the budget, maybe 0.
        sizes: tensor name to its eligible entries.
    """

    group: str
    count: int
    sizes: dict[str, int]


def check_share(names: Iterable[str], *, share: Share, groups: Mapping[str, str] | None) -> None:
    """Returns when these eligible tensors can be shared out.

    Raises:
        ConfigError: there is no tensor, the share is unknown, or tensors have no group though
            ``even`` and ``proportional`` need one.
    """
    names = sorted(names)
    faults = [] if names else ["mask: no tensor is eligible; allowed: at least one"]
    allowed = get_args(Share)
    if share not in allowed:
        faults.append(f"mask share: {share!r} is unknown; allowed: {', '.join(allowed)}")
    elif share != "uniform":
        alone = [name for name in names if name not in (groups or {})]
        if alone:
            more = f" and {len(alone) - _NUM_NAMES_SHOWN} more" * (len(alone) > _NUM_NAMES_SHOWN)
            faults.append(
                f"mask share: {share!r} needs a group for each eligible tensor; {len(alone)} of "
                f"{len(names)} have none: {', '.join(alone[:_NUM_NAMES_SHOWN])}{more}"
            )
    if faults:
        raise ConfigError(faults)


def spread_over_groups(
    count: int,
    sizes: Mapping[str, int],
    *,
    share: Share,
    groups: Mapping[str, str] | None,
    seed: int,
) -> list[Portion]:
    """How many entries each group of tensors gets, 0 included, in the order of ``sizes``.

    Args:
        count: entries to spread, at most the sum of sizes.
        sizes: tensor name to its number of entries.
        share: ``uniform`` makes one group of all tensors; the others take ``groups``.
        groups: tensor name to its group; see check_share.
        seed: the mask seed, for what does not divide.

    Raises:
        ConfigError: a group is smaller than its even share.
    """
    if share == "uniform":
        return [Portion("", count, dict(sizes))]
    members: dict[str, dict[str, int]] = {}
    for name, size in sizes.items():
        members.setdefault((groups or {})[name], {})[name] = size
    spread = spread_even if share == "even" else spread_proportional
    group_sizes = {group: sum(tensors.values()) for group, tensors in members.items()}
    counts = spread(count, group_sizes, seed=seed)
    return [Portion(group, counts[group], tensors) for group, tensors in members.items()]


def spread_even(count: int, sizes: Mapping[str, int], *, seed: int) -> dict[str, int]:
    """The same number of entries for each group, 0 or 1 more where count does not divide.

    The rest goes to groups that have room, in an order shuffled by the seed.

    Args:
        count: entries to spread.
        sizes: group name to its eligible entries.
        seed: the mask seed.

    Raises:
        ConfigError: groups are smaller than their share; names each with both numbers.
    """
    shares = _largest_remainder(count, sizes, weights=dict.fromkeys(sizes, 1), seed=seed)
    small = [group for group in sizes if shares[group] > sizes[group]]
    if small:
        raise ConfigError([_describe_small(group, count, shares, sizes) for group in small])
    return shares


def spread_proportional(count: int, sizes: Mapping[str, int], *, seed: int) -> dict[str, int]:
    """Entries for each group by its size: count * size / total, whole by largest remainder.

    Equal remainders are served in an order shuffled by the seed. Arguments as in spread_even.
    """
    assert count <= sum(sizes.values())
    return _largest_remainder(count, sizes, weights=sizes, seed=seed)


def spread_uniform(
    count: int, sizes: Mapping[str, int], *, seed: int, group: str
) -> dict[str, int]:
    """How many entries each tensor gets when they are uniform over all tensors of a group.

    This is the multivariate hypergeometric law, drawn as it is defined: distinct positions of the
    tensors laid end to end in the order of their names. numpy's own draw stops at 1e9 positions and
    its stream may change.

    Args:
        count: entries to spread, at most the sum of sizes.
        sizes: tensor name to its number of entries.
        seed: the mask seed.
        group: keeps the draws of several groups independent.

    Returns:
        Tensor name to its number of entries, 0 included. Needs about 17 bytes of memory an entry
        while it runs.
    """
    total = sum(sizes.values())
    if 2 * count > total:
        # The entries left out follow the same law and are fewer.
        left_out = spread_uniform(total - count, sizes, seed=seed, group=group)
        return {name: sizes[name] - left_out[name] for name in sizes}
    names = sorted(sizes)
    drawn = draw_distinct(count, num_positions=total, key=("counts", group, str(seed)))
    ends = np.cumsum([sizes[name] for name in names], dtype=np.int64)
    counts = np.diff(np.searchsorted(drawn, ends), prepend=0)
    return dict(zip(names, counts.tolist(), strict=True))


def _largest_remainder(
    count: int, sizes: Mapping[str, int], *, weights: Mapping[str, int], seed: int
) -> dict[str, int]:
    """Whole shares of count by weight (Hamilton's method), in exact integer arithmetic."""
    total = sum(weights.values())
    shares = {group: count * weight // total for group, weight in weights.items()}

    def rank(group: str) -> tuple[bool, int, bytes]:
        is_full = shares[group] >= sizes[group]
        shuffled = digest_parts(("remainder", group, str(seed)))
        return is_full, -(count * weights[group] % total), shuffled

    for group in sorted(shares, key=rank)[: count - sum(shares.values())]:
        shares[group] += 1
    return shares


def _describe_small(
    group: str, count: int, shares: Mapping[str, int], sizes: Mapping[str, int]
) -> str:
    smallest = min(sizes.values())
    most = smallest * len(sizes) + sum(size > smallest for size in sizes.values())
    return (
        f"mask share 'even': group {group!r} has {sizes[group]:,} eligible entries but its share "
        f"of {count:,} is {shares[group]:,}; allowed: a budget of at most {most:,}, or share "
        "'proportional' or 'uniform'"
    )
