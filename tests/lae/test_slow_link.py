"""Where gathering weights dominates, an ensemble takes about as long as one of its experts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("slow_link.py")
NO_LINK = 77
RATE_MBIT = 150


@pytest.mark.network
@pytest.mark.slow
def test_an_ensemble_takes_at_most_a_fifth_longer() -> None:
    command = [sys.executable, str(SCRIPT), "--over", "shaped", "--rate", f"{RATE_MBIT}mbit"]
    done = subprocess.run([*command, "--rounds", "5"], capture_output=True, text=True)
    if done.returncode == NO_LINK:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])["shaped"]
    assert found["together_sent_bytes"] == pytest.approx(found["sent_bytes"], rel=0.01)
    link_seconds = found["sent_bytes"] * 8 / (RATE_MBIT * 1e6)
    assert found["seconds"] > link_seconds > 0.7 * found["seconds"], "the link does not dominate"
    assert found["ratio"] <= 1.2, done.stdout
