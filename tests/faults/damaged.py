"""Runs one after another in one process: a whole one, one that breaks, and copies of the broken one
that are damaged and then go on.

As a script: ``damaged.py '{"folder": ..., "config": ..., "cases": {NAME: CASE}}'``; ``out.json`` in
the folder holds how each case ended.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from scalepet import engine
from scalepet.config import read_config
from scalepet.engine.processes import end_process
from scalepet.errors import ScalepetError
from scalepet.recipes import finetune
from scalepet.recipes.lock import Holder

BREAKS_BEFORE_STEP = 10


@dataclasses.dataclass(frozen=True)
class Case:
    """What happens to a copy of the broken run before it goes on.

    Attributes:
        damage: (what, file): cut, flip, empty, remove, garbage, cut-line (the last one),
            garbage-line (before the first one), lose-lines (of its middle), old (0.1 died while it
            was being replaced), replaced (so did a process of today) or future (of its time).
        clock_seconds: by which the clock is moved in the middle of the run.
    """

    damage: tuple[tuple[str, str], ...] = ()
    overrides: tuple[str, ...] = ()
    accept: tuple[str, ...] = ()
    clock_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Ending:
    """How it ended.

    Attributes:
        faults: none where it came to its end.
        seconds: that it took.
    """

    said: str
    faults: tuple[str, ...]
    seconds: float


def damage(path: Path, what: str) -> None:
    if what == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif what == "flip":
        flip(path, bit=8 * (path.stat().st_size // 2) + 1)
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "remove":
        path.unlink()
    elif what == "garbage":
        path.write_bytes(b"\xff[\0\n" * 20)
    elif what == "cut-line":
        os.truncate(path, path.stat().st_size - 7)
    elif what == "garbage-line":
        path.write_bytes(b"\xff[\0\n" + path.read_bytes())
    elif what == "lose-lines":
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:3] + lines[5:]))
    elif what == "old":
        path.rename(path.with_name(f"{path.name}.old"))
    elif what == "replaced":
        workplace = path.with_name(".scalepet-of-the-dead")
        workplace.mkdir()
        path.rename(workplace / f"{path.name}.old")
        dead = dataclasses.replace(Holder.here(), started=1, workplace=workplace.name)
        path.with_name("run.lock").write_text(json.dumps(dataclasses.asdict(dead)))
    elif what == "future":
        os.utime(path, (time.time() + 86_400,) * 2)
    else:
        raise AssertionError(what)


def flip(path: Path, *, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


def end_of(config: Path, folder: Path, *, resume: bool, case: Case) -> Ending:
    said = io.StringIO()
    faults: tuple[str, ...] = ()
    started = time.monotonic()
    try:
        run = read_config(config, [f"output={folder}", *case.overrides])
        console = Console(file=said, width=10_000)
        finetune(run, resume=resume, console=console, accept=case.accept)
    except ScalepetError as error:
        faults = error.faults
    return Ending(said.getvalue(), faults, time.monotonic() - started)


class BrokenError(Exception):
    """As a fault of the machine."""


def at_step(number: int, happens: Callable[[], None]) -> Callable[[], None]:
    """Let it happen before an optimizer step of what runs next; what takes it back."""
    train_step, clock, left = engine.train_step, time.time, [number]

    def train(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            happens()
        return train_step(*arguments, **options)

    def take_back() -> None:
        engine.train_step, time.time = train_step, clock

    engine.train_step = train
    return take_back


def breaks() -> None:
    raise BrokenError


def shift_clock(seconds: float) -> None:
    now = time.time
    time.time = lambda: now() + seconds


def main() -> None:
    work = json.loads(sys.argv[1])
    folder, config = Path(work["folder"]), Path(work["config"])
    endings = {"whole": end_of(config, folder / "whole", resume=False, case=Case())}
    take_back = at_step(BREAKS_BEFORE_STEP, breaks)
    try:
        end_of(config, folder / "broken", resume=False, case=Case())
    except BrokenError:
        take_back()
    for name, fields in work["cases"].items():
        case = Case(**fields)
        shutil.copytree(folder / "broken", folder / name)
        for what, file in case.damage:
            damage(folder / name / file, what)
        take_back = at_step(2, lambda seconds=case.clock_seconds: shift_clock(seconds))
        endings[name] = end_of(config, folder / name, resume=True, case=case)
        take_back()
    text = json.dumps({name: dataclasses.asdict(ending) for name, ending in endings.items()})
    (folder / "out.json").write_text(text)


if __name__ == "__main__":
    engine.join_processes()
    main()
    engine.leave_processes()
    end_process(0)
