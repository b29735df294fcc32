"""A fork is as a new process would be, but for what it has imported."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import emulated_cuda
import pytest
from emulated_cuda.marks import needed
from forks import Done, run_anew, run_python

SCRIPT = """
import atexit, json, os, sys
atexit.register(print, "at the end")
print(json.dumps([__name__, __file__, sys.argv, sys.path, os.getcwd(), sys.stdin.read()]))
print(dict(os.environ), file=sys.stderr)
if sys.argv[1] == "dies":
    os.kill(os.getpid(), 9)
sys.exit(int(sys.argv[1]))
"""
ONE_CORE = {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


@pytest.mark.parametrize("end", ["0", "3", "dies"])
def test_a_script_sees_and_leaves_the_same(end: str, script: Path) -> None:
    environments = [{**os.environ, **ONE_CORE, "RANK": str(rank)} for rank in range(2)]
    arguments = [str(script), end, "--word"]
    forks, others = (
        run(arguments, environments, timeout_seconds=60) for run in (run_python, run_anew)
    )
    assert forks == others
    assert [done.code for done in forks] == [-9 if end == "dies" else int(end)] * 2


def test_a_module_sees_the_same() -> None:
    environments = [{**os.environ, **ONE_CORE}]
    arguments = ["-m", "scalepet", "train", "nowhere.yaml"]
    forks, others = (
        run(arguments, environments, timeout_seconds=60) for run in (run_python, run_anew)
    )
    assert forks == others
    assert forks[0].code == 2 and "nowhere.yaml" in forks[0].err


def test_what_an_import_may_read_is_no_fork(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text("import sys; print('torch' in sys.modules)")
    for changes, expected in (({}, "True\n"), ({"HF_HOME": str(tmp_path)}, "False\n")):
        environment = {**os.environ, **ONE_CORE, **changes}
        assert run_python([str(path)], [environment], timeout_seconds=60) == [Done(0, expected, "")]


@needed
def test_a_fork_sees_the_emulated_device_that_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(
        "import sys, torch; print('deepspeed' in sys.modules, torch.cuda.device_count())"
    )
    for num_gpus in (1, 3):
        environment = emulated_cuda.environment(num_gpus=num_gpus)
        done = run_python([str(path)], [environment], timeout_seconds=60)
        assert done == [Done(0, f"True {num_gpus}\n", "")]


def test_who_takes_too_long_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text("import sys, time; time.sleep(float(sys.argv[1]))")
    environment = {**os.environ, **ONE_CORE}
    started = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run_python([str(path), "60"], [environment], timeout_seconds=0.5)
    assert time.monotonic() - started < 30
    assert run_python([str(path), "0"], [environment], timeout_seconds=60)[0].code == 0
