"""What fails on one rank alone ends all of them, with the cause, and leaves nothing open."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from faults.raised import SAID, Case
from forks import run_python
from running import SCALEPET, environments_of, run

SECONDS, RUN_SECONDS = 60.0, 240.0
"""To end in: far more than it takes, and far less than any time-out of a collective."""

TOLD = {
    "prepare, on rank 0": Case("train", "recipes.finetune.prepare", 0, "OSError"),
    "prepare, on rank 1": Case("train", "recipes.finetune.prepare", 1),
    "the folder is taken": Case("train", "recipes.lock.take", 0, "MemoryError"),
    "load": Case("train", "backbones.load_model", 1, "MemoryError"),
    "the logs are opened": Case("train", "recipes.finetune.open_logs", 0, "OSError"),
    "an adapter is saved": Case("train", "recipes.finetune.save_adapter", 0),
    "conclude": Case("train", "recipes.finetune.write_result", 0, "OSError"),
    "a stream is prepared": Case("stream", "recipes.continual.prepare_stream", 1),
    "rows are predicted": Case("predict", "recipes.answer._encoded_rows", 1),
    "answers are written": Case("predict", "recipes.answer.write_answers", 0, "OSError"),
    "an adapter is opened": Case("evaluate", "recipes.answer._open_all", 1, "MemoryError"),
    "a plain model is begun": Case("export", "backbones.write_weights", 0),
    "a plain model is completed": Case("export", "backbones.write_model_config", 0, "MemoryError"),
}
"""Places after which all ranks agree. The error is raised where it came up, with its traceback."""

STRUCK = str(Path(__file__).with_name("struck.py"))
ALONE = {
    "a step, on rank 1": "raise=MemoryError@step:2@1",
    "a step, on rank 0": "raise=ValueError@step:2@0",
    "a batch": "raise=OSError@batch:1@1",
    "after the load": "raise=KeyboardInterrupt@load:1@1",
}
"""Places where the others are in a collective, or on their way to one."""


@pytest.fixture(scope="module")
def adapter(write_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run([*SCALEPET, "train", write_run(folder, train={"steps": 2, "evaluate_every": 2})])
    return folder


@pytest.fixture(scope="module")
def told(
    adapter: Path,
    write_run: Any,
    write_stream: Any,
    colour_rows: Path,
    run_ranks: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[str, Any]]:
    """What each rank ended with, case by case."""
    out = tmp_path_factory.mktemp("told")
    argument = {
        "cases": {name: asdict(case) for name, case in TOLD.items()},
        "out": str(out),
        "adapter": str(adapter),
        "rows": str(colour_rows / "validation.jsonl"),
        "run": str(write_run(out / "run", deepspeed="zero0", train={"steps": 1})),
        "stream": str(write_stream(out / "stream")),
    }
    run_ranks(Path(__file__).with_name("raised.py"), argument, num_ranks=2, timeout_seconds=240)
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.distributed
@pytest.mark.parametrize("name", TOLD)
def test_all_ranks_hear_what_one_could_not_do(told: Any, name: str) -> None:
    case = TOLD[name]
    own, other = told[case.rank][name], told[1 - case.rank][name]
    assert own["ended"] == f"{case.error}: {SAID}"
    assert other["ended"] == f"RankError: rank {case.rank}: {case.error}: {SAID}"
    assert max(own["seconds"], other["seconds"]) < SECONDS
    assert own["left"] == other["left"] == []


@pytest.mark.distributed
@pytest.mark.parametrize("name", ALONE)
def test_all_ranks_end_with_the_one_that_fails(name: str, write_run: Any, tmp_path: Path) -> None:
    folder, moment = tmp_path / "run", ALONE[name]
    error, rank = moment.removeprefix("raise=").partition("@")[0], int(moment[-1])
    words = [STRUCK, moment, "train", str(write_run(folder, train={"steps": 3}))]
    ended = run_python(words, environments_of(2), timeout_seconds=RUN_SECONDS)
    ended_at = time.monotonic()
    code = 130 if error == "KeyboardInterrupt" else 1
    assert [done.code for done in ended] == [code, code], ended
    (struck,) = (line for line in ended[rank].err.splitlines() if line.startswith("struck "))
    assert ended_at - float(struck.split()[-1]) < SECONDS
    logs = [path.read_text() for path in folder.glob("logs/*.log")]
    has_trace = any("Traceback" in text for text in (ended[rank].err, *logs))
    assert has_trace == (code == 1)
    if rank == 1:  # the first rank tells of it
        assert any(
            line.startswith(f"scalepet: rank 1: {error}") for line in ended[0].err.splitlines()
        )
    assert not (folder / "run.lock").exists()
