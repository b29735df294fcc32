"""Data files with something wrong in them: refused in words that name file or column, before a
weight is loaded; and rows that are only strange, which are taken.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.refusals import check_refused
from running import run_here

import scalepet.recipes
from scalepet.config import RunConfig
from scalepet.recipes.prepare import prepare

SECONDS = 30.0
"""No file takes longer, whatever is in it."""

ROWS = [
    {"text": f"a {colour} wall", "label": label}
    for colour, label in (("red", "warm"), ("blue", "cold"))
]
GOOD = "".join(json.dumps(row) + "\n" for row in ROWS * 20)
CSV = "text,label\n" + "a red wall,warm\na blue wall,cold\n" * 20
GIANT = "red " * 250_000 + "x" * 9_000_000
"""10 MB; the words of one alone take their tokenizer ten times as long."""

BAD: tuple[tuple[str, str, bytes, str], ...] = (
    ("nothing", "json", b"", "train.json"),
    ("blank lines", "json", b"\n\n\n", "train"),
    ("a row is cut", "json", GOOD.encode() + b'{"text": "a red wal', "train.json"),
    (
        "no UTF-8",
        "json",
        GOOD.encode() + b'{"text": "\xff\xfe", "label": "warm"}\n',
        "columns text",
    ),
    ("a NUL", "json", GOOD.encode() + b"\0\0\0\n", "train.json"),
    ("numbers", "json", b"1\n2\n", "train.json"),
    ("texts", "json", b"a red wall\twarm\n", "train.json"),
    ("no label", "json", GOOD.encode() + b'{"text": "a"}\n', "'label'"),
    ("label is null", "json", GOOD.encode() + b'{"text": "a", "label": null}\n', "'label'"),
    ("label is empty", "json", GOOD.encode() + b'{"text": "a", "label": ""}\n', "'label'"),
    ("no text", "json", GOOD.encode() + b'{"label": "warm"}\n', "'text'"),
    ("text is empty", "json", GOOD.encode() + b'{"text": "", "label": "warm"}\n', "'text'"),
    ("text is blank", "json", GOOD.encode() + b'{"text": " \\t ", "label": "warm"}\n', "'text'"),
    ("text is a list", "json", GOOD.encode() + b'{"text": ["a"], "label": "warm"}\n', "'text'"),
    ("one class", "json", b'{"text": "a", "label": "warm"}\n' * 9, "label"),
    ("no such column", "json", GOOD.replace('"text"', '"txt"').encode(), "txt"),
    ("nothing", "csv", b"", "train.csv"),
    ("a header alone", "csv", b"text,label\n", "train"),
    ("a field too many", "csv", CSV.encode() + b"a,warm,cold\n", "train.csv"),
    ("a field too few", "csv", CSV.encode() + b"a\n", "'label'"),
    ("no UTF-8", "csv", CSV.encode() + b"\xff\xfe,warm\n", "train.csv"),
    ("UTF-16", "csv", CSV.encode("utf-16"), "train.csv"),
    ("an open quote", "csv", CSV.encode() + b'"a red wall,warm\n' * 3, "train.csv"),
    ("label is empty", "csv", CSV.encode() + b"a red wall,\n", "'label'"),
    ("text is empty", "csv", CSV.encode() + b",warm\n", "'text'"),
    ("a column twice", "csv", CSV.replace("text,label", "text,text").encode(), "train.csv"),
    ("nothing", "parquet", b"", "train.parquet"),
    ("text", "parquet", CSV.encode(), "train.parquet"),
    ("cut", "parquet", b"PAR1" + b"\0" * 100, "train.parquet"),
)

STRANGE: tuple[tuple[str, str, str], ...] = (
    ("10 MB in a row", "json", GOOD + json.dumps({"text": GIANT, "label": "warm"}) + "\n"),
    ("1.5 MB in a field", "csv", CSV + f"{GIANT[:1_500_000]},warm\n"),
    ("a NUL in words", "json", GOOD + json.dumps({"text": "a\0b", "label": "warm"}) + "\n"),
    ("all of Unicode", "json", GOOD + '{"text": "\u202e\U0010ffff", "label": "warm"}\n'),
    ("braces", "json", GOOD + json.dumps({"text": "{label} {0} %s", "label": "warm"}) + "\n"),
    ("an end of line", "csv", CSV + '"a\nb\r\nc",warm\n'),
    ("a byte order mark", "csv", "\ufeff" + CSV),
)


@pytest.fixture
def prepared(
    write_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """``prepared("csv", content)``: the end of a run that stops before weights are loaded, and its
    seconds.
    """

    def prepare_only(config: RunConfig, *, resume: bool, **_: Any) -> None:
        prepare(config, resume=resume)

    monkeypatch.setattr(scalepet.recipes, "finetune", prepare_only)

    def run(file_format: str, content: bytes) -> Any:
        path, held_out = tmp_path / f"train.{file_format}", tmp_path / "held_out.jsonl"
        path.write_bytes(content)
        held_out = tmp_path / f"held_out.{file_format}"
        if file_format == "parquet":
            held_out.write_bytes(content)
        else:
            held_out.write_text(GOOD if file_format == "json" else CSV)
        files = {"train": str(path), "validation": str(held_out)}
        config = write_run(tmp_path / "run")
        source = {"path": file_format, "files": files}
        started = time.monotonic()
        ended = run_here("train", str(config), f"task.source={json.dumps(source)}")
        assert time.monotonic() - started < SECONDS
        return ended

    return run


@pytest.mark.parametrize(
    ("why", "file_format", "content", "names"), BAD, ids=[f"{b[1]}-{b[0]}" for b in BAD]
)
def test_a_bad_file_is_refused(
    prepared: Any, tmp_path: Path, why: str, file_format: str, content: bytes, names: str
) -> None:
    check_refused(prepared(file_format, content), why=why, names=names)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("why", "file_format", "content"), STRANGE, ids=[s[0] for s in STRANGE])
def test_a_strange_file_is_taken(prepared: Any, why: str, file_format: str, content: str) -> None:
    ended = prepared(file_format, content.encode("utf-8", "surrogatepass"))
    assert (ended.code, ended.err) == (0, ""), why
