"""Names in files lead to no place outside of the folder that the files are in; links are not
followed where something is cleared.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from scalepet import engine
from scalepet.backbones import Backbone
from scalepet.backbones.checkpoint import weight_files
from scalepet.engine.files import write_folder
from scalepet.errors import CheckpointError, ConfigError, DataError
from scalepet.tracking import check_seal, seal
from scalepet.tracking.wandb import ID_FILE, _keep_id

OUTSIDE = ("../secret.txt", "/etc/hostname", "..", "logs/../../secret.txt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder, beside which lies what is none of its business."""
    (tmp_path / "secret.txt").write_text("theirs")
    made = tmp_path / "run"
    made.mkdir()
    return made


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_seal_names_files_of_its_folder(name: str, folder: Path) -> None:
    (folder / "result.json").write_text("{}")
    seal(folder, ["result.json"])
    digests = json.loads((folder / "seal.json").read_text())
    (folder / "seal.json").write_text(json.dumps({**digests, name: "0" * 32}))
    with pytest.raises(DataError, match="which is no file of the run"):
        check_seal(folder)


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_of_weights_names_files_beside_it(
    name: str, tiny_backbones: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_backbones / "bert", tmp_path / "bert"))
    (copy / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": name}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="which does not lie beside it"):
        weight_files(Backbone(str(copy)), fetch=True)


@pytest.mark.parametrize("kept", ["../../etc", "a/b", "*", "x" * 200])
def test_an_id_of_wandb_is_no_path(kept: str, folder: Path) -> None:
    (folder / ID_FILE).write_text(kept)
    with pytest.raises(ValueError, match="allowed: letters"):
        _keep_id(folder, None)


def tensors() -> dict[str, Any]:
    return {"../../a": torch.ones(2), "/etc/b": torch.zeros(3), "a/../../c": torch.ones(1)}


def test_names_of_tensors_make_no_files(folder: Path) -> None:
    write_folder(folder / "adapter", tensors=tensors(), record={"output": "../elsewhere"})
    found, record = engine.read_folder(folder / "adapter")
    assert found.keys() == tensors().keys() and record["output"] == "../elsewhere"
    assert sorted(path.name for path in folder.parent.rglob("*")) == sorted(
        ["run", "adapter", "scalepet.json", "tensors.safetensors", "secret.txt"]
    )


class TestLinks:
    """Someone has put links to other places into the folder."""

    @pytest.fixture
    def elsewhere(self, tmp_path: Path) -> Path:
        made = tmp_path / "elsewhere"
        made.mkdir()
        (made / "precious").write_text("theirs")
        return made

    @pytest.mark.parametrize("suffix", ["", ".new", ".old"])
    def test_writing_a_folder_leaves_alone_what_they_point_to(
        self, suffix: str, folder: Path, elsewhere: Path
    ) -> None:
        link = folder / f"adapter{suffix}"
        link.symlink_to(elsewhere)
        is_in_the_way = pytest.raises(CheckpointError, match="a symbolic link is in its place")
        with contextlib.nullcontext() if suffix else is_in_the_way:
            write_folder(folder / "adapter", tensors=tensors(), record={})
        assert link.is_symlink()
        assert (elsewhere / "precious").read_text() == "theirs"
        assert [path.name for path in elsewhere.iterdir()] == ["precious"]

    def test_links_within_what_is_cleared_go_and_what_they_point_to_stays(
        self, folder: Path, elsewhere: Path
    ) -> None:
        write_folder(folder / "adapter", tensors=tensors(), record={})
        (folder / "adapter" / "link").symlink_to(elsewhere)
        write_folder(folder / "adapter", tensors=tensors(), record={})
        assert not (folder / "adapter" / "link").exists()
        assert (elsewhere / "precious").read_text() == "theirs"

    def test_old_states_are_no_links(self, folder: Path, elsewhere: Path) -> None:
        states = engine.States(folder, keep=1)
        (folder / "00000001").symlink_to(elsewhere)
        states._write(2, {"trained/a": torch.ones(1)}, {})
        assert (folder / "00000001").is_symlink()
        assert (elsewhere / "precious").read_text() == "theirs"


def test_a_mask_of_another_place_is_not_read_by_its_name(tmp_path: Path) -> None:
    """Names of tensors in a file of positions are keys, whatever they look like."""
    from scalepet.masks import load_indices

    safetensors.torch.save_file({"../../a": torch.ones(2)}, tmp_path / "mask")
    with pytest.raises(CheckpointError, match="not a mask"):
        load_indices(tmp_path / "mask")
