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
from datasets import Dataset, DatasetDict

from scalepet import engine
from scalepet.backbones import Backbone
from scalepet.backbones.checkpoint import weight_files
from scalepet.data import Source, load_split
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


ADDRESSES = (
    "../private.csv",
    "/etc/passwd",
    "https://x.org/a.csv",
    "zip://a.csv::b.zip",
    "~/a.csv",
)
HEADERS = (
    "data_files: {path!r}",
    "data_files: [{path!r}]",
    "data_files: [{{split: train, path: {path!r}}}]",
    "data_files: {{train: {path!r}}}",
    "data_dir: {path!r}",
)


@pytest.mark.parametrize("path", ADDRESSES)
@pytest.mark.parametrize("header", HEADERS)
def test_the_readme_of_a_data_folder_names_its_own_files(
    header: str, path: str, folder: Path
) -> None:
    (folder.parent / "private.csv").write_text("text\ntheirs\n")
    (folder / "train.csv").write_text("text\nmine\n")
    config = "configs:\n- config_name: default\n  " + header.format(path=path)
    (folder / "README.md").write_text(f"---\n{config}\n---\n# Words\n")
    with pytest.raises(
        ConfigError, match=r"README\.md'.* names .*allowed: files of the same folder"
    ):
        load_split(Source(str(folder)), "train")
    good = "data_dir: '.'" if "data_dir" in header else header.format(path="train.csv")
    (folder / "README.md").write_text(f"---\nconfigs:\n- {good}\n---\n")
    assert load_split(Source(str(folder)), "train")[0:1]["text"] == ["mine"]


@pytest.mark.parametrize(
    "header",
    [
        *("configs: 3", "configs: [3]", "configs: [{data_files: {train: 3}}]", "configs: [{a: 1}]"),
        *("configs: [{data_files: gone.csv}]", "a: [", "a: &a [*a]"),
        "configs: [{features: x, data_files: train.csv}]",
    ],
)
def test_a_readme_that_makes_no_sense(header: str, folder: Path) -> None:
    (folder / "train.csv").write_text("text\nmine\n")
    (folder / "README.md").write_text(f"---\n{header}\n---\n")
    with pytest.raises(ConfigError, match=r"README\.md'"):
        load_split(Source(str(folder)), "train")


def test_a_readme_with_several_configurations(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / f"{name}.csv").write_text(f"text;n\n{name};1\n")
    configs = [
        {"config_name": name, "data_files": f"{name}.csv", "sep": ";"} for name in ("one", "two")
    ]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    assert load_split(Source(str(folder), subset="two"), "train")[0:1]["text"] == ["two"]
    for subset in (None, "three"):
        with pytest.raises(ConfigError, match="task.source.subset is .*allowed.*: one, two"):
            load_split(Source(str(folder), subset=subset), "train")


@pytest.mark.parametrize("name", ["../other/data-00000-of-00001.arrow", "..", "", "/etc/passwd"])
@pytest.mark.parametrize("file", ["state.json", "dataset_dict.json"])
def test_a_saved_data_set_names_files_beside_it(name: str, file: str, folder: Path) -> None:
    rows = Dataset.from_dict({"text": ["mine"]})
    rows.save_to_disk(folder.parent / "other")
    DatasetDict({"train": rows}).save_to_disk(folder)
    assert load_split(Source(str(folder)), "train")[0:1]["text"] == ["mine"]
    if file == "state.json":
        place = folder / "train" / file
        state = json.loads(place.read_text())
        place.write_text(json.dumps({**state, "_data_files": [{"filename": name}]}))
    else:
        (folder / file).write_text(json.dumps({"splits": [name]}))
    with pytest.raises(DataError, match="which does not lie beside it"):
        load_split(Source(str(folder)), "train")


@pytest.mark.parametrize("content", ["", "[" * 10**5, "[]", "{}", '{"splits": 3}', "\0"])
@pytest.mark.parametrize("file", ["state.json", "dataset_dict.json"])
def test_a_saved_data_set_with_a_broken_record(content: str, file: str, folder: Path) -> None:
    DatasetDict({"train": Dataset.from_dict({"text": ["mine"]})}).save_to_disk(folder)
    (folder / file if file == "dataset_dict.json" else folder / "train" / file).write_text(content)
    with pytest.raises(DataError, match="cannot be read"):
        load_split(Source(str(folder)), "train")


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
