"""What looks like a file and is none is refused at once, wherever a file is opened: nothing waits
for another process, and no device or secret of the kernel is read. A pointer of Git LFS is said to
be one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scalepet import backbones, engine
from scalepet.backbones import Backbone
from scalepet.config import read_config
from scalepet.config.study_check import read_study_config
from scalepet.data import Results, Source, load_split
from scalepet.engine.files import RECORD_FILE, TENSORS_FILE, write_folder
from scalepet.errors import ScalepetError
from scalepet.experiments.runs import RunFacts, read_model
from scalepet.experiments.runs import read_config as read_run_config
from scalepet.launch import hostfile
from scalepet.masks import load_indices
from scalepet.reading import MAX_DEPTH, open_file, parse_json, read_bytes
from scalepet.recipes.answer import rows_of_file
from scalepet.recipes.peft import _read as read_peft
from scalepet.tracking import check_seal, read_records

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"

Make = Callable[[Path], object]
KINDS: dict[str, tuple[Make, str]] = {
    "a fifo": (os.mkfifo, "it is a fifo"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "a link into /proc": (lambda path: path.symlink_to("/proc/self/environ"), "it lies in /proc"),
    "a pointer of LFS": (lambda path: path.write_text(POINTER), "it is a pointer of Git LFS"),
}


def in_folder(name: str, read: Callable[[Path], Any]) -> Callable[[Path, Make], Any]:
    def run(folder: Path, make: Make) -> Any:
        make(folder / name)
        return read(folder)

    return run


def saved(name: str) -> Callable[[Path, Make], Any]:
    def run(folder: Path, make: Make) -> Any:
        write_folder(folder / "state", tensors={"a": torch.ones(1)}, record={})
        (folder / "state" / name).unlink()
        make(folder / "state" / name)
        return engine.read_folder(folder / "state")

    return run


def sealed(folder: Path, make: Make) -> Any:
    (folder / "seal.json").write_text(json.dumps({"result.json": "0" * 32}))
    make(folder / "result.json")
    return check_seal(folder)


def rows(ending: str) -> Callable[[Path, Make], Any]:
    kind = {"jsonl": "json"}.get(ending, ending)
    return in_folder(
        f"a.{ending}",
        lambda folder: load_split(
            Source(kind, files={"train": str(folder / f"a.{ending}")}), "train"
        ),
    )


OPENED: dict[str, Callable[[Path, Make], Any]] = {
    "run.yaml": in_folder("run.yaml", lambda folder: read_config(folder / "run.yaml")),
    "study.yaml": in_folder("s.yaml", lambda folder: read_study_config(folder / "s.yaml")),
    "a DeepSpeed file": in_folder("z.json", lambda f: engine.read_ds_file(str(f / "z.json"))),
    "a hostfile": in_folder("hosts", lambda folder: hostfile.read_hostfile(folder / "hosts")),
    "csv": rows("csv"),
    "jsonl": rows("jsonl"),
    "parquet": rows("parquet"),
    "--input": in_folder("a.csv", lambda folder: rows_of_file(folder / "a.csv")),
    "a data folder": in_folder(
        "train.csv", lambda folder: load_split(Source(str(folder)), "train")
    ),
    "state.json": in_folder("state.json", lambda folder: load_split(Source(str(folder)), "train")),
    "a record": saved(RECORD_FILE),
    "tensors": saved(TENSORS_FILE),
    "a seal": in_folder("seal.json", check_seal),
    "what is sealed": sealed,
    "metrics.jsonl": in_folder("metrics.jsonl", lambda f: read_records(f / "metrics.jsonl")),
    "config.yaml of a run": in_folder("c.yaml", lambda folder: read_run_config(folder / "c.yaml")),
    "run.json": in_folder("run.json", lambda folder: read_model(folder / "run.json", RunFacts)),
    "matrix.json": in_folder("matrix.json", Results.read),
    "a mask": in_folder("mask", lambda folder: load_indices(folder / "mask")),
    "an adapter of PEFT": in_folder("adapter_config.json", read_peft),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPENED)
def test_it_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    make, words = KINDS[kind]
    with pytest.raises(ScalepetError) as refused:
        OPENED[name](tmp_path, make)
    # Where a name must be that of a file, one that is none is not there.
    is_absent = "does not exist" in str(refused.value) or "is no file" in str(refused.value)
    assert words in str(refused.value) or is_absent, refused.value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_in_a_backbone(
    file: str, kind: str, backbones_with_tokenizers: Path, tmp_path: Path
) -> None:
    make, words = KINDS[kind]
    copy = Path(shutil.copytree(backbones_with_tokenizers / "bert", tmp_path / "bert"))
    (copy / file).unlink()
    make(copy / file)
    backbone = Backbone(str(copy), num_classes=2)
    with pytest.raises(ScalepetError, match=words) as refused:
        config = backbones.read_model_config(backbone)
        backbones.load_tokenizer(backbone)
        backbones.fingerprint(backbone, config)
    assert file in str(refused.value)


def test_one_shard_of_two_is_named(tiny_backbones: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_backbones / "bert", tmp_path / "bert"))
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"metadata": {}, "weight_map": dict(zip("ab", names, strict=True))}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    backbone = Backbone(str(copy), num_classes=2)
    config = backbones.read_model_config(backbone)
    with pytest.raises(ScalepetError, match=rf"no weights {names[1]} \(1 of 2 files\), which"):
        backbones.fingerprint(backbone, config)


def test_limits_of_a_record(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 11)
    assert read_bytes(tmp_path / "a", max_bytes=11) == b"x" * 11
    with pytest.raises(OSError, match="larger than 10 bytes"):
        read_bytes(tmp_path / "a", max_bytes=10)
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(ValueError, match="nested deeper"):
        parse_json("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)
