from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import pytest

from scalepet.errors import CheckpointError
from scalepet.tracking import JsonlTracker, read_records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.jsonl"


def steps_of(path: Path) -> list[tuple[int, str]]:
    return [(record["step"], record["kind"]) for record in read_records(path)]


def test_a_record_is_on_disk_before_the_tracker_is_closed(path: Path) -> None:
    tracker = JsonlTracker(path)
    tracker.log(1, {"loss": 0.5, "note": "größer"}, kind="train")
    tracker.log(1, {"eval/loss": 0.25}, kind="eval")
    first, second = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    seconds = first.pop("seconds")
    assert first == {"step": 1, "kind": "train", "loss": 0.5, "note": "größer"}
    assert 0 <= seconds <= second["seconds"] < 60
    assert list(second) == ["step", "kind", "seconds", "eval/loss"]


def test_a_resumed_run_holds_each_step_once(path: Path) -> None:
    tracker = JsonlTracker(path)
    for step in range(1, 6):
        tracker.log(step, {"loss": 1 / step}, kind="train")
    tracker.log(4, {"eval/loss": 1.0}, kind="eval")
    tracker.close()
    resumed = JsonlTracker(path)
    resumed.truncate_after(4)
    assert steps_of(path) == [*((step, "train") for step in range(1, 5)), (4, "eval")]
    resumed.log(5, {"loss": 0.2}, kind="train")
    resumed.truncate_after(4)
    resumed.log(5, {"loss": 0.3}, kind="train")
    assert steps_of(path)[-2:] == [(4, "eval"), (5, "train")]
    assert read_records(path)[-1]["loss"] == 0.3
    assert list(path.parent.iterdir()) == [path]


def test_seconds_go_on_where_the_kept_records_ended(path: Path) -> None:
    path.parent.mkdir()
    lines = [{"step": step, "kind": "train", "seconds": step * 1000.0} for step in (1, 2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tracker = JsonlTracker(path)
    tracker.log(3, {}, kind="train")
    assert 2000 <= read_records(path)[-1]["seconds"] < 2060
    tracker.truncate_after(1)
    tracker.log(2, {}, kind="train")
    assert 1000 <= read_records(path)[-1]["seconds"] < 1060


def test_a_half_written_last_line_is_dropped(path: Path) -> None:
    tracker = JsonlTracker(path)
    tracker.log(1, {"loss": 0.5}, kind="train")
    with path.open("ab") as file:
        file.write('{"step": 2, "kind": "train", "note": "grö'.encode()[:-1])
    assert steps_of(path) == [(1, "train")]
    resumed = JsonlTracker(path)
    resumed.log(2, {"loss": 0.4}, kind="train")
    assert steps_of(path) == [(1, "train"), (2, "train")]


def test_every_other_broken_line_is_named(path: Path) -> None:
    path.parent.mkdir()
    whole = '{"step": 3, "kind": "train", "seconds": 1}\n'
    path.write_text('{"step": 1}\n' + whole + "{oops\n" + "[1, 2]\n" + whole)
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        JsonlTracker(path)
    assert [fault.split(": ")[1].split(" is")[0] for fault in caught.value.faults] == [
        "line 1",
        "line 3",
        "line 4",
    ]
    assert path.read_bytes() == before


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: cannot be read: No such file"):
        read_records(path)


def test_a_full_disk_is_told_when_asked_and_nothing_is_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = JsonlTracker(path)
    tracker.log(1, {"loss": 1.0}, kind="train")
    file, room = tracker._file, [5]

    class AlmostFull:
        """Takes a part of a line, and then nothing."""

        def write(self, content: bytes) -> int:
            if room:
                return file.write(content[: room.pop()]) or 0
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tracker, "_file", AlmostFull())
        tracker.log(2, {"loss": 0.5}, kind="train")
        tracker.log(3, {"loss": 0.3}, kind="train")
        with pytest.raises(CheckpointError, match="cannot be written .No space left on device"):
            tracker.check()
    tracker.log(4, {"loss": 0.2}, kind="train")
    tracker.check()
    assert [record["step"] for record in read_records(path)] == [1, 2, 3, 4]


def test_a_loss_that_is_no_number_comes_back(path: Path) -> None:
    tracker = JsonlTracker(path)
    tracker.log(1, {"loss": math.nan, "grad_norm": math.inf}, kind="train")
    (record,) = read_records(path)
    assert math.isnan(record["loss"]) and record["grad_norm"] == math.inf


def test_a_secret_is_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghij")
    JsonlTracker(path).log(1, {"note": "with hf_abcdefghij"}, kind="train")
    assert read_records(path)[0]["note"] == "with ***"


def test_values_may_not_name_the_trackers_fields(path: Path) -> None:
    with pytest.raises(AssertionError):
        JsonlTracker(path).log(1, {"seconds": 1.0}, kind="train")
