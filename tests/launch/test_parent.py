"""A rank is asked to stop once its launcher is gone. As a script this file is such a rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from scalepet.launch.parent import stop_with_launcher

LAUNCHER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, sys.argv[1]])
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("LOCAL_SIZE", "asked to stop"),
        ("TORCHELASTIC_RUN_ID", "asked to stop"),
        ("ANY", "left alone"),
    ],
)
def test_a_rank_notices_that_its_launcher_was_killed(variable: str, expected: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_SIZE",)}
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, __file__],
        env={**environment, variable: "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    with launcher.stdout:
        assert launcher.stdout.readline() == "ready\n"
        launcher.kill()
        launcher.wait()
        assert launcher.stdout.read() == f"{expected}\n"


if __name__ == "__main__":
    stop_with_launcher()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    print("ready", flush=True)
    is_asked = signal.sigtimedwait([signal.SIGTERM], 1.5)
    print("asked to stop" if is_asked else "left alone")
