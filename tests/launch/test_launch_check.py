"""``scalepet launch --check`` as ranks run it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import finish_ranks
from running import free_port

import scalepet

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]

CHECK = [sys.executable, "-m", "scalepet", "launch", "--check"]


def start(
    rank: int, port: int, *options: object, code: Path | None = None
) -> subprocess.Popen[str]:
    """One of two ranks; runs another copy of scalepet, if one is given."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return subprocess.Popen(
        [*CHECK, *map(str, options)],
        cwd=code,  # where python -m looks first
        env={**os.environ, **{name: str(value) for name, value in variables.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ours(output: str) -> list[str]:
    """The lines that are not torch's own."""
    return [line for line in output.splitlines() if line.startswith(("ok ", "scalepet: "))]


def test_all_is_well(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    port = free_port()
    both = [start(rank, port, "--output", folder) for rank in range(2)]
    (code, first), (other_code, other) = finish_ranks(both, timeout_seconds=60)
    assert (code, other_code) == (0, 0), first + other
    names = ["processes", "devices", "versions", "folder", "network"]
    assert [line.split()[1] for line in ours(first)] == names
    assert ours(other) == []
    assert not folder.exists()


def test_every_fault_is_found_on_both_and_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    source = Path(scalepet.__file__).parent
    shutil.copytree(source, tmp_path / "other" / "scalepet")
    (tmp_path / "other" / "scalepet" / "errors.py").open("a").write("# another line\n")
    port, options = free_port(), ("--output", tmp_path / "file")
    both = [start(0, port, *options), start(1, port, *options, code=tmp_path / "other")]
    (code, first), (other_code, other) = finish_ranks(both, timeout_seconds=60)
    assert (code, other_code) == (2, 2), first + other
    versions, folder = (line for line in ours(first) if line.startswith("scalepet: "))
    assert versions.startswith(f"scalepet: scalepet differs: {scalepet.__version__} (")
    assert folder.startswith(f"scalepet: --output {tmp_path / 'file'} cannot be written on ")
    assert ours(other) == []


def test_a_rank_that_does_not_come() -> None:
    port = free_port()
    started = time.monotonic()
    [(code, output)] = finish_ranks([start(0, port, "--timeout", 4)], timeout_seconds=60)
    assert code == 2
    assert time.monotonic() - started < 20
    [fault] = ours(output)
    assert fault.startswith("scalepet: rank 1 of 2 did not come within 4 s (facts);")


def test_a_port_that_is_taken() -> None:
    """The other rank finds somebody there, but not its own."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        both = [start(rank, port, "--timeout", 4) for rank in range(2)]
        (code, first), (other_code, other) = finish_ranks(both, timeout_seconds=60)
    assert (code, other_code) == (2, 2), first + other
    assert f"scalepet: rank 0 cannot listen at port {port} of " in first
    assert f"scalepet: rank 1 on {socket.gethostname()} " in other


def test_a_check_that_hangs_ends_all_the_same(tmp_path: Path) -> None:
    """A pipe that nobody reads is as patient as a dead file server."""
    os.mkfifo(tmp_path / ".scalepet-check-0")
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run(
        [*CHECK, "--output", str(tmp_path), "--timeout", "1"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert f"rank 0 on {socket.gethostname()} hangs in the check: folder" in done.stderr


def test_an_environment_that_is_not_whole() -> None:
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "2"}
    done = subprocess.run(CHECK, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "has RANK, WORLD_SIZE but lacks LOCAL_RANK, MASTER_ADDR, MASTER_PORT;" in done.stderr


def test_a_hostfile_is_not_checked_by_ranks(tmp_path: Path) -> None:
    command = [*CHECK, "--hostfile", str(tmp_path / "hosts")]
    environment = {**os.environ, "RANK": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("scalepet: --hostfile is checked before a launcher starts;")
