"""Gradients of a few entries of a weight, without the gradient of the weight.

For y = x W^T the entry (r, c) of W gets ``sum over tokens of grad_y[:, r] * x[:, c]``. First, where
a mask touches few rows or columns of W, only those columns of grad_y and x are looked at: a mask of
whole rows, columns or blocks becomes a small dense problem, and so do a handful of single entries.
Then one of two ways gives the numbers, whichever costs less, see ``COSTS``:

- tiled: form the dense product for some rows at a time and pick the entries: a multiply-add for
  every touched row, touched column and token, at the speed of a matrix product.
- sparse: a dot product over the tokens for every entry. On a CPU torch's sampled product, on CUDA
  a Triton kernel (``value_kernels``), on anything else a gather of the columns in plain torch.

What depends on the positions alone is a ``Plan``, made once a mask: a step reads nothing back from
the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Cost:
    """Of the sparse way, in multiply-adds of a dense product.

    Attributes:
        entry: for every token of every entry.
        feature: for every token of every row and column, which are laid out anew for it.
    """

    entry: float
    feature: float


COSTS = {
    ("cpu", 32): Cost(entry=3.5, feature=100),
    ("cpu", 16): Cost(entry=15, feature=400),
    ("cuda", 32): Cost(entry=64, feature=53),
    ("cuda", 16): Cost(entry=476, feature=400),
}
"""By device type and bits (64 count as 32).

CPU: measured on one core with AVX-512 and AMX, weights of 512 x 512 to 4096 x 1024 and 512 to 4096
tokens; the ways take equally long when 16 to 28 % of the entries are trained in fp32 (a gather: at
2 to 6 %), and at 0 to 5 % in bf16, which that core multiplies four times as fast. CUDA: estimates
from the memory bandwidth of an H100 against its matrix products, not measured: 0.2 % in bf16.
"""

_GATHER_ELEMENTS = {"cpu": 2**18, "cuda": 2**24}
"""Size of the gather's temporaries.

On a CPU they stay in the cache, which makes it up to four times faster than 2**22.
"""

_TILE_ELEMENTS = 2**22
"""Size of the largest dense product that is formed at a time: 16 MiB in fp32."""

_SIXTEEN_BITS = (torch.bfloat16, torch.float16)

_USERS_OF_ONE_INPUT = 64
"""The most masked layers that read one tensor: keys and values of the 32 decoder layers of UL2 all
read the encoder's output. Copies of 1/64 of the columns cost no more than the tensor even then.

Bytes that autograd keeps for a T5 of 4 + 4 layers with 1/64 of the columns touched, measured: 25.6
to 19.4 MB with all linear layers masked; 10.69 to 10.57 MB for the keys and values of the cross
attention, where copies of 1/4 would cost 0.13 MB more than the one tensor that they share. What
somebody else keeps alive (the output of a ReLU without dropout) costs 1/64 more.
"""


@dataclass(frozen=True, eq=False)
class Plan:
    """How the gradients of one mask's entries are found.

    Attributes:
        shape: (rows, columns) of the weight.
        rows: the touched rows, sorted, where they are at most half of all; None otherwise.
        columns: the touched columns, likewise.
        is_tiled: whether the tiled way costs less.
        bounds: for the tiled way: where the entries of each tile begin, and where the last ends.
    """

    shape: tuple[int, int]
    rows: Tensor | None
    columns: Tensor | None
    is_tiled: bool
    bounds: tuple[int, ...]

    @property
    def kept_columns(self) -> Tensor | None:
        """The columns of the input that are worth a copy, so that the input may go; None: it stays.

        A copy must pay even if all layers that read the input make one.
        """
        few = self.columns is not None and len(self.columns) * _USERS_OF_ONE_INPUT <= self.shape[1]
        return self.columns if few else None


_plans = WeakTensorKeyDictionary()
"""Positions -> (what their plan is for, the plan). Masks that move change their positions in place,
which changes their version.
"""


def plan_of(positions: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Plan:
    """The plan for the entries at ``positions``, made anew only when they have changed.

    Args:
        positions: (entries,) sorted flat indices.
        shape: (rows, columns) of the weight.
        dtype: of the inputs.
    """
    key = (positions._version, shape, dtype)
    known, plan = _plans.get(positions, (None, None))
    if known != key:
        plan = _make_plan(positions, shape, _cost_of(positions.device.type, dtype))
        _plans[positions] = (key, plan)
    return plan


def _cost_of(device_type: str, dtype: torch.dtype) -> Cost:
    device = device_type if device_type == "cpu" else "cuda"
    return COSTS[device, 16 if dtype in _SIXTEEN_BITS else 32]


def _make_plan(positions: Tensor, shape: tuple[int, int], cost: Cost) -> Plan:
    rows = _touched(positions // shape[1], shape[0])
    columns = _touched(positions % shape[1], shape[1])
    num_rows = shape[0] if rows is None else len(rows)
    num_columns = shape[1] if columns is None else len(columns)
    sparse = cost.entry * len(positions) + cost.feature * (num_rows + num_columns)
    is_tiled = num_rows * num_columns <= sparse
    plan = Plan(shape, rows, columns, is_tiled, bounds=())
    if not is_tiled:
        return plan
    bounds = _tile_bounds(_positions_in_part(positions, plan), num_rows, num_columns)
    return Plan(shape, rows, columns, is_tiled, bounds)


def _touched(indices: Tensor, size: int) -> Tensor | None:
    """Those of ``size`` that occur, if they are so few that picking them pays."""
    found = indices.unique()
    return found if 2 * len(found) <= size else None


def linear_value_gradients(
    x: Tensor, grad_y: Tensor, positions: Tensor, *, plan: Plan | None = None
) -> Tensor:
    """Gradients of the entries at ``positions`` of the weight of a linear layer.

    Args:
        x: inputs, (tokens, columns), or (tokens, kept columns) of the plan.
        grad_y: gradient of the outputs, (tokens, rows), same dtype.
        positions: (entries,) sorted flat indices r * columns + c into the (rows, columns) weight.
        plan: of these positions; looked up if it is not given.

    Returns:
        (entries,) fp32 for 16-bit inputs, else the dtype of ``x``. Sums are fp32 either way; the
        tiled way rounds its products to 16 bits once, as any dense gradient does.
    """
    plan = plan or plan_of(positions, (grad_y.shape[1], x.shape[1]), x.dtype)
    if not len(positions):
        return x.new_empty(0, dtype=_sum_dtype(x))
    if plan.columns is not None and x.shape[1] == plan.shape[1]:
        x = x.index_select(1, plan.columns)
    if plan.rows is not None:
        grad_y = grad_y.index_select(1, plan.rows)
    positions = _positions_in_part(positions, plan)
    if plan.is_tiled:
        return tiled_value_gradients(x, grad_y, positions, bounds=plan.bounds)
    return _sparse_way(x.device, x.dtype)(x, grad_y, positions)


def _positions_in_part(positions: Tensor, plan: Plan) -> Tensor:
    """Flat indices into the touched rows and columns alone; sorted as before."""
    if plan.rows is None and plan.columns is None:
        return positions
    num_columns = plan.shape[1]
    rows, columns = positions // num_columns, positions % num_columns
    if plan.rows is not None:
        rows = torch.searchsorted(plan.rows, rows)
    if plan.columns is not None:
        columns = torch.searchsorted(plan.columns, columns)
        num_columns = len(plan.columns)
    return rows * num_columns + columns


def _sparse_way(device: torch.device, dtype: torch.dtype) -> Way:
    if device.type == "cpu":
        return sampled_value_gradients
    if device.type != "cuda" or why_no_kernel(device, dtype):
        return gather_value_gradients
    from scalepet.pet.value_kernels import kernel_value_gradients

    return kernel_value_gradients


@cache
def why_no_kernel(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this machine cannot run the Triton kernel that CUDA devices want; None where it can, or
    where the device wants none. Not a collective.

    The kernel is launched once to see: Triton compiles for the device, and its launcher with the
    machine's C compiler and Python's headers, at the first launch of a process. It waits for the
    device, so a run asks before its first step, not in a backward.
    """
    if device.type != "cuda":
        return None
    ones = torch.ones(16, 16, device=device, dtype=dtype)
    try:
        from scalepet.pet.value_kernels import kernel_value_gradients  # Triton: for Linux alone

        positions = torch.arange(16, device=device, dtype=torch.int32)
        found = kernel_value_gradients(ones, ones, positions).tolist()
    except Exception as error:  # of Triton, the compiler, the loader or the driver
        first_line = next(iter(str(error).splitlines()), "")
        return f"{type(error).__name__}: {first_line}"
    return None if found == [16.0] * 16 else f"16 sums of 16 ones are {found}"


def sampled_value_gradients(x: Tensor, grad_y: Tensor, positions: Tensor) -> Tensor:
    """As ``linear_value_gradients``, by a dot product for each entry; on a CPU."""
    num_rows, num_columns = grad_y.shape[1], x.shape[1]
    dtype = _sum_dtype(x)
    starts = torch.arange(num_rows + 1, dtype=torch.int64) * num_columns
    row_starts = torch.searchsorted(positions.long(), starts).int()
    with warnings.catch_warnings():  # torch calls its sparse tensors a beta
        warnings.simplefilter("ignore", UserWarning)
        pattern = torch.sparse_csr_tensor(
            row_starts,
            (positions % num_columns).int(),
            torch.zeros(len(positions), dtype=dtype),
            size=(num_rows, num_columns),
            check_invariants=False,
        )
    # One row a feature, so that each dot product runs over contiguous numbers.
    features, grads = (t.t().to(dtype).contiguous() for t in (x, grad_y))
    return torch.sparse.sampled_addmm(pattern, grads, features.t(), beta=0.0).values()


def gather_value_gradients(x: Tensor, grad_y: Tensor, positions: Tensor) -> Tensor:
    """As ``linear_value_gradients``, by gathering columns. On any device."""
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


def tiled_value_gradients(
    x: Tensor, grad_y: Tensor, positions: Tensor, *, bounds: Sequence[int] | None = None
) -> Tensor:
    """As ``linear_value_gradients``, by dense products of some rows at a time.

    Args:
        bounds: of the plan; without them the positions are read back from the device.
    """
    num_columns, num_rows = x.shape[1], grad_y.shape[1]
    if bounds is None:
        bounds = _tile_bounds(positions, num_rows, num_columns)
    gradients = x.new_empty(len(positions), dtype=_sum_dtype(x))
    rows_a_tile = _rows_a_tile(num_columns)
    for tile, (start, end) in enumerate(pairwise(bounds)):
        if start == end:
            continue
        row = tile * rows_a_tile
        dense = _dense_gradient(x, grad_y[:, row : row + rows_a_tile])
        picked = dense.view(-1).index_select(0, positions[start:end] - row * num_columns)
        gradients[start:end] = picked
    return gradients


def _dense_gradient(x: Tensor, grad_y: Tensor) -> Tensor:
    if x.shape[1] * 8 > grad_y.shape[1]:
        return grad_y.t() @ x
    # For 8 of 1024 columns this order is up to sixteen times faster on a CPU.
    return (x.t() @ grad_y).t().contiguous()


def _rows_a_tile(num_columns: int) -> int:
    return max(1, _TILE_ELEMENTS // max(1, num_columns))


def _tile_bounds(positions: Tensor, num_rows: int, num_columns: int) -> tuple[int, ...]:
    rows_a_tile = _rows_a_tile(num_columns)
    first_rows = torch.arange(0, num_rows, rows_a_tile, device=positions.device)
    bounds = torch.searchsorted(positions.long(), first_rows * num_columns).tolist()
    return (*bounds, len(positions))


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
    return torch.float32 if x.dtype in _SIXTEEN_BITS else x.dtype
