"""Runs and streams with steps whose loss is no number: stopped or skipped, told and kept."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from running import (
    SCALEPET,
    newest_state,
    read_metrics,
    read_result,
    run,
    run_here,
)

from scalepet.engine import read_folder

WORKER = Path(__file__).with_name("spoilt.py")
STREAM_STEPS = {"epochs": 2, "batch_size": 8, "micro_batch_size": 4}
"""Ten in the first experience; ten in the second one, and the method rests in five of these."""


def load_worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("spoilt", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["spoilt"] = module
    spec.loader.exec_module(module)
    return module


Run = load_worker().Run
SKIP = "train.on_non_finite=skip"


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a run said, with which message it ended on every rank, and what it left behind."""

    folder: Path
    said: str
    message: list[str | None]


@pytest.fixture(scope="module")
def ran(
    write_run: Callable[..., Path],
    write_stream: Callable[..., Path],
    run_ranks: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Ran]:
    """All runs of this file, one after the other on the same two ranks."""
    out = tmp_path_factory.mktemp("spoilt")

    def run(folder: str, *overrides: str, backbone: str = "bert", **options: Any) -> Any:
        return Run(str(write_run(out / folder, backbone)), overrides, **options)

    def stream(folder: str, *overrides: str, **options: Any) -> Any:
        config = write_stream(out / folder, train=STREAM_STEPS, stream={"num_tasks": 2})
        return Run(str(config), (*overrides, "deepspeed=zero2"), is_stream=True, **options)

    fp16 = ("precision=fp16", "train.evaluate_every=2")
    runs = {
        "skipped": run("skipped", SKIP, bad=(1, 6)),
        "stopped": run("stopped", bad=(6,)),
        "went on": run("stopped", SKIP, bad=(6,), resume=True),
        "unbroken": run("unbroken", SKIP, bad=(6,)),
        "too many": run("too-many", SKIP, "deepspeed=zero0", bad=tuple(range(2, 13))),
        "stopped stream": stream("stopped-stream", bad=(18,)),
        "stream went on": stream("stopped-stream", SKIP, bad=(1,), resume=True),
        "unbroken stream": stream("unbroken-stream", SKIP, bad=(18,)),
        "fp16": run("fp16", *fp16, "train.steps=4", backbone="t5"),
    }
    argument = {
        "out": str(out),
        "runs": {name: dataclasses.asdict(run) for name, run in runs.items()},
    }
    run_ranks(WORKER, argument, num_ranks=2, timeout_seconds=250)
    return {
        name: Ran(
            Path(run.config).with_suffix(""), **json.loads((out / f"{name}.json").read_text())
        )
        for name, run in runs.items()
    }


def steps_of(folder: Path, kind: str) -> list[int]:
    return [step for one, step in read_metrics(folder) if one == kind]


def check_same_end(left: Path, right: Path, *, adapters: Sequence[str]) -> None:
    """To the last bit."""
    metrics = [read_metrics(folder) for folder in (left, right)]
    trained = [
        {key: values["loss"] for key, values in one.items() if key[0] == "train"} for one in metrics
    ]
    assert trained[0] == trained[1]
    assert read_result(left)["metrics"] == read_result(right)["metrics"]
    for name in (f"states/{newest_state(left).name}", *adapters):
        one, other = (read_folder(folder / name)[0] for folder in (left, right))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]


class TestSkip:
    def test_the_run_goes_on_without_these_steps(self, ran: dict[str, Ran]) -> None:
        one = ran["skipped"]
        assert one.message == [None, None]
        assert steps_of(one.folder, "skipped") == [1, 6]
        assert steps_of(one.folder, "train") == [2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
        assert steps_of(one.folder, "eval") == [0, 4, 8, 12]
        record = read_metrics(one.folder)["skipped", 6]
        assert record["what"] == "the loss" and math.isnan(record["loss"])
        assert record["in_a_row"] == 1
        result = read_result(one.folder)
        assert (result["num_steps"], result["num_skipped"]) == (12, 2)
        assert one.said.count("the loss is nan at step") == 2

    def test_the_batch_is_kept_by_the_rank_that_held_it(
        self, ran: dict[str, Ran], colour_rows: Path
    ) -> None:
        folder = ran["skipped"].folder / "non-finite"
        assert sorted(path.name for path in folder.iterdir()) == ["step-000001", "step-000006"]
        assert [path.name for path in (folder / "step-000006").iterdir()] == ["rank-1"]
        tensors, record = read_folder(folder / "step-000006" / "rank-1")
        assert record["what"] == "the loss" and record["step"] == 6 and math.isnan(record["loss"])
        assert record["learning_rate"] > 0 and record["precision"] == "fp32"
        rows = [json.loads(line) for line in (colour_rows / "train.jsonl").read_text().splitlines()]
        for number, batch in enumerate(record["micro_batches"]):
            assert math.isnan(batch["loss_sum"])
            texts = [text["input_ids"] for text in batch["texts"]]
            assert texts == [f"[CLS] {rows[row]['text']} [SEP]" for row in batch["rows"]]
            assert len(tensors[f"{number}/input_ids"]) == len(batch["rows"])

    def test_more_than_ten_in_a_row_end_it(self, ran: dict[str, Ran]) -> None:
        one = ran["too many"]
        (message,) = set(one.message)
        assert message is not None and "11 in a row, and 10 are allowed" in message
        assert steps_of(one.folder, "skipped") == list(range(2, 13))
        assert len(list((one.folder / "non-finite").iterdir())) == 10
        assert newest_state(one.folder).name == "00000011"


class TestStop:
    def test_the_message_says_what_where_and_what_to_do(self, ran: dict[str, Ran]) -> None:
        one = ran["stopped"]
        (message,) = set(one.message)
        assert message is not None and "\n" not in message
        for words in (
            "the loss is nan at step 6 on rank 1, so nothing was changed",
            f"its batch is in {one.folder / 'non-finite' / 'step-000006'}",
            "try a smaller train.learning_rate, or train.on_non_finite: skip, with --resume",
        ):
            assert words in message

    def test_it_goes_on_from_the_last_good_step(self, ran: dict[str, Ran]) -> None:
        """As if it had skipped that step in the first place."""
        assert ran["went on"].message == [None, None]
        check_same_end(ran["went on"].folder, ran["unbroken"].folder, adapters=["adapter"])


class TestStream:
    def test_it_stops_and_goes_on_alike(self, ran: dict[str, Ran]) -> None:
        (message,) = set(ran["stopped stream"].message)
        assert message is not None and "the loss is nan at step 18 on rank 1" in message
        went_on, unbroken = ran["stream went on"], ran["unbroken stream"]
        assert went_on.message == unbroken.message == [None, None]
        assert read_result(unbroken.folder)["num_skipped"] == 1
        assert steps_of(went_on.folder, "skipped") == [18]
        adapters = ["adapter", "adapter-offline"]
        check_same_end(went_on.folder, unbroken.folder, adapters=adapters)


class TestFp16:
    def test_t5_is_warned_about(self, ran: dict[str, Ran]) -> None:
        one = ran["fp16"]
        assert one.message == [None, None]
        (line,) = [line for line in one.said.splitlines() if line.startswith("warning: ")]
        assert "fp16" in line and "65,504" in line and "bf16 and fp32" in line
        assert json.loads((one.folder / "run.json").read_text())["warnings"] == [
            line.removeprefix("warning: ")
        ]

    def test_overflows_are_no_trained_steps(self, ran: dict[str, Ran]) -> None:
        folder = ran["fp16"].folder
        skipped, trained = steps_of(folder, "skipped"), steps_of(folder, "train")
        assert sorted([*skipped, *trained]) == [1, 2, 3, 4]
        assert not (folder / "non-finite").exists(), "nothing is wrong with these rows"

    def test_the_scale_is_in_the_state(self, ran: dict[str, Ran]) -> None:
        folder = ran["fp16"].folder
        _, record = read_folder(newest_state(folder))
        num_skipped = len(steps_of(folder, "skipped"))
        scaler = record["loss_scaler"]
        assert scaler["cur_iter"] == 4
        assert scaler["cur_scale"] == 2 ** (16 - max(0, num_skipped - 1))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in fp16")
    def test_a_device_that_cannot_is_refused_before_anything_loads(
        self, write_run: Callable[..., Path], tmp_path: Path
    ) -> None:
        path = write_run(tmp_path / "run", precision="fp16", backbone="bert")
        refused = run_here("train", str(path))
        assert refused.code == 2
        assert refused.faults == [
            "precision: fp16, which DeepSpeed does not run on this cpu; allowed here: bf16, fp32"
        ]
        assert not (tmp_path / "run").exists()

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    def test_on_a_gpu_it_trains(self, write_run: Callable[..., Path], tmp_path: Path) -> None:
        path = write_run(tmp_path / "run", precision="fp16", backbone="bert")
        run([*SCALEPET, "train", path])
        assert read_result(tmp_path / "run")["num_skipped"] < 6
