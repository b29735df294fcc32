"""Files that come from elsewhere, opened as files alone and read within limits."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml

MAX_RECORD_BYTES = 64 * 2**20
"""Of a file that is read as a whole: a record, a config, an index."""

MAX_DEPTH = 100
"""Lists and mappings inside each other."""

MAX_CHARACTERS = 2**20
"""Of a YAML text."""

MAX_VALUES = 100_000
"""Of a YAML text, with what aliases and merged keys repeat: nine lines can stand for a billion."""

_NOT_YET = -1
_KINDS = (
    (stat.S_ISFIFO, "a fifo"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_LFS = b"version https://git-lfs.github.com/spec/"
_KERNEL = ("/proc", "/sys")
"""What lies there looks like a file and is a process, a device or a secret."""


def open_file(path: str | Path, *, folder: int | None = None) -> BinaryIO:
    """A regular file, opened to be read; links are followed.

    Args:
        folder: the descriptor of the one that the path starts from; None: the current one.

    Raises:
        OSError: it cannot be opened, or is a folder, a fifo, a socket, a device or a part of
            /proc or /sys (nothing waits for another process here), or stands for a file that Git
            LFS has not fetched.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        _check_kind(os.fstat(descriptor), path)
        if os.pread(descriptor, len(_LFS), 0) == _LFS:
            words = "it is a pointer of Git LFS, for which git lfs pull fetches the file"
            raise OSError(errno.EINVAL, words, str(path))
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def check_file(path: str | Path) -> None:
    """Raises OSError as ``open_file``; for a library that opens the file by its name."""
    open_file(path).close()


def read_bytes(path: str | Path, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
    """All of a file.

    Raises:
        OSError: as ``open_file``, or it is larger than ``max_bytes``.
    """
    with open_file(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(
            errno.EFBIG, f"it is larger than {max_bytes:,} bytes, the most allowed", str(path)
        )
    return content


def read_text(
    path: str | Path, *, max_bytes: int = MAX_RECORD_BYTES, errors: str = "strict"
) -> str:
    """As ``read_bytes``, in UTF-8; ends of lines become ``\\n``.

    Raises:
        OSError: as ``read_bytes``.
        UnicodeDecodeError: it is no UTF-8.
    """
    text = read_bytes(path, max_bytes=max_bytes).decode("utf-8", errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text holds.

    Raises:
        ValueError: it is no JSON, has a number of more digits than Python takes, or is nested
            deeper than ``MAX_DEPTH``.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from error
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, (list, dict))]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        level = [
            inner for one in level for inner in (one if isinstance(one, list) else one.values())
        ]
    return value


def within_limits(text: str, loader: type[Any]) -> Any:
    """The value that a YAML text holds.

    Args:
        loader: one of PyYAML's safe loaders.

    Raises:
        ValueError: in one line, what is wrong and where; also a key that stands twice, an alias
            in its own anchor, and what is beyond the limits.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters; allowed: {MAX_CHARACTERS:,}")
    try:
        reader = loader(text)
        try:
            node = reader.get_single_node()
            if node is None:
                return None
            _num_values(node, {}, depth=0)
            return reader.construct_document(node)
        finally:
            reader.dispose()
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        words = ", ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"{words}{place}") from error
    # The latter ones are slips of PyYAML's own, as for "!!timestamp x".
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _check_kind(status: os.stat_result, path: str | Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    for is_kind, name in _KINDS:
        if is_kind(status.st_mode):
            raise OSError(errno.EINVAL, f"it is {name}, not a file", str(path))
    for root in _KERNEL:
        if os.path.isdir(root) and os.stat(root).st_dev == status.st_dev:
            raise OSError(errno.EINVAL, f"it lies in {root}, which holds no files", str(path))


def _num_values(node: Any, known: dict[Any, int], *, depth: int) -> int:
    """How many values a node stands for, counted once for each alias but looked at once."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested too deep; allowed: {MAX_DEPTH} levels")
    if isinstance(node, yaml.ScalarNode):
        return 1
    if node in known:
        if known[node] == _NOT_YET:
            raise ValueError("circular reference: an alias lies in its own anchor")
        return known[node]
    known[node] = _NOT_YET
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        inner = [one for pair in node.value for one in pair]
    else:
        inner = node.value
    known[node] = 1 + sum(_num_values(one, known, depth=depth + 1) for one in inner)
    if known[node] > MAX_VALUES:
        raise ValueError(f"it holds {known[node]:,} values; allowed: {MAX_VALUES:,}")
    return known[node]


def _check_keys(node: Any) -> None:
    """Raises ConstructorError for keys that stand twice, as they stand: what is merged into a
    mapping may be said again.
    """
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    if len({*keys}) == len(keys):
        return
    twice = sorted({key for key in keys if keys.count(key) > 1})
    raise yaml.constructor.ConstructorError(
        None, None, f"{', '.join(twice)} stands twice", node.start_mark
    )
