"""A stopped run, so that it can go on: trained tensors, optimizer, progress, random states."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalepet import dist
from scalepet.engine.files import read_folder
from scalepet.engine.sharded import Engine
from scalepet.errors import CheckpointError
from scalepet.launch.gpus import sees_gpus


@dataclass(frozen=True)
class RunState:
    """What ``gather_run_state`` gave: tensors whole and in fp32, whatever the sharding was.

    Attributes:
        folder: where it lies.
        progress: how far the run is, in the words of its recipe.
    """

    folder: Path
    progress: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    adam_steps: Mapping[str, int]
    trained: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    random_states: Mapping[str, Tensor]
    fixed: Mapping[str, Tensor]
    loss_scaler: Mapping[str, float] = field(default_factory=dict)


def gather_run_state(
    engine: Engine,
    *,
    progress: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    fixed: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state as tensors in host memory, which what is trained next leaves alone, and a record.
    All ranks together.

    Args:
        progress: JSON-able.
        fingerprint: what must be the same where the run goes on (backbone, mask, data).
        fixed: what is not trained but belongs to it, such as the positions of a mask.
    """
    trained, moments = engine.read_trained(), engine.read_optimizer()
    random_states = {}
    for rank, states in enumerate(dist.all_gather_objects(_random_states())):
        random_states.update({f"{name}/{rank}": state for name, state in states.items()})
    tensors = {
        **{f"trained/{name}": tensor for name, tensor in trained.items()},
        **{f"moments/{name}": tensor for name, tensor in moments.items()},
        **{f"random/{name}": tensor for name, tensor in random_states.items()},
        **{f"fixed/{name}": tensor for name, tensor in fixed.items()},
    }
    record = {
        "progress": dict(progress),
        "fingerprint": dict(fingerprint),
        "adam_steps": engine.read_adam_steps(),
        "loss_scaler": engine.read_loss_scaler(),
    }
    return tensors, record


def on_main(write: Callable[[], None]) -> None:
    """Let rank 0 do it; its failure is the failure of all ranks."""
    dist.together(lambda: write() if dist.is_main() else None)


def read_run_state(folder: Path) -> RunState:
    """The state that lies in a folder.

    Raises:
        CheckpointError: it is not whole, or no state of a run.
    """
    tensors, record = read_folder(folder)
    parts: dict[str, dict[str, Tensor]] = {"trained": {}, "moments": {}, "random": {}, "fixed": {}}
    try:
        progress, fingerprint, adam_steps, loss_scaler = (
            dict(record[part]) for part in ("progress", "fingerprint", "adam_steps", "loss_scaler")
        )
        _check_numbers(adam_steps, loss_scaler)
        for name, tensor in tensors.items():
            part, inner = name.split("/", 1)
            parts[part][inner] = tensor
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no state of a run: {error!r}") from error
    return RunState(
        folder,
        progress,
        fingerprint,
        adam_steps,
        parts["trained"],
        parts["moments"],
        parts["random"],
        parts["fixed"],
        loss_scaler,
    )


def _check_numbers(adam_steps: Mapping[str, Any], loss_scaler: Mapping[str, Any]) -> None:
    """Raises ValueError for counts and scales that no run has."""
    for name, count in adam_steps.items():
        if type(count) is not int or count < 0:
            raise ValueError(f"adam_steps.{name} is {count!r}")
    for name, number in loss_scaler.items():
        if not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"loss_scaler.{name} is {number!r}")


def resume(engine: Engine, state: RunState, *, any_loss: Callable[[], Tensor]) -> None:
    """Put the optimizer and the random states where they were.

    The trained tensors are in the model already.
    """
    engine.restore(state.trained, state.moments, adam_steps=state.adam_steps, any_loss=any_loss)
    engine.write_loss_scaler(state.loss_scaler)
    restore_random_states(state)


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if sees_gpus():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(state: RunState) -> None:
    """Put this rank's generators where they were; a rank that did not exist then keeps its own."""
    rank, states = dist.rank(), state.random_states
    if f"cpu/{rank}" in states:
        torch.set_rng_state(states[f"cpu/{rank}"])
    if f"cuda/{rank}" in states and sees_gpus():
        torch.cuda.set_rng_state(states[f"cuda/{rank}"])
