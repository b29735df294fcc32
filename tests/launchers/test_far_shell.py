"""launchers/hostfile.sh: what reaches the other machines, with a pdsh that stays on this one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]

BIN = Path(__file__).with_name("stand_in") / "bin"
ODD = [
    "task.template={text} costs $5",
    "$HOME",
    "$(touch ran)",
    "`touch ran`",
    "a; touch ran",
    'it\'s "quoted" \\n',
    "100% %h %n",
    "*",
    "two\nlines",
    "",
]


@pytest.fixture
def environment(checkout: Path, stand_in: dict[str, str]) -> dict[str, str]:
    Path("hosts").write_text("# one machine\nnode1 slots=2  # of its GPUs\n")
    return {**stand_in, "PATH": f"{BIN}{os.pathsep}{stand_in['PATH']}", "SCALEPET_RESTARTS": "0"}


def launch(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "launchers/hostfile.sh", "hosts", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def test_words_and_variables_arrive_as_they_are(environment: dict[str, str]) -> None:
    """No key is among them: everybody on a machine can read a command."""
    names = ("CUDA_{}OF_TEST", "TORCH_{}OF_TEST", "PYTORCH_{}OF_TEST", "TRITON_{}OF_TEST")
    names += ("NCCL_P2P_{}OF_TEST", "GLOO_{}OF_TEST", "WANDB_{}OF_TEST", "SCALEPET_{}OF_TEST")
    known = {name.format(""): f"{name} {' '.join(ODD)}" for name in names}
    others = {"MLFLOW_OF_TEST": "a", "OF_TEST": "b"}
    keys = {f"WANDB_{key}": "OF_TEST" for key in ("TOKEN", "API_KEY", "PASS", "PAT", "CREDENTIALS")}
    done = launch({**environment, **known, **others, **keys}, "train", "odd", "0", *ODD)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        given = json.loads(Path(f"odd.{rank}").read_text())
        assert given["arguments"] == ["train", "odd", "0", *ODD, "--resume"]
        assert {name: given[name] for name in given if name.endswith("OF_TEST")} == known
        assert (given["WORLD_SIZE"], given["MASTER_ADDR"]) == ("2", "127.0.0.1")
        assert given["safe path"] == "1"
    assert not Path("ran").exists()
    assert "OF_TEST" not in done.stdout + done.stderr


def test_the_exit_code_is_that_of_the_ranks(environment: dict[str, str]) -> None:
    done = launch(environment, "train", "refused", "refuse")
    assert done.returncode == 2, done.stderr
    assert "restarts" not in done.stderr


def test_a_number_of_restarts_that_is_none_is_refused(environment: dict[str, str]) -> None:
    done = launch({**environment, "SCALEPET_RESTARTS": "many"}, "train", "no", "0")
    assert done.returncode == 2
    assert done.stderr == "scalepet: SCALEPET_RESTARTS is 'many'; allowed: a whole number\n"
