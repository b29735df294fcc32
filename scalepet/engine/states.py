"""The last states of a run, each a folder of its own, written while the run goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from scalepet import dist
from scalepet.engine.files import RECORD_FILE, write_folder
from scalepet.engine.run_state import RunState, gather_run_state, read_run_state
from scalepet.engine.sharded import Engine
from scalepet.errors import CheckpointError, ScalepetError
from scalepet.files import discard


@dataclass(frozen=True)
class SaveReport:
    """What a save has cost the run.

    Attributes:
        stall_seconds: for which the run stood still: to wait for the save before, and to copy.
        wait_seconds: the first part of these.
        state_bytes: of the tensors.
    """

    stall_seconds: float
    wait_seconds: float
    state_bytes: int


class States:
    """Writes the states of a run and keeps the last ones.

    The run stands still while its numbers are copied to host memory. One thread of rank 0 writes
    them, one state at a time. What it fails at is raised on all ranks: by the next ``save``, by
    ``check``, or by ``finish``. Leaving the context waits for the thread.

    Args:
        folder: of the states; made with the first one.
        keep: how many of the last ones stay.
        workplace: where rank 0 makes them; None for a temporary one beside each.
        guard: called by rank 0 before it writes; raises where it must not.

    Attributes:
        last_saved: after so many steps the last state was saved; None before the first one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        workplace: Path | None = None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        assert keep > 0
        self.folder = folder
        self.last_saved: int | None = None
        self._keep = keep
        self._workplace = workplace
        self._guard = guard
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="states")
        self._writing: Future[None] | None = None

    def __enter__(self) -> States:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self.finish()
        elif self._writing is not None and (failure := self._writing.exception()):
            error.add_note(f"besides, {failure}")

    def save(
        self,
        num_steps: int,
        engine: Engine,
        *,
        progress: Mapping[str, Any],
        fingerprint: Mapping[str, Any],
        fixed: Callable[[], Mapping[str, Tensor]],
    ) -> SaveReport:
        """Copy the state after ``num_steps`` optimizer steps, and write it from now on. All ranks
        together.

        Args:
            fixed: gives what ``gather_run_state`` takes; not changed in place afterwards.

        Raises:
            CheckpointError: the state before could not be written.
        """
        started = time.perf_counter()
        self.finish()
        waited = time.perf_counter()
        tensors, record = gather_run_state(
            engine, progress=progress, fingerprint=fingerprint, fixed=fixed()
        )
        self.last_saved = num_steps
        if dist.is_main():
            self._writing = self._thread.submit(self._write, num_steps, tensors, record)
        return SaveReport(
            stall_seconds=time.perf_counter() - started,
            wait_seconds=waited - started,
            state_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        )

    def check(self) -> None:
        """Returns at once where nothing has gone wrong so far. All ranks together.

        Raises:
            CheckpointError: the last state could not be written.
        """
        is_done = self._writing is not None and self._writing.done()
        dist.together(self._take_in if is_done else lambda: None)

    def finish(self) -> None:
        """Returns once the last state is on the disk. All ranks together.

        Raises:
            CheckpointError: it could not be written.
        """
        dist.together(self._take_in)

    def _take_in(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, num_steps: int, tensors: Mapping[str, Tensor], record: dict[str, Any]) -> None:
        folder = state_folder(self.folder, num_steps)
        try:
            self._guard()
            write_folder(folder, tensors=tensors, record=record, workplace=self._workplace)
            self._clear(num_steps)
        except ScalepetError:
            raise
        except Exception as error:  # in a form that reaches the other ranks
            raise CheckpointError(f"{folder} cannot be written: {error!r}") from error

    def _clear(self, newest: int) -> None:
        """Leave the state that was just written and those before it. A later one is what a run
        could not go on from that went on from an earlier one.

        What cannot be cleared now is with the next state.
        """
        kept = [steps for steps in saved_steps(self.folder) if steps <= newest][: self._keep]
        for path in self.folder.iterdir():
            steps = _steps_of(path)
            if steps is not None and steps not in kept and (path / RECORD_FILE).exists():
                with contextlib.suppress(OSError):
                    discard(path, workplace=self._workplace or self.folder)


def state_folder(folder: Path, num_steps: int) -> Path:
    """Where a state lies among the states of a run."""
    return folder / f"{num_steps:08}"


def saved_steps(folder: Path) -> list[int]:
    """After how many optimizer steps each state was saved, the newest first; some may be damaged.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    try:
        found = {_steps_of(path) for path in folder.iterdir()}
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error.strerror})") from error
    return sorted((steps for steps in found if steps is not None), reverse=True)


def _steps_of(path: Path) -> int | None:
    """After how many steps the state in a folder was saved; None of what has no state's name, which
    is the user's.
    """
    name = path.name.removesuffix(".old")  # as 0.1 left what it was replacing
    is_state = name.isdecimal() and name == state_folder(path, int(name)).name
    return int(name) if is_state and path.is_dir() and not path.is_symlink() else None


def newest_state(folder: Path) -> tuple[RunState | None, list[str]]:
    """The newest whole state, which rank 0 chooses, and what is wrong with every newer one; None
    where none was ever saved. All ranks together.

    Raises:
        CheckpointError: none is whole: what is wrong with each.
    """
    chosen = dist.together(lambda: _newest(folder) if dist.is_main() else (None, []))
    state, _ = chosen
    name, faults = dist.broadcast_object((state.folder.name if state else None, chosen[1]))
    if name is None:
        return None, []
    return dist.together(lambda: state or read_run_state(folder / name)), faults


def _newest(folder: Path) -> tuple[RunState | None, list[str]]:
    faults: list[str] = []
    for num_steps in saved_steps(folder):
        try:
            return read_run_state(state_folder(folder, num_steps)), faults
        except CheckpointError as error:
            faults.extend(error.faults)
    if faults:
        raise CheckpointError([*faults, f"{folder}: no state is whole, so the run cannot go on"])
    return None, []
