"""Files known by their content, which is read once and remembered for as long as nothing touches
them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

from scalepet.data.local_files import unreadable
from scalepet.errors import ConfigError
from scalepet.reading import open_file, parse_json, read_bytes

MEMORY = "known.json"
"""The file of the cache folder that remembers: name of what the file system says -> name of what
the files hold."""

MAX_REMEMBERED = 10_000
SETTLED_NS = 2 * 10**9
"""Younger files may change again within one tick of their file system's clock, unnoticed."""

_PIECE = 2**20
_NUM_THREADS, _NUM_FILES = 8, 1000


def cache_folder() -> Path:
    """Where prepared rows lie, beside the cache of datasets."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "scalepet"


def content_name(files: Sequence[str | Path]) -> str:
    """32 hex digits that name what these files hold, in their order: BLAKE2b over the digests of
    their bytes.

    A look at inode, size and times of each tells whether it is what it was when its bytes were
    read; no time stamp alone does, since ``tar``, ``rsync -t`` and ``cp -p`` set them.

    Raises:
        DataError: a file cannot be read.
    """
    return remembered([os.fspath(file) for file in files], lambda: _digests(files))


def remembered(
    files: Sequence[str], digests: Callable[[], Iterable[bytes]], *, besides: bytes = b""
) -> str:
    """The name of what ``digests`` gives, which is not asked for again while the files stay as they
    are.

    Args:
        besides: what else it depends on.
    """
    stated, newest = _stated(files, besides)
    memory = cache_folder() / MEMORY
    known = _read(memory)
    if stated not in known:
        found = blake2b(b"".join(digests()), digest_size=16).hexdigest()
        if time.time_ns() - newest < SETTLED_NS or _stated(files, besides)[0] != stated:
            return found
        known = {**_read(memory), stated: found}
        _write(memory, dict(list(known.items())[-MAX_REMEMBERED:]))
    return known[stated]


def _stated(files: Sequence[str], besides: bytes) -> tuple[str, int]:
    """The name of what the file system says of the files, and the time of the last change."""
    seen, newest = blake2b(besides, digest_size=16), 0
    for file in files:
        try:
            status = os.stat(file)
        except OSError as error:
            raise unreadable(file, error) from error
        changed = (status.st_mtime_ns, status.st_ctime_ns)
        seen.update(repr((status.st_dev, status.st_ino, status.st_size, *changed)).encode())
        newest = max(newest, *changed)
    return seen.hexdigest(), newest


def _digests(files: Sequence[str | Path]) -> Iterable[bytes]:
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        for start in range(0, len(files), _NUM_FILES):  # map takes all that it gets at once
            yield from threads.map(_digest, files[start : start + _NUM_FILES])


def _digest(file: str | Path) -> bytes:
    digest = blake2b(digest_size=16)
    try:
        with open_file(file) as opened:
            while piece := opened.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise unreadable(str(file), error) from error
    return digest.digest()


def _read(memory: Path) -> dict[str, str]:
    """Nothing where it is gone or broken: then the files are read again."""
    try:
        known = parse_json(read_bytes(memory))
    except (OSError, ValueError):
        return {}
    is_memory = isinstance(known, dict) and all(isinstance(one, str) for one in known.values())
    return known if is_memory else {}


def _write(memory: Path, known: dict[str, str]) -> None:
    """Whole or not at all. What another process remembers at the same time may be lost, which costs
    a look at its files.
    """
    draft = memory.with_name(f"{memory.name}.{uuid.uuid4().hex}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(known), encoding="utf-8")
        draft.replace(memory)
    except OSError:  # a memory that cannot be kept makes nothing wrong
        with contextlib.suppress(OSError):
            draft.unlink()


def unwritable(folder: Path, error: OSError) -> ConfigError:
    """The refusal of a cache folder."""
    return ConfigError(
        f"{str(folder)!r} cannot be written ({error.strerror}); it is where prepared rows are kept;"
        " allowed: a folder that can be, by HF_DATASETS_CACHE or HF_HOME"
    )
