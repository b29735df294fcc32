"""The last states of a run: written beside it, read back from the newest whole one."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scalepet.engine import States, newest_state, states
from scalepet.errors import CheckpointError


class OneTensor:
    """What ``States`` asks of an engine."""

    def __init__(self) -> None:
        self.weight = torch.zeros(3)

    def read_trained(self) -> dict[str, Tensor]:
        return {"w": self.weight.clone()}

    def read_optimizer(self) -> dict[str, Tensor]:
        return {f"w/{name}": self.weight.clone() for name in ("exp_avg", "exp_avg_sq")}

    def read_adam_steps(self) -> dict[str, int]:
        return {"w": int(self.weight[0])}

    def read_loss_scaler(self) -> dict[str, float]:
        return {}


def save(kept: States, num_steps: int, engine: OneTensor | None = None) -> states.SaveReport:
    engine = engine or OneTensor()
    engine.weight.fill_(num_steps)
    return kept.save(
        num_steps,
        engine,  # type: ignore[arg-type]
        progress={"num_steps": num_steps},
        fingerprint={"rows": "a"},
        fixed=lambda: {"positions": torch.arange(4)},
    )


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "states"


@pytest.fixture
def four(folder: Path) -> Path:
    """The folder with states after 4, 8 and 12 steps."""
    with States(folder, keep=3) as kept:
        for num_steps in (4, 8, 12):
            save(kept, num_steps)
    return folder


def flip_a_number(state: Path) -> None:
    path = state / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def flip_the_progress(state: Path) -> None:
    path = state / "scalepet.json"
    path.write_text(path.read_text().replace('"num_steps": 12', '"num_steps": 13'))


def cut(state: Path) -> None:
    os.truncate(state / "tensors.safetensors", 40)


def empty(state: Path) -> None:
    (state / "scalepet.json").write_bytes(b"")


def half_written(state: Path) -> None:
    (state / "tensors.safetensors").unlink()


class TestWhatStays:
    def test_the_last_ones(self, folder: Path) -> None:
        with States(folder, keep=2) as kept:
            for num_steps in (3, 5, 100_000_000, 100_000_001):
                save(kept, num_steps)
        assert names(folder) == ["100000000", "100000001"]
        state, faults = newest_state(folder)
        assert state is not None and not faults
        assert state.progress == {"num_steps": 100_000_001}
        assert torch.equal(state.trained["w"], torch.full((3,), 100_000_001.0))

    def test_what_is_not_a_state_is_left_alone(self, four: Path) -> None:
        """A state has a state's name, and a record."""
        shutil.copytree(four / "00000008", four / "00000008.before-i-change-the-rate")
        (four / "2026").mkdir()
        (four / "2026" / "notes.txt").write_text("of the user")
        (four / "00000002").mkdir()
        (four / "00000002" / "notes.txt").write_text("of the user")
        (four / "5").write_text("of the user")
        (four / "00000003").write_text("of the user")
        (four / "00000008").rename(four / "00000008.old")  # 0.1 died while it replaced it
        with States(four, keep=2) as kept:
            save(kept, 16)
        users = ["00000002", "00000003", "00000008.before-i-change-the-rate", "2026", "5"]
        assert names(four) == sorted(["00000012", "00000016", *users])

    def test_what_cannot_be_cleared_now_is_cleared_with_the_next_state(
        self, four: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def busy(*_: object, **__: object) -> None:
            raise OSError(errno.EBUSY, "Device or resource busy")

        with States(four, keep=1) as kept:
            with monkeypatch.context() as patch:
                patch.setattr(states, "discard", busy)
                save(kept, 16)
                kept.finish()
            assert names(four)[-2:] == ["00000012", "00000016"]
            save(kept, 20)
        assert names(four) == ["00000020"]

    def test_later_states_than_the_one_gone_on_from_do_not_outlive_it(self, four: Path) -> None:
        flip_a_number(four / "00000012")
        with States(four, keep=2) as kept:
            save(kept, 10)
        assert names(four) == ["00000008", "00000010"]

    def test_nothing_was_saved(self, folder: Path) -> None:
        assert newest_state(folder) == (None, [])
        (folder / "00000004.new").mkdir(parents=True)
        assert newest_state(folder) == (None, [])


class TestDamage:
    @pytest.mark.parametrize("damage", [flip_a_number, flip_the_progress, cut, empty, half_written])
    def test_the_one_before_is_gone_on_from(
        self, damage: Callable[[Path], None], four: Path
    ) -> None:
        damage(four / "00000012")
        state, faults = newest_state(four)
        assert state is not None and state.progress == {"num_steps": 8}
        assert len(faults) == 1 and "00000012" in faults[0]

    def test_none_is_whole(self, four: Path) -> None:
        for name, damage in zip(names(four), (cut, empty, half_written), strict=True):
            damage(four / name)
        with pytest.raises(CheckpointError) as caught:
            newest_state(four)
        assert len(caught.value.faults) == 4
        for name, fault in zip(reversed(names(four)), caught.value.faults, strict=False):
            assert name in fault
        assert "no state is whole" in caught.value.faults[-1]

    def test_one_that_was_being_rewritten_is_read_as_it_was(self, four: Path) -> None:
        (four / "00000012").rename(four / "00000012.old")
        state, faults = newest_state(four)
        assert state is not None and state.progress == {"num_steps": 12} and not faults


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Nothing gets written before this is set."""
    gate, write = threading.Event(), states.write_folder

    def write_late(*arguments: Any, **options: Any) -> None:
        gate.wait(20)
        write(*arguments, **options)

    monkeypatch.setattr(states, "write_folder", write_late)
    yield gate
    gate.set()


class TestWriting:
    def test_the_run_goes_on_while_a_state_is_written(
        self, folder: Path, slow_disk: threading.Event
    ) -> None:
        engine = OneTensor()
        with States(folder, keep=2) as kept:
            report = save(kept, 4, engine)
            assert report.stall_seconds < 2 and not folder.exists()
            engine.weight.fill_(-1)  # the next step
            kept.check()
            slow_disk.set()
        state, _ = newest_state(folder)
        assert state is not None and torch.equal(state.trained["w"], torch.full((3,), 4.0))
        assert report.state_bytes > 3 * 3 * 4

    def test_a_second_save_waits_for_the_first_and_counts_the_wait(
        self, folder: Path, slow_disk: threading.Event
    ) -> None:
        with States(folder, keep=2) as kept:
            save(kept, 4)
            threading.Timer(0.4, slow_disk.set).start()
            report = save(kept, 8)
        assert 0.3 < report.wait_seconds <= report.stall_seconds
        assert names(folder) == ["00000004", "00000008"]

    def test_an_exception_waits_for_the_writer_too(
        self, folder: Path, slow_disk: threading.Event
    ) -> None:
        with pytest.raises(KeyError), States(folder, keep=2) as kept:
            save(kept, 4)
            threading.Timer(0.2, slow_disk.set).start()
            raise KeyError("of the run")
        assert names(folder) == ["00000004"]
        assert not [t for t in threading.enumerate() if t.name.startswith("states")]

    @pytest.mark.parametrize("ending", ["save", "check", "finish", "leave"])
    def test_a_full_disk_is_told_at_the_next_occasion_and_the_state_before_stays(
        self, ending: str, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        told = pytest.raises(CheckpointError, match="00000008 cannot be written.*No space left")
        with told, States(folder, keep=2) as kept:
            save(kept, 4)
            kept.finish()
            monkeypatch.setattr(os, "fsync", full)
            save(kept, 8)
            deadline = time.monotonic() + 10
            while ending == "check" and time.monotonic() < deadline:
                kept.check()
                time.sleep(0.01)
            if ending == "save":
                save(kept, 12)
            elif ending == "finish":
                kept.finish()
        assert names(folder) == ["00000004"]
        state, faults = newest_state(folder)
        assert state is not None and not faults

    def test_nothing_is_written_where_the_folder_is_of_another_run(self, folder: Path) -> None:
        def gone() -> None:
            raise CheckpointError("of another process now")

        told = pytest.raises(CheckpointError, match="of another process now")
        with told, States(folder, keep=2, guard=gone) as kept:
            save(kept, 4)
        assert not folder.exists()
