"""Disks that are full or cannot be written, and a rank that hangs: the ranks end with a message,
and what was saved is good.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.launched import STRUCK
from running import check_same, run_here

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

DISK = "16m"
TIMEOUT_SECONDS = 60
"""DEEPSPEED_TIMEOUT counts in minutes."""


def mount(*words: str) -> None:
    """Or a skip that says why not."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"this machine makes no small disk: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk))
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that root cannot write either."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    mount("--bind", str(folder), str(folder))
    mount("-o", "remount,bind,ro", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_all_ranks_and_loses_nothing(
    struck: Any, whole: Any, write_broken: Any, small_disk: Path
) -> None:
    """Full from the seventh step on: metrics and the next state do not fit."""
    folder = small_disk / "run"
    config = write_broken(folder)
    ended = struck(f"fill={small_disk}@step:7@0", config)
    assert ended.codes == [2, 2], ended.said
    assert "Traceback" not in ended.said
    (message,) = [line for line in ended.said.splitlines() if line.startswith("scalepet: ")]
    assert "No space left on device" in message and str(folder) in message
    assert not (folder / "run.lock").exists()
    (small_disk / "filler").unlink()
    assert struck("none@", config).codes == [0, 0]
    check_same(whole.folder, folder)


def test_a_read_only_folder_is_refused(write_run: Any, read_only: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path / "run")
    for output in (read_only, read_only / "run"):
        ended = run_here("train", str(config), f"output={output}")
        assert (ended.code, ended.out) == (2, "")
        (fault,) = ended.faults
        assert fault.startswith(f"output: {output} cannot be written (Read-only file system)")


@pytest.mark.slow
def test_a_rank_that_hangs_is_noticed(
    struck: Any, whole: Any, write_broken: Any, launch_two: Any, tmp_path: Path
) -> None:
    """It is stopped in the middle of a run: alive, and silent for good."""
    config = write_broken(tmp_path / "run")
    environment = {"DEEPSPEED_TIMEOUT": str(TIMEOUT_SECONDS // 60)}
    ended = struck("hang@step:4@1", config, launcher=launch_two(STRUCK), environment=environment)
    assert not {0, 2} & set(ended.codes), ended.said
    assert ended.end_seconds < 2 * TIMEOUT_SECONDS
    lines = ended.said.splitlines()
    (line,) = [words for words in lines if words.startswith("scalepet: rank 0 on")]
    assert line.endswith("; rank 1 did not answer: ended or hanging")
    print(f"ended {ended.end_seconds:.1f} s after the rank had stopped: {line}")
    assert struck("none@", config).codes == [0, 0]
    check_same(whole.folder, tmp_path / "run")
