"""What a study is: backbones x tasks x methods, each cell with the same number of tries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
from pydantic import Field

from scalepet.config.fields import fields_of
from scalepet.config.models import DEFAULT_METHOD, Count, Positive, Section, Seed, Text
from scalepet.paths import expanded
from scalepet.pet import METHODS

RUNS = "runs"
"""The folder of all runs in the folder of a study."""


class StudyMethod(Section):
    """How one method of a study runs."""

    method: dict[str, Any] = Field(
        description="fields of a method, as in {name: lora, r: 4}; its seed is the study's"
    )
    learning_rate: Positive | dict[Count, Positive] = Field(
        description="what rate_factors multiply: a number, or budget -> number, on a line in"
        " log-log between them and constant beyond; of head it is train.head_learning_rate"
    )
    budgets: tuple[Count, ...] = Field(
        (), description="a cell each, with this method.budget; none: one cell, as method says"
    )
    matches: tuple[Text, ...] = Field(
        (), description="methods of the study: a cell each, with exactly as many entries in all"
    )
    backbones: tuple[Text, ...] | None = Field(
        None, description="of the study, where the method is tried; null: on all of them"
    )
    position_seeds: tuple[Seed, ...] | None = Field(
        None, description="for this method; null: those of the study"
    )
    data_seeds: tuple[Seed, ...] | None = Field(
        None, description="for this method; null: those of the study"
    )

    @property
    def name(self) -> str:
        """The method's own name; several methods of a study may share it."""
        return name_of(self.method)

    @property
    def sections(self) -> dict[str, Mapping[str, Any]]:
        """Where -> what: the method and the further ones beside it, as far as they can be read."""
        also = self.method.get("also")
        further = also if isinstance(also, (list, tuple)) else ()
        places = {f"method.also[{index}]": section for index, section in enumerate(further)}
        return {
            "method": self.method,
            **{place: section for place, section in places.items() if isinstance(section, Mapping)},
        }

    @property
    def takes_budget(self) -> bool:
        """Whether ``budgets`` and ``matches`` have a meaning; they set the first budget alone."""
        return takes_budget(self.name)

    @property
    def chooses_positions(self) -> bool:
        """Whether position seeds have a meaning: the first or a further method takes a budget."""
        return any(takes_budget(name_of(section)) for section in self.sections.values())

    def rate(self, budget: int | None) -> float:
        """The learning rate to start from.

        Args:
            budget: of ``budgets``; in a cell that matches, the whole count that is matched.
        """
        if not isinstance(self.learning_rate, Mapping):
            return self.learning_rate
        assert budget is not None, "the check has found a number"
        return interpolated(self.learning_rate, budget)


def name_of(section: Mapping[str, Any]) -> str:
    """The name of the method that a section describes."""
    return str(section.get("name", DEFAULT_METHOD))


def takes_budget(name: str) -> bool:
    """Whether the method of this name trains as many entries as it is told, and chooses them."""
    return name in METHODS and "budget" in fields_of(METHODS[name])


def interpolated(rates: Mapping[int, float], budget: int) -> float:
    """On the line between the neighbours of a budget in log-log; beyond all, as the nearest."""
    if budget in rates:
        return rates[budget]
    below = max((known for known in rates if known < budget), default=None)
    above = min((known for known in rates if known > budget), default=None)
    if below is None or above is None:
        nearest = above if below is None else below
        assert nearest is not None, "the check has found a budget"
        return rates[nearest]
    part = math.log(budget / below) / math.log(above / below)
    return rates[below] * (rates[above] / rates[below]) ** part


@dataclass(frozen=True)
class GridCell:
    """A place in the grid of a study; the count of a cell that matches is a backbone's to tell."""

    backbone: str
    task: str
    method: str
    budget: int | None = None
    matches: str | None = None

    @property
    def folder_of_method(self) -> str:
        """``apet``, ``apet-100`` or ``apet-as-lora``."""
        budget = "" if self.budget is None else f"-{self.budget}"
        matches = "" if self.matches is None else f"-as-{self.matches}"
        return f"{self.method}{budget}{matches}"

    @property
    def name(self) -> str:
        """The folder of its runs below ``runs``, and what --only takes."""
        return f"{self.backbone}/{self.task}/{self.folder_of_method}"


class StudyConfig(Section):
    """A study."""

    output: Path = Field(description="the study folder: its runs, logs and reports")
    base: dict[str, Any] = Field(
        description="what every run has: fields of a run but output, backbone, task, method, seed"
    )
    backbones: dict[str, dict[str, Any]] = Field(description="name -> fields of a backbone")
    tasks: dict[str, dict[str, Any] | Text] = Field(
        description="name -> fields of a task, with splits train, eval and test; or the name of"
        " a task that scalepet knows"
    )
    rate_factors: tuple[Positive, ...] = Field(
        (1.0,), description="every cell tries its learning rate times each of these"
    )
    position_seeds: tuple[Seed, ...] = Field(
        (0,), description="of the positions of methods that choose some"
    )
    data_seeds: tuple[Seed, ...] = Field(
        (0,), description="of all else: rows drawn and their order, starts, dropout"
    )
    methods: dict[str, StudyMethod] = Field(description="name -> how it runs")

    @pydantic.field_validator("output", mode="before")
    @classmethod
    def _is_a_folder(cls, output: Any) -> Any:
        if output == "":  # which pathlib takes for the current folder
            raise ValueError("it is empty")
        return expanded(output) if isinstance(output, str) else output

    @property
    def name(self) -> str:
        """What its reports are called by."""
        return self.output.name

    def cells(self) -> Iterator[GridCell]:
        """Every cell, a backbone and a task after the other."""
        for backbone in self.backbones:
            for task in self.tasks:
                for name, method in self.methods.items():
                    if backbone not in self.backbones_of(name):
                        continue
                    for budget in method.budgets:
                        yield GridCell(backbone, task, name, budget=budget)
                    for other in method.matches:
                        yield GridCell(backbone, task, name, matches=other)
                    if not method.budgets and not method.matches:
                        yield GridCell(backbone, task, name)

    def backbones_of(self, method: str) -> list[str]:
        """Those that a method is tried on."""
        own = self.methods[method].backbones
        return [name for name in self.backbones if own is None or name in own]

    def seeds(self, method: str) -> list[tuple[int, int]]:
        """(position seed, data seed) of all runs of a method at one rate; tries have the first."""
        own = self.methods[method]
        positions = own.position_seeds or self.position_seeds
        if not own.chooses_positions:
            positions = positions[:1]
        data = own.data_seeds or self.data_seeds
        return [(position, seed) for seed in data for position in positions]

    def content(self, cell: GridCell) -> dict[str, Any]:
        """What the file of a run in this cell would hold; the first rate, seed and folder."""
        own = self.methods[cell.method]
        section = {**own.method}
        if own.takes_budget and (cell.budget or cell.matches):
            section["budget"] = cell.budget or 1  # what matches is counted on a backbone
        return {
            **self.base,
            "output": str(self.output / RUNS / cell.name),
            "backbone": self.backbones[cell.backbone],
            "task": self.tasks[cell.task],
            "method": section,
        }


def plain_study(study: StudyConfig) -> dict[str, Any]:
    """As values that YAML can hold; ``check_study`` makes the same study of them."""
    # In JSON the budgets of a learning_rate would become texts.
    return {**study.model_dump(), "output": str(study.output)}
