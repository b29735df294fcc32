"""The weight files behind a backbone, looked at without a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import cached_file

from scalepet.backbones.backbone import Backbone, in_plain_words
from scalepet.errors import ConfigError
from scalepet.reading import check_file, parse_json, read_text

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In the order in which transformers looks for them; the first one found is what it loads."""

_NUM_SHOWN = 5


def weight_files(backbone: Backbone, *, fetch: bool) -> list[Path]:
    """The files that hold the weights, in the order of their names.

    Args:
        fetch: download what the hub has and this machine has not; else what is not here yet counts
            as not there.

    Returns:
        One file, or all shards; nothing where no weights are found.

    Raises:
        ConfigError: an index names shards that are not there.
    """
    for name in _WEIGHTS:
        found = _find(backbone, name, fetch=fetch)
        if found is None:
            continue
        if found.suffix != ".json":
            return [found]
        names = _shard_names(backbone, found)
        shards = [_find(backbone, name, fetch=fetch) for name in names]
        here = [shard for shard in shards if shard is not None]
        if len(here) < len(shards) and (fetch or found.parent == Path(backbone.place)):
            gone = [name for name, shard in zip(names, shards, strict=True) if shard is None]
            raise ConfigError(
                f"backbone.path: {backbone.path!r} has no weights {', '.join(gone[:_NUM_SHOWN])}"
                f" ({len(gone)} of {len(names)} files), which {found.name} names; allowed: all of"
                " its files"
            )
        return here if len(here) == len(shards) else []
    return []


def _shard_names(backbone: Backbone, index: Path) -> list[str]:
    """
    Raises:
        ConfigError: it is no index, or names what does not lie beside it.
    """
    with in_plain_words(backbone):
        names = sorted({*parse_json(read_text(index))["weight_map"].values()})
        outside = [name for name in names if name == ".." or Path(name).name != name]
        if outside:
            raise ValueError(f"{index.name} names {outside[0]!r}, which does not lie beside it")
        return names


def _find(backbone: Backbone, name: str, *, fetch: bool) -> Path | None:
    try:
        found = cached_file(
            backbone.place, name, revision=backbone.revision, local_files_only=not fetch
        )
    except OSError:
        return None
    return None if found is None else Path(found)


def has_own_head(backbone: Backbone, config: Any) -> bool:
    """Whether the output projection of a T5 is a weight of its own (v1.1, flan, UL2) or the
    embedding (v1.0).

    The weight files decide where they are on this machine: transformers writes one and the same
    ``tie_word_embeddings: true`` for both. Else the config does: v1.0 scales what goes into the
    projection, v1.1 does not.

    Raises:
        ConfigError: a weight file is cut or broken.
    """
    files = [] if backbone.random_start else weight_files(backbone, fetch=False)
    if not files or any(file.suffix != ".safetensors" for file in files):
        return not config.scale_decoder_outputs
    with in_plain_words(backbone):
        head = _read_tensor(files, "lm_head.weight")
        embedding = _read_tensor(files, "shared.weight")
    return head is not None and embedding is not None and not torch.equal(head, embedding)


def _read_tensor(files: Sequence[Path], name: str) -> Tensor | None:
    for file in files:
        check_file(file)
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 (the handle is no mapping)
                return tensors.get_tensor(name)
    return None


def check_shapes(backbone: Backbone, mismatched: Collection[tuple[str, Any, Any]]) -> None:
    faults = [
        f"backbone.path: {backbone.path!r}: {name} is {tuple(there)} in the checkpoint,"
        f" {tuple(here)} in the model"
        for name, there, here in sorted(mismatched)
    ]
    if faults:
        raise ConfigError(first_of(faults))


def first_of(faults: Sequence[str]) -> list[str]:
    """A wrong checkpoint differs in every tensor; a few of them show what it is."""
    more = len(faults) - _NUM_SHOWN
    return [*faults[:_NUM_SHOWN], *([f"and {more} more tensors"] if more > 0 else [])]
