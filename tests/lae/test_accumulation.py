from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from scalepet.engine import MasterShard
from scalepet.lae import Accumulation, alpha_of_travel, equal_shards

SHAPES = {"a": (3, 5), "b": (7,)}


def draw(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def whole_shards(wholes: dict[str, Tensor]) -> dict[str, MasterShard]:
    """As an optimizer of one rank holds them: views."""
    return {name: MasterShard(0, whole.view(-1)) for name, whole in wholes.items()}


def test_a_resting_online_is_approached_in_closed_form() -> None:
    online, start, alpha, num_steps = draw(0), draw(1), 0.97, 50
    copies = Accumulation(equal_shards(online), [start], shapes=SHAPES, alphas=[alpha])
    for _ in range(num_steps):
        copies.follow()
    (found,) = copies.read()
    for name, end in online.items():
        expected = end + alpha**num_steps * (start[name] - end)
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


def test_copies_with_several_momenta_follow_a_moving_online() -> None:
    online, alphas = draw(0), (0.9, 0.0, 0.9999)
    copies = Accumulation(whole_shards(online), [draw(1)] * 3, shapes=SHAPES, alphas=alphas)
    expected = [{name: one.double() for name, one in draw(1).items()} for _ in alphas]
    for step in range(20):
        copies.wait()  # as before the optimizer moves anything
        for whole in online.values():
            whole.add_(0.1 * (-1) ** step)
        copies.follow()
        for copy, alpha in zip(expected, alphas, strict=True):
            for name, one in copy.items():
                one.mul_(alpha).add_((1 - alpha) * online[name].double())
    for found, wanted in zip(copies.read(), expected, strict=True):
        for name, one in found.items():
            assert one.dtype == torch.float32
            torch.testing.assert_close(one.double(), wanted[name], rtol=1e-5, atol=1e-5)


def test_a_momentum_of_one_step_in_ten_thousand_is_seen() -> None:
    """Which bf16 could not hold."""
    copies = Accumulation(
        equal_shards({"a": torch.ones(1)}),
        [{"a": torch.zeros(1)}],
        shapes={"a": (1,)},
        alphas=[0.9999],
    )
    for _ in range(1000):
        copies.follow()
    assert copies.read()[0]["a"].item() == pytest.approx(1 - 0.9999**1000, rel=1e-3)


def test_travel_does_not_depend_on_the_number_of_steps() -> None:
    for num_steps in (1, 7, 1040):
        alpha = alpha_of_travel(0.099, num_steps)
        assert 1 - alpha**num_steps == pytest.approx(0.099)
    assert alpha_of_travel(0.0988, 1040) == pytest.approx(0.9999, abs=1e-6)  # as published


def test_what_is_followed_can_be_read() -> None:
    online = draw(0)
    copies = Accumulation(whole_shards(online), [], shapes=SHAPES, alphas=[])
    torch.testing.assert_close(copies.read_online(), online, rtol=0, atol=0)


def test_it_holds_nothing_that_it_does_not_need() -> None:
    """Where the numbers are in host memory already, they are read where they are."""
    online = draw(0)
    copies = Accumulation(whole_shards(online), [draw(1)], shapes=SHAPES, alphas=[0.5])
    online["b"].fill_(4.0)
    copies.follow()
    torch.testing.assert_close(copies.read()[0]["b"], (draw(1)["b"] + 4.0) / 2)


def test_without_copies_nothing_happens() -> None:
    copies = Accumulation({}, [], shapes={}, alphas=[])
    copies.follow()
    assert copies.read() == []
    copies.close()


def test_one_buffer_is_pinned_for_all_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pinning is a call into the driver; the copies need none."""
    from scalepet.lae import accumulation

    pinned, plain = [], torch.empty

    def empty(*size: int, pin_memory: bool = False) -> Tensor:
        pinned.append(pin_memory)
        return plain(*size)

    monkeypatch.setattr(torch, "empty", empty)
    wholes = {**draw(0), "scalar": torch.tensor(3.0), "none": torch.zeros(0, 2)}
    room = accumulation._pinned_room(wholes)
    assert pinned == [True]
    for name, whole in wholes.items():
        room[name].copy_(whole)
    torch.testing.assert_close(room, wholes, rtol=0, atol=0)


def test_the_thread_ends_with_what_it_was_for() -> None:
    def threads() -> set[threading.Thread]:
        return set(threading.enumerate())

    before = threads()
    copies = Accumulation(whole_shards(draw(0)), [draw(1)], shapes=SHAPES, alphas=[0.5])
    with pytest.raises(KeyError, match="first"), copies:
        copies.follow()
        raise KeyError("first")
    assert threads() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_nothing_is_allocated_on_the_device() -> None:
    online, start, alpha, num_steps = draw(0), draw(1), 0.5, 11
    on_gpu = {name: whole.cuda() for name, whole in online.items()}
    copies = Accumulation(whole_shards(on_gpu), [start], shapes=SHAPES, alphas=[alpha])
    copies.follow()
    copies.wait()
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(num_steps - 1):
        copies.follow()
        copies.wait()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    (found,) = copies.read()
    for name, end in online.items():
        expected = end + alpha**num_steps * (start[name] - end)
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)
