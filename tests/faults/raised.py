"""One group of processes, in which one rank fails in many ways, one after the other.

As a script: ``raised.py '{"cases": {NAME: {...}}, "out": FOLDER, ...}'``, on every rank; each
writes what it ended with.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

SAID = "no luck"


@dataclass(frozen=True)
class Case:
    """A story in which one rank fails where it calls ``place`` for the first time.

    Attributes:
        story: "train", "stream", "predict", "evaluate" or "export".
        place: a module of scalepet and a name in it.
    """

    story: str
    place: str
    rank: int
    error: str = "ValueError"


@contextlib.contextmanager
def failing(case: Case, rank: int) -> Iterator[None]:
    """Only the first call: what is raised on one rank is to be told, not to be met again."""
    import importlib

    module, _, name = case.place.rpartition(".")
    home: Any = importlib.import_module(f"scalepet.{module}")
    plain = getattr(home, name)

    def fail(*arguments: Any, **options: Any) -> Any:
        if rank == case.rank:
            raise getattr(builtins, case.error)(SAID)
        return plain(*arguments, **options)

    with mock.patch.object(home, name, fail):
        yield


def stories(argument: dict[str, Any]) -> dict[str, Callable[[Path], None]]:
    from rich.console import Console

    from scalepet import recipes
    from scalepet.config import read_config, read_stream_config

    console = Console(quiet=True)
    adapter, rows = Path(argument["adapter"]), Path(argument["rows"])

    def train(folder: Path) -> None:
        config = read_config(Path(argument["run"]), [f"output={folder}"])
        recipes.finetune(config, resume=False, console=console)

    def stream(folder: Path) -> None:
        config = read_stream_config(Path(argument["stream"]), [f"output={folder}"])
        for _ in recipes.learn_stream(config, resume=False, console=console):
            pass

    def predict(folder: Path) -> None:
        recipes.predict([adapter], file=rows, into=folder, overrides={})

    return {
        "train": train,
        "stream": stream,
        "predict": predict,
        "evaluate": lambda _: recipes.evaluate_adapters([adapter], overrides={}) and None,
        "export": lambda folder: recipes.export_merged(adapter, folder, overrides={}),
    }


def main() -> None:
    import torch

    from scalepet import dist, engine

    argument, found = json.loads(sys.argv[1]), {}
    engine.join_processes(timeout_seconds=60)
    engine.joined = lambda: contextlib.nullcontext(torch.device("cpu"))
    out, known = Path(argument["out"]), stories(argument)
    for number, (name, fields) in enumerate(argument["cases"].items()):
        case, started, ended = Case(**fields), time.monotonic(), "with nothing"
        try:
            with failing(case, dist.rank()):
                known[case.story](out / f"run-{number}")
        except Exception as error:
            ended = f"{type(error).__name__}: {error}"
        dist.barrier()
        left = [p.name for p in out.rglob("*") if p.name.startswith(("run.lock", ".scalepet-"))]
        found[name] = {"ended": ended, "seconds": time.monotonic() - started, "left": left}
    (out / f"rank-{dist.rank()}.json").write_text(json.dumps(found))
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
