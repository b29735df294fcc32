"""Gradients of whole weights, as shards: what score-based and moving masks choose by.

A gradient is made some rows at a time while its layer is in backward, summed over ranks, and each
rank keeps its own slice in host memory. So no rank ever holds the gradient of a whole weight:
together the ranks hold 4 bytes an eligible entry.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from scalepet import dist
from scalepet.backbones import detach
from scalepet.masks import ScoreShard
from scalepet.pet.masked_forward import compute_masked, leave_sink, users_of

Score = Literal["magnitude", "gradient", "snip"]

_TILE_ELEMENTS = 2**22
"""Of a gradient at a time: 16 MiB in fp32."""


class GradientShards:
    """Sums of gradients of the tensors in ``shapes``; this rank's slice of each, fp32 on the CPU.

    Adding is a collective: all ranks add to the same tensors in the same order, as every backward
    of a sharded model is.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.slices = {name: slice_of(math.prod(shape)) for name, shape in shapes.items()}
        self.sums = {name: torch.zeros(len(part)) for name, part in self.slices.items()}

    def add(self, name: str, start: int, gradients: Tensor) -> None:
        """Add this rank's ``gradients`` of the entries from flat position ``start`` on."""
        total = dist.sum_over_ranks(gradients.float().flatten()).cpu()
        mine = self.slices[name]
        first, last = max(mine.start, start), min(mine.stop, start + len(total))
        if first < last:
            part = total[first - start : last - start]
            self.sums[name][first - mine.start : last - mine.start] += part

    def divide(self, scale: float) -> None:
        """Not a collective."""
        for total in self.sums.values():
            total.div_(scale)

    def are_finite(self) -> bool:
        """Whether all sums are, of all ranks. All ranks together."""
        num_bad = sum(not total.isfinite().all() for total in self.sums.values())
        return dist.sum_over_ranks(num_bad) == 0


@dataclass(frozen=True)
class _TensorSink:
    """Adds the gradient of one tensor to the shards, some rows at a time."""

    gradients: GradientShards
    name: str
    shape: tuple[int, ...]

    def add_linear(self, x: Tensor, grad_y: Tensor) -> None:
        rows, columns = self.shape
        for tile in _row_tiles(rows, columns):
            dense = grad_y[:, tile.start : tile.stop].t() @ x
            self.gradients.add(self.name, tile.start * columns, dense)

    def add_rows(self, ids: Tensor, grad_y: Tensor) -> None:
        rows, columns = self.shape
        for tile in _row_tiles(rows, columns):
            inside = (ids >= tile.start) & (ids < tile.stop)
            dense = grad_y.new_zeros(len(tile), columns, dtype=torch.float32)
            dense.index_add_(0, ids[inside] - tile.start, grad_y[inside].float())
            self.gradients.add(self.name, tile.start * columns, dense)

    def add_whole(self, grad: Tensor) -> None:
        self.gradients.add(self.name, 0, grad)


def slice_of(num_entries: int) -> range:
    """The flat positions that this rank keeps: an equal part, the last ones a smaller one."""
    size = -(-num_entries // dist.world_size())
    first = min(num_entries, size * dist.rank())
    return range(first, min(num_entries, first + size))


def _row_tiles(rows: int, columns: int) -> Iterator[range]:
    step = max(1, _TILE_ELEMENTS // columns)
    for start in range(0, rows, step):
        yield range(start, min(rows, start + step))


@contextlib.contextmanager
def collecting(
    values: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[GradientShards]:
    """The gradients of whole tensors, as every backward inside adds to them.

    Args:
        values: name of a masked tensor -> the values of its entries.
        shapes: its full shape, by name.
    """
    gradients = GradientShards(shapes)
    for name, shape in shapes.items():
        leave_sink(values[name], _TensorSink(gradients, name, shape))
    try:
        yield gradients
    finally:
        for name in shapes:
            leave_sink(values[name], None)


@contextlib.contextmanager
def watching(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[GradientShards]:
    """The same for a model that nothing is attached to: its tensors are masked by no entry at all.

    It computes what it did, and what is frozen stays frozen.
    """
    users, values = users_of(model), {}
    additions: list[tuple[nn.Module, str]] = []
    for name in shapes:
        parameter = model.get_parameter(name)
        # Plain attributes: DeepSpeed takes no notice of them. They ask for gradients, so that
        # backward reaches the lowest layer.
        values[name] = torch.zeros(0, device=parameter.device, requires_grad=True)
        positions = torch.zeros(0, dtype=torch.int64, device=parameter.device)
        for module, own_name in users[id(parameter)]:
            for what, tensor in (("values", values[name]), ("positions", positions)):
                vars(module)[f"{own_name}_{what}"] = tensor
                additions.append((module, f"{own_name}_{what}"))
            compute_masked(module)
    try:
        with collecting(values, shapes) as gradients:
            yield gradients
    finally:
        detach(model, additions)


def score_shards(
    score: Score,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    whole: Callable[[str], Tensor],
    gradients: GradientShards | None,
) -> dict[str, ScoreShard]:
    """This rank's slices of the scores of all entries.

    ``magnitude`` |w|; ``gradient`` |g|; ``snip`` |w g| (SNIP, arXiv 1810.02340), g the gradient of
    the loss.

    Args:
        whole: name -> the whole tensor; a collective where the backbone is sharded.
    """
    shards = {}
    for name, shape in shapes.items():
        part = slice_of(math.prod(shape))
        values = torch.ones(len(part)) if gradients is None else gradients.sums[name].abs()
        if score != "gradient":
            values = values * whole(name).flatten()[part.start : part.stop].float().cpu().abs()
        shards[name] = ScoreShard(part.start, values.numpy())
    return shards
