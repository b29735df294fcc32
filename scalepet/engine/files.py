"""Folders of tensors and a record, which know whether they are as they were written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
from torch import Tensor

from scalepet.errors import CheckpointError
from scalepet.files import replace_folder, whole_folder
from scalepet.reading import MAX_RECORD_BYTES, open_file, parse_json

TENSORS_FILE = "tensors.safetensors"
RECORD_FILE = "scalepet.json"

_OWN = "record_checksum"
"""Of the record itself, as it is without this entry."""

_DIGEST_BYTES = 16
_NOT_OURS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What comes of a record that is another JSON, or none."""

_READS = 5
_SECONDS_BETWEEN_READS = 0.02
"""A folder that is replaced is gone for a moment."""


def write_folder(
    folder: Path,
    *,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    texts: Mapping[str, str] | None = None,
    workplace: Path | None = None,
) -> None:
    """Write tensors (safetensors) and a JSON record with the checksums of both, in place of what is
    there.

    Args:
        workplace: as for ``replace_file``.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written; the old one is still
            there.
    """
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def fill(fresh: Path) -> None:
        try:
            safetensors.torch.save_file(whole, fresh / TENSORS_FILE)
        except safetensors.SafetensorError as error:
            raise _as_of_the_system(error) from error
        full_record = {**record, "checksum": _checksum(fresh / TENSORS_FILE)}
        full_record[_OWN] = _digest_of(full_record)
        (fresh / RECORD_FILE).write_text(_as_text(full_record), encoding="utf-8")
        for name, text in (texts or {}).items():
            (fresh / name).write_text(text, encoding="utf-8")

    replace_folder(folder, fill, workplace=workplace)


def read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``write_folder`` wrote: (tensors on the CPU, record), both of one write where another
    process writes meanwhile.

    Raises:
        CheckpointError: something is missing, cut, altered or not ours.
    """
    for _ in range(_READS - 1):
        try:
            return _read(whole_folder(folder))
        except FileNotFoundError:
            time.sleep(_SECONDS_BETWEEN_READS)
    try:
        return _read(whole_folder(folder))
    except FileNotFoundError as error:
        missing = error.filename if folder.exists() else folder / RECORD_FILE
        raise CheckpointError(f"{folder} holds no saved state: {missing} is missing") from error


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """
    Raises:
        FileNotFoundError: a file is missing, or the folder is.
        CheckpointError: as ``read_folder``.
    """
    try:
        with _opened(folder) as (tensors, text):
            record = parse_json(text.read(MAX_RECORD_BYTES))
            own = record.pop(_OWN)
            _compare(folder / RECORD_FILE, _digest_of(record), recorded=own)
            _compare(folder / TENSORS_FILE, _checksum_of(tensors), recorded=record["checksum"])
            # By its descriptor: the name may be that of another file by now.
            return safetensors.torch.load_file(f"/dev/fd/{tensors.fileno()}"), record
    except FileNotFoundError:
        raise
    except (*_NOT_OURS, OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error!r}") from error


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The two files of one folder, whatever gets its name meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def open_inside(name: str) -> BinaryIO:
        try:
            return open_file(name, folder=descriptor)
        except OSError as error:
            error.filename = str(folder / name)
            raise

    try:
        with open_inside(RECORD_FILE) as record, open_inside(TENSORS_FILE) as tensors:
            yield tensors, record
    finally:
        os.close(descriptor)


def _as_of_the_system(error: safetensors.SafetensorError) -> OSError:
    """safetensors tells the number of a failure in its words only."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]) if number else 0, str(error))


def _compare(path: Path, found: str, *, recorded: Any) -> None:
    if found != recorded:
        raise CheckpointError(
            f"{path} is not as it was written: checksum {found}, recorded {recorded}"
        )


def _as_text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=2) + "\n"


def _digest_of(record: Mapping[str, Any]) -> str:
    return hashlib.blake2b(_as_text(record).encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return _checksum_of(file)


def _checksum_of(file: BinaryIO) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()
