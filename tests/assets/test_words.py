from __future__ import annotations

import json
from pathlib import Path

import pytest

from scalepet.assets import words
from scalepet.errors import DataError

Rows = list[dict[str, str]]


def read(folder: Path) -> dict[str, Rows]:
    return {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    }


def all_rows(folder: Path) -> Rows:
    return [row for rows in read(folder).values() for row in rows]


def test_typos_of_one_known_word_are_rows(raw: Path, folder: Path) -> None:
    lines = [
        "teh->the",
        "ans->and, ants,",
        "alot->a lot",
        "cant->can't",
        "2st->2nd",
        "wierd->weird",
    ]
    (raw / words.TYPOS_FILE).write_text("\n".join(lines) + "\n")
    words.typos(raw, folder)
    rows = all_rows(folder)
    assert sorted((row["text"], row["target"]) for row in rows) == [
        ("teh", "the"),
        ("wierd", "weird"),
    ]


def test_lines_that_are_no_typos_are_named(raw: Path, folder: Path) -> None:
    (raw / words.TYPOS_FILE).write_text("teh->the\nwierd\na->b->c\n")
    with pytest.raises(DataError, match=r"dictionary.txt: lines \[2, 3\] are not typo->word"):
        words.typos(raw, folder)


def test_a_word_is_said_in_its_first_way(raw: Path, folder: Path) -> None:
    lines = ["a AH0", "a(2) EY1", "a's EY1 Z", "aalborg AO1 L B AO0 R G # place, danish"]
    (raw / words.SOUNDS_FILE).write_text("\n".join(lines) + "\n")
    words.pronounce(raw, folder)
    rows = all_rows(folder)
    assert sorted((row["text"], row["target"]) for row in rows) == [
        ("a", "AH0"),
        ("aalborg", "AO1 L B AO0 R G"),
    ]


def test_words_without_a_phone_are_named(raw: Path, folder: Path) -> None:
    (raw / words.SOUNDS_FILE).write_text("a AH0\nb\nc # see\n")
    with pytest.raises(DataError, match=r"cmudict.dict: lines \[2, 3\] are not a word"):
        words.pronounce(raw, folder)


def test_words_that_begin_alike_are_in_one_split(raw: Path, folder: Path) -> None:
    endings = ("", "s", "ed", "ing")
    stems = [f"ba{one}{other}an" for one in "klmnr" for other in "abcdefghij"]
    said = [f"{stem}{ending} B AH0" for stem in stems for ending in endings]
    (raw / words.SOUNDS_FILE).write_text("\n".join(said) + "\n")
    told = words.pronounce(raw, folder)
    parts = read(folder)
    assert {split: len(rows) for split, rows in parts.items()} == {"train": 160, "test": 40}
    begins = {split: {row["text"][:4] for row in rows} for split, rows in parts.items()}
    assert begins["train"].isdisjoint(begins["test"])
    assert "20% of the beginnings of 4 letters" in told


def test_typos_are_split_by_the_word_that_was_meant(raw: Path, folder: Path) -> None:
    lines = [f"{typo}{stem}->{stem}word" for stem in "abcdefghij" for typo in "xyz"]
    (raw / words.TYPOS_FILE).write_text("\n".join(lines) + "\n")
    words.typos(raw, folder)
    targets = {split: {row["target"] for row in rows} for split, rows in read(folder).items()}
    assert len(targets["train"]) == 8
    assert targets["train"].isdisjoint(targets["test"])
