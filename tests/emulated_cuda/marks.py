"""What a test on the emulated device is marked with."""

from __future__ import annotations

import os

import pytest

from emulated_cuda import FOLDER

needed = pytest.mark.skipif(
    FOLDER not in os.environ,
    reason=f"no emulated CUDA device: tests/run.sh builds it for a CPU build of torch ({FOLDER})",
)
