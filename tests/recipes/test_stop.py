"""Real signals to real processes: a run that is stopped saves itself, and goes on as if nothing had
happened.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from running import SCALEPET, check_same, newest_state, read_losses, run

from scalepet.signals import EXIT_STOPPED
from scalepet.tracking.wandb_files import read_history

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

PAUSED = Path(__file__).with_name("paused.py")
DISTURBED = "backbone.dropout=0.1"
"""Shows whether random states are kept."""

Pids = Mapping[int, int]
"""Process ids by rank."""


def interrupt(
    command: Sequence[Any], sends: Sequence[Callable[[int, Pids], None]], *, num_ranks: int = 1
) -> tuple[int, str]:
    """Run it, and do one of ``sends`` to it (its process, its ranks) in each of its pauses.

    A launcher does not hear SIGUSR1, as where a job script has said ``trap '' USR1``.

    Returns:
        Its exit code and all that it said.
    """
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for send in sends:
            pids: dict[int, int] = {}
            while len(pids) < num_ranks and (line := process.stdout.readline()):
                lines.append(line)
                if line.startswith("paused at"):
                    rank, pid = line.split()[-2:]
                    pids[int(rank)] = int(pid)
            send(process.pid, pids)
        rest, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, "".join(lines) + rest


def to_all(number: int) -> Callable[[int, Pids], None]:
    """To every process of the tree, as SLURM does."""
    return lambda group, _: os.killpg(group, number)


def to_rank(rank: int, number: int) -> Callable[[int, Pids], None]:
    return lambda _, pids: os.kill(pids[rank], number)


def to_launcher(number: int) -> Callable[[int, Pids], None]:
    """To the process of DeepSpeed that has started the ranks of this machine."""
    return lambda _, pids: os.kill(psutil.Process(pids[0]).ppid(), number)


def read_progress(folder: Path) -> dict[str, Any]:
    return json.loads((newest_state(folder) / "scalepet.json").read_text())["progress"]


def test_a_run_that_is_stopped_again_and_again(write_run, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    method = {"name": "apet", "budget": "20%", "move_every": 2}
    run([*SCALEPET, "train", write_run(whole, method=method), DISTURBED])
    config = write_run(broken, method=method)

    def stop(places: str, *sends: Callable[[int, Pids], None]) -> str:
        command = [sys.executable, PAUSED, places, "train", config, DISTURBED, "--resume"]
        code, said = interrupt(command, sends)
        assert code == EXIT_STOPPED, said
        assert "Traceback" not in said
        return said

    usr1, term = to_all(signal.SIGUSR1), to_all(signal.SIGTERM)
    assert "stopped by SIGTERM, with nothing to save" in stop("load:1", term)
    stop("batch:1", usr1)  # of the evaluation before the first step
    assert not (broken / "states").exists()

    def both(group: int, pids: Pids) -> None:
        usr1(group, pids)
        term(group, pids)

    said = stop("step:3,save:1", usr1, both)
    assert "stopped as asked after step 3 of 12, which is saved" in said
    assert (read_progress(broken)["num_steps"], read_progress(broken)["best_step"]) == (3, 0)
    stop("batch:1", term)  # of the evaluation after step 4
    assert read_progress(broken)["num_steps"] == 4
    assert read_progress(broken)["awaits_evaluation"]
    stop("step:8", usr1)  # the last one
    assert read_progress(broken)["num_steps"] == 12
    run([*SCALEPET, "train", config, DISTURBED, "--resume"])
    check_same(whole, broken)


@pytest.mark.slow  # tests/launchers/test_slurm.py stops two ranks, too
def test_two_ranks_stop_together_whoever_is_asked(launch_two, write_run, tmp_path):
    """One whole wandb run comes out of it; its own process is ended by SIGTERM to the launcher."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run([*launch_two("--module", "scalepet"), "train", write_run(whole), DISTURBED])
    config = write_run(broken, wandb={"mode": "offline"})

    def stop(places: str, send: Callable[[int, Pids], None]) -> tuple[int, str]:
        command = [*launch_two(str(PAUSED)), places, "train", config, DISTURBED, "--resume"]
        code, said = interrupt(command, [send], num_ranks=2)
        assert said.count("stopped as asked after step") == 1, said
        assert "Traceback" not in said, said
        return code, said

    code, _ = stop("step:2", to_rank(1, signal.SIGTERM))
    assert (code, read_progress(broken)["num_steps"]) == (EXIT_STOPPED, 2)
    code, _ = stop("batch:1", to_all(signal.SIGUSR1))
    assert (code, read_progress(broken)["num_steps"]) == (EXIT_STOPPED, 4)
    code, _ = stop("step:3", to_launcher(signal.SIGTERM))  # which has its own exit code
    assert (code, read_progress(broken)["num_steps"]) == (1, 7)
    run([*launch_two("--module", "scalepet"), "train", config, DISTURBED, "--resume"])
    check_same(whole, broken)
    rows = list(read_history(broken, (broken / "wandb_id").read_text().strip()))
    train = [row for row in rows if "train/step" in row]
    assert [row["train/step"] for row in train] == list(range(1, 13))
    assert [row["train/loss"] for row in train] == read_losses(whole)
    assert [row["eval/step"] for row in rows if "eval/step" in row] == [0, 4, 8, 12]
    files = b"".join(path.read_bytes() for path in broken.glob("wandb/offline-run-*/*.wandb"))
    for part in (b"git_commit", b"masked", b"result/accuracy", b"-adapter"):
        assert part in files


def test_a_stream_that_is_stopped_again_and_again(write_stream, tmp_path):
    """In both phases of an experience, between them, and while it is examined."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run([*SCALEPET, "continual", write_stream(whole), DISTURBED])
    config = write_stream(broken)

    def stop(places: str, number: int) -> tuple[int, int]:
        command = [sys.executable, PAUSED, places, "continual", config, DISTURBED, "--resume"]
        code, said = interrupt(command, [to_all(number)])
        assert code == EXIT_STOPPED, said
        assert "Traceback" not in said
        progress = read_progress(broken)["stream"]
        return progress["experience"], progress["num_steps"]

    assert stop("step:11", signal.SIGUSR1) == (1, 2)  # the method rests
    assert stop("step:1", signal.SIGTERM) == (1, 3)  # its last step of rest
    assert stop("step:2", signal.SIGUSR1) == (1, 5)  # it learns
    assert stop("batch:2", signal.SIGUSR1) == (1, 9)  # learnt, not examined
    assert stop("step:9", signal.SIGUSR1) == (2, 9)  # the last step of all
    run([*SCALEPET, "continual", config, DISTURBED, "--resume"])
    check_same(whole, broken, adapters=("adapter", "adapter-offline"))
    assert (whole / "matrix.json").read_text() == (broken / "matrix.json").read_text()
