"""Drop and regrow, against the same in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scalepet import dist
from scalepet.backbones import Site
from scalepet.pet import largest_move, move_entries, plan_apet


def move(num_moved: int, **changes: torch.Tensor):
    given = {
        "positions": np.array([1, 4, 6, 9], dtype=np.int32),
        "values": torch.tensor([0.5, -0.1, 0.3, -2.0]),
        "gradients": torch.tensor([0.1, 9.0, -5.0, 0.2, 9.0, 0.3, 9.0, 5.0, 0.4, 9.0]),
        **changes,
    }
    return move_entries(**given, start=0, num_moved=num_moved)


def test_the_smallest_values_go_and_the_largest_gradients_outside_come():
    moved = move(2)
    assert moved.positions.tolist() == [1, 2, 7, 9]  # 4 and 6 went; 2 and 7 have |g| of 5
    assert moved.came_from.tolist() == [0, -1, -1, 3]
    assert moved.carried(torch.tensor([0.5, -0.1, 0.3, -2.0])).tolist() == [0.5, 0.0, 0.0, -2.0]


def test_nothing_moves_where_nothing_should():
    moved = move(0)
    assert moved.positions.tolist() == [1, 4, 6, 9]
    assert moved.came_from.tolist() == [0, 1, 2, 3]


def test_ties_go_to_the_lower_position():
    moved = move(1, gradients=torch.ones(10), values=torch.ones(4))
    assert moved.positions.tolist() == [0, 4, 6, 9]


def test_values_that_rounding_alone_tells_apart_are_ties():
    """All are one rate after Adam's first step, in the last bit of which ranks differ."""
    generator = torch.Generator().manual_seed(0)
    kept = []
    for _ in range(5):
        noise = 1 + 1e-6 * torch.randn(4, generator=generator)
        kept.append(move(2, values=0.02 * noise * torch.tensor([1, -1, 1, -1])).came_from.tolist())
    assert kept == [kept[0]] * 5
    assert {*kept[0]} == {-1, 2, 3}


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_slices_of_several_ranks_give_the_same(num_ranks, monkeypatch):
    """Ranks one after another: what each would send is recorded first, and given to all then."""
    generator = torch.Generator().manual_seed(num_ranks)
    positions = torch.randperm(50, generator=generator)[:12].sort().values.int().numpy()
    values, gradients = torch.randn(12, generator=generator), torch.randn(50, generator=generator)
    whole = move_entries(positions, values, gradients, start=0, num_moved=5)
    size = -(-50 // num_ranks)
    starts = range(0, 50, size)
    sent: list[object] = []
    monkeypatch.setattr(dist, "all_gather_objects", lambda value: sent.append(value) or [value])
    for start in starts:
        move_entries(positions, values, gradients[start : start + size], start=start, num_moved=5)
    monkeypatch.setattr(dist, "all_gather_objects", lambda value: sent)
    for start in starts:
        part = gradients[start : start + size]
        found = move_entries(positions, values, part, start=start, num_moved=5)
        assert found.positions.tolist() == whole.positions.tolist()
        assert found.came_from.tolist() == whole.came_from.tolist()


def test_no_more_entries_move_than_there_is_room_for():
    site = Site("a.weight", (3, 4), "matrix", "a", "a.weight")
    apet = plan_apet([site], budget=10, move_every=1, move_share=0.5)
    assert largest_move(apet, "a.weight", 0.5) == 2  # of 12 entries two are free
    assert largest_move(apet, "a.weight", 0.1) == 1
