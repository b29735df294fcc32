"""What a run goes on from, and with what it does not: another world, broken states, other files."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import SCALEPET, newest_state, read_losses, read_metrics, read_result, run, run_here

from scalepet import engine
from scalepet.config import read_config
from scalepet.errors import CheckpointError
from scalepet.recipes.going_on import check_goes_on
from scalepet.recipes.prepare import prepare

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

KILLED = Path(__file__).with_name("killed.py")


@pytest.fixture(scope="module")
def whole(write_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody has disturbed, on rows of its own; its config lies beside it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    config = write_run(folder)
    text = config.read_text()
    (source,) = {line.split(": ")[1] for line in text.splitlines() if "train.jsonl" in line}
    rows = folder.parent / "rows"
    shutil.copytree(Path(source).parent, rows)
    config.write_text(text.replace(str(Path(source).parent), str(rows)))
    run([*SCALEPET, "train", config, "backbone.dropout=0.1"])
    return folder


def test_killed_in_the_middle_of_a_step_and_the_last_state_is_damaged(
    whole: Path, tmp_path: Path
) -> None:
    """Within step 11 of two micro-batches; states are there after 6 and 9 steps."""
    command = ["train", whole.with_suffix(".yaml"), "backbone.dropout=0.1", f"output={tmp_path}/x"]
    dying = [sys.executable, KILLED, "micro-batch:21", *command, "train.save_every=3"]
    run(dying, code=-signal.SIGKILL)
    states = tmp_path / "x" / "states"
    assert {path.name for path in states.iterdir()} == {"00000006", "00000009"}
    path = states / "00000009" / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    said = run([*SCALEPET, *command, "--resume"])
    (line,) = (line for line in said.splitlines() if "going on from" in line)
    assert line.startswith(f"{path} is not as it was written: checksum ")
    assert line.endswith("; going on from 00000006")
    assert read_losses(tmp_path / "x") == read_losses(whole)
    assert read_result(tmp_path / "x")["metrics"] == read_result(whole)["metrics"]
    for name in (f"states/{newest_state(whole).name}", "adapter"):
        one, other = (
            (folder / name / "tensors.safetensors").read_bytes()
            for folder in (whole, tmp_path / "x")
        )
        assert one == other, name


def test_what_a_save_has_cost_is_logged(whole: Path) -> None:
    saves = {step: r for (kind, step), r in read_metrics(whole).items() if kind == "save"}
    assert list(saves) == [4, 8, 12]
    for record in saves.values():
        assert 0 <= record["wait_seconds"] <= record["stall_seconds"]
    file = newest_state(whole) / "tensors.safetensors"
    assert 0.5 * file.stat().st_size < saves[12]["state_bytes"] < file.stat().st_size


def change_rows(split: str) -> Callable[[Path], list[str]]:
    def change(folder: Path) -> list[str]:
        rows = folder / "changed"
        shutil.copytree(folder.parent / "rows", rows, dirs_exist_ok=True)
        path = rows / f"{split}.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps({"text": "a red sky", "label": "cold"}), *lines[1:]]))
        return [f"task.source.files.{split}={path}"]

    return change


def change_tokenizer(folder: Path) -> list[str]:
    """One word of its vocabulary is another one."""
    here = Path(read_config(folder.with_suffix(".yaml")).backbone.path)
    other = folder / "tokenizer"
    other.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(here / name, other / name)
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"navy"', '"Navy"'))
    return [f"backbone.tokenizer={other}"]


def these(*overrides: str) -> Callable[[Path], list[str]]:
    return lambda _: list(overrides)


CHANGES: dict[str, tuple[Callable[[Path], list[str]], str | None]] = {
    "train rows": (change_rows("train"), "train-rows"),
    "eval rows": (change_rows("validation"), "eval-rows"),
    "optimizer": (these("train.learning_rate=0.5"), "optimizer"),
    "precision": (these("precision=bf16"), "precision"),
    "steps": (these("train.steps=13"), "steps"),
    "tokenizer": (change_tokenizer, None),
    "method": (these("method.seed=7"), None),
    "seed": (these("seed=3"), None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_has_changed_is_named_and_some_of_it_can_be_accepted(name: str, whole: Path) -> None:
    change, option = CHANGES[name]
    overrides = ["backbone.dropout=0.1", *change(whole)]
    prepared = prepare(read_config(whole.with_suffix(".yaml"), overrides), resume=True)
    state, _ = engine.newest_state(whole / "states")
    assert state is not None
    check: dict[str, Any] = {"acceptable": prepared.acceptable}
    with pytest.raises(CheckpointError) as caught:
        check_goes_on(state, prepared.fingerprint, accept=[], **check)
    named = next(fault for fault in caught.value.faults if f": {name} was " in fault)
    assert "this run has" in named and "a run goes on as it began" in named
    assert ("--accept" in named) == (option is not None)
    if option is not None:
        assert len(caught.value.faults) == 1
        assert named.endswith(f"or with --accept {option}")
        accepted = check_goes_on(state, prepared.fingerprint, accept=[option], **check)
        assert list(accepted) == [name]


def test_more_steps_on_other_rows_where_the_user_says_so(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    overrides = ["backbone.dropout=0.1", *change_rows("validation")(whole), "train.steps=16"]
    command = [*SCALEPET, "train", whole.with_suffix(".yaml"), f"output={tmp_path}/run", *overrides]
    said = run([*command, "--resume", "--accept", "steps"], code=2)
    assert "eval rows was" in said and "--accept eval-rows" in said
    run([*command, "--resume", "--accept", "steps", "--accept", "eval-rows"])
    assert len(read_losses(tmp_path / "run")) == 16
    records = read_metrics(tmp_path / "run")
    assert records["accept", 12]["steps"] == "was 12, is 16"
    assert "eval rows" in records["accept", 12]
    # A score on the old rows counts no more.
    assert read_result(tmp_path / "run")["best_step"] >= 12


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--resume", "--accept", "seed"], "--accept seed; allowed: train-rows, eval-rows,"),
        (["--accept", "steps"], "--accept steps without --resume"),
    ],
)
def test_what_can_be_accepted(options: list[str], expected: str, whole: Path) -> None:
    ended = run_here("train", str(whole.with_suffix(".yaml")), *options)
    assert ended.code == 2 and expected in ended.err
