"""What lies in the files that wandb writes beside a run, read as ``wandb sync`` does."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAGIC, _HEADER_BYTES = b":W&B", 7
_BLOCK_BYTES = 32768
_PART_HEADER = struct.Struct("<IHB")  # checksum, length, type
_WHOLE, _LAST = 1, 4


def read_history(folder: Path, run_id: str) -> Iterator[dict[str, Any]]:
    """The rows of one run as they were logged, over all of its parts; the folder is the run's.

    A process that was killed leaves a file without its last rows.
    """
    from wandb.proto import wandb_internal_pb2

    for path in sorted(folder.glob(f"wandb/*run-*/run-{run_id}.wandb")):
        for content in _messages(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            if record.WhichOneof("record_type") == "history":
                yield {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }


def _messages(content: bytes) -> Iterator[bytes]:
    """The messages of a log in the format of LevelDB: parts that do not cross blocks of 32 KiB,
    each behind its checksum, length and type.
    """
    if not content.startswith(_MAGIC):
        return
    place, message = _HEADER_BYTES, b""
    while place + _PART_HEADER.size <= len(content):
        left = _BLOCK_BYTES - place % _BLOCK_BYTES
        _, length, kind = _PART_HEADER.unpack_from(content, place)
        if left < _PART_HEADER.size or kind == 0:  # padding
            place += left
            continue
        place += _PART_HEADER.size
        if place + length > len(content):
            return
        message += content[place : place + length]
        place += length
        if kind in (_WHOLE, _LAST):
            yield message
            message = b""
