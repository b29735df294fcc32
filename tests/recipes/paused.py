"""scalepet, but it pauses at some places and says so, for as long as it takes to send it signals.

As a script: ``paused.py step:3,save:1 COMMAND ...``: the third time that a process comes to a step
and, once that has passed, the first time that it is in the middle of a save. Other places are
"load" and "batch", of an evaluation.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

SECONDS = 1.5

_terminal = os.dup(1)
"""Where all ranks say it: what else they say goes into files, but for the first rank's."""

_left: list[list[Any]] = []
"""[place, passages until the pause] of what is still to come."""


def pass_by(place: str) -> None:
    if not _left or _left[0][0] != place:
        return
    _left[0][1] -= 1
    if _left[0][1] == 0:
        _left.pop(0)
        line = f"paused at {place} {os.environ.get('RANK', '0')} {os.getpid()}\n"
        os.write(_terminal, line.encode())  # in one piece, as several ranks write
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(0.01)


def pausing_at(place: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def paused(*arguments: Any, **options: Any) -> Any:
        result = work(*arguments, **options)
        pass_by(place)
        return result

    return paused


def main() -> None:
    # The launcher passes --local_rank before all else.
    (places,) = (argument for argument in sys.argv if ":" in argument and "=" not in argument)
    sys.argv.remove(places)
    _left.extend(
        [place, int(number)] for place, number in (p.split(":") for p in places.split(","))
    )

    import safetensors.torch

    from scalepet import build, cli, data, engine
    from scalepet.engine import evaluate

    build.load_backbone = pausing_at("load", build.load_backbone)
    safetensors.torch.save_file = pausing_at("save", safetensors.torch.save_file)

    class Batches(data.EvalLoader):
        def __iter__(self) -> Iterator[data.Batch]:
            for batch in super().__iter__():
                pass_by("batch")
                yield batch

    evaluate.EvalLoader = Batches  # type: ignore[misc]
    train_step = engine.train_step

    def train_paused(*arguments: Any, **options: Any) -> engine.StepReport:
        pass_by("step")
        return train_step(*arguments, **options)

    engine.train_step = train_paused
    cli.main()


if __name__ == "__main__":
    main()
