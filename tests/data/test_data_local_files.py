"""Local files: a name is a name before it is a pattern, and rows are known by what files hold."""

from __future__ import annotations

import errno
import gzip
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalepet.data import Source, load_split, missing_files
from scalepet.data import known as module
from scalepet.data.known import MAX_REMEMBERED, MEMORY, cache_folder, content_name
from scalepet.errors import ConfigError, DataError

ODD_FOLDERS = ("exp[1]", "a*b", "what?", "{x,y}", "a b", "a#b", "a%20b", "zip::c", "[!a]", "~x")


def write_rows(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def texts(name: str | Path | list[str]) -> list[str]:
    given = name if isinstance(name, list) else str(name)
    return load_split(Source("json", files={"train": given}), "train")[0:100]["text"]


@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_a_path_that_exists_is_a_path(name: str, tmp_path: Path) -> None:
    for other in ("exp1", "aXb", "whatX", "x", "a", "!", "c"):
        write_rows(tmp_path / other / "rows.jsonl", "another")
    assert texts(write_rows(tmp_path / name / "rows.jsonl", "mine")) == ["mine"]
    assert texts(write_rows(tmp_path / "plain" / f"{name}.jsonl", "too")) == ["too"]


@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_a_folder_that_exists_is_a_folder(name: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "exp1" / "train.jsonl", "another")
    write_rows(tmp_path / name / "train.jsonl", "mine")
    assert load_split(Source(str(tmp_path / name)), "train")[0:9]["text"] == ["mine"]


def test_only_else_it_is_a_pattern(tmp_path: Path) -> None:
    for name in ("b", "a", "c/d"):
        write_rows(tmp_path / f"{name}.jsonl", name)
    (tmp_path / "e.jsonl").mkdir()
    assert texts(tmp_path / "*.jsonl") == ["a", "b"]
    assert texts(tmp_path / "**" / "*.jsonl") == ["a", "b", "c/d"]
    source = Source("json", files={"train": str(tmp_path / "[x].jsonl")})
    assert "does not exist" in missing_files(source)[0]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", "x")
    with pytest.raises(ConfigError, match=r"a\.jsonl' is a file; allowed: a local folder, or path"):
        load_split(Source(str(file)), "train")


def make_fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_fifo, "it is a fifo"),
        (lambda path: Path("/dev/zero"), "it is a device"),
        (lambda path: Path("/proc/self/environ"), "it lies in /proc"),
        (lambda path: Path("/proc/self/cmdline"), "it lies in /proc"),
    ],
)
@pytest.mark.parametrize("by_link", [False, True])
@pytest.mark.parametrize("file_format", ["csv", "json", "parquet"])
def test_what_is_no_file_is_refused_at_once(
    make: Callable[[Path], Path], words: str, by_link: bool, file_format: str, tmp_path: Path
) -> None:
    path = make(tmp_path / "fifo")
    if by_link:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    with pytest.raises(DataError, match=words):
        load_split(Source(file_format, files={"train": str(path)}), "train")


@pytest.mark.parametrize("file_format", ["csv", "json", "parquet"])
def test_rows_are_those_of_the_file_whatever_its_time_says(
    file_format: str, tmp_path: Path
) -> None:
    """As after tar, rsync -t or cp -p; also behind a pattern, in a folder and with a new inode."""
    from datasets import Dataset

    def write(path: Path, text: str) -> None:
        table = Dataset.from_dict({"text": [text]})
        {"csv": table.to_csv, "json": table.to_json, "parquet": table.to_parquet}[file_format](path)
        os.utime(path, ns=(10**18, 10**18))

    path = tmp_path / f"train.{file_format}"
    sources = [
        Source(file_format, files={"train": str(path)}),
        Source(file_format, files={"train": str(tmp_path / "tr*")}),
        Source(str(tmp_path)),
    ]
    for text in ("old", "new", "own"):
        write(path, text)
        assert [load_split(source, "train")[0:1]["text"] for source in sources] == [[text]] * 3
    write(tmp_path / f"train.{file_format}.moved", "mov")
    (tmp_path / f"train.{file_format}.moved").rename(path)
    assert load_split(sources[0], "train")[0:1]["text"] == ["mov"]


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are old enough to be remembered at once."""
    monkeypatch.setattr(module, "SETTLED_NS", 0)


@pytest.fixture
def num_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    digest = module._digest
    monkeypatch.setattr(module, "_digest", lambda file: read.append(str(file)) or digest(file))
    return read


class TestMemory:
    def test_a_file_is_read_once(self, settled: None, num_read: list[str], tmp_path: Path) -> None:
        file = write_rows(tmp_path / "a.jsonl", "x")
        first = content_name([file])
        assert [content_name([file]) for _ in range(3)] == [first] * 3
        assert num_read == [str(file)]
        write_rows(file, "y")
        assert content_name([file]) != first
        assert len(num_read) == 2

    def test_a_young_file_is_not_remembered(self, num_read: list[str], tmp_path: Path) -> None:
        """Within one tick of the clock it may change again and look the same."""
        file = write_rows(tmp_path / "a.jsonl", "x")
        assert content_name([file]) == content_name([file])
        assert len(num_read) == 2

    @pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": 1}', b"[" * 10**5, b"\xff"])
    def test_a_broken_memory_is_none(
        self, content: bytes, settled: None, num_read: list[str], tmp_path: Path
    ) -> None:
        file = write_rows(tmp_path / "a.jsonl", "x")
        first = content_name([file])
        (cache_folder() / MEMORY).write_bytes(content)
        assert content_name([file]) == content_name([file]) == first
        assert len(num_read) == 2

    def test_many_writers(self, settled: None, tmp_path: Path) -> None:
        files = [write_rows(tmp_path / f"{number}.jsonl", str(number)) for number in range(40)]
        expected = [content_name([file]) for file in files]
        (cache_folder() / MEMORY).unlink()
        threads = [
            threading.Thread(target=lambda part=files[start::4]: [content_name([f]) for f in part])
            for start in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert json.loads((cache_folder() / MEMORY).read_text())
        assert [content_name([file]) for file in files] == expected
        assert [path.name for path in cache_folder().iterdir()] == [MEMORY]

    def test_it_stays_small(self, settled: None, tmp_path: Path) -> None:
        cache_folder().mkdir(parents=True)
        many = {f"{number:032}": "0" * 32 for number in range(MAX_REMEMBERED + 5)}
        (cache_folder() / MEMORY).write_text(json.dumps(many))
        content_name([write_rows(tmp_path / "a.jsonl", "x")])
        assert len(json.loads((cache_folder() / MEMORY).read_text())) == MAX_REMEMBERED


def test_rows_are_prepared_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from scalepet.data import tables

    file = write_rows(tmp_path / "a.jsonl", "x")
    assert texts(file) == ["x"]
    monkeypatch.setattr(tables, "_prepare", lambda *args: pytest.fail("prepared again"))
    assert texts(file) == ["x"]
    assert texts(write_rows(tmp_path / "copy.jsonl", "x")) == ["x"]


def test_a_cache_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    file = write_rows(tmp_path / "a.jsonl", "x")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\).*HF_HOME"):
        texts(file)


def test_compressed_files(tmp_path: Path) -> None:
    whole = write_rows(tmp_path / "a.jsonl", "x", "y")
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(whole.read_bytes()))
    assert texts(packed) == ["x", "y"]
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz' cannot be read"):
        texts(packed)
