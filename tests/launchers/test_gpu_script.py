"""launchers/gpu.sh at its tiny size: every part runs to its end, also without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import emulated_cuda
import pytest
from emulated_cuda.marks import needed

from scalepet.bench.tiny_runs import RUNS, STREAM
from scalepet.launch.needs import not_importable, older_than_asked

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)


def measure(
    output: Path, *words: str, code: int = 0, environment: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """The lines of JSON that are in the file once gpu.sh has ended so."""
    command = ["bash", str(ROOT / "launchers" / "gpu.sh"), "--output", str(output), *words]
    environment = {**(environment or os.environ), "PYTHON": sys.executable}
    done = subprocess.run(
        command, cwd=output.parent, env=environment, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == code, done.stdout + done.stderr[-4000:]
    lines = output.read_text().splitlines() if output.exists() else []
    return [json.loads(line) for line in lines]


def test_all_parts_run_to_their_end(tmp_path: Path) -> None:
    records = measure(tmp_path / "found.jsonl", "--size", "tiny", "--seconds", "2000")
    parts = [record["part"] for record in records]
    known = ["versions", "tests", "runs", "xxl", "ul2", "zero3", "large"]
    assert list(dict.fromkeys(parts)) == known
    assert {record["size"] for record in records} == {"tiny"}
    by_part = {part: [r for r in records if r["part"] == part] for part in parts}

    assert by_part["versions"][0]["versions"]["torch"]
    assert "passed" in by_part["tests"][0]["said"] or "skipped" in by_part["tests"][0]["said"]
    assert [run["name"] for run in by_part["runs"]] == [*RUNS, STREAM]
    assert len(RUNS) == 8
    assert all(len(run["losses"]) >= 6 for run in by_part["runs"])
    zero0, zero3 = (run["losses"] for run in by_part["runs"][:2])
    assert zero0 == pytest.approx(zero3, rel=1e-5)
    names = [result["name"] for result in by_part["xxl"][0]["results"]]
    assert names == ["frozen floor", "LoRA on q, v", "APET 0.01%", "APET 0.1%"]
    assert [record["tokens"] for record in by_part["xxl"]] == [32, 64]
    assert len(by_part["ul2"][0]["results"]) == 2
    assert len(by_part["zero3"][0]["steps"]) == 4
    assert by_part["zero3"][0]["peak_bytes"] > 0
    assert [record.get("name") for record in by_part["large"]][:4] == names
    assert "PEFT SHiRA" in json.dumps(by_part["large"][4])


def test_a_part_that_fails_takes_nothing_from_the_others(tmp_path: Path) -> None:
    """Here with a PEFT that cannot be imported, which is met after four profiles."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "peft.py").write_text("raise ImportError('not on this machine')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "broken")}
    output = tmp_path / "found.jsonl"
    output.write_text('{"part": "of an earlier time"}\n')
    words = ["--size", "tiny", "--seconds", "1000", "large", "versions"]
    records = measure(output, *words, code=1, environment=environment)
    assert [r["part"] for r in records] == ["of an earlier time", *["large"] * 5, "versions"]
    assert all("launches" in record for record in records[1:5])
    assert records[5]["error"].startswith("ended with exit code 1; it had ")


def test_where_no_time_is_left_it_is_said(tmp_path: Path) -> None:
    [record] = measure(tmp_path / "found.jsonl", "--seconds", "1", "ul2", code=1)
    assert record == {"part": "ul2", "size": "full", "error": "no time was left"}


@needed
def test_a_peak_is_measured_where_there_is_a_device(tmp_path: Path) -> None:
    environment = emulated_cuda.environment(num_gpus=1)
    records = measure(tmp_path / "found.jsonl", "--size", "tiny", "xxl", environment=environment)
    peaks = [result["peak_bytes"] for record in records for result in record["results"]]
    assert len(peaks) == 8 and all(peak > 1e5 for peak in peaks)


def test_what_is_older_is_tried_and_what_lacks_is_named(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(
        'project = {dependencies = ["torch>=99.1", "pyyaml>=6", "no-such-thing>=1"],'
        ' optional-dependencies = {test = ["pytest>=999"]}}'
    )
    lines = [line.split(" is older than ")[1] for line in older_than_asked(pyproject)]
    assert lines == [
        "torch>=99.1; it is tried all the same",
        "pytest>=999; it is tried all the same",
    ]
    [fault] = not_importable(["json", "no_such_thing"])
    assert fault.startswith("no_such_thing cannot be imported (ModuleNotFoundError: ")


def test_a_library_that_lacks_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "datasets.py").write_text("raise ImportError('not on this machine')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "hidden")}
    assert measure(tmp_path / "found.jsonl", "versions", code=2, environment=environment) == []
