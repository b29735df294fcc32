from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset
from PIL import Image

from scalepet.assets.emoji import emoji

FRUIT = [("fruit", f"1F3{index:02}") for index in range(11)]
# Five scenes, each with a man, a woman and a person.
CHEFS = [
    ("role", f"{person}-200D-1F37{scene}")
    for scene in range(5)
    for person in ("1F468", "1F469", "1F9D1")
]
RARE = [("lock", f"1F5{index:02}") for index in range(9)]
ALL = FRUIT + CHEFS + RARE


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    raw = tmp_path / "raw"
    rows = [
        {"short_name": code, "unified": code, "image": f"{code.lower()}.png"}
        | {"subcategory": label, "category": "Things"}
        for label, code in ALL
    ]
    swatch = {"short_name": "tone", "unified": "1F3FB", "image": "1f3fb.png"}
    rows.append(swatch | {"subcategory": "fruit", "category": "Component"})
    for style, ending, size in (
        ("google", "png", (64, 64)),
        ("twitter", "png", (64, 64)),
        ("fluent", "webp", (256, 264)),
    ):
        (raw / style).mkdir(parents=True)
        for index, row in enumerate(rows):
            image = Image.new("RGBA", size, (200, 0, 0, 0))
            image.paste((10 * index % 250, 0, 0, 255), (size[0] // 4, size[1] // 4, *size))
            image.save(raw / style / f"{row['image'][:-4]}.{ending}", lossless=True)
    (raw / "google" / "emoji.json").write_text(json.dumps(rows))
    return raw


def load(folder: Path) -> dict[str, Dataset]:
    return dict(load_dataset(str(folder), cache_dir=str(folder.parent / "cache")))


def test_small_sub_groups_and_swatches_are_left_out(raw: Path, folder: Path) -> None:
    done = emoji(raw, folder)
    loaded = load(folder)
    assert loaded["train"].features["label"].names == ["fruit", "role"]
    seen = {name for part in loaded.values() for name in part["emoji"]}
    assert seen == {code for _, code in FRUIT + CHEFS}
    assert "2 classes; 63 rows in train.parquet and 15 rows in test.parquet" in done


def test_no_emoji_is_in_both_splits_in_any_style_or_with_other_people(
    raw: Path, folder: Path
) -> None:
    emoji(raw, folder)
    scenes = {
        split: Counter(name.split("-")[-1] for name in part["emoji"])
        for split, part in load(folder).items()
    }
    assert not scenes["train"].keys() & scenes["test"].keys()
    # A fruit in three styles; a scene in three styles with three people.
    assert sorted(scenes["test"].values()) == [3, 3, 9]


def test_a_style_may_lack_an_emoji(raw: Path, folder: Path) -> None:
    (raw / "fluent" / "1f300.webp").unlink()
    emoji(raw, folder)
    styles = [
        row["style"] for part in load(folder).values() for row in part if row["emoji"] == "1F300"
    ]
    assert sorted(styles) == ["google", "twitter"]


def test_transparency_becomes_white_and_every_style_has_one_size(raw: Path, folder: Path) -> None:
    emoji(raw, folder)
    images = [(row["style"], row["image"]) for part in load(folder).values() for row in part]
    assert {style for style, _ in images} == {"google", "twitter", "fluent"}
    for _, image in images:
        assert (image.mode, image.size) == ("RGB", (64, 64))
        assert image.getpixel((2, 2)) == (255, 255, 255)
        assert image.getpixel((40, 40))[1:] == (0, 0)
