"""SparseMask: what it holds, its checksum, its overlap, and that it cannot be built wrong."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

from scalepet.errors import ConfigError
from scalepet.masks import MaskRule, SparseMask, select_entries
from scalepet.masks.mask import find_mask_faults, index_dtype


def _mask(positions: dict[str, list[int]], shapes: dict[str, tuple[int, ...]]) -> SparseMask:
    rows = {
        name: np.array(row, dtype=index_dtype(math.prod(shapes[name])))
        for name, row in positions.items()
    }
    return SparseMask(positions=rows, shapes=shapes)


def test_count_and_frozen() -> None:
    mask = _mask({"a": [0, 5], "b": [2]}, {"a": (2, 3), "b": (3,)})
    assert mask.count == 3
    assert mask.rule is None and mask.num_eligible is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        mask.rule = MaskRule("3", 3, "uniform", 0)  # type: ignore[misc]


def test_rule_is_json_able() -> None:
    rule = MaskRule(budget="0.1%", count=7, share="even", seed=3)
    assert MaskRule(**json.loads(json.dumps(dataclasses.asdict(rule)))) == rule


def test_scalars_and_huge_tensors_have_positions() -> None:
    mask = _mask({"scale": [0], "huge": [2**31]}, {"scale": (), "huge": (2**16, 2**16)})
    assert mask.positions["scale"].dtype == np.int32
    assert mask.positions["huge"].dtype == np.int64


@pytest.mark.parametrize(
    ("num_positions", "dtype"), [(1, np.int32), (2**31, np.int32), (2**31 + 1, np.int64)]
)
def test_index_dtype_is_int32_where_all_fit(num_positions: int, dtype: type) -> None:
    assert index_dtype(num_positions) == dtype
    assert num_positions - 1 <= np.iinfo(index_dtype(num_positions)).max


def test_checksum_is_pinned_and_ignores_dict_order() -> None:
    mask = _mask({"a": [0, 5], "b": [2]}, {"a": (2, 3), "b": (3,)})
    turned = _mask({"b": [2], "a": [0, 5]}, {"b": (3,), "a": (2, 3)})
    assert mask.checksum == turned.checksum == "1d714d32e3602030defb9e57c24b2814"


def test_checksum_ignores_integer_width() -> None:
    narrow = _mask({"a": [1, 4]}, {"a": (6,)})
    wide = _mask({"a": [1, 4]}, {"a": (6,)})
    wide.positions["a"] = wide.positions["a"].astype(np.int64)
    assert wide.checksum == narrow.checksum


@pytest.mark.parametrize(
    ("positions", "shapes"),
    [
        ({"a": [0, 4], "b": [2]}, {"a": (2, 3), "b": (3,)}),
        ({"a": [0, 5], "c": [2]}, {"a": (2, 3), "c": (3,)}),
        ({"a": [0, 5], "b": [2]}, {"a": (3, 2), "b": (3,)}),
        ({"a": [0], "b": [2]}, {"a": (2, 3), "b": (3,)}),
        ({"a": [0, 5]}, {"a": (2, 3)}),
        ({"b": [0, 5], "a": [2]}, {"b": (2, 3), "a": (3,)}),
    ],
)
def test_checksum_sees_every_change(
    positions: dict[str, list[int]], shapes: dict[str, tuple[int, ...]]
) -> None:
    mask = _mask({"a": [0, 5], "b": [2]}, {"a": (2, 3), "b": (3,)})
    assert _mask(positions, shapes).checksum != mask.checksum


_FAULTY: list[tuple[dict[str, Any], dict[str, tuple[int, ...]], str]] = [
    ({}, {}, "no tensor has an entry"),
    ({"a": [0]}, {}, "'a' has no shape"),
    ({"a": [0]}, {"a": (2,), "b": (2,)}, "'b' has no positions"),
    ({"a": []}, {"a": (2,)}, "no entry"),
    ({"a": [1, 0]}, {"a": (2,)}, "not strictly rising"),
    ({"a": [1, 1]}, {"a": (2,)}, "not strictly rising"),
    ({"a": [-1, 0]}, {"a": (2,)}, "positions -1 to 0 leave the range 0 to 1"),
    ({"a": [0, 2]}, {"a": (2,)}, "positions 0 to 2 leave the range 0 to 1"),
    ({"a": [[0, 1]]}, {"a": (2,)}, "not a row of integers"),
]


@pytest.mark.parametrize(("positions", "shapes", "fault"), _FAULTY)
def test_faults_are_found_and_asserted(
    positions: dict[str, Any], shapes: dict[str, tuple[int, ...]], fault: str
) -> None:
    rows = {name: np.array(row, dtype=np.int32) for name, row in positions.items()}
    assert fault in "\n".join(find_mask_faults(rows, shapes))
    with pytest.raises(AssertionError, match=fault):
        SparseMask(positions=rows, shapes=shapes)


def test_all_faults_are_listed() -> None:
    rows = {name: np.array([3], dtype=np.int32) for name in "ab"}
    assert len(find_mask_faults(rows, {"a": (2,), "b": (3,), "c": (1,)})) == 3


def test_positions_must_be_integers_of_the_right_width() -> None:
    assert "float64" in find_mask_faults({"a": np.array([0.5])}, {"a": (2,)})[0]
    with pytest.raises(AssertionError):
        SparseMask(positions={"a": np.array([0], dtype=np.int64)}, shapes={"a": (2,)})


def test_counts_must_agree() -> None:
    rows = {"a": np.array([0, 1], dtype=np.int32)}
    with pytest.raises(AssertionError):
        SparseMask(positions=rows, shapes={"a": (2,)}, rule=MaskRule("1", 1, "uniform", 0))
    with pytest.raises(AssertionError):
        SparseMask(positions=rows, shapes={"a": (2,)}, num_eligible=1)


def test_overlap_counts_entries_in_both() -> None:
    first = _mask({"a": [0, 1, 5], "b": [2]}, {"a": (2, 3), "b": (4,)})
    second = _mask({"a": [1, 5], "c": [2]}, {"a": (2, 3), "c": (4,)})
    overlap = first.overlap(second)
    assert (overlap.num_both, overlap.num_first, overlap.num_second) == (2, 4, 3)
    assert (overlap.share_of_first, overlap.share_of_second) == (2 / 4, 2 / 3)
    assert overlap.num_expected == 3 * 2 / 6
    assert overlap.expected_share_of_first == 1 / 4
    assert overlap.expected_share_of_second == 1 / 3


def test_overlap_with_itself_and_with_others_tensors() -> None:
    mask = _mask({"a": [0, 5]}, {"a": (6,)})
    assert mask.overlap(mask).share_of_first == 1
    apart = mask.overlap(_mask({"b": [0, 5]}, {"b": (6,)}))
    assert (apart.num_both, apart.num_expected) == (0, 0)


def test_overlap_of_seeds_is_near_the_expectation() -> None:
    shapes = {"a": (100, 300), "b": (200, 200), "c": (30_000,)}
    masks = [select_entries(shapes, budget="10%", seed=seed) for seed in range(8)]
    for first, second in itertools.pairwise(masks):
        overlap = first.overlap(second)
        assert abs(overlap.num_expected - 1000) < 20
        # The hypergeometric standard deviation is about 28.
        assert abs(overlap.num_both - overlap.num_expected) < 5 * 28


def test_overlap_refuses_another_backbone() -> None:
    first = _mask({"a": [0], "b": [0]}, {"a": (6,), "b": (2,)})
    second = _mask({"a": [0], "b": [0]}, {"a": (7,), "b": (3,)})
    with pytest.raises(ConfigError, match=r"'a' has shape \(6,\) in one mask and \(7,\)") as error:
        first.overlap(second)
    assert len(error.value.faults) == 2
