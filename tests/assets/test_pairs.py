from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from scalepet.assets.pairs import Pair, quads, write_quads

Rows = list[dict[str, str]]


def pair(name: str, group: str = "all") -> Pair:
    return Pair(key=name, group=group, left={"left": f"l{name}"}, right={"right": f"r{name}"})


def read(folder: Path, split: str) -> Rows:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def write(folder: Path, num_pairs: int) -> str:
    pairs = [pair(f"{i}", group=f"{i % 2}") for i in range(num_pairs)]
    return write_quads(folder, quads(pairs, apart=lambda *_: True), group="half")


def test_pairs_meet_in_their_group_and_only_what_is_apart() -> None:
    pairs = [pair(f"{i}", group=f"{i % 2}") for i in range(40)]

    def apart(one: Pair, other: Pair) -> bool:
        return int(one.key) % 5 != int(other.key) % 5

    made = quads(pairs, apart=apart)
    assert len(made) >= 16
    for one, other in made:
        assert one.group == other.group
        assert apart(one, other)
    used = Counter(pair.key for quad in made for pair in quad)
    assert set(used.values()) == {1}


def test_what_finds_no_partner_is_left_out() -> None:
    assert quads([pair("a"), pair("b"), pair("c")], apart=lambda *_: False) == []
    assert len(quads([pair("a"), pair("b"), pair("c")], apart=lambda *_: True)) == 1


def test_a_quad_is_two_right_and_two_crossed_rows(tmp_path: Path) -> None:
    write(tmp_path, 4)
    rows = read(tmp_path, "train")
    by_text = {(row["left"], row["right"]): row["label"] for row in rows}
    assert by_text == {
        (f"l{one}", f"r{other}"): "yes" if one == other else "no"
        for group in (("0", "2"), ("1", "3"))
        for one in group
        for other in group
    }


def test_each_text_is_as_often_right_as_wrong_in_every_slice_of_whole_quads(tmp_path: Path) -> None:
    told = write(tmp_path, 100)
    train, test = read(tmp_path, "train"), read(tmp_path, "test")
    assert (len(train), len(test)) == (160, 40)
    assert "20% of each half is the test set" in told
    for rows in (train, test, train[:60], train[60:100]):
        for side in ("left", "right"):
            of = {answer: Counter() for answer in ("yes", "no")}
            for row in rows:
                of[row["label"]][row[side]] += 1
            assert of["yes"] == of["no"]


def test_no_text_is_on_both_sides_of_the_split_or_of_a_slice(tmp_path: Path) -> None:
    write(tmp_path, 100)
    train, test = read(tmp_path, "train"), read(tmp_path, "test")
    for one, other in ((train, test), (train[:60], train[60:])):
        for side in ("left", "right"):
            assert {row[side] for row in one}.isdisjoint(row[side] for row in other)
