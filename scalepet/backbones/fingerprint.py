"""A short name for the weights of a backbone, so that an adapter knows its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scalepet.backbones.backbone import WHAT_A_PATH_IS, Backbone
from scalepet.backbones.checkpoint import weight_files
from scalepet.backbones.model_config import DROPOUT_FIELDS
from scalepet.errors import ConfigError
from scalepet.reading import check_file

_EDGE_BYTES = 2**20
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 2**12

_NOT_THE_WEIGHTS = {
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "num_labels",
    "own_tables",
    "transformers_version",
    *DROPOUT_FIELDS,
}
"""Fields of a model config that say nothing about the weights of the backbone itself."""


def fingerprint(backbone: Backbone, config: Any) -> str:
    """A short name for these very weights, the same wherever they lie: 16 hex digits.

    Reads the size, the first and last MiB and 64 samples of 4 KiB of every weight file, so that 40
    GB cost milliseconds; another checkpoint of the same shape differs in nearly every byte. At the
    end of a ``.bin`` file stand checksums of all that is in it. A random start is named by its
    config and seed. The weights of a hub name are downloaded if they are not here.

    Args:
        config: of ``read_model_config``.

    Raises:
        ConfigError: there are no weights.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in _random_start(backbone, config) if backbone.random_start else _samples(backbone):
        digest.update(part)
    return digest.hexdigest()


def _random_start(backbone: Backbone, config: Any) -> Iterator[bytes]:
    fields = {
        name: value
        for name, value in config.to_dict().items()
        if name not in _NOT_THE_WEIGHTS and not name.startswith("_")
    }
    yield json.dumps([fields, backbone.seed], sort_keys=True, default=str).encode()


def _samples(backbone: Backbone) -> Iterator[bytes]:
    files = weight_files(backbone, fetch=True)
    if not files:
        raise ConfigError(
            f"backbone.path: {backbone.path!r} has no weights; allowed: {WHAT_A_PATH_IS}"
        )
    for path in files:
        yield from _samples_of(path)


def _samples_of(path: Path) -> Iterator[bytes]:
    try:
        check_file(path)
    except OSError as error:
        raise ConfigError(f"backbone.path: {path} cannot be read: {error.strerror}") from error
    size = path.stat().st_size
    yield size.to_bytes(8, "little")
    with path.open("rb") as file:
        yield file.read(_EDGE_BYTES)
        for sample in range(_NUM_SAMPLES):
            file.seek(size * sample // _NUM_SAMPLES)
            yield file.read(_SAMPLE_BYTES)
        file.seek(max(0, size - _EDGE_BYTES))
        yield file.read()
