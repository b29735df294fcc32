"""metrics.jsonl: one line of JSON a record, written at once, each step once."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scalepet.errors import CheckpointError
from scalepet.files import make_folder, replace_file, trying_again, unwritable
from scalepet.reading import read_text
from scalepet.tracking.redact import without_secrets

Record = dict[str, Any]
OWN_FIELDS = ("step", "kind", "seconds")


class Seen(NamedTuple):
    """The records of a file up to one of them: their number, and a digest of them."""

    num_records: int
    digest: str


class JsonlTracker:
    """Appends records to a file so that a killed run loses none that it logged.

    What was logged of a step stays: a record of a kind that has that step or a later one is what a
    resumed run makes again, and is left out.

    A line is ``{"step": 20, "kind": "train", "seconds": 3.21, "loss": 0.71, ...}``. ``seconds``
    counts the working time of the run up to the record, over all its resumes. What is not a finite
    number is written as ``NaN`` or ``Infinity``, which Python's json reads back.

    A record that the disk does not take now is written with the next one; ``check`` tells of it
    where all ranks can hear it.

    Args:
        path: the file; it and its folder are made when missing, records in it are kept.
        workplace: as for ``replace_file``.

    Raises:
        CheckpointError: if the file cannot be written, or holds a line that is no record; a
            half-written last line is what a kill leaves, and is dropped.
    """

    def __init__(self, path: Path, *, workplace: Path | None = None) -> None:
        self.path = path
        self._workplace = workplace
        self._unwritten = b""
        self._fault: OSError | None = None
        self._continue_after(read_records(path) if path.exists() else [])

    def log(self, step: int, values: Mapping[str, float | int | str], *, kind: str) -> None:
        """Appends one record; ``values`` may not name step, kind or seconds, which are added."""
        assert not values.keys() & set(OWN_FIELDS), f"{OWN_FIELDS} are the tracker's: {values}"
        if step <= self._last_steps.get(kind, -1):
            return
        self._last_steps[kind] = step
        seconds = round(time.monotonic() - self._start_seconds, 3)
        self._write({"step": step, "kind": kind, "seconds": seconds, **without_secrets(values)})

    def truncate_after(self, step: int) -> None:
        """Drops the records of later steps, which a resumed run makes again."""
        self._file.close()
        self._continue_after([r for r in read_records(self.path) if r["step"] <= step])

    def check(self) -> None:
        """
        Raises:
            CheckpointError: some records are not in the file yet, and why.
        """
        if self._fault is not None:
            raise unwritable(self.path, self._fault) from self._fault

    def sync(self) -> None:
        """Returns once every record is on the disk.

        Raises:
            CheckpointError: one cannot be written.
        """
        self._flush()
        self.check()
        try:
            trying_again(lambda: os.fsync(self._file.fileno()))
        except OSError as error:
            raise unwritable(self.path, error) from error

    @property
    def seen(self) -> Seen:
        """What was logged so far."""
        return Seen(self._num_records, self._digest.hexdigest())

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _continue_after(self, records: list[Record]) -> None:
        """Leaves these records in the file, whole at any moment, and goes on behind them."""
        try:
            make_folder(self.path.parent)
            replace_file(self.path, b"".join(map(_line, records)), workplace=self._workplace)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._num_records, self._digest = len(records), _digest_of(records)
        self._last_steps = {record["kind"]: record["step"] for record in records}
        self._start_seconds = time.monotonic() - (records[-1]["seconds"] if records else 0.0)

    def _write(self, record: Record) -> None:
        line = _line(record)
        self._num_records += 1
        self._digest.update(line)
        self._unwritten += line
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
            self._fault = None
        except OSError as error:
            self._fault = error


MAX_BYTES = 2**31
"""Of a metrics.jsonl, which is read as a whole."""


def read_records(path: Path) -> list[Record]:
    """The records of a metrics.jsonl in the order they were logged.

    A last line without its newline was cut off by a kill and does not count.

    Raises:
        CheckpointError: if the file is missing, or other lines are no records: all are listed.
    """
    try:
        lines = read_text(path, max_bytes=MAX_BYTES, errors="replace").split("\n")[:-1]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    records = [_parsed(line) for line in lines]
    faults = [
        f"{path}: line {number} is no record with step, kind and seconds: {line[:80]!r}"
        for number, (line, record) in enumerate(zip(lines, records, strict=True), start=1)
        if record is None
    ]
    if faults:
        raise CheckpointError(faults)
    return [record for record in records if record is not None]


def first_records(path: Path, num_records: int) -> Seen:
    """What ``JsonlTracker.seen`` was after so many records; of fewer, if the file holds fewer or is
    not there.

    Raises:
        CheckpointError: as ``read_records``.
    """
    records = read_records(path)[:num_records] if path.exists() else []
    return Seen(len(records), _digest_of(records).hexdigest())


def _digest_of(records: Iterable[Record]) -> hashlib.blake2b:
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(_line(record))
    return digest


def _line(record: Record) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def _parsed(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    types = zip(OWN_FIELDS, (int, str, int | float), strict=True)
    return record if all(isinstance(record.get(field), kind) for field, kind in types) else None
