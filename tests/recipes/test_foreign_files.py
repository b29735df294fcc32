"""No command replaces, changes or deletes a file that scalepet did not make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import run_here

from scalepet.config.study_check import read_study_config
from scalepet.errors import CheckpointError
from scalepet.recipes.run_folder import open_run_folder
from scalepet.recipes.study_folder import open_study

MINE = "three weeks of notes"
NAMES = [
    *("run.json", "config.yaml", "metrics.jsonl", "result.json", "seal.json", "matrix.json"),
    *("adapter/mine.txt", "adapter-offline/mine.txt", "states/00000004", "states/mine.txt"),
    *("matrix.png", "curves.png", "logs/rank-1.log", "wandb_id", "non-finite/mine.txt"),
]


def put(folder: Path, name: str, text: str = MINE) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


class TestRun:
    @pytest.mark.parametrize("resume", [False, True])
    @pytest.mark.parametrize("name", NAMES)
    def test_a_name_that_a_run_writes_is_taken(
        self, name: str, resume: bool, tmp_path: Path
    ) -> None:
        put(tmp_path, name)
        with pytest.raises(CheckpointError, match="which this command would write") as caught:
            open_run_folder(tmp_path, resume=resume)
        assert name.split("/")[0] in str(caught.value)
        assert content(tmp_path) == {name: MINE.encode()}

    def test_a_link_to_nothing_is_a_name(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CheckpointError, match="metrics.jsonl"):
            open_run_folder(tmp_path, resume=False)

    def test_other_files_are_no_obstacle(self, tmp_path: Path) -> None:
        for name in ("notes.md", "logs/mine.log", "adapters.txt", "report/index.html"):
            put(tmp_path, name)
        before = content(tmp_path)
        open_run_folder(tmp_path, resume=False)
        assert content(tmp_path) == before

    def test_a_run_that_died_at_its_start_goes_on(self, tmp_path: Path) -> None:
        put(tmp_path, "run.json", json.dumps({"scalepet": "0.1.0", "command": [], "counts": {}}))
        put(tmp_path, "metrics.jsonl", "")
        open_run_folder(tmp_path, resume=True)
        with pytest.raises(CheckpointError, match="holds a run already"):
            open_run_folder(tmp_path, resume=False)

    def test_a_config_beside_its_own_output(self, write_run: Any, tmp_path: Path) -> None:
        config = write_run(tmp_path)
        own = tmp_path / "config.yaml"
        config.rename(own)
        ended = run_here("train", str(own), f"output={tmp_path}")
        assert ended.code == 2
        (fault,) = ended.faults
        assert "has config.yaml, which this command would write" in fault
        assert list(content(tmp_path)) == ["config.yaml"]


class TestPredict:
    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("name", ["rows.csv", "run/adapter/scalepet.json", "run/result.json"])
    def test_what_is_read_is_never_written(
        self, name: str, overwrite: bool, tmp_path: Path
    ) -> None:
        put(tmp_path, "rows.csv", "text\na\n")
        put(tmp_path, "run/adapter/scalepet.json", "{}")
        put(tmp_path, "run/result.json", "{}")
        (tmp_path / "link").symlink_to(tmp_path / name)
        before = content(tmp_path)
        for output in (name, "link"):
            ended = run_here(
                *("predict", str(tmp_path / "run"), "--input", str(tmp_path / "rows.csv")),
                *("--output", str(tmp_path / output), *(["--overwrite"] if overwrite else [])),
            )
            assert ended.code == 2 and "is read; allowed: another file" in ended.err
        assert content(tmp_path) == before

    def test_a_file_that_is_there_stays(self, tmp_path: Path) -> None:
        answers = put(tmp_path, "answers.jsonl")
        ended = run_here("predict", str(tmp_path), "--text", "a", "--output", str(answers))
        assert ended.code == 2 and "allowed: a file that does not, or --overwrite" in ended.err
        assert answers.read_text() == MINE


def test_a_figure_that_is_there_stays(tmp_path: Path) -> None:
    figure = put(tmp_path, "curves.png")
    ended = run_here("report", str(tmp_path / "run"), "--figure", str(figure))
    assert ended.code == 2 and "or --overwrite" in ended.err
    assert figure.read_text() == MINE


class TestStudy:
    @pytest.mark.parametrize("name", ["study.yaml", "cells.txt", "runs/a", "logs/worker-0.log"])
    def test_a_name_that_a_study_writes_is_taken(
        self, name: str, study_content: Callable[..., Any], tmp_path: Path
    ) -> None:
        path = put(tmp_path, "mine.yaml", yaml.safe_dump(study_content(tmp_path / "study")))
        study = read_study_config(path)
        text = MINE
        if name == "study.yaml":  # the user's own, with a comment
            open_study(study)
            text = f"# {MINE}\n" + (study.output / name).read_text()
        put(study.output, name, text)
        before = content(study.output)
        with pytest.raises(CheckpointError, match="which this command would write"):
            open_study(study)
        assert content(study.output) == before
        assert yaml.safe_load(text)
