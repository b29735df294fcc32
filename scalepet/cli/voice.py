"""One voice: of all ranks the first one speaks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import typer

EXIT_REFUSED = 2

SECONDS_TO_SPEAK = 5.0
"""Launchers kill all ranks once one has ended, and the one that speaks may be the slowest."""


def is_main() -> bool:
    """Whether this process is the one that prints, as its launcher says."""
    return os.environ.get("RANK", "0") == "0"


def refuse(faults: Sequence[str]) -> NoReturn:
    """Say every fault on a line of its own, and end this rank with exit code 2."""
    if is_main():
        for fault in faults:
            typer.echo(f"scalepet: {fault}", err=True)
    else:
        time.sleep(SECONDS_TO_SPEAK)
    end(EXIT_REFUSED)


def end(code: int) -> NoReturn:
    """End this process, which may have worked in a group of processes."""
    # Looked up, not imported: commands that need no engine end without its seconds of imports.
    processes = sys.modules.get("scalepet.engine.processes")
    if processes is not None:
        processes.end_process(code)
    sys.exit(code)


def quiet_libraries() -> None:
    """Notes and progress bars of transformers come from the first rank at most, where one looks."""
    from scalepet.backbones import quiet_transformers

    quiet_transformers(show_progress=is_main() and sys.stderr.isatty())
