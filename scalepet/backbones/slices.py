"""Weight files as places to read from: any part of any tensor, and nothing else."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from scalepet.errors import ConfigError
from scalepet.reading import open_file, parse_json

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_NOT_OURS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What comes of a header that is another JSON, or none."""

_LENGTH_BYTES = 8
"""The size of a safetensors header stands in front of it."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies.

    Attributes:
        start: byte of the file at which its first number begins.
    """

    file: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass
class WeightFiles:
    """Safetensors files of one checkpoint, of which only the headers are read beforehand.

    Attributes:
        num_bytes: read of tensors so far.
    """

    places: dict[str, _Place]
    num_bytes: int = field(default=0, init=False)

    @classmethod
    def open(cls, files: Sequence[Path]) -> WeightFiles:
        """Raises ConfigError where a file is cut or no safetensors file."""
        places: dict[str, _Place] = {}
        for file in files:
            try:
                places.update(_places_in(file))
            except (OSError, *_NOT_OURS) as error:
                raise ConfigError(f"backbone.path: {file} cannot be read ({error!r})") from error
        return cls(places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.places[name].shape

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The numbers ``start`` to ``stop`` of the flat tensor, (stop - start,) in the file's
        dtype.

        Raises:
            ConfigError: the file ends before them.
        """
        place = self.places[name]
        size = place.dtype.itemsize
        wanted = (stop - start) * size
        with place.file.open("rb", buffering=0) as file:
            data = bytearray(wanted)
            file.seek(place.start + start * size)
            found = _read_into(file.fileno(), data)
        if found != wanted:
            raise ConfigError(f"backbone.path: {place.file} ends in the middle of {name}")
        self.num_bytes += wanted
        if not wanted:
            return torch.empty(0, dtype=place.dtype)
        return torch.frombuffer(data, dtype=place.dtype)


def _read_into(descriptor: int, data: bytearray) -> int:
    """A system call reads 2 GiB at most."""
    view, found = memoryview(data), 0
    while found < len(data):
        count = os.readv(descriptor, [view[found : found + 2**30]])
        if not count:
            break
        found += count
    return found


def _places_in(file: Path) -> dict[str, _Place]:
    """safetensors: 8 bytes of length, a JSON header, then the numbers."""
    with open_file(file) as opened:
        length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        size = file.stat().st_size
        if length > size:
            raise ValueError(f"its header of {length:,} bytes is longer than the file")
        header = parse_json(opened.read(length))
    header.pop("__metadata__", None)
    places = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            continue  # whole numbers and booleans are no weights
        begin, end = entry["data_offsets"]
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        if any(type(number) is not int or number < 0 for number in (begin, end, *shape)):
            raise ValueError(f"{name} of shape {shape} lies at {begin!r} to {end!r}")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} of shape {shape} has {end - begin:,} bytes")
        if _LENGTH_BYTES + length + end > size:
            raise ValueError(f"it ends before {name} does")
        places[name] = _Place(file, _LENGTH_BYTES + length + begin, dtype, shape)
    return places
