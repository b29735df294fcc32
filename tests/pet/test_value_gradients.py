"""Both ways to the gradient of a few entries, against the dense product in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scalepet.pet import value_gradients
from scalepet.pet.value_gradients import (
    embedding_value_gradients,
    gather_value_gradients,
    linear_value_gradients,
    tiled_value_gradients,
)

SHAPES = [(1, 1, 1), (7, 5, 3), (33, 64, 17), (128, 40, 200)]


def draw(num_tokens: int, num_rows: int, num_columns: int, num_entries: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(num_tokens * 1000 + num_entries)
    x = torch.randn(num_tokens, num_columns, generator=generator, dtype=torch.float64)
    grad_y = torch.randn(num_tokens, num_rows, generator=generator, dtype=torch.float64)
    order = torch.randperm(num_rows * num_columns, generator=generator)
    return x, grad_y, order[:num_entries].sort().values


@pytest.mark.parametrize("way", [gather_value_gradients, tiled_value_gradients])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_both_ways_equal_the_dense_product(way, shape, share, index_dtype, monkeypatch):
    # Tiny temporaries, so that more than one chunk and tile is gone through.
    monkeypatch.setattr(value_gradients, "_GATHER_ELEMENTS", {"cpu": 256, "cuda": 256})
    monkeypatch.setattr(value_gradients, "_TILE_ELEMENTS", 64)
    num_tokens, num_rows, num_columns = shape
    num_entries = max(1, int(share * num_rows * num_columns))
    x, grad_y, positions = draw(num_tokens, num_rows, num_columns, num_entries)
    expected = (grad_y.t() @ x).flatten()[positions]
    found = way(x, grad_y, positions.to(index_dtype))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", [gather_value_gradients, tiled_value_gradients])
def test_sixteen_bits_are_summed_in_fp32(way):
    """4096 equal products: a bf16 sum would stop growing at 256 times the addend."""
    x = torch.ones(4096, 8, dtype=torch.bfloat16)
    grad_y = torch.ones(4096, 4, dtype=torch.bfloat16)
    found = way(x, grad_y, torch.arange(32))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((32,), 4096.0))


@pytest.mark.parametrize("num_entries", [1, 13, 200])
def test_embedding_equals_autograd(num_entries):
    generator = torch.Generator().manual_seed(num_entries)
    table = torch.randn(20, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 15, (30,), generator=generator)  # rows 15 to 19 are never looked up
    grad_y = torch.randn(30, 10, generator=generator, dtype=torch.float64)
    positions = torch.randperm(200, generator=generator)[:num_entries].sort().values
    torch.nn.functional.embedding(ids, table).backward(grad_y)
    assert table.grad is not None
    found = embedding_value_gradients(ids, grad_y, positions.int(), num_columns=10)
    torch.testing.assert_close(found, table.grad.flatten()[positions])
