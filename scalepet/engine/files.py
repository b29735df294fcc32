"""Folders that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from scalepet.errors import CheckpointError

TENSORS_FILE = "tensors.safetensors"
RECORD_FILE = "scalepet.json"

_OWN = "record_checksum"
"""Of the record itself, as it is without this entry."""

_DIGEST_BYTES = 16
_NOT_OURS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What comes of a record that is another JSON, or none."""


def write_folder(
    folder: Path,
    *,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write tensors (safetensors) and a JSON record with the checksums of both, in place of what is
    there.

    All is written beside and renamed, so that a run that dies while saving leaves the old folder or
    the new one.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written; the old one is still
            there.
    """
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    try:
        _clear(new)
        new.mkdir(parents=True)
        safetensors.torch.save_file(
            {n: t.contiguous() for n, t in tensors.items()}, new / TENSORS_FILE
        )
        full_record = {**record, "checksum": _checksum(new / TENSORS_FILE)}
        full_record[_OWN] = _digest_of(full_record)
        (new / RECORD_FILE).write_text(_as_text(full_record), encoding="utf-8")
        for name, text in (texts or {}).items():
            (new / name).write_text(text, encoding="utf-8")
        for path in (*new.iterdir(), new):
            _sync(path)
        if folder.exists():  # else the old folder is all there is
            _clear(old)
            folder.rename(old)
        new.rename(folder)
        _sync(folder.parent)
        _clear(old)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)  # half of it would go on filling a full disk
        raise CheckpointError(
            f"{folder} cannot be written: {error}; what was there before is kept"
        ) from error


def read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``write_folder`` wrote: (tensors on the CPU, record).

    Raises:
        CheckpointError: something is missing, cut, altered or not ours.
    """
    if not folder.exists() and folder.with_name(folder.name + ".old").exists():
        folder = folder.with_name(folder.name + ".old")  # the run died between the two renames
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        own = record.pop(_OWN)
        _compare(folder / RECORD_FILE, _digest_of(record), recorded=own)
        _compare(
            folder / TENSORS_FILE,
            _checksum(folder / TENSORS_FILE),
            recorded=record["checksum"],
        )
        return safetensors.torch.load_file(folder / TENSORS_FILE), record
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} holds no saved state: {error.filename} is missing"
        ) from error
    except (*_NOT_OURS, OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error!r}") from error


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
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync(path: Path) -> None:
    """Force a file or folder to the disk: a rename is only as good as what lies behind it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
