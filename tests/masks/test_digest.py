"""Fingerprints: what they tell apart, and that they stay."""

from __future__ import annotations

import pytest

from scalepet.masks.digest import digest_parts


def test_digest_is_pinned() -> None:
    assert digest_parts(["scalepet", b"\x00\xff", ""]).hex() == "838c8e37e7213aff61f4e4c44d2e9198"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("ab", "c"), ("a", "bc")),
        (("a", "b"), ("b", "a")),
        (("a",), ("a", "")),
        ((), ("",)),
    ],
)
def test_digest_tells_sequences_apart(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    assert digest_parts(first) != digest_parts(second)


def test_digest_takes_text_as_utf8() -> None:
    assert digest_parts(["größe"]) == digest_parts(["größe".encode()])
