"""Where a launcher has put a process."""

from __future__ import annotations

import pytest

from scalepet.errors import LaunchError
from scalepet.launch.place import SET_BY_LAUNCHERS, Place, is_placed, own_place

WHOLE = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}


def test_a_whole_environment() -> None:
    assert own_place(WHOLE) == Place(3, 1, 4, "node1", 29500)
    assert is_placed(WHOLE) and tuple(WHOLE) == SET_BY_LAUNCHERS


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LOCAL_RANK": "0", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # the script of a job, which is no rank
    ],
)
def test_a_process_alone(environment: dict[str, str]) -> None:
    assert own_place(environment) is None
    assert not is_placed(environment)


@pytest.mark.parametrize("missing", SET_BY_LAUNCHERS)
def test_a_part_of_it_is_refused(missing: str) -> None:
    some = {name: value for name, value in WHOLE.items() if name != missing}
    with pytest.raises(LaunchError, match=f" but lacks {missing}; allowed: none of them, or "):
        own_place(some)
    assert not is_placed(some)


def test_a_rank_alone_is_refused() -> None:
    with pytest.raises(LaunchError, match="has RANK but lacks LOCAL_RANK, WORLD_SIZE, MASTER_ADDR"):
        own_place({"RANK": "0"})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("RANK", "4", "0 to 3"),
        ("RANK", "-1", "0 to 3"),
        ("RANK", "", "0 to 3"),
        ("LOCAL_RANK", "one", "0 to 3"),
        ("WORLD_SIZE", "0", "1 to 1000000"),
        ("WORLD_SIZE", "\u0664", "1 to 1000000"),  # a four of another script
        ("MASTER_PORT", "65536", "1 to 65535"),
        ("MASTER_PORT", "http", "1 to 65535"),
    ],
)
def test_a_value_that_is_no_such_number(name: str, value: str, allowed: str) -> None:
    with pytest.raises(LaunchError) as caught:
        own_place({**WHOLE, name: value})
    assert str(caught.value) == f"{name} is {value!r}; allowed: {allowed}"


@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        ("OMPI_COMM_WORLD_SIZE", "Open MPI"),
        ("PMI_SIZE", "MPI"),
        ("MV2_COMM_WORLD_SIZE", "MVAPICH"),
        ("SLURM_STEP_NUM_TASKS", "srun"),
    ],
)
def test_a_launcher_that_sets_no_rank_is_refused(name: str, launcher: str) -> None:
    """Each of its processes would train alone, into one folder."""
    with pytest.raises(LaunchError, match=rf"{launcher} has started 2 processes \({name}\)"):
        own_place({name: "2"})
    assert own_place({**WHOLE, name: "2"}) is not None
