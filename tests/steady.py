"""Streams one after the other in one process group, with an Adam that a reference can be held to.

With the usual epsilon a gradient of 1e-9 moves a number by a whole step, and rounding decides where
to. As a script: ``steady.py CONFIG...``, on every rank.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from scalepet import build, engine
from scalepet.config import read_stream_config
from scalepet.recipes import learn_stream

EPSILON = 1e-2
optimizer_of = build.optimizer_of


def steady(config: Any) -> Any:
    return dataclasses.replace(optimizer_of(config), epsilon=EPSILON)


if __name__ == "__main__":
    build.optimizer_of = steady
    engine.join_processes()
    for path in sys.argv[1:]:
        if path.startswith("--local_rank"):
            continue
        for _ in learn_stream(read_stream_config(Path(path)), resume=False, console=Console()):
            pass
    engine.leave_processes()
    engine.end_process(0)
