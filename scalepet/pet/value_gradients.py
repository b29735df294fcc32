"""Gradients of a few entries of a weight, without the gradient of the weight.

For y = x W^T the entry (r, c) of W gets ``sum over tokens of grad_y[:, r] * x[:, c]``. Two ways
compute the same numbers:

- gather: take the columns of x and of grad_y that the entries name, multiply, add up: about
  ``tokens * entries`` work.
- tiled: form the dense product for a few rows of W at a time and pick the entries: ``tokens * rows
  * columns`` work, but at the speed of a matrix product.

Which one is faster depends on the density alone, see ``GATHER_BELOW_DENSITY``.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

GATHER_BELOW_DENSITY = {"cpu": 0.03, "cuda": 0.002}
"""Density (entries / size of the weight) below which the gather wins, by device type.

CPU: measured in fp32 on one core for weights of 384 x 384 to 2048 x 2048 and 512 to 4096 tokens:
    the gather takes 0.3 to 0.6
of the time at 1.6 %, and as long at 3 to 6 %. CUDA: an estimate from memory bandwidth against
tensor-core speed of an H100 (0.21 %), not measured.
"""

_GATHER_ELEMENTS = {"cpu": 2**18, "cuda": 2**24}
"""Size of the gather's temporaries.

On a CPU they stay in the cache, which makes it up to four times faster than 2**22.
"""

_TILE_ELEMENTS = 2**22
"""Size of the largest dense product that is formed at a time: 16 MiB in fp32."""


def linear_value_gradients(x: Tensor, grad_y: Tensor, positions: Tensor) -> Tensor:
    """Gradients of the entries at ``positions`` of the weight of a linear layer.

    Args:
        x: inputs, (tokens, columns).
        grad_y: gradient of the outputs, (tokens, rows), same dtype.
        positions: (entries,) sorted flat indices r * columns + c into the (rows, columns) weight.

    Returns:
        (entries,) fp32 for 16-bit inputs, else the dtype of ``x``. Sums are fp32 either way; the
        tiled way rounds its products to 16 bits once, as any dense gradient does.
    """
    if not len(positions):
        return x.new_empty(0, dtype=_sum_dtype(x))
    density = len(positions) / (x.shape[1] * grad_y.shape[1])
    below = GATHER_BELOW_DENSITY.get(x.device.type, GATHER_BELOW_DENSITY["cuda"])
    by = gather_value_gradients if density < below else tiled_value_gradients
    return by(x, grad_y, positions)


def gather_value_gradients(x: Tensor, grad_y: Tensor, positions: Tensor) -> Tensor:
    """As ``linear_value_gradients``, by gathering columns; wins for sparse masks."""
    num_columns = x.shape[1]
    dtype = _sum_dtype(x)
    # One row a feature, so that a gathered feature is one contiguous run over the tokens.
    features, grads = x.t().contiguous(), grad_y.t().contiguous()
    gradients = x.new_empty(len(positions), dtype=dtype)
    elements = _GATHER_ELEMENTS.get(x.device.type, _GATHER_ELEMENTS["cuda"])
    step = max(1, elements // max(1, len(x)))
    for start in range(0, len(positions), step):
        chunk = positions[start : start + step]
        products = grads.index_select(0, chunk // num_columns).to(dtype)
        products.mul_(features.index_select(0, chunk % num_columns))
        torch.sum(products, dim=1, out=gradients[start : start + step])
    return gradients


def tiled_value_gradients(x: Tensor, grad_y: Tensor, positions: Tensor) -> Tensor:
    """As ``linear_value_gradients``, by dense products of some rows at a time."""
    num_columns, num_rows = x.shape[1], grad_y.shape[1]
    gradients = x.new_empty(len(positions), dtype=_sum_dtype(x))
    rows_a_tile = max(1, _TILE_ELEMENTS // num_columns)
    first_rows = torch.arange(0, num_rows + rows_a_tile, rows_a_tile)
    bounds = torch.searchsorted(positions.cpu().long(), first_rows * num_columns).tolist()
    for tile, (start, end) in enumerate(pairwise(bounds)):
        if start == end:
            continue
        row = tile * rows_a_tile
        dense = grad_y[:, row : row + rows_a_tile].t() @ x
        picked = dense.view(-1).index_select(0, positions[start:end] - row * num_columns)
        gradients[start:end] = picked
    return gradients


def embedding_value_gradients(
    ids: Tensor, grad_y: Tensor, positions: Tensor, *, num_columns: int
) -> Tensor:
    """Gradients of the entries at ``positions`` of a look-up table.

    Args:
        ids: (tokens,) the rows that were looked up.
        grad_y: (tokens, columns) gradient of what was found.
        positions: (entries,) sorted flat indices into the table.

    Returns:
        (entries,) as in ``linear_value_gradients``. An entry whose row was not looked up gets zero.
    """
    found, slots = ids.unique(return_inverse=True)
    per_row = grad_y.new_zeros(len(found), num_columns, dtype=_sum_dtype(grad_y))
    per_row.index_add_(0, slots, grad_y.to(per_row.dtype))
    rows, columns = positions // num_columns, positions % num_columns
    slot = torch.searchsorted(found, rows.to(found.dtype)).clamp_(max=len(found) - 1)
    gradients = per_row[slot, columns]
    return gradients.masked_fill_(found[slot] != rows, 0)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
