"""Splits of a source: held out and drawn rows, and none in two splits."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from scalepet.data import Source, StreamSpec, Task, load_split, load_splits, load_stream
from scalepet.errors import ConfigError, DataError, ScalepetError

NUM_ROWS = 40
TASK = Task(
    kind="classification",
    source=Source("csv", files={"train": "gone.csv"}),
    template="{text}",
    target="label",
    labels=("no", "yes"),
)


def write(file: Path, numbers: Any) -> str:
    """Rows that know their number; sorted by label, as many files of the hub are."""
    labels = ["no" if n < NUM_ROWS // 2 else "yes" for n in numbers]
    Dataset.from_dict({"text": [f"{n:03}" for n in numbers], "label": labels}).to_csv(file)
    return str(file)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    files: dict[str, str | list[str]] = {
        "train": write(tmp_path / "train.csv", range(NUM_ROWS)),
        "validation": write(tmp_path / "validation.csv", range(100, 110)),
        "test": write(tmp_path / "test.csv", range(200, 230)),
    }
    return Source("csv", files=files, splits={"test": "test"})


def numbers(source: Source, split: str) -> list[int]:
    rows = load_split(source, split, columns=TASK.columns)
    return [int(text) for text in rows[0 : len(rows)]["text"]]


def all_numbers(source: Source) -> dict[str, list[int]]:
    splits = load_splits(replace(TASK, source=source))
    found = {
        name: [int(t) for t in rows[0 : len(rows)]["text"]] for name, rows in splits.rows.items()
    }
    assert found == {name: numbers(source, name) for name in source.names}
    return found


def refused(source: Source, *, by: type[ScalepetError] = ConfigError) -> tuple[str, ...]:
    with pytest.raises(by) as caught:
        load_splits(replace(TASK, source=source))
    return caught.value.faults


def independent_order(num_rows: int, *, seed: int, purpose: str) -> list[int]:
    """Philox by numpy's own generator, and places sorted by its words."""
    digest = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
    key = np.array([seed, int.from_bytes(digest, "little")], dtype=np.uint64)
    bits = np.random.Philox(key=key)
    words = [int(bits.random_raw()) for _ in range(num_rows)]
    return sorted(range(num_rows), key=words.__getitem__)


def test_rows_held_out_leave_the_training_rows(source: Source) -> None:
    found = all_numbers(replace(source, held_out=12))
    expected = independent_order(NUM_ROWS, seed=0, purpose="held out rows")[:12]
    assert found["eval"] == sorted(expected)
    assert sorted(found["train"] + found["eval"]) == list(range(NUM_ROWS))
    assert found["train"] == sorted(found["train"])
    assert found["test"] == list(range(200, 230))
    assert {n < NUM_ROWS // 2 for n in found["eval"]} == {True, False}


def test_rows_are_held_out_of_what_train_names(source: Source) -> None:
    splits = {"train": "train[10:20]", "test": "train[20:]"}
    found = all_numbers(replace(source, splits=splits, held_out=4))
    assert sorted(found["train"] + found["eval"]) == list(range(10, 20))
    assert (len(found["eval"]), found["test"]) == (4, list(range(20, NUM_ROWS)))


def test_limits_draw_from_the_whole_split(source: Source) -> None:
    found = all_numbers(replace(source, train_rows=8, eval_rows=3, test_rows=5, seed=7))
    orders = {
        "train": (NUM_ROWS, 7, 8, 0),
        "eval": (10, 7, 3, 100),
        "test": (30, 0, 5, 200),
    }
    for split, (num_rows, seed, limit, first) in orders.items():
        order = independent_order(num_rows, seed=seed, purpose=f"{split} rows")
        assert found[split] == sorted(first + place for place in order[:limit])
    assert {n < NUM_ROWS // 2 for n in found["train"]} == {True, False}


def test_a_limit_beyond_the_rows_keeps_all(source: Source) -> None:
    found = all_numbers(replace(source, train_rows=NUM_ROWS + 1, eval_rows=10))
    assert (found["train"], found["eval"]) == (list(range(NUM_ROWS)), list(range(100, 110)))


def test_a_seed_changes_all_but_the_reported_rows(source: Source) -> None:
    one, other = (
        all_numbers(
            replace(source, held_out=10, train_rows=10, eval_rows=5, test_rows=6, seed=seed)
        )
        for seed in (1, 2)
    )
    assert one["test"] == other["test"]
    assert one["train"] != other["train"] and one["eval"] != other["eval"]
    assert not set(one["train"]) & set(one["eval"])
    assert (len(one["train"]), len(one["eval"]), len(one["test"])) == (10, 5, 6)


def test_fewer_training_rows_are_a_part_of_more(source: Source) -> None:
    few, many = (all_numbers(replace(source, held_out=10, train_rows=number)) for number in (5, 15))
    assert set(few["train"]) < set(many["train"])
    assert few["eval"] == many["eval"]


def test_another_process_draws_the_same(source: Source) -> None:
    code = (
        "from scalepet.data import Source, load_split\n"
        f"rows = load_split({replace(source, held_out=9, train_rows=7)!r}, 'train')\n"
        "print([int(text) for text in rows[0:7]['text']])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(numbers(replace(source, held_out=9, train_rows=7), "train"))


def test_blank_rows_are_left_out_counted_and_never_held_out(tmp_path: Path) -> None:
    lines = ["text,label", *(f"{n:03}," if n % 4 == 0 else f"{n:03},no" for n in range(20)), " ,no"]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    source = Source("csv", files={"train": str(tmp_path / "a.csv")}, held_out=5, skip_blank=True)
    splits = load_splits(replace(TASK, source=source))
    assert splits.num_blank == {"train": 6}
    found = {name: [int(t) for t in rows[0:20]["text"]] for name, rows in splits.rows.items()}
    assert sorted(found["train"] + found["eval"]) == [n for n in range(20) if n % 4]
    assert len(found["eval"]) == 5
    # The draw is of a row's place, so that a blank row moves no other.
    order = independent_order(21, seed=0, purpose="held out rows")
    assert found["eval"] == sorted([n for n in order if n in found["train"] + found["eval"]][:5])
    plain = replace(source, skip_blank=False, held_out=None, splits={"eval": "train[:1]"})
    assert len(load_split(plain, "train", columns=TASK.columns)) == 21


BLANKS = (None, "", " \t", [], {}, float("nan"))


@pytest.mark.parametrize(
    ("column", "blank"),
    [
        *(("answer", blank) for blank in (*BLANKS, [""], [None])),
        *((column, blank) for column in ("text", "nested.inside") for blank in BLANKS),
    ],
)
def test_every_kind_of_blank_is_left_out(column: str, blank: object, tmp_path: Path) -> None:
    full = ["x", "y"] if isinstance(blank, list) and column == "answer" else "x"
    rows = []
    for row in range(30):
        content: dict[str, Any] = {"text": "a", "answer": full, "nested": {"inside": "b"}}
        inside, _, name = column.rpartition(".")
        (content[inside] if inside else content)[name] = full if row % 3 else blank
        rows.append(json.dumps(content))
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    source = Source("json", files={"train": str(tmp_path / "a.jsonl")}, held_out=5, skip_blank=True)
    task = Task(
        kind="sequence_to_sequence",
        source=source,
        template="{text} {nested.inside}",
        target="answer",
        metrics=("exact_match",),
    )
    splits = load_splits(task)
    assert (splits.num_blank, len(splits.rows["train"])) == ({"train": 10}, 15)


def test_a_split_of_blank_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n ,no\n,no\n")
    source = Source("csv", files={"train": str(tmp_path / "a.csv")}, held_out=1, skip_blank=True)
    (fault, other) = refused(source)
    assert "splits.train 'train'" in fault and "all 2 rows are blank in text, label" in fault
    assert "splits.eval" in other


@pytest.mark.parametrize("held_out", [NUM_ROWS, NUM_ROWS + 5])
def test_held_out_leaves_something_to_learn(held_out: int, source: Source) -> None:
    (fault,) = refused(replace(source, held_out=held_out))
    assert fault == (
        f"task.source.held_out is {held_out}; allowed: 1 to 39, since 'train' has 40 rows"
    )


@pytest.mark.parametrize(
    ("splits", "parts"),
    [
        (
            {"train": "train[:10]", "eval": "train[5:20]"},
            ["train 'train[:10]' and eval 'train[5:20]'", "the rows 5 to 9 of 'train'", "held_out"],
        ),
        ({"train": "train", "eval": "train[-1:]"}, ["the rows 39 to 39 of 'train'"]),
        ({"train": "train[:50%]", "eval": "train[45%:]"}, ["the rows 18 to 19 of 'train'"]),
        ({"test": "validation[3:4]"}, ["eval 'validation' and test", "the rows 3 to 3"]),
        (
            {"train": "train[:3]+test[:2]", "eval": "validation", "test": "test"},
            ["train 'train[:3]+test[:2]' and test 'test'", "the rows 0 to 1 of 'test'"],
        ),
    ],
)
def test_rows_in_two_splits_are_refused(
    splits: dict[str, str], parts: list[str], source: Source
) -> None:
    (fault,) = refused(replace(source, splits=splits))
    assert all(part in fault for part in parts), fault


def test_neighbours_do_not_overlap(source: Source) -> None:
    splits = {"train": "train[:10]", "eval": "train[10:20]", "test": "train[-20:]"}
    found = all_numbers(replace(source, splits=splits))
    assert found["train"] + found["eval"] + found["test"] == list(range(NUM_ROWS))


def test_what_is_reported_is_not_held_out_either(source: Source) -> None:
    (fault,) = refused(replace(source, held_out=5, splits={"test": "train[:5]"}))
    assert "train 'train' and test 'train[:5]' share the rows 0 to 4" in fault


def one_file(source: Source, tmp_path: Path) -> Any:
    train = str(tmp_path / "train.csv")
    (tmp_path / "link.csv").symlink_to(train)
    return {
        "the same name": {"train": train, "validation": train},
        "a link": {"train": train, "validation": str(tmp_path / "link.csv")},
        "a glob and a list": {
            "train": str(tmp_path / "t*.csv"),
            "validation": [str(tmp_path / "validation.csv"), str(tmp_path / "test.csv")],
        },
        "another way": {"train": train, "validation": f"{tmp_path}/../{tmp_path.name}/train.csv"},
    }


@pytest.mark.parametrize("way", ["the same name", "a link", "a glob and a list", "another way"])
def test_a_file_under_two_names_is_refused(way: str, source: Source, tmp_path: Path) -> None:
    files = one_file(source, tmp_path)[way]
    shared = "test.csv" if "glob" in way else "train.csv"
    (fault,) = refused(replace(source, files=files, splits={}))
    assert fault.startswith("task.source.files.train and validation both have ")
    assert shared in fault and "for train and eval" in fault and '"train[:3000]"' in fault


def test_a_name_that_no_split_uses_may_share_a_file(source: Source, tmp_path: Path) -> None:
    files = {**(source.files or {}), "spare": str(tmp_path / "train.csv")}
    assert len(all_numbers(replace(source, files=files))["train"]) == NUM_ROWS


@pytest.mark.parametrize("twice", ["rows", "files"])
def test_a_row_that_stands_twice_cannot_be_held_out(
    twice: str, source: Source, tmp_path: Path
) -> None:
    if twice == "rows":
        source = replace(source, splits={"train": "train[:20]+train[19:]"})
    else:
        path = str(tmp_path / "train.csv")
        source = replace(source, files={"train": [path, path], "test": path}, splits={})
    (fault,) = refused(replace(source, held_out=3))
    assert "has rows twice" in fault and "every row once" in fault
    assert len(numbers(source, "train")) > NUM_ROWS


def test_one_split_alone_may_be_any_rows(source: Source) -> None:
    """So that an adapter can be scored on the rows that it has learnt."""
    assert numbers(replace(source, splits={"eval": "train"}), "eval") == list(range(NUM_ROWS))


def test_all_faults_of_all_splits_come_at_once(source: Source) -> None:
    splits = {"train": "train[:99]", "eval": "test[:5]", "test": "test"}
    faults = refused(replace(source, splits=splits))
    assert len(faults) == 2
    assert "reaches beyond 'train'" in faults[0] and "share the rows 0 to 4" in faults[1]
    with pytest.raises(ConfigError) as caught:
        load_splits(replace(TASK, source=source, target="gold", template="{words}"))
    assert len(caught.value.faults) == 2  # each once, though three splits have them


def test_a_fault_of_rows_held_out_stands_once(source: Source) -> None:
    (fault,) = refused(replace(source, splits={"train": "trian"}, held_out=3))
    assert fault.startswith("task.source.splits.train 'trian'")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"held_out": 0}, ["task.source.held_out is 0", "at least 1"]),
        ({"train_rows": 0}, ["task.source.train_rows is 0", "at least 1"]),
        ({"eval_rows": -1}, ["task.source.eval_rows is -1"]),
        ({"test_rows": 0}, ["task.source.test_rows is 0"]),
        ({"seed": -1}, ["task.source.seed is -1", "2**64"]),
        ({"seed": 2**64}, ["task.source.seed"]),
        (
            {"held_out": 3, "splits": {"eval": "validation"}},
            ["splits.eval is 'validation' with task.source.held_out 3", "one of them"],
        ),
        ({"test_rows": 3, "splits": {}}, ["test_rows is 3", "task.source.splits.test"]),
    ],
)
def test_faults_without_a_look_at_the_disk(
    change: dict[str, Any], parts: list[str], source: Source
) -> None:
    (fault,) = replace(source, **change).faults()
    assert all(part in fault for part in parts), fault


def test_blank_pictures_are_no_thing() -> None:
    source = Source("folder", skip_blank=True)
    (fault,) = Task(
        kind="image_classification", source=source, template="{image}", target="label"
    ).faults()
    assert fault.startswith("task.source.skip_blank goes with kinds of texts")


def test_streams_hold_out_and_refuse_shared_rows_too(source: Source) -> None:
    task = replace(TASK, source=replace(source, held_out=12, splits={}))
    _, (rows,) = load_stream(StreamSpec(task=task, num_tasks=1))
    assert (len(rows["train"]), len(rows["eval"])) == (28, 12)
    shared = replace(TASK, source=replace(source, splits={"eval": "train[:5]"}))
    with pytest.raises(ConfigError) as caught:
        load_stream(StreamSpec(task=shared, num_tasks=1))
    (fault,) = caught.value.faults
    assert fault.startswith("stream.task.source.splits.train 'train' and eval 'train[:5]'")


def test_an_empty_split_is_refused(source: Source) -> None:
    with pytest.raises(DataError, match="has no rows"):
        load_split(replace(source, splits={"eval": "train[3:3]"}), "eval")
