"""The folder of a study, which holds one study and grows with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from scalepet.config.study import RUNS, GridCell, StudyConfig, plain_study
from scalepet.config.study_check import read_study_config
from scalepet.config.words import shown
from scalepet.errors import ConfigError
from scalepet.files import make_folder, replace_file, unwritable
from scalepet.owned import check_free
from scalepet.recipes.study import CELL
from scalepet.recipes.study_array import CELLS
from scalepet.recipes.workers import LOGS

STUDY = "study.yaml"
_ALLOWED = "allowed: as it was, or another output"


def open_study(study: StudyConfig) -> None:
    """Write study.yaml, by which reports and workers know the study.

    Raises:
        ConfigError: the folder has runs of a study that differs: every field that does. Further
            backbones, tasks, methods, budgets, matches, seeds and factors are no difference.
        CheckpointError: it cannot be written, or a file of a study's name there is no study's.
    """
    path, text = study.output / STUDY, _as_text(study)
    if path.exists():
        found = path.read_text(encoding="utf-8")
        if found == text:
            return
        before = read_study_config(path)
        own = [STUDY] if found == _as_text(before) else []
        check_free(study.output, [STUDY], own=own)
        faults = list(dict.fromkeys(_differences(before, study)))
        if faults:
            raise ConfigError(faults)
    else:
        has_runs = any(study.output.glob(f"{RUNS}/*/*/*/*/{CELL}"))
        check_free(study.output, [RUNS, CELLS, LOGS], own=[RUNS] if has_runs else [])
    try:
        make_folder(study.output)
    except OSError as error:
        raise unwritable(study.output, error) from error
    replace_file(path, text)


def _as_text(study: StudyConfig) -> str:
    return yaml.safe_dump(plain_study(study), sort_keys=False, allow_unicode=True)


def _differences(before: StudyConfig, now: StudyConfig) -> Iterator[str]:
    """What would make runs that are there other than they are."""
    names = {cell.name for cell in now.cells()}
    for cell in before.cells():
        if not any((before.output / RUNS / cell.name).glob("*/cell.json")):
            continue
        if cell.name not in names:
            yield f"{cell.name}: missing, but {before.output} has runs of it; {_ALLOWED}"
            continue
        was, is_now = _behind(before, cell), _behind(now, cell)
        for field in {**was, **is_now}:
            if was.get(field) != is_now.get(field):
                yield (
                    f"{field}: {shown(is_now.get(field))}, but {before.output} has runs with"
                    f" {shown(was.get(field))}; {_ALLOWED}"
                )
        for factor in before.rate_factors:
            if factor not in now.rate_factors:
                yield f"rate_factors: {factor} is missing, but has been tried; {_ALLOWED}"


def _behind(study: StudyConfig, cell: GridCell) -> dict[str, Any]:
    """What the runs of a cell depend on, by field."""
    own = study.methods[cell.method]
    fields = {f"base.{name}": value for name, value in study.base.items()}
    fields[f"backbones.{cell.backbone}"] = study.backbones[cell.backbone]
    fields[f"tasks.{cell.task}"] = study.tasks[cell.task]
    for name in filter(None, (cell.method, cell.matches)):
        fields[f"methods.{name}.method"] = study.methods[name].method
    # The count of a cell that matches is a backbone's to tell.
    rate = own.learning_rate if cell.matches is not None else own.rate(cell.budget)
    fields[f"methods.{cell.method}.learning_rate"] = rate
    fields[f"methods.{cell.method}, first seeds"] = list(study.seeds(cell.method)[0])
    return fields
