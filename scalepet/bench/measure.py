"""Interleaved rounds: all contenders take turns, so that what a machine does besides hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scalepet.bench.contenders import Contender
from scalepet.bench.shapes import Work


@dataclass(frozen=True)
class Rounds:
    """How long it is measured.

    Attributes:
        num_rounds: turns of every contender.
        num_steps: timed steps of a turn, after one that is not.
    """

    num_rounds: int
    num_steps: int


@dataclass(frozen=True)
class Result:
    """What was measured of one contender.

    Attributes:
        num_trained: numbers that it trains.
        seconds: median of a step.
        tokens_per_second: of inputs and targets together, at that median.
        ratio: median over rounds of its step to the floor's in the same round.
        peak_bytes: most device memory during a step; None on a CPU.
        kept_bytes: of tensors that are kept for backward, each storage once, parameters not.
        num_weight_shaped: of these, how many have the shape of a weight matrix.
        file_bytes: of what it saves.
    """

    name: str
    num_trained: int
    seconds: float
    tokens_per_second: float
    ratio: float
    peak_bytes: int | None
    kept_bytes: int
    num_weight_shaped: int
    file_bytes: int


def measure(
    work: Work,
    entrants: Sequence[Contender],
    rounds: Rounds,
    *,
    track: Callable[[Iterable[int]], Iterable[int]] = lambda numbers: numbers,
) -> list[Result]:
    """Results in the order of the contenders, the first of which is the floor."""
    seconds: dict[str, list[float]] = {entrant.name: [] for entrant in entrants}
    for number in track(range(rounds.num_rounds)):
        shift = number % len(entrants)
        for entrant in (*entrants[shift:], *entrants[:shift]):
            seconds[entrant.name].append(_seconds_of(work, entrant, rounds.num_steps))
    floor = seconds[entrants[0].name]
    return [_result(work, entrant, seconds[entrant.name], floor) for entrant in entrants]


def _seconds_of(work: Work, entrant: Contender, num_steps: int) -> float:
    """Of one step, the mean of a turn."""
    with entrant.enter(work) as entered:
        step = step_of(work, entered.model)
        step()
        wait(work)
        started = time.perf_counter()
        for _ in range(num_steps):
            step()
        wait(work)
        return (time.perf_counter() - started) / num_steps


def step_of(work: Work, model: nn.Module) -> Callable[[], None]:
    """Forward, backward and AdamW; at a rate of zero it does all its work and changes nothing."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0) if trained else None

    def step() -> None:
        work.loss(model).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def _result(
    work: Work, entrant: Contender, seconds: Sequence[float], floor: Sequence[float]
) -> Result:
    with entrant.enter(work) as entered:
        num_trained = sum(p.numel() for p in entered.model.parameters() if p.requires_grad)
        step = step_of(work, entered.model)
        step()
        on_gpu = _is_on_gpu(work)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated() if on_gpu else None
        kept_bytes = sum(
            tensor.untyped_storage().nbytes() for tensor in _kept_for_backward(work, entered.model)
        )
        num_weight_shaped = _num_weight_shaped(work, entered.model)
        file_bytes = entered.num_bytes
    return Result(
        name=entrant.name,
        num_trained=num_trained,
        seconds=statistics.median(seconds),
        tokens_per_second=work.num_tokens / statistics.median(seconds),
        ratio=statistics.median(s / f for s, f in zip(seconds, floor, strict=True)),
        peak_bytes=peak,
        kept_bytes=kept_bytes,
        num_weight_shaped=num_weight_shaped,
        file_bytes=file_bytes,
    )


def _kept_for_backward(work: Work, model: nn.Module) -> list[Tensor]:
    """What a forward keeps for backward besides parameters, each storage once.

    The graph is gone when it returns; the tensors hold their storages, so that no address is met
    twice.
    """
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        is_sparse = tensor.layout is torch.sparse_coo
        for part in (tensor._values(), tensor._indices()) if is_sparse else (tensor,):
            address = part.untyped_storage().data_ptr()
            if address not in own:
                kept.setdefault(address, part.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work.loss(model)
    return list(kept.values())


def _num_weight_shaped(work: Work, model: nn.Module) -> int:
    """How many kept tensors have the shape of a linear layer's weight; of rows so odd that no
    activation has it.
    """
    shapes = {site.shape for site in work.sites if site.kind == "matrix"}
    shapes |= {shape[::-1] for shape in shapes}
    kept = _kept_for_backward(work.with_odd_rows(), model)
    return sum(tuple(tensor.shape) in shapes for tensor in kept)


def _is_on_gpu(work: Work) -> bool:
    return next(iter(work.batch.values())).is_cuda


def wait(work: Work) -> None:
    """Returns once the device has done what it was asked to."""
    if _is_on_gpu(work):
        torch.cuda.synchronize()
