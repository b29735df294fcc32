"""The weight files behind a backbone, looked at without a model."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
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
        found = find_file(backbone, name, fetch=fetch)
        if found is None:
            continue
        if found.suffix != ".json":
            return [found]
        names = _shard_names(backbone, found)
        shards = [find_file(backbone, name, fetch=fetch) for name in names]
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


def find_file(backbone: Backbone, name: str, *, fetch: bool) -> Path | None:
    """A file beside the weights; None where there is none, or none on this machine."""
    if Path(backbone.place).is_file():
        return None
    try:
        found = cached_file(
            backbone.place, name, revision=backbone.revision, local_files_only=not fetch
        )
    except OSError:
        return None
    return None if found is None else Path(found)


def own_tables(backbone: Backbone, names: Sequence[str]) -> tuple[str, ...] | None:
    """Which of the tensors that a family may store as one are weights of their own.

    The weight files decide: a config.json of transformers says ``tie_word_embeddings: true``
    whatever there is. Those that are lacking, and those with the same numbers, are one tensor; it
    is the first one that is there, under whatever name and in whatever file.

    Args:
        names: of the tensors, the one that others are tied to first.

    Returns:
        Names without the first; None where the files are not on this machine, or there are none.

    Raises:
        ConfigError: a weight file is cut or broken.
    """
    files = [] if backbone.random_start else weight_files(backbone, fetch=False)
    if not files:
        return None
    with in_plain_words(backbone), ExitStack() as opened:
        found = dict(_read_tensors(files, names, opened))
        present = [name for name in names if name in found]
        return tuple(n for n in present[1:] if not _is_same(found[n], found[present[0]]))


def _is_same(one: Tensor, other: Tensor) -> bool:
    dtype = torch.promote_types(one.dtype, other.dtype)
    return torch.equal(one.to(dtype), other.to(dtype))


def _read_tensors(
    files: Sequence[Path], names: Collection[str], opened: ExitStack
) -> Iterator[tuple[str, Tensor]]:
    """Those of ``names`` that are there; the files stay mapped as long as ``opened`` is open."""
    for file in files:
        check_file(file)
        if file.suffix == ".safetensors":
            tensors = opened.enter_context(safe_open(file, framework="pt"))
            yield from ((n, tensors.get_tensor(n)) for n in {*tensors.keys()} & {*names})
        else:
            yield from ((n, t) for n, t in load_pickled(file).items() if n in names)


def load_pickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.bin`` file, mapped into memory; nothing in it is run."""
    # torch before 1.6 wrote no zip files, which alone can be mapped.
    is_mapped = zipfile.is_zipfile(file)
    loaded: dict[str, Tensor] = torch.load(
        file, map_location="cpu", mmap=is_mapped, weights_only=True
    )
    return loaded


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
