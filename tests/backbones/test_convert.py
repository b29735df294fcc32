"""Pickle files are written once as safetensors, each checkpoint its own."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from scalepet.backbones import Backbone, convert, fingerprint, read_model_config
from scalepet.errors import ConfigError

Write = Callable[..., Backbone]


@pytest.fixture
def write(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """``write("name", tensors)``: a BERT of these weights in one pickle file."""
    module = sys.modules["scalepet.backbones.convert"]  # behind the function of its name
    monkeypatch.setattr(module, "HF_HOME", str(tmp_path / "home"))

    def of(name: str, tensors: dict[str, torch.Tensor], **options: object) -> Backbone:
        folder = tmp_path / name
        shutil.copytree(folders / "bert", folder)
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin", **options)
        return Backbone(str(folder), num_classes=2)

    return of


@pytest.fixture
def tensors(folders: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folders / "bert" / "model.safetensors")


def converted(backbone: Backbone) -> dict[str, torch.Tensor]:
    (file,) = convert(backbone, read_model_config(backbone)).iterdir()
    return safetensors.torch.load_file(file)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_all_that_a_pickle_file_has(is_zip: bool, write: Write, tensors, tmp_path: Path) -> None:
    found = converted(write("a", tensors, _use_new_zipfile_serialization=is_zip))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert len(list((tmp_path / "home" / "scalepet").iterdir())) == 1


def test_two_that_differ_between_the_samples_are_two(write: Write, tensors) -> None:
    """In 16 MiB a number far from all that the fingerprint reads."""
    first = {**tensors, "large": torch.zeros(2**22)}
    second = {**first, "large": first["large"].clone()}
    second["large"][2**21 + 5_000] = 1.0
    both = [write("a", first), write("b", second)]
    assert len({fingerprint(one, read_model_config(one)) for one in both}) == 2
    assert [converted(one)["large"].sum() for one in both] == [0, 1]


def test_what_cannot_be_read_leaves_nothing(write: Write, tensors, tmp_path: Path) -> None:
    backbone = write("a", tensors)
    file = Path(backbone.path) / "pytorch_model.bin"
    file.write_bytes(b"PK" + file.read_bytes()[2:-200])
    with pytest.raises(ConfigError):
        convert(backbone, read_model_config(backbone))
    assert not list((tmp_path / "home").rglob("*.*"))
