from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalepet.config import (
    MethodConfig,
    RunConfig,
    TrainConfig,
    check_config,
    method_options,
    plain,
)
from scalepet.data import Source, Task
from scalepet.errors import ConfigError

Change = Callable[..., dict[str, Any]]


def faults_of(content: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        check_config(content)
    return caught.value.faults


def test_a_small_config_is_filled_up(content: dict[str, Any]) -> None:
    config = check_config(content)
    assert config.output == Path("runs/first")
    assert config.task == Task(
        kind="classification",
        source=Source("csv", files={"train": "train.csv", "validation": "held_out.csv"}),
        template="Input: {text} Output: ",
        target="label",
    )
    assert config.method.options == {"budget": 4096}
    assert (config.train.epochs, config.train.steps) == (3, None)
    assert (config.precision, config.deepspeed, config.wandb.mode) == ("bf16", "zero3", "off")


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, (3, None)),
        ({"batch_size": 8}, (3, None)),
        ({"epochs": 0.5}, (0.5, None)),
        ({"steps": 7}, (None, 7)),
        ({"steps": 7, "epochs": None}, (None, 7)),
        ({"steps": None, "epochs": 2}, (2, None)),
    ],
)
def test_a_run_ends_by_epochs_or_by_steps(
    content: dict[str, Any], train: dict[str, Any], expected: tuple[Any, Any]
) -> None:
    config = check_config({**content, "train": train})
    assert (config.train.epochs, config.train.steps) == expected


def test_a_config_cannot_be_changed(content: dict[str, Any]) -> None:
    config = check_config(content)
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"train.steps": 10, "train.clip": 0.5, "wandb.mode": "offline", "precision": "fp32"},
        {"deepspeed": {"zero_optimization": {"stage": 3}}, "backbone.dropout": 0},
        {
            "task.labels": ["good", "bad"],
            "task.label_values": {1: "good", 0: "bad", "maybe": "bad"},
            "task.metrics": ["macro_f1", "accuracy"],
        },
        {"task.labels": ["good", "bad"], "task.label_values": {True: "good", False: "bad"}},
        {"method.kinds": ["norm", "matrix"], "method.budget": "0.1%", "method.seed": 3},
        {"task.source.splits": {"train": "train[:10]"}},
        {
            "task.kind": "image_classification",
            "task.template": "{image}",
            "task.picture": {"size": 32, "resize": 36, "mean": [0.5, 0.5, 0.5]},
        },
    ],
)
def test_a_config_goes_through_json_and_back(with_fields: Change, fields: dict[str, Any]) -> None:
    config = check_config(with_fields(fields))
    again = check_config(json.loads(json.dumps(plain(config))))
    assert plain(again) == plain(config)
    assert method_options(again.method) == method_options(config.method)


def test_the_options_of_a_method_are_filled_up() -> None:
    config = MethodConfig.model_validate({"budget": "1%", "exclude": ["lm_head.*"]})
    assert method_options(config) == {
        "budget": "1%",
        "operation": "add",
        "unit": "element",
        "block": 16,
        "select": "random",
        "move_every": None,
        "move_share": 0.2,
        "kinds": ("matrix",),
        "parts": None,
        "include": ("*",),
        "exclude": ["lm_head.*"],
        "share": "uniform",
        "group_by": "layer",
        "calibrated": False,
        "seed": 0,
    }
    assert method_options(MethodConfig(name="head")) == {}


def test_sections_have_their_defaults_in_python_too() -> None:
    assert TrainConfig() == TrainConfig(epochs=3)
    assert TrainConfig(learning_rate=1e-3).epochs == 3
    assert TrainConfig(steps=3).epochs is None


def test_nothing_at_all_lacks_all_that_is_needed() -> None:
    faults = faults_of({})
    starts = ["output: is missing", "backbone: is missing", "task: is missing", "method.budget: is"]
    assert len(faults) == len(starts)
    for fault, start in zip(faults, starts, strict=True):
        assert fault.startswith(start)
    assert "needed: kind, source, template, target" in faults[2]
    assert "revision" in faults[1]


@pytest.mark.parametrize("section", ["backbone", "task", "train", "evaluate", "wandb"])
@pytest.mark.parametrize("value", [None, 3, "text", [1], True])
def test_a_section_that_is_none_hides_no_other_fault(
    content: dict[str, Any], section: str, value: Any
) -> None:
    content = {**content, section: value, "precision": "fp17", "seeds": 1}
    content["method"]["budgets"] = 3
    faults = faults_of(content)
    assert len(faults) == 4
    (fault,) = [fault for fault in faults if fault.startswith(f"{section}: ")]
    shown = {None: "null", True: "true", "text": "'text'"}.get(value if value != [1] else 3, value)
    assert fault.startswith(f"{section}: {shown if value != [1] else [1]}; allowed: the fields ")


def test_all_faults_of_all_sections_stand_in_one_message(with_fields: Change) -> None:
    faults = faults_of(
        with_fields(
            {
                "output": 3,
                "precison": "bf16",
                "backbone.dropout": 1,
                "backbone.pth": "x",
                "task.kind": "classifikation",
                "task.labels": ["good", "good"],
                "task.template": "{text",
                "task.source.fils": {},
                "task.metrics": ["acuracy"],
                "method.budget": -1,
                "method.share": "odd",
                "method.sed": 1,
                "train.epochs": 2,
                "train.steps": 5,
                "train.warmup": 1,
                "evaluate.num_beams": 0,
                "wandb.mode": "sometimes",
            }
        )
    )
    named = {fault.split(" ")[0].rstrip(":") for fault in faults}
    assert named == {
        "output",
        "precison",
        "backbone.dropout",
        "backbone.pth",
        "task.kind",
        "task.labels",
        "task.template",
        "task.source.fils",
        "task.metrics",
        "method.budget",
        "method.share",
        "method.sed",
        "train.epochs",
        "train.warmup",
        "evaluate.num_beams",
        "wandb.mode",
    }
    assert len(faults) == len(named)


def test_what_cannot_be_read_of_a_task_hides_nothing_of_the_rest(with_fields: Change) -> None:
    faults = faults_of(
        with_fields(
            {
                "task.kind": 3,
                "task.source": "csv",
                "task.template": ["{text}"],
                "task.target": None,
                "task.labels": ["good", " "],
                "task.max_source_length": 1,
            }
        )
    )
    assert len(faults) == 6
    assert any("task.labels" in fault and "blank" in fault for fault in faults)
    assert any("task.max_source_length is 1" in fault for fault in faults)


def test_pictures_are_not_judged_by_a_kind_that_cannot_be_read(with_fields: Change) -> None:
    (fault,) = faults_of(with_fields({"task.kind": "images", "task.picture": {"size": 32}}))
    assert fault.startswith("task.kind: 'images'; allowed: ")


def test_a_list_of_the_wrong_length_is_not_missing(with_fields: Change) -> None:
    picture = {"task.kind": "image_classification", "task.template": "{image}"}
    (fault,) = faults_of(with_fields({**picture, "task.picture": {"mean": [0.5, 0.5]}}))
    assert fault.startswith("task.picture.mean: [0.5, 0.5]; allowed: a list of 3 numbers")


def test_label_values_are_not_judged_by_labels_that_cannot_be_read(with_fields: Change) -> None:
    (fault,) = faults_of(with_fields({"task.labels": [1, 2], "task.label_values": {"a": "good"}}))
    assert fault.startswith("task.labels: [1, 2]; allowed: a list of texts")


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"train.learning_rte": 1}, "did you mean learning_rate?"),
        ({"trian": {}}, "did you mean train?"),
        ({"learning_rate": 1e-3}, "did you mean train.learning_rate?"),
        ({"budget": 3}, "did you mean method.budget?"),
        ({"labels": ["a", "b"]}, "did you mean task.labels?"),
        ({"task.files": {}}, "did you mean task.source.files?"),
        ({"task.source.slpits": {}}, "did you mean splits?"),
        ({"method.exlude": []}, "did you mean exclude?"),
        ({"method.name": "apt"}, "did you mean apet?"),
        ({"wandb.projekt": "x"}, "did you mean project?"),
    ],
)
def test_a_name_that_is_nearly_right_is_named(
    with_fields: Change, fields: dict[str, Any], hint: str
) -> None:
    (fault,) = faults_of(with_fields(fields))
    assert hint in fault
    assert "allowed: " in fault


def test_a_wrong_value_is_one_fault_however_many_types_it_fails(with_fields: Change) -> None:
    (fault,) = faults_of(with_fields({"task.source.files": {"train": 3, "validation": [4, "x"]}}))
    assert fault.startswith("task.source.files: {train: 3, validation: [4, 'x']}; allowed: ")
    assert "null" in fault


def test_a_long_value_is_cut(with_fields: Change) -> None:
    (fault,) = faults_of(with_fields({"seed": "x" * 1000}))
    assert len(fault) < 300
    assert "..." in fault


def test_keys_that_are_no_text_are_no_fields(with_fields: Change) -> None:
    faults = faults_of({**with_fields({"train": {2: 3}, "method": {"budget": 1, 5: 6}}), 1: 2})
    assert {fault.split(":")[0] for fault in faults} == {"1", "train.2", "method.5"}


def test_what_is_no_mapping_is_refused() -> None:
    for content in (None, [], "text", 3):
        (fault,) = faults_of(content)
        assert fault.startswith("config: ")


def test_every_field_has_a_meaning() -> None:
    for name, info in RunConfig.model_fields.items():
        assert info.description, name
        inner = getattr(info.annotation, "model_fields", {})
        assert all(field.description for field in inner.values()), name
