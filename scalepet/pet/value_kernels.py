"""Gradients of a few entries of a weight on CUDA, in Triton. Imported only where Triton is.

A program takes some entries and walks over the tokens; its sums are fp32 (fp64 for fp64). The
entries are sorted by row, so those of a program share the rows of grad_y that it reads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ENTRIES, _TOKENS = 16, 128
"""Of a block: a guess for 16-bit inputs on an H100, not measured."""


@triton.jit
def _sum_products(  # type: ignore[no-untyped-def]  # Triton would look names of types up
    features,
    grads,
    positions,
    gradients,
    num_entries,
    num_tokens,
    num_columns,
    ENTRIES: tl.constexpr,
    TOKENS: tl.constexpr,
):
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    is_entry = entry < num_entries
    # 64 bits: features times tokens may be more than 2**31.
    position = tl.load(positions + entry, mask=is_entry, other=0).to(tl.int64)
    row_starts = (position // num_columns) * num_tokens
    column_starts = (position % num_columns) * num_tokens
    sum_type = gradients.dtype.element_ty
    sums = tl.zeros((ENTRIES, TOKENS), dtype=sum_type)
    for first in range(0, num_tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        mask = is_entry[:, None] & (token < num_tokens)[None, :]
        grad = tl.load(grads + row_starts[:, None] + token[None, :], mask=mask, other=0.0)
        feature = tl.load(features + column_starts[:, None] + token[None, :], mask=mask, other=0.0)
        sums += grad.to(sum_type) * feature.to(sum_type)
    tl.store(gradients + entry, tl.sum(sums, axis=1), mask=is_entry)


def kernel_value_gradients(x: Tensor, grad_y: Tensor, positions: Tensor) -> Tensor:
    """As ``linear_value_gradients``, by a dot product for each entry."""
    # One row a feature, so that a program reads contiguous runs over the tokens.
    features, grads = x.t().contiguous(), grad_y.t().contiguous()
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    gradients = x.new_empty(len(positions), dtype=dtype)
    grid = (triton.cdiv(len(positions), _ENTRIES),)
    _sum_products[grid](
        features,
        grads,
        positions,
        gradients,
        len(positions),
        len(x),
        x.shape[1],
        ENTRIES=_ENTRIES,
        TOKENS=_TOKENS,
    )
    return gradients
