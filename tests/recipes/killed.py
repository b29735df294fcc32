"""scalepet, but killed without warning at a place that it comes to for the N-th time: right after a
run state is on the disk, or before a micro-batch goes backward.

As a script: ``killed.py N COMMAND ...`` or ``killed.py micro-batch:N COMMAND ...``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from scalepet.cli import main
from scalepet.engine import Engine, states

# The launcher passes --local_rank before all else.
(number,) = (word for word in sys.argv[1:3] if word.replace("micro-batch:", "").isdigit())
sys.argv.remove(number)
place, _, text = number.rpartition(":")
left = int(text)


def die_in_time() -> None:
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def dying_after(work: Callable[..., Any]) -> Callable[..., Any]:
    def work_and_die(*arguments: Any, **options: Any) -> Any:
        result = work(*arguments, **options)
        die_in_time()
        return result

    return work_and_die


if place:
    Engine.backward = dying_after(Engine.backward)  # type: ignore[method-assign]
else:
    states.write_folder = dying_after(states.write_folder)
main()
