"""Folders that are there whole or not at all, whatever happens while one is written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from scalepet import files
from scalepet.engine import read_folder, write_folder
from scalepet.errors import CheckpointError, PassingError

OLD = {"a": torch.arange(6.0), "trained/b": torch.ones(2, 3)}
NEW = {"a": torch.arange(6.0) + 1}


def write(folder: Path, tensors: dict[str, Tensor], **record: Any) -> None:
    write_folder(folder, tensors=tensors, record=record, texts={"README.md": "what this is\n"})


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Another record, with a checksum of its own that is right."""
    text = json.dumps(record, indent=2) + "\n"
    own = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    (folder / "scalepet.json").write_text(json.dumps({**record, "record_checksum": own}))


def read_number(folder: Path) -> int:
    """The number that the record was written with, once its tensors are seen to go with it."""
    tensors, record = read_folder(folder)
    expected = {1: OLD, 2: NEW}[record["number"]]
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    return int(record["number"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that has been written once."""
    path = tmp_path / "run" / "state"
    write(path, OLD, number=1)
    return path


class TestRoundTrip:
    def test_tensors_come_back_bit_for_bit(self, tmp_path: Path) -> None:
        tensors = {
            "trained/encoder.block.0.weight_values": torch.randn(7),
            "bf16": torch.randn(3, 2).to(torch.bfloat16),
            "int64": torch.tensor([[2**53 + 1, -1]]),
            "random/cpu/0": torch.get_rng_state(),
            "scalar": torch.tensor(float("inf")),
            "empty": torch.zeros(0),
            "transposed": torch.arange(6).reshape(2, 3).T,
        }
        write(tmp_path / "x", tensors)
        found, _ = read_folder(tmp_path / "x")
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)

    def test_the_record_comes_back_with_the_checksum_of_the_tensors(self, tmp_path: Path) -> None:
        record = {"progress": {"num_steps": 3, "best_score": None}, "words": ["naïve", "日本"]}
        write(tmp_path / "x", NEW, **record)
        content = (tmp_path / "x" / "tensors.safetensors").read_bytes()
        checksum = hashlib.blake2b(content, digest_size=16).hexdigest()
        assert read_folder(tmp_path / "x")[1] == {**record, "checksum": checksum}
        assert (tmp_path / "x" / "README.md").read_text() == "what this is\n"

    def test_texts_are_not_needed(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "x", tensors={}, record={})
        assert read_folder(tmp_path / "x")[0] == {}

    def test_parents_are_made(self, tmp_path: Path) -> None:
        write(tmp_path / "a" / "b" / "c", NEW, number=2)
        assert read_number(tmp_path / "a" / "b" / "c") == 2

    def test_a_second_write_leaves_nothing_of_the_first(self, folder: Path) -> None:
        (folder / "stray").write_text("x")
        write(folder, NEW, number=2)
        assert read_number(folder) == 2
        assert sorted(path.name for path in folder.iterdir()) == [
            "README.md",
            "scalepet.json",
            "tensors.safetensors",
        ]
        assert os.listdir(folder.parent) == ["state"]


class TestDamage:
    @pytest.mark.parametrize("place", [0, 9, 60, -24, -1])
    def test_a_flipped_byte(self, folder: Path, place: int) -> None:
        path = folder / "tensors.safetensors"
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is not as it was written: checksum") as caught:
            read_folder(folder)
        assert str(path) in str(caught.value)

    def test_a_flipped_bit_anywhere_in_the_tensors_or_the_record(self, tmp_path: Path) -> None:
        """Header, numbers, progress, fingerprint, checksums; whatever is read, is as written."""
        record = {"progress": {"num_steps": 3, "best": 1e-05}, "fingerprint": {"labels": ["naïve"]}}
        write(tmp_path / "x", NEW, **record)
        num_noticed = 0
        for path in (tmp_path / "x" / name for name in ("tensors.safetensors", "scalepet.json")):
            content = path.read_bytes()
            for place in range(len(content)):
                for bit in (0, 5):  # another digit or letter, and the other case
                    flipped = bytearray(content)
                    flipped[place] ^= 1 << bit
                    path.write_bytes(flipped)
                    try:
                        tensors, found = read_folder(tmp_path / "x")
                    except CheckpointError as error:
                        assert str(tmp_path / "x") in str(error)
                        num_noticed += 1
                        continue
                    found.pop("checksum")
                    assert found == record and torch.equal(tensors["a"], NEW["a"])
            path.write_bytes(content)
            assert num_noticed >= 2 * len(content) - 8  # 1E-05 is 1e-05, and \u00EF is \u00ef

    @pytest.mark.parametrize("kept", [0, 7, 100, -1])
    def test_a_cut_file(self, folder: Path, kept: int) -> None:
        path = folder / "tensors.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(CheckpointError, match="is not as it was written"):
            read_folder(folder)

    def test_appended_bytes(self, folder: Path) -> None:
        with (folder / "tensors.safetensors").open("ab") as file:
            file.write(b"\0")
        with pytest.raises(CheckpointError, match="is not as it was written"):
            read_folder(folder)

    @pytest.mark.parametrize("name", ["tensors.safetensors", "scalepet.json"])
    def test_a_missing_file(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match="holds no saved state") as caught:
            read_folder(folder)
        assert str(folder / name) in str(caught.value)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="nowhere holds no saved state"):
            read_folder(tmp_path / "nowhere")

    def test_a_file_in_place_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("x")
        with pytest.raises(CheckpointError, match="x cannot be read"):
            read_folder(tmp_path / "x")

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"\xff", b"[]", b"3", b"null", b'"x"', b"{}", b'{"progress": {}}'],
    )
    def test_a_record_that_is_not_ours(self, folder: Path, content: bytes) -> None:
        (folder / "scalepet.json").write_bytes(content)
        with pytest.raises(CheckpointError, match="state cannot be read"):
            read_folder(folder)

    @pytest.mark.parametrize("checksum", ["", "0" * 32, None, 3])
    def test_a_record_of_other_tensors(self, folder: Path, checksum: Any) -> None:
        write_record(folder, {"number": 1, "checksum": checksum})
        with pytest.raises(CheckpointError, match="is not as it was written"):
            read_folder(folder)

    def test_a_right_checksum_of_no_safetensors(self, folder: Path) -> None:
        content = b"these are no tensors"
        (folder / "tensors.safetensors").write_bytes(content)
        checksum = hashlib.blake2b(content, digest_size=16).hexdigest()
        write_record(folder, {"checksum": checksum})
        with pytest.raises(CheckpointError, match="state cannot be read"):
            read_folder(folder)


class TestFailures:
    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            safetensors.SafetensorError("I/O error: No space left on device (os error 28)"),
            safetensors.SafetensorError("something that the system does not number"),
        ],
    )
    def test_tensors_that_cannot_be_written(
        self, folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(tensors: Any, path: Path) -> None:
            path.write_bytes(b"half of it")
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(safetensors.torch, "save_file", fail)
            with pytest.raises(CheckpointError, match="state cannot be written") as caught:
                write(folder, NEW, number=2)
        assert (getattr(error, "strerror", None) or str(error)) in str(caught.value)
        assert read_number(folder) == 1
        write(folder, NEW, number=2)  # what is left of the failure is no obstacle
        assert read_number(folder) == 2
        assert os.listdir(folder.parent) == ["state"]

    def test_a_place_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(CheckpointError, match="state cannot be written"):
            write(tmp_path / "file" / "state", NEW, number=2)
        assert (tmp_path / "file").read_text() == "x"

    def test_what_lies_beside_is_left_alone(self, folder: Path) -> None:
        """Folders of the user, or of a process that died."""
        for suffix in (".new", ".old"):
            left = folder.with_name(folder.name + suffix)
            left.mkdir()
            (left / "notes.txt").write_text("mine")
        assert read_number(folder) == 1
        write(folder, NEW, number=2)
        assert read_number(folder) == 2
        assert sorted(os.listdir(folder.parent)) == ["state", "state.new", "state.old"]

    def test_everything_is_on_the_disk_before_it_gets_its_name(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        events: list[str] = []
        rename = Path.rename

        def note_rename(path: Path, target: Path) -> Path:
            events.append(f"{path.name} -> {target.name}")
            return rename(path, target)

        monkeypatch.setattr(files, "sync", lambda path: events.append(path.name))
        monkeypatch.setattr(Path, "rename", note_rename)
        write(folder, NEW, number=2)
        synced = {"README.md", "scalepet.json", "tensors.safetensors", "state.new"}
        assert set(events[:4]) == synced
        assert events[4:] == ["state -> state.old", "state.new -> state", "run"]


class Died(BaseException):
    """The process is gone; nothing in it runs any more."""


STEPS = [
    (Path, "mkdir"),
    (Path, "rename"),
    (Path, "unlink"),
    (Path, "write_text"),
    (files.shutil, "rmtree"),
    (files.os, "fsync"),
    (files.tempfile, "mkdtemp"),
    (safetensors.torch, "save_file"),
]
"""All that changes the disk in ``write_folder``."""


def die_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Every change of the disk up to number ``step``, and there the end."""
    count = iter(range(10**6))

    def mortal(change: Callable[..., Any]) -> Callable[..., Any]:
        def change_or_die(*arguments: Any, **options: Any) -> Any:
            if next(count) >= step:
                raise Died
            return change(*arguments, **options)

        return change_or_die

    for owner, name in STEPS:
        patch.setattr(owner, name, mortal(getattr(owner, name)))


def as_it_is(folder: Path) -> None:
    """As after a write that came to its end."""


def only_old(folder: Path) -> None:
    """As after a death between the two renames, in a run of 0.1."""
    folder.rename(folder.with_name("state.old"))


def only_old_in_a_workplace(folder: Path) -> None:
    """As after a death between the two renames."""
    place = folder.with_name(".scalepet-x")
    place.mkdir()
    folder.rename(place / "state.old")


@pytest.mark.parametrize("before", [as_it_is, only_old, only_old_in_a_workplace])
def test_a_death_at_any_point_leaves_the_old_or_the_new(
    folder: Path, before: Callable[[Path], None]
) -> None:
    whole = folder.parent.with_name("whole")
    before(folder)
    folder.parent.rename(whole)
    found = []
    for step in range(100):
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(whole, folder.parent)
        with pytest.MonkeyPatch.context() as patch:
            die_at(step, patch)
            try:
                write(folder, NEW, number=2)
                break
            except Died:
                pass
        found.append(read_number(folder))
        write(folder, NEW, number=2)
        assert read_number(folder) == 2
    else:
        pytest.fail("the write never ends")
    assert len(found) >= 10, "the deaths are not where the disk changes"
    assert found == sorted(found), "the old folder is back after the new one"
    assert found[0] == 1


@pytest.mark.parametrize("died", [only_old, only_old_in_a_workplace])
def test_a_death_between_the_renames_is_read_as_the_old(
    folder: Path, died: Callable[[Path], None]
) -> None:
    died(folder)
    assert not folder.exists()
    assert read_number(folder) == 1


def test_a_failed_second_rename_keeps_the_old(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fail_on_new(path: Path, target: Path) -> Path:
        if path.name == "state.new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_on_new)
    monkeypatch.setattr(files, "SECONDS_BETWEEN_TRIES", (0.0, 0.0))
    with pytest.raises(PassingError, match="what was there before is kept"):
        write(folder, NEW, number=2)
    assert read_number(folder) == 1
    assert os.listdir(folder.parent) == ["state"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EBUSY])
@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir", "save_file"])
def test_a_failure_that_passes_is_tried_again(
    call: str, number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = next(owner for owner, name in STEPS if name == call)
    work, failures = getattr(owner, call), iter([True])

    def fail_once(*arguments: Any, **options: Any) -> Any:
        if next(failures, False):
            if call == "save_file":
                raise safetensors.SafetensorError(f"I/O error: no luck (os error {number})")
            raise OSError(number, "no luck")
        return work(*arguments, **options)

    monkeypatch.setattr(owner, call, fail_once)
    monkeypatch.setattr(files, "SECONDS_BETWEEN_TRIES", (0.0, 0.0))
    write(folder, NEW, number=2)
    assert next(failures, None) is None
    assert read_number(folder) == 2
    assert os.listdir(folder.parent) == ["state"]


def test_a_reader_gets_both_files_of_one_write(folder: Path) -> None:
    """While another process replaces the folder as fast as it can."""
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            write(folder, NEW, number=2)
            write(folder, OLD, number=1)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        found = {read_number(folder) for _ in range(100)}
    finally:
        stop.set()
        writer.join()
    assert found == {1, 2}


def test_a_late_write_of_a_process_that_has_lost_its_workplace_goes_nowhere(tmp_path: Path) -> None:
    """It is stopped before each of its changes in turn, and another one takes the folder over."""
    for step in range(20):
        folder, place = tmp_path / f"{step}" / "state", tmp_path / f"{step}" / ".scalepet-a"
        place.mkdir(parents=True)
        write(folder, OLD, number=1)
        with pytest.MonkeyPatch.context() as patch:
            taken_over = take_over_at(step, folder, place, patch)
            with contextlib.suppress(CheckpointError):
                write_folder(folder, tensors=OLD, record={"number": 1}, workplace=place)
        if not taken_over:
            break
        assert read_number(folder) == 2
    assert step > 8


def take_over_at(step: int, folder: Path, place: Path, patch: pytest.MonkeyPatch) -> list[int]:
    """Before change number ``step`` of the disk the workplace is renamed away, what was being
    replaced is put back, and another folder is written; gives the step once that has happened.
    """
    count, taken_over = iter(range(10**6)), []
    plain_rename = Path.rename

    def late(change: Callable[..., Any]) -> Callable[..., Any]:
        def change_late(*arguments: Any, **options: Any) -> Any:
            if next(count) == step and not taken_over:
                taken_over.append(step)
                plain_rename(place, place.with_name(".scalepet-b"))
                files.put_right(folder)
                write(folder, NEW, number=2)
            return change(*arguments, **options)

        return change_late

    for owner, name in STEPS:
        patch.setattr(owner, name, late(getattr(owner, name)))
    return taken_over


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "scalepet-test", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a disk")
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    folder = small_disk / "state"
    write(folder, OLD, number=1)
    with pytest.raises(CheckpointError, match="[Nn]o space left.*what was there before is kept"):
        write(folder, {"a": torch.zeros(2**19)}, number=2)  # 2 MB of tensors
    assert read_number(folder) == 1
    with pytest.raises(CheckpointError, match="[Nn]o space left.*what was there before is kept"):
        write(folder, NEW, number=2, long="x" * 2**21)  # 2 MB of record
    assert read_number(folder) == 1
    write(folder, NEW, number=2)
    assert read_number(folder) == 2
    assert os.listdir(small_disk) == ["state"]
