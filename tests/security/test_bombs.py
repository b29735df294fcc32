"""Files that are made to be too much: they are refused in one message, and cost nothing."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scalepet import engine
from scalepet.backbones.slices import WeightFiles
from scalepet.config.loader import parse_yaml
from scalepet.data import Results
from scalepet.engine.files import RECORD_FILE, TENSORS_FILE, write_folder
from scalepet.errors import CheckpointError, ConfigError, DataError, ScalepetError
from scalepet.experiments.runs import RunFacts, read_model
from scalepet.masks import load_indices
from scalepet.recipes.finetune import Progress
from scalepet.recipes.going_on import progress_of
from scalepet.recipes.peft import _read as read_peft
from scalepet.tracking import check_seal, read_records

DEEP = "[" * 200_000
BOMBS = {"deep": DEEP, "deep objects": '{"a":' * 200_000, "a long number": "9" * 10_000}


def header(length: int, content: bytes = b"") -> bytes:
    """The beginning of a safetensors file, with any length in front."""
    return struct.pack("<Q", length) + content


def of_tensor(**entry: Any) -> bytes:
    content = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **entry}})
    return header(len(content), content.encode()) + b"\0" * 8


HEADERS = {
    "longer than all memory": header(2**63),
    "longer than the file": header(10**9, b"{}"),
    "no JSON": header(4, b"abcd"),
    "a list": header(2, b"[]"),
    "deep": header(len(DEEP), DEEP.encode()),
    "a shape beyond all memory": of_tensor(shape=[2**40, 2**40]),
    "a shape below nothing": of_tensor(shape=[-1, -2]),
    "a shape of text": of_tensor(shape="ab"),
    "bytes before the file": of_tensor(data_offsets=[-8, 0]),
    "bytes behind the file": of_tensor(data_offsets=[8, 16]),
    "numbers that are none": of_tensor(data_offsets=[float("nan"), float("inf")]),
    "empty": b"",
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
class TestHeaders:
    def test_of_a_checkpoint(self, content: bytes, tmp_path: Path) -> None:
        write_folder(tmp_path / "state", tensors={"a": torch.ones(2)}, record={})
        (tmp_path / "state" / TENSORS_FILE).write_bytes(content)
        sign(tmp_path / "state")
        with pytest.raises(CheckpointError, match="cannot be read"):
            engine.read_folder(tmp_path / "state")

    def test_of_a_mask(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "mask").write_bytes(content)
        with pytest.raises(CheckpointError, match="mask file"):
            load_indices(tmp_path / "mask")

    def test_of_a_backbone(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read"):
            WeightFiles.open([tmp_path / "model.safetensors"])

    def test_of_an_adapter_of_peft(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text("{}")
        (tmp_path / "adapter_model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="no adapter of PEFT"):
            read_peft(tmp_path)


def sign(folder: Path, **changes: Any) -> None:
    """Make the checksums of a folder fit what was changed in it, as whoever means harm can."""
    record = json.loads((folder / RECORD_FILE).read_text())
    record.pop("record_checksum")
    content = (folder / TENSORS_FILE).read_bytes()
    record |= {"checksum": hashlib.blake2b(content, digest_size=16).hexdigest(), **changes}
    text = json.dumps(record, indent=2) + "\n"
    record["record_checksum"] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")


def read_folder(path: Path) -> Any:
    write_folder(path.parent / "state", tensors={}, record={})
    path.rename(path.parent / "state" / RECORD_FILE)
    return engine.read_folder(path.parent / "state")


def read_seal(path: Path) -> Any:
    path.rename(path.with_name("seal.json"))
    return check_seal(path.parent)


def read_metrics(path: Path) -> Any:
    path.write_text(path.read_text() + "\n")
    return read_records(path)


def read_adapter(path: Path) -> Any:
    path.rename(path.with_name("adapter_config.json"))
    return read_peft(path.parent)


READERS: dict[str, Callable[[Path], Any]] = {
    "record of a folder": read_folder,
    "seal.json": read_seal,
    "metrics.jsonl": read_metrics,
    "run.json": lambda path: read_model(path, RunFacts),
    "matrix.json": lambda path: Results.from_json(path.read_text(), where="matrix.json"),
    "adapter_config.json": read_adapter,
    "a DeepSpeed file": lambda path: engine.read_ds_file(str(path)),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("name", READERS)
def test_json(name: str, bomb: str, tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_text(bomb)
    with pytest.raises(ScalepetError) as refused:
        READERS[name](path)
    assert isinstance(refused.value, CheckpointError | ConfigError | DataError)
    assert len(str(refused.value)) < 2000


def merges(levels: int, width: int) -> str:
    """Each line merges the one before it several times; 483 bytes took a minute and 4 GB."""
    lines = ["a0: &a0 {k0: 1}"]
    for level in range(1, levels):
        again = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} {{k{level}: 1, <<: [{again}]}}")
    return "\n".join(lines) + "\n"


def aliases(levels: int, width: int) -> str:
    lines = ["a0: &a0 [1]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines) + "\n"


YAML_BOMBS = {
    "merged keys": merges(9, 9),
    "aliases": aliases(9, 9),
    "aliases of lists of merged keys": merges(6, 9) + "b: [*a5, *a5, *a5, *a5]\n",
    "deep": "[" * 5000,
    "deep in blocks": "".join(f"{' ' * level}a:\n" for level in range(500)),
    "long": "a: " + "x" * 2**20,
    "a key twice": "a: 1\na: 2\n",
    "an alias in itself": "a: &a [*a]\n",
    "a merged alias in itself": "a: &a {<<: *a}\n",
}


@pytest.mark.parametrize("text", YAML_BOMBS.values(), ids=YAML_BOMBS)
def test_yaml(text: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=r".") as refused:
        parse_yaml(text)
    assert time.process_time() - started < 5
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)


def test_merged_keys_within_each_other() -> None:
    """What is merged may be said again, at every depth and in every order."""
    text = """
one: {deep: &b {<<: &a {x: 1, y: 2}, x: 5}}
two: {<<: *b, y: 3}
three: {<<: [{z: 1}, {<<: *b, z: 2}], w: 4}
"""
    assert parse_yaml(text) == {
        "one": {"deep": {"x": 5, "y": 2}},
        "two": {"x": 5, "y": 3},
        "three": {"x": 5, "y": 2, "z": 1, "w": 4},
    }


def state_with(folder: Path, **changes: Any) -> Path:
    record = {"progress": {}, "fingerprint": {}, "adam_steps": {}, "loss_scaler": {}}
    write_folder(folder, tensors={"trained/a": torch.ones(2)}, record={**record, **changes})
    return folder


@pytest.mark.parametrize("count", [float("nan"), float("inf"), -1, "3", 1.5, True, None, [1]])
def test_counts_of_a_state(count: Any, tmp_path: Path) -> None:
    engine.read_run_state(state_with(tmp_path / "whole", adam_steps={"a": 3}))
    with pytest.raises(CheckpointError, match="adam_steps.a"):
        engine.read_run_state(state_with(tmp_path / "state", adam_steps={"a": count}))
    state = engine.read_run_state(state_with(tmp_path / "far", progress={"num_steps": count}))
    with pytest.raises(CheckpointError, match=r"progress\.num_steps"):
        progress_of(Progress, state, state.progress)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "1", None])
def test_a_loss_scale_of_a_state(scale: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"loss_scaler\.cur_scale"):
        engine.read_run_state(state_with(tmp_path / "state", loss_scaler={"cur_scale": scale}))


@pytest.mark.parametrize("found", [None, [], "x", {"num_steps": {}}])
def test_progress_of_another_kind(found: Any, tmp_path: Path) -> None:
    state = engine.read_run_state(state_with(tmp_path / "state"))
    with pytest.raises(CheckpointError, match="progress"):
        progress_of(Progress, state, found)
