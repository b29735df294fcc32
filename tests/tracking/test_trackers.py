from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scalepet.tracking import Trackers, open_trackers, read_records, tracker


class Recorder:
    def __init__(self, *args: Any, **choices: Any) -> None:
        self.args, self.choices = args, choices
        self.calls: list[tuple[Any, ...]] = []

    def log(self, step: int, values: Any, *, kind: str) -> None:
        self.calls.append((step, values, kind))

    def picture(self, step: int, name: str, path: Path) -> None:
        self.calls.append((step, name, path))

    def close(self) -> None:
        self.calls.append(("close",))


def test_all_trackers_get_all_records_and_are_closed() -> None:
    recorders = Recorder(), Recorder()
    with pytest.raises(KeyError), Trackers(recorders) as trackers:
        trackers.log(1, {"loss": 2.0}, kind="train")
        raise KeyError
    for recorder in recorders:
        assert recorder.calls == [(1, {"loss": 2.0}, "train"), ("close",)]


def test_all_trackers_get_all_pictures() -> None:
    recorders = Recorder(), Recorder()
    Trackers(galleries=recorders).picture(3, "stream/matrix", Path("matrix.png"))
    assert [recorder.calls for recorder in recorders] == [
        [(3, "stream/matrix", Path("matrix.png"))]
    ] * 2


def test_no_trackers_keep_nothing(tmp_path: Path) -> None:
    with Trackers() as trackers:
        trackers.log(1, {"loss": 2.0}, kind="train")
        trackers.picture(1, "stream/matrix", tmp_path / "matrix.png")


def test_records_hold_what_was_logged_alone(tmp_path: Path) -> None:
    with open_trackers(tmp_path) as trackers:
        trackers.picture(1, "stream/matrix", tmp_path / "nowhere.png")
        trackers.conclude({"accuracy": 1.0})
        trackers.table("accuracies", ["accuracy"], [[1.0]])
        trackers.keep(tmp_path)
    assert read_records(tmp_path / "metrics.jsonl") == []


def test_a_run_keeps_jsonl_and_resumes(tmp_path: Path) -> None:
    with open_trackers(tmp_path) as trackers:
        for step in range(4):
            trackers.log(step, {"loss": 1.0}, kind="train")
    with open_trackers(tmp_path, last_step=1) as trackers:
        trackers.log(2, {"loss": 0.5}, kind="train")
    records = read_records(tmp_path / "metrics.jsonl")
    assert [(record["step"], record["loss"]) for record in records] == [(0, 1), (1, 1), (2, 0.5)]
    open_trackers(tmp_path).close()
    assert read_records(tmp_path / "metrics.jsonl") == []
    assert not (tmp_path / "wandb_id").exists()


def test_a_record_of_the_last_step_is_not_made_twice(tmp_path: Path) -> None:
    """An evaluation that was logged, but not saved before the run was stopped."""
    for _ in range(2):
        with open_trackers(tmp_path, last_step=3) as trackers:
            trackers.log(3, {"loss": 1.0}, kind="train")
            trackers.log(3, {"eval/loss": 1.0}, kind="eval")
    kinds = [record["kind"] for record in read_records(tmp_path / "metrics.jsonl")]
    assert kinds == ["train", "eval"]


def test_wandb_comes_with_its_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recorder] = []
    monkeypatch.setattr(
        tracker, "WandbTracker", lambda *a, **c: made.append(Recorder(*a, **c)) or made[-1]
    )
    folder = tmp_path / "a-run"
    with open_trackers(folder, wandb_project="p", mode="offline", config={"a": 1}) as trackers:
        trackers.log(1, {"loss": 1.0}, kind="train")
    (recorder,) = made
    assert recorder.args == (folder,)
    assert recorder.choices == {
        "project": "p",
        "name": "a-run",
        "mode": "offline",
        "config": {"a": 1},
        "backlog": [],
    }
    assert recorder.calls == [(1, {"loss": 1.0}, "train"), ("close",)]
    assert len(read_records(folder / "metrics.jsonl")) == 1
