"""Files on this machine: found by name or by pattern, opened within limits, known by content."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from scalepet.errors import DataError
from scalepet.paths import expanded
from scalepet.reading import open_file

MAX_LINE = 64 * 2**20
"""Bytes of a line, characters of a field."""

MAX_COLUMNS = 10_000

CONTENT_ERRORS = (OSError, ValueError, EOFError, lzma.LZMAError, zlib.error)
"""What is raised where a file is gone, cut, no UTF-8 or not what its beginning says."""

_COMPRESSED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
"""By how such a file begins."""


def files_at(name: str) -> list[Path]:
    """The file of this name; only where there is none the name is a pattern, and this is what it
    matches, sorted, without folders.
    """
    path = expanded(name)
    if os.path.lexists(path):
        return [Path(path)]
    found = sorted(glob.glob(path, recursive=True))
    return [Path(file) for file in found if not os.path.isdir(file)]


def open_content(file: Path) -> BinaryIO:
    """The bytes of a file, uncompressed where it is compressed by gzip, bzip2 or xz.

    Raises:
        OSError: as ``reading.open_file``.
    """
    opened = open_file(file)
    beginning = opened.read(8)
    opened.seek(0)
    for magic, uncompressed in _COMPRESSED.items():
        if beginning.startswith(magic):
            return io.BufferedReader(uncompressed(opened))
    return opened


def lines_of(file: Path) -> Iterator[str]:
    """The lines of a text in UTF-8 with their ends as they are; without a byte order mark.

    Raises:
        OSError: as ``open_content``.
        ValueError: a line of more than ``MAX_LINE`` bytes, or text that is not UTF-8.
    """
    with open_content(file) as opened:
        encoding = "utf-8-sig"
        while line := opened.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise ValueError(f"a line is longer than {MAX_LINE:,} bytes, the most allowed")
            yield line.decode(encoding)
            encoding = "utf-8"


def unreadable(what: str, error: Exception) -> DataError:
    """The refusal of a file."""
    return DataError(f"{what!r} cannot be read: {reason(error)}; allowed: a whole, valid file")


def reason(error: Exception) -> str:
    """The innermost error in one line; libraries wrap what pandas, arrow and json say."""
    inner: BaseException = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    text = inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner)
    return f"{type(inner).__name__}: {' '.join(text.split())}"
