"""Joining the processes of a run. This file is also the worker that joins.

As a script: ``test_processes.py alone`` with no launcher, ``test_processes.py '"together"'`` on
every rank.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed.ops
import pytest
import torch
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

from scalepet import dist
from scalepet.engine import (
    end_process,
    ended_neighbours,
    forget_peak_memory,
    is_launched,
    join_processes,
    leave_processes,
    peak_memory_bytes,
    pick_device,
)
from scalepet.engine.processes import quiet_deepspeed
from scalepet.errors import LaunchError

LAUNCHED = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def two_gpus(no_launcher: pytest.MonkeyPatch) -> list[torch.device]:
    """What becomes the device of this process, on a machine with two GPUs."""
    chosen: list[torch.device] = []
    no_launcher.delenv("DS_ACCELERATOR", raising=False)
    no_launcher.setattr(torch.cuda, "is_available", lambda: True)
    no_launcher.setattr(torch.cuda, "device_count", lambda: 2)
    no_launcher.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def launched(patch: pytest.MonkeyPatch, **changes: str) -> None:
    for name, value in {**LAUNCHED, **changes}.items():
        patch.setenv(name, value)


class TestDevice:
    def test_the_cpu_where_there_is_no_gpu(self, no_launcher: pytest.MonkeyPatch) -> None:
        no_launcher.setattr(torch.cuda, "is_available", lambda: False)
        launched(no_launcher, LOCAL_RANK="5", WORLD_SIZE="8")
        assert pick_device() == torch.device("cpu")

    @pytest.mark.parametrize(("local_rank", "expected"), [(None, "cuda:0"), ("1", "cuda:1")])
    def test_the_gpu_of_the_local_rank(
        self,
        local_rank: str | None,
        expected: str,
        two_gpus: list[torch.device],
        no_launcher: pytest.MonkeyPatch,
    ) -> None:
        if local_rank is not None:
            launched(no_launcher, LOCAL_RANK=local_rank, WORLD_SIZE="2")
        assert pick_device() == torch.device(expected)
        assert two_gpus == [torch.device(expected)]

    @pytest.mark.parametrize("visible", ["0,1", None])
    def test_more_ranks_than_gpus(
        self,
        visible: str | None,
        two_gpus: list[torch.device],
        no_launcher: pytest.MonkeyPatch,
    ) -> None:
        launched(no_launcher, LOCAL_RANK="2", WORLD_SIZE="3")
        no_launcher.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            no_launcher.setenv("CUDA_VISIBLE_DEVICES", visible)
        shown = " (CUDA_VISIBLE_DEVICES=0,1)" if visible else ""
        with pytest.raises(LaunchError) as caught:
            pick_device()
        expected = f"local rank 2 has no GPU: this machine shows 2{shown}; start at most"
        assert str(caught.value).startswith(expected)
        assert two_gpus == []

    def test_deepspeeds_cpu_is_ours(
        self, two_gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        assert pick_device() == torch.device("cpu")


class TestLauncher:
    @pytest.mark.parametrize(("size", "expected"), [(None, False), ("1", False), ("2", True)])
    def test_is_launched(
        self, size: str | None, expected: bool, no_launcher: pytest.MonkeyPatch
    ) -> None:
        if size is not None:
            launched(no_launcher, WORLD_SIZE=size)
        assert is_launched() is expected

    @pytest.mark.parametrize(
        "missing", [*((name,) for name in LAUNCHED), ("MASTER_ADDR", "MASTER_PORT")], ids=" ".join
    )
    def test_an_environment_that_is_not_whole(
        self, missing: tuple[str, ...], no_launcher: pytest.MonkeyPatch
    ) -> None:
        """Without RANK too: each of two processes would else train alone, into one folder."""
        for name, value in {**LAUNCHED, "WORLD_SIZE": "2"}.items():
            if name not in missing:
                no_launcher.setenv(name, value)
        with pytest.raises(LaunchError) as caught:
            join_processes()
        assert f"lacks {', '.join(missing)};" in str(caught.value)
        with pytest.raises(LaunchError):
            is_launched()
        assert not torch.distributed.is_initialized()


class TestTimeout:
    @pytest.mark.parametrize("minutes", ["0", "-1", "1.5", "soon"])
    def test_no_minutes(self, minutes: str, no_launcher: pytest.MonkeyPatch) -> None:
        no_launcher.setenv("DEEPSPEED_TIMEOUT", minutes)
        with pytest.raises(LaunchError, match=f"DEEPSPEED_TIMEOUT is '{minutes}'; allowed"):
            join_processes()

    @pytest.mark.parametrize(("minutes", "expected"), [(None, 1800), ("7", 420)])
    def test_what_the_user_says_holds_for_all_groups(
        self, minutes: str | None, expected: int, no_launcher: pytest.MonkeyPatch
    ) -> None:
        """DeepSpeed reads the variable itself for groups that it makes, in minutes."""
        given: dict[str, Any] = {}
        no_launcher.setattr(deepspeed, "init_distributed", lambda **options: given.update(options))
        no_launcher.setattr("scalepet.engine.processes._joined", False)
        no_launcher.delenv("DEEPSPEED_TIMEOUT", raising=False)
        if minutes is not None:
            no_launcher.setenv("DEEPSPEED_TIMEOUT", minutes)
        for name, value in LAUNCHED.items():
            no_launcher.setenv(name, value)
        join_processes()
        assert given["timeout"].total_seconds() == expected
        assert int(os.environ["DEEPSPEED_TIMEOUT"]) * 60 == expected


class TestTheSharedMemoryOp:
    """It is compiled at the first start on a CPU, which needs a compiler and can hang for ever."""

    def test_no_op_is_probed(self) -> None:
        """Probing runs compilers, and asks for devices, on every rank."""
        assert quiet_deepspeed() is deepspeed
        assert deepspeed.ops.__compatible_ops__ == {}

    def test_deepspeed_still_goes_through_this_door(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from deepspeed.comm.torch import build_shm_op

        def load(builder: ShareMemCommBuilder) -> None:
            raise NotImplementedError("compiles")

        monkeypatch.setattr(ShareMemCommBuilder, "load", load)
        cpu = SimpleNamespace(create_op_builder=lambda name: ShareMemCommBuilder())
        # By its module: as an attribute of deepspeed.comm, "torch" is torch itself.
        monkeypatch.setattr(sys.modules[build_shm_op.__module__], "get_accelerator", lambda: cpu)
        quiet_deepspeed()
        assert build_shm_op() is None
        monkeypatch.setitem(deepspeed.ops.__compatible_ops__, ShareMemCommBuilder.NAME, True)
        with pytest.raises(NotImplementedError, match="compiles"):
            build_shm_op()


def test_peak_memory_is_that_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    block = torch.ones(2**22)  # 16 MB
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    expected = int(status["VmHWM"].split()[0]) * 1024
    assert peak_memory_bytes() == pytest.approx(expected, rel=0.02)
    assert peak_memory_bytes() > block.nbytes


def test_a_peak_can_be_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    block = torch.ones(2**25)  # 128 MB, which the allocator gives back to the system
    with_block = peak_memory_bytes()
    num_bytes = block.nbytes
    del block
    assert peak_memory_bytes() == with_block
    forget_peak_memory()
    assert peak_memory_bytes() < with_block - num_bytes / 2


def test_the_peak_of_a_gpu_is_what_torch_has_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 12_345)
    assert peak_memory_bytes() == 12_345


@pytest.fixture
def stale_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lock of a compile that was killed, on a machine without a compiler."""
    lock = tmp_path / "extensions" / ShareMemCommBuilder.NAME / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    tools = tmp_path / "bin"
    tools.mkdir()
    # Without ninja DeepSpeed fails before it looks at the lock.
    (tools / "ninja").write_text("#!/bin/sh\necho 1.12\n")
    (tools / "ninja").chmod(0o755)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setenv("PATH", str(tools))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return lock


def test_deepspeed_itself_waits_at_this_lock(stale_lock: Path) -> None:
    """So that the next test is about the right file."""
    # In a process of its own: the compile looks at what else has been imported.
    script = (
        "from torch.utils.file_baton import FileBaton\n"
        "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder\n"
        "FileBaton.wait = lambda baton: exit(f'waits at {baton.lock_file_path}')\n"
        "ShareMemCommBuilder().jit_load(verbose=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert f"waits at {stale_lock}" in done.stderr


@pytest.mark.distributed
@pytest.mark.timeout(120)
def test_a_stale_lock_and_no_compiler_are_no_obstacle(stale_lock: Path, run_ranks: Any) -> None:
    outputs = run_ranks(Path(__file__), "together", num_ranks=2, timeout_seconds=60)
    for rank, output in enumerate(outputs):
        assert f"rank {rank} of 2: sums 3 and 3.0" in output
    assert os.listdir(stale_lock.parent) == ["lock"]
    assert os.listdir(stale_lock.parent.parent) == [ShareMemCommBuilder.NAME]


@pytest.mark.distributed
@pytest.mark.timeout(120)
def test_a_killed_neighbour_is_found(tmp_path: Path) -> None:
    """Of ranks 4, 5 and 6 on this machine the middle one is killed, and nobody waits for it."""
    middle_is_dead = tmp_path / "dead"
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from scalepet.engine import ended_neighbours\n"
        f"while not Path({str(middle_is_dead)!r}).exists():\n    time.sleep(0.05)\n"
        "print(ended_neighbours())\n"
        "time.sleep(5)\n"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "RANK": str(4 + i), "LOCAL_RANK": str(i), "LOCAL_SIZE": "3"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(3)
    ]
    ranks[1].kill()
    middle_is_dead.touch()
    outputs = [rank.communicate(timeout=60)[0] for rank in (ranks[0], ranks[2])]
    assert outputs == ["[5]\n", "[5]\n"]
    assert ranks[1].wait() == -9


def test_no_neighbours_without_deepspeeds_launcher(no_launcher: pytest.MonkeyPatch) -> None:
    no_launcher.delenv("LOCAL_SIZE", raising=False)
    assert ended_neighbours() == []


@pytest.mark.distributed
@pytest.mark.timeout(120)
def test_a_process_ends_with_its_code_and_its_words_also_inside_a_group() -> None:
    script = (
        "from scalepet.engine import end_process, join_processes\n"
        "join_processes(timeout_seconds=30)\n"
        "print('last words', end='')\n"
        "end_process(7)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout[-10:]) == (7, "last words"), done.stderr[-4000:]


@pytest.mark.distributed
@pytest.mark.timeout(120)
def test_a_process_alone() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    done = subprocess.run(
        [sys.executable, __file__, "alone"],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("peak_memory_bytes") > 100e6, "torch alone takes more"
    assert 1 < found.pop("seconds_refused") < 20
    port = found.pop("closed_port")
    assert found.pop("refused").startswith(f"cannot reach rank 0 at 127.0.0.1:{port} within 2 s: ")
    assert found == {
        "group": [0, 1, True, 7],
        "again": [0, 1, True, 7],
        "devices": ["cpu", "cpu"],
        "environment": ["0", "0", "1", "127.0.0.1"],
        "left": [False, False],
    }


def work_together() -> None:
    join_processes(timeout_seconds=30)
    ours = dist.sum_over_ranks(dist.rank() + 1)
    theirs = torch.tensor(dist.rank() + 1.0)
    deepspeed.comm.all_reduce(theirs)
    line = f"rank {dist.rank()} of {dist.world_size()}: sums {ours} and {theirs.item()}"
    leave_processes()
    print(line, flush=True)


def look_at_group() -> list[Any]:
    return [dist.rank(), dist.world_size(), dist.is_main(), dist.sum_over_ranks(7)]


def join_a_group_that_is_not_there() -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    others = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    os.environ.update({**LAUNCHED, **others})
    started = time.monotonic()
    try:
        join_processes(timeout_seconds=2)
    except LaunchError as error:
        seconds = time.monotonic() - started
        for name in LAUNCHED:
            del os.environ[name]
        return {"refused": str(error), "closed_port": port, "seconds_refused": seconds}
    raise AssertionError("joined a group of one half")


def work_alone() -> None:
    torch.cuda.is_available = lambda: False
    found = join_a_group_that_is_not_there()
    device = join_processes(timeout_seconds=30)
    found["group"] = look_at_group()
    second_device = join_processes(timeout_seconds=30)
    found["again"] = look_at_group()
    found["devices"] = [str(device), str(second_device)]
    found["environment"] = [os.environ[name] for name in list(LAUNCHED)[:4]]
    found["peak_memory_bytes"] = peak_memory_bytes()
    found["left"] = []
    for _ in range(2):
        leave_processes()
        found["left"].append(torch.distributed.is_initialized())
    print(json.dumps(found))


if __name__ == "__main__":
    work_alone() if sys.argv[1] == "alone" else work_together()
    end_process(0)
