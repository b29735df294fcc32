from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from scalepet.backbones import Backbone, load_model, read_model_config
from scalepet.errors import ConfigError

NAMES = ("t5", "t5_own_head", "bert")


def load_path(path: Path, **options: Any) -> Any:
    backbone = Backbone(str(path), **options)
    return load_model(backbone, read_model_config(backbone), dtype=torch.float32)


def weights_of(loaded: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in loaded.model.named_parameters()}


def is_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_loads_with_all_its_weights_frozen(load: Any, folders: Path, name: str) -> None:
    loaded, _ = load(name)
    saved = load_file(folders / name / "model.safetensors")
    weights = weights_of(loaded)
    prefix = "bert." if name == "bert" else ""
    assert len(saved) > 30
    for tensor_name, tensor in saved.items():
        assert torch.equal(weights[prefix + tensor_name], tensor), tensor_name
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_weights_in_a_bin_file_are_the_same_weights(
    load: Any, folders: Path, tmp_path: Path
) -> None:
    for name in ("t5", "t5_own_head"):
        folder = tmp_path / name
        shutil.copytree(folders / name, folder)
        state = load_file(folder / "model.safetensors")
        torch.save(state, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        assert is_same(weights_of(load_path(folder)), weights_of(load(name)[0]))


def test_a_wish_for_bf16_is_met(folders: Path) -> None:
    backbone = Backbone(str(folders / "t5"))
    loaded = load_model(backbone, read_model_config(backbone), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", NAMES)
def test_a_random_start_is_decided_by_its_seed(folders: Path, name: str) -> None:
    path = folders / name / "config.json"
    first, again, other = (
        weights_of(load_path(path, random_start=True, seed=seed, num_classes=3))
        for seed in (1, 1, 2)
    )
    assert is_same(first, again)
    assert first.keys() == other.keys()
    differing = {n for n in first if not torch.equal(first[n], other[n])}
    assert differing == {n for n in first if first[n].dim() > 1}  # norms and biases start plain
    assert all(tensor.isfinite().all() for tensor in first.values())
    assert ("lm_head.weight" in first) == (name == "t5_own_head")


def test_a_random_start_is_drawn_on_the_device_that_is_asked_for(folders: Path) -> None:
    backbone = Backbone(str(folders / "t5" / "config.json"), random_start=True)
    config = read_model_config(backbone)
    loaded = load_model(backbone, config, dtype=torch.float32, device="meta")
    assert all(parameter.is_meta for parameter in loaded.model.parameters())


def test_a_random_start_of_a_folder_leaves_its_weights_alone(load: Any, folders: Path) -> None:
    random = weights_of(load_path(folders / "t5", random_start=True))
    assert not torch.equal(random["shared.weight"], weights_of(load("t5")[0])["shared.weight"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_wish_for_dropout_reaches_every_module(load: Any, name: str, dropout: float) -> None:
    loaded, _ = load(name, dropout=dropout)
    rates = {module.p for module in loaded.model.modules() if isinstance(module, nn.Dropout)}
    in_attention = {
        float(module.dropout)
        for module in loaded.model.modules()
        if isinstance(getattr(module, "dropout", None), float)
    }
    assert rates == {dropout}
    assert in_attention <= {dropout}


@pytest.mark.parametrize(("name", "rate"), [("t5", 0.1), ("bert", 0.1)])
def test_without_a_wish_dropout_is_that_of_the_config(load: Any, name: str, rate: float) -> None:
    loaded, _ = load(name)
    assert {m.p for m in loaded.model.modules() if isinstance(m, nn.Dropout)} == {rate}


def test_the_head_of_bert_belongs_to_the_task_and_starts_by_the_seed(load: Any) -> None:
    loaded, _ = load("bert", num_classes=5)
    assert loaded.head_names == ("classifier.weight", "classifier.bias")
    assert loaded.model.classifier.weight.shape == (5, 16)
    again, other = load("bert", num_classes=5)[0], load("bert", num_classes=5, seed=1)[0]
    assert is_same(weights_of(loaded), weights_of(again))
    assert not torch.equal(loaded.model.classifier.weight, other.model.classifier.weight)


def test_a_pooler_that_the_checkpoint_lacks_trains_with_the_head(load: Any) -> None:
    loaded, _ = load("bert_without_pooler")
    assert set(loaded.head_names) == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }


def test_t5_has_no_head_of_its_task(load: Any) -> None:
    assert load("t5")[0].head_names == load("t5_own_head")[0].head_names == ()


def test_any_other_lacking_tensor_is_refused(changed_folder: Any) -> None:
    names = [f"encoder.block.{i}.layer.0.SelfAttention.k.weight" for i in range(2)]
    with pytest.raises(ConfigError) as caught:
        load_path(changed_folder("t5", dict.fromkeys(names)))
    assert [fault.split(" lacks ")[1].split(";")[0] for fault in caught.value.faults] == names
    with pytest.raises(ConfigError, match=r"lacks bert.encoder.*allowed to be missing: classifier"):
        load_path(
            changed_folder("bert", {"encoder.layer.0.attention.self.query.weight": None}),
            num_classes=2,
        )


def test_a_wholly_other_checkpoint_is_refused_in_a_few_lines(
    changed_folder: Any, folders: Path
) -> None:
    folder = changed_folder("t5", {})
    shutil.copy(folders / "bert" / "model.safetensors", folder)
    with pytest.raises(ConfigError, match="more tensors") as caught:
        load_path(folder)
    assert len(caught.value.faults) == 6


def test_tensors_of_other_shapes_are_refused_with_both(changed_folder: Any) -> None:
    name = "decoder.block.0.layer.0.SelfAttention.q.weight"
    with pytest.raises(ConfigError) as caught:
        load_path(changed_folder("t5", {name: torch.zeros(16, 8)}))
    (fault,) = caught.value.faults
    for fragment in (name, "(16, 8) in the checkpoint", "(16, 16) in the model"):
        assert fragment in fault


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_cut_weight_file_is_refused(folders: Path, tmp_path: Path, size: int) -> None:
    shutil.copytree(folders / "t5", tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_path(tmp_path / "cut")


def test_a_broken_bin_file_is_refused(folders: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(folders / "t5", folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"no weights" * 50)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_path(folder)


@pytest.fixture
def hub_name(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    import huggingface_hub.constants

    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(folders / "t5_own_head", snapshot)
    refs = tmp_path / "models--someone--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(transformers.utils.hub, "is_offline_mode", lambda: True, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return "someone/tiny"


def test_a_hub_name_loads_from_the_cache(hub_name: str, load: Any) -> None:
    backbone = Backbone(hub_name)
    loaded = load_model(backbone, read_model_config(backbone), dtype=torch.float32)
    assert is_same(weights_of(loaded), weights_of(load("t5_own_head")[0]))


def test_shards_are_found_through_their_index(load: Any, tmp_path: Path) -> None:
    loaded, _ = load("t5_own_head")
    loaded.model.save_pretrained(tmp_path / "sharded", max_shard_size="5KB")
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert is_same(weights_of(load_path(tmp_path / "sharded")), weights_of(loaded))


@pytest.fixture
def tuned_for_five(folders: Path, tmp_path: Path) -> Any:
    """``tuned_for_five("bert")``: a checkpoint with a head for five classes, and its weights by
    the names of the model.
    """

    def save(name: str) -> tuple[Path, dict[str, torch.Tensor]]:
        torch.manual_seed(7)
        kinds = {
            "bert": (transformers.BertConfig, transformers.BertForSequenceClassification),
            "vit": (transformers.ViTConfig, transformers.ViTForImageClassification),
        }
        config_class, model_class = kinds[name]
        shape = {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 24,
        }
        more = {"vocab_size": 48} if name == "bert" else {"image_size": 16, "patch_size": 8}
        model = model_class(config_class(**shape, **more, num_labels=5))
        model.save_pretrained(tmp_path / name)
        return tmp_path / name, model.state_dict()

    return save


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_a_head_for_other_classes_starts_anew(tuned_for_five: Any, name: str) -> None:
    folder, saved = tuned_for_five(name)
    first, again, other = (load_path(folder, num_classes=3, seed=seed) for seed in (1, 1, 2))
    assert first.head_names == ("classifier.weight", "classifier.bias")
    assert first.model.classifier.weight.shape == (3, 16)
    assert not first.model.classifier.weight.requires_grad
    assert is_same(weights_of(first), weights_of(again))
    assert not torch.equal(first.model.classifier.weight, other.model.classifier.weight)
    weights = weights_of(first)
    backbone = saved.keys() - {"classifier.weight", "classifier.bias"}
    assert len(backbone) > 30
    assert all(torch.equal(weights[tensor], saved[tensor]) for tensor in backbone)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_a_head_for_as_many_classes_is_kept(tuned_for_five: Any, name: str) -> None:
    folder, saved = tuned_for_five(name)
    loaded = load_path(folder, num_classes=5)
    assert loaded.head_names == ("classifier.weight", "classifier.bias")
    assert torch.equal(loaded.model.classifier.weight, saved["classifier.weight"])


def test_beside_a_new_head_any_other_shape_is_refused(tuned_for_five: Any) -> None:
    folder, _ = tuned_for_five("bert")
    state = load_file(folder / "model.safetensors")
    names = ["bert.encoder.layer.0.attention.self.key.bias", "bert.pooler.dense.weight"]
    state.update({name: torch.zeros(7) for name in names})
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError) as caught:
        load_path(folder, num_classes=3)
    assert [fault.split(": ")[2].split(" is ")[0] for fault in caught.value.faults] == names
    assert all("(7,) in the checkpoint" in fault for fault in caught.value.faults)


def test_a_vit_loads_with_all_its_weights_frozen(tiny_backbones: Path) -> None:
    loaded = load_path(tiny_backbones / "vit", num_classes=3)
    saved = transformers.ViTModel.from_pretrained(
        tiny_backbones / "vit", add_pooling_layer=False
    ).state_dict()
    weights = weights_of(loaded)
    assert weights.keys() == {f"vit.{name}" for name in saved} | set(loaded.head_names)
    assert all(torch.equal(weights[f"vit.{name}"], tensor) for name, tensor in saved.items())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.head_names == ("classifier.weight", "classifier.bias")
