from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalepet.errors import ConfigError, DataError
from scalepet.experiments.runs import check_metric, read_run

MakeRun = Callable[..., Path]


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_run_comes_back_as_it_was_written(make_run: MakeRun) -> None:
    folder = make_run(
        "a-run", score=0.8, counts={"trained": 9, "masked": 5, "head": 4, "backbone": 99}
    )
    run = read_run(folder)
    assert (run.name, run.folder, run.config) == ("a-run", folder, {})
    assert run.facts.counts.trained == 9 and run.facts.method == "apet"
    assert run.facts.majority == 0.25 and run.facts.git_commit is None
    assert run.result.best_step == 40 and run.result.metrics["eval/accuracy"] == 0.8
    assert run.series("eval", "eval/accuracy") == (
        [10, 20, 30, 40],
        pytest.approx([0.2, 0.4, 0.6, 0.8]),
    )
    assert len(run.series("train", "loss")[0]) == 40
    assert run.series("eval", "loss") == ([], [])


def test_the_config_may_name_the_run(make_run: MakeRun) -> None:
    assert read_run(make_run("folder", name="small head")).name == "small head"


def test_costs_come_from_the_result_or_else_from_the_records(make_run: MakeRun) -> None:
    folder = make_run("a")
    assert read_run(folder).seconds == 20.0
    assert read_run(folder).peak_memory_bytes is None
    with (folder / "metrics.jsonl").open("a") as file:
        for num_bytes in (7, 5):
            record = {"step": 41, "kind": "memory", "seconds": 21, "peak_memory_bytes": num_bytes}
            file.write(json.dumps(record) + "\n")
    assert read_run(folder).peak_memory_bytes == 7
    change(folder / "result.json", seconds=33.5, peak_memory_bytes=11)
    assert (read_run(folder).seconds, read_run(folder).peak_memory_bytes) == (33.5, 11)


def test_a_half_written_last_record_is_left_out(make_run: MakeRun) -> None:
    folder = make_run("a")
    num_records = len(read_run(folder).records)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "ki')
    assert len(read_run(folder).records) == num_records


def test_all_faults_of_a_folder_are_named_at_once(make_run: MakeRun) -> None:
    folder = make_run("a", world_size="two", counts={"trained": -1, "masked": 1, "head": 1})
    (folder / "config.yaml").write_text("- a list")
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "result.json").write_text('{"best_step": 3, "metr')
    with pytest.raises(DataError) as caught:
        read_run(folder)
    faults = [fault.removeprefix(f"{folder}/") for fault in caught.value.faults]
    assert [fault.split(":")[0] for fault in faults] == [
        "config.yaml", "run.json", "run.json", "run.json", "metrics.jsonl", "result.json",
    ]  # fmt: skip
    text = "\n".join(faults)
    for part in (
        "world_size",
        "not 'two'",
        "counts.trained",
        "not -1",
        "counts.backbone: Field req",
    ):
        assert part in text
    assert "result.json: half written or no JSON" in text


@pytest.mark.parametrize("file", ["config.yaml", "run.json", "metrics.jsonl", "result.json"])
def test_a_missing_file_is_named(make_run: MakeRun, file: str) -> None:
    folder = make_run("a")
    (folder / file).unlink()
    with pytest.raises(DataError) as caught:
        read_run(folder)
    (fault,) = caught.value.faults
    assert str(folder / file) in fault


def test_broken_yaml_is_one_line(make_run: MakeRun) -> None:
    folder = make_run("a")
    (folder / "config.yaml").write_text("a: [1,\nb: }")
    with pytest.raises(DataError, match=r"config.yaml: no YAML: .*line 2"):
        read_run(folder)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run folder"):
        read_run(tmp_path / "nothing")


def test_a_metric_that_some_runs_lack_is_refused(make_run: MakeRun) -> None:
    runs = [read_run(make_run("a")), read_run(make_run("b"))]
    check_metric(runs, "eval/accuracy")
    with pytest.raises(ConfigError) as caught:
        check_metric(runs, "eval/f1")
    assert len(caught.value.faults) == 2
    assert "['eval/accuracy', 'eval/loss']" in caught.value.faults[0]
    with pytest.raises(ConfigError, match="no runs"):
        check_metric([], "eval/accuracy")
