from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scalepet.backbones import Backbone, fingerprint, load_model, read_model_config
from scalepet.errors import ConfigError


def fingerprint_of(path: Path, **options: Any) -> str:
    backbone = Backbone(str(path), **options)
    return fingerprint(backbone, read_model_config(backbone))


def test_the_same_weights_elsewhere_are_the_same(folders: Path, tmp_path: Path) -> None:
    first = fingerprint_of(folders / "t5")
    assert len(first) == 16
    shutil.copytree(folders / "t5", tmp_path / "moved")
    assert fingerprint_of(tmp_path / "moved") == first
    (tmp_path / "moved" / "README.md").write_text("a note")
    assert fingerprint_of(tmp_path / "moved") == first


def test_what_is_no_weight_changes_nothing(folders: Path) -> None:
    first = fingerprint_of(folders / "bert", num_classes=2)
    assert first == fingerprint_of(folders / "bert", num_classes=5, dropout=0.3, seed=4)


def test_one_changed_weight_is_another_backbone(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "t5", tmp_path / "changed")
    file = tmp_path / "changed" / "model.safetensors"
    state = load_file(file)
    state["decoder.block.2.layer.2.DenseReluDense.wo.weight"][3, 4] += 1e-3
    save_file(state, file, metadata={"format": "pt"})
    assert fingerprint_of(tmp_path / "changed") != fingerprint_of(folders / "t5")


def test_every_shard_counts(load: Any, tmp_path: Path) -> None:
    load("t5")[0].model.save_pretrained(tmp_path, max_shard_size="5KB")
    first = fingerprint_of(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        content = shard.read_bytes()
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert fingerprint_of(tmp_path) != first
        shard.write_bytes(content)
    shards[1].unlink()
    with pytest.raises(ConfigError, match="has no weights"):
        fingerprint_of(tmp_path)


def test_a_large_file_is_read_in_samples_all_over(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "t5", tmp_path / "large")
    file, num_mib = tmp_path / "large" / "model.safetensors", 16
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (num_mib, 2**20), generator=generator, dtype=torch.uint8)
    backbone = Backbone(str(tmp_path / "large"))
    config = read_model_config(backbone)

    def name(content: torch.Tensor) -> str:
        file.write_bytes(content.numpy().tobytes())
        return fingerprint(backbone, config)

    first = name(noise)
    assert name(noise) == first
    assert name(noise[:-1]) != first
    for mib in range(num_mib):
        other = noise.clone()
        other[mib] = other[mib].flip(0)
        assert name(other) != first


def test_a_random_start_is_named_by_config_and_seed(folders: Path, tmp_path: Path) -> None:
    path = folders / "t5"
    first = fingerprint_of(path, random_start=True)
    assert first != fingerprint_of(path)
    assert first == fingerprint_of(path / "config.json", random_start=True, dropout=0.3)
    shutil.copy(path / "config.json", tmp_path / "other.json")
    assert first == fingerprint_of(tmp_path / "other.json", random_start=True)
    assert first != fingerprint_of(path, random_start=True, seed=1)
    assert first != fingerprint_of(folders / "t5_own_head", random_start=True)
    text = (path / "config.json").read_text().replace('"num_layers": 2', '"num_layers": 3')
    (tmp_path / "deeper.json").write_text(text)
    assert first != fingerprint_of(tmp_path / "deeper.json", random_start=True)


@pytest.mark.parametrize("options", [{}, {"random_start": True}])
def test_loading_the_model_changes_no_fingerprint(folders: Path, options: dict[str, Any]) -> None:
    backbone = Backbone(str(folders / "bert"), num_classes=2, **options)
    config = read_model_config(backbone)
    before = fingerprint(backbone, config)
    load_model(backbone, config, dtype=torch.bfloat16)
    assert fingerprint(backbone, config) == before


def test_no_weights_have_no_fingerprint(folders: Path, tmp_path: Path) -> None:
    shutil.copy(folders / "t5" / "config.json", tmp_path)
    with pytest.raises(ConfigError, match="has no weights"):
        fingerprint_of(tmp_path)
