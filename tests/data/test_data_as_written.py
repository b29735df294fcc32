"""Rows hold what stands in the file: no date is made of a text, no row of two."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalepet.data import Source, Task, encode, load_split, rows_of
from scalepet.data.local_files import MAX_COLUMNS
from scalepet.errors import DataError


def read(path: Path, content: str | bytes) -> dict[str, list[Any]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    kinds = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
    rows = load_split(Source(kinds.get(path.suffix, "json"), files={"train": str(path)}), "train")
    return {name: list(values) for name, values in rows[0 : len(rows)].items()}


def lines(*values: str) -> str:
    return "".join(f'{{"a": {value}}}\n' for value in values)


def refused(path: Path, content: str | bytes) -> str:
    with pytest.raises(DataError) as caught:
        read(path, content)
    return str(caught.value)


class TestJson:
    @pytest.mark.parametrize(
        ("written", "held"),
        [
            (['"2020-03-01"', '"2021-04-02"'], ["2020-03-01", "2021-04-02"]),
            (['"2020-03-01T10:00:00Z"'], ["2020-03-01T10:00:00Z"]),
            (
                ['"12:30"', '"1e5"', '"007"', '"NA"', '"null"'],
                ["12:30", "1e5", "007", "NA", "null"],
            ),
            (["1", "2", "null"], [1, 2, None]),
            (["0.5", "NaN", "2.25"], [0.5, None, 2.25]),
            (["true", "false"], [True, False]),
            (["1", '"one"'], ["1", "one"]),
            (["1", "2.5"], ["1", "2.5"]),
            (["true", "1", '"x"'], ["true", "1", "x"]),
            (["1e5", "1.50"], ["1e5", "1.50"]),
            (["12345678901234567890", "1"], ["12345678901234567890", "1"]),
            (["0.12345678901234567890"], ["0.12345678901234567890"]),
            (["[]", '"x"', "{}"], [None, "x", None]),
            (['["x"]', "[]", "null"], [["x"], [], None]),
            (["[1, 2]", '["x"]'], [["1", "2"], ["x"]]),
            (['{"b": 1}', '{"c": "x"}'], [{"b": 1, "c": None}, {"b": None, "c": "x"}]),
        ],
    )
    @pytest.mark.parametrize("form", ["lines", "list", "data"])
    def test_values(self, written: list[str], held: list[Any], form: str, tmp_path: Path) -> None:
        rows = ",\n".join(f'{{"a": {value}}}' for value in written)
        content = {
            "lines": lines(*written),
            "list": f"[{rows}]",
            "data": f'{{"version": "1.1", "data": [{rows}]}}',
        }[form]
        assert read(tmp_path / "a.json", content) == {"a": held}

    def test_columns_are_of_one_type_in_all_splits(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text(lines("1", "2"))
        (tmp_path / "b.jsonl").write_text(lines('"x"'))
        files: Any = {"train": str(tmp_path / "a.jsonl"), "validation": str(tmp_path / "b.jsonl")}
        source = Source("json", files=files, splits={"train": "train+validation"})
        assert load_split(source, "train")[0:3]["a"] == ["1", "2", "x"]

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (lines('"x"', '["x"]'), "row 1: column 'a' is ['x'] here and text in another row"),
            (lines('{"b": 1}', "3"), "row 1: column 'a' is 3 here and fields in another row"),
            ('{"a": 1, "a": 2}\n', "row 0: the field 'a' stands twice in one object"),
            (lines("1") + '{"a": \n', "row 1"),
            (lines("1") + "7\n", "7 is no object with fields"),
            ("[1, 2]", "1 is no object with fields"),
            ("[]", "it holds no row"),
            (lines("[" * 2000 + "]" * 2000), "nested deeper"),
            (lines("[" * 50 + "]" * 50), "nested deeper than 32 levels"),
            (json.dumps({str(name): 1 for name in range(MAX_COLUMNS + 1)}), "columns, the most"),
            (lines(r'"\ud800"'), "cannot be read"),
        ],
    )
    def test_what_cannot_be_kept_is_refused(self, content: str, words: str, tmp_path: Path) -> None:
        message = refused(tmp_path / "a.json", content)
        assert words in message and "a.json" in message and len(message) < 500


class TestCsv:
    def test_values(self, tmp_path: Path) -> None:
        content = 'a,b\n007,1e5\nNA,true\n2020-03-01,\n" x ","a ""b"", c\nd"\n5" pipe,null\n'
        assert read(tmp_path / "a.csv", content) == {
            "a": ["007", "NA", "2020-03-01", " x ", '5" pipe'],
            "b": ["1e5", "true", None, 'a "b", c\nd', "null"],
        }

    def test_a_column_without_a_name(self, tmp_path: Path) -> None:
        """As ``to_csv`` of pandas writes its index."""
        assert read(tmp_path / "a.csv", ",a\n0,x\n") == {"Unnamed: 0": ["0"], "a": ["x"]}

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ('a,b\nx,1\n"y,2\nz,3\n', "row 1 (to line 4) cannot be read: unexpected end of data"),
            ('a,b\nx,1\n"y" z,2\n', "row 1 (to line 3) cannot be read: ',' expected after '\"'"),
            ("a,b\nx,1\ny\n", "row 1 has 1 fields and none for 'b'"),
            ("a,b\nx,1\ny,1,2\n", "row 1: Expected 2 fields, found 3"),
            ("a,a\nx,1\n", "has the column a twice"),
            (",".join(map(str, range(200_000))) + "\n", "200,000 columns; allowed: 10,000"),
        ],
    )
    def test_quotes_and_fields_that_do_not_fit(
        self, content: str, words: str, tmp_path: Path
    ) -> None:
        message = refused(tmp_path / "a.csv", content)
        assert words in message and "a.csv" in message

    def test_a_tsv_whose_fields_begin_with_a_quote(self, tmp_path: Path) -> None:
        def content(mark: str) -> str:
            rows = [f"{mark if row in (9, 20) else ''}row {row}\t{row % 2}" for row in range(40)]
            return "\n".join(["text\tlabel", *rows]) + "\n"

        message = refused(tmp_path / "a.tsv", content('"'))
        assert "row 9 (to line 22) cannot be read" in message
        # Where the second quote ends a field, ten rows would stand in one.
        ends = content('"').replace('"row 20', 'row 20"')
        message = refused(tmp_path / "a.tsv", ends)
        assert "row 9 (to line 22) has a field that goes on in the next line" in message
        doubled = content('"""').replace('"""row 9', '"""row 9"').replace('"""row 20', '"""row 20"')
        assert read(tmp_path / "a.tsv", doubled)["text"][9] == '"row 9'


class TestParquet:
    def test_values(self, tmp_path: Path) -> None:
        columns = {"a": ["2020-03-01", "007"], "b": [1, None], "c": [True, False], "d": [0.5, 1e5]}
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes()) == columns

    @pytest.mark.parametrize(
        "value",
        [
            datetime.date(2020, 3, 1),
            datetime.datetime(2020, 3, 1, 12),
            datetime.time(12, 30),
            datetime.timedelta(1),
            decimal.Decimal("1.10"),
            b"bytes",
        ],
    )
    def test_what_is_no_text_is_refused_by_its_value(
        self, value: object, tokenizer: Any, tmp_path: Path
    ) -> None:
        pq.write_table(pa.table({"a": [value], "b": ["x"]}), tmp_path / "a.parquet")
        source = Source("parquet", files={"train": str(tmp_path / "a.parquet")})
        task = Task(kind="sequence_to_sequence", source=source, template="{b}", target="a")
        with pytest.raises(DataError, match="column 'a': 1 of 1 rows cannot be used"):
            encode(task, load_split(source, "train"), tokenizer=tokenizer, form="text")

    def test_files_of_other_types_and_columns(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"a": pa.array([1], pa.int32())}), tmp_path / "1.parquet")
        pq.write_table(pa.table({"a": pa.array([2], pa.int64())}), tmp_path / "2.parquet")
        source = Source("parquet", files={"train": str(tmp_path / "*.parquet")})
        assert load_split(source, "train")[0:2]["a"] == [1, 2]
        pq.write_table(pa.table({"a": ["x"]}), tmp_path / "3.parquet")
        with pytest.raises(DataError, match="cannot be read"):
            load_split(source, "train")
        pq.write_table(pa.table({"b": ["x"]}), tmp_path / "3.parquet")
        with pytest.raises(DataError, match=r"3\.parquet' has the columns b; allowed: those of"):
            load_split(source, "train")


def test_plain_columns_stay_as_they_are() -> None:
    assert rows_of({"a": ["2020-03-01"]})[0:1] == {"a": ["2020-03-01"]}
