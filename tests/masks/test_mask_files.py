"""Masks on disk: round trips by rule and by positions, and each way in which a file is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from scalepet.errors import CheckpointError
from scalepet.masks import (
    MaskRule,
    SparseMask,
    describe,
    load_indices,
    mask_of_positions,
    rebuild,
    save_indices,
    select_entries,
)
from scalepet.masks.record import seal_record
from scalepet.masks.varint import encode_sorted

_SHAPES: dict[str, tuple[int, ...]] = {
    "a.weight": (10, 20),
    "b.weight": (300,),
    "c": (1, 1),
    "d": (),
}
_GROUPS = {"a.weight": "matrix", "b.weight": "vector", "c": "matrix", "d": "vector"}


@pytest.fixture
def mask() -> SparseMask:
    return select_entries(_SHAPES, budget="10%", seed=1)


def _assert_same(first: SparseMask, second: SparseMask) -> None:
    assert first.shapes == second.shapes
    assert (first.rule, first.num_eligible) == (second.rule, second.num_eligible)
    assert first.positions.keys() == second.positions.keys()
    for name, row in first.positions.items():
        assert row.dtype == second.positions[name].dtype
        np.testing.assert_array_equal(row, second.positions[name])


@pytest.mark.parametrize("share", ["uniform", "even", "proportional"])
def test_rebuild_through_json(share: Any) -> None:
    saved = select_entries(_SHAPES, budget="10%", seed=4, share=share, groups=_GROUPS)
    record = json.loads(json.dumps(describe(saved)))
    assert record["count"] == saved.count and record["checksum"] == saved.checksum
    _assert_same(saved, rebuild(record, shapes=_SHAPES, groups=_GROUPS))


_ROWS = {name: (1, max(1, int(np.prod(shape[1:])))) for name, shape in _SHAPES.items()}


@pytest.mark.parametrize("share", ["uniform", "even", "proportional"])
def test_structured_masks_are_rebuilt_and_saved_with_their_unit(tmp_path: Path, share: Any) -> None:
    request: dict[str, Any] = {"budget": 47, "seed": 4, "share": share, "groups": _GROUPS}
    saved = select_entries(_SHAPES, **request, tiles=_ROWS, unit="row")
    record = json.loads(json.dumps(describe(saved)))
    assert record["rule"]["unit"] == "row"
    assert record["checksum"] != select_entries(_SHAPES, **request).checksum
    _assert_same(saved, rebuild(record, shapes=_SHAPES, groups=_GROUPS, tiles=_ROWS))
    with pytest.raises(CheckpointError, match=r"groups \(and tiles\) of the saved mask"):
        rebuild(record, shapes=_SHAPES, groups=_GROUPS)
    save_indices(saved, tmp_path / "mask")
    _assert_same(saved, load_indices(tmp_path / "mask"))


def test_records_of_before_there_were_units_are_read(mask: SparseMask) -> None:
    record = describe(mask)
    assert record["rule"].pop("unit") == "element"
    _assert_same(mask, rebuild(json.loads(json.dumps(record)), shapes=_SHAPES))


def test_files_of_before_there_were_units_are_read(tmp_path: Path) -> None:
    positions = {"a": np.array([1, 3], dtype=np.int32)}
    rule = {"budget": "2", "count": 2, "share": "uniform", "seed": 0}
    plain = SparseMask(positions=positions, shapes={"a": (4,)})
    record = _RECORD | {"rule": rule, "checksum": plain.checksum}
    rows = {"a": encode_sorted(positions["a"])}
    save_file(rows, tmp_path / "mask", metadata={"scalepet_mask": seal_record(record)})
    loaded = load_indices(tmp_path / "mask")
    assert loaded.checksum == plain.checksum
    assert loaded.rule == MaskRule("2", 2, "uniform", 0, unit="element")


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"d": (7,)}, ["num_eligible is 502 as saved but 508 here", "count is 50 as saved but 51"]),
        ({"a.weight": (20, 10)}, ["checksum is .* as saved but .* here"]),
        (
            {"a.weight": (2, 2), "b.weight": (2,)},
            ["num_eligible is 502 .* but 8", "count is 50 .* 1"],
        ),
    ],
)
def test_rebuild_refuses_another_backbone(
    mask: SparseMask, changes: dict[str, tuple[int, ...]], faults: list[str]
) -> None:
    with pytest.raises(CheckpointError, match="allowed: the tensor names, shapes and gro") as error:
        rebuild(describe(mask), shapes=_SHAPES | changes)
    for fault in faults:
        assert error.match(fault)


def test_rebuild_refuses_another_name(mask: SparseMask) -> None:
    shapes = {name.replace("weight", "kernel"): shape for name, shape in _SHAPES.items()}
    with pytest.raises(CheckpointError, match=mask.checksum):
        rebuild(describe(mask), shapes=shapes)


def test_rebuild_refuses_what_cannot_be_chosen_here() -> None:
    saved = select_entries(_SHAPES, budget=400, seed=0)
    with pytest.raises(CheckpointError, match="'400' is 400 entries but 200 are eligible"):
        rebuild(describe(saved), shapes={"a.weight": (10, 20)})
    grouped = select_entries(_SHAPES, budget=4, seed=0, share="even", groups=_GROUPS)
    with pytest.raises(CheckpointError, match="needs a group"):
        rebuild(describe(grouped), shapes=_SHAPES)


@pytest.mark.parametrize(
    ("record_changes", "rule_changes", "fault"),
    [
        ({"rule": None}, {}, "rule: Input should be an object"),
        ({"checksum": "12"}, {}, "checksum: .* got '12'"),
        ({"count": 0}, {}, "count: Input should be greater than 0"),
        ({"count": 51}, {}, "rule.count is 50 but count is 51"),
        ({"num_eligible": 49}, {}, "count is 50 but num_eligible is 49"),
        ({"num_eligible": None}, {}, "num_eligible: "),
        ({"colour": 1}, {}, "colour: Extra inputs"),
        ({"colour": {1}}, {}, "not JSON"),
        ({}, {"seed": "1"}, "rule.seed: .* got '1'"),
        ({}, {"seed": 1.5}, "rule.seed: "),
        ({}, {"share": "fair"}, "rule.share: .* got 'fair'"),
        ({}, {"budget": 50}, "rule.budget: "),
        ({}, {"unit": 7}, "rule.unit: .* got 7"),
        ({}, {"budget": "nan"}, "budget: 'nan' is not allowed"),
        ({}, {"colour": 1}, "rule.colour: "),
    ],
)
def test_rebuild_refuses_a_malformed_record(
    mask: SparseMask, record_changes: dict[str, Any], rule_changes: dict[str, Any], fault: str
) -> None:
    record = describe(mask)
    record = record | {"rule": record["rule"] | rule_changes} | record_changes
    with pytest.raises(CheckpointError, match=f"mask record: .*{fault}"):
        rebuild(record, shapes=_SHAPES)


def test_rebuild_lists_all_faults() -> None:
    with pytest.raises(CheckpointError) as error:
        rebuild({}, shapes=_SHAPES)
    assert len(error.value.faults) == 4
    with pytest.raises(CheckpointError, match="should be an object"):
        rebuild([1], shapes=_SHAPES)  # type: ignore[arg-type]


def test_describe_asserts_a_rule(mask: SparseMask) -> None:
    with pytest.raises(AssertionError, match="no rule"):
        describe(dataclasses.replace(mask, rule=None))


def test_indices_round_trip(mask: SparseMask, tmp_path: Path) -> None:
    save_indices(mask, tmp_path / "mask.safetensors")
    loaded = load_indices(tmp_path / "mask.safetensors")
    _assert_same(mask, loaded)
    assert loaded.checksum == mask.checksum
    assert [path.name for path in tmp_path.iterdir()] == ["mask.safetensors"]


def test_indices_round_trip_of_masks_without_a_rule(tmp_path: Path) -> None:
    rows = {"wide": np.array([0, 2**31, 2**33 - 1]), "narrow": np.array([5], dtype=np.int32)}
    mask = SparseMask(positions=rows, shapes={"wide": (2**17, 2**16), "narrow": (2, 3)})
    save_indices(mask, str(tmp_path / "mask"))
    _assert_same(mask, load_indices(str(tmp_path / "mask")))


def test_saving_is_repeatable_and_replaces(mask: SparseMask, tmp_path: Path) -> None:
    save_indices(mask, tmp_path / "first")
    (tmp_path / "second").write_bytes(b"something else")
    save_indices(mask, tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_file_is_compact(tmp_path: Path) -> None:
    """At one in a thousand an entry takes under 2 bytes, names and shapes included."""
    shapes = {f"encoder.block.{i}.layer.0.SelfAttention.q.weight": (4096, 4096) for i in range(6)}
    mask = select_entries(shapes, budget="0.1%", seed=0)
    save_indices(mask, tmp_path / "mask")
    assert (tmp_path / "mask").stat().st_size < 2 * mask.count
    with safe_open(tmp_path / "mask", framework="numpy") as file:
        assert sorted(file.keys()) == sorted(shapes)


def test_truncated_files_are_refused(mask: SparseMask, tmp_path: Path) -> None:
    path = tmp_path / "mask"
    save_indices(mask, path)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=f"mask file {path}: "):
            load_indices(path)


def test_any_altered_byte_is_refused(mask: SparseMask, tmp_path: Path) -> None:
    path = tmp_path / "mask"
    save_indices(mask, path)
    data = path.read_bytes()
    for place in range(len(data)):
        for bits in (0x01, 0x80, 0xFF):
            altered = bytearray(data)
            altered[place] ^= bits
            path.write_bytes(altered)
            with pytest.raises(CheckpointError, match=f"mask file {path}: "):
                load_indices(path)


_RECORD: dict[str, Any] = {
    "rule": None,
    "count": 2,
    "num_eligible": None,
    "checksum": "0" * 32,
    "shapes": {"a": [4]},
}


@pytest.mark.parametrize(
    ("changes", "rows", "fault"),
    [
        ({}, {"a": encode_sorted(np.array([1, 3]))}, "checksum is 0000"),
        ({}, {"a": encode_sorted(np.array([1, 4]))}, "positions 1 to 4 leave the range 0 to 3"),
        ({}, {"a": np.array([1, 0], dtype=np.uint8)}, "not strictly rising"),
        ({}, {"a": np.array([1, 200], dtype=np.uint8)}, "cut off"),
        ({}, {"a": encode_sorted(np.array([1]))}, "count is 2 as saved but 1 here"),
        ({}, {"a": np.array([1, 2], dtype=np.int64)}, "no row of bytes for a"),
        ({}, {"a": np.ones((2, 2), dtype=np.uint8)}, "no row of bytes for a"),
        ({}, {"b": encode_sorted(np.array([1, 3]))}, "'a' has no positions"),
        ({}, {}, "no tensor has an entry"),
        ({"shapes": {"a": [0]}}, {"a": encode_sorted(np.array([1, 3]))}, "shapes.a.0: "),
        ({"shapes": None}, {"a": encode_sorted(np.array([1, 3]))}, "shapes: "),
        (
            {"rule": {"budget": "3", "count": 3, "share": "uniform", "seed": 0}},
            {"a": encode_sorted(np.array([1, 3]))},
            "rule.count is 3 but count is 2",
        ),
    ],
)
def test_a_well_sealed_but_wrong_file_is_refused(
    tmp_path: Path, changes: dict[str, Any], rows: dict[str, Any], fault: str
) -> None:
    save_file(rows, tmp_path / "mask", metadata={"scalepet_mask": seal_record(_RECORD | changes)})
    with pytest.raises(CheckpointError, match=fault):
        load_indices(tmp_path / "mask")


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        (None, "no 'scalepet_mask'"),
        ({"format": "pt"}, "no 'scalepet_mask'"),
        ({"scalepet_mask": "{"}, "Expecting"),
        ({"scalepet_mask": "[1]"}, "no JSON object"),
        ({"scalepet_mask": json.dumps(_RECORD)}, "the metadata is altered: digest None"),
        ({"scalepet_mask": json.dumps(_RECORD | {"digest": "00"})}, "digest 00 as saved but"),
    ],
)
def test_other_safetensors_files_are_refused(
    tmp_path: Path, metadata: dict[str, str] | None, fault: str
) -> None:
    save_file({"a": np.zeros(3, dtype=np.uint8)}, tmp_path / "mask", metadata=metadata)
    with pytest.raises(CheckpointError, match=f"mask file .*mask: .*{fault}"):
        load_indices(tmp_path / "mask")


def test_missing_files_and_folders_are_refused(mask: SparseMask, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "absent", tmp_path, tmp_path / "file" / "mask"):
        with pytest.raises(CheckpointError, match=f"mask file {path}: "):
            load_indices(path)
    for path in (tmp_path / "absent" / "mask", tmp_path, tmp_path / "file" / "mask"):
        with pytest.raises(CheckpointError, match=f"mask file {path}: cannot be written: "):
            save_indices(mask, path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_save_keeps_the_old_file(
    mask: SparseMask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "mask"
    save_indices(mask, path)
    data = path.read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(CheckpointError, match="No space left"):
        save_indices(select_entries(_SHAPES, budget=7, seed=2), path)
    assert path.read_bytes() == data
    assert [entry.name for entry in tmp_path.iterdir()] == ["mask"]


def test_positions_make_a_mask_without_a_rule() -> None:
    positions = {"wide": np.array([0, 2**33 - 1]), "narrow": np.array([5], dtype=np.int64)}
    shapes = {"wide": (2**17, 2**16), "narrow": (2, 3)}
    mask = mask_of_positions(positions, shapes=shapes, num_eligible=2**34)
    assert mask.rule is None and mask.num_eligible == 2**34 and mask.shapes == shapes
    assert {name: row.dtype for name, row in mask.positions.items()} == {
        "wide": np.int64,
        "narrow": np.int32,
    }
    assert {name: row.tolist() for name, row in mask.positions.items()} == {
        "wide": [0, 2**33 - 1],
        "narrow": [5],
    }
    assert mask_of_positions(positions, shapes=shapes).num_eligible is None


def test_positions_that_are_no_mask_are_refused_with_every_fault() -> None:
    positions = {"a": np.array([2, 1]), "b": np.array([0, 9]), "c": np.array([0])}
    with pytest.raises(CheckpointError) as error:
        mask_of_positions(positions, shapes={"a": (3,), "b": (9,), "d": (1,)}, num_eligible=4)
    found = "\n".join(error.value.faults)
    for fault in (
        "mask: 'a' of shape (3,): positions are not strictly rising",
        "mask: 'b' of shape (9,): positions 0 to 9 leave the range 0 to 8",
        "mask: 'c' has no shape",
        "mask: 'd' has no positions",
        "mask: 5 entries but 4 are eligible",
    ):
        assert fault in found
    assert len(error.value.faults) == 5
    with pytest.raises(CheckpointError, match="mask: no tensor has an entry"):
        mask_of_positions({}, shapes={})
