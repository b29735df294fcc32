"""The wandb sweep and the SLURM array are one grid, and wandb's agent starts its runs."""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
from pathlib import Path

import yaml

from scalepet.config import read_config

LAUNCHERS = Path(__file__).parents[2] / "launchers"
SWEEP = yaml.safe_load((LAUNCHERS / "wandb-sweep.yaml").read_text())
LINES = [shlex.split(line) for line in (LAUNCHERS / "grid.txt").read_text().splitlines()]


def _varied(words: list[str]) -> frozenset[str]:
    return frozenset(word for word in words if word.partition("=")[0] in SWEEP["parameters"])


def test_both_are_the_same_grid():
    names = list(SWEEP["parameters"])
    values = (SWEEP["parameters"][name]["values"] for name in names)
    grid = {
        frozenset(f"{name}={value}" for name, value in zip(names, point, strict=True))
        for point in itertools.product(*values)
    }
    assert len(LINES) == len(grid) == 6
    assert {_varied(words) for words in LINES} == grid


def test_every_line_is_a_run_in_a_folder_of_its_own():
    outputs = set()
    for command, preset, *overrides in LINES:
        assert command == "train"
        outputs.add(read_config(LAUNCHERS.parent / preset, overrides).output)
    assert len(outputs) == len(LINES)


def test_what_the_agent_of_wandb_starts(tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    point = {"method.budget": {"value": 1000}, "train.learning_rate": {"value": 0.03}}
    given = create_sweep_command_args({"args": point})
    command = [
        word
        for part in create_sweep_command(SWEEP["command"])
        for word in (given[part[2:-1]] if part.startswith("${") else [part])
    ]
    (tmp_path / "launchers").mkdir()
    (tmp_path / "launchers" / "local.sh").write_text('printf "%s\\n" "$@"\n')
    environment = {**os.environ, "WANDB_RUN_ID": "abc"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    of_agent = done.stdout.split()
    of_array = next(words for words in LINES if _varied(words) == _varied(of_agent))
    assert [word.replace("abc", "1000-0.03") for word in of_agent] == of_array
