"""Checkpoints in pickle files (``.bin``), written once as safetensors to be read in parts."""

from __future__ import annotations

import shutil
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scalepet.backbones.backbone import Backbone, in_plain_words
from scalepet.backbones.checkpoint import load_pickled, weight_files
from scalepet.backbones.fingerprint import fingerprint
from scalepet.errors import CheckpointError


def needs_conversion(backbone: Backbone, *, in_parts: bool) -> bool:
    """Whether the weights lie in files of which every process of a machine would read all into its
    own memory.

    Args:
        in_parts: a process keeps parts of tensors, which no pickle file gives; else whole ones,
            for which a file is mapped unless it is of torch before 1.6.
    """
    pickles = _pickle_files(backbone)
    return bool(pickles) if in_parts else not all(map(zipfile.is_zipfile, pickles))


def convert(backbone: Backbone, config: object) -> Path:
    """Write the weights as safetensors, file by file, beside the hub's cache; a file at a time is
    mapped into memory (read, where it is of torch before 1.6), and nothing in it is run.

    Returns:
        The folder; it is left as it is where it is there already.

    Raises:
        ConfigError: a file cannot be read.
        CheckpointError: the folder cannot be written.
    """
    folder = converted_folder(backbone, config)
    if folder.is_dir():
        return folder
    # On two machines, or in two containers, two processes may have one number.
    unfinished = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    try:
        unfinished.mkdir(parents=True)
        for file in weight_files(backbone, fetch=True):
            with in_plain_words(backbone):
                tensors = dict(_own_tensors(file))
            target = unfinished / f"{file.stem}.safetensors"
            safetensors.torch.save_file(tensors, target, metadata={"format": "pt"})
        unfinished.rename(folder)
    except (OSError, SafetensorError) as error:
        if not folder.is_dir():  # else another machine was faster
            raise CheckpointError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def converted_folder(backbone: Backbone, config: object) -> Path:
    """Where the converted weights of this very checkpoint lie."""
    return Path(HF_HOME) / "scalepet" / fingerprint(backbone, config)


def mapped_weights(backbone: Backbone, config: object) -> dict[str, Tensor] | None:
    """All tensors, out of the mapped files of ``convert``; None where transformers maps the weights
    as they are, or nothing was converted.
    """
    if not needs_conversion(backbone, in_parts=False):
        return None
    files = sorted(converted_folder(backbone, config).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in _tensors_of(file)} or None


def _tensors_of(file: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (the handle is no mapping)
            yield name, tensors.get_tensor(name)


def _pickle_files(backbone: Backbone) -> list[Path]:
    files = [] if backbone.random_start else weight_files(backbone, fetch=True)
    return [file for file in files if file.suffix == ".bin"]


def _own_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a pickle file; of those that share their numbers the first one."""
    seen = set()
    for name, tensor in load_pickled(file).items():
        key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape)
        if key not in seen:
            seen.add(key)
            yield name, tensor.contiguous()
