"""Plain transformers folders: what ``from_pretrained`` of any program reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import Tensor

from scalepet.backbones.backbone import Backbone
from scalepet.backbones.checkpoint import find_file
from scalepet.backbones.generation import GENERATION_FILE
from scalepet.backbones.model_config import family_of

MAX_SHARD_BYTES = 5_000_000_000
"""As transformers cuts its own files."""


def write_weights(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    sizes: Mapping[str, int],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write tensors as safetensors files with an index; never more than one file in memory.

    Args:
        folder: exists already.
        tensors: name and tensor, in the order of ``sizes``; contiguous, on the CPU.
        sizes: bytes of every tensor.
    """
    shards = _cut(sizes, max_shard_bytes)
    rest = iter(tensors)
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        if len(shards) == 1:
            file = "model.safetensors"
        shard = dict(next(rest) for _ in names)
        assert list(shard) == names, "tensors come in the order of their sizes"
        safetensors.torch.save_file(shard, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(names, file))
    assert next(rest, None) is None, "more tensors than sizes"
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _cut(sizes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    """Names in their order, in as many files as needed; a larger tensor has a file of its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_model_config(
    folder: Path, backbone: Backbone, config: Any, *, dtype: torch.dtype, labels: Sequence[str]
) -> None:
    """Write the config.json of the model that ``config`` describes, and what lies beside the
    weights about how texts are written.

    Args:
        labels: names of the classes, in class order; a model without a head needs none.
    """
    # As it lies beside the weights: without the wishes of a run, such as its dropout.
    plain = transformers.AutoConfig.from_pretrained(
        backbone.place, revision=backbone.revision, trust_remote_code=False
    )
    family = family_of(config)
    plain.architectures = [_public_name(family.model_class(config))]
    plain.dtype = dtype
    if family.head:
        plain.problem_type = "single_label_classification"  # one class a row is what is trained
        plain.id2label = dict(enumerate(labels))
        plain.label2id = {label: index for index, label in enumerate(labels)}
    plain.save_pretrained(folder)
    beside = find_file(backbone, GENERATION_FILE, fetch=True)
    if beside is not None and family.model_class(config).can_generate():
        shutil.copyfile(beside, folder / GENERATION_FILE)


def _public_name(model_class: Any) -> str:
    """The class of transformers itself, also behind one of ours."""
    names = [base.__name__ for base in model_class.__mro__]
    return next(name for name in names if hasattr(transformers, name))
