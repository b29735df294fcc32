"""What a user does with a run, through the command line on the emulated CUDA device: each command
gives what it gives on the CPU.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from running import SCALEPET, read_losses, read_result, read_table, run, run_here

from emulated_cuda import environment
from emulated_cuda.marks import needed

pytestmark = [needed, pytest.mark.distributed, pytest.mark.timeout(400)]

KILLED = Path(__file__).parents[1] / "recipes" / "killed.py"
TRAIN = {"steps": 6, "evaluate_every": 3}
STREAM = {
    "lae": {"freeze_epochs": 1, "offline": [{"travel": 0.4}, {"travel": 0.8}]},
    "train": {"epochs": 2},
}
EXPERTS = ("adapter", "adapter-offline", "adapter-offline-2")
PLACES = ("cpu", "cuda")
WITHOUT_PEFT = [
    *(sys.executable, "-c"),
    "import sys; sys.modules['peft'] = None; from scalepet.cli import main; main()",
]
"""SHiRA's sparse tensors are not emulated."""


def on_device(*arguments: Any, num_ranks: int = 1) -> str:
    return run([*SCALEPET, *arguments], num_ranks=num_ranks, environment=environment())


def on_cpu(*arguments: Any) -> str:
    ended = run_here(*map(str, arguments))
    assert ended.code == 0, ended.err
    return ended.out


def on_both(
    root: Path, command: str, write: Callable[[Path], Path], *, num_ranks: int
) -> dict[str, Path]:
    """The folders of a run that was made on the CPU and on the device."""
    for place, variables in (("cpu", None), ("cuda", environment())):
        config = write(root / place)
        run([*SCALEPET, command, config], num_ranks=num_ranks, environment=variables)
    return {place: root / place for place in PLACES}


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All that is in the safetensors files of a folder."""
    (path,) = folder.glob("*.safetensors")
    return safetensors.torch.load_file(path)


def check_close(one: Path, other: Path) -> None:
    """As close as Adam leaves them, which makes whole steps of the smallest gradients."""
    torch.testing.assert_close(read_tensors(one), read_tensors(other), atol=1e-5, rtol=1e-4)


def check_alike(folders: dict[str, Path]) -> None:
    """The losses of every step, and all scores."""
    cpu, cuda = (folders[place] for place in PLACES)
    assert read_losses(cuda) == pytest.approx(read_losses(cpu), rel=1e-6)
    found, expected = (read_result(folder)["metrics"] for folder in (cuda, cpu))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def trained(write_run, tmp_path_factory) -> dict[str, Path]:
    """A T5 that writes texts, sharded over two ranks; its mask is chosen by SNIP and moves."""
    method = {"name": "apet", "budget": "20%", "select": "snip", "move_every": 2}

    def write(folder: Path) -> Path:
        return write_run(folder, "t5-gated", is_text=True, method=method, train=TRAIN)

    return on_both(tmp_path_factory.mktemp("trained"), "train", write, num_ranks=2)


@pytest.fixture(scope="module")
def learnt(write_stream, tmp_path_factory) -> dict[str, Path]:
    """A stream of a BERT with two offline copies, over two ranks."""

    def write(folder: Path) -> Path:
        return write_stream(folder, **STREAM)

    return on_both(tmp_path_factory.mktemp("learnt"), "continual", write, num_ranks=2)


def test_train(trained):
    check_alike(trained)
    check_close(trained["cuda"] / "adapter", trained["cpu"] / "adapter")
    assert read_result(trained["cuda"])["peak_memory_bytes"] < 2**24, "of the device"


def test_resume_at_another_rank_count(write_run, tmp_path):
    folders = {place: tmp_path / place for place in PLACES}
    whole, broken = (write_run(folders[place], train=TRAIN) for place in PLACES)
    run([*SCALEPET, "train", whole])
    killed = [sys.executable, KILLED, "1", "train", broken]
    run(killed, code=-signal.SIGKILL, environment=environment())
    assert not (folders["cuda"] / "result.json").exists()
    on_device("train", broken, "--resume", num_ranks=2)
    check_alike(folders)


def test_a_stream_and_its_experts(learnt):
    check_alike(learnt)
    matrices = [json.loads((folder / "matrix.json").read_text()) for folder in learnt.values()]
    assert matrices[0]["experts"] == matrices[1]["experts"]
    assert {*matrices[0]["experts"]} == {"online", "offline", "offline 2", "ensemble"}
    for expert in EXPERTS:
        check_close(learnt["cuda"] / expert, learnt["cpu"] / expert)


def test_the_experts_of_a_stream_vote(learnt):
    first, *others = (learnt["cuda"] / expert for expert in EXPERTS)
    also = [word for other in others for word in ("--also", other)]
    scores = read_table(on_device("evaluate", first, *also, "--vote", "max"))
    expected = read_result(learnt["cpu"])["metrics"]["ensemble/last_micro"]
    assert scores["accuracy"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_evaluate(num_ranks, trained):
    scores = read_table(on_device("evaluate", trained["cuda"], num_ranks=num_ranks))
    expected = read_result(trained["cpu"])["metrics"]
    for metric in ("exact_match", "loss"):  # six digits of them are shown
        assert scores[metric] == pytest.approx(expected[f"eval/{metric}"], rel=1e-5)


def test_predict(trained, colour_rows, tmp_path):
    rows = ["predict", trained["cuda"], "--input", colour_rows / "validation.jsonl", "--output"]
    on_device(*rows, tmp_path / "cuda")
    on_cpu(*rows, tmp_path / "cpu")
    answers = (tmp_path / "cuda").read_text()
    assert answers == (tmp_path / "cpu").read_text()
    assert len(answers.splitlines()) == 23


def test_export(trained, tmp_path):
    on_device("export", trained["cuda"], tmp_path / "cuda", num_ranks=2)
    on_cpu("export", trained["cuda"], tmp_path / "cpu")
    found, expected = (read_tensors(tmp_path / place) for place in ("cuda", "cpu"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_launch_check(tmp_path):
    said = on_device("launch", "--check", "--output", tmp_path / "run", num_ranks=2)
    lines = [line.split(maxsplit=2) for line in said.splitlines()]
    names = ["processes", "devices", "versions", "folder", "network"]
    assert [name for ok, name, _ in lines if ok == "ok"] == names
    words = {name: words for _, name, words in lines}
    assert words["processes"].endswith("2 processes, 2 GPUs")
    assert words["network"].startswith("nccl adds up over 2 processes")


def test_bench(tmp_path):
    options = ("--shape", "tiny", "--rounds", "1", "--steps", "1", "--density", "1%", "--output")
    for place, variables in (("cpu", None), ("cuda", environment())):
        run([*WITHOUT_PEFT, "bench", *options, tmp_path / place], environment=variables)
    expected, found = (
        json.loads((tmp_path / place / "bench.json").read_text())["results"] for place in PLACES
    )
    counted = ("name", "num_trained", "num_weight_shaped", "file_bytes")
    for one, other in zip(found, expected, strict=True):
        assert [one[name] for name in counted] == [other[name] for name in counted]
        assert other["peak_bytes"] is None
        assert one["kept_bytes"] < one["peak_bytes"] < 2**28
