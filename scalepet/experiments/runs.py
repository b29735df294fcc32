"""A finished run, read back from its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, NonNegativeInt, ValidationError

from scalepet.errors import ConfigError, DataError, ScalepetError
from scalepet.reading import parse_json, read_text, within_limits
from scalepet.tracking import read_records

STUDY_FILE = "study.yaml"
"""The resolved study, in the folder of its runs."""

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


class Counts(BaseModel):
    """Numbers of parameters: all that train, of these in masks and in a head; the backbone's."""

    trained: NonNegativeInt
    masked: NonNegativeInt
    head: NonNegativeInt
    backbone: NonNegativeInt


class RunFacts(BaseModel):
    """run.json: what a run was made with.

    Attributes:
        rows: of each split.
        majority: the accuracy of the majority guess on the rows that choose the best step.
        test_majority: on the rows that nothing was chosen by.
    """

    scalepet: str
    versions: dict[str, str]
    git_commit: str | None
    command: str | list[str]
    world_size: int
    counts: Counts
    method: str
    majority: float | None = None
    test_majority: float | None = None
    rows: dict[str, NonNegativeInt] = {}


class Result(BaseModel):
    """result.json: the metrics at the best step, named as in the records ("eval/accuracy")."""

    best_step: int | None
    metrics: dict[str, float]
    seconds: float | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class Run:
    """All that a run folder says. ``records`` are the lines of metrics.jsonl in their order."""

    folder: Path
    config: dict[str, Any]
    facts: RunFacts
    records: list[dict[str, Any]]
    result: Result

    @property
    def name(self) -> str:
        """The name in the config, else that of the folder."""
        return str(self.config.get("name") or self.folder.name)

    @property
    def seconds(self) -> float | None:
        """Working time of the whole run."""
        if self.result.seconds is not None:
            return self.result.seconds
        return self.records[-1]["seconds"] if self.records else None

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most memory that one rank held, where the run measured it."""
        if self.result.peak_memory_bytes is not None:
            return self.result.peak_memory_bytes
        return max(
            (r["peak_memory_bytes"] for r in self.records if "peak_memory_bytes" in r), default=None
        )

    def series(self, kind: str, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric in the records of one kind."""
        pairs = [(r["step"], r[metric]) for r in self.records if r["kind"] == kind and metric in r]
        return [step for step, _ in pairs], [float(value) for _, value in pairs]


def read_run(folder: Path) -> Run:
    """The run that lies in a folder: config.yaml, run.json, metrics.jsonl and result.json.

    Raises:
        DataError: if a file is missing, half written, or lacks a field: all faults of the folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such run folder")
    faults: list[str] = []
    config = attempt(lambda: read_config(folder / "config.yaml"), faults)
    facts = attempt(lambda: read_model(folder / "run.json", RunFacts), faults)
    records = attempt(lambda: read_records(folder / "metrics.jsonl"), faults)
    result = attempt(lambda: read_model(folder / "result.json", Result), faults)
    if config is None or facts is None or records is None or result is None:
        raise DataError(faults)
    return Run(folder, config, facts, records, result)


def is_study(folder: Path) -> bool:
    """Whether the runs of a study lie there: study.yaml, and runs in folders below it."""
    return (folder / STUDY_FILE).is_file()


def check_metric(runs: Sequence[Run], metric: str) -> None:
    """Refuses a metric that one of the runs did not measure.

    Raises:
        ConfigError: naming each such run and what it measured; also if there are no runs.
    """
    if not runs:
        raise ConfigError("no runs to show")
    faults = [
        f"{run.folder}: no metric {metric!r} in result.json; it has {sorted(run.result.metrics)}"
        for run in runs
        if metric not in run.result.metrics
    ]
    if faults:
        raise ConfigError(faults)


def attempt(read: Callable[[], T], faults: list[str]) -> T | None:
    """What is read; or None, and the faults are kept."""
    try:
        return read()
    except ScalepetError as error:
        faults.extend(error.faults)
        return None


def _read_text(path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; the run did not finish or is no scalepet run") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a config.yaml.

    Raises:
        DataError: if it is missing, no YAML, or holds no fields.
    """
    text = _read_text(path)
    try:
        config = within_limits(text, yaml.SafeLoader)
    except ValueError as error:
        raise DataError(f"{path}: no YAML: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{path}: holds no fields but {config!r}")
    return config


def read_model(path: Path, model: type[Model]) -> Model:
    """A JSON file as that model.

    Raises:
        DataError: if it is missing, half written, or does not fit: all faults.
    """
    text = _read_text(path)
    try:
        return model.model_validate(parse_json(text))
    except ValidationError as error:
        raise DataError([_fault(path, dict(fault)) for fault in error.errors()]) from error
    except ValueError as error:
        raise DataError(f"{path}: half written or no JSON: {error}") from error


def _fault(path: Path, fault: dict[str, Any]) -> str:
    field = ".".join(map(str, fault["loc"])) or "content"
    value = "" if fault["type"] == "missing" else f", not {fault['input']!r}"
    return f"{path}: {field}: {fault['msg']}{value}"
