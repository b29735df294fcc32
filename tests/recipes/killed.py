"""scalepet, but killed without warning right after the run state is saved for the N-th time.

As a script: ``killed.py N COMMAND ...``.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from scalepet import engine
from scalepet.cli import main

last_save = int(sys.argv.pop(1))
saves = 0
save = engine.save_run_state


def save_and_die(*arguments: Any, **options: Any) -> None:
    global saves
    save(*arguments, **options)
    saves += 1
    if saves == last_save:
        os.kill(os.getpid(), signal.SIGKILL)


engine.save_run_state = save_and_die
main()
