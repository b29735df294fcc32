"""Sources: every local form gives the same rows, and everything else is refused in words."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from scalepet.data import Source, load_split, missing_files
from scalepet.errors import ConfigError, DataError, ScalepetError

TRAIN = [{"text": f'row {row}, "quoted"', "label": str(row % 2)} for row in range(6)]
HELD_OUT = [{"text": "held out", "label": "1"}, {"text": "and more", "label": "0"}]


def table(rows: list[dict[str, str]]) -> Dataset:
    return Dataset.from_list(rows)


def write_csv(folder: Path, *, sep: str = ",", ending: str = "csv") -> Source:
    for name, rows in (("train", TRAIN), ("validation", HELD_OUT)):
        table(rows).to_csv(folder / f"{name}.{ending}", sep=sep)
    files = {name: str(folder / f"{name}.{ending}") for name in ("train", "validation")}
    return Source("csv", files=dict(files))


def write_tsv_folder(folder: Path) -> Source:
    write_csv(folder, sep="\t", ending="tsv")
    return Source(str(folder))


def write_csv_folder(folder: Path) -> Source:
    write_csv(folder)
    return Source(str(folder))


def write_json(folder: Path) -> Source:
    for name, rows in (("train", TRAIN), ("validation", HELD_OUT)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Source("json", files={n: str(folder / f"{n}.jsonl") for n in ("train", "validation")})


def write_json_folder(folder: Path) -> Source:
    write_json(folder)
    return Source(str(folder))


def write_parquet(folder: Path) -> Source:
    table(TRAIN[:4]).to_parquet(folder / "train-0.parquet")
    table(TRAIN[4:]).to_parquet(folder / "train-1.parquet")
    table(HELD_OUT).to_parquet(folder / "validation.parquet")
    files: dict[str, str | list[str]] = {
        "train": str(folder / "train-*.parquet"),
        "validation": [str(folder / "validation.parquet")],
    }
    return Source("parquet", files=files)


def write_parquet_folder(folder: Path) -> Source:
    write_parquet(folder)
    return Source(str(folder))


def write_saved_splits(folder: Path) -> Source:
    saved = DatasetDict({"train": table(TRAIN), "validation": table(HELD_OUT)})
    saved.save_to_disk(str(folder / "saved"))
    return Source(str(folder / "saved"))


FORMS = [
    write_csv,
    write_csv_folder,
    write_tsv_folder,
    write_json,
    write_json_folder,
    write_parquet,
    write_parquet_folder,
    write_saved_splits,
]


@pytest.mark.parametrize("write", FORMS)
def test_every_local_form_gives_the_same_rows(
    write: Callable[[Path], Source], tmp_path: Path
) -> None:
    source = write(tmp_path)
    train, held_out = load_split(source, "train"), load_split(source, "eval")
    assert train.column_names == ["text", "label"]
    assert train[0:6] == {"text": [r["text"] for r in TRAIN], "label": [r["label"] for r in TRAIN]}
    assert held_out[0:2]["text"] == [row["text"] for row in HELD_OUT]


def test_a_saved_table_is_one_split(tmp_path: Path) -> None:
    table(TRAIN).with_format("numpy").save_to_disk(str(tmp_path / "saved"))
    source = Source(str(tmp_path / "saved"), splits={"eval": "train[-2:]"})
    assert len(load_split(source, "train")) == 6
    assert load_split(source, "eval")[0:2] == {
        "text": [TRAIN[4]["text"], TRAIN[5]["text"]],
        "label": ["0", "1"],
    }


def test_class_labels_survive(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    saved = Dataset.from_dict({"text": ["x"], "label": [1]}, features=features)
    saved.save_to_disk(str(tmp_path / "saved"))
    assert load_split(Source(str(tmp_path / "saved")), "train").features["label"].names == [
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("train", [0, 1, 2, 3, 4, 5]),
        ("train[:3]", [0, 1, 2]),
        ("train[-2:]", [4, 5]),
        ("train[50%:]", [3, 4, 5]),
        ("train[1:-4]", [1]),
        ("train[:1]+train[5:]", [0, 5]),
    ],
)
@pytest.mark.parametrize("write", [write_csv, write_saved_splits])
def test_split_expressions(
    write: Callable[[Path], Source], expression: str, rows: list[int], tmp_path: Path
) -> None:
    source = write(tmp_path)
    source = Source(source.path, files=source.files, splits={"train": expression})
    assert load_split(source, "train")[0:6]["text"] == [TRAIN[row]["text"] for row in rows]


def test_csv_text_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufefftext,label\n007,1\nNA,\nnull,1.0\nNone,True\n")
    rows = load_split(Source("csv", files={"train": str(tmp_path / "a.csv")}), "train")
    assert rows[0:4] == {
        "text": ["007", "NA", "null", "None"],
        "label": ["1", None, "1.0", "True"],
    }


def test_csv_columns_may_change_their_looks_late(tmp_path: Path) -> None:
    lines = ["text,label", *(f"{row},1" for row in range(10_001)), "words,1"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    rows = load_split(Source("csv", files={"train": str(tmp_path / "a.csv")}), "train")
    assert rows[10_001:10_002]["text"] == ["words"]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    source = Source("csv", files={"train": str(tmp_path / "a.csv")})
    for text in ("old", "newer"):
        (tmp_path / "a.csv").write_text(f"text\n{text}\n")
        assert load_split(source, "train")[0:1]["text"] == [text]


def refused(source: Source, split: str = "train", *, by: type[ScalepetError]) -> str:
    with pytest.raises(by) as caught:
        load_split(source, split)
    return str(caught.value)


def test_missing_files_are_refused_together(tmp_path: Path) -> None:
    (tmp_path / "here.csv").write_text("text\na\n")
    files: dict[str, str | list[str]] = {
        "train": [str(tmp_path / "here.csv"), str(tmp_path / "gone.csv")],
        "validation": str(tmp_path / "no-*.csv"),
    }
    source = Source("csv", files=files)
    assert len(missing_files(source)) == 2
    message = refused(source, by=ConfigError)
    assert f"task.source.files.train '{tmp_path}/gone.csv' does not exist; allowed" in message
    assert f"task.source.files.validation '{tmp_path}/no-*.csv'" in message
    assert "here.csv" not in message


@pytest.mark.parametrize("path", ["/gone/data", "./gone", "~/gone", "a/b/c"])
def test_missing_folders(path: str) -> None:
    message = refused(Source(path), by=ConfigError)
    assert f"task.source.path {path!r} does not exist; allowed: a local folder" in message


def test_the_hub_without_network() -> None:
    message = refused(Source("nyu-mll/glue", subset="sst2"), by=ConfigError)
    assert "task.source.path 'nyu-mll/glue' with subset 'sst2' cannot be opened" in message
    assert "offline" in message.lower()
    assert "allowed: csv, json, parquet with files, a local folder" in message


def test_faults_of_the_source(tmp_path: Path) -> None:
    assert "task.source.files is missing" in refused(Source("csv"), by=ConfigError)


@pytest.mark.parametrize("write", FORMS)
def test_missing_splits_name_those_that_exist(
    write: Callable[[Path], Source], tmp_path: Path
) -> None:
    source = write(tmp_path)
    source = Source(source.path, files=source.files, splits={"eval": "test"})
    message = refused(source, "eval", by=ConfigError)
    assert "task.source.splits.eval 'test'" in message
    assert "splits: train (6 rows), validation (2 rows)" in message


@pytest.mark.parametrize("expression", ["train[:7]", "train[-7:]", "train[:2]+train[7:]"])
def test_rows_beyond_a_split(expression: str, tmp_path: Path) -> None:
    source = Source(write_csv_folder(tmp_path).path, splits={"train": expression})
    message = refused(source, by=ConfigError)
    assert f"task.source.splits.train {expression!r} reaches beyond 'train'" in message
    assert "allowed: 6 rows" in message


@pytest.mark.parametrize("expression", ["train[", "train[a:b]", "train[:150%]", ""])
def test_split_expressions_that_are_none(expression: str, tmp_path: Path) -> None:
    source = Source(write_csv_folder(tmp_path).path, splits={"train": expression})
    assert f"task.source.splits.train {expression!r}" in refused(source, by=ConfigError)


@pytest.mark.parametrize("expression", ["train[3:3]", "train[4:2]"])
def test_empty_slices(expression: str, tmp_path: Path) -> None:
    source = Source(write_csv_folder(tmp_path).path, splits={"train": expression})
    message = refused(source, by=DataError)
    assert f"{expression!r}" in message
    assert "has no rows; splits: train (6 rows), validation (2 rows)" in message


def test_empty_splits(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,1\n")
    (tmp_path / "validation.csv").write_text("text,label\n")
    source = Source(str(tmp_path))
    assert len(load_split(source, "train")) == 1
    message = refused(source, "eval", by=DataError)
    assert "'validation'" in message
    assert "has no rows; splits: train (1 rows), validation (0 rows)" in message


@pytest.mark.parametrize(
    ("file_format", "content", "part"),
    [
        ("csv", b"text,label\n\xff\xfe,1\n", "utf-8"),
        ("csv", b"", "No columns"),
        ("csv", b"text,label\na,1\nb,1,2\n", "Expected 2 fields"),
        ("json", b'{"text": "a"\n', "JSON"),
        ("json", b"", "cannot be read"),
        ("parquet", b"nothing of the kind", "Parquet"),
    ],
)
def test_unreadable_files(file_format: str, content: bytes, part: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{file_format}"
    path.write_bytes(content)
    message = refused(Source(file_format, files={"train": str(path)}), by=DataError)
    assert str(path) in message
    assert part in message
    assert "\n" not in message


def test_csv_with_more_fields_than_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,1,2\nb,1,2\n")
    source = Source("csv", files={"train": str(tmp_path / "a.csv")})
    assert "more fields than the header text, label" in refused(source, by=DataError)


def test_csv_files_with_other_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,1\n")
    (tmp_path / "b.csv").write_text("text,gold\na,1\n")
    files: dict[str, str | list[str]] = {
        "train": str(tmp_path / "a.csv"),
        "test": str(tmp_path / "b.csv"),
    }
    message = refused(Source("csv", files=files), by=DataError)
    assert "b.csv' has the columns text, gold" in message
    assert "text, label" in message


def test_folders_without_data(tmp_path: Path) -> None:
    assert "doesn't contain any data files" in refused(Source(str(tmp_path)), by=ConfigError)


def test_a_broken_saved_folder(tmp_path: Path) -> None:
    source = write_saved_splits(tmp_path)
    (tmp_path / "saved" / "train" / "data-00000-of-00001.arrow").write_bytes(b"cut")
    assert "cannot be read" in refused(source, by=DataError)


def test_a_saved_folder_has_no_subset(tmp_path: Path) -> None:
    source = Source(write_saved_splits(tmp_path).path, subset="sst2")
    assert "task.source.subset is 'sst2'" in refused(source, by=ConfigError)


def test_a_folder_without_this_subset(tmp_path: Path) -> None:
    source = Source(write_csv_folder(tmp_path).path, subset="sst2")
    message = refused(source, by=ConfigError)
    assert "with subset 'sst2' cannot be opened" in message


def test_import_is_light() -> None:
    heavy = "{'torch', 'datasets', 'pandas', 'transformers', 'sklearn'}"
    code = f"import sys, scalepet.data; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
