"""launchers/hostfile.sh: DeepSpeed's launcher, pdsh and sshd, between two hosts on this machine."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab import Host, wait_until
from running import read_losses, read_result

pytestmark = [pytest.mark.network, pytest.mark.timeout(200)]

SECONDS_TO_NOTICE = 15
"""From the death of a process to the end of the others; 2 on an idle machine."""

Hosts = tuple[Host, Host]


@pytest.fixture
def hostfile(checkout: Path) -> Path:
    path = checkout / "hosts"
    path.write_text("# two machines\nnode1 slots=1\nnode2 slots=1\n")
    return path


@contextmanager
def launched(
    host: Host, *words: object, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """hostfile.sh on that host; its words go to the file "said"."""
    command = host.command("bash", "launchers/hostfile.sh", *words)
    with Path("said").open("w") as said:
        process = subprocess.Popen(
            command, env=environment, stdout=said, stderr=subprocess.STDOUT, text=True
        )
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str], *, seconds: float) -> tuple[int, str]:
    """Its exit code and its words."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        pytest.fail(f"not within {seconds} s; said:\n{Path('said').read_text()}")
    return process.returncode, Path("said").read_text()


def ranks_on(host: Host, *, of: str) -> list[str]:
    """The processes of a training there."""
    pattern = f"python.* -m scalepet .*{of}"
    found = subprocess.run(host.command("pgrep", "-f", f"^[^ ]*{pattern}"), capture_output=True)
    return found.stdout.decode().split()


def test_hosts_that_are_not_there_are_named_at_once(hosts: Hosts, hostfile: Path) -> None:
    """pdsh would wait for them for ever."""
    hostfile.write_text("node1 slots=1\nnode3 slots=1\n10.99.88.3 slots=1\n")
    command = hosts[0].command("bash", "launchers/hostfile.sh", hostfile, "train", "run.yaml")
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert time.monotonic() - started < 30
    first, second = done.stderr.splitlines()
    assert first.startswith("scalepet: node3 cannot be reached by ssh")
    assert second.startswith("scalepet: 10.99.88.3 cannot be reached by ssh")


def test_a_folder_that_is_not_shared_is_found(hosts: Hosts, hostfile: Path) -> None:
    Path("mine").mkdir()
    hosts[1].run("mount", "-t", "tmpfs", "tmpfs", Path("mine").absolute())
    with launched(hosts[0], hostfile, "launch", "--check", "--output", "mine") as process:
        code, said = ended(process, seconds=90)
    assert code == 2, said
    lines = said.splitlines()
    names = [line.removeprefix("node1: ") for line in lines if line.startswith("node1: ok")]
    assert [name.split()[1] for name in names] == ["processes", "devices", "versions", "network"]
    for seeing, writing in (("node1", "node2"), ("node2", "node1")):
        assert f"{seeing} does not see what {writing} wrote" in said


@pytest.mark.slow
def test_a_signal_lets_the_ranks_save(
    hosts: Hosts, hostfile: Path, stand_in: dict[str, str]
) -> None:
    words = ["train", "asked", "wait", "%h costs $5", "it's_$HOME"]
    with launched(hosts[0], hostfile, *words, environment=stand_in) as process:
        notes = Path("asked.1")
        wait_until(notes.exists, seconds=60, what="the ranks have started")
        time.sleep(0.5)
        [launcher] = hosts[0].run("pgrep", "-f", "^bash launchers/hostfile.sh").split()[:1]
        hosts[0].run("kill", "-TERM", launcher)
        code, said = ended(process, seconds=30)
    assert code == 75, said
    given = json.loads(notes.read_text())
    assert given["arguments"] == [*words, "--resume"]
    assert (given["host"], given["WORLD_SIZE"]) == ("node2", "2")
    assert not ranks_on(hosts[0], of="asked")
    assert not ranks_on(hosts[1], of="asked")


def test_a_run_goes_on_after_one_host_lost_its_processes(
    hosts: Hosts, hostfile: Path, write_run: Any, checkout: Path
) -> None:
    folder = checkout / "killed"
    train = {"steps": 80, "evaluate_every": 10}
    config = write_run(folder, "bert", deepspeed="zero3", train=train)
    with launched(hosts[0], hostfile, "train", config) as process:
        has_state = lambda: any(folder.glob("states/*[0-9]/scalepet.json"))  # noqa: E731
        wait_until(has_state, seconds=90, what="a state has been saved")
        [victim] = ranks_on(hosts[1], of=str(config))
        hosts[1].run("kill", "-KILL", victim)
        again = "the run failed with exit code"
        what = "the other rank has ended, and its launcher"
        said = Path("said")
        wait_until(lambda: again in said.read_text(), seconds=SECONDS_TO_NOTICE, what=what)
        code, words = ended(process, seconds=90)
    assert code == 0, words
    assert "node1: scalepet: rank 0 on node1 failed: " in words  # who noticed
    assert "node2: ssh exited with exit code 247" in words  # who was killed: 256 - 9
    assert "going on at" in words
    assert len(read_losses(folder)) == read_result(folder)["num_steps"] == 80
