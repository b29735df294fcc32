"""``scalepet sweep`` up to where runs begin: its table, its jobs, its refusals."""

from __future__ import annotations

import io
import json
import os
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from scalepet.cli import main
from scalepet.cli.sweep import _share
from scalepet.config.loader import parse_yaml
from scalepet.config.study_check import check_study
from scalepet.config.study_listing import study_fields_as_yaml
from scalepet.planning import choose_machines
from scalepet.recipes.study import CellPlan
from scalepet.recipes.study_costs import disk_bytes, measured_hours, planned_hours
from scalepet.recipes.study_plan import plan_study
from scalepet.recipes.workers import Worker, Workers
from scalepet.tracking import seal

ROOT = Path(__file__).parents[2]
ARRAY = ROOT / "launchers" / "slurm-array.sh"


@pytest.fixture
def study(study_content: Callable[..., dict[str, Any]], tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study_content(tmp_path / "a study"), sort_keys=False))
    return path


@pytest.fixture
def cells(study: Path) -> list[CellPlan]:
    return plan_study(check_study(yaml.safe_load(study.read_text())))


@pytest.fixture
def sweep(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """``sweep(study, "--plan")``: exit code, and what was shown."""
    monkeypatch.delenv("RANK", raising=False)

    def run(*arguments: Any) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["sweep", *map(str, arguments)])
        written = capsys.readouterr()
        assert "Traceback" not in written.out + written.err
        assert isinstance(ended.value.code, int)
        return ended.value.code, written.out + written.err

    return run


def finish(cell: CellPlan, *, seconds: float) -> None:
    """The tries of a cell, as if they had run."""
    for run in cell.tries:
        run.cell.write(run.folder)
        result = {"metrics": {"eval/accuracy": 0.5}, "seconds": seconds}
        (run.folder / "result.json").write_text(json.dumps(result))
        seal(run.folder, ["cell.json", "result.json"])


def test_the_plan_counts_runs_by_method_and_starts_none(study, cells, sweep, tmp_path) -> None:
    code, shown = sweep(study, "--plan")
    assert code == 0
    rows = [line.split() for line in shown.splitlines()[:5]]
    assert rows == [
        ["method", "cells", "runs", "finished", "begun", "failed", "to", "do"],
        ["apet", "2", "6", "0", "0", "0", "6"],
        ["lora", "1", "2", "0", "0", "0", "2"],
        ["head", "1", "2", "0", "0", "0", "2"],
        ["all", "4", "10", "0", "0", "0", "10"],
    ]
    assert "nothing is known before the first run ends; --gpu KIND estimates" in shown
    assert not (tmp_path / "a study").exists()

    finish(cells[0], seconds=360.0)
    (cells[2].tries[0].folder).mkdir(parents=True)
    (cells[2].tries[0].folder / "run.json").write_text("{}")
    (cells[3].tries[0].folder).mkdir(parents=True)
    (cells[3].tries[0].folder / "failed.json").write_text('{"faults": ["x"]}')
    _, shown = sweep(study, "--plan")
    assert [line.split()[3:] for line in shown.splitlines()[1:5]] == [
        ["2", "0", "0", "4"],
        ["0", "1", "0", "1"],
        ["0", "0", "1", "1"],
        ["2", "1", "1", "6"],
    ]
    assert "hours left: about 0.8 of one process" in shown  # 8 runs of 360 s


def test_hours_are_those_of_the_plan_where_a_gpu_is_named(study, cells, sweep) -> None:
    code, shown = sweep(study, "--plan", "--gpu", "h100-80")
    hours = planned_hours(cells, choose_machines(gpu="h100-80"))
    assert code == 0
    assert f"GPU hours left: about {hours:.2g} (h100-80, arithmetic" in shown
    slower = planned_hours(cells, choose_machines(gpu="a10-24"))
    finish(cells[0], seconds=1.0)
    assert 0 < planned_hours(cells, choose_machines(gpu="h100-80")) < hours < slower
    code, shown = sweep(study, "--plan", "--gpu", "h1000")
    assert (code, "--gpu: 'h1000'; allowed: " in shown) == (2, True)


def test_hours_that_were_measured_name_what_is_not_known(cells) -> None:
    assert measured_hours(cells) == (0, ["tiny/colour"])
    finish(cells[0], seconds=3600.0)
    assert measured_hours(cells) == (8, [])


def test_each_worker_has_a_gpu_of_its_own_and_a_part_of_the_cores(tmp_path, monkeypatch) -> None:
    workers = Workers(tmp_path / "study.yaml", 3, ["4", "6", "7"])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    found = [workers.environment(slot) for slot in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["4", "6", "7"]
    assert {one["OMP_NUM_THREADS"] for one in found} == {"2"}
    assert not any("RANK" in one for one in found)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert workers.environment(0)["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize(("gpus", "expected"), [(["4", "6"], 2), (["4"], 1), ([], 3)])
def test_at_most_one_worker_a_gpu(gpus, expected, cells, tmp_path, monkeypatch, capsys) -> None:
    started = []

    def run(workers, names):
        started.append((workers.num_workers, list(workers.gpus)))
        return iter(())

    monkeypatch.setattr(Workers, "run", run)
    monkeypatch.setattr("scalepet.launch.gpus.name_gpus", lambda: gpus)
    _share(tmp_path / "study.yaml", cells, 3, Console(file=io.StringIO()))
    assert started == [(expected, gpus)]
    said = capsys.readouterr().out
    assert said == ("" if expected == 3 else f"{expected} of 3 processes: one for each GPU\n")


def test_a_worker_that_ends_otherwise_is_named_with_its_cells_and_log(tmp_path) -> None:
    killed = subprocess.Popen(["sh", "-c", "kill -9 $$"])
    killed.wait()
    worker = Worker(killed, ["a/b/lora", "a/b/head"], tmp_path / "worker-0.log")
    assert worker.fault == (
        f"the worker of a/b/lora, a/b/head was ended by SIGKILL; see {worker.log}"
    )
    refused = subprocess.Popen(["sh", "-c", "exit 2"])
    refused.wait()
    assert "ended with 2" in (Worker(refused, ["a"], worker.log).fault or "")
    failed = subprocess.Popen(["sh", "-c", "exit 1"])
    failed.wait()
    assert Worker(failed, ["a"], worker.log).fault is None


def test_disk_grows_with_what_is_trained(cells) -> None:
    apet, matched, *_ = cells
    more = matched.num_masked - apet.num_masked
    (finished, states), (less, fewer) = disk_bytes([matched]), disk_bytes([apet])
    assert (finished - less, states - fewer) == (3 * 4 * more, 2 * 12 * more)


def test_fields_and_the_example_of_the_help_are_valid(sweep) -> None:
    assert sweep("--fields") == (0, study_fields_as_yaml())
    _, shown = sweep("--help")
    lines = shown.splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith("output: "))
    stop = next(i for i in range(start, len(lines)) if not lines[i].strip())
    study = check_study(parse_yaml(textwrap.dedent("\n".join(lines[start:stop]))))
    assert [cell.folder_of_method for cell in study.cells()] == [
        "apet-100",
        "apet-10000",
        "apet-as-lora",
        "lora",
    ]


def test_ways_to_run_exclude_each_other(study, sweep, monkeypatch) -> None:
    code, shown = sweep(study, "--processes", 2, "--slurm")
    assert (code, "--processes 2 with --slurm; allowed: one of them" in shown) == (2, True)
    code, shown = sweep(study, "--at-most", 2)
    assert (code, "--at-most 2 without --slurm" in shown) == (2, True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, shown = sweep(study, "--processes", 2)
    assert (code, "under a launcher" in shown) == (2, True)
    assert sweep()[0] == 2


# SLURM


@pytest.fixture
def with_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """``with_sbatch("exit 1")``: an sbatch that writes its arguments into the file that comes
    back, and then does this.
    """

    def put(script: str) -> Path:
        folder, written = tmp_path / "bin", tmp_path / "sbatch.txt"
        folder.mkdir(exist_ok=True)
        sbatch = folder / "sbatch"
        sbatch.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >"{written}"\n{script}\n')
        sbatch.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return written

    return put


def test_cells_that_are_not_finished_become_an_array(
    study, cells, sweep, with_sbatch, tmp_path
) -> None:
    finish(cells[2], seconds=1.0)
    written = with_sbatch("echo Submitted batch job 7")
    code, shown = sweep(study, "--slurm", "--at-most", 2)
    assert (code, shown.splitlines()[-1]) == (0, "Submitted batch job 7")
    lines = tmp_path / "a study" / "cells.txt"
    assert written.read_text().splitlines() == [
        "--array=1-3%2",
        "launchers/slurm-array.sh",
        str(lines),
    ]
    (tmp_path / "launchers").mkdir()
    (tmp_path / "launchers" / "slurm-job.sh").write_text('printf "%s\\n" "$@"\n')
    job = subprocess.run(
        ["bash", ARRAY, lines],
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "2"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    path = tmp_path / "a study" / "study.yaml"
    assert job.stdout.splitlines() == ["sweep", str(path), "--only", "tiny/colour/apet-as-lora"]
    code, shown = sweep(path, "--plan", "--only", "tiny/colour/apet-as-lora")
    assert (code, shown.splitlines()[1].split()[:3]) == (0, ["apet", "1", "3"])


def test_a_study_that_is_finished_submits_nothing(study, sweep, with_sbatch, cells) -> None:
    for cell in cells:
        finish(cell, seconds=1.0)
        for run in cell.repeats(0.5):
            run.cell.write(run.folder)
            (run.folder / "result.json").write_text('{"metrics": {}, "seconds": 1}')
            seal(run.folder, ["cell.json", "result.json"])
    written = with_sbatch("")
    code, shown = sweep(study, "--slurm")
    assert (code, shown.splitlines()[-1]) == (0, "every run is finished")
    assert not written.exists()


def test_without_sbatch_the_command_is_told(study, sweep, with_sbatch, monkeypatch) -> None:
    with_sbatch("echo no such partition >&2; exit 1")
    code, shown = sweep(study, "--slurm")
    assert code == 2
    assert "sbatch refuses: no such partition; the command: sbatch --array=1-4 " in shown
    monkeypatch.setenv("PATH", "/nowhere")
    code, shown = sweep(study, "--slurm")
    assert code == 2
    assert "sbatch cannot be started here (No such file or directory)" in shown
    assert "sbatch --array=1-4 launchers/slurm-array.sh" in shown
