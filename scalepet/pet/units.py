"""Structured masks: what a row, a column, a block or an attention head is in each tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from scalepet.backbones import Site
from scalepet.errors import ConfigError

Unit = Literal["element", "row", "column", "block", "head", "tensor"]


def tiles_of(sites: Sequence[Site], *, unit: Unit, block: int) -> dict[str, tuple[int, int]]:
    """Tensor name -> (rows, columns) of one unit in the tensor, seen as first side x all the rest.

    Args:
        block: side of the square of a ``block``.

    Raises:
        ConfigError: heads are asked for of tensors that have none.
    """
    without_heads = [site.name for site in sites if unit == "head" and site.head_width is None]
    if without_heads:
        raise ConfigError(
            f"unit: head, but {len(without_heads)} of {len(sites)} eligible tensors have no heads,"
            f" such as {without_heads[0]}; allowed: parts: [q, k, v, o]"
        )
    return {site.name: _tile(site, unit, block) for site in sites}


def _tile(site: Site, unit: Unit, block: int) -> tuple[int, int]:
    rows = site.shape[0]
    columns = math.prod(site.shape[1:])
    if unit == "head":
        width = site.head_width
        assert width is not None
        # An ``o`` reads the heads: there they are columns.
        return (rows, width) if site.part == "o" else (width, columns)
    return {
        "element": (1, 1),
        "row": (1, columns),
        "column": (rows, 1),
        "block": (block, block),
        "tensor": (rows, columns),
    }[unit]
