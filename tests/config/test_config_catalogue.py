"""A task by its name stands for all of its fields, any of which a file may replace."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from scalepet.config import check_config, fields_as_yaml, plain, read_config
from scalepet.data import TASKS, Task
from scalepet.errors import ConfigError

SST2 = TASKS["sst2"].task


def faults_of(content: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        check_config(content)
    return caught.value.faults


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("form", [lambda name: name, lambda name: {"name": name}])
def test_a_name_stands_for_the_task(
    content: dict[str, Any], name: str, form: Callable[[str], Any]
) -> None:
    assert check_config({**content, "task": form(name)}).task == TASKS[name].task


def test_fields_beside_the_name_take_the_place_of_its_own(content: dict[str, Any]) -> None:
    task = {
        "name": "sst2",
        "source": {"path": "/data/sst2", "held_out": 50, "seed": 3},
        "max_source_length": 64,
    }
    source = replace(SST2.source, path="/data/sst2", subset=None, held_out=50, seed=3)
    expected = replace(SST2, source=source, max_source_length=64)
    assert check_config({**content, "task": task}).task == expected


def test_a_source_at_the_same_place_keeps_its_subset(content: dict[str, Any]) -> None:
    for source in ({"seed": 1}, {"seed": 1, "path": SST2.source.path}):
        found = check_config({**content, "task": {"name": "sst2", "source": source}}).task.source
        assert found == replace(SST2.source, seed=1)
    other = {"name": "sst2", "source": {"path": "me/glue", "subset": "mine"}}
    assert check_config({**content, "task": other}).task.source.subset == "mine"


def test_splits_are_replaced_one_by_one(content: dict[str, Any]) -> None:
    source = {"held_out": None, "splits": {"eval": "train[:100]", "train": "train[100:]"}}
    task = check_config({**content, "task": {"name": "sst2", "source": source}}).task
    assert task.source.splits == {
        "test": "validation",
        "eval": "train[:100]",
        "train": "train[100:]",
    }


def test_the_config_of_the_run_holds_the_fields(content: dict[str, Any]) -> None:
    config = check_config({**content, "task": "mnli"})
    values = plain(config)["task"]
    assert "name" not in values
    assert values["source"]["path"] == "nyu-mll/glue"
    assert values["labels"] == ["entailment", "neutral", "contradiction"]
    assert check_config(json.loads(json.dumps(plain(config)))) == config


def test_the_catalogue_stays_as_it_is(content: dict[str, Any]) -> None:
    check_config({**content, "task": {"name": "sst2", "source": {"splits": {"test": "test"}}}})
    assert SST2.source.splits == {"test": "validation"}


@pytest.mark.parametrize("written", ["sst2", {"name": "sst2"}])
def test_overrides_reach_into_a_task_by_name(
    tmp_path: Path, content: dict[str, Any], written: Any
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**content, "task": written}))
    overrides = ["task.source.path=/data/sst2", "task.source.eval_rows=9"]
    source = read_config(file, overrides).task.source
    assert source == replace(SST2.source, path="/data/sst2", subset=None, eval_rows=9)
    assert read_config(file, ["task=rte"]).task == TASKS["rte"].task
    assert read_config(file, ["task.name=rte"]).task == TASKS["rte"].task


ALLOWED = ", ".join(TASKS)
FIELDS = "the fields " + ", ".join(field.name for field in dataclasses.fields(Task))


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        ("sst3", f"task: 'sst3'; did you mean sst2? allowed: {FIELDS}; or one of {ALLOWED}"),
        ({"name": "mnly"}, f"task.name: 'mnly'; did you mean mnli? allowed: {ALLOWED}"),
        ({"name": None}, f"task.name: null; allowed: {ALLOWED}"),
        ({"name": ["sst2"]}, f"task.name: ['sst2']; did you mean sst2? allowed: {ALLOWED}"),
        ("", f"task: ''; allowed: {FIELDS}; or one of {ALLOWED}"),
    ],
)
def test_a_name_that_is_none_is_the_only_fault(
    content: dict[str, Any], task: Any, fault: str
) -> None:
    assert faults_of({**content, "task": task}) == (fault,)


def test_a_name_that_is_none_hides_no_other_fault(content: dict[str, Any]) -> None:
    task = {"name": "sst3", "templat": "x", "max_source_length": 1}
    faults = faults_of({**content, "task": task, "train": {"epochs": -1}})
    parts = ["task.name: 'sst3'", "task.templat: no such", "train.epochs: -1", "max_source_length"]
    assert len(faults) == 4
    assert all(any(part in fault for fault in faults) for part in parts), faults


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"source": {"pth": "x"}}, ["task.source.pth: no such field", "did you mean path?"]),
        ({"source": "x"}, ["task.source: 'x'", "path, subset, files"]),
        ({"labels": ["one"]}, ["task.labels ('one',)", "at least two"]),
        (
            {"source": {"splits": {"eval": "validation"}}},
            ["splits.eval is 'validation' with task.source.held_out 1000"],
        ),
        ({"source": {"held_out": "many"}}, ["task.source.held_out: 'many'", "a whole number"]),
    ],
)
def test_fields_beside_a_name_are_checked(
    content: dict[str, Any], fields: dict[str, Any], parts: list[str]
) -> None:
    (fault,) = faults_of({**content, "task": {"name": "sst2", **fields}})
    assert all(part in fault for part in parts), fault


def test_the_listing_names_every_task() -> None:
    text = " ".join(fields_as_yaml().replace("#", "").split())
    assert "task: sst2" in text
    assert ", ".join(list(TASKS)[:-1]) + " or multi_news" in text
