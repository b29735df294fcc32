from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Image, load_dataset
from PIL import Image as PillowImage

from scalepet.assets import pictures
from scalepet.assets.pictures import Picture, write_pictures
from scalepet.errors import DataError


def square(shade: int) -> PillowImage.Image:
    return PillowImage.new("L", (4, 4), shade)


def load(folder: Path) -> dict[str, Dataset]:
    return dict(load_dataset(str(folder), cache_dir=str(folder.parent / "cache")))


def test_datasets_reads_pictures_and_named_classes(folder: Path) -> None:
    rows = [
        Picture(f"{label} {shade}", label, square(shade), {"style": "flat"})
        for shade, label in enumerate(("pear", "apple & fig", "pear", "apple & fig"))
    ]
    done = write_pictures(folder, {"train": rows, "test": rows[:2]})
    loaded = load(folder)
    assert {split: len(part) for split, part in loaded.items()} == {"train": 4, "test": 2}
    train = loaded["train"]
    assert train.features["image"] == Image()
    assert train.features["label"] == ClassLabel(names=["apple & fig", "pear"])
    names = train.features["label"].names
    seen = {row["image"].getpixel((0, 0)): names[row["label"]] for row in train}
    assert seen == {0: "pear", 1: "apple & fig", 2: "pear", 3: "apple & fig"}
    assert train["style"] == ["flat"] * 4
    assert "2 classes; 4 rows in train.parquet and 2 rows in test.parquet" in done


def test_the_order_depends_on_the_names_alone(folder: Path) -> None:
    rows = [Picture(str(index), str(index % 2), square(index)) for index in range(20)]

    def order(pictures: list[Picture]) -> list[int]:
        write_pictures(folder, {"train": pictures})
        return [image.getpixel((0, 0)) for image in load(folder)["train"]["image"]]

    forward = order(rows)
    assert forward != sorted(forward)
    assert order(rows[::-1]) == forward


def test_a_class_that_one_split_lacks_is_refused(folder: Path) -> None:
    rows = [Picture(name, name, square(0)) for name in "abc"]
    with pytest.raises(DataError) as refused:
        write_pictures(folder, {"train": rows[:2], "test": rows[1:]})
    assert refused.value.faults == ("train: has no picture of 'c'", "test: has no picture of 'a'")
    assert not list(folder.iterdir())


def write_mnist(raw: Path, *, num_columns: int = 785) -> np.ndarray:
    raw.mkdir()
    table = np.random.default_rng(0).integers(0, 256, (20, num_columns))
    table[:, -1] = np.arange(20) // 10
    with gzip.open(raw / pictures.MNIST_FILE, "wt") as out:
        np.savetxt(out, table, fmt="%d", delimiter=",")
    return table


def test_mnist_keeps_every_pixel(tmp_path: Path, folder: Path) -> None:
    table = write_mnist(tmp_path / "raw")
    pictures.mnist(tmp_path / "raw", folder)
    loaded = load(folder)
    assert {split: sorted(part["label"]) for split, part in loaded.items()} == {
        "train": [0] * 8 + [1] * 8,
        "test": [0] * 2 + [1] * 2,
    }
    rows = [
        (*np.asarray(row["image"]).flatten().tolist(), row["label"])
        for part in loaded.values()
        for row in part
    ]
    assert sorted(rows) == sorted(map(tuple, table.tolist()))
    assert np.asarray(loaded["test"][0]["image"]).shape == (28, 28)


def test_a_table_of_other_pictures_is_refused(tmp_path: Path, folder: Path) -> None:
    write_mnist(tmp_path / "raw", num_columns=101)
    with pytest.raises(DataError, match="mnist_5k.csv.gz: has 101 columns"):
        pictures.mnist(tmp_path / "raw", folder)
