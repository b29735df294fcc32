"""launchers/site.sh: what every run is started with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "launchers" / "site.sh"
NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def after_it(given: dict[str, str]) -> dict[str, str]:
    """The environment of what a launcher starts."""
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment = {**kept, "SCALEPET_VENV": sys.prefix, **given}
    done = subprocess.run(
        ["bash", "-c", f"source {SITE} && env -0"], env=environment, capture_output=True, check=True
    )
    words = done.stdout.decode().rstrip("\0").split("\0")
    return dict(word.split("=", 1) for word in words)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, dict.fromkeys(NAMES, "expandable_segments:True")),
        ({NAMES[0]: "max_split_size_mb:64"}, {NAMES[0]: "max_split_size_mb:64"}),
        ({NAMES[1]: ""}, {NAMES[1]: ""}),
    ],
)
def test_freed_memory_is_of_use_unless_the_user_has_chosen(
    given: dict[str, str], expected: dict[str, str]
) -> None:
    found = after_it(given)
    assert {name: found[name] for name in NAMES if name in found} == expected


def test_no_module_comes_out_of_the_folder_where_a_run_starts(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('a stranger')")
    environment = after_it({})
    command = [sys.executable, "-m", "scalepet", "plan", "no-such-file.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, "a stranger" in done.stderr) == (2, False)
    del environment["PYTHONSAFEPATH"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "a stranger" in done.stderr
