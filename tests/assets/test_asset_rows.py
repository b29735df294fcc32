from __future__ import annotations

from collections import Counter
from pathlib import Path

from scalepet.assets.rows import Row, in_order, write_rows
from scalepet.assets.splits import split


def label(row: Row) -> str:
    return row["label"]


def text(row: Row) -> str:
    return row["text"]


def test_rows_are_json_lines_in_the_order_given(tmp_path: Path) -> None:
    told = write_rows(tmp_path, {"train": [{"text": "é"}, {"text": "a"}], "test": []})
    assert (tmp_path / "train.jsonl").read_bytes() == '{"text": "é"}\n{"text": "a"}\n'.encode()
    assert (tmp_path / "test.jsonl").read_bytes() == b""
    assert told == "2 rows in train.jsonl and 0 rows in test.jsonl, in a fixed random order."


def test_the_first_rows_of_a_training_set_are_a_fair_sample() -> None:
    """By the draw of the split, some classes would be all of them and others none."""
    rows = [{"text": f"{kind} {i}", "label": f"{kind}"} for kind in range(10) for i in range(400)]
    train = split(rows, key=text, stratum=label)["train"]
    seen = Counter(label(row) for row in in_order(train, key=text)[:500])
    assert len(seen) == 10
    assert max(seen.values()) < 2 * min(seen.values())


def test_the_order_depends_on_the_keys_alone() -> None:
    rows = [{"text": f"text {i}"} for i in range(30)]
    forward = in_order(rows, key=text)
    assert in_order(reversed(rows), key=text) == forward
    # Written down, so that a release that changes everybody's rows cannot pass unseen.
    assert [row["text"] for row in forward[:4]] == ["text 17", "text 28", "text 27", "text 15"]
