"""Folders of data: the first level says the splits, and every file is used or refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset

from scalepet.data import Source, load_split
from scalepet.data.folders import layout_of
from scalepet.errors import ConfigError, DataError, ScalepetError


def write(folder: Path, *names: str) -> Path:
    """Small pictures and tables of these names."""
    for place, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ending = path.suffix.lower()
        if ending in (".csv", ".tsv"):
            path.write_text(f"text\n{name}\n")
        elif ending in (".jsonl", ".json"):
            path.write_text(json.dumps({"text": name}) + "\n")
        elif ending == ".parquet":
            Dataset.from_dict({"text": [name]}).to_parquet(path)
        elif ending in (".png", ".jpg"):
            level = np.full((4, 4, 3), place, np.uint8)
            PIL.Image.fromarray(level).save(path, format="png")
        else:
            path.write_text("words")
    return folder


def rows_of(folder: Path, split: str) -> Any:
    return load_split(Source(str(folder), splits={"train": split}), "train")


def classes_of(folder: Path, split: str) -> Counter[str]:
    rows = rows_of(folder, split)
    names = rows.features["label"].names
    return Counter(names[place] for place in rows[0 : len(rows)]["label"])


def refused(folder: Path, *, by: type[ScalepetError] = ConfigError) -> str:
    with pytest.raises(by) as caught:
        rows_of(folder, "train")
    return str(caught.value)


class TestPictures:
    def test_names_of_classes_and_files_say_no_split(self, tmp_path: Path) -> None:
        names = [
            f"{split}/{kind}/steam {kind} {number}.png"
            for split in ("train", "validation")
            for kind in ("bus", "train", "tram", "test")
            for number in range(3 if split == "train" else 2)
        ]
        folder = write(tmp_path / "v", *names)
        kinds = ("bus", "test", "train", "tram")
        assert classes_of(folder, "train") == dict.fromkeys(kinds, 3)
        assert classes_of(folder, "validation") == dict.fromkeys(kinds, 2)

    def test_the_class_is_the_first_level_below_the_split(self, tmp_path: Path) -> None:
        folder = write(
            tmp_path,
            "train/cat/s1/a.png",
            "train/cat/s2/b.png",
            "train/dog/c.png",
            "test/cat/d.png",
        )
        assert classes_of(folder, "train") == {"cat": 2, "dog": 1}
        assert classes_of(folder, "test") == {"cat": 1}

    def test_without_splits_all_is_train_and_the_first_level_is_the_class(
        self, tmp_path: Path
    ) -> None:
        folder = write(tmp_path, "cat/x/a.png", "cat/y/a.png", "dog/train.png", "dog/test 1.png")
        assert classes_of(folder, "train") == {"cat": 2, "dog": 2}

    def test_one_folder_around_the_splits(self, tmp_path: Path) -> None:
        folder = write(tmp_path, "all/train/cat/a.png", "all/train/dog/b.png", "all/val/dog/c.png")
        assert classes_of(folder, "train") == {"cat": 1, "dog": 1}
        assert classes_of(folder, "validation") == {"dog": 1}

    @pytest.mark.parametrize("name", ["A.PNG", "b.JpG", "c.png"])
    def test_endings_of_any_case(self, name: str, tmp_path: Path) -> None:
        folder = write(tmp_path, f"train/cat/{name}", "train/dog/b.png")
        assert classes_of(folder, "train") == {"cat": 1, "dog": 1}

    def test_hidden_files_and_documents_are_no_data(self, tmp_path: Path) -> None:
        folder = write(tmp_path, "train/cat/a.png", "train/dog/b.png", "README.md", "LICENSE")
        write(tmp_path, "train/cat/.DS_Store", "__MACOSX/train/cat/a.png", ".git/x", "Thumbs.db")
        assert classes_of(folder, "train") == {"cat": 1, "dog": 1}

    def test_links_are_followed(self, tmp_path: Path) -> None:
        write(tmp_path / "far", "a.png", "b.png")
        folder = write(tmp_path / "v", "train/dog/b.png")
        (folder / "train" / "cat").symlink_to(tmp_path / "far")
        (folder / "train" / "dog" / "c.png").symlink_to(tmp_path / "far" / "a.png")
        assert classes_of(folder, "train") == {"cat": 2, "dog": 2}

    def test_a_link_around_is_refused(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "v", "train/dog/b.png")
        (folder / "train" / "dog" / "again").symlink_to(folder)
        assert "is a link to a folder around it" in refused(folder)

    @pytest.mark.parametrize("name", ["train/cat/notes.txt", "train/cat/a.heic", "labels.bin"])
    def test_other_files_are_refused(self, name: str, tmp_path: Path) -> None:
        folder = write(tmp_path, "train/cat/a.png", "train/dog/b.png", name)
        assert f"1 files that are no data ({name})" in refused(folder)

    def test_pictures_beside_their_classes_are_refused(self, tmp_path: Path) -> None:
        folder = write(tmp_path, "train/cat/a.png", "train/dog/b.png", "train/c.png")
        message = refused(folder, by=DataError)
        assert "1 of 3 pictures lie in no class folder" in message and "c.png" in message

    def test_pictures_beside_their_splits_are_refused(self, tmp_path: Path) -> None:
        folder = write(tmp_path, "train/cat/a.png", "train/dog/b.png", "c.png")
        assert "c.png belongs to no split, while train does" in refused(folder)

    def test_pictures_without_class_folders_are_refused(self, tmp_path: Path) -> None:
        message = refused(write(tmp_path, "train/a.png", "train/b.png"), by=DataError)
        assert "2 of 2 pictures lie in no class folder" in message
        assert "allowed: SPLIT/CLASS/picture" in message

    def test_pictures_beside_tables_are_refused(self, tmp_path: Path) -> None:
        message = refused(write(tmp_path, "train/cat/a.png", "train/dog/b.png", "train.csv"))
        assert "files of several kinds (1 of csv, 2 of pictures)" in message
        other = write(tmp_path / "v", "train/cat/a.png", "train/dog/b.png", "train/c.csv")
        assert "files of several kinds (1 of csv, 2 of pictures)" in refused(other)

    def test_a_table_of_pictures_to_answer_for_is_no_split(self, tmp_path: Path) -> None:
        folder = write(tmp_path, "train/cat/a.png", "train/dog/b.png", "asked.csv")
        assert classes_of(folder, "train") == {"cat": 1, "dog": 1}

    def test_a_table_of_what_they_show(self, tmp_path: Path) -> None:
        folder = write(tmp_path, "train/a.png", "train/in/b.png")
        table = folder / "train" / "metadata.csv"
        table.write_text("file_name,label\na.png,cat\nin/b.png,dog\n")
        rows = rows_of(folder, "train")
        assert rows.column_names == ["label", "image"]
        assert rows[0:2]["label"] == ["cat", "dog"]
        table.write_text("file_name,label\na.png,cat\n")
        assert "does not name" in refused(folder, by=DataError)
        table.write_text("file_name,label\na.png,cat\nin/b.png,dog\nc.png,dog\n")
        assert "names what is not there" in refused(folder, by=DataError)

    @pytest.mark.parametrize("name", ["../c.png", "/etc/c.png", "https://x.org/c.png"])
    def test_such_a_table_leads_to_no_other_place(self, name: str, tmp_path: Path) -> None:
        folder = write(tmp_path / "v", "train/a.png")
        write(tmp_path, "c.png")
        (folder / "train" / "metadata.csv").write_text(f"file_name,label\n{name},cat\n")
        assert "allowed: a picture in the same folder or below" in refused(folder)


class TestTables:
    @pytest.mark.parametrize(
        ("names", "splits"),
        [
            (["a.csv", "b.csv"], {"train": 2}),
            (["train.csv", "dev.csv", "test.csv"], {"train": 1, "validation": 1, "test": 1}),
            (["data/train-00000-of-00001.parquet"], {"train": 1}),
            (
                [
                    f"data/{name}-0000{n}-of-00002.parquet"
                    for name in ("train", "own")
                    for n in "01"
                ],
                {"train": 2, "own": 2},
            ),
            (["data/validation_matched-00000-of-00001.parquet"], {"validation_matched": 1}),
            (
                ["train/1.jsonl", "train/2/3.jsonl", "validation/test.jsonl"],
                {"train": 2, "validation": 1},
            ),
            (["my-train.tsv", "my_val.tsv"], {"train": 1, "validation": 1}),
            (["TRAIN.CSV", "Test.Csv"], {"train": 1, "test": 1}),
            (["contrain.csv", "detest.csv"], {"train": 2}),
            (["training 1.csv", "training 2.csv", "evaluation.csv"], {"train": 2, "test": 1}),
        ],
    )
    def test_splits(self, names: list[str], splits: dict[str, int], tmp_path: Path) -> None:
        folder = write(tmp_path, *names)
        found = {split: len(rows_of(folder, split)) for split in layout_of(folder).splits}
        assert found == splits

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (["train.csv", "more.csv"], "more.csv belongs to no split, while train.csv does"),
            (["train-test.csv"], "'train-test.csv' is called as the splits train, test"),
            (["train.csv", "test.jsonl"], "several kinds (1 of csv, 1 of json)"),
            (["train.csv", "notes.txt"], "1 files that are no data (notes.txt)"),
            (["train.csv", "test.zip"], "1 files that are no data (test.zip)"),
            (["README.md"], "doesn't contain any data files"),
        ],
    )
    def test_what_belongs_nowhere_is_refused(
        self, names: list[str], words: str, tmp_path: Path
    ) -> None:
        assert words in refused(write(tmp_path, *names))
