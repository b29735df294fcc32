"""A CUDA device that is not there: how a process is started that sees it. See README.md.

A test that starts one is marked with ``emulated_cuda.marks.needed``; in the process itself
``emulated_cuda.device`` counts what the program does.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = "SCALEPET_EMULATED_CUDA"
"""The variable that says where the built device lies; tests/run.sh sets it."""

GPUS = "SCALEPET_EMULATED_GPUS"
"""The one that says how many GPUs a process sees; none has taken in the device without it."""

START = Path(__file__).with_name("start")
LEFT_OUT = (
    *("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"),  # which hide a real device
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)


def environment(*, num_gpus: int = 2) -> dict[str, str]:
    """That of a process that sees so many GPUs and keeps to one core."""
    kept = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    path = [str(START), str(START.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(path),
        GPUS: str(num_gpus),
        "TRITON_INTERPRET": "1",  # nothing there runs what Triton compiles
        "OMP_NUM_THREADS": "1",
    }
