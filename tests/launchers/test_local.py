"""launchers/local.sh: all processes on this machine, and what it does with signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from lab import wait_until

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]


def start(*words: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", "launchers/local.sh", "train", *words],
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def has_ended(name: str) -> bool:
    """No process of that run is left, whoever its parent is."""
    found = subprocess.run(
        ["pgrep", "-f", "--", f"-m scalepet .*train {name}"], capture_output=True
    )
    return not found.stdout


def test_processes_on_cpus_and_a_dead_one(checkout: Path, stand_in: dict[str, str]) -> None:
    process = start("dead", "die", environment=stand_in)
    started = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 256 - signal.SIGKILL, said
    ranks = [json.loads(Path(f"dead.{rank}").read_text()) for rank in range(2)]
    assert [rank["LOCAL_RANK"] for rank in ranks] == ["0", "1"]
    assert {(rank["WORLD_SIZE"], rank["safe path"]) for rank in ranks} == {("2", "1")}
    assert time.monotonic() - started < 25, "the other one would wait for 60 s"
    assert has_ended("dead")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_lets_the_ranks_save(
    checkout: Path, stand_in: dict[str, str], number: signal.Signals
) -> None:
    name = f"asked-{number.name}"
    process = start(name, "wait", environment=stand_in)
    notes = [Path(f"{name}.{rank}") for rank in range(2)]
    wait_until(lambda: all(n.exists() for n in notes), seconds=60, what="the ranks have started")
    time.sleep(0.5)
    os.kill(process.pid, number)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 75, said
    assert has_ended(name)


@pytest.mark.parametrize(
    ("num_gpus", "num_ranks", "accelerator"), [("0", 3, "cpu"), ("1", 1, None)]
)
def test_as_many_processes_as_gpus(
    num_gpus: str,
    num_ranks: int,
    accelerator: str | None,
    checkout: Path,
    stand_in: dict[str, str],
) -> None:
    """Without a GPU as many as asked for. What DeepSpeed finds here is not what the stand-in says,
    so that one is all it starts.
    """
    name = f"on-{num_gpus}"
    environment = {key: stand_in[key] for key in stand_in if key != "DS_ACCELERATOR"}
    asked = {"STAND_IN_GPUS": num_gpus, "PROCESSES": "3"}
    process = start(name, "0", environment={**environment, **asked})
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    notes = sorted(Path.cwd().glob(f"{name}.*"))
    assert len(notes) == num_ranks, said
    assert json.loads(notes[0].read_text()).get("DS_ACCELERATOR") == accelerator


def test_gpus_that_cannot_be_used_are_refused(checkout: Path, stand_in: dict[str, str]) -> None:
    process = start("none", "0", environment={**stand_in, "STAND_IN_GPUS": "lost"})
    process.communicate(timeout=60)
    assert process.returncode == 2
    assert not list(Path.cwd().glob("none.*"))


def test_a_launcher_that_is_killed_is_no_success(checkout: Path, stand_in: dict[str, str]) -> None:
    """Its ranks are waited for, which save their state."""
    process = start("orphans", "wait", environment=stand_in)
    notes = [Path(f"orphans.{rank}") for rank in range(2)]
    wait_until(lambda: all(n.exists() for n in notes), seconds=60, what="the ranks have started")
    time.sleep(0.5)
    command = ["pgrep", "-f", "--", "-m deepspeed.launcher.launch .*train orphans"]
    [launcher] = subprocess.run(command, capture_output=True, text=True).stdout.split()
    os.kill(int(launcher), signal.SIGKILL)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGKILL, said
    assert has_ended("orphans")


def test_a_number_of_processes_that_is_none_is_refused(
    checkout: Path, stand_in: dict[str, str]
) -> None:
    process = start("no", "0", environment={**stand_in, "PROCESSES": "two"})
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said == "scalepet: PROCESSES is 'two'; allowed: a whole number from 1 on\n"


def test_a_missing_environment_is_refused(checkout: Path, stand_in: dict[str, str]) -> None:
    process = start("no", "0", environment={**stand_in, "SCALEPET_VENV": "nowhere"})
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "no Python environment in nowhere; try: bash launchers/environment.sh" in said
