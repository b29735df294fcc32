"""Every test that is marked ``gpu`` runs on the emulated device, in every test run."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from running import run

import emulated_cuda
from emulated_cuda.marks import needed

TESTS = Path(__file__).parents[1]
MARKS = ("pytest.mark.gpu", "pytestmark = inside")
NOT_OF_IT = [TESTS / "engine/test_traffic.py"]  # nvcc compiles the kernel that it wants
FILES = sorted(
    str(path.relative_to(TESTS))
    for path in TESTS.rglob("test_*.py")
    if path not in (Path(__file__), *NOT_OF_IT) and any(mark in path.read_text() for mark in MARKS)
)


def test_all_of_them_are_found() -> None:
    assert FILES == [
        "emulated_cuda/test_device.py",
        "emulated_cuda/test_layer_counts.py",
        "emulated_cuda/test_nccl.py",
        "lae/test_accumulation.py",
        "pet/test_gpu.py",
        "recipes/test_non_finite_runs.py",
    ]


@needed
@pytest.mark.parametrize("file", FILES)
def test_it_passes_on_the_emulated_device(
    file: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    report = tmp_path / "report.xml"
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    said = run(
        [sys.executable, "-m", "pytest", *options, TESTS / file],
        environment=emulated_cuda.environment(),
    )
    cases = [*ElementTree.parse(report).iter("testcase")]
    assert cases and not any(len(case) for case in cases), f"some are skipped\n{said}"
    record_property("on the emulated CUDA device", f"{len(cases)} passed of {file}")
