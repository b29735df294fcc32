"""The runs of one or more studies, read back from their folders; what is not whole is named."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ValidationError

from scalepet.errors import ConfigError, DataError, ScalepetError
from scalepet.experiments.runs import STUDY_FILE, Run, read_config, read_run
from scalepet.reading import parse_json, read_text
from scalepet.recipes.study import Cell
from scalepet.tracking import check_seal
from scalepet.tracking.seal import SEAL

RUNS, CELL_FILE, FAILED_FILE = "runs", "cell.json", "failed.json"
_UNDER_SEAL = ("config.yaml", "run.json", CELL_FILE, "metrics.jsonl", "result.json")
_OF_A_RUN = (*_UNDER_SEAL, FAILED_FILE, SEAL)


@dataclass(frozen=True)
class StudyRun:
    """One finished run and its place in the grid.

    Attributes:
        backbone: its name, with that of the study behind it where studies would be mixed up.
        is_at_first_seeds: whether it has the seeds that the study tries learning rates at, as far
            as study.yaml tells.
    """

    backbone: str
    cell: Cell
    run: Run
    is_at_first_seeds: bool = False

    @cached_property
    def metric(self) -> str:
        """The first metric of the task."""
        return str(self.run.config["task"]["metrics"][0])

    @property
    def eval_score(self) -> float:
        """On the rows that choose."""
        return self.run.result.metrics[f"eval/{self.metric}"]

    @property
    def score(self) -> float:
        """On the rows that nothing is chosen by."""
        return self.run.result.metrics[f"test/{self.metric}"]

    @property
    def kind(self) -> str:
        """The method as scalepet calls it; the study may call it otherwise."""
        return str(self.run.config["method"]["name"])


class _Seeds(BaseModel):
    position_seeds: tuple[int, ...] | None = None
    data_seeds: tuple[int, ...] | None = None


class _StudyFile(_Seeds):
    """What study.yaml says about seeds; those of a method stand before those of the study."""

    methods: dict[str, _Seeds] = {}

    def has_first(self, cell: Cell) -> bool:
        own = self.methods.get(cell.method, _Seeds())
        positions = own.position_seeds or self.position_seeds
        data = own.data_seeds or self.data_seeds
        if not positions or not data:
            return False
        return (cell.position_seed, cell.data_seed) == (positions[0], data[0])


@dataclass(frozen=True)
class LeftOut:
    """A run folder that no number comes from, and why."""

    study: str
    folder: str
    reason: str


@dataclass(frozen=True)
class Studies:
    """What lies in the folders of one or more studies; runs in the order of their folders.

    Attributes:
        folders: of the studies, as they are shown to people.
    """

    folders: tuple[str, ...]
    runs: tuple[StudyRun, ...]
    left_out: tuple[LeftOut, ...]


def read_studies(folders: Sequence[Path]) -> Studies:
    """All runs of these studies. Folders that were changed after their run had ended, are half
    written, failed, or belong to no cell are left out and named.

    Raises:
        ConfigError: if not one run is whole; with every reason.
        DataError: if a study.yaml cannot be read.
    """
    unique = {folder.resolve(): folder for folder in folders}
    shown = {path: _shown(path) for path in unique}
    alike = Counter(path.name for path in unique)
    found: list[tuple[str, StudyRun]] = []
    left_out: list[LeftOut] = []
    for path in sorted(unique, key=lambda path: shown[path]):
        study = path.name if alike[path.name] == 1 else shown[path]
        study_file = _read_study_file(path / STUDY_FILE)
        for folder in _run_folders(path / RUNS):
            try:
                run = _read(folder)
                is_first = study_file.has_first(run.cell)
                found.append((study, replace(run, is_at_first_seeds=is_first)))
            except ScalepetError as error:
                where = folder.relative_to(path).as_posix()
                reason = "; ".join(error.faults).replace(f"{folder}/", "")
                left_out.append(LeftOut(study, where, reason))
    if not found:
        names = ", ".join(sorted(shown.values()))
        reasons = [f"{out.study}/{out.folder}: {out.reason}" for out in left_out]
        raise ConfigError([f"{names}: no finished run of a study is there", *reasons])
    return Studies(tuple(sorted(shown.values())), _told_apart(found), tuple(left_out))


def _shown(path: Path) -> str:
    """Short where it is below the current folder: a report is the same on another machine."""
    here = Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.as_posix()


def _read_study_file(path: Path) -> _StudyFile:
    if not path.exists():
        return _StudyFile()
    try:
        return _StudyFile.model_validate(read_config(path))
    except ValidationError as error:
        places = (".".join(map(str, fault["loc"])) for fault in error.errors())
        raise DataError(f"{path}: no study ({', '.join(places)})") from error


def _run_folders(folder: Path) -> Iterator[Path]:
    """Every folder that a run has begun in, and every one in which nothing is."""
    if not folder.is_dir():
        return
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    if any((folder / name).exists() for name in _OF_A_RUN) or not inner:
        yield folder
        return
    for path in inner:
        yield from _run_folders(path)


def _read(folder: Path) -> StudyRun:
    if (folder / FAILED_FILE).exists():
        raise DataError(f"failed: {_why_failed(folder / FAILED_FILE)}")
    if not (folder / CELL_FILE).exists():
        raise DataError(f"{CELL_FILE}: missing; no run of a study")
    check_seal(folder)
    sealed = parse_json(read_text(folder / SEAL))
    bare = [name for name in _UNDER_SEAL if name not in sealed]
    if bare:
        raise DataError(f"{', '.join(bare)}: not under the seal of the run")
    run = read_run(folder)
    found = StudyRun(backbone="", cell=Cell.read(folder), run=run)
    try:
        scores = {"eval": found.eval_score, "test": found.score}
    except (KeyError, IndexError, TypeError) as error:
        has = ", ".join(sorted(run.result.metrics))
        raise DataError(
            f"result.json: no score of the task's first metric on eval and test ({error});"
            f" it has {has}"
        ) from error
    bad = [f"{split} score is {s}" for split, s in scores.items() if not math.isfinite(s)]
    if bad:
        raise DataError(f"result.json: {', '.join(bad)}")
    return found


def _why_failed(path: Path) -> str:
    try:
        faults = parse_json(read_text(path))["faults"]
        return "; ".join(map(str, faults))
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path.name} cannot be read"


def _told_apart(found: Sequence[tuple[str, StudyRun]]) -> tuple[StudyRun, ...]:
    """With the study in the backbone's name where two studies share a backbone and a task: their
    settings may differ, and their scores are not to be averaged. Also where they call different
    backbones by one name.
    """
    grids: dict[tuple[str, str], set[str]] = {}
    meant: dict[str, dict[str, set[str]]] = {}
    for study, run in found:
        backbone = run.cell.backbone
        grids.setdefault((backbone, run.cell.task), set()).add(study)
        section = json.dumps(run.run.config.get("backbone"), sort_keys=True, default=str)
        meant.setdefault(backbone, {}).setdefault(study, set()).add(section)
    shared = {backbone for (backbone, _), studies in grids.items() if len(studies) > 1}
    shared |= {
        backbone
        for backbone, by_study in meant.items()
        if any(sections != next(iter(by_study.values())) for sections in by_study.values())
    }
    return tuple(
        replace(
            run,
            backbone=run.cell.backbone + (f" ({study})" if run.cell.backbone in shared else ""),
        )
        for study, run in found
    )
