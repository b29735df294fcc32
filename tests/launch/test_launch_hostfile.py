"""Hostfiles, and machines that do not answer as they should."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from scalepet.errors import LaunchError
from scalepet.launch.hostfile import reach_hosts, read_hostfile


def test_machines_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# ours\n\nnode2 slots=4\n  node1\tslots=8  # the old one\n")
    assert list(read_hostfile(path).items()) == [("node2", 4), ("node1", 8)]


def test_as_deepspeed_reads_it(tmp_path: Path) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    path = tmp_path / "hosts"
    path.write_text("# ours\n\nnode2 slots=4\n  node1\tslots=8\n")
    assert dict(fetch_hostfile(str(path))) == read_hostfile(path)


def test_every_fault_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("node1 slots=2\nnode2 slot=2\nnode3 slots=0\nnode1 slots=2\nnode4\n")
    with pytest.raises(LaunchError) as caught:
        read_hostfile(path)
    allowed = "allowed: as in node1 slots=8"
    assert caught.value.faults == (
        f"{path}:2: 'node2 slot=2'; {allowed}",
        f"{path}:3: 'node3 slots=0'; {allowed}",
        f"{path}:4: node1 stands there already; allowed: once",
        f"{path}:5: 'node4'; {allowed}",
    )


@pytest.mark.parametrize("content", [None, "", "# nobody\n"])
def test_no_machine(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "hosts"
    if content is not None:
        path.write_text(content)
    with pytest.raises(LaunchError, match="does not exist" if content is None else "no machine"):
        read_hostfile(path)


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ssh whose machines are called by what they do; "here" runs the command."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "pdsh").write_text("#!/bin/sh\n")
    (tools / "ssh").write_text(
        "#!/bin/sh\n"
        'while [ "$1" = -o ]; do shift 2; done\n'
        'case "$1" in\n'
        '  here) exec sh -c "$2" ;;\n'
        '  elsewhere) cd / && exec sh -c "$(echo "$2" | sed "s/^cd [^ ]*/cd no-such-folder/")" ;;\n'
        '  bare) exec sh -c "$(echo "$2" | sed "s/test -x .* ||/false ||/")" ;;\n'
        "  silent) exec sleep 60 ;;\n"
        '  *) echo "noise" >&2; echo "$1: Permission denied (publickey)." >&2; exit 255 ;;\n'
        "esac\n"
    )
    for name in ("ssh", "pdsh"):
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")


def test_a_machine_that_is_ready(ssh: None) -> None:
    reach_hosts(["here", "here"], timeout_seconds=20)


def test_machines_that_are_not(ssh: None) -> None:
    started = time.monotonic()
    with pytest.raises(LaunchError) as caught:
        reach_hosts(["here", "locked", "elsewhere", "bare", "silent"], timeout_seconds=3)
    assert time.monotonic() - started < 10
    locked, elsewhere, bare, silent = caught.value.faults
    assert "locked: Permission denied (publickey)." in locked and "noise" not in locked
    assert elsewhere.startswith(f"elsewhere has no folder {Path.cwd()};")
    assert bare.startswith(f"bare has no Python at {sys.executable};")
    assert silent == "silent has not answered ssh in time; is it up?"


def test_missing_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="ssh and pdsh not found"):
        reach_hosts(["node1"], timeout_seconds=1)
