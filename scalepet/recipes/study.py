"""The runs of a study: which there are, where they lie, and how far they are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from scalepet.config import MethodConfig, RunConfig
from scalepet.config.fields import fields_of
from scalepet.config.study import GridCell, StudyConfig, StudyMethod, takes_budget
from scalepet.errors import DataError
from scalepet.pet import METHODS
from scalepet.reading import read_bytes
from scalepet.recipes.run_folder import writing

CELL = "cell.json"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Where in a study a run belongs.

    Attributes:
        method: its name in the study.
        budget: how many entries it masks, in a match with those of the methods beside it; None
            where neither a budget nor a match says so.
        matches: the method of the study whose count that is.
        factor: by which the learning rate differs from the one that all tries start from.
    """

    study: str
    backbone: str
    task: str
    method: str
    budget: int | None
    matches: str | None
    position_seed: int
    data_seed: int
    learning_rate: float
    factor: float

    def write(self, folder: Path) -> None:
        """Into cell.json of a run folder, which is made where it is missing.

        Raises:
            CheckpointError: it cannot be written.
        """
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        with writing(folder / CELL):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CELL).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Cell:
        """From cell.json of a run folder.

        Raises:
            DataError: it is not there or does not hold a cell.
        """
        try:
            return TypeAdapter(cls).validate_json(read_bytes(folder / CELL))
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it holds no cell"
            raise DataError(f"{folder / CELL}: cannot be read ({reason})") from error


def best_factor(scores: Mapping[float, float]) -> float:
    """The factor with the highest score; of equals the nearest to 1 by ratio, then the smaller.

    Args:
        scores: factor -> score on the rows that choose.
    """
    return min(scores, key=lambda factor: (-scores[factor], max(factor, 1 / factor), factor))


@dataclass(frozen=True)
class StudyRun:
    """One run of a study."""

    config: RunConfig
    cell: Cell

    @property
    def folder(self) -> Path:
        return self.config.output

    @property
    def metric(self) -> str:
        """What chooses the best step, and among tries the best factor."""
        return self.config.task.metrics[0]


@dataclass(frozen=True)
class CellPlan:
    """One cell that is known to be possible.

    Attributes:
        config: of its runs, but for rate, seeds and folder.
        num_masked: entries that the method and those beside it train.
        rows: of each split.
    """

    study: StudyConfig
    place: GridCell
    config: RunConfig
    num_masked: int
    rows: Mapping[str, int]

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def num_runs(self) -> int:
        return len(self.study.rate_factors) + len(self._seeds) - 1

    @cached_property
    def tries(self) -> tuple[StudyRun, ...]:
        """One for each rate factor."""
        return tuple(self._run(factor, *self._seeds[0]) for factor in self.study.rate_factors)

    def repeats(self, factor: float) -> tuple[StudyRun, ...]:
        """Those with further seeds at the best factor."""
        return tuple(self._run(factor, *seeds) for seeds in self._seeds[1:])

    @property
    def _own(self) -> StudyMethod:
        return self.study.methods[self.place.method]

    @property
    def _seeds(self) -> list[tuple[int, int]]:
        return self.study.seeds(self.place.method)

    @property
    def _budget(self) -> int | None:
        # Who matches a count starts from the rate of that count, whatever part of it is masked.
        return self.num_masked if self.place.matches is not None else self.place.budget

    def _run(self, factor: float, position_seed: int, data_seed: int) -> StudyRun:
        rate = float(f"{factor * self._own.rate(self._budget):.6g}")
        name = f"lr{rate:g}-p{position_seed}-d{data_seed}"
        config, place = self.config, self.place
        method = _with_seeds(config.method, position_seed=position_seed, data_seed=data_seed)
        of_head = "head_" if self._own.name == "head" else ""
        train = config.train.model_copy(update={f"{of_head}learning_rate": rate})
        source = dataclasses.replace(config.task.source, seed=data_seed)
        changed = {
            "output": config.output / name,
            "seed": data_seed,
            "task": dataclasses.replace(config.task, source=source),
            "method": method,
            "train": train,
        }
        cell = Cell(
            study=self.study.name,
            backbone=place.backbone,
            task=place.task,
            method=place.method,
            budget=self._budget,
            matches=place.matches,
            position_seed=position_seed,
            data_seed=data_seed,
            learning_rate=rate,
            factor=factor,
        )
        return StudyRun(config.model_copy(update=changed), cell)


def _with_seeds(method: MethodConfig, *, position_seed: int, data_seed: int) -> MethodConfig:
    """The method and those beside it, each with its seed: of positions where it chooses some."""

    def seed_of(name: str) -> dict[str, int]:
        has_seed = "seed" in fields_of(METHODS[name])
        return {"seed": position_seed if takes_budget(name) else data_seed} if has_seed else {}

    also = tuple(further.model_copy(update=seed_of(further.name)) for further in method.also)
    return method.model_copy(update={**seed_of(method.name), "also": also})
