"""scalepet, to which something happens at one moment.

As a script: ``struck.py WHAT@PLACE:NUMBER[@RANK] COMMAND ...``; ``none@`` does nothing. WHAT is
kill (no warning), hang (SIGSTOP), fill=FOLDER (its disk is full from then on), clock=SECONDS (the
clock is moved by so much) or raise=ERROR (a built-in one). The moment is the NUMBER-th time that
the rank comes to a place:

    load   the backbone is in memory
    step   before an optimizer step
    batch  before a batch of an evaluation
    write  before a file that is saved is written, forced to the disk, renamed or removed
    tear   half of a file of tensors is written

A rank that ends by itself says how often it came to each: ``passed 0 {"load": 1, ...}``.
"""

from __future__ import annotations

import builtins
import collections
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

PLACES = ("load", "step", "batch", "write", "tear")
PIECE_BYTES = 4096

_passed: collections.Counter[str] = collections.Counter(dict.fromkeys(PLACES, 0))
_rank = os.environ.get("RANK", "0")
_terminal = os.dup(2)
"""What ranks but the first say goes into files from some point on."""

_what = _place = _number = ""


def is_due(place: str) -> bool:
    _passed[place] += 1
    return (place, str(_passed[place])) == (_place, _number)


def pass_by(place: str) -> None:
    if is_due(place):
        strike()


def strike() -> None:
    what, _, value = _what.partition("=")
    # In one piece, as several ranks write.
    os.write(_terminal, f"struck {what} {_rank} {os.getpid()} {time.monotonic()}\n".encode())
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "fill":
        fill(Path(value))
    elif what == "clock":
        shift_clock(float(value))
    elif what == "raise":
        raise getattr(builtins, value)(f"struck at {_place}")


def fill(folder: Path) -> None:
    descriptor = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT)
    for size in (PIECE_BYTES, 1):
        try:
            while os.write(descriptor, b"x" * size):
                pass
        except OSError:
            continue


def shift_clock(seconds: float) -> None:
    now = time.time
    time.time = lambda: now() + seconds


def after(work: Callable[..., Any], place: str) -> Callable[..., Any]:
    def struck(*arguments: Any, **options: Any) -> Any:
        result = work(*arguments, **options)
        pass_by(place)
        return result

    return struck


def before(work: Callable[..., Any], place: str) -> Callable[..., Any]:
    def struck(*arguments: Any, **options: Any) -> Any:
        pass_by(place)
        return work(*arguments, **options)

    return struck


def torn(save_file: Callable[..., Any]) -> Callable[..., Any]:
    def save(tensors: Any, path: Path, *arguments: Any, **options: Any) -> None:
        save_file(tensors, path, *arguments, **options)
        if is_due("tear"):
            os.truncate(path, path.stat().st_size // 2)
            strike()

    return save


def say_how_often(end_process: Callable[[int], NoReturn]) -> Callable[[int], NoReturn]:
    def end(code: int) -> NoReturn:
        os.write(_terminal, f"passed {_rank} {json.dumps(_passed)}\n".encode())
        end_process(code)

    return end


def take_moment() -> None:
    """Out of the arguments; the launcher passes --local_rank before all else."""
    global _what, _place, _number
    (moment,) = (word for word in sys.argv if "@" in word)
    sys.argv.remove(moment)
    _what, place, *ranks = moment.split("@")
    if _rank in (ranks or [_rank]):
        _place, _, _number = place.partition(":")


def main() -> None:
    take_moment()

    import safetensors.torch

    from scalepet import build, cli, data, engine
    from scalepet.engine import evaluate, processes

    build.load_backbone = after(build.load_backbone, "load")
    engine.train_step = before(engine.train_step, "step")
    safetensors.torch.save_file = before(torn(safetensors.torch.save_file), "write")
    os.fsync = before(os.fsync, "write")
    os.replace = before(os.replace, "write")
    Path.rename = before(Path.rename, "write")  # type: ignore[method-assign]
    shutil.rmtree = before(shutil.rmtree, "write")  # type: ignore[assignment]
    processes.end_process = say_how_often(processes.end_process)

    class Batches(data.EvalLoader):
        def __iter__(self) -> Iterator[data.Batch]:
            for batch in super().__iter__():
                pass_by("batch")
                yield batch

    evaluate.EvalLoader = Batches  # type: ignore[misc]
    cli.main()


if __name__ == "__main__":
    main()
