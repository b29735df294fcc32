"""A study as an array of SLURM jobs, each with one cell."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from scalepet.errors import CheckpointError, LaunchError

CELLS = "cells.txt"
LAUNCHER = "launchers/slurm-array.sh"


def submit(study: Path, cells: Sequence[str], *, at_most: int | None = None) -> str:
    """Hand cells to SLURM, one job each.

    Args:
        study: the file that each job reads; the list of cells is written beside it.
        at_most: so many jobs at a time.

    Returns:
        What sbatch says.

    Raises:
        CheckpointError: the list cannot be written.
        LaunchError: sbatch is not there or refuses; the message has the command.
    """
    lines = study.with_name(CELLS)
    text = "".join(shlex.join(["sweep", str(study), "--only", cell]) + "\n" for cell in cells)
    try:
        lines.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{lines} cannot be written ({error.strerror})") from error
    limit = "" if at_most is None else f"%{at_most}"
    command = ["sbatch", f"--array=1-{len(cells)}{limit}", LAUNCHER, str(lines)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise LaunchError(
            f"sbatch cannot be started here ({error.strerror}); where SLURM is, in the root of the"
            f" repository: {shlex.join(command)}"
        ) from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise LaunchError(f"sbatch refuses: {said}; the command: {shlex.join(command)}")
    return done.stdout.strip()
