from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest
import yaml

from scalepet.cli.app import app
from scalepet.config import check_config, fields_as_yaml

COMMANDS = (
    "train",
    "continual",
    "sweep",
    "evaluate",
    "predict",
    "export",
    "import",
    "plan",
    "launch",
    "report",
    "bench",
    "assets",
)
HEAVY = (
    "torch",
    "transformers",
    "deepspeed",
    "datasets",
    "numpy",
    "yaml",
    "matplotlib",
)
SECONDS_ALLOWED = 0.5


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m scalepet`` with these arguments, in a terminal of 80 columns."""
    return subprocess.run(
        [sys.executable, "-m", "scalepet", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    code = textwrap.dedent(
        f"""
        import sys
        from scalepet.cli import main
        try:
            main({arguments!r})
        except SystemExit as ended:
            assert ended.code == 0, ended.code
        print("LOADED", [name for name in {HEAVY!r} if name in sys.modules])
        """
    )
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.splitlines()[-1] == "LOADED []"


def test_help_comes_at_once() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        assert start("--help").returncode == 0
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < SECONDS_ALLOWED


@pytest.mark.parametrize("arguments", [["--help"], *([name, "-h"] for name in COMMANDS)])
def test_help_fits_80_columns_as_plain_text(arguments: list[str]) -> None:
    ended = start(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert max(map(len, ended.stdout.splitlines())) <= 80
    assert not any(mark in ended.stdout for mark in ("╭", "│", "\b", "::", "`", "[]"))
    for broken in ("[[", "]...]", "..."):  # doubled brackets of metavars, descriptions cut short
        assert broken not in ended.stdout.replace("FIELD=VALUE]...", "").replace(
            "[NAME]...", ""
        ).replace("{RUN}...", "").replace("[ARGS]...", "")


def test_no_arguments_show_the_commands() -> None:
    ended = start()
    assert ended.returncode == 2
    assert ended.stdout == start("--help").stdout
    for command in COMMANDS:
        assert f"\n  {command} " in ended.stdout
    for way in ("deepspeed --module scalepet train", "--fields", "launchers/quickstart.sh"):
        assert way in ended.stdout


def test_the_example_in_the_help_of_train_is_a_valid_config() -> None:
    lines = start("train", "--help").stdout.splitlines()
    start_line = next(i for i, line in enumerate(lines) if line.strip().startswith("output: "))
    example = []
    for line in lines[start_line:]:
        if not line.strip():
            break
        example.append(line)
    config = check_config(yaml.safe_load(textwrap.dedent("\n".join(example))))
    assert config.method.options == {"budget": 4096}
    assert config.task.source.files == {"train": "train.csv", "validation": "held_out.csv"}
    assert config.train.epochs == 3


def test_the_epilog_names_real_commands() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names == set(COMMANDS)


def test_fields_are_shown_ready_to_copy(run: Any) -> None:
    ended = run("train", "--fields")
    assert (ended.code, ended.out, ended.err) == (0, fields_as_yaml(), "")
