"""Rows that nothing was chosen by are scored once, by the best adapter and not by the last one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import SCALEPET, read_metrics, read_result, read_table, run

from scalepet.errors import DataError
from scalepet.tracking import check_seal

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

SPLITS = "task.source.splits={train: train, eval: 'validation[:12]', test: 'validation[12:]'}"
AS_EVAL = "task.source.splits={train: train, eval: 'validation[12:]'}"


@pytest.fixture(scope="module", params=["resting", "moving"])
def folder(request, write_run, tmp_path_factory) -> Path:
    """Over two sharded ranks, at a rate at which later steps are worse."""
    folder = tmp_path_factory.mktemp("tested") / request.param
    moves = {"move_every": 3} if request.param == "moving" else {}
    config = write_run(
        folder,
        method={"name": "apet", "budget": "20%", **moves},
        train={"learning_rate": 0.5, "clip": None, "schedule": "constant", "evaluate_every": 2},
    )
    run([*SCALEPET, "train", config, SPLITS], num_ranks=2)
    return folder


def test_the_best_adapter_is_what_is_tested(folder):
    result = read_result(folder)
    assert result["best_step"] < result["num_steps"], "the last one is the best: tests nothing"
    tested = read_table(run([*SCALEPET, "evaluate", folder, AS_EVAL]))
    assert tested["rows"] == 11
    assert tested["accuracy"] == pytest.approx(result["metrics"]["test/accuracy"], abs=1e-6)
    assert tested["loss"] == pytest.approx(result["metrics"]["test/loss"], rel=1e-4)
    assert [step for kind, step in read_metrics(folder) if kind == "test"] == [result["num_steps"]]


def test_what_ran_is_known_and_sealed(folder, tmp_path):
    facts = json.loads((folder / "run.json").read_text())
    assert facts["rows"] == {"train": 61, "eval": 12, "test": 11}
    assert 0.5 <= facts["test_majority"] < 1
    check_seal(folder)
    result = folder / "result.json"
    content = result.read_text()
    result.write_text(content.replace("0.", "1.", 1))
    with pytest.raises(DataError, match="result.json: changed after the run had ended"):
        check_seal(folder)
    result.write_text(content)
