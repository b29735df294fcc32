"""launchers/slurm-job.sh without SLURM: how often a job comes back."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

JOB = Path(__file__).parents[2] / "launchers" / "slurm-job.sh"
BIN = Path(__file__).with_name("stand_in") / "bin"
STARTS = ".scalepet-7.starts"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where srun.sh ends with the exit code in the file "code"."""
    (tmp_path / "launchers").mkdir()
    shutil.copy(JOB, tmp_path / "launchers")
    (tmp_path / "launchers" / "srun.sh").write_text('exit "$(cat code)"\n')
    return tmp_path


def start(folder: Path, code: int, **environment: str) -> tuple[int, list[str], bool]:
    """Its exit code, what it said without the time, and whether it was queued again."""
    (folder / "code").write_text(str(code))
    (folder / "requeued").unlink(missing_ok=True)
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "launchers/slurm-job.sh", "train", "run.yaml"],
        cwd=folder,
        env={**os.environ, **job, **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert not done.stderr
    said = [line.partition("job 7: ")[2] for line in done.stdout.splitlines()]
    return done.returncode, said, (folder / "requeued").exists()


def test_a_job_that_crashes_comes_back_three_times(folder: Path) -> None:
    ends = [start(folder, 1) for _ in range(4)]
    assert [again for _, _, again in ends] == [True, True, True, False]
    assert {code for code, _, _ in ends} == {1}
    assert not (folder / STARTS).exists()


@pytest.mark.parametrize(("code", "comes_back"), [(0, False), (1, False), (2, False), (75, True)])
def test_a_crash_that_cannot_be_counted_does_not_come_back(
    folder: Path, code: int, comes_back: bool
) -> None:
    (folder / STARTS).symlink_to("/dev/full")
    found, said, again = start(folder, code)
    assert (found, again) == (code, comes_back)
    assert said[0] == (
        f"start 0 on node1; {folder}/{STARTS} cannot be written, so a crash is not queued again"
    )


@pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", "SCALEPET_RESTARTS"])
@pytest.mark.parametrize("text", ["x", "-1", "08", "a[$(touch ran)]"])
def test_a_number_that_is_none_is_refused(folder: Path, name: str, text: str) -> None:
    found = start(folder, 0, **{name: text})
    assert found == (2, [f"{name} is '{text}'; allowed: a whole number"], False)
    assert not (folder / "ran").exists()
