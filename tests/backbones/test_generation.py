"""Texts are written as the run says, whatever lies beside the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scalepet.backbones import (
    Backbone,
    ignored_generation,
    load_model,
    read_model_config,
    write_text,
)

SETTINGS: dict[str, dict[str, Any]] = {
    "several answers": {"num_return_sequences": 3, "num_beams": 3},
    "another return": {"return_dict_in_generate": True, "output_scores": True},
    "no repetition": {"no_repeat_ngram_size": 2, "repetition_penalty": 5.0},
    "a draw": {"do_sample": True, "temperature": 9.0, "top_k": 3},
    "forced tokens": {"forced_bos_token_id": 5, "forced_eos_token_id": 7},
    "left out tokens": {"suppress_tokens": [1, 2, 3, 4, 5, 6, 7, 8], "bad_words_ids": [[9]]},
    "a length": {"min_length": 5, "min_new_tokens": 5, "length_penalty": -9.0},
    "another end": {"eos_token_id": [3, 4, 5, 6, 7, 8, 9, 10]},
}


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_beside_the_weights_change_nothing(
    settings: dict[str, Any], file: str, folders: Path, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    """An old checkpoint has them in its config.json, whose end token is the model's own."""
    if file == "config.json":
        settings = {name: value for name, value in settings.items() if name != "eos_token_id"}
    folder = tmp_path / "t5"
    shutil.copytree(folders / "t5", folder)
    plain = written(folder, tensors)
    if file == "config.json":
        (folder / "generation_config.json").unlink()
    path = folder / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **settings}))
    assert torch.equal(written(folder, tensors), plain)
    assert ignored_generation(Backbone(str(folder))) == {
        name: value for name, value in settings.items() if name != "eos_token_id"
    }


def written(folder: Path, tensors: dict[str, Tensor]) -> Tensor:
    backbone = Backbone(str(folder))
    loaded = load_model(backbone, read_model_config(backbone), dtype=torch.float32)
    return write_text(loaded.model.eval(), tensors, max_new_tokens=9)


def test_a_file_that_is_none_is_not_read(
    folders: Path, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    shutil.copytree(folders / "t5", tmp_path / "t5")
    (tmp_path / "t5" / "generation_config.json").write_text("{")
    plain = written(folders / "t5", tensors)
    assert torch.equal(written(tmp_path / "t5", tensors), plain)
    assert ignored_generation(Backbone(str(tmp_path / "t5"))) == {}
    config = Backbone(str(folders / "t5" / "config.json"), random_start=True)
    assert ignored_generation(config) == {}
