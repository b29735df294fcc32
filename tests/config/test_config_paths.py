"""Every field that holds a path knows ~ and variables, and an unset one is refused by its name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalepet.backbones import Backbone
from scalepet.config import check_config, check_stream_config
from scalepet.config.study_check import check_study
from scalepet.data import Source, StreamSpec, load_split
from scalepet.engine import read_ds_file
from scalepet.errors import ConfigError
from scalepet.paths import expanded, unset_variables

FIELDS = (
    "output",
    "backbone.path",
    "backbone.tokenizer",
    "deepspeed",
    "deepspeed.zero_optimization.offload_param.nvme_path",
    "task.source.path",
    "task.source.files.train",
)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("GONE", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("~/runs", "{home}/home/runs"),
        ("$SCRATCH/runs", "{home}/scratch/runs"),
        ("${SCRATCH}/a b", "{home}/scratch/a b"),
        ("costs $5", "costs $5"),
        ("a~b", "a~b"),
        ("$GONE/runs", "$GONE/runs"),
    ],
)
def test_what_they_stand_for(path: str, there: str, home: Path) -> None:
    assert expanded(path) == there.format(home=home)


def test_unset_variables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unset_variables("$GONE/${SCRATCH}/${GONE}/$GONE2") == ["GONE", "GONE2"]
    assert unset_variables("$5/~/$$") == []
    monkeypatch.chdir(home)
    (home / "$GONE").mkdir()
    assert unset_variables("$GONE") == [], "a path that exists is a path"


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("path", ["$GONE/x", "a/${GONE}"])
def test_an_unset_variable_is_refused_by_name(
    field: str, path: str, with_fields: Callable[..., dict[str, Any]]
) -> None:
    fields: dict[str, Any] = {field: path}
    if "nvme_path" in field:
        offload = {"device": "nvme", "nvme_path": path}
        fields = {"deepspeed": {"zero_optimization": {"stage": 3, "offload_param": offload}}}
    with pytest.raises(ConfigError) as caught:
        check_config(with_fields(fields))
    assert f"{field}: '{path}': $GONE is not set" in str(caught.value)


def test_of_files_in_lists_and_streams(with_fields: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=r"task\.source\.files\.train\[1\]: .*\$GONE is not set"):
        check_config(with_fields({"task.source.files.train": ["a.csv", "$GONE/b.csv"]}))
    stream = {
        "output": "$GONE",
        "backbone": {"path": "b"},
        "stream": {"root": "$GONE", "name": "x"},
    }
    with pytest.raises(ConfigError) as caught:
        check_stream_config(stream)
    assert "output: '$GONE': $GONE is not set" in str(caught.value)
    assert "stream.root: '$GONE': $GONE is not set" in str(caught.value)
    with pytest.raises(ConfigError, match=r"output: '\$GONE': \$GONE is not set"):
        check_study({"output": "$GONE"})


def test_words_of_a_task_are_no_paths(with_fields: Callable[..., dict[str, Any]]) -> None:
    check_config(with_fields({"task.template": "$GONE {text}", "task.labels": ["$GONE", "b"]}))


def test_each_is_filled_in(with_fields: Callable[..., dict[str, Any]], home: Path) -> None:
    rows = home / "scratch" / "rows"
    rows.mkdir(parents=True)
    (rows / "train.jsonl").write_text(json.dumps({"text": "mine"}) + "\n")
    (rows / "zero.json").write_text("{}")
    assert (
        check_config(with_fields({"output": "$SCRATCH/runs"})).output == home / "scratch" / "runs"
    )
    assert check_config(with_fields({"output": "~/runs"})).output == home / "home" / "runs"
    assert Backbone("$SCRATCH/b").place == f"{home}/scratch/b"
    assert read_ds_file("$SCRATCH/rows/zero.json") == {}
    offload = {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "~/n"}}
    read = read_ds_file({"zero_optimization": offload})
    assert read["zero_optimization"]["offload_param"]["nvme_path"] == f"{home}/home/n"
    for source in (
        Source("$SCRATCH/rows/.", subset=None),
        Source("json", files={"train": "$SCRATCH/rows/*.jsonl"}),
        Source("json", files={"train": "${SCRATCH}/rows/train.jsonl"}),
    ):
        if source.path != "json":
            (rows / "zero.json").unlink()
        assert load_split(source, "train")[0:1]["text"] == ["mine"]
    members = StreamSpec(name="mbpa-1", root="$SCRATCH").members()
    assert {os.path.dirname(member.task.source.path) for member in members} == {f"{home}/scratch"}
