"""Run a study: what is finished stays, what is broken goes on, what fails is listed."""

from __future__ import annotations

import gc
import json
import os
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from scalepet import dist, engine
from scalepet.errors import CheckpointError, DataError, ScalepetError
from scalepet.reading import parse_json, read_text
from scalepet.recipes.finetune import finetune
from scalepet.recipes.lock import one_run_in
from scalepet.recipes.run_folder import STATES, say, writing, written_by_run
from scalepet.recipes.study import CellPlan, StudyRun, best_factor
from scalepet.signals import Stopped, StopRequest
from scalepet.tracking import check_seal, without_secrets
from scalepet.tracking.seal import SEAL

FAILED = "failed.json"

Standing = Literal["finished", "begun", "failed", "to do"]
STANDINGS: tuple[Standing, ...] = ("finished", "begun", "failed", "to do")


def standing(folder: Path) -> Standing:
    """How far the run in a folder is. Not a collective."""
    try:
        check_seal(folder)
        return "finished"
    except DataError:
        if (folder / FAILED).exists():
            return "failed"
        return "begun" if (folder / "run.json").exists() else "to do"


def score_of(run: StudyRun) -> float:
    """Of a finished run, on the rows that choose. Not a collective."""
    result = parse_json(read_text(run.folder / "result.json"))
    return float(result["metrics"][f"eval/{run.metric}"])


def faults_of(folder: Path) -> list[str]:
    """Why the run in a folder failed. Not a collective."""
    return list(parse_json(read_text(folder / FAILED))["faults"])


def chosen_factor(cell: CellPlan) -> float | None:
    """The best factor of a cell once every try is finished or has failed. Not a collective."""
    standings = [standing(run.folder) for run in cell.tries]
    if not {"finished"} <= {*standings} <= {"finished", "failed"}:
        return None
    tries = zip(cell.tries, standings, strict=True)
    return best_factor({run.cell.factor: score_of(run) for run, how in tries if how == "finished"})


def runs_known(cell: CellPlan) -> Iterator[StudyRun]:
    """Every run of a cell whose learning rate is known by now. Not a collective."""
    yield from cell.tries
    factor = chosen_factor(cell)
    if factor is not None:
        yield from cell.repeats(factor)


def num_left(cell: CellPlan) -> int:
    """Runs of a cell that are not finished. Not a collective."""
    return cell.num_runs - sum(standing(run.folder) == "finished" for run in runs_known(cell))


@dataclass(frozen=True)
class Sweep:
    """Goes through cells, on all ranks together.

    Attributes:
        console: where rank 0 writes a line for every run.
        stop: where others ask for an end.
    """

    console: Console
    stop: StopRequest

    def run(self, cells: Sequence[CellPlan]) -> None:
        """Run what is not finished. A run that fails leaves failed.json, and the others go on.

        Raises:
            Stopped: as asked, with the state of the run saved.
            CheckpointError: the study folder cannot be written.
            Exception: what is no ``ScalepetError``, where several ranks work together.
        """
        gc.freeze()  # what is here by now need not be looked through after every run
        try:
            for cell in cells:
                self._run_cell(cell)
        finally:
            gc.unfreeze()

    def _run_cell(self, cell: CellPlan) -> None:
        for run in cell.tries:
            self._finish(cell, run)
        factor = dist.broadcast_object(chosen_factor(cell) if dist.is_main() else None)
        if factor is not None:
            for run in cell.repeats(factor):
                self._finish(cell, run)

    def _finish(self, cell: CellPlan, run: StudyRun) -> None:
        if dist.sum_over_ranks(int(self.stop.is_made)):
            raise Stopped("stopped as asked between two runs; the same command goes on")
        faults: Sequence[str] = ()
        if dist.broadcast_object(standing(run.folder)) != "finished":
            started = time.perf_counter()
            faults = self._train(run)
            if dist.is_main():
                seconds = time.perf_counter() - started
                said = f"failed: {'; '.join(faults)}" if faults else _score_in_words(run, seconds)
                say(self.console, f"{cell.name}  {run.folder.name}  {said}")
                if not faults:  # nobody goes on from there, and states are most of the bytes
                    shutil.rmtree(run.folder / STATES, ignore_errors=True)
        engine.on_main(lambda: _note(run.folder / FAILED, faults))

    def _train(self, run: StudyRun) -> Sequence[str]:
        """Train to the end, or tell why that cannot be."""
        try:
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                silent = Console(file=nowhere)
                self._clear_broken(run.folder, silent)
                engine.on_main(lambda: run.cell.write(run.folder))
                finetune(run.config, resume=True, console=silent, stop=self.stop)
            return ()
        except Stopped as error:  # in the words of a run, which takes --resume
            raise Stopped(f"stopped as asked in {run.folder}; the same command goes on") from error
        except ScalepetError as error:
            return error.faults
        except Exception as error:
            if dist.world_size() > 1:  # the others may wait for this rank in a collective
                raise
            traceback.print_exception(error)
            return [f"{type(error).__name__}: {error}"]
        finally:
            gc.collect()  # an engine is a circle of objects, and the next one needs its memory

    def _clear_broken(self, folder: Path, console: Console) -> None:
        """Empty the folder of a run that cannot go on: none of its states is whole, or it has ended
        and is not as it was sealed.
        """
        try:
            dist.together(lambda: _check_ended(folder) if dist.is_main() else None)
            engine.newest_state(folder / STATES)
        except (CheckpointError, DataError) as error:
            if dist.is_main():
                say(self.console, f"{folder}: begins again: {'; '.join(error.faults)}")
            with one_run_in(folder, say=lambda words: say(console, words)):
                engine.on_main(lambda: _empty(folder))


def _score_in_words(run: StudyRun, seconds: float) -> str:
    return f"{run.metric} {score_of(run):.4f}  {seconds:.1f} s"


def _check_ended(folder: Path) -> None:
    """Raises DataError where a run has ended and is not as it was sealed."""
    if (folder / SEAL).exists():
        check_seal(folder)


def _empty(folder: Path) -> None:
    """Remove what a run has written.

    Raises:
        CheckpointError: something cannot be removed.
    """
    try:
        # The seal goes last: without it, what is left would be taken for a run to go on with.
        for path in sorted(written_by_run(folder), key=lambda path: path.name == SEAL):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be emptied ({error.strerror})") from error


def _note(path: Path, faults: Sequence[str]) -> None:
    """
    Raises:
        CheckpointError: it cannot be written.
    """
    with writing(path):
        if faults:
            text = json.dumps({"faults": without_secrets(list(faults))}, indent=2) + "\n"
            path.write_text(text, encoding="utf-8")
        else:
            path.unlink(missing_ok=True)
