"""stdout and stderr that are closed, full, or read by nobody."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from scalepet.errors import LaunchError

SCALEPET = [sys.executable, "-m", "scalepet"]

SPEAKING = """
import os, subprocess, sys
from pathlib import Path
from scalepet.cli.streams import be_patient, check_answered

be_patient()
for number in range(5):
    print("to stdout", number, flush=True)
    print("to stderr", number, file=sys.stderr, flush=True)
child = subprocess.run(["sh", "-c", "echo of a child"])
Path("done").write_text(str(child.returncode))
check_answered()
"""


def run_shell(line: str, **options: object) -> subprocess.CompletedProcess[str]:
    """A line of bash, which ends with the code of the first program of its pipe."""
    command = ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}", *SCALEPET]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize(
    ("streams", "code"),
    [
        (">&-", 0),
        ("2>&-", 0),
        (">&- 2>&- <&-", 0),
        ("2>/dev/full", 0),
        ("| true", 0),
        (">/dev/full", 1),  # the answer of a command is lost
    ],
)
def test_a_process_goes_on(streams, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "speaking.py").write_text(SPEAKING)
    done = run_shell(f"{sys.executable} speaking.py {streams}")
    of_child = (tmp_path / "done").read_text()  # which writes to the same streams
    assert of_child == "0" or streams == ">/dev/full"
    assert done.returncode == code, done.stderr
    if code:
        expected = f"stdout cannot be written: {os.strerror(errno.ENOSPC)}; the answer is not whole"
        assert done.stderr.splitlines()[-1] == f"{LaunchError.__module__}.LaunchError: {expected}"


@pytest.mark.parametrize(
    ("words", "streams", "code"),
    [
        ("--help", "| head -n 1", 0),
        ("--help", ">&-", 0),
        ("trian", ">&-", 2),
        ("trian", "2>/dev/full", 2),
        ("trian", ">&- 2>&- <&-", 2),
        ("train --fields", ">/dev/full", 2),
    ],
)
def test_exit_codes_keep_their_meaning(words, streams, code, tmp_path):
    done = run_shell(f'"$0" "$@" {words} {streams}', cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    if "fields" in words:
        assert done.stderr.startswith("scalepet: stdout cannot be written: ")
