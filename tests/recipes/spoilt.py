"""Runs one after another in the same processes, the losses of some steps spoilt.

As a script: ``spoilt.py '{"out": ..., "runs": {NAME: RUN}}'``, on every rank; ``out/NAME.json``
holds what rank 0 said, and the message with which the run ended, if any.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from scalepet import dist, engine
from scalepet.config import read_config, read_stream_config
from scalepet.errors import ScalepetError
from scalepet.recipes import finetune, learn_stream


@dataclasses.dataclass(frozen=True)
class Run:
    """One call of a recipe.

    Attributes:
        bad: which of its optimizer steps, from 1, have a last rank whose loss is no number.
    """

    config: str
    overrides: tuple[str, ...] = ()
    bad: tuple[int, ...] = ()
    resume: bool = False
    is_stream: bool = False


def spoiling(run: Run, train_step: Callable[..., Any]) -> Callable[..., Any]:
    """Counts its calls, which in a stream go over all experiences."""
    is_last_rank = dist.rank() == dist.world_size() - 1
    num_calls = 0

    def spoilt(runner: Any, step: Any, *, loss_sum: Any, **options: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        number = num_calls if run.is_stream else step.index + 1
        factor = float("nan") if number in run.bad and is_last_rank else 1.0
        return train_step(
            runner, step, loss_sum=lambda *given: loss_sum(*given) * factor, **options
        )

    return spoilt


def call(run: Run) -> dict[str, Any]:
    said = io.StringIO()
    console, message = Console(file=said, width=200), None
    plain, engine.train_step = engine.train_step, spoiling(run, engine.train_step)
    try:
        if run.is_stream:
            stream = read_stream_config(Path(run.config), run.overrides)
            for _ in learn_stream(stream, resume=run.resume, console=console):
                pass
        else:
            finetune(
                read_config(Path(run.config), run.overrides), resume=run.resume, console=console
            )
    except ScalepetError as error:
        message = str(error)
    finally:
        engine.train_step = plain
    return {"said": said.getvalue(), "message": message}


def main() -> None:
    argument = json.loads(sys.argv[1])
    engine.join_processes(timeout_seconds=60)
    # torch computes in fp16 on a CPU, DeepSpeed just does not want to.
    from deepspeed.accelerator import get_accelerator

    for name, run in argument["runs"].items():
        get_accelerator().is_fp16_supported = lambda name=name: "fp16" in name
        found = call(Run(**run))
        found["message"] = dist.all_gather_objects(found["message"])
        if dist.is_main():
            (Path(argument["out"]) / f"{name}.json").write_text(json.dumps(found))
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
