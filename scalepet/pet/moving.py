"""Masks that move while they are trained: the least used entries go, the most wanted ones come.

Source: drop and regrow as in SpIEL, "Scaling Sparse Fine-Tuning to Large Language Models" (arXiv
2401.16405): what goes has the smallest change, what comes has the largest gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scalepet import dist
from scalepet.masks import Indices


@dataclass(frozen=True)
class Move:
    """New positions of one tensor's entries.

    Attributes:
        positions: (entries,) sorted flat indices, as many as before.
        came_from: (entries,) where each entry stood among the old ones; -1 for a new one.
    """

    positions: Indices
    came_from: Tensor

    def carried(self, old: Tensor) -> Tensor:
        """Values (or moments) of the old entries in the new order; zero where an entry is new."""
        carried = old[self.came_from.clamp(min=0)]
        return carried.masked_fill(self.came_from < 0, 0)


def move_entries(
    positions: Indices, values: Tensor, gradients: Tensor, *, start: int, num_moved: int
) -> Move:
    """Drop the ``num_moved`` entries with the smallest values and take those with the largest
    gradients instead. A collective.

    Args:
        positions: (entries,) sorted flat indices, the same on every rank.
        values: (entries,) their values, the same on every rank.
        gradients: this rank's slice of the gradient of the whole tensor.
        start: the flat position where the slice begins.
        num_moved: at most the entries that are not in the mask.

    Values that are alike to two or three digits (in bf16) are ties. Ties go to the lower position,
    so the result is the same at any world size.
    """
    old = torch.from_numpy(positions).long()
    # After Adam's first step all values are one rate, give or take the rounding of so many ranks.
    sizes = values.abs().bfloat16()
    kept = sizes.argsort(stable=True)[num_moved:].sort().values
    new = _best_outside(old, gradients.abs(), start=start, count=num_moved)
    together = torch.cat([old[kept], new])
    came_from = torch.cat([kept, torch.full_like(new, -1)])
    order = together.argsort()
    return Move(together[order].numpy(), came_from[order])


def _best_outside(positions: Tensor, scores: Tensor, *, start: int, count: int) -> Tensor:
    """Flat positions of the ``count`` largest scores of all ranks that are not in the mask."""
    scores = scores.clone()
    inside = positions[(positions >= start) & (positions < start + len(scores))]
    scores[inside - start] = -1
    # A stable order by score keeps equal ones in the order of their positions.
    local = scores.argsort(descending=True, stable=True)[:count]
    found = dist.all_gather_objects((local + start, scores[local]))
    where, how_much = (torch.cat(parts) for parts in zip(*found, strict=True))
    best = how_much.argsort(descending=True, stable=True)[:count]
    return where[best]
