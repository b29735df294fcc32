"""Where a launcher has put this process among others, as its environment says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from scalepet.errors import LaunchError

SET_BY_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_ALLOWED = "deepspeed, torchrun or launchers/srun.sh, which set all of them"

_OTHER_LAUNCHERS = {
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "PMI_SIZE": "MPI",
    "MV2_COMM_WORLD_SIZE": "MVAPICH",
    "SLURM_STEP_NUM_TASKS": "srun",
}
"""Says how many processes there are -> who started them without ranks that torch reads."""


class Place(NamedTuple):
    """Of one process of a launch.

    Attributes:
        local_rank: among the processes of its machine.
        address, port: where all meet.
    """

    rank: int
    local_rank: int
    world_size: int
    address: str
    port: int


def is_placed(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment has all that a launcher sets; a RANK alone comes from elsewhere."""
    return all(name in environment for name in SET_BY_LAUNCHERS)


def own_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place of this process; None where it is alone, since no launcher has started it.

    Raises:
        LaunchError: the environment is not whole, a value is no such number, or another launcher
            has started several processes that would each run alone.
    """
    if "RANK" not in environment and environment.get("WORLD_SIZE", "1") == "1":
        _refuse_other_launchers(environment)
        return None
    missing = [name for name in SET_BY_LAUNCHERS if name not in environment]
    if missing:
        there = [name for name in SET_BY_LAUNCHERS if name in environment]
        raise LaunchError(
            f"the environment has {', '.join(there)} but lacks {', '.join(missing)};"
            f" allowed: none of them, or {_ALLOWED}"
        )
    world_size = _number(environment, "WORLD_SIZE", 1, 10**6)
    return Place(
        rank=_number(environment, "RANK", 0, world_size - 1),
        local_rank=_number(environment, "LOCAL_RANK", 0, world_size - 1),
        world_size=world_size,
        address=environment["MASTER_ADDR"],
        port=_number(environment, "MASTER_PORT", 1, 65535),
    )


def _number(environment: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise LaunchError(f"{name} is {text!r}; allowed: {least} to {most}")
    return int(text)


def _refuse_other_launchers(environment: Mapping[str, str]) -> None:
    for name, launcher in _OTHER_LAUNCHERS.items():
        text = environment.get(name, "1")
        if text.isdecimal() and int(text) > 1:
            raise LaunchError(
                f"{launcher} has started {text} processes ({name}), and none of them has a RANK:"
                f" each would run alone; allowed: {_ALLOWED}"
            )
