from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from scalepet.backbones import Backbone, longest_input, read_model_config, sketch_sites
from scalepet.errors import ConfigError


def read(path: Path | str, **options: Any) -> Any:
    return read_model_config(Backbone(str(path), **options))


@pytest.fixture
def changed(folders: Path, tmp_path: Path) -> Any:
    """``changed("t5", d_model=8)``: the path of a config.json with other values."""

    def change(name: str, **values: Any) -> Path:
        content = json.loads((folders / name / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**content, **values}))
        return tmp_path / "config.json"

    return change


def test_wishes_are_put_in(folders: Path) -> None:
    config = read(folders / "bert", num_classes=7, dropout=0.25)
    assert config.num_labels == 7
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.25
    assert config.classifier_dropout == 0.25
    assert read(folders / "t5", dropout=0.0).dropout_rate == 0.0
    assert read(folders / "t5").dropout_rate == 0.1


def test_how_long_an_input_may_be(folders: Path) -> None:
    assert longest_input(read(folders / "bert")) == 32
    assert longest_input(read(folders / "t5")) is None


def test_a_home_folder_is_found(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folders))
    assert read("~/t5").d_model == 16


@pytest.mark.parametrize(
    "path", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "../no-such-folder"]
)
def test_a_local_path_that_is_not_there_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"backbone.path: .* does not exist; allowed: a model"):
        read(path)


@pytest.mark.parametrize("path", ["someone/nothing", "no such name !", "", "x" * 200])
def test_a_name_that_the_hub_does_not_know_is_refused(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"backbone.path: .* cannot be loaded \(.+\); allowed: "):
        read(path)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        read(tmp_path)


def test_a_config_file_without_a_random_start_is_refused(folders: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no weights; .*backbone.random_start: true"):
        read(folders / "t5" / "config.json")


@pytest.mark.parametrize("model_type", ["gpt2", "roberta", "mt5", "deit"])
def test_another_family_is_refused_with_those_that_are_known(
    tmp_path: Path, model_type: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ConfigError, match=rf"is a '{model_type}' model; allowed: bert, t5, vit"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["{", "", "[1]", "3", "{}", '{"model_type": "nonsense"}'])
def test_a_config_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"backbone.path: .* cannot be loaded"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("t5", {"d_model": "wide"}),
        ("t5", {"d_model": -1}),
        ("t5", {"feed_forward_proj": "a-b-c"}),
        ("bert", {"num_attention_heads": 5}),
        ("bert", {"hidden_act": "nonsense"}),
    ],
)
def test_values_that_make_no_model_are_refused(
    changed: Any, name: str, values: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"backbone.path: .* cannot be loaded"):
        sketch_sites(read(changed(name, **values), random_start=True))


@pytest.mark.parametrize("name", ["decoder_start_token_id", "pad_token_id", "eos_token_id"])
def test_a_t5_without_its_tokens_is_refused(changed: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is null"):
        read(changed("t5", **{name: None}), random_start=True)


def test_all_lacking_tokens_are_named_at_once(changed: Any) -> None:
    path = changed("t5", decoder_start_token_id=None, pad_token_id=None)
    with pytest.raises(ConfigError) as caught:
        read(path, random_start=True)
    assert len(caught.value.faults) == 2


def test_code_of_a_stranger_is_not_run(changed: Any, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    path = changed("t5", auto_map={"AutoConfig": "evil.Config"})
    with pytest.raises(ConfigError, match="code of its own"):
        read(path, random_start=True)


def test_broken_weights_are_found_where_the_config_is_read(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "t5", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        read(tmp_path / "broken")
