"""Parts of tensors out of safetensors files, and files that are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from scalepet.backbones.slices import WeightFiles
from scalepet.errors import ConfigError

TENSORS = {
    "a": torch.arange(24, dtype=torch.float32).view(4, 6),
    "b": torch.arange(7).to(torch.bfloat16),
    "c": torch.arange(5),  # whole numbers: positions, no weights
    "d": torch.tensor(3.5, dtype=torch.float16),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    safetensors.torch.save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(("start", "stop"), [(0, 24), (0, 1), (5, 17), (23, 24), (9, 9)])
def test_a_part_is_what_the_whole_tensor_has_there(file, start, stop):
    weights = WeightFiles.open([file])
    part = weights.read("a", start, stop)
    assert torch.equal(part, TENSORS["a"].flatten()[start:stop])
    assert weights.num_bytes == 4 * (stop - start)


def test_types_shapes_and_bytes_are_known(file):
    weights = WeightFiles.open([file])
    assert set(weights.places) == {"a", "b", "d"}
    assert weights.shape("a") == (4, 6) and weights.shape("d") == ()
    assert torch.equal(weights.read("b", 2, 5), TENSORS["b"][2:5])
    assert weights.read("d", 0, 1).item() == 3.5
    assert weights.num_bytes == 2 * 3 + 2


def test_several_files_are_one_checkpoint(tmp_path):
    for name in ("x", "y"):
        safetensors.torch.save_file({name: torch.ones(3)}, tmp_path / f"{name}.safetensors")
    assert set(WeightFiles.open(sorted(tmp_path.iterdir())).places) == {"x", "y"}


@pytest.mark.parametrize("num_bytes", [0, 5, 40, -1])
def test_a_cut_file_is_found_before_anything_is_read(file, num_bytes):
    data = file.read_bytes()
    file.write_bytes(data[:num_bytes])
    with pytest.raises(ConfigError, match="model.safetensors cannot be read"):
        WeightFiles.open([file])


def test_a_header_that_does_not_fit_its_shapes_is_refused(file):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["a"]["shape"] = [4, 7]
    text = json.dumps(header).encode().ljust(length)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(ConfigError, match=r"a of shape \(4, 7\) has 96 bytes"):
        WeightFiles.open([file])
