from dataclasses import replace

import pytest
from datasets import ClassLabel, Dataset, Features

from scalepet.data import Source, Task, discover_labels
from scalepet.data.labels import class_table, label_text, read_classes
from scalepet.data.rows import BadRows
from scalepet.errors import DataError

TASK = Task(
    kind="classification",
    source=Source("imdb"),
    template="{text}",
    target="label",
    labels=("negative", "positive"),
)


def test_label_words_and_class_numbers() -> None:
    assert class_table(TASK) == {"negative": 0, "positive": 1, "0": 0, "1": 1}


def test_where_label_words_are_numbers_raw_numbers_are_words() -> None:
    assert class_table(replace(TASK, labels=("1", "2", "3"))) == {"1": 0, "2": 1, "3": 2}


def test_given_values_are_the_only_ones() -> None:
    task = replace(TASK, label_values={2: "negative", "4": "positive", 5: "positive"})
    assert class_table(task) == {"2": 0, "4": 1, "5": 1}


def test_truth_values_need_given_values() -> None:
    task = replace(TASK, label_values={True: "positive", False: "negative"})
    table = class_table(task)
    assert [table[label_text(raw) or ""] for raw in (False, True)] == [0, 1]
    assert label_text(True) not in class_table(TASK)


def test_class_label_names_are_matched_by_name_not_by_place() -> None:
    assert class_table(TASK, ["positive", "negative"]) == {"0": 1, "1": 0}


def test_other_class_label_names_are_matched_by_place() -> None:
    assert class_table(TASK, ["neg", "pos"]) == {"0": 0, "1": 1}


def test_given_values_may_be_class_label_names() -> None:
    task = replace(TASK, label_values={"pos": "positive", "neg": "negative"})
    table = class_table(task, ["pos", "neg"])
    assert (table["0"], table["1"]) == (1, 0)


@pytest.mark.parametrize("names", [["a", "b", "c"], ["positive", "b"], ["a"]])
def test_class_label_names_that_need_a_guess_are_refused(names: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        class_table(TASK, names)
    message = str(caught.value)
    assert "'label'" in message
    assert ", ".join(names) in message
    assert "negative, positive" in message


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (3, "3"),
        (-1, "-1"),
        (True, "true"),
        (1.0, "1"),
        (0.5, None),
        (None, None),
        ("", None),
    ],
)
def test_label_text(value: object, text: str | None) -> None:
    assert label_text(value) == text


def test_discovered_labels_are_sorted() -> None:
    assert discover_labels(Dataset.from_dict({"y": ["b", "a", "b"]}), "y") == ("a", "b")
    assert discover_labels(Dataset.from_dict({"y": [10, 9, 1]}), "y") == ("1", "9", "10")


def test_truth_values_and_whole_numbers_of_any_type_are_classes() -> None:
    assert discover_labels(Dataset.from_dict({"y": [True, False]}), "y") == ("false", "true")
    assert discover_labels(Dataset.from_dict({"y": [2.0, 10.0, 1.0]}), "y") == ("1", "2", "10")
    assert discover_labels(Dataset.from_dict({"y": ["1.0", "x"]}), "y") == ("1.0", "x")
    task = replace(TASK, labels=("false", "true"))
    for values in ([False, True], ["false", "true"], [0, 1], [0.0, 1.0], ["0.0", "1."]):
        rows, bad = Dataset.from_dict({"label": values}), BadRows()
        assert read_classes(task, rows, bad) == [0, 1]  # type: ignore[arg-type]
        bad.refuse(num_rows=2)


def test_discovered_labels_of_a_class_label_column() -> None:
    features = Features({"y": ClassLabel(names=["z", "a"])})
    rows = Dataset.from_dict({"y": [1, 1]}, features=features)
    assert discover_labels(rows, "y") == ("z", "a")


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (["a", None, "b"], ["'y'", "1 of 3", "row 1: None", "text or whole numbers"]),
        ([0.5, 1.0], ["'y'", "2 of 2", "row 0: 0.5"]),
        (["0.5", "1.0", "2"], ["'y'", "not whole, such as '0.5'", "task.labels"]),
        ([[1], [2]], ["'y'", "row 0: [1]"]),
        ([True, True], ["'y'", "[True]", "two or more"]),
        (["a", "a"], ["'y'", "['a']", "two or more"]),
    ],
)
def test_columns_without_classes_are_refused(values: list[object], parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        discover_labels(Dataset.from_dict({"y": values}), "y")
    assert all(part in str(caught.value) for part in parts), caught.value


def test_a_missing_label_column_is_refused() -> None:
    with pytest.raises(DataError, match="column 'z' is missing; columns: y, x"):
        discover_labels(Dataset.from_dict({"y": ["a"], "x": ["b"]}), "z")
