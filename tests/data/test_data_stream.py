"""Streams as plain values: every fault is listed, in the words of the file."""

from dataclasses import replace
from typing import Any

import pytest

from scalepet.data import Source, Task
from scalepet.data.stream import Experience, Stream, StreamSpec, source_name, unique

LABELS = ("a", "b", "c", "d", "e")


def task(*labels: str, path: str = "some/data", **fields: Any) -> Task:
    given = {"kind": "classification", "template": "{text}", "target": "label"} | fields
    return Task(source=Source(path), labels=labels, **given)


GOOD = [
    StreamSpec(name="standard-cl-1"),
    StreamSpec(name="mbpa-4", root="/data", train_rows_per_class=10, eval_rows=20, seed=3),
    StreamSpec(name="cifar100-10x10", class_order=("apple", "bee")),  # its classes: when loaded
    StreamSpec(name="imagenet-r-10x20", root="/data"),
    StreamSpec(task=task(), num_tasks=40),
    StreamSpec(task=task(*LABELS), num_tasks=2),
    StreamSpec(task=task(*LABELS), num_tasks=1, class_order=("b", "a", "e", "d", "c")),
    StreamSpec(tasks=(task("a", "b"), task("c", "d")), skip_blank=True),
    StreamSpec(tasks=(task("a", "b"), task())),
    StreamSpec(tasks=(task("a", "b"), task("b", "c")), shared_labels=True),
]


@pytest.mark.parametrize("spec", GOOD)
def test_nothing_is_wrong(spec: StreamSpec) -> None:
    assert spec.faults() == []


FAULTS: dict[str, tuple[StreamSpec, list[str]]] = {
    "nothing": (StreamSpec(), ["stream has none of them; allowed: one of name, task and tasks"]),
    "two ways": (
        StreamSpec(name="mbpa-1", task=task(), num_tasks=2),
        ["stream has name and task; allowed: one of name, task and tasks"],
    ),
    "unknown name": (
        StreamSpec(name="mbpa"),
        ["stream.name is 'mbpa'; allowed: standard-cl-1, standard-cl-2"],
    ),
    "no portions": (
        StreamSpec(task=task(*LABELS)),
        ["stream.num_tasks is missing; allowed: the number of portions"],
    ),
    "portions of no class": (
        StreamSpec(task=task(*LABELS), num_tasks=6),
        ["stream.num_tasks is 6; allowed: 1 to 2, since there are 5 classes"],
    ),
    "portions of one class": (
        StreamSpec(task=task(*LABELS), num_tasks=3),
        ["stream.num_tasks is 3; allowed: 1 to 2, since there are 5 classes and a portion needs 2"],
    ),
    "less than one portion": (
        StreamSpec(task=task(), num_tasks=-1),
        ["stream.num_tasks is -1; allowed: at least 1"],
    ),
    "zero portions": (
        StreamSpec(task=task(), num_tasks=0),
        ["stream.num_tasks is 0; allowed: at least 1"],
    ),
    "no permutation": (
        StreamSpec(task=task(*LABELS), num_tasks=2, class_order=("a", "b", "b", "x")),
        [
            "stream.class_order has b twice; allowed: every class once",
            "stream.class_order has x; allowed: a, b, c, d, e",
            "stream.class_order lacks c, d, e; allowed: every class once",
        ],
    ),
    "overlap": (
        StreamSpec(tasks=(task("a", "b"), task("c", "d"), task("d", "a", "c"))),
        [
            "stream.tasks[1] and stream.tasks[2] share the label words d, c; "
            "allowed: different words, or stream.shared_labels",
            "stream.tasks[0] and stream.tasks[2] share the label words a; ",
        ],
    ),
    "no classes": (
        StreamSpec(tasks=(task("a", "b"), task(kind="sequence_to_sequence"))),
        [
            "stream.tasks[1].kind is 'sequence_to_sequence'; allowed: tasks with classes",
            "stream.tasks has the kinds classification, sequence_to_sequence; allowed: one kind",
        ],
    ),
    "texts and pictures": (
        StreamSpec(
            tasks=(task("a", "b"), task(kind="image_classification", template="{image}")),
            skip_blank=True,
        ),
        [
            "stream.skip_blank is True; it goes with tasks of texts",
            "stream.tasks has the kinds classification, image_classification; allowed: one kind",
        ],
    ),
    "faults of tasks": (
        StreamSpec(tasks=(task("a", path=""), task(template="text", kind="regression"))),
        [
            "stream.tasks[0].source.path is empty; allowed",
            "stream.tasks[0].labels ('a',): at least two classes",
            "stream.tasks[1].kind is 'regression'; allowed: ",
            "stream.tasks[1].template 'text': ",
            "stream.tasks has the kinds classification, regression",
        ],
    ),
    "faults of the task": (
        StreamSpec(task=task(target=""), num_tasks=2),
        ["stream.task.target is empty; allowed: the name of a column"],
    ),
    "fields of another way": (
        StreamSpec(tasks=(task(),), num_tasks=2, class_order=("a",), root="/data", skip_blank=True),
        [
            "stream.num_tasks is 2; it goes with stream.task",
            "stream.root is '/data'; it goes with stream.name",
            "stream.class_order is given; it goes with one data set in portions",
        ],
    ),
    "fields of no name": (
        StreamSpec(
            name="mbpa-1", num_tasks=2, shared_labels=True, skip_blank=True, class_order=("a",)
        ),
        [
            "stream.num_tasks is 2; it goes with stream.task",
            "stream.shared_labels is True; it goes with stream.tasks",
            "stream.skip_blank is True; it goes with stream.task or stream.tasks",
            "stream.class_order is given; it goes with one data set in portions",
        ],
    ),
    "shared labels of portions": (
        StreamSpec(task=task(), num_tasks=2, shared_labels=True),
        ["stream.shared_labels is True; it goes with stream.tasks"],
    ),
    "what the hub has not": (
        StreamSpec(name="imagenet-r-10x20"),
        ["stream.root is missing; stream.name 'imagenet-r-10x20' needs a folder with: a folder "],
    ),
    "order of a name": (
        StreamSpec(name="cifar100-20x5", class_order=("bee", "bee")),
        ["stream.class_order has bee twice; allowed: every class once"],
    ),
    "numbers": (
        StreamSpec(
            name="mbpa-1", seed=2**64, train_rows_per_class=0, eval_rows=-1, eval_rows_per_class=1
        ),
        [
            "stream.seed is 18446744073709551616; allowed: 0 to 2**64 - 1",
            "stream.train_rows_per_class is 0; allowed: at least 1, or null for all",
            "stream.eval_rows is -1; allowed: at least 1, or null for all",
            "stream.eval_rows_per_class and stream.eval_rows are given; allowed: one of them",
        ],
    ),
    "numbers of nothing": (
        StreamSpec(seed=-1),
        ["stream has none of them", "stream.seed is -1; allowed: 0 to 2**64 - 1"],
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_all_faults_are_listed(case: str) -> None:
    spec, starts = FAULTS[case]
    faults = spec.faults()
    assert len(faults) == len(starts), faults
    assert all(map(str.startswith, faults, starts)), faults


def test_what_is_given_takes_the_place_of_what_is_published() -> None:
    spec = StreamSpec(name="standard-cl-1")
    assert (spec.row_limits("train"), spec.row_limits("eval")) == ((1000, None), (None, 7600))
    spec = replace(spec, eval_rows_per_class=5, train_rows=70)
    assert (spec.row_limits("train"), spec.row_limits("eval")) == ((None, 70), (5, None))
    assert StreamSpec(tasks=(task(),)).row_limits("train") == (None, None)


def test_a_root_takes_the_place_of_the_hub() -> None:
    (first, *_) = StreamSpec(name="15-tasks-1", root="/data").members()
    assert first.name == "mnli"
    assert first.task.source == Source(
        "/data/nyu-mll__glue__mnli", splits={"eval": "validation_matched"}
    )


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (Source("fancyzhx/ag_news"), "ag_news"),
        (Source("nyu-mll/glue", subset="sst2"), "sst2"),
        (Source("data/reviews/"), "reviews"),
        (Source("csv", files={"train": "data/ag/train.csv"}), "ag"),
        (Source("csv", files={"train": ["data/ag_train.csv", "more.csv"]}), "ag"),
        (Source("json", files={"validation": "news.jsonl"}), "news"),
        (Source("parquet", files={"train": "train-*.parquet"}), "rows"),
    ],
)
def test_names_of_data_sets(source: Source, name: str) -> None:
    assert source_name(source) == name


def test_names_are_unique() -> None:
    assert unique(["a", "b", "a", "a 2", "a"]) == ["a", "b", "a 2", "a 2 2", "a 3"]


def test_classes_seen() -> None:
    steps = [("a", "b"), ("b", "a"), ("c", "b", "d")]
    stream = Stream(
        classes=("a", "b", "c", "d"),
        experiences=tuple(
            Experience("".join(words), task(*words), tuple("abcd".index(word) for word in words))
            for words in steps
        ),
    )
    assert [stream.num_seen(index) for index in range(3)] == [2, 2, 4]
    assert stream.fingerprint == {
        "classes": ["a", "b", "c", "d"],
        "experiences": [
            {"name": "ab", "classes": ["a", "b"]},
            {"name": "ba", "classes": ["b", "a"]},
            {"name": "cbd", "classes": ["c", "b", "d"]},
        ],
    }
