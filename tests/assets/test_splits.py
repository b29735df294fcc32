from __future__ import annotations

from collections import Counter

from scalepet.assets.splits import draw, split


def test_a_fifth_of_each_stratum_is_for_testing() -> None:
    units = [
        f"{stratum}{i}" for stratum, count in (("a", 20), ("b", 7), ("c", 2)) for i in range(count)
    ]
    parts = split(units, key=str, stratum=lambda unit: unit[0])
    assert Counter(unit[0] for unit in parts["test"]) == {"a": 4, "b": 1}
    assert sorted(parts["train"] + parts["test"]) == sorted(units)


def test_the_split_depends_on_the_keys_alone() -> None:
    units = list(range(40))
    forward = split(units, key=str, stratum=lambda _: "all")
    assert split(reversed(units), key=str, stratum=lambda _: "all") == forward
    # Written down, so that a release that changes everybody's split cannot pass unseen.
    assert forward["test"] == [17, 1, 0, 4, 31, 25, 19, 3]
    assert sorted(units, key=lambda unit: draw(str(unit)))[:8] == forward["test"]
