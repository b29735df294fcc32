"""Loading a stream: every experience has the rows of its classes, and they encode right."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from scalepet.data import Rows, Source, Task, encode
from scalepet.data.stream import Stream, StreamSpec
from scalepet.data.stream_rows import load_stream
from scalepet.errors import ConfigError, DataError, ScalepetError

SPLITS = ("train", "eval")
WORDS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")


def save(
    folder: Path,
    words: Sequence[str] = WORDS,
    *,
    values: Callable[[str], Any] | None = None,
    label: Any = None,
    num_rows: Mapping[str, int] | None = None,
) -> Source:
    """A saved data set, whose texts are the true word and a number; classes take turns."""
    columns: dict[str, Any] = {"text": Value("string")}
    columns["label"] = ClassLabel(names=list(words)) if label is None else label
    splits = {}
    for split, count in (num_rows or {"train": 4, "validation": 2}).items():
        true = [word for _ in range(count) for word in words]
        rows = {
            "text": [f"{word} {row}" for row, word in enumerate(true)],
            "label": [word if values is None else values(word) for word in true],
        }
        splits[split] = Dataset.from_dict(rows, features=Features(columns))
    DatasetDict(splits).save_to_disk(str(folder))
    return Source(str(folder))


def task_of(source: Source, **fields: Any) -> Task:
    given = {"kind": "classification", "template": "{text}", "target": "label"} | fields
    return Task(source=source, **given)


def texts(rows: Rows) -> list[str]:
    return list(rows[0 : len(rows)]["text"])


def check_encoding(stream: Stream, rows: list[dict[str, Rows]], tokenizer: Any) -> None:
    """Each row's class is the one that its text names, by label word and by place."""
    for experience, splits in zip(stream.experiences, rows, strict=True):
        for split in SPLITS:
            encoded = encode(experience.task, splits[split], tokenizer=tokenizer, form="head")
            true = [text.split()[0] for text in texts(splits[split])]
            assert encoded.references == true
            assert encoded.classes is not None
            places = [stream.classes[experience.classes[index]] for index in encoded.classes]
            assert places == true


STARS = ("1", "2", "3", "4", "5")
PLACES = {word: place for place, word in enumerate(WORDS)}
KINDS: dict[str, dict[str, Any]] = {
    "class label": {},
    "class label in another order": {"labels": WORDS[::-1]},
    "class label with other words": {
        "label": ClassLabel(names=[word.upper() for word in WORDS]),
        "values": str.upper,
        "labels": WORDS,
    },
    "class label and given values": {
        "label": ClassLabel(names=[word.upper() for word in WORDS[::-1]]),
        "values": str.upper,
        "labels": WORDS,
        "label_values": {word.upper(): word for word in WORDS},
    },
    "text": {"label": Value("string"), "labels": WORDS},
    "text found in the rows": {"label": Value("string")},
    "numbers of classes": {"label": Value("int64"), "values": PLACES.get, "labels": WORDS},
    "numbers that mean others": {
        "label": Value("int32"),
        "values": lambda word: 6 - PLACES[word],
        "labels": WORDS,
        "label_values": {6 - place: word for word, place in PLACES.items()},
    },
    "numbers as words": {"words": STARS, "label": Value("int64"), "values": int},
    "numbers as words, given": {"words": STARS, "label": Value("string"), "labels": STARS},
    "class label of numbers": {"words": STARS, "label": ClassLabel(names=list(STARS))},
    "truth values": {
        "words": ("right", "wrong"),
        "label": Value("bool"),
        "values": lambda word: word == "right",
        "labels": ("wrong", "right"),
        "label_values": {True: "right", False: "wrong"},
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tasks", [1, 2])
def test_portions_of_every_kind_of_label_encode_right(
    kind: str, num_tasks: int, tmp_path: Path, tokenizer: Any
) -> None:
    case = dict(KINDS[kind])
    fields = {name: case.pop(name) for name in ("labels", "label_values") if name in case}
    words = case.get("words", WORDS)
    task = task_of(save(tmp_path / "saved", **case), **fields)
    num_tasks = min(num_tasks, len(words) // 2)
    spec = StreamSpec(task=task, num_tasks=num_tasks, seed=5)
    stream, rows = load_stream(spec)
    assert sorted(stream.classes) == sorted(words)
    check_encoding(stream, rows, tokenizer)
    for split in SPLITS:
        all_rows = [text for splits in rows for text in texts(splits[split])]
        assert len(all_rows) == len(set(all_rows)) == {"train": 4, "eval": 2}[split] * len(words)


def test_class_names_that_are_the_numbers_of_others(tmp_path: Path, tokenizer: Any) -> None:
    names = ["2", "0", "3", "1"]  # the raw number 0 means "2", 1 means "0", ...
    task = task_of(save(tmp_path / "saved", names))
    stream, rows = load_stream(StreamSpec(task=task, num_tasks=2, class_order=("1", "2", "0", "3")))
    assert [experience.task.labels for experience in stream.experiences] == [("1", "2"), ("0", "3")]
    check_encoding(stream, rows, tokenizer)


def test_csv_files(tmp_path: Path, tokenizer: Any) -> None:
    lines = [f"{word} {row},{word}" for row in range(2) for word in WORDS]
    for name in ("train", "held_out"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]))
    files: dict[str, str | list[str]] = {
        "train": str(tmp_path / "train.csv"),
        "validation": str(tmp_path / "held_out.csv"),
    }
    stream, rows = load_stream(
        StreamSpec(task=task_of(Source("csv", files=files)), num_tasks=3, class_order=WORDS)
    )
    assert stream.classes == WORDS
    check_encoding(stream, rows, tokenizer)


@pytest.mark.parametrize(("num_tasks", "sizes"), [(1, [7]), (2, [4, 3]), (3, [3, 2, 2])])
def test_the_first_portions_are_the_larger_ones(
    num_tasks: int, sizes: list[int], tmp_path: Path
) -> None:
    spec = StreamSpec(task=task_of(save(tmp_path / "saved")), num_tasks=num_tasks)
    stream, rows = load_stream(replace(spec, class_order=WORDS[::-1]))
    portions = np.array_split(np.array(WORDS[::-1]), num_tasks)
    assert [len(experience.classes) for experience in stream.experiences] == sizes
    assert [experience.task.labels for experience in stream.experiences] == [
        tuple(portion) for portion in portions
    ]
    assert stream.classes == WORDS[::-1]
    assert [place for experience in stream.experiences for place in experience.classes] == [
        *range(7)
    ]
    for portion, splits in zip(portions, rows, strict=True):
        rows_of_portion = [f"{word} {row}" for row, word in enumerate(WORDS * 4) if word in portion]
        assert texts(splits["train"]) == rows_of_portion  # in the order of the split


def test_names_and_fingerprint(tmp_path: Path) -> None:
    words = ("a/b & c", "d:e", "f", "g")
    spec = StreamSpec(task=task_of(save(tmp_path / "saved", words)), num_tasks=2, class_order=words)
    stream, _ = load_stream(spec)
    assert [experience.name for experience in stream.experiences] == [
        "1 a-b - c+1 more",
        "2 f+1 more",
    ]
    assert json.loads(json.dumps(stream.fingerprint)) == {
        "classes": list(words),
        "experiences": [
            {"name": "1 a-b - c+1 more", "classes": ["a/b & c", "d:e"]},
            {"name": "2 f+1 more", "classes": ["f", "g"]},
        ],
    }


GOLDEN_ORDERS = {
    0: ("elk", "fox", "ant", "dog", "cat", "gnu", "bee"),
    1: ("gnu", "ant", "cat", "bee", "dog", "elk", "fox"),
    2**64 - 1: ("ant", "bee", "cat", "elk", "gnu", "dog", "fox"),
}
"""Drawn by a published function, so they may not change with numpy."""


@pytest.mark.parametrize("seed", GOLDEN_ORDERS)
def test_the_order_of_classes_is_drawn_by_the_seed(seed: int, tmp_path: Path) -> None:
    spec = StreamSpec(task=task_of(save(tmp_path / "saved")), num_tasks=3, seed=seed)
    assert load_stream(spec)[0].classes == GOLDEN_ORDERS[seed]


def test_texts_are_not_copied(tmp_path: Path) -> None:
    spec = StreamSpec(task=task_of(save(tmp_path / "saved")), num_tasks=3)
    _, rows = load_stream(spec)
    tables = [splits["train"].data for splits in rows]  # type: ignore[attr-defined]
    addresses = {table.column("text").chunk(0).buffers()[2].address for table in tables}
    assert len(addresses) == 1


def kept(spec: StreamSpec) -> dict[str, dict[str, set[str]]]:
    """Split -> word -> the texts that the whole stream keeps."""
    found: dict[str, dict[str, set[str]]] = {split: {} for split in SPLITS}
    for splits in load_stream(spec)[1]:
        for split in SPLITS:
            for text in texts(splits[split]):
                found[split].setdefault(text.split()[0], set()).add(text)
    return found


def test_rows_per_class_are_drawn_by_seed_split_and_word_alone(tmp_path: Path) -> None:
    source = save(tmp_path / "saved", num_rows={"train": 40, "validation": 40})
    spec = StreamSpec(
        task=task_of(source), num_tasks=3, train_rows_per_class=6, eval_rows_per_class=5
    )
    first = kept(spec)
    assert {len(found) for found in first["train"].values()} == {6}
    assert {len(found) for found in first["eval"].values()} == {5}
    assert kept(replace(spec, num_tasks=2, class_order=WORDS[::-1])) == first
    assert kept(replace(spec, task=task_of(source, labels=WORDS[::-1]))) == first
    assert kept(replace(spec, task=None, num_tasks=None, tasks=(task_of(source),))) == first
    other_seed = kept(replace(spec, seed=1))
    more = kept(replace(spec, train_rows_per_class=7))
    for word in WORDS:
        assert first["train"][word] < more["train"][word]
        assert first["train"][word] != other_seed["train"][word]
        assert not first["eval"][word] <= first["train"][word]
    numbers = [{int(t.split()[1]) // 7 for t in first["train"][word]} for word in WORDS]
    assert any(places != numbers[0] for places in numbers)


def test_classes_with_fewer_rows_keep_all(tmp_path: Path) -> None:
    spec = StreamSpec(task=task_of(save(tmp_path / "saved")), num_tasks=3, train_rows_per_class=9)
    assert {len(found) for found in kept(spec)["train"].values()} == {4}


def test_rows_of_an_experience_are_drawn_from_all_classes(tmp_path: Path) -> None:
    words = ("ant", "ant", "ant", "bee")  # three of four rows are ants
    source = save(
        tmp_path / "saved",
        words,
        label=Value("string"),
        num_rows={"train": 500, "validation": 20},
    )
    spec = StreamSpec(tasks=(task_of(source),), train_rows=400, eval_rows=200)
    found = kept(spec)
    sizes = {word: len(rows) for word, rows in found["train"].items()}
    assert sum(sizes.values()) == 400
    assert 270 < sizes["ant"] < 330  # 300 +- 8: natural proportions
    assert {word: len(rows) for word, rows in found["eval"].items()} == {"ant": 60, "bee": 20}
    fewer = kept(replace(spec, train_rows=100))
    assert all(fewer["train"][word] < found["train"][word] for word in ("ant", "bee"))


def test_a_limit_that_leaves_no_row_of_a_class_is_refused(tmp_path: Path) -> None:
    spec = StreamSpec(tasks=(task_of(save(tmp_path / "saved")),), eval_rows=3)
    with pytest.raises(DataError, match=r"split 'eval' has no row of .* within stream.eval_rows 3"):
        load_stream(spec)


def test_blank_rows_are_left_out_where_this_is_asked_for(tmp_path: Path, tokenizer: Any) -> None:
    titles = ["", " \n", None, "x"]
    rows = Dataset.from_dict(
        {
            "title": [titles[row % 4] for row in range(80)],
            "text": [f"{'ab'[row // 40]} {row}" for row in range(80)],
            "label": ["ab"[row // 40] for row in range(80)],
        }
    )
    DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(tmp_path / "saved"))
    task = task_of(Source(str(tmp_path / "saved")), template="{title} {text}")
    spec = StreamSpec(tasks=(task,), skip_blank=True, train_rows_per_class=7, eval_rows=30)
    stream, (splits,) = load_stream(spec)
    assert [len(splits[split]) for split in SPLITS] == [14, 20]
    assert set(splits["train"][0:14]["title"]) == {"x"}
    encode(stream.experiences[0].task, splits["eval"], tokenizer=tokenizer, form="head")
    stream, (splits,) = load_stream(replace(spec, skip_blank=False))
    with pytest.raises(DataError, match="column 'title'"):
        encode(stream.experiences[0].task, splits["eval"], tokenizer=tokenizer, form="head")


def test_data_sets_one_after_another(tmp_path: Path, tokenizer: Any) -> None:
    tasks = (
        task_of(save(tmp_path / "animals", ("ant", "bee"))),
        task_of(save(tmp_path / "plants", ("rose", "oak"), label=Value("string"))),
        task_of(save(tmp_path / "more" / "plants", ("fern", "moss")), labels=("moss", "fern")),
    )
    stream, rows = load_stream(StreamSpec(tasks=tasks))
    assert stream.classes == ("ant", "bee", "oak", "rose", "moss", "fern")
    assert [experience.name for experience in stream.experiences] == [
        "animals",
        "plants",
        "plants 2",
    ]
    assert [experience.classes for experience in stream.experiences] == [(0, 1), (2, 3), (4, 5)]
    assert [len(splits["train"]) for splits in rows] == [8, 8, 8]
    check_encoding(stream, rows, tokenizer)


def test_shared_labels_are_one_class(tmp_path: Path, tokenizer: Any) -> None:
    tasks = (
        task_of(save(tmp_path / "one", ("good", "bad"))),
        task_of(save(tmp_path / "two", ("ant", "bad", "bee"))),
        task_of(save(tmp_path / "three", ("bad", "good"))),
    )
    stream, rows = load_stream(StreamSpec(tasks=tasks, shared_labels=True))
    assert stream.classes == ("good", "bad", "ant", "bee")
    assert [experience.classes for experience in stream.experiences] == [(0, 1), (2, 1, 3), (1, 0)]
    assert [stream.num_seen(index) for index in range(3)] == [2, 4, 4]
    check_encoding(stream, rows, tokenizer)


def refused(spec: StreamSpec, by: type[ScalepetError] = ConfigError) -> tuple[str, ...]:
    with pytest.raises(by) as caught:
        load_stream(spec)
    assert type(caught.value) is by
    return caught.value.faults


def test_overlap_that_only_the_rows_show(tmp_path: Path) -> None:
    tasks = (
        task_of(save(tmp_path / "one", ("good", "bad"))),
        task_of(save(tmp_path / "two", ("ant", "bad"), label=Value("string"))),
    )
    (fault,) = refused(StreamSpec(tasks=tasks))
    assert fault.startswith("stream.tasks[0] and stream.tasks[1] share the label words bad; ")


def test_portions_that_only_the_rows_refuse(tmp_path: Path) -> None:
    task = task_of(save(tmp_path / "saved"))
    faults = refused(StreamSpec(task=task, num_tasks=4, class_order=("ant", "bat")))
    assert faults == (
        "stream.num_tasks is 4; allowed: 1 to 3, since there are 7 classes and a portion needs 2",
        "stream.class_order has bat; allowed: ant, bee, cat, dog, elk, fox, gnu",
        "stream.class_order lacks bee, cat, dog, elk, fox, gnu; allowed: every class once",
    )


def test_a_class_without_rows_in_a_split(tmp_path: Path) -> None:
    source = save(tmp_path / "saved")
    splits = {"train": "train", "eval": "validation[:5]"}
    task = task_of(Source(source.path, splits=splits))
    faults = refused(StreamSpec(task=task, num_tasks=3, class_order=WORDS), by=DataError)
    assert faults == (
        "stream.task: split 'eval' has no row of fox, gnu; "
        "allowed: rows of every class in both splits",
    )


def test_faults_of_all_data_sets_are_listed(tmp_path: Path) -> None:
    save(tmp_path / "good", ("a", "b"))
    tasks = (
        task_of(Source(str(tmp_path / "gone"))),
        task_of(Source(str(tmp_path / "good"), splits={"eval": "test"})),
        task_of(Source(str(tmp_path / "good")), target="topic", template="{title}"),
        task_of(save(tmp_path / "words", ("x", "y"), label=Value("string")), labels=("x", "z")),
    )
    faults = refused(StreamSpec(tasks=tasks))
    starts = (
        f"stream.tasks[0].source.path '{tmp_path}/gone' does not exist",
        "stream.tasks[1].source.splits.eval 'test': ",
        "stream.tasks[2]: column 'title' is missing",
        "stream.tasks[2]: column 'topic' is missing",
        "stream.tasks[3]: split 'train': column 'label': 4 of 8 rows cannot be used",
        "stream.tasks[3]: split 'eval': column 'label': 2 of 4 rows cannot be used",
    )
    assert len(faults) == len(starts), faults
    assert all(map(str.startswith, faults, starts)), faults


def test_faults_of_the_description_come_before_the_disk_is_read() -> None:
    (fault,) = refused(StreamSpec(task=task_of(Source("some/data"))))
    assert fault.startswith("stream.num_tasks is missing")
