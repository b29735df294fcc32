"""One fingerprint for every use in this room: stream keys, mask checksums, file checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

_NUM_DIGEST_BYTES = 16


def digest_parts(parts: Iterable[str | bytes]) -> bytes:
    """16 bytes that name a sequence of parts: blake2b over each part after its length.

    The lengths keep ("ab", "c") and ("a", "bc") apart. Text counts as its UTF-8 bytes.
    """
    state = hashlib.blake2b(digest_size=_NUM_DIGEST_BYTES)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.digest()
