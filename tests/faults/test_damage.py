"""Run folders that were cut, altered or moved in time: a run goes on from the last whole state to
the very same values, or it is refused with the file's name.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from faults.damaged import Case, damage, flip
from running import SCALEPET, check_same, read_losses, read_metrics, read_table, run, run_here

from scalepet.engine import read_folder
from scalepet.errors import CheckpointError

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

DAMAGED = Path(__file__).with_name("damaged.py")
NEWEST, BEFORE = "states/00000008", "states/00000006"
TENSORS, RECORD = "tensors.safetensors", "scalepet.json"
SECONDS = 60.0
"""No case takes longer."""

HOWS = ("cut", "flip", "empty", "remove", "garbage")


def both(what: str, file: str) -> tuple[tuple[str, str], ...]:
    return ((what, f"{NEWEST}/{file}"), (what, f"{BEFORE}/{file}"))


CHOICE = {how: (TENSORS, RECORD)[index % 2] for index, how in enumerate(HOWS)}
GOES_ON_BEFORE = {
    f"{how}-{file}": Case(((how, f"{NEWEST}/{file}"),)) for how, file in CHOICE.items()
}
"""From the state before the newest one."""

GOES_ON = {
    "untouched": Case(),
    "cut-metrics": Case((("cut-line", "metrics.jsonl"),)),
    "remove-config": Case((("remove", "config.yaml"),)),
    "garbage-config": Case((("garbage", "config.yaml"),)),
    "garbage-run": Case((("garbage", "run.json"),)),
    "adapter-old": Case((("old", "adapter"),)),
    "adapter-replaced": Case((("replaced", "adapter"),)),
    "tomorrow": Case((("future", NEWEST), ("future", f"{BEFORE}/{TENSORS}"))),
    "clock-back": Case(clock_seconds=-3600.0),
    "clock-ahead": Case(clock_seconds=86_400.0),
}
LOSES_BEST = {
    f"best-{how}": Case(((how, f"adapter/{file}"),))
    for how, file in (("flip", TENSORS), ("garbage", RECORD), ("remove", TENSORS))
}
"""Its adapter cannot be had back; all else is as it was."""

METRICS_LOST = {
    f"metrics-{how}": Case(((how, "metrics.jsonl"),))
    for how in ("cut", "empty", "remove", "lose-lines")
}
"""Records that the state was saved after; --accept metrics goes on without them."""
IS_ACCEPTED = {
    f"accept-{name}": dataclasses.replace(case, accept=("metrics",))
    for name, case in METRICS_LOST.items()
}

IS_REFUSED = {
    **{
        name: (case, ["metrics.jsonl held 14 records when 00000008 was saved", "--accept metrics"])
        for name, case in METRICS_LOST.items()
    },
    "both-cut": (Case(both("cut", TENSORS)), [f"{NEWEST}/{TENSORS}", f"{BEFORE}/{TENSORS}"]),
    "both-flip": (Case(both("flip", RECORD)), [NEWEST, BEFORE]),
    "both-gone": (Case(both("remove", RECORD)), [NEWEST, BEFORE]),
    "metrics-flip": (Case((("garbage-line", "metrics.jsonl"),)), ["metrics.jsonl: line 1"]),
    "other-rows": (Case(overrides=("task.source.files.train=OTHER",)), ["train rows was", "has"]),
    "other-eval-rows": (
        Case(overrides=("task.source.files.validation=OTHER",)),
        ["eval rows was", "--accept eval-rows"],
    ),
    "other-mask": (Case(overrides=("method.seed=3",)), ["method was"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def endings(folder: Path, write_run: Any, colour_rows: Path) -> dict[str, dict[str, Any]]:
    """How each case ended, by its name."""
    train = {"save_every": 2, "evaluate_every": 4}
    method = {"name": "apet", "budget": "20%", "move_every": 3}
    config = write_run(folder / "run", train=train, method=method)
    rows = (colour_rows / "train.jsonl").read_text().splitlines(keepends=True)
    other = folder / "other.jsonl"
    other.write_text("".join(rows[1:] + rows[:1]))
    cases = {
        **GOES_ON_BEFORE,
        **GOES_ON,
        **LOSES_BEST,
        **IS_ACCEPTED,
        **{name: case for name, (case, _) in IS_REFUSED.items()},
    }
    text = json.dumps(
        {
            "folder": str(folder),
            "config": str(config),
            "cases": {name: dataclasses.asdict(case) for name, case in cases.items()},
        }
    )
    run([sys.executable, DAMAGED, text.replace("OTHER", str(other))])
    return json.loads((folder / "out.json").read_text())


def check_goes_on(ending: dict[str, Any], whole: Path, folder: Path) -> None:
    assert ending["faults"] == []
    assert ending["seconds"] < SECONDS
    check_same(whole, folder)
    seconds = [record["seconds"] for record in read_metrics(folder).values()]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("name", GOES_ON_BEFORE)
def test_it_goes_on_from_the_last_whole_state(name: str, endings: Any, folder: Path) -> None:
    check_goes_on(endings[name], folder / "whole", folder / name)
    said = endings[name]["said"]
    assert "00000008" in said and "going on from 00000006" in said


@pytest.mark.parametrize("name", GOES_ON)
def test_it_goes_on_as_if_nothing_had_happened(name: str, endings: Any, folder: Path) -> None:
    check_goes_on(endings[name], folder / "whole", folder / name)
    assert "going on from 00000006" not in endings[name]["said"]


@pytest.mark.parametrize("name", LOSES_BEST)
def test_without_its_best_adapter_it_chooses_anew(name: str, endings: Any, folder: Path) -> None:
    ending = endings[name]
    assert ending["faults"] == []
    assert "the best adapter is chosen anew" in ending["said"]
    assert read_losses(folder / name) == read_losses(folder / "whole")
    _, record = read_folder(folder / name / "adapter")
    assert record["num_steps"] >= 8
    evaluated = read_metrics(folder / name)["eval", record["num_steps"]]
    assert record["metrics"]["eval/accuracy"] == evaluated["eval/accuracy"]


@pytest.mark.parametrize("name", IS_ACCEPTED)
def test_lost_records_are_accepted_where_the_user_says_so(
    name: str, endings: Any, folder: Path
) -> None:
    assert endings[name]["faults"] == []
    records = read_metrics(folder / name)
    assert records["accept", 8]["metrics"].startswith("was 14 records, is ")
    assert ("train", 12) in records
    assert (folder / name / "result.json").exists()


@pytest.mark.parametrize("died", ["old", "replaced"])
def test_what_a_process_was_replacing_when_it_died_answers(
    died: str, endings: Any, folder: Path
) -> None:
    damage(folder / "whole" / "adapter", died)
    try:
        shown = read_table(run([*SCALEPET, "evaluate", folder / "whole"]))
    finally:
        moved = folder / "whole" / "adapter.old" if died == "old" else None
        (moved or folder / "whole" / ".scalepet-of-the-dead" / "adapter.old").rename(
            folder / "whole" / "adapter"
        )
        (folder / "whole" / "run.lock").unlink(missing_ok=True)
    _, record = read_folder(folder / "whole" / "adapter")
    assert shown["accuracy"] == pytest.approx(record["metrics"]["eval/accuracy"], abs=1e-4)


@pytest.mark.parametrize("name", IS_REFUSED)
def test_it_is_refused(name: str, endings: Any, folder: Path) -> None:
    faults = "\n".join(endings[name]["faults"])
    assert faults, "it was taken"
    for part in IS_REFUSED[name][1]:
        assert part in faults
    assert not (folder / name / "result.json").exists()


@pytest.mark.parametrize("seed", range(8))
def test_every_flipped_bit_of_a_state_is_seen(seed: int, endings: Any, folder: Path) -> None:
    chance = random.Random(seed)
    for name in (TENSORS, RECORD):
        path = folder / "whole" / "adapter" / name
        bit = chance.randrange(8 * path.stat().st_size)
        flip(path, bit=bit)
        try:
            with pytest.raises(CheckpointError, match=str(path.parent)):
                read_folder(path.parent)
        finally:
            flip(path, bit=bit)
    read_folder(folder / "whole" / "adapter")


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize("how", HOWS)
def test_a_damaged_adapter_answers_nothing(
    command: str, how: str, endings: Any, folder: Path
) -> None:
    path = folder / "whole" / "adapter" / CHOICE[how]
    content = path.read_bytes()
    damage(path, how)
    try:
        more = ["--text", "a"] if command == "predict" else []
        ended = run_here(command, str(folder / "whole"), *more)
    finally:
        path.write_bytes(content)
    assert (ended.code, ended.out) == (2, "")
    (fault,) = ended.faults
    assert str(path.parent) in fault
