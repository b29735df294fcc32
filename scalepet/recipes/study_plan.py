"""A study is possible as a whole, or refused as a whole before anything runs."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from scalepet import backbones, build, data
from scalepet.backbones import Family, Site
from scalepet.config import MethodConfig, RunConfig, check_config
from scalepet.config.study import GridCell, StudyConfig
from scalepet.data import Splits, Task
from scalepet.errors import ConfigError, Faults
from scalepet.recipes.plan import counted_options
from scalepet.recipes.study import CellPlan


def plan_study(study: StudyConfig, *, only: Sequence[str] = ()) -> list[CellPlan]:
    """Every cell, or those that are named, each known to be possible.

    Args:
        only: names of cells, or patterns of names such as ``minilm/*``.

    Raises:
        ConfigError: every fault of all of them: files and columns of a task, what a backbone cannot
            do, a budget that it cannot have.
    """
    cells = {cell.name: cell for cell in study.cells()}
    look = _Look(study)
    named = {pattern: fnmatch.filter(cells, pattern) for pattern in only}
    for pattern, found in named.items():
        if not found:
            look.faults.append(f"--only: {pattern!r}; allowed: {_some(cells)}")
    wanted = {name for found in named.values() for name in found} if only else {*cells}
    plans = [look.plan(cell) for name, cell in cells.items() if name in wanted]
    look.faults.raise_any()
    return [plan for plan in plans if plan is not None]


def _check_classes(task: Task, splits: Splits) -> None:
    """Also of the splits that name no classes by themselves."""
    faults = Faults()
    for split, rows in splits.rows.items():
        with faults.noted(f"{split}: "):
            data.check_classes(task, rows)
    faults.raise_any()


def _some(names: Iterable[str]) -> str:
    few = list(names)
    return ", ".join(few[:5]) + (f", ... ({len(few)} in all)" if len(few) > 5 else "")


@dataclass(frozen=True)
class _Rows:
    """A task with its labels, and how many rows each split has."""

    task: Task
    counts: Mapping[str, int]


@dataclass(frozen=True)
class _Model:
    """A backbone as its methods see it."""

    family: Family
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class _Counted:
    """A method of which no budget is left to tell, and how many entries it trains in all."""

    method: MethodConfig
    total: int


@dataclass(frozen=True)
class _Look:
    """Looks once at each task, at each backbone with each task, and at each method with each
    budget on each backbone; None stands for what has a fault.
    """

    study: StudyConfig
    faults: Faults = field(default_factory=Faults)
    _rows: dict[str, _Rows | None] = field(default_factory=dict)
    _pairs: set[tuple[str, str]] = field(default_factory=set)
    _models: dict[str, _Model] = field(default_factory=dict)
    _counts: dict[GridCell, _Counted | None] = field(default_factory=dict)

    def plan(self, cell: GridCell) -> CellPlan | None:
        config = check_config(self.study.content(cell))
        rows = self._rows_of(cell, config)
        if rows is not None:
            config = config.model_copy(update={"task": rows.task})
            self._look_at_pair(cell, config)
        model = self._models.get(cell.backbone)
        counted = None if model is None else self._count(cell, model)
        if rows is None or counted is None:
            return None
        config = _with_method(config, counted.method)
        return CellPlan(self.study, cell, config, counted.total, rows.counts)

    @contextlib.contextmanager
    def _noted(self, sections: Mapping[str, str], *, else_at: str) -> Iterator[None]:
        """Keeps faults, each once, under the names of the study.

        Args:
            sections: of a run -> what it is in the study.
        """
        faults = Faults()
        with faults.noted():
            yield
        for fault in faults:
            section = fault.partition(".")[0]
            at = sections.get(section)
            named = f"{else_at}: {fault}" if at is None else at + fault.removeprefix(section)
            if named not in self.faults:
                self.faults.append(named)

    def _rows_of(self, cell: GridCell, config: RunConfig) -> _Rows | None:
        if cell.task not in self._rows:
            self._rows[cell.task] = None
            with self._noted({"task": f"tasks.{cell.task}"}, else_at=f"tasks.{cell.task}"):
                task, splits = build.load_rows(config)
                if task.has_classes:
                    _check_classes(task, splits)
                counts = {name: len(rows) for name, rows in splits.rows.items()}
                self._rows[cell.task] = _Rows(task, counts)
        return self._rows[cell.task]

    def _look_at_pair(self, cell: GridCell, config: RunConfig) -> None:
        pair = (cell.backbone, cell.task)
        if pair in self._pairs:
            return
        self._pairs.add(pair)
        # Of all methods the one that every backbone takes; the study's own are planned apart.
        whole = config.model_copy(update={"method": MethodConfig(name="full")})
        backbone = f"backbones.{cell.backbone}"
        with self._noted({"backbone": backbone}, else_at=f"{backbone} with tasks.{cell.task}"):
            plan = build.plan_run(whole, config.task)
            if plan.form in data.WORD_FORMS:
                data.encode_label_words(config.task, plan.tokenizer)
            if cell.backbone not in self._models:
                sites = backbones.sketch_sites(plan.model_config)
                self._models[cell.backbone] = _Model(plan.family, sites)

    def _count(self, cell: GridCell, model: _Model) -> _Counted | None:
        """The method of the cell with its budget, and its count."""
        key = dataclasses.replace(cell, task="")
        if key not in self._counts:
            self._counts[key] = None
            where = f"methods.{cell.method} on backbones.{cell.backbone}"
            with self._noted({}, else_at=where):
                self._counts[key] = self._counted(cell, model)
        return self._counts[key]

    def _counted(self, cell: GridCell, model: _Model) -> _Counted | None:
        config = check_config(self.study.content(cell))
        if cell.matches is not None:
            other = self._count(GridCell(cell.backbone, cell.task, cell.matches), model)
            if other is None:
                return None
            budget = _budget_left(config, model, matches=cell.matches, total=other.total)
            config = _with_method(config, config.method.model_copy(update={"budget": budget}))
        total = _num_trained(config, model)
        if not total and not model.family.head:
            raise ConfigError("it trains nothing there, since this backbone has no head")
        return _Counted(config.method, total)


def _budget_left(config: RunConfig, model: _Model, *, matches: str, total: int) -> int:
    """Of the count that is matched, what the methods beside the first one leave to it."""
    if not total:
        raise ConfigError(
            f"matches: {matches!r}, which trains nothing of the backbone; allowed: a method that"
            " does"
        )
    faults, beside = Faults(), 0
    for further in config.method.also:
        alone = MethodConfig(name=further.name, **further.options)
        with faults.noted(f"{further.name}: "):
            beside += _num_trained(_with_method(config, alone), model)
    faults.raise_any()
    if beside >= total:
        names = " + ".join(further.name for further in config.method.also)
        raise ConfigError(
            f"matches: {matches!r}, which trains {total:,}: nothing is left beside the {beside:,}"
            f" of {names} in also; allowed: a method that trains more, or less in also"
        )
    return total - beside


def _num_trained(config: RunConfig, model: _Model) -> int:
    return build.plan_method(config, model.sites, options_of=counted_options).num_parameters


def _with_method(config: RunConfig, method: MethodConfig) -> RunConfig:
    return config.model_copy(update={"method": method})
