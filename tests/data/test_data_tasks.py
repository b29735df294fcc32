"""The catalogue: every task reads a real row of its data set, in the form the hub has it in.

task_rows.json holds the first training row of each (of IMDB the third, which is short).
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from datasets import ClassLabel, Dataset

from scalepet.data import TASKS, Encoded, Form, Rows, Task, TaskType, encode, load_splits, score
from scalepet.data.template import parse_template, render

ROWS: dict[str, Any] = json.loads((Path(__file__).parent / "task_rows.json").read_text("utf-8"))
TYPES = {
    "sentiment": ["sst2", "rotten_tomatoes", "imdb"],
    "inference": ["mnli", "qnli", "rte"],
    "paraphrase": ["mrpc", "qqp"],
    "question_answering": ["nq_open"],
    "summarisation": ["samsum", "multi_news"],
}
METRICS = {
    "sentiment": ("accuracy",),
    "inference": ("accuracy",),
    "paraphrase": ("accuracy", "f1"),
    "question_answering": ("exact_match", "token_f1"),
    "summarisation": ("rouge_l",),
}
NUM_ROWS = 3


def at_home(name: str, folder: Path) -> Task:
    """The task with a folder in place of the hub, in which every split has the row a few times."""
    stored = ROWS[name]
    table = Dataset.from_list([stored["row"]] * NUM_ROWS)
    if stored["classes"]:
        table = table.cast_column("label", ClassLabel(names=stored["classes"]))
    for split in stored["splits"]:
        if stored["file"] == "csv":
            table.to_csv(folder / f"{split}.csv")
        else:
            (folder / "data").mkdir(exist_ok=True)
            table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    task = TASKS[name].task
    held_out = None if task.source.held_out is None else 1
    source = replace(task.source, path=str(folder), subset=None, held_out=held_out)
    return replace(task, source=source)


def test_there_are_eleven_tasks_of_five_types() -> None:
    found = {kind: [n for n, one in TASKS.items() if one.type == kind] for kind in TYPES}
    assert found == TYPES
    assert set(get_args(TaskType)) == set(TYPES)
    assert list(TASKS) == list(ROWS)
    assert len(TASKS) == 11


@pytest.mark.parametrize("name", TASKS)
def test_every_task_reads_its_row(name: str, tmp_path: Path, tokenizer: Any) -> None:
    task, stored = at_home(name, tmp_path), ROWS[name]
    splits = load_splits(task)
    assert set(splits.rows) == {"train", "eval", "test"}
    held_out = 0 if task.source.held_out is None else 1
    assert len(splits.rows["train"]) == NUM_ROWS - held_out
    assert sum(splits.num_blank.values()) == 0
    rows: Rows = splits.rows["test"]
    assert dict(zip(rows.column_names, (v[0] for v in rows[0:1].values()), strict=True)) == {
        **stored["row"]
    }
    texts = {column: str(stored["row"][column]) for column in task.source_columns}
    assert render(parse_template(task.template), texts) == stored["text"]
    form: Form = "label_words" if task.has_classes else "text"
    encoded = encode(task, rows, tokenizer=tokenizer, form=form)
    assert isinstance(encoded, Encoded)
    right = stored["target"]
    assert encoded.references[0] == (tuple(right) if isinstance(right, list) else right)
    learnt = right[0] if isinstance(right, list) else right
    # Which also gives words to those that a template has and the tokenizer has not read.
    for ids, text in ((encoded.input_ids[0], stored["text"]), (encoded.targets[0], learnt)):
        assert ids.tolist() == tokenizer([text])["input_ids"][0]
    assert (encoded.num_cut_sources, encoded.num_cut_targets) == (0, 0)
    if task.has_classes:
        assert encoded.classes is not None
        assert encoded.classes.tolist() == [stored["row"]["label"]] * NUM_ROWS


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_whole(name: str) -> None:
    kind, task = TASKS[name].type, TASKS[name].task
    assert task.faults() == []
    assert task.metrics == METRICS[kind]
    assert task.template.startswith("Input: ") and task.template.endswith(" Output: ")
    assert task.has_classes == (kind not in ("question_answering", "summarisation"))
    assert task.source.names == ("train", "eval", "test")
    assert {"train", task.source.expression("test")} <= set(ROWS[name]["splits"])
    if task.source.held_out is None:  # then the data set has three sets with labels of its own
        assert task.source.expression("eval") == "validation" != task.source.expression("test")
    if task.source.path == "nyu-mll/glue":  # whose test labels nobody has
        assert task.source.expression("test").startswith("validation")
    score(
        task.metrics,
        predictions=["a", "b"],
        references=["a", "b"],
        labels=task.labels,
    )


def test_long_texts_have_room_and_a_bert_can_read_all_classes() -> None:
    lengths = {name: TASKS[name].task.max_source_length for name in TASKS}
    assert min(lengths["imdb"], lengths["samsum"]) == 512
    assert lengths["multi_news"] == 2048
    assert all(lengths[n] <= 512 for n in TASKS if TASKS[n].task.has_classes)
    assert TASKS["multi_news"].task.max_target_length == 512


def test_the_positive_class_of_paraphrases_is_that_of_glue() -> None:
    for name, word in (("mrpc", "equivalent"), ("qqp", "duplicate")):
        labels = TASKS[name].task.labels
        guesses = [word] * 4
        right = [labels[0], word, labels[0], labels[0]]
        found = score(["f1"], predictions=guesses, references=right, labels=labels)["f1"]
        assert found == pytest.approx(2 * 1 / (2 * 1 + 3 + 0))


def test_qqp_and_samsum_do_without_their_blank_rows(tmp_path: Path) -> None:
    table = Dataset.from_dict(
        {
            "id": list("abcde"),
            "dialogue": ["A: hi", None, "  ", "B: no", "C: yes"],
            "summary": ["one", "two", "three", "", "five"],
        }
    )
    for split in ("train", "validation", "test"):
        table.to_parquet(tmp_path / f"{split}.parquet")
    task = TASKS["samsum"].task
    splits = load_splits(replace(task, source=replace(task.source, path=str(tmp_path))))
    assert splits.num_blank == {"train": 3, "eval": 3, "test": 3}
    assert [np.array(rows[0:5]["id"]).tolist() for rows in splits.rows.values()] == [["a", "e"]] * 3
    assert TASKS["qqp"].task.source.skip_blank
