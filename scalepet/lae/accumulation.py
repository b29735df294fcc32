"""Accumulation: offline copies of what is trained follow it slowly, in the memory of the host.

Source: "A Unified Continual Learning Framework with General Parameter-Efficient Tuning"
(arXiv 2303.10070), section 3.3: after every optimizer step, offline = alpha offline + (1 - alpha)
online.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from scalepet import dist
from scalepet.engine import MasterShard

Wholes = Mapping[str, Tensor]
"""fp32 tensors on the CPU, by name."""


def alpha_of_travel(travel: float, num_steps: int) -> float:
    """The momentum with which a copy goes the part ``travel`` of the way to a resting online in
    ``num_steps`` steps: 1 - alpha^steps = travel.
    """
    return (1.0 - travel) ** (1.0 / num_steps)


def equal_shards(wholes: Wholes) -> dict[str, MasterShard]:
    """This rank's equal parts of tensors that no optimizer holds."""
    shards = {}
    for name, whole in wholes.items():
        size = -(-whole.numel() // dist.world_size())
        start = min(dist.rank() * size, whole.numel())
        shards[name] = MasterShard(start, whole.flatten()[start : start + size].clone())
    return shards


class Accumulation:
    """Offline copies of some parameters, fp32, each rank with the parts that its optimizer moves.

    Nothing is allocated on a device: where the online numbers are on a GPU, they are copied into
    one pinned buffer by a stream of their own, and a thread of the host does the sum while the next
    step runs. Where the optimizer is offloaded, they are in host memory already.

    Args:
        online: the parts, which change with every step of the optimizer.
        starts: whole, where each copy stands now; only this rank's parts of them are kept.
        shapes: of the whole parameters.
        alphas: momentum of each copy, in [0, 1).
    """

    def __init__(
        self,
        online: Mapping[str, MasterShard],
        starts: Sequence[Wholes],
        *,
        shapes: Mapping[str, Sequence[int]],
        alphas: Sequence[float],
    ) -> None:
        assert len(starts) == len(alphas) and all(0 <= alpha < 1 for alpha in alphas)
        self._online = dict(online)
        self._shapes = {name: torch.Size(shapes[name]) for name in online}
        self._alphas = tuple(alphas)
        self._on_gpu = bool(starts) and any(one.numbers.is_cuda for one in online.values())
        self._copies = [
            {name: _part(start[name], shard) for name, shard in self._online.items()}
            for start in starts
        ]
        numbers = {name: shard.numbers for name, shard in self._online.items()}
        self._staged = _pinned_room(numbers) if self._on_gpu else numbers
        self._stream = torch.cuda.Stream() if self._on_gpu else None
        # A new thread is on the first GPU of the machine, and may take memory of it.
        on_ours = (torch.cuda.set_device, (torch.cuda.current_device(),)) if self._on_gpu else ()
        self._thread = ThreadPoolExecutor(1, "accumulation", *on_ours)
        self._running: Future[None] | None = None

    def follow(self) -> None:
        """After an optimizer step: every copy goes its part of the way. Returns at once."""
        if not self._copies:
            return
        self.wait()
        arrived = self._stage() if self._on_gpu else None
        self._running = self._thread.submit(self._sum, arrived)

    def wait(self) -> None:
        """Returns once the copies are up to date: before the optimizer moves the numbers again, and
        before they are read.
        """
        if self._running is not None:
            self._running.result()
            self._running = None

    def read(self) -> list[dict[str, Tensor]]:
        """The copies, whole, fp32, on the CPU. All ranks together."""
        self.wait()
        return [
            {
                name: _gathered(part, self._online[name].start, self._shapes[name])
                for name, part in copy.items()
            }
            for copy in self._copies
        ]

    def read_online(self) -> dict[str, Tensor]:
        """What the copies follow, whole, fp32, on the CPU. All ranks together."""
        return {
            name: _gathered(shard.numbers.cpu(), shard.start, self._shapes[name])
            for name, shard in self._online.items()
        }

    def close(self) -> None:
        """End the thread; nothing follows any more."""
        self.wait()
        self._thread.shutdown()

    def __enter__(self) -> Accumulation:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._thread.shutdown()
        if error is None:
            self.wait()

    def _stage(self) -> torch.cuda.Event:
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for name, shard in self._online.items():
                self._staged[name].copy_(shard.numbers, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(self._stream)
        return arrived

    def _sum(self, arrived: torch.cuda.Event | None) -> None:
        if arrived is not None:
            arrived.synchronize()
        for copy, alpha in zip(self._copies, self._alphas, strict=True):
            for name, part in copy.items():
                part.lerp_(self._staged[name], 1.0 - alpha)


def _pinned_room(numbers: Wholes) -> dict[str, Tensor]:
    """Host memory for the same numbers, one pinned buffer in all: every pinning is a call into the
    driver, and rounds up to a page or a power of two.
    """
    sizes = [one.numel() for one in numbers.values()]
    room = torch.empty(sum(sizes), pin_memory=True)
    return {
        name: part.view(one.shape)
        for (name, one), part in zip(numbers.items(), room.split(sizes), strict=True)
    }


def _part(whole: Tensor, shard: MasterShard) -> Tensor:
    flat = whole.detach().float().flatten()
    return flat[shard.start : shard.start + shard.numbers.numel()].clone()


def _gathered(part: Tensor, start: int, shape: torch.Size) -> Tensor:
    """Every number comes from the one rank that has it."""
    flat = torch.zeros(shape.numel())
    flat[start : start + part.numel()] = part
    return dist.sum_over_ranks(flat).view(shape)
