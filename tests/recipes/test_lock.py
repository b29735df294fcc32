"""Two runs in one folder: the second one is refused while the first one lives, and only then."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scalepet.engine import write_folder
from scalepet.errors import CheckpointError, LaunchError
from scalepet.files import replace_file
from scalepet.recipes import lock
from scalepet.recipes.lock import Holder, one_run_in

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.6)
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.05)


def take(folder: Path) -> list[str]:
    """What is said while the folder is taken; it is given back at once."""
    said: list[str] = []
    with one_run_in(folder, say=said.append) as hold:
        hold.check()
        assert Holder.read((folder / "run.lock").read_text()) is not None
    assert os.listdir(folder) == []
    return said


def leave_behind(folder: Path, **fields: Any) -> Path:
    """The file of another process, which differs from this one in some fields."""
    path = folder / "run.lock"
    path.write_text(json.dumps({**dataclasses.asdict(Holder.here()), **fields}))
    return path


def start(folder: Path) -> multiprocessing.Process:
    """A process that tries to take the folder, and holds it if it can."""

    def hold() -> None:
        with contextlib.suppress(CheckpointError), one_run_in(folder, say=print):
            time.sleep(60)

    process = FORK.Process(target=hold, daemon=True)
    process.start()
    return process  # type: ignore[return-value]


def holder_of(folder: Path) -> Holder | None:
    with contextlib.suppress(FileNotFoundError):
        return Holder.read((folder / "run.lock").read_text())
    return None


@contextlib.contextmanager
def other_process(folder: Path) -> Iterator[multiprocessing.Process]:
    process = start(folder)
    try:
        while holder_of(folder) is None:
            assert process.is_alive()
        yield process
    finally:
        process.kill()
        process.join()


class TestThisMachine:
    def test_a_process_that_lives_is_named(self, tmp_path: Path) -> None:
        with other_process(tmp_path) as process:
            with pytest.raises(CheckpointError) as caught:
                take(tmp_path)
            (fault,) = caught.value.faults
            assert f"output: {tmp_path} is in use by process {process.pid} on " in fault
            assert "since 20" in fault and "allowed: to wait until it ends or to stop it" in fault
            assert [one for one in os.listdir(tmp_path) if one[0] != "."] == ["run.lock"]
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            # A zombie, as long as nobody has asked for its exit code, is as dead as can be.
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                with contextlib.suppress(CheckpointError):
                    assert take(tmp_path) == []
                    break
            else:
                pytest.fail("nobody holds the folder")

    def test_a_folder_is_free_after_each_run_and_each_failure(self, tmp_path: Path) -> None:
        take(tmp_path)
        with pytest.raises(KeyError), one_run_in(tmp_path, say=print):
            raise KeyError
        with one_run_in(tmp_path, say=print), pytest.raises(CheckpointError, match="is in use by"):
            take(tmp_path)
        take(tmp_path)

    def test_another_process_of_the_same_id_is_another_one(self, tmp_path: Path) -> None:
        leave_behind(tmp_path, started=1)
        assert take(tmp_path) == []


class TestAnotherMachine:
    def test_one_that_shows_signs_of_life_keeps_the_folder(self, tmp_path: Path) -> None:
        """Without a lock of its file system."""
        path = leave_behind(tmp_path, host="far", job="7")
        beat = [sys.executable, "-c", "import os,sys,time\nwhile 1: os.utime(sys.argv[1])"]
        process = subprocess.Popen([*beat, str(path)])
        try:
            with pytest.raises(CheckpointError, match=r"on far of SLURM job 7, since"):
                take(tmp_path)
        finally:
            process.kill()
            process.wait()

    def test_one_that_is_silent_loses_it_and_a_line_says_so(self, tmp_path: Path) -> None:
        leave_behind(tmp_path, host="far")
        waiting, taken = take(tmp_path)
        assert "on far" in waiting and "waiting for the next one" in waiting
        assert "taken over from process" in taken and "no sign of life for" in taken

    def test_a_lock_of_the_file_system_is_a_sign_of_life(self, tmp_path: Path) -> None:
        with other_process(tmp_path):
            content = json.loads((tmp_path / "run.lock").read_text())
            (tmp_path / "run.lock").write_text(json.dumps({**content, "system": "of a container"}))
            os.utime(tmp_path / "run.lock", (0, 0))
            with pytest.raises(CheckpointError, match="is in use by"):
                take(tmp_path)

    def test_the_same_job_started_again_goes_on_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lock, "SILENT_SECONDS", 1e9)
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        leave_behind(tmp_path, host="far", num_restarts=0)
        (taken,) = take(tmp_path)
        assert "its job has started again" in taken

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xff", b'{"host": 3}'])
    def test_what_names_nobody_is_waited_for(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "run.lock").write_bytes(content)
        assert "a process that it does not name" in take(tmp_path)[-1]


def test_a_run_whose_folder_was_taken_over_hears_of_it(tmp_path: Path) -> None:
    with one_run_in(tmp_path, say=print) as hold:
        hold.check()
        (tmp_path / "run.lock").unlink()
        leave_behind(tmp_path, host="far")
        with pytest.raises(CheckpointError, match="is of another process now"):
            hold.check()
    assert os.listdir(tmp_path) == ["run.lock"]  # which is not ours to delete


def test_a_heartbeat_is_seen_in_the_file(tmp_path: Path) -> None:
    with one_run_in(tmp_path, say=print):
        os.utime(tmp_path / "run.lock", (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / "run.lock").stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_only_one_of_many_takes_what_a_dead_one_left(tmp_path: Path) -> None:
    leave_behind(tmp_path, started=1)
    processes = [start(tmp_path) for _ in range(8)]
    try:
        deadline = time.monotonic() + 60
        while sum(process.is_alive() for process in processes) > 1:
            assert time.monotonic() < deadline, "two hold the folder"
            time.sleep(0.02)
        (holder,) = (process for process in processes if process.is_alive())
        found = holder_of(tmp_path)
        assert found is not None and found.pid == holder.pid
    finally:
        for process in processes:
            process.kill()
            process.join()


def test_without_locks_of_the_file_system_one_of_many_takes_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Lustre; the forks know none either."""
    monkeypatch.setattr(lock, "_flock", lambda descriptor: True)
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        test_only_one_of_many_takes_what_a_dead_one_left(folder)


@pytest.mark.parametrize("dies_at", ["_create", "_fence_off", "replace"])
def test_a_claimant_that_dies_is_followed_by_the_next(
    dies_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its claim and the lock in its own name."""
    (tmp_path / ".scalepet-dead").mkdir()
    (tmp_path / ".scalepet-dead" / "adapter.old").mkdir()
    leave_behind(tmp_path, started=1, workplace=".scalepet-dead")

    def claim_and_die() -> None:
        owner = Path if dies_at == "replace" else lock
        plain = getattr(owner, dies_at)

        def die(*arguments: Any) -> None:
            if dies_at == "_create" and arguments[0].name == "run.lock":
                raise FileExistsError
            plain(*arguments)
            os._exit(0)

        setattr(owner, dies_at, die)
        lock.take(tmp_path, say=print)

    process = FORK.Process(target=claim_and_die)
    process.start()
    process.join()
    with one_run_in(tmp_path, say=print) as hold:
        hold.check()
        found = Holder.read((tmp_path / "run.lock").read_text())
        assert found is not None and found.pid == os.getpid()
        assert (tmp_path / "adapter").is_dir()
    assert [one for one in os.listdir(tmp_path) if not one.startswith(".scalepet-")] == ["adapter"]


def test_one_that_was_only_frozen_finishes_nothing_after_a_takeover(tmp_path: Path) -> None:
    for name in ("result.json", "adapter"):
        replace_file(tmp_path / "result.json", "old")
        frozen = tmp_path / ".scalepet-frozen"
        frozen.mkdir()
        leave_behind(tmp_path, host="far", workplace=frozen.name)
        with one_run_in(tmp_path, say=print) as hold:
            replace_file(tmp_path / "result.json", "new", workplace=hold.workplace)
            with pytest.raises(CheckpointError, match="has taken this run's folder over"):
                if name == "adapter":
                    write_folder(tmp_path / name, tensors={}, record={}, workplace=frozen)
                else:
                    replace_file(tmp_path / name, "late", workplace=frozen)
        assert os.listdir(tmp_path) == ["result.json"]
        assert (tmp_path / "result.json").read_text() == "new"


@pytest.mark.parametrize("workplace", ["../mine", ".scalepet-x/../../mine", "mine", "", 3])
def test_a_lock_of_a_stranger_moves_no_folder(workplace: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "run" / "mine").mkdir(parents=True)
    leave_behind(tmp_path / "run", host="far", workplace=workplace)
    with one_run_in(tmp_path / "run", say=print):
        pass
    assert (tmp_path / "mine").is_dir() and (tmp_path / "run" / "mine").is_dir()


def test_a_folder_that_takes_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run.lock cannot be written \(No such file"):
        take(tmp_path / "nowhere")


def test_a_number_of_restarts_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "x")
    with pytest.raises(LaunchError, match="SLURM_RESTART_COUNT is 'x'; allowed: a whole number"):
        Holder.here()
