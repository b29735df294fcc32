"""scalepet.dist alone and over two real gloo processes (this file is also the worker they run)."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scalepet import dist
from scalepet.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LaunchError,
    RankError,
    ScalepetError,
)

NUM_RANKS = 2
TIMEOUT_SECONDS = 120


class TestAlone:
    def test_there_is_one_rank(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        assert (dist.rank(), dist.world_size(), dist.local_rank()) == (0, 1, 0)
        assert dist.is_main()
        monkeypatch.setenv("LOCAL_RANK", "3")
        assert dist.local_rank() == 3

    def test_collectives_return_what_they_get(self) -> None:
        dist.barrier()
        assert dist.all_gather_objects({"a": 1}) == [{"a": 1}]
        assert dist.broadcast_object("x") == "x"

    def test_a_sum_keeps_its_type_and_its_input(self) -> None:
        total = dist.sum_over_ranks(True)
        assert total == 1 and type(total) is int
        assert dist.sum_over_ranks(2**53 + 1) == 2**53 + 1
        assert dist.sum_over_ranks(0.1) == 0.1
        value = torch.ones(2, dtype=torch.bfloat16)
        summed = dist.sum_over_ranks(value)
        assert torch.equal(summed, value) and summed.dtype == value.dtype
        assert summed.data_ptr() != value.data_ptr()

    def test_no_fault_is_agreed_on_in_silence(self) -> None:
        dist.agree(None)

    def test_a_fault_is_raised_without_a_rank(self) -> None:
        with pytest.raises(DataError) as caught:
            dist.agree(DataError(["no rows", "no labels"]))
        assert caught.value.faults == ("no rows", "no labels")

    def test_a_foreign_fault_is_raised_as_it_is(self) -> None:
        fault = ZeroDivisionError("1 / 0")
        with pytest.raises(ZeroDivisionError) as caught:
            dist.agree(fault)
        assert caught.value is fault


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes said, in the order of ranks."""
    meeting = tmp_path_factory.mktemp("dist") / "meeting"
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(meeting)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            text=True,
        )
        for rank in range(NUM_RANKS)
    ]
    try:
        outputs = [worker.communicate(timeout=TIMEOUT_SECONDS) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, (_, errors) in zip(workers, outputs, strict=True):
        assert worker.returncode == 0, errors
    return [json.loads(stdout.splitlines()[-1]) for stdout, _ in outputs]


@pytest.mark.distributed
class TestTwoProcesses:
    def test_ranks(self, answers: list[dict[str, Any]]) -> None:
        assert [answer["rank"] for answer in answers] == [[0, 2, True], [1, 2, False]]

    def test_sums(self, answers: list[dict[str, Any]]) -> None:
        for answer in answers:
            assert answer["int"] == 2**53 + 3  # float64 cannot hold it
            assert answer["float"] == 1.5 + 0.25
            assert answer["tensor"] == [3, 30]
            assert answer["tensor_kept"]

    def test_objects(self, answers: list[dict[str, Any]]) -> None:
        for answer in answers:
            assert answer["gathered"] == ["rank 0", "rank 1"]
            assert answer["broadcast"] == ["from 0", "from 1"]

    @pytest.mark.parametrize(
        ("case", "kind", "faults"),
        [
            ("none", None, []),
            ("same on both", "ConfigError", ["a", "b"]),
            ("only on 1", "DataError", ["rank 1: file missing"]),
            ("partly shared", "ConfigError", ["shared", "rank 0: own 0", "rank 1: own 1"]),
            ("two types", "CheckpointError", ["rank 0: x", "rank 1: y"]),
        ],
    )
    def test_agreed_faults(
        self, answers: list[dict[str, Any]], case: str, kind: str | None, faults: list[str]
    ) -> None:
        for answer in answers:
            assert answer["agreed"][case] == [kind, faults]

    def test_a_foreign_fault_stays_on_its_rank_and_stops_the_other(
        self, answers: list[dict[str, Any]]
    ) -> None:
        message = "rank 1: KeyError: 'k'"
        assert answers[0]["agreed"]["foreign on 1"] == ["RankError", [message]]
        assert answers[1]["agreed"]["foreign on 1"] == ["KeyError", ["'k'"]]

    def test_our_own_mistake_is_no_refusal(self, answers: list[dict[str, Any]]) -> None:
        faults = ["rank 0: no rows", "rank 1: MemoryError: "]
        assert answers[0]["agreed"]["foreign beside ours"] == ["RankError", faults]
        assert answers[1]["agreed"]["foreign beside ours"] == ["MemoryError", [""]]

    def test_a_full_disk_is_the_users_to_mend(self, answers: list[dict[str, Any]]) -> None:
        expected = ["ScalepetError", ["rank 1: No space left on device: 'a.bin'"]]
        assert [one["agreed"]["disk full on 1"] for one in answers] == [expected] * 2


def test_faults_of_many_ranks_are_one_line() -> None:
    merged = dist._merged([("x",), (), ("x", "y"), ("x",)])
    assert merged == ["ranks 0, 2, 3: x", "rank 2: y"]


FAULTS: dict[str, list[Exception | None]] = {
    "none": [None, None],
    "same on both": [ConfigError(["a", "b"]), ConfigError(["a", "b"])],
    "only on 1": [None, DataError("file missing")],
    "partly shared": [ConfigError(["shared", "own 0"]), ConfigError(["shared", "own 1"])],
    "two types": [CheckpointError("x"), LaunchError("y")],
    "foreign on 1": [None, KeyError("k")],
    "foreign beside ours": [DataError("no rows"), MemoryError()],
    "disk full on 1": [None, OSError(errno.ENOSPC, "No space left on device", "a.bin")],
}


def agreed(fault: Exception | None) -> tuple[str | None, list[str]]:
    def work() -> None:
        if fault is not None:
            raise fault

    try:
        dist.together(work)
    except (ScalepetError, RankError) as error:
        return type(error).__name__, list(error.faults)
    except Exception as error:
        return type(error).__name__, [str(error)]
    return None, []


def answer(rank: int) -> dict[str, Any]:
    tensor = torch.tensor([1, 10]) * (rank + 1)
    summed = dist.sum_over_ranks(tensor)
    dist.barrier()
    return {
        "rank": [dist.rank(), dist.world_size(), dist.is_main()],
        "int": dist.sum_over_ranks(2**53 + 1 if rank else 2),
        "float": dist.sum_over_ranks(0.25 if rank else 1.5),
        "tensor": summed.tolist(),
        "tensor_kept": tensor.tolist() == [rank + 1, 10 * (rank + 1)],
        "gathered": dist.all_gather_objects(f"rank {rank}"),
        "broadcast": [dist.broadcast_object(f"from {rank}", source) for source in range(NUM_RANKS)],
        "agreed": {case: agreed(faults[rank]) for case, faults in FAULTS.items()},
    }


if __name__ == "__main__":
    this_rank, meeting_file = int(sys.argv[1]), sys.argv[2]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_file}", rank=this_rank, world_size=NUM_RANKS
    )
    print(json.dumps(answer(this_rank)))
    torch.distributed.destroy_process_group()
