"""What a test is marked with that starts processes on the emulated device, or runs in one."""

from __future__ import annotations

import os

import pytest

from emulated_cuda import FOLDER, GPUS

needed = pytest.mark.skipif(
    FOLDER not in os.environ,
    reason=f"no emulated CUDA device: tests/run.sh builds it for a CPU build of torch ({FOLDER})",
)

inside = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        GPUS not in os.environ,
        reason="test_gpu_marked.py runs it, in a process that has the emulated CUDA device",
    ),
]
