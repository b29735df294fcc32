"""A tiny random DINOv2, laid out as the real package has it; transformers' own DINOv2 is the
reference, which scales its layers and resizes its positions itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model, ViTForImageClassification, ViTModel

from scalepet.assets import onnx_vit
from scalepet.errors import DataError

NUM_PATCHES = 25


def tiny_dinov2() -> Dinov2Model:
    config = Dinov2Config(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=70,
        patch_size=14,
        use_mask_token=False,
    )
    torch.manual_seed(0)
    model = Dinov2Model(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def export(model: Dinov2Model, raw: Path, *, num_patches: int = NUM_PATCHES) -> None:
    """Write the graph; the names of a hub checkpoint are those of the exporting module."""
    raw.mkdir()
    model.save_pretrained(raw / "hub")
    initializers: list[TensorProto] = []
    nodes: list[NodeProto] = []

    def add(name: str, value: torch.Tensor) -> None:
        initializers.append(numpy_helper.from_array(value.contiguous().numpy(), name))

    for index, (name, value) in enumerate(load_file(raw / "hub" / "model.safetensors").items()):
        scope = f"/backbone/{name.removesuffix('.weight').replace('.', '/')}"
        if name == "embeddings.position_embeddings":
            add("onnx::Concat_1", value[:, :1])
            add("onnx::Reshape_2", value[:, 1 : 1 + num_patches])
            inputs = {"Concat": ["onnx::Concat_1", "x"], "Reshape": ["onnx::Reshape_2", "shape"]}
            nodes += [
                helper.make_node(kind, names, ["y"], name=f"/backbone/embeddings/{kind}")
                for kind, names in inputs.items()
            ]
        elif value.dim() == 2:
            add(f"onnx::MatMul_{index}", value.T)
            node_name = scope.replace("/layer/", "/layer.") + "/MatMul"
            nodes.append(
                helper.make_node("MatMul", ["x", f"onnx::MatMul_{index}"], ["y"], name=node_name)
            )
        else:
            add(f"backbone.{name}", value)
    # Behind the backbone is a decoder, and attention multiplies matrices that are no weights.
    add("decoder.final_conv.weight", torch.ones(1, 64, 1, 1))
    nodes.append(helper.make_node("MatMul", ["q", "k"], ["y"], name="/backbone/layer.0/MatMul"))
    graph = helper.make_graph(nodes, "tiny", [], [], initializers)
    onnx.save(helper.make_model(graph), raw / "tiny.onnx")


def test_the_vit_computes_what_the_dinov2_computes(tmp_path: Path, folder: Path) -> None:
    model = tiny_dinov2()
    export(model, tmp_path / "raw")
    done = onnx_vit.dinov2_as_vit(tmp_path / "raw", folder)
    vit, report = ViTModel.from_pretrained(
        folder, add_pooling_layer=False, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    pixels = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        expected = model(pixels).last_hidden_state
        states = vit.eval()(pixels).last_hidden_state
    assert states.shape == (2, 65, 128)
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
    assert f"{vit.num_parameters()} parameters" in done


def test_only_the_head_is_lacking(tmp_path: Path, folder: Path) -> None:
    export(tiny_dinov2(), tmp_path / "raw")
    onnx_vit.dinov2_as_vit(tmp_path / "raw", folder)
    vit, report = ViTForImageClassification.from_pretrained(
        folder, num_labels=3, output_loading_info=True
    )
    assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert not report["unexpected_keys"]
    config = vit.config
    assert (config.image_size, config.patch_size, config.num_attention_heads) == (112, 14, 2)
    assert (config.num_hidden_layers, config.intermediate_size) == (2, 256)


def test_how_pictures_enter_is_told(tmp_path: Path, folder: Path) -> None:
    export(tiny_dinov2(), tmp_path / "raw")
    done = onnx_vit.dinov2_as_vit(tmp_path / "raw", folder)
    told = json.loads((folder / "preprocessor_config.json").read_text())
    assert told["image_mean"] == [0.485, 0.456, 0.406]
    assert told["image_std"] == [0.229, 0.224, 0.225]
    assert told["size"] == {"height": 112, "width": 112}
    assert "mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225)" in done


def test_positions_that_make_no_square_are_refused(tmp_path: Path, folder: Path) -> None:
    export(tiny_dinov2(), tmp_path / "raw", num_patches=24)
    with pytest.raises(DataError, match="tiny.onnx: has 1 positions for CLS and 24 for patches"):
        onnx_vit.dinov2_as_vit(tmp_path / "raw", folder)
    assert not list(folder.iterdir())
