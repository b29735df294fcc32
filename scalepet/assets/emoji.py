"""Emoji in three art styles, labelled by the sub-group of Unicode that each belongs to."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from scalepet.assets.pictures import Picture, write_pictures
from scalepet.assets.splits import split, split_note

TABLE = "google/emoji.json"
# Folders of `raw`, and the file endings of their pictures.
STYLES = {"google": ".png", "twitter": ".png", "fluent": ".webp"}
SIDE = 64  # px, of all styles but fluent, which has more
MIN_PICTURES = 30
NO_THING = "Component"  # swatches of skin tones
# Code points in which emoji differ that show the same with other people: man, woman, person, the
# two gender signs, the arrow of who turns around, and the two that join.
PEOPLE = frozenset(("1F468", "1F469", "1F9D1", "2640", "2642", "27A1", "200D", "FE0F"))


@dataclass(frozen=True)
class Emoji:
    """One emoji.

    Attributes:
        scene: the same for the emoji of a sub-group that differ in people only.
        files: its picture in each style that has it.
    """

    name: str
    label: str
    scene: str
    files: dict[str, Path]


def emoji(raw: Path, folder: Path) -> str:
    """Emoji as columns image (64 x 64 px, on white), label (sub-group), emoji (name) and style.

    No emoji is in both splits, in any style or with other people, so the test set asks for things
    that were never seen. Sub-groups with fewer than 30 pictures are left out.
    """
    everything = read_emoji(raw)
    sizes: Counter[str] = Counter()
    for one in everything:
        sizes[one.label] += len(one.files)
    scenes: dict[str, list[Emoji]] = defaultdict(list)
    for one in everything:
        if sizes[one.label] >= MIN_PICTURES:
            scenes[one.scene].append(one)
    parts = split(scenes.values(), key=lambda scene: scene[0].scene, stratum=_label)
    pictures = {
        part: [picture for scene in drawn for one in scene for picture in _pictures(one)]
        for part, drawn in parts.items()
    }
    return (
        f"{split_note('sub-group')} Emoji that differ in people only count as one and stay"
        f" together, each with all its styles. Sub-groups with fewer than {MIN_PICTURES} pictures"
        f" are left out. Pictures are {SIDE} px, on white. {write_pictures(folder, pictures)}"
    )


def read_emoji(raw: Path) -> list[Emoji]:
    """Every emoji of the table, with the pictures that are there."""
    found = []
    for row in json.loads((raw / TABLE).read_text(encoding="utf-8")):
        if row["category"] != NO_THING:
            stem = Path(row["image"]).stem
            files = {style: raw / style / f"{stem}{ending}" for style, ending in STYLES.items()}
            # A style may lack what is younger than it.
            there = {style: path for style, path in files.items() if path.is_file()}
            scene = f"{row['subcategory']} {_without_people(row['unified'])}"
            found.append(Emoji(row["short_name"], row["subcategory"], scene, there))
    return found


def _label(scene: list[Emoji]) -> str:
    return scene[0].label


def _without_people(code: str) -> str:
    return "-".join(point for point in code.split("-") if point not in PEOPLE) or code


def _pictures(one: Emoji) -> list[Picture]:
    return [
        Picture(
            f"{one.name}-{style}", one.label, _on_white(path), {"emoji": one.name, "style": style}
        )
        for style, path in one.files.items()
    ]


def _on_white(path: Path) -> Image.Image:
    """What is seen: readers drop transparency, and the colours below it are arbitrary."""
    with Image.open(path) as image:
        drawn = image.convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    return ImageOps.pad(
        Image.alpha_composite(white, drawn).convert("RGB"), (SIDE, SIDE), color="white"
    )
