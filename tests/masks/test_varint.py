"""Gaps as bytes: against a plain encoder, and what cannot be decoded."""

from __future__ import annotations

import numpy as np
import pytest

from scalepet.masks import draw_distinct
from scalepet.masks.varint import decode_sorted, encode_sorted


def _encode_plainly(positions: list[int]) -> bytes:
    data, last = bytearray(), 0
    for position in positions:
        gap, last = position - last, position
        while gap > 127:
            data.append(gap % 128 + 128)
            gap //= 128
        data.append(gap)
    return bytes(data)


@pytest.mark.parametrize(
    "positions",
    [
        [],
        [0],
        [127],
        [128],
        [0, 1, 2, 130, 131],
        [0, 127, 128, 255, 256, 16_384, 32_767, 32_768, 2_097_152, 2**31 - 1],
        [2**31, 2**40, 2**62, 2**63 - 1],
        [2**63 - 1],
    ],
)
def test_known_rows(positions: list[int]) -> None:
    data = encode_sorted(np.array(positions, dtype=np.int64))
    assert data.dtype == np.uint8
    assert data.tobytes() == _encode_plainly(positions)
    assert decode_sorted(data).tolist() == positions


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("num_positions", [2000, 200_000, 2**31])
def test_random_rows(num_positions: int, dtype: type) -> None:
    row = draw_distinct(1000, num_positions=num_positions, key=("varint",))
    data = encode_sorted(row.astype(dtype))
    assert data.tobytes() == _encode_plainly(row.tolist())
    np.testing.assert_array_equal(decode_sorted(data), row)


@pytest.mark.parametrize(("density", "most_bytes"), [(0.1, 1.01), (0.001, 1.95), (0.0001, 2.25)])
def test_size_of_an_entry(density: float, most_bytes: float) -> None:
    row = draw_distinct(20_000, num_positions=int(20_000 / density), key=("size",))
    assert encode_sorted(row).size / row.size < most_bytes


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ([128], "cut off"),
        ([1, 255, 200], "cut off"),
        ([255] * 9 + [1], "10 bytes, at most 9"),
    ],
)
def test_refuses_what_is_no_row(data: list[int], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        decode_sorted(np.array(data, dtype=np.uint8))
