"""Every fault of a study at once; those of its runs are found by the check of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from scalepet.config.check import check_config
from scalepet.config.faults import faults_of
from scalepet.config.models import RunConfig
from scalepet.config.options import method_options
from scalepet.config.paths import unset_faults
from scalepet.config.read import read_content
from scalepet.config.study import GridCell, StudyConfig, StudyMethod, name_of, takes_budget
from scalepet.config.words import shown
from scalepet.errors import ConfigError
from scalepet.pet import METHODS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VARIES = "released"  # picks whole tensors, in an order that the seed draws
_NOT_IN_BASE = ("output", "backbone", "task", "method", "seed")


def read_study_config(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """The study that a YAML file and dotted overrides describe.

    Raises:
        ConfigError: with every fault of the file, of the overrides and of every run.
    """
    content, faults = read_content(path, overrides)
    try:
        study = check_study(content)
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from error
    if faults:
        raise ConfigError(faults)
    return study


def check_study(content: Mapping[str, Any]) -> StudyConfig:
    """The study that plain values describe.

    Raises:
        ConfigError: with every fault, each once, however many runs have it.
    """
    study, faults = _readable(content)
    if study is not None:
        faults += [*_grid_faults(study), *_base_faults(study), *_method_faults(study)]
        of_runs = list(_run_faults(study))
        if not of_runs and next(study.cells(), None) is not None:
            faults += [*_task_faults(study), *_twice_faults(study)]
        faults += of_runs
    if study is None or faults:
        raise ConfigError(list(dict.fromkeys(faults)))
    return study


def _readable(content: Mapping[str, Any]) -> tuple[StudyConfig | None, list[str]]:
    """The study, where all of its fields can be read."""
    faults = [*unset_faults({"output": content.get("output")})]
    methods = content.get("methods")
    if isinstance(methods, Mapping):
        for name, section in methods.items():
            faults += _section_faults(str(name), section)
    stand_in: dict[str, Any] = {"methods": {}} if isinstance(methods, Mapping) and faults else {}
    try:
        study = StudyConfig.model_validate({**content, **stand_in})
    except pydantic.ValidationError as error:
        faults = [*faults_of(error, StudyConfig, content).values(), *faults]
        study = None
    return (None if faults else study), faults


def _section_faults(name: str, section: Any) -> list[str]:
    if not isinstance(section, Mapping):
        return [f"methods.{name}: {shown(section)}; allowed: the fields method, learning_rate, ..."]
    try:
        StudyMethod.model_validate(section)
    except pydantic.ValidationError as error:
        return [*faults_of(error, StudyMethod, section, parent=("methods", name)).values()]
    return []


def _grid_faults(study: StudyConfig) -> Iterator[str]:
    for field in ("backbones", "tasks", "methods", "rate_factors", "position_seeds", "data_seeds"):
        values = getattr(study, field)
        if not values:
            yield f"{field}: {shown(values)}; allowed: at least one"
        if isinstance(values, Mapping):
            yield from (
                f"{field}: {name!r} names folders; allowed: letters, digits, _ . and -, the first"
                " one a letter or digit"
                for name in values
                if not _NAME.fullmatch(name)
            )
        else:
            yield from _repeated(field, values)
    for name in study.backbones:
        if study.methods and not any(name in study.backbones_of(own) for own in study.methods):
            yield f"backbones.{name}: no method is tried on it; allowed: one at least"


def _repeated(where: str, values: Sequence[Any]) -> Iterator[str]:
    for value in dict.fromkeys(values):
        if values.count(value) > 1:
            yield f"{where}: {shown(values)}; allowed: {shown(value)} once"


def _base_faults(study: StudyConfig) -> Iterator[str]:
    for field in _NOT_IN_BASE:
        if field in study.base:
            yield f"base.{field}: {shown(study.base[field])}; allowed: not here, the study gives it"
    train = study.base.get("train")
    if isinstance(train, Mapping) and "learning_rate" in train:
        yield (
            f"base.train.learning_rate: {shown(train['learning_rate'])}; allowed: not here, each"
            " of the methods has its own"
        )


def _method_faults(study: StudyConfig) -> Iterator[str]:
    for name, own in study.methods.items():
        where = f"methods.{name}"
        for field in ("budgets", "matches", "backbones", "position_seeds", "data_seeds"):
            values = getattr(own, field)
            yield from _repeated(f"{where}.{field}", values or ())
            if values == () and field not in ("budgets", "matches"):
                yield f"{where}.{field}: []; allowed: at least one, or null"
        for backbone in own.backbones or ():
            if backbone not in study.backbones:
                yield (
                    f"{where}.backbones: {backbone!r}; allowed: of the study:"
                    f" {', '.join(study.backbones)}"
                )
        yield from _seed_faults(where, own)
        if own.name not in METHODS:
            continue  # which the check of its runs says
        yield from _budget_faults(where, own)
        yield from _match_faults(study, name)


def _seed_faults(where: str, own: StudyMethod) -> Iterator[str]:
    for place, section in own.sections.items():
        if "seed" in section and name_of(section) in METHODS:
            yield (
                f"{where}.{place}.seed: {shown(section['seed'])}; allowed: not here, the study has"
                " position_seeds and data_seeds"
            )


def _budget_faults(where: str, own: StudyMethod) -> Iterator[str]:
    has_cells = bool(own.budgets or own.matches)
    takers = " or ".join(filter(takes_budget, METHODS))
    if own.budgets and not own.takes_budget:
        yield (
            f"{where}.budgets: {shown(own.budgets)} of the method {own.name}; allowed: with"
            f" {takers}, which take a budget"
        )
    if own.matches and not own.takes_budget:
        exact = " or ".join(name for name in METHODS if takes_budget(name) and name != _VARIES)
        yield (
            f"{where}.matches: {shown(own.matches)} of the method {own.name}; allowed: with"
            f" {exact}, which meets a budget exactly"
        )
    if own.position_seeds and not own.chooses_positions:
        yield (
            f"{where}.position_seeds: {shown(own.position_seeds)} of the method {own.name};"
            f" allowed: with {takers}, which choose positions"
        )
    if own.takes_budget and has_cells and "budget" in own.method:
        yield (
            f"{where}.method.budget: {shown(own.method['budget'])} beside budgets or matches;"
            " allowed: one or the other"
        )
    rate = own.learning_rate
    if isinstance(rate, Mapping) and not rate:
        yield f"{where}.learning_rate: {{}}; allowed: a number, or budget -> number"
    if isinstance(rate, Mapping) and not has_cells:
        yield (
            f"{where}.learning_rate: {shown(rate)} without budgets or matches; allowed: a number"
        )


def _match_faults(study: StudyConfig, name: str) -> Iterator[str]:
    where, own = f"methods.{name}.matches", study.methods[name]
    if own.matches and _varies(own):
        yield (
            f"{where}: {shown(own.matches)} of a method with {_VARIES}, whose count varies with its"
            " seed; allowed: of a method that meets a count exactly"
        )
    for other in own.matches:
        if other not in study.methods or other == name:
            others = ", ".join(known for known in study.methods if known != name) or "none"
            yield f"{where}: {other!r}; allowed: another method of the study: {others}"
        elif study.methods[other].budgets or study.methods[other].matches:
            yield f"{where}: {other!r}, which has several counts; allowed: a method with one"
        elif _varies(study.methods[other]):
            yield (
                f"{where}: {other!r}, whose count varies with its seed; allowed: a method with one"
                " count"
            )
        elif lacking := {*study.backbones_of(name)} - {*study.backbones_of(other)}:
            yield (
                f"{where}: {other!r}, which is not tried on {', '.join(sorted(lacking))}; allowed:"
                f" a method that is, or fewer methods.{name}.backbones"
            )


def _varies(method: StudyMethod) -> bool:
    """Whether the method trains another number of entries with another seed."""
    return any(name_of(section) == _VARIES for section in method.sections.values())


def _task_faults(study: StudyConfig) -> Iterator[str]:
    """Of tasks that a run could have, what a study cannot."""
    for name, section in study.tasks.items():
        where = f"tasks.{name}.source"
        given = section.get("source") if isinstance(section, Mapping) else None
        if isinstance(given, Mapping) and "seed" in given:
            yield f"{where}.seed: {shown(given['seed'])}; allowed: not here, data_seeds are"
        source = _config_with(study, task=name).task.source
        if "test" not in source.names:
            yield (
                f"{where}.splits: {shown(source.splits)}; allowed: with test, the rows that are"
                " reported and choose nothing"
            )


def _config_with(study: StudyConfig, *, task: str) -> RunConfig:
    return check_config(study.content(next(cell for cell in study.cells() if cell.task == task)))


def _twice_faults(study: StudyConfig) -> Iterator[str]:
    """Cells in one folder, and the same cell under two names."""
    yield from _equal_sections("backbones", study.backbones)
    yield from _equal_sections("tasks", study.tasks)
    folders: dict[str, GridCell] = {}
    sections: dict[tuple[str, str], GridCell] = {}
    task = next(iter(study.tasks))
    for cell in study.cells():
        if cell.task != task:
            continue
        other = folders.setdefault(cell.name, cell)
        if other != cell:
            yield (
                f"methods: {other.method} and {cell.method} both have runs in"
                f" {cell.folder_of_method}; allowed: a folder for each"
            )
        other = sections.setdefault((cell.backbone, _identity(study, cell)), cell)
        if other != cell:
            yield (
                f"methods.{cell.method}: {cell.folder_of_method} is the same method as"
                f" {other.folder_of_method}; allowed: once, so that tries are equal"
            )


def _identity(study: StudyConfig, cell: GridCell) -> str:
    """The same text for cells that differ by name alone."""
    method = check_config(study.content(cell)).method
    options = [(section.name, sorted(method_options(section).items())) for section in method.all]
    return repr((options, cell.matches))


def _equal_sections(field: str, sections: Mapping[str, Any]) -> Iterator[str]:
    names = list(sections)
    for index, name in enumerate(names):
        for before in names[:index]:
            if sections[name] == sections[before]:
                yield f"{field}.{name}: the same as {before}; allowed: each once"
                break


def _run_faults(study: StudyConfig) -> Iterator[str]:
    """What is wrong with the runs, at the fields of the study that it comes from. Sections do not
    depend on each other, so each is looked at in one run at least, and not in all.
    """
    seen: set[tuple[str | int | None, ...]] = set()
    for cell in study.cells():
        parts = {
            ("backbone", cell.backbone),
            ("task", cell.task),
            ("method", cell.method, cell.budget, cell.matches),
        }
        if parts <= seen:
            continue
        seen |= parts
        try:
            check_config(study.content(cell))
        except ConfigError as error:
            yield from (_placed(fault, cell) for fault in error.faults)


def _placed(fault: str, cell: GridCell) -> str:
    places = {
        "backbone": f"backbones.{cell.backbone}",
        "task": f"tasks.{cell.task}",
        "method": f"methods.{cell.method}.method",
    }
    first = re.split(r"[.: ]", fault, maxsplit=1)[0]
    return places.get(first, f"base.{first}") + fault[len(first) :]
