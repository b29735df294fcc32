"""APET's CONCAT: a prompt of any number of weights.

As few rows as hold the budget, N(0, 0.1) at the start; of the last one, as many entries train as
are left, at random places, and the others are zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scalepet.backbones import Site
from scalepet.masks import draw_distinct
from scalepet.pet.method import Method
from scalepet.pet.prompt import input_width, read_prompt
from scalepet.pet.start import add_parameter, normal

_STD = 0.1


class SparseRows(nn.Module):
    """``values`` (entries,) at ``positions`` of rows (length, width) of zeros."""

    values: Tensor
    positions: Tensor

    def __init__(
        self, start: Tensor, positions: Tensor, *, shape: tuple[int, int], like: Tensor
    ) -> None:
        super().__init__()
        self.shape = shape
        add_parameter(self, "values", start, like=like)
        self.register_buffer("positions", positions.to(like.device), persistent=False)

    def forward(self, batch_size: int) -> Tensor:
        zeros = self.values.new_zeros(math.prod(self.shape))
        rows = zeros.index_copy(0, self.positions, self.values).view(self.shape)
        return rows.expand(batch_size, -1, -1)


@dataclass(frozen=True)
class Concat(Method):
    """``concat.values`` (count,) on the model."""

    count: int
    width: int
    options: Mapping[str, Any]

    starts_as_backbone = False
    cannot_merge = "a plain model has no place for a prompt"

    @property
    def num_parameters(self) -> int:
        return self.count

    @property
    def num_positions(self) -> int:
        return -(-self.count // self.width)

    def attach(self, model: Any) -> None:
        length = self.num_positions
        seed = self.options["seed"]
        model.concat = SparseRows(
            normal("concat", (self.count,), std=_STD, seed=seed),
            self._positions(length),
            shape=(length, self.width),
            like=next(model.parameters()),
        )
        read_prompt(model, model.concat, length)

    def _positions(self, length: int) -> Tensor:
        num_whole = (length - 1) * self.width
        key = ("concat", str(self.count), str(self.options["seed"]))
        last = draw_distinct(self.count - num_whole, num_positions=self.width, key=key)
        return torch.cat([torch.arange(num_whole), num_whole + torch.from_numpy(last)])

    def record(self) -> dict[str, Any]:
        return {"options": dict(self.options), "count": self.count}


def plan_concat(sites: Sequence[Site], count: int, *, options: Mapping[str, Any]) -> Concat:
    """A prompt of exactly ``count`` weights."""
    return Concat(count, input_width(sites), options)
