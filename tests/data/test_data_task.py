import math
from dataclasses import asdict, replace

import pytest

from scalepet.data import METRICS, Picture, Source, Task

SOURCE = Source("csv", files={"train": "a.csv", "validation": "b.csv"})
TASK = Task(
    kind="classification",
    source=SOURCE,
    template="{text}",
    target="label",
    labels=("no", "yes"),
)
PICTURES = Task(
    kind="image_classification", source=Source("folder"), template="{photo}", target="label"
)
TRANSLATION = Task(kind="sequence_to_sequence", source=SOURCE, template="{en}", target="de")


def test_good_tasks_have_no_faults() -> None:
    assert TASK.faults() == []
    assert TRANSLATION.faults() == []
    assert replace(TASK, labels=(), metrics=tuple(METRICS)).faults() == []
    assert replace(TASK, label_values={0: "no", "x": "yes", 2: "yes"}).faults() == []
    assert Source("nyu-mll/glue", subset="sst2").faults() == []


def test_default_and_given_split_expressions() -> None:
    source = Source("imdb", splits={"train": "train[:10]"})
    assert source.expression("train") == "train[:10]"
    assert source.expression("eval") == "validation"


def test_a_task_is_a_plain_value() -> None:
    values = asdict(TASK)
    inner = {"source": Source(**values["source"]), "picture": Picture(**values["picture"])}
    assert Task(**values | inner) == TASK


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"kind": "regression"}, ["task.kind", "regression", "sequence_to_sequence"]),
        ({"template": "{text"}, ["task.template", "{text"]),
        ({"target": ""}, ["task.target"]),
        ({"labels": ("no",)}, ["task.labels", "no", "two"]),
        ({"labels": ("no", "no")}, ["task.labels", "twice"]),
        ({"labels": ("no", " ")}, ["task.labels", "blank"]),
        ({"label_values": {3: "maybe"}}, ["label_values", "3", "maybe", "no, yes"]),
        ({"label_values": {3: "no", "3": "yes"}}, ["label_values", "twice"]),
        ({"metrics": ("acuracy",)}, ["task.metrics", "acuracy", "accuracy, macro_f1"]),
        ({"metrics": ()}, ["task.metrics", "empty", "accuracy"]),
        ({"metrics": ("f1",), "labels": ("a", "b", "c")}, ["'f1' with 3 classes", "macro_f1"]),
        ({"max_source_length": 2}, ["max_source_length", "2", "at least 3"]),
        ({"max_target_length": 1}, ["max_target_length", "1", "at least 2"]),
    ],
)
def test_each_fault_names_field_value_and_what_is_allowed(
    change: dict[str, object], parts: list[str]
) -> None:
    faults = replace(TASK, **change).faults()  # type: ignore[arg-type]
    assert len(faults) == 1, faults
    assert all(part in faults[0] for part in parts), faults[0]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"template": "see {image}"}, ["task.template 'see {image}'", "nothing else", '"{image}"']),
        ({"template": "{image}{label}"}, ["task.template", "one column of pictures"]),
        ({"template": "no column"}, ["task.template", "it names no column"]),
        ({"labels": ("cat",)}, ["task.labels", "two"]),
        ({"max_source_length": 64}, ["task.max_source_length 64 goes with kinds of texts"]),
        ({"max_target_length": 1}, ["task.max_target_length 1 goes with kinds of texts"]),
        ({"picture": Picture(size=0)}, ["task.picture.size is 0", "at least 1"]),
        ({"picture": Picture(resize=223)}, ["task.picture.resize is 223", "at least 224"]),
        ({"picture": Picture(mean=(0, math.nan, 0))}, ["task.picture.mean", "three numbers"]),
        ({"picture": Picture(std=(1, 1))}, ["task.picture.std is [1, 1]"]),  # type: ignore[arg-type]
        ({"picture": Picture(std=(1, 0, 1))}, ["task.picture.std is [1, 0, 1]", "above 0"]),
    ],
)
def test_faults_of_a_task_of_pictures(change: dict[str, object], parts: list[str]) -> None:
    (fault,) = replace(PICTURES, **change).faults()  # type: ignore[arg-type]
    assert all(part in fault for part in parts), fault


def test_what_a_task_of_pictures_knows() -> None:
    assert PICTURES.faults() == replace(PICTURES, labels=("cat", "dog")).faults() == []
    assert (PICTURES.picture_column, TASK.picture_column) == ("photo", None)
    assert (PICTURES.has_classes, TASK.has_classes, TRANSLATION.has_classes) == (True, True, False)
    (fault,) = replace(TASK, picture=Picture(size=32)).faults()
    assert fault == "task.picture goes with kind image_classification, not 'classification'"


@pytest.mark.parametrize("change", [{"labels": ("no", "yes")}, {"label_values": {1: "no"}}])
def test_labels_are_for_classification(change: dict[str, object]) -> None:
    (fault,) = replace(TRANSLATION, **change).faults()  # type: ignore[arg-type]
    assert "goes with kind classification, not 'sequence_to_sequence'" in fault


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (Source(""), ["task.source.path is empty", "csv"]),
        (Source("json"), ["task.source.files is missing", "json", "train: train.json"]),
        (Source("imdb", files={"train": "a"}), ["task.source.files", "imdb", "csv"]),
        (replace(SOURCE, subset="sst2"), ["task.source.subset", "sst2", "hub id"]),
        (Source("imdb", splits={"evl": "test"}), ["task.source.splits", "evl", "train, eval"]),
    ],
)
def test_source_faults(source: Source, parts: list[str]) -> None:
    (fault,) = source.faults()
    assert all(part in fault for part in parts), fault


def test_f1_is_of_one_of_two_classes() -> None:
    assert replace(TASK, metrics=("accuracy", "f1")).faults() == []
    (fault,) = replace(TRANSLATION, metrics=("f1",)).faults()
    assert "'f1' with 0 classes" in fault


def test_all_faults_come_at_once() -> None:
    task = replace(TASK, source=Source("csv"), template="x", metrics=("a", "b"), labels=("c",))
    faults = task.faults()
    assert len(faults) == 5
    assert faults[0].startswith("task.source")
