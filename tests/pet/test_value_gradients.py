"""All ways to the gradient of a few entries, against the dense product in float64."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scalepet.pet import value_gradients
from scalepet.pet.value_gradients import (
    Cost,
    embedding_value_gradients,
    gather_value_gradients,
    linear_value_gradients,
    plan_of,
    sampled_value_gradients,
    tiled_value_gradients,
)

WAYS = [gather_value_gradients, sampled_value_gradients, tiled_value_gradients]

SHAPES = [(1, 1, 1), (7, 5, 3), (33, 64, 17), (128, 40, 200)]


def draw(num_tokens: int, num_rows: int, num_columns: int, num_entries: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(num_tokens * 1000 + num_entries)
    x = torch.randn(num_tokens, num_columns, generator=generator, dtype=torch.float64)
    grad_y = torch.randn(num_tokens, num_rows, generator=generator, dtype=torch.float64)
    order = torch.randperm(num_rows * num_columns, generator=generator)
    return x, grad_y, order[:num_entries].sort().values


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_all_ways_equal_the_dense_product(way, shape, share, index_dtype, monkeypatch):
    # Tiny temporaries, so that more than one chunk and tile is gone through.
    monkeypatch.setattr(value_gradients, "_GATHER_ELEMENTS", {"cpu": 256, "cuda": 256})
    monkeypatch.setattr(value_gradients, "_TILE_ELEMENTS", 64)
    num_tokens, num_rows, num_columns = shape
    num_entries = max(1, int(share * num_rows * num_columns))
    x, grad_y, positions = draw(num_tokens, num_rows, num_columns, num_entries)
    expected = (grad_y.t() @ x).flatten()[positions]
    found = way(x, grad_y, positions.to(index_dtype))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_sixteen_bits_are_summed_in_fp32(way):
    """4096 equal products: a bf16 sum would stop growing at 256 times the addend."""
    x = torch.ones(4096, 8, dtype=torch.bfloat16)
    grad_y = torch.ones(4096, 4, dtype=torch.bfloat16)
    found = way(x, grad_y, torch.arange(32))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((32,), 4096.0))


ROWS, COLUMNS = 192, 256


def make_masks() -> dict[str, tuple[Tensor, tuple[int, int]]]:
    """Name -> (sorted positions in a weight, the touched rows and columns that are picked)."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS)
    order = torch.randperm(ROWS * COLUMNS, generator=generator)
    rows, columns = torch.tensor([3, 70, 191]), torch.tensor([0, 9, 100, 255])
    picked = {
        "one entry": (order[:1], (1, 1)),
        "1 %": (order[: order.numel() // 100], (ROWS, COLUMNS)),
        "20 %": (order[: order.numel() // 5], (ROWS, COLUMNS)),
        "all": (order, (ROWS, COLUMNS)),
        "rows": (weight[rows], (3, COLUMNS)),
        "columns": (weight[:, columns], (ROWS, 4)),
        "blocks": (torch.stack([weight[8:16, 16:24], weight[80:88, 64:72]]), (16, 16)),
        "a row that is cut": (weight[5, :100], (1, 100)),
    }
    return {name: (p.flatten().sort().values.int(), part) for name, (p, part) in picked.items()}


MASKS = make_masks()


def draw_for(positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, gradients of the outputs, and what they give in float64."""
    x, grad_y, _ = draw(70, ROWS, COLUMNS, 1)
    x, grad_y = x.to(dtype), grad_y.to(dtype)
    return x, grad_y, (grad_y.double().t() @ x.double()).flatten()[positions.long()]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("way", ["tiled", "sparse"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_masks_of_any_form_equal_the_dense_product(mask, way, dtype, limit, monkeypatch):
    cost = Cost(entry=0 if way == "sparse" else 1e9, feature=0)
    monkeypatch.setattr(value_gradients, "COSTS", {("cpu", 16): cost, ("cpu", 32): cost})
    monkeypatch.setattr(value_gradients, "_TILE_ELEMENTS", 10 * COLUMNS)
    positions = MASKS[mask][0].clone()
    x, grad_y, expected = draw_for(positions, dtype)
    found = linear_value_gradients(x, grad_y, positions)
    assert found.dtype == torch.float32
    assert float((found.double() - expected).norm() / expected.norm()) < limit
    plan = plan_of(positions, (ROWS, COLUMNS), dtype)
    assert plan.is_tiled == (way == "tiled")
    if plan.columns is not None:
        kept = x[:, plan.columns]
        assert torch.equal(linear_value_gradients(kept, grad_y, positions, plan=plan), found)


@pytest.mark.parametrize("mask", MASKS)
def test_a_dense_product_is_of_the_touched_rows_and_columns_alone(mask, monkeypatch):
    monkeypatch.setattr(value_gradients, "COSTS", {("cpu", 32): Cost(entry=1e9, feature=0)})
    positions, (num_rows, num_columns) = MASKS[mask][0].clone(), MASKS[mask][1]
    x, grad_y, _ = draw_for(positions, torch.float32)
    with FlopCounterMode(display=False) as counter:
        linear_value_gradients(x, grad_y, positions)
    assert counter.get_total_flops() == 2 * len(x) * num_rows * num_columns


@pytest.mark.parametrize(("num_entries", "is_tiled"), [(99, False), (100, True)])
def test_what_costs_less_is_chosen(num_entries, is_tiled, monkeypatch):
    """100 x 100 multiply-adds for the dense product, 80 an entry and 10 a row and column."""
    monkeypatch.setattr(value_gradients, "COSTS", {("cpu", 32): Cost(entry=80, feature=10)})
    diagonal = torch.arange(100)[:num_entries] * 101  # touches nearly all rows and columns
    assert plan_of(diagonal, (100, 100), torch.float32).is_tiled == is_tiled


def test_a_step_reads_nothing_of_the_positions():
    """Tensors without contents: what depended on them would fail, and would wait for a GPU."""
    for positions, _ in MASKS.values():
        plan = plan_of(positions, (ROWS, COLUMNS), torch.float32)
        for is_tiled in (plan.is_tiled, False):
            on_meta = dataclasses.replace(
                plan,
                rows=None if plan.rows is None else plan.rows.to("meta"),
                columns=None if plan.columns is None else plan.columns.to("meta"),
                is_tiled=is_tiled,
            )
            x, grad_y = torch.empty(7, COLUMNS, device="meta"), torch.empty(7, ROWS, device="meta")
            found = linear_value_gradients(x, grad_y, positions.to("meta"), plan=on_meta)
            assert found.shape == positions.shape


def test_a_plan_is_made_once_and_again_when_the_positions_have_moved():
    positions = MASKS["rows"][0].clone()
    arguments = (positions, (ROWS, COLUMNS), torch.float32)
    plan = plan_of(*arguments)
    assert plan_of(*arguments) is plan
    positions.copy_(positions + COLUMNS * (positions < 190 * COLUMNS))
    assert plan.rows is not None and plan.rows.tolist() == [3, 70, 191]
    moved = plan_of(*arguments)
    assert moved.rows is not None and moved.rows.tolist() == [4, 71, 191]
    x, grad_y, expected = draw_for(positions, torch.float32)
    found = linear_value_gradients(x, grad_y, positions)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_plans_go_with_their_positions():
    gc.collect()
    before = len(value_gradients._plans)
    positions = MASKS["columns"][0].clone()
    plan_of(positions, (ROWS, COLUMNS), torch.float32)
    assert len(value_gradients._plans) == before + 1
    del positions
    gc.collect()
    assert len(value_gradients._plans) == before


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
